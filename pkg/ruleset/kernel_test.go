package ruleset_test

import (
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	. "github.com/nftfw/nftfw/pkg/ruleset"
)

// TestEvalAgreesWithKernel sends packets through a router that has a table
// loaded, and compares the counter of every rule with the rules that Eval says
// match.
func TestEvalAgreesWithKernel(t *testing.T) {
	r := newRouter(t)
	for n, table := range kernelTables() {
		t.Run(table.Name, func(t *testing.T) {
			if err := table.Validate(); err != nil {
				t.Fatal(err)
			}
			r.host.run(t, table.Text(time.Now()), "nft", "-f", "-")
			defer r.host.run(t, "", "nft", "delete", "table", "inet", table.Name)
			have := r.counters(t, table.Name)
			if len(have) == 0 {
				t.Fatal("no counters")
			}
			for i, pr := range kernelProbes(uint16(20000 + 1000*n)) {
				want := maps.Clone(have)
				want.add(table, pr)
				r.send(t, pr.wire)
				have = r.settle(t, table.Name, want)
				if diff := cmp.Diff(have, want); diff != "" {
					t.Fatalf("probe %d, %s: counters (-kernel +eval):\n%s\n%+v", i, pr.name, diff, pr.views)
				}
			}
		})
	}
}

// router is three namespaces in a row: client, host, server.
type router struct {
	client, host, server *netns
}

func newRouter(t *testing.T) *router {
	t.Helper()
	macs := map[string]string{"h0": "02:00:00:00:00:01", "c0": "02:00:00:00:00:02", "h1": "02:00:00:00:00:03", "s0": "02:00:00:00:00:04"}
	r := &router{client: newNetns(t), host: newNetns(t), server: newNetns(t)}
	link := func(mine string, far *netns, theirs string) {
		r.host.run(t, "", "ip", "link", "add", mine, "address", macs[mine], "type", "veth",
			"peer", "name", theirs, "address", macs[theirs], "netns", strconv.Itoa(far.tid))
	}
	link("h0", r.client, "c0")
	link("h1", r.server, "s0")
	up := func(ns *netns, dev, v4, v6 string) {
		ns.run(t, "", "ip", "link", "set", dev, "up")
		ns.run(t, "", "ip", "addr", "add", v4, "dev", dev)
		ns.run(t, "", "ip", "addr", "add", v6, "dev", dev, "nodad")
	}
	up(r.host, "h0", "198.18.0.1/24", "fd00:18::1/64")
	up(r.host, "h1", "198.18.1.1/24", "fd00:18:1::1/64")
	up(r.client, "c0", "198.18.0.2/24", "fd00:18::2/64")
	up(r.server, "s0", "198.18.1.2/24", "fd00:18:1::2/64")
	// The kernel's own packets, neighbour discovery and answers to probes, would
	// be counted as well: nobody sends any.
	for _, ns := range []*netns{r.client, r.host, r.server} {
		ns.run(t, fmt.Sprintf(`table inet quiet {
			chain out { type filter hook output priority -500; policy drop; ip ttl %[1]d accept; ip6 hoplimit %[1]d accept; }
		}`, probeTTL), "nft", "-f", "-")
	}
	for addr, at := range map[string]string{"198.18.0.2": "c0", "fd00:18::2": "c0", "198.18.1.2": "s0", "fd00:18:1::2": "s0"} {
		r.host.run(t, "", "ip", "neigh", "replace", addr, "lladdr", macs[at], "dev", map[string]string{"c0": "h0", "s0": "h1"}[at])
	}
	for _, addr := range []string{"198.18.0.1", "fd00:18::1"} {
		r.client.run(t, "", "ip", "neigh", "replace", addr, "lladdr", macs["h0"], "dev", "c0")
	}
	for _, addr := range []string{"198.18.1.1", "fd00:18:1::1"} {
		r.server.run(t, "", "ip", "neigh", "replace", addr, "lladdr", macs["h1"], "dev", "s0")
	}
	for ns, via := range map[*netns][2]string{r.client: {"198.18.0.1", "fd00:18::1"}, r.server: {"198.18.1.1", "fd00:18:1::1"}} {
		ns.run(t, "", "ip", "route", "add", "default", "via", via[0])
		ns.run(t, "", "ip", "-6", "route", "add", "default", "via", via[1])
	}
	r.host.run(t, "", "ip", "link", "set", "lo", "up")
	r.host.do(func() {
		for _, sysctl := range []string{"ipv4/ip_forward=1", "ipv6/conf/all/forwarding=1", "ipv4/conf/all/rp_filter=0", "ipv4/conf/h0/rp_filter=0", "ipv4/conf/h1/rp_filter=0"} {
			name, value, _ := strings.Cut(sysctl, "=")
			if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0); err != nil {
				t.Error(err)
			}
		}
	})
	r.host.run(t, `table ip nat {
		chain pre { type nat hook prerouting priority -100; ip daddr 198.18.0.1 udp dport 8080 dnat to 198.18.1.2:80; }
	}`, "nft", "-f", "-")
	return r
}

