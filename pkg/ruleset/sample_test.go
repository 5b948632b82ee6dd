package ruleset_test

import (
	"net/netip"
	"time"

	"github.com/nftfw/nftfw/pkg/addrset"
	. "github.com/nftfw/nftfw/pkg/ruleset"
)

// now is when the tests take place.
var now = time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC)

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func to(kind VerdictKind, chain ...string) Verdict {
	v := Verdict{Kind: kind}
	if len(chain) > 0 {
		v.Chain = chain[0]
	}
	return v
}

// ranges makes segments of address ranges; "203.0.113.0/24+1h" expires an hour
// after now.
func ranges(list ...string) *addrset.Segments {
	var segments []addrset.Segment
	for _, text := range list {
		var expires time.Time
		for i := range text {
			if text[i] == '+' {
				d, err := time.ParseDuration(text[i+1:])
				if err != nil {
					panic(err)
				}
				text, expires = text[:i], now.Add(d)
				break
			}
		}
		r, err := addrset.ParseRange(text)
		if err != nil {
			panic(err)
		}
		segments = append(segments, addrset.Segment{From: r.From, To: r.To, Expires: expires})
	}
	return addrset.SegmentsOf(segments...)
}

func port(proto uint8, port uint16) Key { return Key{Proto: proto, Port: port} }

func endpoint(a string, proto uint8, port uint16) Key {
	return Key{Addr: addr(a), Proto: proto, Port: port}
}

var (
	endpoint4 = []Field{IPDaddr, L4Proto, Dport}
	endpoint6 = []Field{IP6Daddr, L4Proto, Dport}
)

