package vm

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nftfw/nftfw/integration/lab"
)

// The ports of the machine: of a container, and of a service of the host that
// no policy speaks of.
const (
	published = 8080
	hostPort  = 9000
)

const goodPolicy = `version: 1
sets:
  trusted: [198.18.0.10, "fd00:18::10"]
host:
  allow:
    - {ports: [22/tcp], from: any}
`

const badPolicy = `version: 1
host:
  allow:
    - {ports: [99999/tcp], from: any}
`

// witness is what nftables.service loads: it counts the stranger's packets that
// nftfw let pass, just behind nftfw's chains.
const witness = `#!/usr/sbin/nft -f
flush ruleset
table inet witness {
	chain input {
		type filter hook input priority filter - 9; policy accept;
		ip saddr 198.18.0.66 meta l4proto { tcp, udp } counter
		ip6 saddr fd00:18::66 meta l4proto { tcp, udp } counter
	}
	chain forward {
		type filter hook forward priority filter - 9; policy accept;
		ip saddr 198.18.0.66 meta l4proto { tcp, udp } counter
		ip6 saddr fd00:18::66 meta l4proto { tcp, udp } counter
	}
}
`

// service is a service of the host that listens before the network is there.
const service = `[Unit]
Description=a service of the host
DefaultDependencies=no
After=local-fs.target
[Service]
ExecStart=/usr/local/bin/echo-server -name host tcp:9000 udp:9000
`

// guarded is what a machine gets: the engine, nftfw, Debian's nftables.service
// beside it, sshd and a service.
func guarded() []File {
	return slices.Concat(programs.Base(), Docker(), programs.Firewall(goodPolicy), []File{
		{Path: "/etc/nftables.conf", Mode: 0o755, Text: witness},
		Enable("/usr/lib/systemd/system/nftables.service", "sysinit.target"),
		{Path: "/etc/systemd/system/early.service", Text: service},
		Enable("/etc/systemd/system/early.service", "sysinit.target"),
		Enable("/usr/lib/systemd/system/ssh.service", "multi-user.target"),
		// With this folder the journal outlives a boot.
		{Path: "/var/log/journal/README", Text: "kept\n"},
	})
}

// TestBoot takes one machine of each release through its life: each part goes
// on where the one before ended. The two live side by side: one waits often.
func TestBoot(t *testing.T) {
	for _, suite := range Suites {
		t.Run(suite, func(t *testing.T) {
			t.Parallel()
			l := &life{site: newSite(t, suite), acknowledged: map[string]bool{}}
			l.stranger, l.permitted = l.neighbour("stranger", 66), l.neighbour("permitted", 10)
			inParts(t, l.in, []part{
				{"install", l.install},
				{"power cut while sets change", l.cutWhileAdding},
				{"closed from power-on", l.powerOn},
				{"nothing acknowledged is lost", l.setsAreThere},
				{"order of units", l.order},
				{"follows containers", l.followsContainers},
				{"leaves a stopped engine alone", l.leavesStopped},
				{"withdraws access", l.withdraws},
				{"guards ssh", l.guards},
				{"flushed by nftables.service", l.flushed},
				{"watchdog", l.watchdog},
				{"unit", l.unit},
				{"open without nftfw", l.down},
				{"bad policy at boot", l.badPolicy},
				{"no good policy at all", l.defaultPolicy},
			})
		})
	}
}

// life is the machine of TestBoot.
type life struct {
	*site
	stranger, permitted *lab.Node
	acknowledged        map[string]bool // addresses whose `sets add` exited 0
}

// in runs a part as a test of its own.
func (l *life) in(t *testing.T, run func()) {
	whole := l.t
	l.t = t
	defer func() { l.t = whole }()
	run()
}