// probe is a packet on the wire and what the hooks of the router see of it.
type probe struct {
	name  string
	wire  Packet // IIf says who sends it: h0 client, h1 server, "" the router
	views []Packet
}

// forwarded is a packet that the router passes on as it is.
func forwarded(name string, p Packet) probe {
	pre := p
	pre.Hook, pre.OIf, p.Hook = Prerouting, "", Forward
	return probe{name, p, []Packet{pre, p}}
}

// delivered is a packet to the router itself.
func delivered(name string, p Packet) probe {
	pre := p
	pre.Hook, p.Hook = Prerouting, Input
	return probe{name, p, []Packet{pre, p}}
}

// sent is a packet of the router itself.
func sent(name string, p Packet) probe {
	p.Hook = Output
	return probe{name, p, []Packet{p}}
}

// translated is a packet to port 8080 of the router, that DNAT sends to port 80
// of the server.
func translated(name string, p Packet) probe {
	pre := p
	pre.Hook = Prerouting
	p.Hook, p.OIf, p.Status, p.OrigDst = Forward, "h1", StatusDNAT, p.Dst
	p.Dst, p.DPort = addr("198.18.1.2"), 80
	return probe{name, pre, []Packet{pre, p}}
}

// send puts the packet on the wire where it comes from.
func (r *router) send(t *testing.T, p Packet) {
	t.Helper()
	switch p.IIf {
	case "h0":
		r.client.send(t, p)
	case "h1":
		r.server.send(t, p)
	default:
		r.host.send(t, p)
	}
}

// counters are the packets that each rule has counted, by "chain rule".
type counters map[string]int

// add counts what Eval says of a probe.
func (c counters) add(table *Table, pr probe) {
	for _, p := range pr.views {
		trace := table.Eval(p)
		for _, s := range trace.Steps {
			key := s.Chain + " " + strconv.Itoa(s.Rule)
			if _, counted := c[key]; counted && s.Result != "no match" {
				c[key]++
			}
		}
		if trace.Verdict == Drop {
			return
		}
	}
}

var counterText = regexp.MustCompile(`counter packets (\d+)`)

// counters reads the counters of a table.
func (r *router) counters(t *testing.T, table string) counters {
	t.Helper()
	c := counters{}
	chain, rule := "", 0
	for line := range strings.Lines(r.host.run(t, "", "nft", "list", "table", "inet", table)) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "chain "); ok {
			chain, rule = strings.TrimSuffix(name, " {"), 0
			continue
		}
		if chain == "" || strings.HasPrefix(line, "type ") {
			continue
		}
		if m := counterText.FindStringSubmatch(line); m != nil {
			c[chain+" "+strconv.Itoa(rule)], _ = strconv.Atoi(m[1])
		}
		rule++
	}
	return c
}

// settle reads the counters until they are as wanted, or have had the time to
// become so.
func (r *router) settle(t *testing.T, table string, want counters) counters {
	t.Helper()
	deadline := time.Now().Add(time.Second)
	for {
		have := r.counters(t, table)
		if cmp.Equal(have, want) || time.Now().After(deadline) {
			return have
		}
	}
}

