package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/inventory"
	rs "github.com/nftfw/nftfw/pkg/ruleset"
)

// Who connects. The set office is worldSets'; the partner is in no set.
const (
	trusted   = "192.0.2.10"
	trusted6  = "2001:db8:1::10"
	office    = "203.0.113.5"
	office6   = "2001:db8:2::5"
	partner   = "10.1.2.3"
	stranger  = "100.64.0.9"
	stranger6 = "2001:db8:9::9"
	blocked   = "100.64.66.6"
	blocked6  = "2001:db8:66::6"
)

// The host's addresses, and those of the containers on docker0 and br-app.
const (
	host1   = "198.18.0.1"
	host2   = "198.18.0.2"
	host6   = "fd00:18::1"
	web     = "172.17.0.2"
	web6    = "fd00:17::2"
	app     = "172.20.0.3"
	app6    = "fd00:20::3"
	routed  = "172.30.0.4"
	routed6 = "fd00:30::4"
)

// worldSets are declared in every policy of these tests.
const worldSets = `version: 1
sets:
  trusted: [192.0.2.10, "2001:db8:1::10"]
  office: [203.0.113.0/24, "2001:db8:2::/48"]
  branch: [203.0.114.0/24]
  blocked: [100.64.66.6, "2001:db8:66::6"]
`

// world is a host with a bridge of every kind, and no container.
func world() inventory.Snapshot {
	return inventory.Snapshot{
		Engine: inventory.EngineListed,
		Networks: []inventory.Network{
			{ID: "n-docker0", Name: "bridge", Driver: "bridge", Bridge: "docker0"},
			{ID: "n-app", Name: "app", Driver: "bridge", Bridge: "br-app"},
			{ID: "n-routed", Name: "routed", Driver: "bridge", Bridge: "br-routed", Gateway4: inventory.GatewayRouted, Gateway6: inventory.GatewayRouted},
			{ID: "n-unprotected", Name: "open", Driver: "bridge", Bridge: "br-open", Gateway4: inventory.GatewayNATUnprotected},
			{ID: "n-taken", Name: "taken", Driver: "bridge", Bridge: "br-taken"},
			{ID: "n-macvlan", Name: "lan", Driver: "macvlan"},
		},
		Links: []inventory.Link{
			{Index: 1, Name: "lo"},
			{Index: 2, Name: "eth0"},
			{Index: 3, Name: "eth1"},
			{Index: 4, Name: "wg0", Kind: "wireguard"},
			{Index: 5, Name: "virbr0", Kind: "bridge"},
			{Index: 10, Name: "docker0", Kind: "bridge"},
			{Index: 11, Name: "br-app", Kind: "bridge"},
			{Index: 12, Name: "br-routed", Kind: "bridge"},
			{Index: 13, Name: "br-taken", Kind: "bridge"},
			{Index: 14, Name: "br-open", Kind: "bridge"},
			{Index: 20, Name: "veth1", Kind: "veth", Master: 10, Sandbox: "/run/docker/netns/1"},
			{Index: 21, Name: "veth2", Kind: "veth", Master: 11, Sandbox: "/run/docker/netns/2"},
			{Index: 22, Name: "eth2", Master: 13},
		},
	}
}

// takenReason is what world always has to say about br-taken.
const takenReason = "error: network taken: bridge br-taken has a port that leads to no container (eth2); what arrives on it counts as outside: take the port off the bridge, or give the network a bridge of its own"

type labels = map[string]string

// container is one on docker0 with the ports "HOSTPORT:PORT/PROTO", published
// on both wildcards, "ADDR:HOSTPORT:PORT/PROTO", or "PORT/PROTO", exposed only.
func container(name string, l labels, ports ...string) inventory.Container {
	c := inventory.Container{
		ID: strings.Repeat(fmt.Sprintf("%x", name), 64)[:64], Name: name, Image: name + ":1",
		Labels: l, NetworkMode: "bridge",
		Endpoints: []inventory.Endpoint{endpoint("n-docker0", web, web6)},
	}
	for _, p := range ports {
		c.Ports = append(c.Ports, parsePorts(p)...)
	}
	return c
}

