package doctor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nftfw/nftfw/dockerwatch"
	"github.com/nftfw/nftfw/nft"
	"github.com/nftfw/nftfw/pkg/api"
	"github.com/nftfw/nftfw/pkg/inventory"
	"github.com/nftfw/nftfw/pkg/ruleset"
	"github.com/nftfw/nftfw/policy"
)

// sound gives the facts of a host in order: a daemon that enforces, and an
// engine with one container on its default bridge.
func sound(t *testing.T) *Facts {
	t.Helper()
	p, _, err := policy.Parse("policy.yaml", []byte("version: 1\n"))
	if err != nil {
		t.Fatal(err)
	}
	status := api.Status{Enforced: true, Mode: "enforce", Table: "nftfw", Policy: api.PolicyStatus{Source: "file", Hash: "a"}}
	status.Docker.Connected = true
	links := []inventory.Link{
		{Index: 1, Name: "lo"},
		{Index: 2, Name: "eth0"},
		{Index: 3, Name: "docker0", Kind: "bridge"},
		{Index: 4, Name: "veth1", Kind: "veth", Master: 3, Sandbox: "/var/run/docker/netns/1"},
	}
	return &Facts{
		Options: Options{
			PolicyPath: "/etc/nftfw/policy.yaml", StateDir: "/var/lib/nftfw", Socket: "/run/nftfw/nftfw.sock",
			DockerHost: "unix:///var/run/docker.sock", Table: "nftfw",
		},
		Daemon: &status, Policy: p,
		File:  PolicyFile{Exists: true, Hash: "a", Applied: "a", Known: true},
		State: StateDir{Exists: true, Mode: fs.ModeDir | 0o700, Writable: true},
		Links: links,
		Docker: Docker{
			Info: dockerwatch.Info{Version: "20.10.24"},
			Inventory: inventory.Snapshot{
				Engine: inventory.EngineListed, Links: links,
				Networks:   []inventory.Network{{ID: "n1", Name: "bridge", Driver: "bridge", Bridge: "docker0"}},
				Containers: []inventory.Container{{ID: "c1", Name: "web", Endpoints: []inventory.Endpoint{{NetworkID: "n1"}}}},
			},
		},
		Kernel: Kernel{Tables: []nft.ForeignTable{
			table("inet", "nftfw", base("input", ruleset.Input, true), base("forward", ruleset.Forward, true)),
			table("ip", "nat", base("PREROUTING", ruleset.Prerouting, false), chain("DOCKER")),
			// As an engine of 20.10 leaves it, with a rule that is its own.
			table("ip", "filter",
				base("INPUT", ruleset.Input, false),
				base("FORWARD", ruleset.Forward, true, jump("DOCKER-USER"), jump("DOCKER-ISOLATION-STAGE-1"), jump("DOCKER")),
				chain("DOCKER-USER"), chain("DOCKER-ISOLATION-STAGE-1", drop("drop")), chain("DOCKER")),
		}},
	}
}

func table(family, name string, chains ...nft.ForeignChain) nft.ForeignTable {
	return nft.ForeignTable{Family: family, Name: name, Chains: chains}
}

func chain(name string, rules ...nft.ForeignRule) nft.ForeignChain {
	return nft.ForeignChain{Name: name, Rules: rules}
}

func base(name string, hook ruleset.Hook, drops bool, rules ...nft.ForeignRule) nft.ForeignChain {
	return nft.ForeignChain{Name: name, Hook: hook, Type: "filter", Drops: drops, Rules: rules}
}

func jump(to string) nft.ForeignRule { return nft.ForeignRule{Text: "jump " + to, To: to} }

func drop(text string) nft.ForeignRule {
	return nft.ForeignRule{Handle: 7, Text: text, Refuses: true, Conditional: text != "drop"}
}