// hostTable is the table of a small Docker host, with everything that a real
// one has.
func hostTable() *Table {
	return &Table{
		Name: "nftfw",
		Sets: []*Set{
			{Name: "blocked4", Key: []Field{IPSaddr}, Interval: true, Ranges: ranges("203.0.113.66")},
			{Name: "blocked6", Key: []Field{IP6Saddr}, Interval: true},
			{Name: "by_host4", Key: []Field{CtOrigIPDaddr, IPDaddr, L4Proto, Dport}, Verdicts: true, Elements: map[Key]Element{
				{Orig: addr("198.51.100.2"), Addr: addr("172.17.0.4"), Proto: 6, Port: 443}: {Verdict: to(Goto, "from_any"), Comment: "0c6f"},
			}},
			{Name: "host_any", Key: []Field{L4Proto, Dport}, Verdicts: true, Elements: map[Key]Element{
				port(6, 22):     {Verdict: to(Goto, "from_any"), Origin: "policy.yaml:10"},
				port(6, 443):    {Verdict: to(Goto, "from_trusted")},
				port(17, 53):    {Verdict: to(Goto, "from_office")},
				port(17, 51820): {Verdict: to(Accept)},
			}},
			{Name: "inside", Key: []Field{IIfName}, Elements: map[Key]Element{
				{IIf: "docker0"}: {}, {IIf: "br-0123456789ab"}: {}, {IIf: "br-a"}: {},
			}},
			{Name: "observed4", Key: []Field{IPSaddr, IPDaddr, L4Proto, Dport}, Dynamic: true, Counter: true, Size: 64, Timeout: 90 * time.Minute},
			{Name: "office4", Key: []Field{IPSaddr}, Interval: true, Ranges: ranges("198.51.100.0/24")},
			{Name: "published4", Key: endpoint4, Verdicts: true, Counter: true, Elements: map[Key]Element{
				endpoint("172.17.0.2", 6, 80):  {Verdict: to(Goto, "from_any"), Comment: "0a1b", Origin: "label nftfw.expose.80"},
				endpoint("172.17.0.2", 17, 53): {Verdict: to(Goto, "from_trusted"), Comment: "0a1b"},
				endpoint("172.17.0.3", 6, 80):  {Verdict: to(Goto, "refuse"), Comment: "0b2c"},
				endpoint("172.17.0.10", 6, 80): {Verdict: to(Goto, "from_office"), Comment: "0b2d"},
			}},
			{Name: "published6", Key: endpoint6, Verdicts: true, Elements: map[Key]Element{
				endpoint("fd00::2", 6, 80): {Verdict: to(Goto, "from_trusted")},
			}},
			{Name: "trusted4", Key: []Field{IPSaddr}, Interval: true, Ranges: ranges(
				"192.0.2.10", "203.0.113.0/24+1h", "198.51.100.5-198.51.100.9", "10.0.0.0/8+36h", "100.64.0.1+5m10s")},
			{Name: "trusted6", Key: []Field{IP6Saddr}, Interval: true, Ranges: ranges("2001:db8:1::/48", "fe80::1-fe80::9+1h")},
		},
		Chains: []*Chain{
			{Name: "blocked", Hook: Prerouting, Priority: PriorityRaw - 10, Policy: Accept, Rules: []Rule{
				{Matches: []Match{Named(IIfName, "lo")}, Verdict: to(Accept)},
				{Matches: []Match{In("blocked4", IPSaddr)}, Counter: true, Verdict: to(Drop)},
				{Matches: []Match{In("blocked6", IP6Saddr)}, Counter: true, Verdict: to(Drop)},
			}},
			{Name: "forward", Hook: Forward, Priority: PriorityFilter - 10, Policy: Drop, Rules: []Rule{
				{Matches: []Match{HasBits(CtState, StateEstablished)}, Verdict: to(Accept)},
				{Matches: []Match{HasBits(CtState, StateRelated), Is(L4Proto, 1)}, Verdict: to(Accept)},
				{Matches: []Match{HasBits(CtState, StateRelated), Is(L4Proto, 58)}, Verdict: to(Accept)},
				{Matches: []Match{Within(CtOrigIPDaddr, prefix("127.0.0.0/8"))}, Verdict: to(Drop)},
				{Matches: []Match{In("inside", IIfName), In("inside", OIfName)}, Verdict: to(Jump, "between")},
				{Matches: []Match{In("inside", IIfName)}, Verdict: to(Accept)},
				{Matches: []Match{HasBits(CtStatus, StatusDNAT)}, VMap: &VMap{Key: []Field{CtOrigIPDaddr, IPDaddr, L4Proto, Dport}, Map: "by_host4"}},
				{Matches: []Match{HasBits(CtStatus, StatusDNAT)}, VMap: &VMap{Key: endpoint4, Map: "published4"}},
				{VMap: &VMap{Key: endpoint6, Map: "published6"}},
			}},
			{Name: "input", Hook: Input, Priority: PriorityFilter - 10, Policy: Drop, Rules: []Rule{
				{Matches: []Match{Named(IIfName, "lo")}, Verdict: to(Accept)},
				{Matches: []Match{Within(IPDaddr, prefix("127.0.0.0/8"))}, Verdict: to(Drop)},
				{Matches: []Match{Within(IP6Daddr, prefix("::1/128"))}, Verdict: to(Drop)},
				{Matches: []Match{HasBits(CtState, StateEstablished)}, Verdict: to(Accept)},
				{Matches: []Match{Is(ICMPType, 3)}, Verdict: to(Accept)},
				{Matches: []Match{Is(L4Proto, 58), Between(ICMPv6Type, 133, 137)}, Verdict: to(Accept)},
				{Matches: []Match{Is(NFProto, NFProtoIPv4), Is(L4Proto, 17), Is(Sport, 67), Is(Dport, 68)}, Verdict: to(Accept)},
				{Matches: []Match{Named(IIfName, "tailscale*")}, Verdict: to(Accept)},
				{VMap: &VMap{Key: []Field{L4Proto, Dport}, Map: "host_any"}},
				{Limit: &Limit{Rate: 10, Unit: "second"}, Counter: true, Log: &Log{Prefix: "input ", Group: 7}},
			}},
			{Name: "between", Rules: []Rule{{Matches: []Match{Is(L4Proto, 6), Between(Dport, 8000, 8010)}, Verdict: to(Return)}, {Verdict: to(Drop)}}},
			{Name: "from_any", Rules: []Rule{{Verdict: to(Accept)}}},
			{Name: "from_office", Rules: []Rule{{Matches: []Match{In("office4", IPSaddr)}, Verdict: to(Accept), Origin: "policy.yaml:20"}, {Verdict: to(Goto, "refuse")}}},
			{Name: "from_trusted", Rules: []Rule{
				{Matches: []Match{In("trusted4", IPSaddr)}, Verdict: to(Accept)},
				{Matches: []Match{In("trusted6", IP6Saddr)}, Verdict: to(Accept)},
				{Verdict: to(Goto, "refuse")},
			}},
			{Name: "refuse", Rules: []Rule{
				{Update: &Update{Set: "observed4", Key: []Field{IPSaddr, IPDaddr, L4Proto, Dport}}},
				{Limit: &Limit{Rate: 5, Unit: "minute", Burst: 20}, Log: &Log{Prefix: "refused ", Group: 7}},
				{Counter: true, Verdict: to(Drop)},
			}},
		},
	}
}

