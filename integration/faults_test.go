package integration

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nftfw/nftfw/integration/lab"
)

// Whatever becomes of the engine, what is closed stays so, and what was open
// is open again when it is back.
func TestScenario23EngineComesAndGoes(t *testing.T) {
	tests := []struct {
		name  string
		flags []string
		end   func(*lab.Engine, context.Context) error
		flows bool // they outlive the engine
	}{
		{"stopped", nil, (*lab.Engine).Stop, false},
		{"killed", nil, (*lab.Engine).Kill, false},
		{"stopped with live-restore", []string{"--live-restore"}, (*lab.Engine).Stop, true},
		{"killed with live-restore", []string{"--live-restore"}, (*lab.Engine).Kill, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := scene(t, "version: 1"+trust, tt.flags...)
			s.run("web", "-p", "8080:80", "--restart", "always", "--label", "nftfw.expose=any")
			s.run("plain", "-p", "8082:80", "--restart", "always")
			s.open(s.stranger.Namespace, "web", hostPorts("8080"))
			s.open(s.permitted.Namespace, "plain", hostPorts("8082"))
			flow, err := s.stranger.Dial(s.ctx(), "tcp", netip.AddrPortFrom(lab.HostV4, 8080), netip.Addr{})
			if err != nil {
				t.Fatal(err)
			}
			defer flow.Close()
			unreached := s.hammer(s.stranger, hostPort(8082)...)
			if err := tt.end(s.engine, s.ctx()); err != nil {
				t.Fatal(err)
			}
			s.eventually(openWithin, func() error {
				st, err := s.fw.Status(s.ctx())
				if err == nil && (st.Docker.Connected || !st.Enforced) {
					err = fmt.Errorf("with the engine away: %+v", st)
				}
				return err
			})
			if tt.flows {
				if err := talk(flow); err != nil {
					t.Errorf("the flow with the engine away: %v", err)
				}
			}
			if err := s.engine.Start(s.ctx()); err != nil {
				t.Fatal(err)
			}
			if err := s.fw.WaitReady(s.ctx(), true); err != nil {
				t.Fatal(err)
			}
			s.ready("web", "8080")
			s.open(s.stranger.Namespace, "web", hostPorts("8080"))
			s.ready("plain", "8082")
			s.open(s.permitted.Namespace, "plain", hostPorts("8082"))
			unreached()
			if tt.flows {
				if err := talk(flow); err != nil {
					t.Errorf("the flow with the engine back: %v", err)
				}
			}
		})
	}
}

func TestScenario23EngineComesLater(t *testing.T) {
	s := bare(t)
	if err := s.engine.Stop(s.ctx()); err != nil {
		t.Fatal(err)
	}
	s.prepare("version: 1\nhost: {allow: [{ports: [9100/tcp], from: any}]}\n")
	if err := s.fw.Launch(s.ctx()); err != nil {
		t.Fatal(err)
	}
	if err := s.fw.WaitReady(s.ctx(), false); err != nil {
		t.Fatal(err)
	}
	s.service("host", "tcp:9100", "tcp:9101")
	s.open(s.stranger.Namespace, "host", hostPorts("9100"))
	s.closed(s.stranger.Namespace, hostPorts("9101"))
	s.nftfw("sets", "add", "trusted", s.permitted.V4.String(), s.permitted.V6.String())
	s.open(s.permitted.Namespace, "host", hostPorts("9101"))
	if err := s.engine.Start(s.ctx()); err != nil {
		t.Fatal(err)
	}
	s.run("web", "-p", "8080:80", "--label", "nftfw.expose=any")
	s.run("plain", "-p", "8081:80")
	s.open(s.stranger.Namespace, "web", hostPorts("8080"))
	s.open(s.permitted.Namespace, "plain", hostPorts("8081"))
	s.closed(s.stranger.Namespace, hostPorts("8081"))
}

