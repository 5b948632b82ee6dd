package integration

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nftfw/nftfw/integration/lab"
)

// sshPolicy lets only the set trusted reach the host, sshd included.
const sshPolicy = "version: 1\n"

// answerWithin is how long a command of a session that lives may take, and
// loginWithin how long a login that works.
const (
	answerWithin = 20 * time.Second
	loginWithin  = 20 * time.Second
)

// sshHost is a host with a real sshd, and its administrator.
type sshHost struct {
	*set
	sshd  *lab.SSHD
	admin *lab.Node
}

func newSSHHost(t *testing.T) *sshHost {
	t.Helper()
	s := bare(t)
	sshd, err := s.SSHD(s.ctx())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sshd.Stop)
	return &sshHost{set: s, sshd: sshd, admin: s.permitted}
}

// login opens a session of the administrator's.
func (h *sshHost) login(to netip.Addr) *lab.Session {
	h.t.Helper()
	s, err := h.sshd.Login(h.ctx(), h.admin, to, loginWithin)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(s.Hangup)
	return s
}

// shut demands that nobody gets to sshd any more from the administrator's
// addresses.
func (h *sshHost) shut(when string) {
	h.t.Helper()
	h.closed(h.admin.Namespace, hostPorts("22"))
	if h.t.Failed() {
		h.t.Fatal(when)
	}
}

// backWithin waits until the administrator can log in again.
func (h *sshHost) backWithin(d time.Duration) {
	h.t.Helper()
	h.eventually(d, func() error { return h.reaches(h.admin) })
	if h.t.Failed() {
		h.t.FailNow()
	}
	h.login(lab.HostV4)
}

// reaches tells whether a node gets to sshd by every address.
func (h *sshHost) reaches(n *lab.Node) error {
	for _, p := range hostPorts("22") {
		if r := n.Probe(h.ctx(), p); !r.Reached() {
			return fmt.Errorf("%s: %s", p, r)
		}
	}
	return nil
}

// alive demands that a session answers.
func (h *sshHost) alive(s *lab.Session, when string) {
	h.t.Helper()
	if o := s.Run(answerWithin, "echo", "here"); o.Status != 0 || o.Stdout != "here\n" {
		h.t.Fatalf("%s the session is dead: %s", when, o)
	}
}

// table is what the kernel holds of nftfw.
func (h *sshHost) table() string {
	h.t.Helper()
	return strings.Join(listing(h.t, h.Host), "\n")
}

// SCENARIO 37: from a live session nothing is done that ends it, whether a
// daemon runs or not, and whichever family the session is of.
func TestScenario37LiveSession(t *testing.T) {
	h := newSSHHost(t)
	h.start(sshPolicy)
	h.nftfw("sets", "add", "trusted", h.admin.V4.String(), h.admin.V6.String())
	for _, daemon := range []bool{true, false} {
		if !daemon {
			if err := h.fw.Stop(h.ctx()); err != nil {
				t.Fatal(err)
			}
		}
		for _, c := range []struct {
			to, me netip.Addr
			world  string
		}{{lab.HostV4, h.admin.V4, "0.0.0.0/0"}, {lab.HostV6, h.admin.V6, "::/0"}} {
			t.Run(fmt.Sprintf("daemon %v to %s", daemon, c.to), func(t *testing.T) {
				h := *h
				h.set = h.in(t)
				h.refusals(h.login(c.to), c.me, c.world, daemon)
			})
		}
	}
}

// The daemon keeps no more of root's powers than it needs, to look after sshd's
// sockets for one, which the tests around this one show.
func TestDaemonIsConfined(t *testing.T) {
	s := scene(t, "version: 1\n")
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", s.fw.PID()))
	if err != nil || len(tasks) < 2 {
		t.Fatalf("threads %v, %v", tasks, err)
	}
	want := uint64(1)<<unix.CAP_NET_ADMIN | 1<<unix.CAP_SYS_PTRACE | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_NET_BIND_SERVICE
	for _, path := range tasks {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // a thread that has ended
		}
		for _, line := range []string{
			fmt.Sprintf("CapPrm:\t%016x\n", want), fmt.Sprintf("CapEff:\t%016x\n", want),
			"CapInh:\t0000000000000000\n", "NoNewPrivs:\t1\n",
		} {
			if !strings.Contains(string(text), line) {
				t.Errorf("%s lacks %q:\n%s", path, line, text)
			}
		}
	}
}