// everyType is a table with a set of every kind of key, to show how nft orders
// and wraps them.
func everyType() *Table {
	keys := func(list ...Key) map[Key]Element {
		m := make(map[Key]Element)
		for _, k := range list {
			m[k] = Element{}
		}
		return m
	}
	var ports, addrs, protos, types, names, pairs, addrs6 []Key
	for i := range 23 {
		ports = append(ports, Key{Port: uint16(i * 2801)})
		protos = append(protos, Key{Proto: uint8(i * 11)})
		types = append(types, Key{Type: uint8(i * 7)})
		addrs = append(addrs, Key{Addr: netip.AddrFrom4([4]byte{byte(i * 37), byte(i), 3, byte(200 - i)})})
		names = append(names, Key{IIf: "br-" + string(rune('a'+i))}, Key{IIf: string(rune('z'-i)) + "0"})
		pairs = append(pairs, Key{IIf: "in" + string(rune('a'+i)), OIf: "o" + string(rune('z'-i%7))})
		addrs6 = append(addrs6, Key{Addr: netip.AddrFrom16([16]byte{byte(i * 61), 0x20, 12: byte(i), 15: byte(255 - i)})})
	}
	addrs6 = append(addrs6, Key{Addr: addr("::1")}, Key{Addr: addr("::")}, Key{Addr: addr("::102:304")}, Key{Addr: addr("::1:0")}, Key{Addr: addr("1:0:0:2::3")})
	verdicts := map[Key]Element{}
	for i, k := range ports {
		verdicts[k] = Element{Verdict: []Verdict{to(Accept), to(Drop), to(Return), to(Jump, "sub"), to(Goto, "sub")}[i%5], Comment: "it's #{1}; $x"[:i%14]}
	}
	return &Table{
		Name: "types",
		Sets: []*Set{
			{Name: "a_everything4", Key: []Field{IPSaddr}, Interval: true, Ranges: ranges("0.0.0.0/0+30s")},
			{Name: "b_everything6", Key: []Field{IP6Saddr}, Interval: true, Ranges: ranges("::/0")},
			{Name: "c_edges4", Key: []Field{IPSaddr}, Interval: true, Ranges: ranges(
				"0.0.0.0", "0.0.0.1+1h", "0.0.0.2/31+2h", "2.0.0.0/7", "10.0.0.1-10.0.0.8", "224.0.0.0-255.255.255.254", "255.255.255.255+48h1m1s500ms")},
			{Name: "d_edges6", Key: []Field{IP6Saddr}, Interval: true, Ranges: ranges(
				"::-::5", "::1:2", "::1:0:0", "::ff00:0-::ff00:9", "2001:db8::/32", "ffff::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff+1s")},
			{Name: "e_addr4", Key: []Field{IPDaddr}, Counter: true, Elements: keys(addrs...)},
			{Name: "f_addr6", Key: []Field{IP6Daddr}, Elements: keys(addrs6...)},
			{Name: "g_empty", Key: []Field{IPDaddr, Dport}, Counter: true},
			{Name: "h_icmp", Key: []Field{ICMPType}, Elements: keys(types...)},
			{Name: "i_icmpv6", Key: []Field{ICMPv6Type}, Elements: keys(types...)},
			{Name: "j_ifname", Key: []Field{OIfName}, Elements: keys(names...)},
			{Name: "k_links", Key: []Field{IIfName, OIfName}, Elements: keys(pairs...)},
			{Name: "l_ports", Key: []Field{Dport}, Counter: true, Elements: keys(ports...)},
			{Name: "m_protos", Key: []Field{L4Proto}, Elements: keys(protos...)},
			{Name: "n_verdicts", Key: []Field{Dport}, Verdicts: true, Elements: verdicts},
			{Name: "o_wide", Key: []Field{IIfName, IP6Saddr, L4Proto, Sport}, Elements: keys(
				Key{IIf: "eth0", Addr: addr("fd00::1"), Proto: 6, Port: 1}, Key{IIf: "eth0", Addr: addr("fd00::2"), Proto: 6, Port: 1},
				Key{IIf: "eth1", Addr: addr("fd00::1"), Proto: 17, Port: 256}, Key{IIf: "veth", Addr: addr("fd00::1"), Proto: 112, Port: 1})},
		},
		Chains: []*Chain{{Name: "sub"}},
	}
}

// priorities has a base chain at each hook at telling priorities.
func priorities() *Table {
	t := &Table{Name: "priorities"}
	for _, h := range []Hook{Prerouting, Input, Forward, Output, Postrouting} {
		for i, p := range []int{-400, -311, -310, -300, -290, -225, -160, -111, -110, -100, -90, -11, -10, -1, 0, 1, 10, 11, 40, 50, 61, 90, 100, 110, 300} {
			t.Chains = append(t.Chains, &Chain{
				Name: string(h) + string(rune('a'+i)), Hook: h, Priority: p, Policy: []VerdictKind{Accept, Drop}[i%2],
			})
		}
	}
	return t
}