func (l *life) install() {
	l.must(l.Boot(l.ctx(), guarded()...))
	if got := strings.TrimSpace(l.sh("uname -r")); got != l.Image.Kernel {
		l.t.Errorf("kernel %s runs, want %s", got, l.Image.Kernel)
	}
	l.must(l.LoadEcho(l.ctx()))
	l.sh(fmt.Sprintf("docker run -d --name web --restart always -p %[1]d:80 -p %[1]d:80/udp %s -name web", published, lab.Image))
	l.answers(l.permitted, l.tcp(published))
	l.sh("sync")
}

func (l *life) tcp(port uint16) lab.Probe { return lab.Probe{Network: "tcp", To: l.at(port)[0]} }

// cutWhileAdding cuts the power at some moment while sets change.
func (l *life) cutWhileAdding() {
	const writers, enough = 4, 12
	ctx, cancel := context.WithTimeout(l.ctx(), 4*time.Minute)
	defer cancel()
	var (
		mu      sync.Mutex
		writing sync.WaitGroup
		some    = make(chan struct{})
	)
	for w := range writers {
		writing.Go(func() {
			for i := 0; ; i++ {
				addr := fmt.Sprintf("10.%d.%d.%d", w, i/250, i%250*2%251) // no two of them adjacent
				out, err := l.Do(ctx, "nftfw", "sets", "add", "trusted", addr)
				if err != nil {
					return // the power is off
				}
				if out.Status != 0 {
					l.t.Errorf("sets add: %v", out)
					return
				}
				mu.Lock()
				l.acknowledged[addr] = true
				if len(l.acknowledged) == enough {
					close(some)
				}
				mu.Unlock()
			}
		})
	}
	select {
	case <-some:
	case <-ctx.Done():
		l.t.Error("sets hardly change")
	}
	delay := rand.N(time.Second)
	timer := time.NewTimer(delay)
	defer timer.Stop()
	<-timer.C
	l.must(l.Cut())
	writing.Wait()
	l.t.Logf("power cut %v after the first %d of %d changes that were acknowledged", delay, enough, len(l.acknowledged))
}

// powerOn has the stranger knock from before the power is there until the
// container is up, and for a while after that.
func (l *life) powerOn() {
	k := l.knock(l.stranger, published, hostPort)
	err := l.Boot(l.ctx())
	if err == nil {
		l.answers(l.permitted, l.tcp(published))
		l.answers(l.permitted, l.tcp(hostPort))
	}
	l.noneOf(k, "from power-on until the container answers")
	l.must(err)
	if n := l.witnessed(); n != 0 {
		l.t.Errorf("nftfw let %d packets of the stranger pass", n)
	}
}

// witnessed is the number of the stranger's packets that got past nftfw.
func (l *life) witnessed() (packets int) {
	l.t.Helper()
	found := 0
	for line := range strings.Lines(l.sh("nft list table inet witness")) {
		if _, rest, ok := strings.Cut(line, "counter packets "); ok {
			n, err := strconv.Atoi(strings.Fields(rest)[0])
			l.must(err)
			packets += n
			found++
		}
	}
	if found != 4 {
		l.t.Fatalf("%d counters of the witness, want 4", found)
	}
	return packets
}

func (l *life) setsAreThere() {
	var set struct{ Entries []struct{ Entry string } }
	l.nftfwJSON(&set, "sets", "show", "trusted")
	there := map[string]bool{}
	for _, e := range set.Entries {
		there[e.Entry] = true
	}
	for addr := range l.acknowledged {
		if !there[addr] {
			l.t.Errorf("%s was acknowledged and is lost", addr)
		}
		if _, err := l.Run(l.ctx(), "nft", "get", "element", "inet", "nftfw", "trusted4", "{ "+addr+" }"); err != nil {
			l.t.Error(err)
		}
	}
}