// kernelProbes gives flows that no other table has seen, by their source ports.
func kernelProbes(ports uint16) []probe {
	const client, server, host = "198.18.0.2", "198.18.1.2", "198.18.0.1"
	const client6, server6, host6 = "fd00:18::2", "fd00:18:1::2", "fd00:18::1"
	in := func(src, dst string, proto uint8, sport, dport uint16) Packet {
		return Packet{IIf: "h0", OIf: "h1", Src: addr(src), Dst: addr(dst), Proto: proto, SPort: sport, DPort: dport}
	}
	local := func(p Packet) Packet { p.OIf = ""; return p }
	reply := func(p Packet) Packet {
		return Packet{IIf: "h1", OIf: "h0", Src: p.Dst, Dst: p.Src, Proto: p.Proto, SPort: p.DPort, DPort: p.SPort, State: StateEstablished, OrigDst: p.Dst}
	}
	icmp := func(p Packet, kind uint8) Packet {
		p.ICMPType = kind
		return p
	}
	established := func(p Packet) Packet { p.State = StateEstablished; return p }
	var list []probe
	dports := []uint16{22, 80, 1005, 1011, 53, 443, 1000, 1010}
	if testing.Short() {
		dports = dports[:2]
	}
	for i, dport := range dports {
		sport := ports + uint16(10*i)
		list = append(list,
			forwarded("udp", in(client, server, 17, sport, dport)),
			forwarded("tcp", in(client, server, 6, sport, dport)),
			forwarded("udp from elsewhere", in("203.0.113.9", server, 17, sport, dport)),
			forwarded("udp v6", in(client6, server6, 17, sport, dport)),
			forwarded("tcp v6", in("2001:db8::9", server6, 6, sport, dport)),
			delivered("udp to the router", local(in(client, host, 17, sport, dport))),
			delivered("tcp v6 to the router", local(in(client6, host6, 6, sport, dport))),
			sent("udp of the router", Packet{OIf: "h1", Src: addr("198.18.1.1"), Dst: addr(server), Proto: 17, SPort: sport, DPort: dport}),
		)
	}
	flow6, published := in(client6, server6, 17, ports+500, 1000), local(in(client, host, 17, ports+500, 8080))
	behind := func(p Packet) Packet { p.Status, p.OrigDst = StatusDNAT, addr(host); return p }
	back := reply(in(client, server, 17, ports+500, 80))
	return append(list,
		forwarded("first of a v6 flow", flow6),
		forwarded("v6 reply", reply(flow6)),
		forwarded("v6 established", established(flow6)),
		translated("published", published),
		forwarded("reply of published", behind(back)),
		translated("published, from elsewhere", local(in("203.0.113.9", host, 17, ports+501, 8080))),
		forwarded("published, routed", in(client, server, 17, ports+502, 80)),
		forwarded("echo", icmp(in(client, server, 1, ports, 0), 8)),
		forwarded("v6 echo", icmp(in(client6, server6, 58, ports, 0), 128)),
		forwarded("stray icmp error", with(icmp(in(client, server, 1, 0, 0), 3), func(p *Packet) { p.State = StateInvalid })),
		forwarded("icmpv6 over v4", with(icmp(in(client, server, 58, 0, 0), 128), func(p *Packet) { p.State = StateInvalid })),
		forwarded("udp with a VNI", with(in(client, server, 17, ports+503, 1005), func(p *Packet) { p.VNI = 0x616263 })),
		forwarded("udp with another VNI", with(in(client, server, 17, ports+504, 1005), func(p *Packet) { p.VNI = 0x616264 })),
		forwarded("another protocol", in([]string{client, "203.0.113.11"}[ports/1000%2], server, 200, 0, 0)),
	)
}