// What somebody else does to the table is put right, and said.
func TestScenario24OthersAlterTheTable(t *testing.T) {
	s := scene(t, "version: 1"+trust+"host: {allow: [{ports: [9100/tcp], from: any}]}\n")
	s.spoilt = true // Docker's rules are gone as well
	s.service("host", "tcp:9100", "tcp:9101")
	s.run("web", "-p", "8080:80", "--label", "nftfw.expose=any")
	s.open(s.stranger.Namespace, "web", hostPorts("8080"))
	before := listing(t, s.Host)
	for i, script := range []string{
		"flush ruleset",
		"delete table inet nftfw",
		"flush table inet nftfw",
		"add element inet nftfw trusted4 { 198.18.0.66 }",
		"delete element inet nftfw trusted4 { 198.18.0.10 }",
		"insert rule inet nftfw input accept",
		"add chain inet nftfw open { type filter hook input priority -300; policy accept; }",
		"chain inet nftfw input { policy accept; }",
	} {
		t.Run(script, func(t *testing.T) {
			s := s.in(t)
			if err := s.Host.NFT(s.ctx(), script); err != nil {
				t.Fatal(err)
			}
			s.eventually(10*time.Second, func() error {
				if err := s.holds(before); err != nil {
					return err
				}
				st, err := s.fw.Status(s.ctx())
				if err == nil && st.Restores != i+1 {
					err = fmt.Errorf("status counts %d restores, want %d", st.Restores, i+1)
				}
				return err
			})
			if status := s.fw.Exec(s.ctx(), "status").Stdout; !strings.Contains(status, "nft") {
				t.Errorf("status does not name the culprit:\n%s", status)
			}
			if n := strings.Count(s.fw.Log(), "process=nft "); n != i+1 {
				t.Errorf("the log names nft %d times, want %d:\n%s", n, i+1, tail(s.fw.Log(), 20))
			}
			s.closed(s.stranger.Namespace, hostPorts("9101"))
			s.open(s.permitted.Namespace, "host", hostPorts("9101"))
		})
	}
	s.others24(before)
}

// holds tells whether the kernel holds this table.
func (s *set) holds(want []string) error {
	now, err := tryListing(s.ctx(), s.Host)
	if diff := cmp.Diff(want, now); err == nil && diff != "" {
		err = fmt.Errorf("the table is not what it was (-before +now):\n%s", diff)
	}
	return err
}

// others24 has other firewalls reload: nothing of ours changes, and nothing
// has to be put right.
func (s *set) others24(before []string) {
	s.t.Helper()
	start, err := s.fw.Status(s.ctx())
	if err != nil {
		s.t.Fatal(err)
	}
	for _, command := range []string{
		"iptables -F", "iptables -t nat -F", "ip6tables -F", "iptables -P INPUT ACCEPT",
		// As ufw and firewalld with its iptables backend load their rules.
		"iptables-save | iptables-restore", "ip6tables-save | ip6tables-restore",
		`printf '*filter\n:ufw-before-input - [0:0]\n-A INPUT -j ufw-before-input\nCOMMIT\n' | iptables-restore --noflush`,
		// As firewalld with its nftables backend does.
		`printf 'add table inet firewalld\ndelete table inet firewalld\ntable inet firewalld { chain c { type filter hook input priority 10; }; }\n' | nft -f -`,
		"nft delete table inet firewalld",
	} {
		if _, err := s.Host.Run(s.ctx(), "sh", "-c", command); err != nil {
			s.t.Fatal(err)
		}
		if diff := cmp.Diff(before, listing(s.t, s.Host)); diff != "" {
			s.t.Errorf("after %s our table differs (-before +now):\n%s", command, diff)
		}
	}
	now, err := s.fw.Status(s.ctx())
	if err != nil || now.Restores != start.Restores {
		s.t.Errorf("others' rules led to %d restores, %v", now.Restores-start.Restores, err)
	}
}