func parsePorts(s string) []inventory.Port {
	parts := strings.Split(s, ":")
	own, err := ParsePort(parts[len(parts)-1])
	if err != nil {
		panic(err)
	}
	p := inventory.Port{ContainerPort: own.Low, Proto: own.Proto}
	if len(parts) == 1 {
		return []inventory.Port{p}
	}
	var hostPort uint16
	if _, err := fmt.Sscan(parts[len(parts)-2], &hostPort); err != nil {
		panic(err)
	}
	p.HostPort = hostPort
	if addr := strings.Join(parts[:len(parts)-2], ":"); addr != "" {
		p.HostIP = netip.MustParseAddr(strings.Trim(addr, "[]"))
		return []inventory.Port{p}
	}
	v4, v6 := p, p
	v4.HostIP, v6.HostIP = netip.IPv4Unspecified(), netip.IPv6Unspecified()
	return []inventory.Port{v4, v6}
}

func endpoint(network, addr4, addr6 string) inventory.Endpoint {
	e := inventory.Endpoint{NetworkID: network}
	if addr4 != "" {
		e.Addr4 = netip.MustParseAddr(addr4)
	}
	if addr6 != "" {
		e.Addr6 = netip.MustParseAddr(addr6)
	}
	return e
}

// on moves c to other networks.
func on(c inventory.Container, endpoints ...inventory.Endpoint) inventory.Container {
	c.NetworkMode, c.Endpoints = "", endpoints
	return c
}

func hostNetwork(name string, l labels) inventory.Container {
	c := container(name, l)
	c.NetworkMode, c.Endpoints = "host", nil
	return c
}

// to reads "ADDR:PORT/PROTO", and "ADDR" with another protocol than tcp.
func to(src, dst string) rs.Packet {
	dst, proto, _ := strings.Cut(dst, "/")
	p := rs.Packet{Src: netip.MustParseAddr(src), SPort: 40000, Proto: protoTCP}
	if proto != "" {
		if number, ok := portProtocols[proto]; ok {
			p.Proto = number
		} else {
			p.Proto = portlessProtocols[proto]
		}
	}
	if at, err := netip.ParseAddrPort(dst); err == nil {
		p.Dst, p.DPort = at.Addr(), at.Port()
	} else {
		p.Dst = netip.MustParseAddr(dst)
	}
	return p
}

// input is a packet from outside to the host itself.
func input(src, dst string) rs.Packet {
	p := to(src, dst)
	p.Hook, p.IIf = rs.Input, "eth0"
	return p
}

// direct is one that is routed straight to a container.
func direct(src, dst string) rs.Packet {
	p := to(src, dst)
	p.Hook, p.IIf, p.OIf = rs.Forward, "eth0", bridgeOf(p.Dst)
	return p
}

// dnat is one that Docker has translated from the host's first address.
func dnat(src, dst string) rs.Packet {
	p := direct(src, dst)
	p.Status, p.OrigDst = rs.StatusDNAT, netip.MustParseAddr(host1)
	if p.Dst.Is6() {
		p.OrigDst = netip.MustParseAddr(host6)
	}
	return p
}

func bridgeOf(a netip.Addr) string {
	for prefix, bridge := range map[string]string{
		"172.17.0.0/16": "docker0", "fd00:17::/64": "docker0", "172.20.0.0/16": "br-app", "fd00:20::/64": "br-app",
		"172.30.0.0/16": "br-routed", "fd00:30::/64": "br-routed", "172.31.0.0/16": "br-open", "172.32.0.0/16": "br-taken",
	} {
		if netip.MustParsePrefix(prefix).Contains(a) {
			return bridge
		}
	}
	return "eth1"
}

func through(addr string, p rs.Packet) rs.Packet { p.OrigDst = netip.MustParseAddr(addr); return p }
func links(in, out string, p rs.Packet) rs.Packet {
	p.IIf, p.OIf = in, out
	return p
}
func state(bit uint32, p rs.Packet) rs.Packet  { p.State = bit; return p }
func sport(port uint16, p rs.Packet) rs.Packet { p.SPort = port; return p }
func icmp(kind uint8, p rs.Packet) rs.Packet   { p.ICMPType, p.SPort, p.DPort = kind, 0, 0; return p }

// packets is for lists of packets from different places.
func packets(list ...any) []rs.Packet {
	var out []rs.Packet
	for _, p := range list {
		switch p := p.(type) {
		case rs.Packet:
			out = append(out, p)
		case []rs.Packet:
			out = append(out, p...)
		}
	}
	return out
}

