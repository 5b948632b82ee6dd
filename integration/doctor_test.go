package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nftfw/nftfw/integration/lab"
)

// finding is one of `nftfw doctor --json`.
type finding struct {
	ID       string `json:"id"`
	Severity string `json:"severity"`
	What     string `json:"what"`
	Why      string `json:"why"`
	Remedy   string `json:"remedy"`
}

// doctor asks nftfw for its findings and demands that its exit status says the
// same.
func (s *set) doctor() []finding {
	s.t.Helper()
	o := s.fw.Exec(s.ctx(), "doctor", "--json")
	var answer struct {
		Findings []finding `json:"findings"`
	}
	if err := json.Unmarshal([]byte(o.Stdout), &answer); err != nil {
		s.t.Fatalf("decode: %v: %s", err, o)
	}
	if want := min(len(answer.Findings), 1); o.Status != want {
		s.t.Errorf("exit status %d with %d findings, want %d: %s", o.Status, len(answer.Findings), want, o)
	}
	for _, f := range answer.Findings {
		if f.ID == "" || f.What == "" || f.Why == "" || f.Remedy == "" || f.Severity != "error" && f.Severity != "warning" {
			s.t.Errorf("a finding is not whole: %+v", f)
		}
	}
	return answer.Findings
}

// finds demands exactly one finding, which contains words in what it saw.
func (s *set) finds(id string, words ...string) {
	s.t.Helper()
	got := s.doctor()
	if len(got) != 1 || got[0].ID != id {
		s.t.Errorf("findings %+v, want one, %s", got, id)
		return
	}
	for _, w := range words {
		if !strings.Contains(got[0].What, w) {
			s.t.Errorf("%s says %q, want it to name %q", id, got[0].What, w)
		}
	}
}

// well demands that there is nothing to find.
func (s *set) well() {
	s.t.Helper()
	if got := s.doctor(); len(got) != 0 {
		s.t.Errorf("findings on a host in order: %+v", got)
	}
}