// Two policies of one line each, so that no beginning of either is one.
const (
	first27  = "{version: 1, sets: {trusted: [192.0.2.1]}, host: {allow: [{ports: [9100/tcp], from: any}]}}\n"
	second27 = "{version: 1, sets: {trusted: [192.0.2.2]}, host: {allow: [{ports: [9100/tcp], from: any}]}}\n"
	bad27    = "version: 1\nmode: sleep\n"
)

func TestScenario27BadPolicy(t *testing.T) {
	s := scene(t, first27)
	s.service("host", "tcp:9100", "tcp:9101")
	holds := func(t *testing.T, source string) {
		t.Helper()
		s := s.in(t)
		s.open(s.stranger.Namespace, "host", hostPorts("9100"))
		s.closed(s.stranger.Namespace, hostPorts("9101"))
		st, err := s.fw.Status(s.ctx())
		if err != nil || !st.Enforced || st.Policy.Source != source {
			t.Errorf("status %+v, %v, want the policy from %s", st, err, source)
		}
		if named := strings.HasPrefix(st.Policy.Error, s.fw.PolicyPath()+":2:7: "); named != (source == "last-good") {
			t.Errorf("error %q names the place: %v", st.Policy.Error, named)
		}
	}
	write := func(policy string) {
		t.Helper()
		if err := s.fw.WritePolicy(policy); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("at reload", func(t *testing.T) {
		write(bad27)
		for _, command := range []string{"reload", "apply"} {
			if o := s.fw.Exec(s.ctx(), command); o.Status != 2 || !strings.HasPrefix(o.Stderr, s.fw.PolicyPath()+":2:7: ") {
				t.Errorf("want status 2 and the place: %s", o)
			}
		}
		holds(t, "last-good")
	})
	t.Run("at start", func(t *testing.T) {
		for _, end := range []func(context.Context) error{s.fw.Kill, s.fw.Stop} {
			if err := errors.Join(end(s.ctx()), s.fw.Start(s.ctx())); err != nil {
				t.Fatal(err)
			}
			holds(t, "last-good")
		}
	})
	t.Run("half-written while reloading", func(t *testing.T) {
		write(first27)
		s.nftfw("reload")
		s.halfWritten(t)
		holds(t, "file")
	})
	t.Run("at the first start", func(t *testing.T) {
		if err := s.fw.Stop(s.ctx()); err != nil {
			t.Fatal(err)
		}
		write(bad27)
		if err := errors.Join(os.RemoveAll(s.fw.StateDir()), s.fw.Start(s.ctx())); err != nil {
			t.Fatal(err)
		}
		st, err := s.fw.Status(s.ctx())
		if err != nil || !st.Enforced || st.Policy.Source != "default" || !strings.Contains(st.Policy.Error, ":2:7: ") {
			t.Errorf("status %+v, %v", st, err)
		}
		s.closed(s.stranger.Namespace, hostPorts("9100", "9101"))
	})
}

// halfWritten reloads while the file is being rewritten in place, as editors
// do that know no better. Only whole policies are ever in force.
func (s *set) halfWritten(t *testing.T) {
	s = s.in(t)
	ctx, stop := context.WithTimeout(s.ctx(), 3*time.Second)
	defer stop()
	var writer sync.WaitGroup
	defer writer.Wait()
	writer.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			text := []string{second27, first27}[i%2]
			f, err := os.OpenFile(s.fw.PolicyPath(), os.O_WRONLY|os.O_TRUNC, 0)
			if err != nil {
				t.Error(err)
				return
			}
			for _, b := range []byte(text) {
				_, _ = f.Write([]byte{b})
				<-time.After(50 * time.Microsecond)
			}
			_ = f.Close()
			<-time.After(20 * time.Millisecond)
		}
		if err := s.fw.WritePolicy(first27); err != nil {
			t.Error(err)
		}
	})
	counts := map[int]int{}
	for ctx.Err() == nil {
		o := s.fw.Exec(s.ctx(), "reload")
		counts[o.Status]++
		if o.Status != 0 && (o.Status != 2 || !strings.HasPrefix(o.Stderr, s.fw.PolicyPath()+":")) {
			t.Fatalf("a reload of what may be half a file: %s", o)
		}
		set, err := s.Host.Run(s.ctx(), "nft", "list", "set", "inet", "nftfw", "trusted4")
		if err != nil || strings.Contains(set, "192.0.2.1 ") == strings.Contains(set, "192.0.2.2 ") {
			t.Fatalf("in force is neither policy (%v):\n%s", err, set)
		}
	}
	writer.Wait()
	t.Logf("reloads by exit status: %v", counts)
	if counts[2] == 0 {
		t.Error("no reload met half a file: nothing was tested")
	}
	s.nftfw("reload")
}