// kernelTables are rules for the probes to fall through. Every rule counts,
// but for those with a verdict map, which would count before they look.
func kernelTables() []*Table {
	rule := func(v Verdict, matches ...Match) Rule {
		return Rule{Matches: matches, Counter: true, Verdict: v}
	}
	none := Verdict{}
	fields := &Table{
		Name: "fields",
		Sets: []*Set{
			{Name: "links", Key: []Field{IIfName, OIfName}, Elements: map[Key]Element{{IIf: "h0", OIf: "h1"}: {}}},
			{Name: "ports", Key: []Field{Dport}, Elements: map[Key]Element{{Port: 80}: {}, {Port: 1005}: {}}},
			{Name: "sources4", Key: []Field{IPSaddr}, Interval: true, Ranges: ranges("198.18.0.0/24", "203.0.113.10-203.0.113.20")},
			{Name: "sources6", Key: []Field{IP6Saddr}, Interval: true, Ranges: ranges("fd00:18::/64")},
		},
	}
	seen := []Rule{
		rule(none),
		rule(none, Is(NFProto, NFProtoIPv4)),
		rule(none, Is(NFProto, NFProtoIPv4).Negate()),
		rule(none, Is(L4Proto, 6)),
		rule(none, Is(L4Proto, 6).Negate(), Is(Dport, 80)),
		rule(none, Between(L4Proto, 17, 100)),
		rule(none, Is(L4Proto, 6), Is(Dport, 80)),
		rule(none, Is(L4Proto, 17), Between(Dport, 1000, 1010)),
		rule(none, Is(L4Proto, 17), Between(Dport, 1000, 1010).Negate()),
		rule(none, Is(L4Proto, 17), Is(Sport, 20020), Is(Dport, 80)),
		rule(none, Within(IPSaddr, prefix("198.18.0.0/24"))),
		rule(none, Within(IPSaddr, prefix("198.18.0.0/24")).Negate()),
		rule(none, Within(IPSaddr, prefix("198.18.0.2/32"))),
		rule(none, Within(IP6Saddr, prefix("fd00:18::/63"))),
		rule(none, Within(IP6Daddr, prefix("fd00:18::/64")).Negate()),
		rule(none, Within(CtOrigIPDaddr, prefix("198.18.0.0/24"))),
		rule(none, Within(CtOrigIPDaddr, prefix("198.18.0.0/24")).Negate()),
		rule(none, Within(CtOrigIP6Daddr, prefix("fd00:18:1::/64"))),
		rule(none, Named(IIfName, "h0")),
		rule(none, Named(IIfName, "h0").Negate()),
		rule(none, Named(OIfName, "h*")),
		rule(none, Named(OIfName, "h*").Negate()),
		rule(none, HasBits(CtState, StateNew)),
		rule(none, HasBits(CtState, StateEstablished|StateInvalid)),
		rule(none, Is(CtState, StateNew)),
		rule(none, Is(CtState, StateNew).Negate()),
		rule(none, HasBits(CtStatus, StatusDNAT)),
		rule(none, Is(ICMPType, 8)),
		rule(none, Is(ICMPType, 8).Negate()),
		rule(none, Is(ICMPv6Type, 128)),
		rule(none, In("sources4", IPSaddr)),
		rule(none, In("sources4", IPSaddr).Negate()),
		rule(none, In("sources4", CtOrigIPDaddr)),
		rule(none, In("sources6", IP6Saddr).Negate()),
		rule(none, In("ports", Dport)),
		rule(none, Is(L4Proto, 17), Is(VNI, 0x616263)),
		rule(none, Is(L4Proto, 17), Is(VNI, 0x616263).Negate()),
		rule(none, In("links", IIfName, OIfName)),
		rule(none, In("links", IIfName, OIfName).Negate()),
	}
	for _, at := range []struct {
		name     string
		hook     Hook
		priority int
	}{{"early", Prerouting, PriorityRaw}, {"pre", Prerouting, -150}, {"in", Input, -10}, {"fwd_a", Forward, -10}, {"out_early", Output, PriorityRaw}, {"out_late", Output, -10}} {
		rules := seen
		if at.hook != Output {
			// The kernel knows of it where packets come in only.
			rules = append(slices.Clone(rules), rule(none, Is(IPsec, 0)), rule(none, Is(IPsec, 1)))
		}
		fields.Chains = append(fields.Chains, &Chain{Name: at.name, Hook: at.hook, Priority: at.priority, Policy: Accept, Rules: rules})
	}

	flow := hostTable()
	for _, s := range flow.Sets {
		switch s.Name {
		case "published4":
			s.Elements = map[Key]Element{
				endpoint("198.18.1.2", 17, 80): {Verdict: to(Goto, "from_trusted")},
				endpoint("198.18.1.2", 6, 22):  {Verdict: to(Goto, "from_any")},
			}
		case "published6":
			s.Elements = map[Key]Element{
				endpoint("fd00:18:1::2", 6, 80):    {Verdict: to(Goto, "from_any")},
				endpoint("fd00:18:1::2", 17, 1000): {Verdict: to(Jump, "from_any")},
			}
		case "trusted4":
			s.Ranges = ranges("198.18.0.0/24")
		case "inside":
			s.Elements = map[Key]Element{{IIf: "h1"}: {}}
		}
	}
	for _, c := range flow.Chains {
		for i := range c.Rules {
			c.Rules[i].Counter = c.Rules[i].VMap == nil && c.Rules[i].Limit == nil
		}
	}
	flow.Chains = append(flow.Chains,
		&Chain{Name: "passed", Hook: Forward, Policy: Accept, Rules: []Rule{rule(none)}},
		&Chain{Name: "taken", Hook: Input, Priority: 5, Policy: Accept, Rules: []Rule{rule(none), rule(to(Jump, "calls")), rule(none)}},
		&Chain{Name: "calls", Rules: []Rule{
			rule(to(Goto, "called"), Is(L4Proto, 17)), rule(none), rule(to(Return), Is(NFProto, NFProtoIPv6)), rule(to(Drop)),
		}},
		&Chain{Name: "called", Rules: []Rule{rule(to(Return), In("trusted4", IPSaddr)), rule(none)}},
	)
	return []*Table{fields, flow}
}