// Each fault is made on a host in order, and undone: it alone is found.
func TestDoctor(t *testing.T) {
	s := scene(t, "version: 1\ncontainers: {labels: [office]}\nsets: {office: [198.18.0.77]}\n")
	s.run("web", "-p", "8080:80", "--label", "nftfw.expose=office")
	s.ready("web", "8080")
	s.well()

	sysctl := func(key string) func(string) {
		return func(value string) {
			s.t.Helper()
			if err := s.Host.Sysctl(key, value); err != nil {
				s.t.Fatal(err)
			}
		}
	}
	nft := func(t *testing.T, text string) {
		t.Helper()
		if err := s.Host.NFT(s.ctx(), text); err != nil {
			t.Fatal(err)
		}
	}
	host := func(t *testing.T, line string) {
		t.Helper()
		args := strings.Fields(line)
		if _, err := s.Host.Run(s.ctx(), args[0], args[1:]...); err != nil {
			t.Fatal(err)
		}
	}
	sh := func(t *testing.T, script string) {
		t.Helper()
		if _, err := s.Host.Run(s.ctx(), "sh", "-ec", script); err != nil {
			t.Fatal(err)
		}
	}
	saved := filepath.Join(t.TempDir(), "filter")
	for _, f := range []struct {
		name       string
		make, undo func(t *testing.T)
		id         string
		words      []string
	}{
		{
			"NOTRACK rule",
			func(t *testing.T) {
				nft(t, "table ip r { chain pre { type filter hook prerouting priority raw; udp dport 53 notrack; }; }")
			},
			func(t *testing.T) { nft(t, "delete table ip r") },
			"notrack-rule",
			[]string{"chain pre of table ip r", "th dport 53 notrack"},
		},
		{
			"NOTRACK rule of iptables",
			func(t *testing.T) { host(t, "iptables -t raw -A PREROUTING -p udp --dport 53 -j CT --notrack") },
			func(t *testing.T) { host(t, "iptables -t raw -F") },
			"notrack-rule",
			[]string{"chain PREROUTING of table ip raw"},
		},
		{
			"rules as ufw makes them",
			func(t *testing.T) {
				host(t, "iptables -N ufw-user-forward")
				host(t, "iptables -A ufw-user-forward -p tcp --dport 80 -j DROP")
				host(t, "iptables -I FORWARD -j ufw-user-forward")
			},
			func(t *testing.T) {
				host(t, "iptables -D FORWARD -j ufw-user-forward")
				host(t, "iptables -F ufw-user-forward")
				host(t, "iptables -X ufw-user-forward")
			},
			"foreign-drop",
			[]string{"ufw drops packets at forward", "th dport 80 drop"},
		},
		{
			"rules as firewalld makes them",
			func(t *testing.T) {
				nft(t, `table inet firewalld {
					chain filter_IN_public { tcp dport 22 accept; }
					chain filter_INPUT { type filter hook input priority 10; policy accept;
						ct state established,related accept; ct state invalid drop; jump filter_IN_public; reject; }
					chain filter_FORWARD { type filter hook forward priority 10; policy accept;
						ct state established,related accept; ct status dnat accept; reject; }
				}`)
			},
			func(t *testing.T) { nft(t, "delete table inet firewalld") },
			"foreign-drop",
			[]string{"firewalld drops packets at input", "filter_INPUT", ": reject"},
		},
		{
			"rule in DOCKER-USER",
			func(t *testing.T) { host(t, "iptables -I DOCKER-USER -s 198.18.0.77 -j DROP") },
			func(t *testing.T) { host(t, "iptables -D DOCKER-USER -s 198.18.0.77 -j DROP") },
			"foreign-drop",
			[]string{"DOCKER-USER", "198.18.0.77"},
		},
		{
			"rule in chain DOCKER",
			func(t *testing.T) { host(t, "iptables -I DOCKER -s 198.18.0.77 -j DROP") },
			func(t *testing.T) { host(t, "iptables -D DOCKER -s 198.18.0.77 -j DROP") },
			"foreign-drop",
			[]string{"a rule in DOCKER drops packets at forward", "198.18.0.77"},
		},
		{
			"rules of Docker flushed, and not its policy",
			func(t *testing.T) {
				sh(t, "iptables-save -t filter >"+saved)
				host(t, "iptables -P FORWARD DROP")
				host(t, "iptables -F")
			},
			func(t *testing.T) { sh(t, "iptables-restore <"+saved) },
			"docker-rules-flushed",
			[]string{"chain FORWARD of table ip filter"},
		},
		{
			"DROP in raw PREROUTING",
			func(t *testing.T) { host(t, "iptables -t raw -A PREROUTING -s 198.18.0.77 -j DROP") },
			func(t *testing.T) { host(t, "iptables -t raw -D PREROUTING -s 198.18.0.77 -j DROP") },
			"foreign-drop",
			[]string{"drops packets at prerouting: table ip raw", "198.18.0.77"},
		},
		{
			"drop at ingress",
			func(t *testing.T) {
				nft(t, "table netdev early { chain in { type filter hook ingress device eth0 priority 0; ip saddr 198.18.0.77 drop; }; }")
			},
			func(t *testing.T) { nft(t, "delete table netdev early") },
			"foreign-drop",
			[]string{"drops packets at ingress: table netdev early", "198.18.0.77"},
		},
		{
			"map that drops",
			func(t *testing.T) {
				nft(t, "table inet m { chain in { type filter hook input priority 0; tcp dport vmap { 22 : accept, 80 : drop }; }; }")
			},
			func(t *testing.T) { nft(t, "delete table inet m") },
			"foreign-drop",
			[]string{"table inet m, chain in", "th dport vmap { … : drop }"},
		},
		{
			"drop of what is invalid, and of what is new",
			func(t *testing.T) {
				nft(t, "table inet i { chain in { type filter hook input priority 0; ct state invalid,new drop; }; }")
			},
			func(t *testing.T) { nft(t, "delete table inet i") },
			"foreign-drop",
			[]string{"table inet i, chain in", "ct state invalid,new drop"},
		},
		{
			"drops that concern nobody",
			func(t *testing.T) {
				nft(t, `table inet n {
					chain pre { type filter hook prerouting priority raw; fib saddr . iif oif missing drop; }
					chain in { type filter hook input priority 0;
						ct state vmap { established : accept, related : accept, invalid : drop }; ct state invalid drop; iifname "lo" drop; iif "lo" drop; }
				}`)
			},
			func(t *testing.T) { nft(t, "delete table inet n") },
			"", nil,
		},
		{
			"policy of another table's forward",
			func(t *testing.T) {
				nft(t, "table inet filter { chain forward { type filter hook forward priority 0; policy drop; }; }")
			},
			func(t *testing.T) { nft(t, "delete table inet filter") },
			"foreign-drop",
			[]string{"table inet filter, chain forward (policy drop)"},
		},
		{
			"bans are meant",
			func(t *testing.T) {
				host(t, "iptables -N f2b-sshd")
				host(t, "iptables -A f2b-sshd -s 198.18.0.99 -j REJECT")
				host(t, "iptables -I INPUT -p tcp --dport 22 -j f2b-sshd")
			},
			func(t *testing.T) {
				host(t, "iptables -F INPUT")
				host(t, "iptables -F f2b-sshd")
				host(t, "iptables -X f2b-sshd")
			},
			"", nil,
		},
		{
			"FORWARD policy, where the host forwards for others",
			func(t *testing.T) {
				host(t, "iptables -P FORWARD DROP")
				host(t, "ip link add virbr7 type bridge")
			},
			func(t *testing.T) { host(t, "ip link del virbr7") },
			"forward-policy-drop",
			[]string{"chain FORWARD of table ip filter"},
		},
		{
			"route_localnet on a link with a dot",
			func(t *testing.T) {
				host(t, "ip link add eth0.10 type veth peer name out9")
				sh(t, "echo 1 >/proc/sys/net/ipv4/conf/eth0.10/route_localnet")
			},
			func(t *testing.T) { host(t, "ip link del eth0.10") },
			"route-localnet",
			[]string{"eth0.10"},
		},
		{
			"route_localnet",
			func(*testing.T) { sysctl("net.ipv4.conf.eth0.route_localnet")("1") },
			func(*testing.T) { sysctl("net.ipv4.conf.eth0.route_localnet")("0") },
			"route-localnet",
			[]string{"eth0"},
		},
		{
			"label over its ceiling",
			func(*testing.T) { s.run("greedy", "-p", "8081:80", "--label", "nftfw.expose=any") },
			func(*testing.T) { s.docker("rm", "-f", "greedy") },
			"label-not-enforced",
			[]string{"greedy", "nftfw.expose"},
		},
		{
			"foreign port on docker0",
			func(t *testing.T) {
				host(t, "ip link add out7 type veth peer name out8")
				host(t, "ip link set out8 up") // without a carrier it might be a container's to be
				host(t, "ip link set out7 master docker0 up")
			},
			func(t *testing.T) { host(t, "ip link del out7") },
			"bridge-foreign-port",
			[]string{"docker0", "out7"},
		},
		{
			"policy file not applied",
			func(*testing.T) { s.writePolicy("version: 1\ncontainers: {labels: [office]}\nsets: {office: []}\n") },
			func(*testing.T) {
				s.writePolicy("version: 1\ncontainers: {labels: [office]}\nsets: {office: [198.18.0.77]}\n")
			},
			"policy-not-in-force", nil,
		},
		{
			"policy file with a mistake",
			func(*testing.T) { s.writePolicy("version: 7\n") },
			func(*testing.T) {
				s.writePolicy("version: 1\ncontainers: {labels: [office]}\nsets: {office: [198.18.0.77]}\n")
			},
			"policy-file-invalid",
			[]string{"policy.yaml:1:"},
		},
		{
			"policy file for all to write",
			func(t *testing.T) { chmod(t, s.fw.PolicyPath(), 0o666) },
			func(t *testing.T) { chmod(t, s.fw.PolicyPath(), 0o644) },
			"policy-file-open",
			[]string{s.fw.PolicyPath() + " may be written to by everybody"},
		},
		{
			"another nftfw",
			func(t *testing.T) {
				fw, err := s.Firewall(lab.FirewallOptions{Bin: built.nftfw, Engine: s.engine, Flags: []string{"--table", "other"}})
				if err != nil {
					t.Fatal(err)
				}
				if o := fw.Exec(s.ctx(), "apply"); o.Status != 0 {
					t.Fatal(o)
				}
			},
			func(t *testing.T) { nft(t, "delete table inet other") },
			"second-nftfw",
			[]string{"table inet other"},
		},
		{
			"state directory for all to read",
			func(t *testing.T) { chmod(t, s.fw.StateDir(), 0o755) },
			func(t *testing.T) { chmod(t, s.fw.StateDir(), 0o700) },
			"state-dir-open",
			[]string{s.fw.StateDir(), "0755"},
		},
	} {
		ok := t.Run(f.name, func(t *testing.T) {
			s := s.in(t)
			f.make(t)
			if f.id == "" {
				s.well()
			} else {
				s.finds(f.id, f.words...)
			}
			f.undo(t)
		})
		if !ok {
			break // what it made may still be there
		}
	}
	s.well()

	t.Run("bridges that no firewall sees", func(t *testing.T) {
		s := s.in(t)
		s.writePolicy("version: 1\ncontainers: {to_containers: none}\n")
		s.nftfw("apply")
		s.run("named", "--label", "nftfw.egress=none")
		got := s.doctor()
		if !slices.ContainsFunc(got, func(f finding) bool { return f.ID == "bridge-netfilter-off" }) {
			t.Errorf("findings %+v, want bridge-netfilter-off", got)
		}
		sysctl("net.bridge.bridge-nf-call-iptables")("1")
		sysctl("net.bridge.bridge-nf-call-ip6tables")("1")
		got = s.doctor()
		sysctl("net.bridge.bridge-nf-call-iptables")("0")
		sysctl("net.bridge.bridge-nf-call-ip6tables")("0")
		if slices.ContainsFunc(got, func(f finding) bool { return f.ID == "bridge-netfilter-off" }) {
			t.Errorf("findings %+v with br_netfilter on", got)
		}
		t.Log("a container that is blocked; the daemon's log and status say it too")
		s.writePolicy("version: 1\n")
		s.nftfw("apply")
		s.nftfw("sets", "add", "blocked", "172.17.0.9")
		s.eventually(openWithin, func() error {
			for what, text := range map[string]string{"the log": s.fw.Log(), "status": s.nftfw("status")} {
				if !anyLine(text, "set blocked", "network bridge", "does not hold for IPv4", "br_netfilter") {
					return fmt.Errorf("%s does not say that blocked does not hold on a bridge: %s", what, text)
				}
			}
			return nil
		})
		if got = s.doctor(); !slices.ContainsFunc(got, func(f finding) bool { return f.ID == "bridge-netfilter-off" && strings.Contains(f.What, "set blocked") }) {
			t.Errorf("findings %+v, want bridge-netfilter-off for the set blocked", got)
		}
	})
}