// Damaged state neither opens anything nor keeps nftfw from starting.
func TestScenario27DamagedState(t *testing.T) {
	damage := map[string]func(path string) error{
		"truncated": func(path string) error {
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return os.WriteFile(path, text[:len(text)/2], 0o600)
		},
		"of zero length": func(path string) error { return os.Truncate(path, 0) },
		"unreadable": func(path string) error { // to root as well: EIO
			return errors.Join(os.Remove(path), os.Symlink("/proc/self/mem", path))
		},
		"garbage": func(path string) error { return os.WriteFile(path, []byte("\x00\xff{"), 0o600) },
	}
	s := scene(t, "version: 1\n")
	s.service("host", "tcp:9101")
	for name, harm := range damage {
		t.Run(name, func(t *testing.T) {
			s := s.in(t)
			s.nftfw("sets", "flush", "trusted")
			s.nftfw("sets", "add", "trusted", s.permitted.V4.String(), s.permitted.V6.String())
			s.open(s.permitted.Namespace, "host", hostPorts("9101"))
			if err := s.fw.Kill(s.ctx()); err != nil {
				t.Fatal(err)
			}
			files, err := filepath.Glob(filepath.Join(s.fw.StateDir(), "*.json*"))
			files = slices.DeleteFunc(files, func(path string) bool { return strings.HasSuffix(path, ".damaged") })
			if err != nil || len(files) < 2 {
				t.Fatalf("state files %v, %v", files, err)
			}
			for _, path := range files {
				if err := harm(path); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.fw.Start(s.ctx()); err != nil {
				t.Fatal(err)
			}
			// What was in force still is: the kernel knew.
			s.open(s.permitted.Namespace, "host", hostPorts("9101"))
			s.closed(s.stranger.Namespace, hostPorts("9101"))
			if !strings.Contains(s.fw.Log(), filepath.Join(s.fw.StateDir(), "sets.json")) {
				t.Errorf("the log does not name the damaged file:\n%s", tail(s.fw.Log(), 20))
			}
			// And it is on disk again: a reboot, after which the kernel knows nothing.
			if err := s.fw.Kill(s.ctx()); err != nil {
				t.Fatal(err)
			}
			if err := s.Host.NFT(s.ctx(), "delete table inet nftfw"); err != nil {
				t.Fatal(err)
			}
			if err := s.fw.Start(s.ctx()); err != nil {
				t.Fatal(err)
			}
			s.open(s.permitted.Namespace, "host", hostPorts("9101"))
		})
	}
}

// With the disk full, or not writable, a change is refused whole, the rules
// hold, and what others do to them is put right.
func TestScenario27DiskFull(t *testing.T) {
	tests := []struct {
		name      string
		fail, fix func(t *testing.T, s *set)
		says      string
	}{
		{"full", fillState, func(t *testing.T, s *set) {
			if err := os.Remove(filler(s)); err != nil {
				t.Fatal(err)
			}
		}, "no space left on device"},
		{"read-only", protectState, unprotectState, "read-only file system"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := bare(t)
			s.spoilt = true // Docker's rules are gone as well
			s.prepare("version: 1" + trust)
			if err := errors.Join(s.fw.MountState(s.ctx(), "size=512k,mode=0700"), s.fw.Start(s.ctx())); err != nil {
				t.Fatal(err)
			}
			s.service("host", "tcp:9101")
			s.open(s.permitted.Namespace, "host", hostPorts("9101"))
			before := listing(t, s.Host)
			tt.fail(t, s)
			if err := s.fw.WritePolicy("version: 1\nsets: {trusted: [198.18.0.66]}\n"); err != nil {
				t.Fatal(err)
			}
			for _, command := range []string{"sets add trusted 198.18.0.66", "apply", "reload", "apply --confirm 60s"} {
				if o := s.fw.Exec(s.ctx(), strings.Fields(command)...); o.Status != 5 || !strings.Contains(o.Stderr, tt.says) {
					t.Errorf("want status 5 and %q: %s", tt.says, o)
				}
			}
			if err := s.Host.NFT(s.ctx(), "flush ruleset"); err != nil {
				t.Fatal(err)
			}
			s.eventually(10*time.Second, func() error { return s.holds(before) })
			tt.fix(t, s)
			s.nftfw("sets", "add", "trusted", s.stranger.V4.String(), s.stranger.V6.String())
			s.open(s.stranger.Namespace, "host", hostPorts("9101"))
		})
	}
}