// from gives the same packet from each source of the destination's family.
func from(way func(src, dst string) rs.Packet, dst string, sources ...string) []rs.Packet {
	var out []rs.Packet
	for _, s := range sources {
		out = append(out, way(s, dst))
	}
	return out
}

// setsOf gives the sets of a policy with nothing added at run time.
func setsOf(p *Policy) Sets {
	sets := Sets{}
	for name, s := range p.Sets {
		sets[name] = addrset.New(s.Entries...)
	}
	return sets
}

// withNodes adds what the engine says of its swarm.
func withNodes(sets Sets, inv inventory.Snapshot) Sets {
	sets[SetSwarmNodes] = sets[SetSwarmNodes].Add(NodeEntries(inv.Swarm)...)
	return sets
}

// verdicts is one sentence about a policy and containers, and packets that it
// lets in and refuses.
type verdicts struct {
	name       string
	policy     string // behind worldSets
	containers []inventory.Container
	change     func(*inventory.Snapshot)
	accept     []rs.Packet
	drop       []rs.Packet
	says       []string // "severity: diagnostic", in any order and without takenReason; … stands for any rest
}

func run(t *testing.T, tests []verdicts) {
	t.Helper()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, _ := mustParse(t, worldSets+tt.policy)
			inv := world()
			inv.Containers = tt.containers
			unplug(&inv)
			if tt.change != nil {
				tt.change(&inv)
			}
			table, diags := Compile(p, withNodes(setsOf(p), inv), inv)
			if err := table.Validate(); err != nil {
				t.Fatalf("Compile made an invalid table: %v", err)
			}
			for want, list := range map[rs.VerdictKind][]rs.Packet{rs.Accept: tt.accept, rs.Drop: tt.drop} {
				for _, packet := range list {
					if got := verdictOf(table, packet); got.Verdict != want {
						t.Errorf("%s: got %s, want %s\n%s", describePacket(packet), got.Verdict, want, describeTrace(got))
					}
				}
			}
			got := slices.DeleteFunc(describeDiagnostics(diags), func(s string) bool { return s == takenReason })
			want := slices.Clone(tt.says)
			slices.Sort(got)
			slices.Sort(want)
			for i, w := range want {
				if start, cut := strings.CutSuffix(w, "…"); cut && i < len(got) && strings.HasPrefix(got[i], start) {
					got[i] = w
				}
			}
			if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("diagnostics (-want +got):\n%s", diff)
			}
		})
	}
}

// unplug takes the veths off bridges that no container of the test is on.
func unplug(inv *inventory.Snapshot) {
	used := map[string]bool{}
	networks := networksByID(*inv)
	for _, c := range inv.Containers {
		for _, e := range c.Endpoints {
			used[networks[e.NetworkID].Bridge] = true
		}
	}
	names := map[int]string{}
	for _, l := range inv.Links {
		names[l.Index] = l.Name
	}
	inv.Links = slices.DeleteFunc(inv.Links, func(l inventory.Link) bool {
		return l.Kind == linkKindVeth && l.Master != 0 && !used[names[l.Master]]
	})
}

// verdictOf takes a packet through prerouting and then through its hook.
func verdictOf(table *rs.Table, p rs.Packet) rs.Trace {
	before := p
	before.Hook, before.OIf = rs.Prerouting, ""
	if trace := table.Eval(before); trace.Verdict == rs.Drop {
		return trace
	}
	return table.Eval(p)
}

func describeDiagnostics(diags []Diagnostic) []string {
	var out []string
	for _, d := range diags {
		out = append(out, fmt.Sprintf("%s: %s", d.Severity, d))
	}
	return out
}

func describePacket(p rs.Packet) string {
	s := fmt.Sprintf("%s %s->%s: %s:%d -> %s:%d proto %d", p.Hook, p.IIf, p.OIf, p.Src, p.SPort, p.Dst, p.DPort, p.Proto)
	if p.OrigDst.IsValid() {
		s += " (originally to " + p.OrigDst.String() + ")"
	}
	return s
}

func describeTrace(trace rs.Trace) string {
	var b strings.Builder
	for _, s := range trace.Steps {
		fmt.Fprintf(&b, "\t%s/%d: %s => %s %s\n", s.Chain, s.Rule, s.Text, s.Result, s.Origin)
	}
	return b.String()
}