func (s *set) writePolicy(text string) {
	s.t.Helper()
	if err := s.fw.WritePolicy(text); err != nil {
		s.t.Fatal(err)
	}
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func TestScenario17DoctorOnMacvlan(t *testing.T) {
	s := scene(t, "version: 1")
	s.docker("network", "create", "-d", "macvlan", "-o", "parent=eth0", "--subnet", "198.19.40.0/24", "wire")
	s.well() // nobody is on it
	s.run("cam", "--network", "wire", "--ip", "198.19.40.5", "--label", "nftfw.expose.80=any")
	got := s.doctor()
	for id, words := range map[string][]string{
		"container-unfiltered": {"macvlan network wire", "cam"},
		"label-not-enforced":   {"container cam", "nftfw.expose.80"},
	} {
		if !slices.ContainsFunc(got, func(f finding) bool {
			return f.ID == id && strings.Contains(f.What, words[0]) && strings.Contains(f.What, words[1])
		}) {
			t.Errorf("findings %+v, want %s with %q", got, id, words)
		}
	}
}

// ufw itself, with rules that somebody asked it for.
func TestDoctorUFW(t *testing.T) {
	if _, err := exec.LookPath("ufw"); err != nil {
		t.Fatal("needs ufw")
	}
	// What ufw adds to the engine's tables stays with the engine.
	s := scene(t, "version: 1", "--label", "test=ufw")
	s.run("web", "-p", "8080:80", "--label", "nftfw.expose=any")
	s.open(s.stranger.Namespace, "web", hostPorts("8080"))
	s.well()
	// It keeps its rules in files, so it gets its own for as long as it runs.
	dir := t.TempDir()
	ufw := func(args ...string) string {
		t.Helper()
		script := `set -e
			for f in /etc/ufw /etc/default /var/lib/ufw /lib/ufw; do
				[ -e $f ] || continue
				[ -e "$0$f" ] || { mkdir -p "$0$f"; cp -a $f/. "$0$f"; }
				mount --bind "$0$f" $f
			done
			ufw "$@"`
		cmd := s.Host.Command(s.ctx(), "unshare", append([]string{"--mount", "sh", "-c", script, dir}, args...)...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("ufw %v: %v: %s", args, err, out)
		}
		return string(out)
	}
	ufw("--force", "enable")
	ufw("route", "deny", "proto", "tcp", "from", "198.18.0.66", "to", "any", "port", "80")
	ufw("deny", "9100/tcp")
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(ufw("status", "verbose"))
		}
	})
	got := s.doctor()
	// From 28 on Docker's rules at forward stand ahead of ufw's, which what is
	// published never meets.
	met := map[string]bool{"ufw drops packets at forward": s.engine.Major < 28, "ufw drops packets at input": true}
	for word, want := range met {
		if found := slices.ContainsFunc(got, func(f finding) bool { return f.ID == "foreign-drop" && strings.Contains(f.What, word) }); found != want {
			t.Errorf("findings %+v, want foreign-drop with %q: %v", got, word, want)
		}
	}
	if s.engine.Major >= 28 {
		s.open(s.stranger.Namespace, "web", addrPorts(lab.HostV4, "8080"))
	}
	t.Log("and it is true: over IPv6, where docker-proxy answers, ufw's input refuses")
	s.closes(s.stranger.Namespace, addrPorts(lab.HostV6, "8080"))
	ufw("disable")
	s.open(s.stranger.Namespace, "web", hostPorts("8080"))
	s.well()
}