// order compares the moments at which units were ready with what is promised.
func (l *life) order() {
	moment := func(unit, property string) int {
		text := strings.TrimSpace(l.sh("systemctl show -P " + property + " " + unit))
		at, err := strconv.Atoi(text)
		if err != nil || at == 0 {
			l.t.Errorf("%s of %s: %q", property, unit, text)
		}
		return at
	}
	enforced := moment("nftfw.service", "ActiveEnterTimestampMonotonic")
	for _, later := range []string{"systemd-networkd.service", "docker.service"} {
		if at := moment(later, "InactiveExitTimestampMonotonic"); at < enforced {
			l.t.Errorf("%s began %d µs before nftfw was ready", later, enforced-at)
		}
	}
	if at := moment("nftables.service", "ActiveEnterTimestampMonotonic"); at > moment("nftfw.service", "InactiveExitTimestampMonotonic") {
		l.t.Error("nftfw was started before nftables.service had loaded its rules")
	}
	l.t.Logf("rules in force %.1f s after the kernel began", float64(enforced)/1e6)
	// An emulated processor is slow: who takes most of it says why.
	for _, unit := range []string{"nftfw", "docker", "containerd", "systemd-journald", "systemd-udevd"} {
		spent, err := strconv.Atoi(strings.TrimSpace(l.sh("systemctl show -P CPUUsageNSec " + unit + ".service")))
		l.must(err)
		l.t.Logf("%s: %.1f s of processor", unit, float64(spent)/1e9)
	}
}

// followsContainers shows that the sandboxed daemon sees what the engine does.
func (l *life) followsContainers() {
	l.sh("docker run -d --name wiki -p 8081:80 --label nftfw.expose=any " + lab.Image + " -name wiki")
	l.answers(l.stranger, l.tcp(8081))
	if r := l.stranger.Probe(l.ctx(), l.tcp(published)); r.Reached() {
		l.t.Errorf("the other container: %s", r)
	}
	// Docker's own bridge is no outside one, and no label is in doubt.
	var ports struct {
		Ports []struct{ Container, Error string }
	}
	l.nftfwJSON(&ports, "ports")
	for _, p := range ports.Ports {
		if p.Error != "" {
			l.t.Errorf("container %s: %s", p.Container, p.Error)
		}
	}
	l.sh("nftfw render | nft -c -f -") // by the nft of the release
	if out := l.sh("nft list set inet nftfw inside"); !strings.Contains(out, "docker0") {
		l.t.Errorf("docker0 is not inside: %s", out)
	}
	l.sh("docker rm -f wiki")
	l.eventually(func() error {
		if out := l.sh("nftfw ports"); strings.Contains(out, "wiki") {
			return fmt.Errorf("wiki is still there: %s", out)
		}
		return nil
	})
}

// leavesStopped shows that an engine which somebody stopped stays so, although
// systemd listens at its socket and would start it for whoever connects, and that it
// is followed once somebody starts it.
func (l *life) leavesStopped() {
	if out := l.sh("systemctl is-active docker.socket"); strings.TrimSpace(out) != "active" {
		l.t.Fatalf("docker.socket is %s", out)
	}
	l.sh("systemctl stop docker.service")
	const quiet = 10 * time.Second
	for end := time.Now().Add(quiet); time.Now().Before(end); {
		out := strings.TrimSpace(l.sh("systemctl show -P ActiveState docker.service"))
		if out != "inactive" {
			l.t.Errorf("docker.service is %s after somebody stopped it", out)
			break
		}
	}
	l.sh("systemctl start docker.service")
	l.answers(l.permitted, l.tcp(published))
	l.eventually(func() error {
		var status struct{ Docker struct{ Connected bool } }
		l.nftfwJSON(&status, "status")
		if !status.Docker.Connected {
			return errors.New("the engine is not followed")
		}
		return nil
	})
}