func filler(s *set) string { return filepath.Join(s.fw.StateDir(), "filler") }

func fillState(t *testing.T, s *set) {
	t.Helper()
	f, err := os.Create(filler(s))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
}

// protectState makes the state folder read-only, as a file system becomes that
// the kernel has found damaged.
func protectState(t *testing.T, s *set) {
	t.Helper()
	for _, args := range [][]string{{"--bind", s.fw.StateDir(), s.fw.StateDir()}, {"-o", "remount,bind,ro", s.fw.StateDir()}} {
		if out, err := exec.CommandContext(s.ctx(), "mount", args...).CombinedOutput(); err != nil {
			t.Fatalf("mount %s: %v: %s", args, err, out)
		}
	}
}

func unprotectState(t *testing.T, s *set) {
	t.Helper()
	if err := unix.Unmount(s.fw.StateDir(), 0); err != nil {
		t.Fatal(err)
	}
}

// Changes at the same moment are all there afterwards.
func TestScenario29ChangesAtOnce(t *testing.T) {
	const n = 50
	s := scene(t, "version: 1\n")
	for _, daemon := range []bool{true, false} {
		t.Run(fmt.Sprintf("daemon %v", daemon), func(t *testing.T) {
			s := s.in(t)
			if !daemon {
				if err := s.fw.Stop(s.ctx()); err != nil {
					t.Fatal(err)
				}
			}
			var gone []string
			for i := range n {
				gone = append(gone, fmt.Sprintf("10.1.0.%d", 2*i))
			}
			s.nftfw(append([]string{"sets", "add", "trusted"}, gone...)...)
			var all sync.WaitGroup
			for i := range n {
				for _, change := range [][]string{{"add", fmt.Sprintf("10.2.0.%d", 2*i)}, {"del", gone[i]}} {
					all.Go(func() {
						if o := s.fw.Exec(s.ctx(), "sets", change[0], "trusted", change[1]); o.Status != 0 {
							t.Error(o)
						}
					})
				}
			}
			all.Wait()
			want := map[string]bool{}
			for i := range n {
				want[fmt.Sprintf("10.2.0.%d", 2*i)] = true
			}
			if diff := cmp.Diff(want, s.runtimeEntries("trusted")); diff != "" {
				t.Errorf("entries (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(want, s.kernelEntries("trusted4")); diff != "" {
				t.Errorf("in the kernel (-want +got):\n%s", diff)
			}
			s.nftfw("sets", "flush", "trusted")
		})
	}
}