// A bus of its own for firewalld, which would not start without one.
const busConfig = `<busconfig>
  <type>system</type>
  <listen>unix:path=%s</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/> <allow own="*"/> <allow send_destination="*" eavesdrop="true"/> <allow eavesdrop="true"/>
  </policy>
</busconfig>
`

// firewalld itself, as it comes.
func TestDoctorFirewalld(t *testing.T) {
	s := scene(t, "version: 1", "--label", "test=firewalld")
	s.run("web", "-p", "8080:80", "--label", "nftfw.expose=any")
	s.open(s.stranger.Namespace, "web", hostPorts("8080"))
	s.well()
	dir, err := lab.TempDir() // t.TempDir's names are too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	bus, config := filepath.Join(dir, "bus"), filepath.Join(dir, "bus.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, busConfig, bus), 0o600); err != nil {
		t.Fatal(err)
	}
	env := append(os.Environ(), "DBUS_SYSTEM_BUS_ADDRESS=unix:path="+bus)
	start := func(name string, args ...string) *exec.Cmd {
		t.Helper()
		cmd := s.Host.Command(context.Background(), name, args...)
		cmd.Env = env
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill() // it may have ended
			_ = cmd.Wait()
		})
		return cmd
	}
	start("dbus-daemon", "--config-file="+config, "--nofork", "--nopidfile")
	s.eventually(20*time.Second, func() error {
		_, err := os.Stat(bus)
		return err
	})
	firewalld := start("firewalld", "--nofork", "--nopid", "--system-config", filepath.Join(dir, "etc"), "--log-target", "console")
	s.eventually(60*time.Second, func() error {
		cmd := s.Host.Command(s.ctx(), "firewall-cmd", "--state")
		cmd.Env = env
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("firewall-cmd --state: %w: %s", err, out)
		}
		return nil
	})
	got := s.doctor()
	if !slices.ContainsFunc(got, func(f finding) bool {
		return f.ID == "foreign-drop" && strings.Contains(f.What, "firewalld drops packets at input")
	}) {
		t.Errorf("findings %+v, want foreign-drop of firewalld", got)
	}
	t.Log("and it is true: over IPv6, where docker-proxy answers, firewalld's input refuses")
	s.closes(s.stranger.Namespace, addrPorts(lab.HostV6, "8080"))
	if err := firewalld.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.open(s.stranger.Namespace, "web", hostPorts("8080"))
	s.eventually(20*time.Second, func() error {
		if tables := s.host("nft", "list", "tables"); strings.Contains(tables, "firewalld") {
			return fmt.Errorf("firewalld's table stands: %s", tables)
		}
		return nil
	})
	// It has flushed the engine's rules with its own. An engine on the same bus
	// is told of that and puts them back; this one is not.
	s.finds("docker-iptables-false", "flushed")
}