// withdraws shows that a connection ends when its permission does.
func (l *life) withdraws() {
	l.sh("nftfw sets add trusted " + l.stranger.V4.String())
	ctx, cancel := context.WithTimeout(l.ctx(), soon)
	defer cancel()
	c, err := l.stranger.Dial(ctx, "tcp", l.at(published)[0], l.stranger.V4)
	l.must(err)
	defer c.Close()
	exchange := func(within time.Duration) error {
		if err := c.SetDeadline(time.Now().Add(within)); err != nil {
			return err
		}
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		_, err := c.Read(make([]byte, 256))
		return err
	}
	l.must(exchange(soon)) // the greeting
	l.must(exchange(soon)) // the echo
	if l.witnessed() == 0 {
		l.t.Error("the witness does not count")
	}
	l.sh("nftfw sets del trusted " + l.stranger.V4.String())
	l.eventually(func() error {
		if err := exchange(2 * time.Second); err == nil {
			return errors.New("the connection lives")
		}
		return nil
	})
}

// guards shows that the sandboxed daemon sees which connections are sshd's.
func (l *life) guards() {
	ctx, cancel := context.WithTimeout(l.ctx(), soon)
	defer cancel()
	var hello string
	l.eventually(func() error {
		c, err := l.stranger.Dial(ctx, "tcp", l.at(22)[0], l.stranger.V4)
		if err != nil {
			return err
		}
		l.t.Cleanup(func() { c.Close() })
		l.must(c.SetDeadline(time.Now().Add(soon)))
		buf := make([]byte, 256)
		n, err := c.Read(buf)
		hello = string(buf[:n])
		return err
	})
	if !strings.HasPrefix(hello, "SSH-2.0") {
		l.t.Errorf("sshd says %q", hello)
	}
	out, err := l.Do(l.ctx(), "nftfw", "sets", "add", "blocked", l.stranger.V4.String())
	l.must(err)
	if out.Status != 5 || !strings.Contains(out.Stderr, "would cut the SSH connection") {
		l.t.Errorf("blocking who has an ssh connection: %+v", out)
	}
}

// status is what `nftfw status` says.
type status struct {
	Enforced bool
	Policy   struct{ Source, Error string }
	Restores int
}

// eventualStatus polls until the status is as wanted.
func (l *life) eventualStatus(want func(status) bool) {
	l.t.Helper()
	l.eventually(func() error {
		var st status
		if err := l.tryJSON(&st, "status"); err != nil {
			return err
		}
		if !want(st) {
			return fmt.Errorf("status %+v", st)
		}
		return nil
	})
}

// flushed has nftables.service flush and load again.
func (l *life) flushed() {
	l.sh("systemctl restart nftables.service")
	l.eventualStatus(func(st status) bool { return st.Enforced && st.Restores > 0 })
	l.noneOf(l.knockFor(time.Second, l.stranger, published, hostPort), "after nftables.service flushed everything")
	// Docker's own rules are gone, and docker-proxy serves.
	l.answers(l.permitted, l.tcp(published))
	l.sh("systemctl restart docker.service")
	l.answers(l.permitted, l.tcp(published))
}

// watchdog stops the daemon where it stands, as if it hung.
func (l *life) watchdog() {
	pid := strings.TrimSpace(l.sh("systemctl show -P MainPID nftfw.service"))
	l.sh("kill -STOP " + pid)
	k := l.knock(l.stranger, published, hostPort)
	ctx, cancel := context.WithTimeout(l.ctx(), 4*time.Minute)
	defer cancel()
	err := lab.Poll(ctx, time.Second, func() error {
		now := strings.TrimSpace(l.sh("systemctl show -P MainPID nftfw.service"))
		if now == pid || now == "0" {
			return fmt.Errorf("process %s stands still, the unit's is %s", pid, now)
		}
		return nil
	})
	l.must(err)
	l.eventualStatus(func(st status) bool { return st.Enforced })
	l.noneOf(k, "while the daemon hung and was restarted")
	if text := l.sh("journalctl -b -u nftfw.service --no-pager"); !strings.Contains(text, "Watchdog timeout") {
		l.t.Error("the journal knows of no watchdog timeout")
	}
}

