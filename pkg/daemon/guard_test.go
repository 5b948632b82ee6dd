package daemon

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nftfw/nftfw/pkg/api"
	"github.com/nftfw/nftfw/pkg/sockets"
)

// process is one process of a made-up process file system with its sockets.
type process struct {
	comm    string
	sockets []fakeSocket
}

type fakeSocket struct {
	local, remote string
	state         string
	v6            bool // in tcp6, an IPv4 address mapped
}

// States of a socket as /proc/net/tcp prints them (include/net/tcp_states.h).
const (
	established = "01"
	listens     = "0A"
)

// fakeHost is a host of which a made-up process file system says everything.
func fakeHost(proc string) host {
	return host{tcp: func() []sockets.Socket { return sockets.Tables(proc) }, proc: proc}
}

// fakeProc writes a process file system as proc(5) describes it.
func fakeProc(t *testing.T, processes ...process) string {
	t.Helper()
	proc := t.TempDir()
	tables := map[bool]string{}
	inode := 1000
	for i, p := range processes {
		dir := filepath.Join(proc, fmt.Sprint(100+i))
		if err := os.MkdirAll(filepath.Join(dir, "fd"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "comm"), []byte(p.comm+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		for n, s := range p.sockets {
			inode++
			tables[s.v6] += fmt.Sprintf("  %d: %s %s %s 00000000:00000000 00:00000000 00000000     0        0 %d 1\n",
				n, socketAddr(s.local, s.v6), socketAddr(s.remote, s.v6), s.state, inode)
			// Parent and child of a session hold the same socket.
			for _, fd := range []string{fmt.Sprint(2 * n), fmt.Sprint(2*n + 1)} {
				if err := os.Symlink(fmt.Sprintf("socket:[%d]", inode), filepath.Join(dir, "fd", fd)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	net := filepath.Join(proc, "thread-self", "net")
	if err := os.MkdirAll(net, 0o755); err != nil {
		t.Fatal(err)
	}
	const heading = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
	for name, v6 := range map[string]bool{"tcp": false, "tcp6": true} {
		if err := os.WriteFile(filepath.Join(net, name), []byte(heading+tables[v6]), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return proc
}

// socketAddr writes an address as the kernel does: words in the machine's
// byte order.
func socketAddr(text string, v6 bool) string {
	ap := netip.MustParseAddrPort(text)
	b := ap.Addr().AsSlice()
	if v6 {
		a16 := ap.Addr().As16()
		b = a16[:]
	}
	out := ""
	for i := 0; i < len(b); i += 4 {
		out += fmt.Sprintf("%08X", binary.NativeEndian.Uint32(b[i:]))
	}
	return fmt.Sprintf("%s:%04X", out, ap.Port())
}

func session(remote string) fakeSocket {
	return fakeSocket{local: "198.18.0.1:22", remote: remote, state: established}
}

func TestSSHDSockets(t *testing.T) {
	listen := fakeSocket{local: "0.0.0.0:22", remote: "0.0.0.0:0", state: listens}
	listen6 := fakeSocket{local: "[::]:2222", remote: "[::]:0", state: listens, v6: true}
	mapped := session("198.18.0.8:4001")
	mapped.v6 = true
	six := fakeSocket{local: "[2001:db8::1]:22", remote: "[2001:db8::9]:4002", state: established, v6: true}
	closing := session("198.18.0.7:4003")
	closing.state = "06"
	proc := fakeProc(t,
		process{"sshd", []fakeSocket{listen, listen6, session("198.18.0.9:4000")}},
		process{"sshd-session", []fakeSocket{mapped, six, closing}},
		process{"nginx", []fakeSocket{session("198.18.0.10:4004"), {local: "0.0.0.0:80", remote: "0.0.0.0:0", state: listens}}},
	)
	var got []string
	for _, s := range fakeHost(proc).sshd(sockets.Established) {
		got = append(got, s.Remote.String()+" to "+s.Local.String())
	}
	want := []string{"198.18.0.8:4001 to 198.18.0.1:22", "198.18.0.9:4000 to 198.18.0.1:22", "[2001:db8::9]:4002 to [2001:db8::1]:22"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("established (-want +got):\n%s", diff)
	}
	got = nil
	for _, s := range fakeHost(proc).sshd(sockets.Listen) {
		got = append(got, s.Local.String())
	}
	if diff := cmp.Diff([]string{"0.0.0.0:22", "[::]:2222"}, got); diff != "" {
		t.Errorf("listening (-want +got):\n%s", diff)
	}
}

func TestSSHDSocketsOfNoTables(t *testing.T) {
	if got := fakeHost(t.TempDir()).sshd(sockets.Established); got != nil {
		t.Errorf("sockets of an empty file system: %v", got)
	}
}

const sshPolicy = `version: 1
sets:
  trusted: [192.0.2.10]
host:
  allow:
    - {ports: [22/tcp], from: 198.18.0.0/24}
`

// withSession is a host with an address, and a session of somebody from there.
func withSession(t *testing.T, s fakeSocket) *world {
	w := newWorld(t)
	for _, args := range []string{
		"link add eth0 type veth peer name far0",
		"address add 198.18.0.1/24 dev eth0",
		"link set eth0 up",
	} {
		if out, err := exec.CommandContext(t.Context(), "ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", args, err, out)
		}
	}
	w.proc = fakeProc(t, process{"sshd", []fakeSocket{s}})
	return w
}

func TestGuard(t *testing.T) {
	mapped := session("198.18.0.9:4000")
	mapped.v6 = true
	type change = func(w *world, c *core, force bool) error
	applying := func(text string) change {
		return func(w *world, c *core, force bool) error {
			request := apply(text, w.cfg.PolicyPath)
			request.Force = force
			_, err := c.apply(w.Context(), request)
			return err
		}
	}
	adding := func(set string, entries ...string) change {
		return func(w *world, c *core, force bool) error {
			_, err := c.addToSet(w.Context(), set, api.SetChange{Entries: entries, Force: force})
			return err
		}
	}
	// Lets the session in through the set alone, and takes that away again.
	viaSet := func(undo func(w *world, c *core, force bool) error) change {
		return func(w *world, c *core, force bool) error {
			w.must(adding("trusted", "198.18.0.9")(w, c, true))
			w.must(applying(openPolicy)(w, c, true))
			return undo(w, c, force)
		}
	}
	tests := []struct {
		name    string
		socket  fakeSocket
		change  change
		refused bool
	}{
		{"policy that shuts it out", session("198.18.0.9:4000"), applying(openPolicy), true},
		{"policy that shuts it out, IPv4 on an IPv6 socket", mapped, applying(openPolicy), true},
		{"policy that lets it in", session("198.18.0.9:4000"), applying(strings.ReplaceAll(sshPolicy, "/24", "/28")), false},
		{"policy that only observes", session("198.18.0.9:4000"), applying("version: 1\nmode: observe\n"), false},
		{"blocking everything", session("198.18.0.9:4000"), adding("blocked", "0.0.0.0/0"), true},
		{"blocking another", session("198.18.0.9:4000"), adding("blocked", "198.18.0.10"), false},
		{"deleting it from trusted", session("198.18.0.9:4000"), viaSet(func(w *world, c *core, force bool) error {
			_, err := c.deleteFromSet(w.Context(), "trusted", api.SetChange{Entries: []string{"198.18.0.9"}, Force: force})
			return err
		}), true},
		{"flushing trusted", session("198.18.0.9:4000"), viaSet(func(w *world, c *core, force bool) error {
			_, err := c.flushSet(w.Context(), "trusted", api.Flush{Force: force})
			return err
		}), true},
		{"reloading", session("198.18.0.9:4000"), func(w *world, c *core, force bool) error {
			w.policy(openPolicy)
			_, err := c.reload(w.Context(), force)
			return err
		}, true},
		{"a session that is refused already", session("203.0.113.9:4000"), applying(openPolicy), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := withSession(t, tt.socket)
			w.policy(sshPolicy)
			w.proc = t.TempDir()
			w.start() // as after weeks of use
			w.proc = fakeProc(t, process{"sshd", []fakeSocket{tt.socket}})
			c := w.start()
			err := tt.change(w, c, false)
			if !tt.refused {
				w.must(err)
				return
			}
			w.mustFail(err, "198.18.0.9:4000", "198.18.0.1:22", "--confirm 60s", "--force")
			before := w.listing()
			c.alone = true // a trial needs the daemon
			w.mustFail(tt.change(w, c, false), "start the daemon (`systemctl start nftfw` or `nftfw run`) and try the change with `apply --confirm 60s`")
			c.alone = false
			if diff := cmp.Diff(before, w.listing()); diff != "" {
				t.Errorf("kernel after a refusal (-want +got):\n%s", diff)
			}
			w.must(tt.change(w, c, true))
		})
	}
}

func TestGuardLetsATrialPass(t *testing.T) {
	w := withSession(t, session("198.18.0.9:4000"))
	w.policy(sshPolicy)
	c := w.start()
	w.tryOut(c, openPolicy)
	w.must(c.putBack(w.Context()))
	if diff := cmp.Diff(sshPolicy, w.savedPolicy()); diff != "" {
		t.Errorf("policy on disk (-want +got):\n%s", diff)
	}
}

// observing checks that nothing is refused, for fear of cutting a session.
func (w *world) observing(c *core) {
	w.Helper()
	s := c.status()
	if s.Enforced || s.Mode != "observe" {
		w.Errorf("status enforced %v, mode %s, want to observe", s.Enforced, s.Mode)
	}
	if strings.Contains(w.listing(), "policy drop") {
		w.Error("the table drops")
	}
	if got := w.savedPolicy(); got != "none" {
		w.Errorf("policy on disk %q, want none", got)
	}
}

// A restart is no way around the guard: a policy that was written while the daemon was
// away, and would cut a session, waits until somebody applies it.
func TestRestartSparesSessions(t *testing.T) {
	const observing = "version: 1\nmode: observe\nsets: {blocked: [198.18.0.9]}\n"
	enforcing := strings.Replace(observing, "observe", "enforce", 1)
	for _, tt := range []struct{ name, former, file string }{
		{"from observing", observing, enforcing},
		{"from enforcing", sshPolicy, openPolicy},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := withSession(t, session("198.18.0.9:4000"))
			w.policy(tt.former)
			c := w.start()
			if s := c.status(); s.Policy.Source != SourceFile || s.Policy.Error != "" {
				t.Fatalf("status %+v", s.Policy)
			}
			before := w.listing()
			w.policy(tt.file)
			c = w.start()
			if s := c.status(); s.Policy.Source != SourceLastGood || !strings.Contains(s.Policy.Error, "198.18.0.9:4000") {
				t.Errorf("status does not say why: %+v", s.Policy)
			}
			if diff := cmp.Diff(before, w.listing()); diff != "" {
				t.Errorf("the table after a restart (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.former, w.savedPolicy()); diff != "" {
				t.Errorf("policy on disk (-want +got):\n%s", diff)
			}
			forced := apply(tt.file, w.cfg.PolicyPath)
			forced.Force = true
			_, err := c.apply(w.Context(), forced)
			w.must(err)
			if s := c.status(); s.Policy.Source != SourceFile || s.Policy.Error != "" {
				t.Errorf("status after apply --force %+v", s.Policy)
			}
			w.policy(tt.former)
			if s := w.start().status(); s.Policy.Source != SourceFile || s.Policy.Error != "" {
				t.Errorf("status after a restart with a policy that cuts nobody: %+v", s.Policy)
			}
		})
	}
}

func TestFirstStartObserves(t *testing.T) {
	w := withSession(t, session("198.18.0.9:4000"))
	w.policy(openPolicy)
	c := w.start()
	w.observing(c)
	if got := c.status().Policy.Error; !strings.Contains(got, "observe mode") || !strings.Contains(got, "198.18.0.9:4000") {
		t.Errorf("status does not say why: %q", got)
	}
	if got := w.log.String(); !strings.Contains(got, "level=ERROR") || !strings.Contains(got, "observe mode") {
		t.Errorf("the log does not say so loudly:\n%s", got)
	}
	w.observing(w.start()) // a crash must not cut what the first start did not

	// By hand, without a daemon or with one, the guard stands.
	x := Direct{Config: w.cfg, LockWait: time.Second, Warn: func(string) {}}
	if s, err := x.Status(w.Context()); err != nil || s.Enforced || s.Mode != "observe" {
		t.Errorf("status without a daemon = enforced %v, mode %s, %v", s.Enforced, s.Mode, err)
	}
	_, err := c.apply(w.Context(), apply(openPolicy, w.cfg.PolicyPath))
	w.mustFail(err, "198.18.0.9:4000")
	c = w.start()
	w.tryOut(c, openPolicy)
	if !c.status().Enforced {
		t.Error("apply --confirm does not enforce")
	}
	w.must(c.putBack(w.Context()))
	w.observing(c)
	// What was put back is passed over at a restart. Nothing good is saved, and
	// the default that comes in its place lets SSH in.
	if s := w.start().status(); s.Policy.Source != SourceDefault || !strings.Contains(s.Policy.Error, "nobody confirmed") {
		t.Errorf("status after a restart %+v", s.Policy)
	}

	forced := apply(openPolicy, w.cfg.PolicyPath)
	forced.Force = true
	_, err = c.apply(w.Context(), forced)
	w.must(err)
	if c = w.start(); !c.status().Enforced {
		t.Error("a restart observes though a policy was applied by hand")
	}
}

func TestFirstStartEnforces(t *testing.T) {
	tests := map[string]func(w *world){
		"the session ended":     func(w *world) { w.start(); w.proc = w.TempDir() },
		"the policy lets it in": func(w *world) { w.policy(sshPolicy) },
		"the host has state": func(w *world) {
			proc := w.proc
			w.proc = w.TempDir()
			w.start()
			w.proc = proc
			w.nft("flush", "ruleset")
		},
		"the state is lost, a table stands": func(w *world) {
			proc := w.proc
			w.proc = w.TempDir()
			w.start()
			w.proc = proc
			w.must(os.RemoveAll(w.cfg.StateDir))
		},
	}
	for name, before := range tests {
		t.Run(name, func(t *testing.T) {
			w := withSession(t, session("198.18.0.9:4000"))
			w.policy(openPolicy)
			before(w)
			if s := w.start().status(); !s.Enforced {
				t.Errorf("status %+v", s)
			}
		})
	}
}