func TestDoctorIptablesFalse(t *testing.T) {
	s := scene(t, "version: 1", "--iptables=false")
	s.finds("docker-iptables-false")
}

// Legacy tables of a namespace stay until it goes, so this one has its own.
func TestDoctorLegacy(t *testing.T) {
	if _, err := exec.LookPath("iptables-legacy"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("needs iptables-legacy: integration/install-deps.sh installs it")
	}
	// Any flag of its own keeps the stage from being used again.
	s := scene(t, "version: 1", "--max-concurrent-downloads=2")
	s.well()
	if _, err := s.Host.Run(s.ctx(), "iptables-legacy", "-L"); err != nil {
		t.Fatal(err)
	}
	s.well() // it has made a table, with nothing in it
	if _, err := s.Host.Run(s.ctx(), "iptables-legacy", "-A", "INPUT", "-p", "tcp", "--dport", "9", "-j", "DROP"); err != nil {
		t.Fatal(err)
	}
	s.finds("iptables-legacy", "filter")
}

func TestDoctorWithoutDaemon(t *testing.T) {
	s := bare(t)
	s.prepare("version: 1")
	if ids := idsOf(s.doctor()); !slices.Equal(ids, []string{"daemon-not-running", "not-enforced"}) {
		t.Errorf("nothing runs: findings %q", ids)
	}
	if _, err := os.Stat(s.fw.StateDir()); err == nil {
		t.Error("doctor made the state directory")
	}
	s.nftfw("apply")
	s.finds("daemon-not-running")
	s.writePolicy("version: 1\nmode: observe\n")
	if err := s.fw.Start(s.ctx()); err == nil {
		t.Error("ready in observe mode")
	}
	s.finds("observe-mode")
}