// refusals tries every command that would cut the session.
func (h *sshHost) refusals(session *lab.Session, me netip.Addr, world string, daemon bool) {
	before := h.table()
	refused := func(args ...string) {
		h.t.Helper()
		o := session.Run(answerWithin, h.fw.CommandLine(args...)...)
		if o.Status != 5 {
			h.t.Errorf("want status 5: %s", o)
		}
		for _, word := range []string{"refused: it would cut the SSH connection from", me.String(), "apply --confirm 60s", "--force"} {
			if !strings.Contains(o.Stdout, word) {
				h.t.Errorf("it does not speak of %q: %s", word, o)
			}
		}
		h.alive(session, "after "+args[0])
	}
	refused("sets", "del", "trusted", me.String())
	refused("sets", "flush", "trusted")
	refused("sets", "add", "blocked", world)
	refused("sets", "add", "blocked", me.String(), "--timeout", "1h")
	// A policy that opens ssh to somebody else only, and blocks the rest.
	h.edit("version: 1\nsets: {trusted: [203.0.113.1], blocked: [198.18.0.0/16, \"fd00::/8\"]}\n")
	refused("apply")
	if daemon {
		refused("reload")
		if err := h.fw.Hangup(); err != nil { // no one is there to be told: it must not happen
			h.t.Fatal(err)
		}
		h.alive(session, "after SIGHUP")
	}
	h.edit(sshPolicy)
	if now := h.table(); now != before {
		h.t.Errorf("refused commands changed the table from\n%s\nto\n%s", before, now)
	}
	h.login(lab.HostV4)
	// What does not end the session is done.
	if o := session.Run(answerWithin, h.fw.CommandLine("sets", "add", "blocked", "203.0.113.0/24")...); o.Status != 0 {
		h.t.Error(o)
	}
	if o := session.Run(answerWithin, h.fw.CommandLine("sets", "del", "blocked", "203.0.113.0/24")...); o.Status != 0 {
		h.t.Error(o)
	}
}

// edit writes the policy file.
func (h *sshHost) edit(policy string) {
	h.t.Helper()
	if err := h.fw.WritePolicy(policy); err != nil {
		h.t.Fatal(err)
	}
}

// The way out that the refusal names does what it says.
func TestScenario37Force(t *testing.T) {
	h := newSSHHost(t)
	h.start(sshPolicy)
	h.nftfw("sets", "add", "trusted", h.admin.V4.String(), h.admin.V6.String())
	session := h.login(lab.HostV4)
	_ = session.Send(h.fw.CommandLine("sets", "flush", "trusted", "--force")...)
	h.closes(h.admin.Namespace, hostPorts("22"))
	if o := session.Run(2*time.Second, "true"); o.Status != -1 {
		t.Errorf("the session lives: %s", o)
	}
}

// cutting is a policy under which the administrator is a stranger.
const cutting = "version: 1\nsets: {trusted: [203.0.113.1]}\n"