func with(t *testing.T, text string) *policy.Policy {
	t.Helper()
	p, _, err := policy.Parse("policy.yaml", []byte("version: 1\n"+text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// add puts a table beside those of the host.
func (f *Facts) add(tables ...nft.ForeignTable) { f.Kernel.Tables = append(f.Kernel.Tables, tables...) }

func TestExamine(t *testing.T) {
	rival := table("inet", "fw2", chain("essential"), chain("refuse"),
		nft.ForeignChain{Name: "input", Hook: ruleset.Input, Type: "filter", Priority: -10, Drops: true},
		nft.ForeignChain{Name: "forward", Hook: ruleset.Forward, Type: "filter", Priority: -10, Drops: true})
	tests := []struct {
		name  string
		spoil func(f *Facts)
		want  []string // IDs, and after a space what What must contain
	}{
		{"in order", func(*Facts) {}, nil},
		{
			"no daemon, table stands", func(f *Facts) { f.Daemon, f.DaemonErr = nil, fmt.Errorf("dial: %w", api.ErrNoDaemon) },
			[]string{"daemon-not-running /run/nftfw/nftfw.sock"},
		},
		{"no daemon, no table", func(f *Facts) {
			f.Daemon, f.DaemonErr = nil, api.ErrNoDaemon
			f.Kernel.Tables = f.Kernel.Tables[1:]
		}, []string{"daemon-not-running", "not-enforced inet nftfw"}},
		{"daemon's socket", func(f *Facts) {
			f.Daemon, f.DaemonErr, f.SocketGroup = nil, &api.Error{Message: "not allowed to open it"}, "nftfw"
		}, []string{"socket-unreadable"}},
		{"daemon is stuck", func(f *Facts) { f.Daemon, f.DaemonErr = nil, os.ErrDeadlineExceeded }, []string{"daemon-unreachable timeout"}},
		{"taken down", func(f *Facts) { f.Daemon.Enforced = false }, []string{"not-enforced"}},
		{"observe", func(f *Facts) { f.Daemon.Enforced, f.Daemon.Mode = false, "observe" }, []string{"observe-mode"}},
		{"daemon lost Docker", func(f *Facts) { f.Daemon.Docker = api.DockerStatus{Error: "refused"} }, []string{"daemon-without-docker refused"}},
		{"sources", func(f *Facts) {
			at := time.Now()
			f.Daemon.Sources = []api.SourceStatus{
				{Set: "blocked", Source: "url:https://example.net/list", LastGood: &at},
				{Set: "blocked", Source: "url:https://example.net/other", LastGood: &at, Error: "503"},
				{Set: "trusted", Source: "dns:home.example.net", Error: "SERVFAIL"},
				{Set: "blocked", Source: "crowdsec:http://127.0.0.1:8080", LastGood: &at, Warning: "2 decisions"},
			}
		}, []string{"source-never-read dns:home.example.net of set trusted: SERVFAIL", "source-not-read url:https://example.net/other of set blocked: 503", "source-read-in-part 2 decisions"}},
		{"bad file", func(f *Facts) { f.File.Err = errors.New("policy.yaml:3:1: no") }, []string{"policy-file-invalid policy.yaml:3:1"}},
		{"last good", func(f *Facts) { f.Daemon.Policy.Error = "put back" }, []string{"policy-not-in-force put back"}},
		{"not applied", func(f *Facts) { f.File.Applied = "b" }, []string{"policy-not-in-force"}},
		{"file gone", func(f *Facts) { f.File.Exists, f.File.Hash = false, "" }, []string{"policy-not-in-force"}},
		{"default, no file", func(f *Facts) { f.File = PolicyFile{Known: true} }, nil},
		{"file of others", func(f *Facts) { f.File = PolicyFile{Exists: true, Known: true, Err: fs.ErrPermission} }, nil},
		{
			"policy file for all", func(f *Facts) { f.File.Open = []string{"/etc/nftfw", "/etc/nftfw/policy.yaml"} },
			[]string{"policy-file-open /etc/nftfw and /etc/nftfw/policy.yaml may be written to by everybody"},
		},
		{"state for all", func(f *Facts) { f.State.Mode = fs.ModeDir | 0o755 }, []string{"state-dir-open 0755"}},
		{"state read-only", func(f *Facts) { f.State.Writable = false }, []string{"state-dir-read-only"}},
		{"no rights", func(f *Facts) { f.Kernel = Kernel{Err: &nft.CommitError{Op: "read", Errno: unix.EPERM}} }, []string{"rules-unreadable"}},
		{"no nf_tables", func(f *Facts) { f.Kernel = Kernel{Err: &nft.CommitError{Op: "read", Errno: unix.EINVAL}} }, []string{"nf-tables-missing"}},
		{"old kernel", func(f *Facts) { f.Kernel.Refusal = errors.New("add rule refuse: ENOENT") }, []string{"kernel-feature-missing add rule refuse"}},
		{"no conntrack", func(f *Facts) { f.Kernel.Conntrack = errors.New("EINVAL") }, []string{"conntrack-unreadable"}},

		{
			"Docker's socket", func(f *Facts) { f.Docker = Docker{Err: fmt.Errorf("dial: %w", fs.ErrPermission), Group: "docker"} },
			[]string{"docker-socket-unreadable /var/run/docker.sock"},
		},
		{"Docker away", func(f *Facts) { f.Docker = Docker{Err: errors.New("refused")} }, []string{"docker-unreachable refused"}},
		{"no Docker, and the daemon knows", func(f *Facts) { f.Docker, f.Daemon.Docker = Docker{Err: errors.New("gone")}, api.DockerStatus{} }, nil},
		{"rootless", func(f *Facts) { f.Docker.Info.Rootless = true }, []string{"docker-rootless"}},
		{"iptables false", func(f *Facts) { f.Kernel.Tables = f.Kernel.Tables[:1] }, []string{"docker-iptables-false"}},
		{"iptables false, ip6tables true", func(f *Facts) {
			f.Kernel.Tables = append(f.Kernel.Tables[:1:1], table("ip6", "nat", nft.ForeignChain{Name: "DOCKER"}))
		}, []string{"docker-iptables-false"}},
		{"Podman", func(f *Facts) {
			f.Docker.Info.Podman = true
			f.Kernel.Tables = append(f.Kernel.Tables[:1:1], table("ip", "nat", nft.ForeignChain{Name: "NETAVARK-HOSTPORT-DNAT"}),
				table("ip", "filter", base("FORWARD", ruleset.Forward, false, jump("NETAVARK_ISOLATION_1")), chain("NETAVARK_ISOLATION_1", drop("oifname \"podman1\" drop"))))
		}, nil},
		{"Podman's rules flushed", func(f *Facts) {
			f.Docker.Info.Podman, f.Kernel.Tables = true, f.Kernel.Tables[:1]
		}, []string{"podman-rules-missing"}},
		{"Docker's nftables backend", func(f *Facts) {
			f.Kernel.Tables = append(f.Kernel.Tables[:1:1], table("ip", "docker-bridges", base("filter-FORWARD", ruleset.Forward, true, drop("drop"))))
		}, nil},
		{"engine elsewhere", func(f *Facts) { f.Kernel.Tables, f.Links = f.Kernel.Tables[:1], f.Links[:2] }, nil},
		{
			"Docker's rules may be legacy", func(f *Facts) { f.Kernel.Tables, f.LegacyTables = f.Kernel.Tables[:1], []string{"nat"} },
			[]string{"iptables-legacy nat"},
		},
		{"macvlan", func(f *Facts) {
			f.Docker.Inventory.Networks = append(f.Docker.Inventory.Networks, inventory.Network{ID: "n2", Name: "lan", Driver: "macvlan"},
				inventory.Network{ID: "n3", Name: "empty", Driver: "ipvlan"})
			f.Docker.Inventory.Containers = append(f.Docker.Inventory.Containers, inventory.Container{Name: "cam", Endpoints: []inventory.Endpoint{{NetworkID: "n2"}}})
		}, []string{"container-unfiltered macvlan network lan: container cam"}},
		{"foreign port", func(f *Facts) {
			f.Docker.Inventory.Links = append(f.Docker.Inventory.Links, inventory.Link{Index: 9, Name: "tap0", Kind: "tun", Master: 3})
		}, []string{"bridge-foreign-port tap0"}},
		{"label", func(f *Facts) {
			f.Diagnostics = []policy.Diagnostic{{Severity: policy.SeverityError, Container: "web", Label: "nftfw.expose", Message: "unknown set x"}}
		}, []string{"label-not-enforced container web: label nftfw.expose: unknown set x"}},
		{"label that only the daemon sees", func(f *Facts) {
			f.Docker = Docker{Err: fs.ErrPermission}
			f.Daemon.Problems = []api.Problem{{Severity: "warning", Container: "web", Label: "nftfw.expose", Message: "web's label"}}
		}, []string{"docker-socket-unreadable", "label-not-enforced web's label"}},

		{"notrack", func(f *Facts) {
			f.add(table("ip6", "raw", base("OUTPUT", ruleset.Output, false, nft.ForeignRule{Handle: 4, Text: "notrack", Notrack: true})))
		}, []string{"notrack-rule chain OUTPUT of table ip6 raw keeps packets from connection tracking (handle 4"}},
		{"ufw", func(f *Facts) {
			f.Kernel.Tables[2] = table("ip", "filter", base("INPUT", ruleset.Input, true, jump("ufw-user-input")),
				chain("ufw-user-input", drop("th dport 80 drop")))
		}, []string{"foreign-drop ufw drops packets at input: table ip filter, chain INPUT (policy drop; chain ufw-user-input handle 7: th dport 80 drop)"}},
		{"ufw has the host's ports", func(f *Facts) {
			f.Policy = with(t, "host: {default: accept}\n")
			f.Kernel.Tables[2] = table("ip", "filter", base("INPUT", ruleset.Input, true))
		}, nil},
		{"firewalld, with a map", func(f *Facts) {
			f.add(table("inet", "firewalld", base("filter_INPUT", ruleset.Input, false, nft.ForeignRule{Text: "vmap", ByMap: true}),
				chain("zone", drop("reject"))))
		}, []string{"foreign-drop firewalld drops packets at input"}},
		{"dnat accepted first", func(f *Facts) {
			f.add(table("inet", "firewalld", base("filter_FORWARD", ruleset.Forward, false, nft.ForeignRule{Text: "ct status dnat accept"}, drop("reject"))))
		}, nil},
		{"a map that drops", func(f *Facts) {
			f.add(table("inet", "x", base("in", ruleset.Input, false, nft.ForeignRule{Handle: 7, Text: "th dport vmap { … : drop }", ByMap: true, Refuses: true})))
		}, []string{"foreign-drop chain in handle 7: th dport vmap"}},
		{"a map that leads to a chain that drops, and drops what is invalid", func(f *Facts) {
			f.add(table("inet", "x", base("in", ruleset.Input, false, nft.ForeignRule{Text: "ct state vmap", ByMap: true, Refuses: true, OnlyInvalid: true}),
				chain("rest", drop("reject"))))
		}, []string{"foreign-drop (chain rest handle 7: reject)"}},
		{"invalid only", func(f *Facts) {
			f.add(table("inet", "x", base("in", ruleset.Input, false,
				nft.ForeignRule{Text: "ct state invalid drop", Refuses: true, OnlyInvalid: true},
				nft.ForeignRule{Text: "ct state invalid jump broken", To: "broken", OnlyInvalid: true}),
				chain("broken", drop("drop"))))
		}, nil},
		{"loopback only", func(f *Facts) {
			f.add(table("inet", "x", base("in", ruleset.Input, false, drop(`ip saddr 192.0.2.1 iifname "lo" drop`), drop("iif 1 drop"),
				nft.ForeignRule{Text: `iifname "lo" jump loop`, To: "loop"}), chain("loop", drop("drop"))))
		}, nil},
		{"all but loopback", func(f *Facts) {
			f.add(table("inet", "x", base("in", ruleset.Input, false, drop(`iifname != "lo" drop`), drop(`iifname "lo7" drop`), drop("iif 17 drop"))))
		}, []string{`foreign-drop (chain in handle 7: iifname != "lo" drop; chain in handle 7: iifname "lo7" drop; chain in handle 7: iif 17 drop)`}},
		{"raw PREROUTING", func(f *Facts) {
			f.add(table("ip", "raw", base("PREROUTING", ruleset.Prerouting, false, drop("th dport 80 drop"))))
		}, []string{"foreign-drop drops packets at prerouting: table ip raw, chain PREROUTING (chain PREROUTING handle 7: th dport 80 drop)"}},
		{"prerouting, where another has the host's ports", func(f *Facts) {
			f.Policy = with(t, "host: {default: accept}\n")
			f.add(table("inet", "x", base("pre", ruleset.Prerouting, false, drop("th dport 80 drop"))))
		}, []string{"foreign-drop drops packets at prerouting"}},
		{"Docker's own of direct routing", func(f *Facts) {
			f.add(table("ip", "raw", base("PREROUTING", ruleset.Prerouting, false,
				drop(`ip daddr 172.17.0.2 iifname != "docker0" drop`), drop(`iifname != "docker0" ip daddr 172.17.0.2 drop`),
				drop(`iifname != "lo" meta l4proto tcp ip daddr 127.0.0.1 th dport 8080 drop`))),
				table("ip6", "raw", base("PREROUTING", ruleset.Prerouting, false, drop(`ip6 daddr fd00::2 iifname != "docker0" drop`))))
		}, nil},
		{"not Docker's", func(f *Facts) {
			f.add(table("ip", "raw", base("PREROUTING", ruleset.Prerouting, false, drop(`ip daddr 192.0.2.1 iifname != "eth0" drop`))))
		}, []string{"foreign-drop ip daddr 192.0.2.1"}},
		{"reverse path filters", func(f *Facts) {
			f.add(table("inet", "firewalld", base("filter_PREROUTING", ruleset.Prerouting, false, drop("meta nfproto 0x0a fib saddr 0x00 drop"))),
				table("ip", "raw", base("PREROUTING", ruleset.Prerouting, false, drop("<match rpfilter> drop"))))
		}, nil},
		{"ingress", func(f *Facts) {
			f.add(table("netdev", "early", base("in", nft.Ingress, false, drop("th dport 80 drop"))))
		}, []string{"foreign-drop drops packets at ingress: table netdev early, chain in"}},
		{"before Docker", func(f *Facts) {
			f.Kernel.Tables[2].Chains[1].Rules = append([]nft.ForeignRule{drop("ip daddr 172.17.0.0/16 drop")}, f.Kernel.Tables[2].Chains[1].Rules...)
		}, []string{"foreign-drop chain FORWARD (chain FORWARD handle 7: ip daddr 172.17.0.0/16 drop)"}},
		{"behind Docker", func(f *Facts) {
			f.Kernel.Tables[2].Chains[1].Rules = append(f.Kernel.Tables[2].Chains[1].Rules, drop("drop"))
		}, nil},
		{
			"DOCKER-USER", func(f *Facts) { f.Kernel.Tables[2].Chains[2].Rules = []nft.ForeignRule{drop(`iifname "eth0" drop`)} },
			[]string{"foreign-drop a rule in DOCKER-USER drops packets at forward"},
		},
		{
			"DOCKER", func(f *Facts) {
				f.Kernel.Tables[2].Chains[4].Rules = []nft.ForeignRule{drop(`iifname != "docker0" oifname "docker0" drop`), drop(`iifname "lo" drop`), drop("ip saddr 192.0.2.1 drop")}
			},
			[]string{"foreign-drop a rule in DOCKER drops packets at forward: table ip filter, chain FORWARD (chain DOCKER handle 7: ip saddr 192.0.2.1 drop)"},
		},
		{"iptables -F", func(f *Facts) {
			for i := range f.Kernel.Tables[2].Chains {
				f.Kernel.Tables[2].Chains[i].Rules = nil
			}
		}, []string{"docker-rules-flushed chain FORWARD of table ip filter"}},
		{"iptables -F and -X", func(f *Facts) {
			f.Kernel.Tables[2] = table("ip", "filter", base("FORWARD", ruleset.Forward, true, drop("ip saddr 192.0.2.1 drop")))
		}, []string{"docker-rules-flushed", "foreign-drop (chain FORWARD handle 7: ip saddr 192.0.2.1 drop)"}},
		{"a policy that is not Docker's", func(f *Facts) {
			f.add(table("ip6", "filter", base("FORWARD", ruleset.Forward, true)))
		}, []string{"foreign-drop table ip6 filter, chain FORWARD (policy drop)"}},
		{"jumps in a circle", func(f *Facts) {
			f.add(table("inet", "x", base("in", ruleset.Input, false, jump("a")), chain("a", jump("b")), chain("b", jump("a"))))
		}, nil},
		{"bans", func(f *Facts) {
			f.add(table("inet", "f2b-table", base("f2b-chain", ruleset.Input, false, drop("ip saddr @b drop"))))
		}, nil},
		{"bans in a chain of their own", func(f *Facts) {
			f.Kernel.Tables[2].Chains[0].Rules = []nft.ForeignRule{jump("f2b-sshd")}
			f.Kernel.Tables[2].Chains = append(f.Kernel.Tables[2].Chains, chain("f2b-sshd", drop("ip saddr 192.0.2.1 reject")))
		}, nil},
		{
			"others' forwarding", func(f *Facts) { f.Policy = with(t, "forward: {allow: [{in: eth0, out: eth1, from: any}]}\n") },
			[]string{"forward-policy-drop chain FORWARD of table ip filter"},
		},
		{"rival", func(f *Facts) { f.add(rival) }, []string{"second-nftfw inet fw2"}},
		{"kube-proxy", func(f *Facts) { f.add(table("ip", "nat", chain("KUBE-SERVICES"))) }, []string{"kube-proxy ip nat"}},
		{"IPVS", func(f *Facts) { f.IPVS = []string{"TCP C6120001:0050 rr"} }, []string{"ipvs-service TCP C6120001:0050"}},
		{
			"br_netfilter", func(f *Facts) { f.Policy, f.BridgeNF4 = with(t, "containers: {to_containers: none}\n"), true },
			[]string{"bridge-netfilter-off net.bridge.bridge-nf-call-ip6tables is not 1, so these do not hold between containers on one bridge: containers.to_containers: none"},
		},
		{"br_netfilter on", func(f *Facts) {
			f.Policy, f.BridgeNF4, f.BridgeNF6 = with(t, "containers: {to_containers: same-project}\n"), true, true
		}, nil},
		{
			"legacy tables of which nothing is known", func(f *Facts) { f.LegacyUnread = []string{"filter"} },
			[]string{"iptables-legacy iptables-legacy has tables beside nf_tables, which may be empty: filter"},
		},
		{"route_localnet", func(f *Facts) { f.RouteLocalnet = []string{"docker0", "eth0"} }, []string{"route-localnet set on eth0"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := sound(t)
			tt.spoil(f)
			got := Examine(f)
			var ids, want []string
			for i, finding := range got {
				ids = append(ids, finding.ID)
				if finding.What == "" || finding.Why == "" || finding.Remedy == "" {
					t.Errorf("not whole: %+v", finding)
				}
				if i < len(tt.want) {
					if _, words, _ := strings.Cut(tt.want[i], " "); !strings.Contains(finding.What, words) {
						t.Errorf("%s says %q, want it to contain %q", finding.ID, finding.What, words)
					}
				}
			}
			for _, w := range tt.want {
				id, _, _ := strings.Cut(w, " ")
				want = append(want, id)
			}
			if diff := cmp.Diff(want, ids); diff != "" {
				t.Errorf("findings (-want +got):\n%s\n%+v", diff, got)
			}
		})
	}
}

// Who followed a remedy would otherwise meet the guard, or an error.
func TestRemedies(t *testing.T) {
	tests := []struct {
		name  string
		spoil func(f *Facts)
		want  string
	}{
		{"last good", func(f *Facts) { f.Daemon.Policy.Error = "refused: it would cut the SSH connection" }, "nftfw apply --confirm 60s, then nftfw confirm"},
		{"not applied", func(f *Facts) { f.File.Applied = "b" }, "nftfw apply --dry-run to see what it changes, then nftfw apply --confirm 60s and nftfw confirm"},
		{"link with a dot", func(f *Facts) { f.RouteLocalnet = []string{"eth0.10"} }, "sysctl -w net/ipv4/conf/eth0.10/route_localnet=0, and see who sets it (kube-proxy does)"},
		{"DOCKER-USER of IPv6", func(f *Facts) {
			f.add(table("ip6", "filter", base("FORWARD", ruleset.Forward, true, jump("DOCKER-USER"), jump("DOCKER-FORWARD")), chain("DOCKER-USER", drop("drop"))))
		}, "ip6tables -L DOCKER-USER --line-numbers; ip6tables -D DOCKER-USER NUMBER, and say it in nftfw's policy instead"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := sound(t)
			tt.spoil(f)
			got := Examine(f)
			if len(got) != 1 || got[0].Remedy != tt.want {
				t.Errorf("findings %+v, want one with the remedy %q", got, tt.want)
			}
		})
	}
}

func TestErrorsFirst(t *testing.T) {
	f := sound(t)
	f.RouteLocalnet = []string{"eth0"} // a warning, and the last check
	f.State = StateDir{Exists: true, Mode: 0o755}
	var got []Severity
	for _, finding := range Examine(f) {
		got = append(got, finding.Severity)
	}
	if diff := cmp.Diff([]Severity{Error, Warning, Warning}, got); diff != "" {
		t.Errorf("severities (-want +got):\n%s", diff)
	}
}

func TestJSON(t *testing.T) {
	out, err := json.Marshal(Examine(sound(t)))
	if err != nil || string(out) != "[]" {
		t.Errorf("no findings are %s (%v), want []", out, err)
	}
	out, err = json.Marshal(Finding{"a", Error, "b", "c", "d"})
	if want := `{"id":"a","severity":"error","what":"b","why":"c","remedy":"d"}`; err != nil || string(out) != want {
		t.Errorf("a finding is %s (%v), want %s", out, err, want)
	}
}

func TestBlind(t *testing.T) {
	f := &Facts{Kernel: Kernel{Err: unix.EPERM}, LinkErr: unix.EPERM}
	if err := f.Blind(); !errors.Is(err, ErrBlind) {
		t.Errorf("nothing seen: %v", err)
	}
	f.LinkErr = nil
	if err := f.Blind(); err != nil {
		t.Errorf("links seen: %v", err)
	}
}