// Somebody without rights is told what was not looked at, and how to.
func TestDoctorUnreadableSockets(t *testing.T) {
	s := scene(t, "version: 1")
	dir, err := os.MkdirTemp("", "doctor-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	bin := filepath.Join(dir, "nftfw")
	text, err := os.ReadFile(built.nftfw)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(bin, text, 0o755); err != nil {
		t.Fatal(err)
	}
	chmod(t, dir, 0o755)
	// Both sockets are there and open to root and a group only.
	const games = 60 // Debian's base-passwd
	for _, name := range []string{"docker.sock", "nftfw.sock"} {
		path := filepath.Join(dir, name)
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		if err := os.Chown(path, 0, games); err != nil {
			t.Fatal(err)
		}
		chmod(t, path, 0o660)
	}
	cmd := s.Host.Command(context.Background(), "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
		bin, "doctor", "--json", "--socket", filepath.Join(dir, "nftfw.sock"), "--docker-host", "unix://"+filepath.Join(dir, "docker.sock"),
		"--state-dir", filepath.Join(dir, "state"), "--policy", filepath.Join(dir, "policy.yaml"))
	out, err := cmd.Output()
	if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != 1 {
		t.Fatalf("%v: %s", err, out)
	}
	var answer struct {
		Findings []finding `json:"findings"`
	}
	if err := json.Unmarshal(out, &answer); err != nil {
		t.Fatal(err)
	}
	if ids := idsOf(answer.Findings); !slices.Equal(ids, []string{"docker-socket-unreadable", "rules-unreadable", "socket-unreadable"}) {
		t.Errorf("findings %q: %s", ids, out)
	}
	for _, f := range answer.Findings {
		if strings.HasSuffix(f.ID, "socket-unreadable") && !strings.Contains(f.Remedy, "games") {
			t.Errorf("%s: remedy %q does not name the group", f.ID, f.Remedy)
		}
	}
}

func idsOf(list []finding) []string {
	var ids []string
	for _, f := range list {
		ids = append(ids, f.ID)
	}
	slices.Sort(ids)
	return ids
}