// SCENARIO 28, and what may happen while a confirmation is open. In each case
// the administrator is locked out by a policy, and let in again by nobody.
func TestScenario28Confirm(t *testing.T) {
	// Each begins with a session under a policy that lets it live and the file
	// replaced by one that does not.
	tests := []struct {
		name string
		try  func(h *sshHost, session *lab.Session)
	}{
		{"nobody confirms", func(h *sshHost, session *lab.Session) {
			began := time.Now()
			_ = session.Send(h.fw.CommandLine("apply", "--confirm", "3s")...)
			h.closes(h.admin.Namespace, hostPorts("22"))
			h.backWithin(answerWithin)
			if took := time.Since(began); took < 3*time.Second {
				h.t.Errorf("back after %s", took)
			}
			// The session was cut off, and nothing told it so.
			h.alive(session, "with the former policy back")
			o := h.fw.Exec(h.ctx(), "reload")
			if o.Status != 5 || !strings.Contains(o.Stderr, "nobody confirmed") {
				h.t.Errorf("the policy that was put back is loaded: %s", o)
			}
		}},
		{"the caller hangs up", func(h *sshHost, session *lab.Session) {
			_ = session.Send(h.fw.CommandLine("apply", "--confirm", "3s")...)
			h.eventually(openWithin, func() error {
				if !strings.Contains(h.table(), "203.0.113.1") {
					return errors.New("the policy is not in force")
				}
				return nil
			})
			session.Hangup()
			h.shut("the policy is in force")
			h.backWithin(answerWithin)
		}},
		{"the caller is killed at once", func(h *sshHost, session *lab.Session) {
			// Whether or not the daemon hears of it, it ends with the former policy.
			_ = session.Send(h.fw.CommandLine("apply", "--confirm", "2s")...)
			session.Hangup()
			<-time.After(2 * time.Second)
			h.backWithin(answerWithin)
		}},
		{"the daemon dies and is back before the time is up", func(h *sshHost, session *lab.Session) {
			_ = session.Send(h.fw.CommandLine("apply", "--confirm", "6s")...)
			h.closes(h.admin.Namespace, hostPorts("22"))
			h.reborn(0)
			h.shut("the trial goes on after the daemon's restart")
			h.backWithin(answerWithin)
		}},
		{"the daemon dies and is back later", func(h *sshHost, session *lab.Session) {
			_ = session.Send(h.fw.CommandLine("apply", "--confirm", "2s")...)
			h.closes(h.admin.Namespace, hostPorts("22"))
			h.reborn(3 * time.Second)
			h.backWithin(answerWithin)
		}},
		{"somebody confirms", func(h *sshHost, session *lab.Session) {
			_ = session.Send(h.fw.CommandLine("apply", "--confirm", "2s")...)
			h.closes(h.admin.Namespace, hostPorts("22"))
			h.nftfw("confirm")
			<-time.After(3 * time.Second)
			h.shut("the policy was confirmed")
			if o := h.fw.Exec(h.ctx(), "confirm"); o.Status != 1 {
				h.t.Errorf("with nothing pending: %s", o)
			}
		}},
		{"down", func(h *sshHost, session *lab.Session) {
			// The administrator's last resort needs no confirmation, and ends the trial.
			h.edit("version: 1\nsets: {trusted: [203.0.113.1]}\nhost: {allow: [{ports: [22/tcp], from: any}]}\n")
			if o := session.Run(answerWithin, h.fw.CommandLine("apply", "--confirm", "2s")...); o.Status != 0 {
				h.t.Fatal(o)
			}
			if o := session.Run(answerWithin, h.fw.CommandLine("down", "--yes")...); o.Status != 0 {
				h.t.Fatal(o)
			}
			<-time.After(3 * time.Second)
			h.alive(session, "after down")
			if tables, err := h.Host.Run(h.ctx(), "nft", "list", "tables"); err != nil || strings.Contains(tables, "inet nftfw") {
				h.t.Errorf("after down (%v):\n%s", err, tables)
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newSSHHost(t)
			h.start(fmt.Sprintf("version: 1\nsets: {trusted: [%s, %q]}\n", h.admin.V4, h.admin.V6))
			session := h.login(lab.HostV4)
			h.edit(cutting)
			if o := session.Run(answerWithin, h.fw.CommandLine("apply")...); o.Status != 5 {
				t.Fatalf("without --confirm: %s", o)
			}
			tt.try(h, session)
		})
	}
}

// reborn kills the daemon, and starts it again after a while.
func (h *sshHost) reborn(after time.Duration) {
	h.t.Helper()
	if err := h.fw.Kill(h.ctx()); err != nil {
		h.t.Fatal(err)
	}
	<-time.After(after)
	if err := h.fw.Start(h.ctx()); err != nil {
		h.t.Fatal(err)
	}
}

// The very first start does not end a session: it only observes until somebody
// applies a policy.
func TestScenario37FirstRun(t *testing.T) {
	h := newSSHHost(t)
	session := h.login(lab.HostV4)
	h.prepare(sshPolicy)
	const first, putBack = "first start on this host", "nobody confirmed it in time"
	observing := func(when, why string) {
		t.Helper()
		h.eventually(answerWithin, func() error {
			s, err := h.fw.Status(h.ctx())
			if err == nil && (s.Mode != "observe" || s.Enforced || !strings.Contains(s.Policy.Error, why)) {
				err = fmt.Errorf("%s: %+v", when, s)
			}
			return err
		})
		h.alive(session, when)
		if err := h.reaches(h.stranger); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	for _, when := range []string{"at the first start", "after a restart"} {
		if err := h.fw.Launch(h.ctx()); err != nil {
			t.Fatal(err)
		}
		observing(when, first)
		if err := h.fw.Stop(h.ctx()); err != nil {
			t.Fatal(err)
		}
	}
	if log := h.fw.Log(); !strings.Contains(log, "stays in observe mode") || !strings.Contains(log, "apply --confirm 60s") {
		t.Errorf("the log does not say so loudly:\n%s", log)
	}
	if err := h.fw.Launch(h.ctx()); err != nil {
		t.Fatal(err)
	}
	observing("after a second restart", first)
	if o := session.Run(answerWithin, h.fw.CommandLine("apply")...); o.Status != 5 || !strings.Contains(o.Stdout, "apply --confirm 60s") {
		t.Fatalf("apply from the session: %s", o)
	}
	// Tried out, it is enforced, and given up again.
	_ = session.Send(h.fw.CommandLine("apply", "--confirm", "2s")...)
	h.closes(h.admin.Namespace, hostPorts("22"))
	h.backWithin(answerWithin)
	observing("after a trial", putBack)
	// Let in first, the administrator may enforce.
	if o := session.Run(answerWithin, h.fw.CommandLine("sets", "add", "trusted", h.admin.V4.String(), h.admin.V6.String())...); o.Status != 0 {
		t.Fatal(o)
	}
	if o := session.Run(answerWithin, h.fw.CommandLine("apply")...); o.Status != 0 {
		t.Fatal(o)
	}
	h.alive(session, "under enforcement")
	h.closes(h.stranger.Namespace, hostPorts("22"))
	if s, err := h.fw.Status(h.ctx()); err != nil || !s.Enforced {
		t.Errorf("status %+v, %v", s, err)
	}
}

// Who is let in by the policy does not keep the first start from enforcing.
func TestScenario37FirstRunOfAnAllowedSession(t *testing.T) {
	h := newSSHHost(t)
	session := h.login(lab.HostV6)
	h.start("version: 1\nhost: {allow: [{ports: [22/tcp], from: \"fd00:18::/64\"}]}\n")
	h.alive(session, "after the first start")
	if s, err := h.fw.Status(h.ctx()); err != nil || !s.Enforced || s.Mode != "enforce" {
		t.Errorf("status %+v, %v", s, err)
	}
	h.closed(h.stranger.Namespace, addrPorts(lab.HostV4, "22"))
}