// unit has systemd look at the unit.
func (l *life) unit() {
	out, err := l.Do(l.ctx(), "systemd-analyze", "verify", unitPath)
	l.must(err)
	if out.Status != 0 || out.Stdout+out.Stderr != "" {
		l.t.Errorf("systemd-analyze verify: %+v", out)
	}
	text := l.sh("systemd-analyze security --no-pager nftfw.service | tail -n1")
	_, score, _ := strings.Cut(text, ": ")
	if level, err := strconv.ParseFloat(strings.Fields(score)[0], 64); err != nil || level > 3 {
		l.t.Errorf("systemd-analyze security: %s (err %v)", text, err)
	}
	l.t.Log(strings.TrimSpace(text))
	// CAP_NET_ADMIN (12) and CAP_SYS_PTRACE (19), once it has begun.
	caps := l.sh("grep CapEff /proc/$(systemctl show -P MainPID nftfw.service)/status")
	if !strings.Contains(caps, fmt.Sprintf("%016x", 1<<12|1<<19)) {
		l.t.Errorf("the daemon has other capabilities than it needs: %s", caps)
	}
}

// badPolicy shuts the machine down and starts it with a policy that cannot be
// read. Nobody waits for the engine: the last good policy has been seen beside it.
func (l *life) badPolicy() {
	l.must(l.Off(l.ctx()))
	k := l.knock(l.stranger, published, hostPort)
	err := l.On(l.ctx(), File{Path: PolicyPath, Mode: 0o600, Text: badPolicy})
	if err == nil {
		l.within(bootTime, func() error {
			if r := l.permitted.Probe(l.ctx(), l.tcp(hostPort)); r.Outcome != lab.Answered {
				return fmt.Errorf("who is trusted: %s", r)
			}
			return nil
		})
	}
	l.noneOf(k, "from power-on with a bad policy")
	l.must(err)
	l.eventualStatus(func(st status) bool {
		return st.Enforced && st.Policy.Source == "last-good" && strings.Contains(st.Policy.Error, PolicyPath+":4:")
	})
	// nftables.service flushes when it stops: nftfw outlives that.
	if text := l.sh("journalctl -b -1 -u nftfw.service --no-pager -n 20"); !strings.Contains(text, "put right") {
		l.t.Errorf("the table was not put right during the shutdown:\n%s", text)
	}
}

// defaultPolicy starts with a bad policy and without the last good one.
func (l *life) defaultPolicy() {
	l.sh("systemctl stop nftfw.service && nft delete table inet nftfw && rm -r /var/lib/nftfw/* && systemctl start nftfw.service")
	l.eventualStatus(func(st status) bool { return st.Enforced && st.Policy.Source == "default" && st.Policy.Error != "" })
	l.noneOf(l.knockFor(time.Second, l.stranger, published, hostPort), "under the embedded default")
	if r := l.permitted.Probe(l.ctx(), l.tcp(hostPort)); r.Reached() {
		l.t.Errorf("who is trusted by the bad policy only: %s", r)
	}
	l.answersSSH()
}

// down shows that the parts before it could have seen what they say they did not.
// The daemon is started again behind it.
func (l *life) down() {
	l.sh("nftfw down --yes")
	for _, port := range []uint16{published, hostPort} {
		for _, to := range l.at(port) {
			l.answers(l.stranger, lab.Probe{Network: "tcp", To: to})
			l.answers(l.stranger, lab.Probe{Network: "udp", To: to})
		}
	}
	got, err := l.knockFor(time.Second, l.stranger, published, hostPort).end()
	l.must(err)
	if got.reached == 0 {
		l.t.Errorf("without rules: %s", got)
	}
	l.t.Logf("without rules: %s", got)
	l.sh("systemctl restart nftfw.service")
	l.noneOf(l.knockFor(time.Second, l.stranger, published, hostPort), "with rules again")
}

func (l *life) answersSSH() {
	l.t.Helper()
	l.eventually(func() error {
		ctx, cancel := context.WithTimeout(l.ctx(), 2*time.Second)
		defer cancel()
		c, err := l.permitted.Dial(ctx, "tcp", l.at(22)[0], l.permitted.V4)
		if err == nil {
			c.Close()
		}
		return err
	})
}
