package nft

import (
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nftfw/nftfw/pkg/addrset"
	. "github.com/nftfw/nftfw/pkg/ruleset"
)

var (
	counters = regexp.MustCompile(`counter packets \d+ bytes \d+`)
	expiry   = regexp.MustCompile(`timeout \S+ expires [^ ,]+`)
)

func segments(t testing.TB, expires time.Time, ranges ...string) *addrset.Segments {
	t.Helper()
	var list []addrset.Segment
	for _, s := range ranges {
		r, err := addrset.ParseRange(s)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, addrset.Segment{From: r.From, To: r.To, Expires: expires})
	}
	return addrset.SegmentsOf(list...)
}

// rich is a table with everything that a Table can say.
func rich(t testing.TB) *Table {
	addr := netip.MustParseAddr
	prefix := netip.MustParsePrefix
	to := func(k VerdictKind, chain ...string) Verdict {
		return Verdict{Kind: k, Chain: strings.Join(chain, "")}
	}
	matches := []Match{
		Is(NFProto, NFProtoIPv4), Is(NFProto, NFProtoIPv6),
		Is(L4Proto, 6), Is(L4Proto, 6).Negate(), Between(L4Proto, 1, 6),
		Is(Sport, 1), Is(Dport, 80), Is(Dport, 80).Negate(), Between(Dport, 80, 90), Between(Dport, 80, 90).Negate(),
		Is(ICMPType, 8), Is(ICMPv6Type, 128), Between(ICMPv6Type, 133, 137),
		Within(IPSaddr, prefix("10.0.0.0/8")), Within(IPSaddr, prefix("10.0.0.0/8")).Negate(),
		Within(IPDaddr, prefix("10.128.0.0/9")), Within(IPDaddr, prefix("10.0.0.0/13")).Negate(),
		Within(IPSaddr, prefix("192.0.2.0/24")), Within(IPSaddr, prefix("192.0.2.7/32")), Within(IPDaddr, prefix("192.0.2.7/32")).Negate(),
		Within(IP6Saddr, prefix("fd00::/8")), Within(IP6Saddr, prefix("fe80::/10")), Within(IP6Daddr, prefix("2001:db8::/32")),
		Within(IP6Daddr, prefix("2001:db8::1/128")), Within(IP6Daddr, prefix("fe80::/10")).Negate(),
		Within(CtOrigIPDaddr, prefix("127.0.0.0/8")), Within(CtOrigIPDaddr, prefix("127.0.0.0/9")), Within(CtOrigIPDaddr, prefix("127.0.0.1/32")),
		Within(CtOrigIP6Daddr, prefix("::1/128")), Within(CtOrigIP6Daddr, prefix("fd00::/8")),
		Named(IIfName, "docker0"), Named(IIfName, "docker0").Negate(), Named(OIfName, "tun*"), Named(OIfName, "tun*").Negate(),
		HasBits(CtState, StateEstablished), HasBits(CtState, StateInvalid|StateNew|StateRelated|StateUntracked), HasBits(CtStatus, StatusDNAT),
		In("trusted4", IPSaddr), In("trusted4", IPDaddr).Negate(), In("trusted6", IP6Saddr),
		In("inside", IIfName), In("inside", OIfName).Negate(), In("pairs", IIfName, OIfName),
		In("icmps", ICMPType), In("icmps6", ICMPv6Type), In("protos", L4Proto), In("ports", Dport),
	}
	var rules []Rule
	for _, m := range matches {
		rules = append(rules, Rule{Matches: []Match{m}, Verdict: to(Accept)})
	}
	rules = append(rules,
		Rule{Matches: []Match{Within(IPSaddr, prefix("10.0.0.0/8")), Within(IPDaddr, prefix("10.0.0.0/8")), In("inside", IIfName)}, Counter: true, Verdict: to(Drop)},
		Rule{Matches: []Match{Within(IP6Saddr, prefix("fe80::/10")), Is(L4Proto, 17), Is(Dport, 546)}, Verdict: to(Accept)},
		Rule{Matches: []Match{Is(L4Proto, 6), Is(Dport, 22)}, Verdict: to(Accept)},
		Rule{Matches: []Match{Is(IPsec, 0)}, Verdict: to(Accept)},
		Rule{Matches: []Match{Is(L4Proto, 17), Is(Dport, 4789), Is(VNI, 0x1001), Is(IPsec, 1)}, Verdict: to(Drop)},
		Rule{Limit: &Limit{Rate: 10, Unit: "second", Burst: 5}, Counter: true, Log: &Log{Prefix: "nftfw drop ", Group: 3}},
		Rule{Limit: &Limit{Rate: 3, Unit: "minute", Burst: 20}, Log: &Log{Prefix: "x", Group: 0}, Verdict: to(Return)},
		Rule{Matches: []Match{HasBits(CtStatus, StatusDNAT)}, VMap: &VMap{Key: []Field{IPDaddr, L4Proto, Dport}, Map: "published4"}},
		Rule{VMap: &VMap{Key: []Field{IP6Daddr, L4Proto, Dport}, Map: "published6"}},
		Rule{VMap: &VMap{Key: []Field{CtOrigIPDaddr, IPDaddr, L4Proto, Dport}, Map: "reached4"}},
		Rule{VMap: &VMap{Key: []Field{CtOrigIP6Daddr, IP6Daddr, L4Proto, Dport}, Map: "reached6"}},
		Rule{VMap: &VMap{Key: []Field{L4Proto, Dport}, Map: "host_any"}},
		Rule{VMap: &VMap{Key: []Field{IIfName}, Map: "links"}},
		Rule{Counter: true, Verdict: to(Jump, "from_office")},
		Rule{Verdict: to(Goto, "refuse")},
	)
	flow4 := []Field{IPSaddr, L4Proto, Sport, IPDaddr, Dport}
	flow6 := []Field{IP6Saddr, L4Proto, Sport, IP6Daddr, Dport}
	rules = append(rules,
		Rule{Matches: []Match{In("flow4", flow4...)}, Update: &Update{Set: "flow4", Key: flow4}, Counter: true, Verdict: to(Drop)},
		Rule{Matches: []Match{Is(NFProto, NFProtoIPv4), Is(L4Proto, 6)}, Update: &Update{Set: "flow4", Key: flow4, Timeout: time.Hour}, Verdict: to(Drop)},
		Rule{Update: &Update{Set: "flow6", Key: flow6, Timeout: time.Minute}, Limit: &Limit{Rate: 1, Unit: "hour", Burst: 5}, Log: &Log{Group: 1, Prefix: "y"}},
	)
	rules = append(rules, Rule{Update: &Update{Set: "hits4", Key: []Field{IPSaddr, IPDaddr, L4Proto, Dport}}})
	soon := time.Now().Add(time.Hour)
	name := func(s string) Key { return Key{IIf: s} }
	return &Table{
		Name: "nftfw",
		Sets: []*Set{
			{Name: "empty4", Key: []Field{IPSaddr}, Interval: true},
			{Name: "everyone4", Key: []Field{IPSaddr}, Interval: true, Ranges: segments(t, time.Time{}, "0.0.0.0/0")},
			{Name: "everyone6", Key: []Field{IP6Saddr}, Interval: true, Ranges: segments(t, soon, "::/0")},
			{Name: "flow4", Key: flow4, Dynamic: true, Size: 65536, Timeout: 3 * time.Minute},
			{Name: "flow6", Key: flow6, Dynamic: true, Size: 10},
			{Name: "hits4", Key: []Field{IPSaddr, IPDaddr, L4Proto, Dport}, Dynamic: true, Counter: true, Size: 100, Timeout: time.Hour},
			{Name: "host_any", Key: []Field{L4Proto, Dport}, Verdicts: true, Counter: true, Elements: map[Key]Element{
				{Proto: 6, Port: 22}: {Verdict: to(Accept)}, {Proto: 17, Port: 53}: {Verdict: to(Goto, "from_office"), Comment: "dns"},
			}},
			{Name: "icmps", Key: []Field{ICMPType}, Elements: map[Key]Element{{Type: 8}: {}, {Type: 11}: {}}},
			{Name: "icmps6", Key: []Field{ICMPv6Type}, Elements: map[Key]Element{{Type: 128}: {}, {Type: 2}: {}}},
			{Name: "inside", Key: []Field{IIfName}, Elements: map[Key]Element{name("docker0"): {}, name("br-0123456789ab"): {}}},
			{Name: "links", Key: []Field{IIfName}, Verdicts: true, Elements: map[Key]Element{name("docker0"): {Verdict: to(Drop)}, name("eth0"): {Verdict: to(Jump, "refuse")}}},
			{Name: "pairs", Key: []Field{IIfName, OIfName}, Counter: true, Elements: map[Key]Element{{IIf: "docker0", OIf: "eth0"}: {}, {IIf: "a", OIf: "b"}: {Comment: "both"}}},
			{Name: "ports", Key: []Field{Dport}, Counter: true, Elements: map[Key]Element{{Port: 80}: {}, {Port: 443}: {}, {Port: 8080}: {}}},
			{Name: "protos", Key: []Field{L4Proto}, Elements: map[Key]Element{{Proto: 6}: {}, {Proto: 17}: {}}},
			{Name: "published4", Key: []Field{IPDaddr, L4Proto, Dport}, Verdicts: true, Elements: map[Key]Element{
				{Addr: addr("172.17.0.2"), Proto: 6, Port: 80}:   {Verdict: to(Goto, "from_office"), Comment: strings.Repeat("0123456789abcdef", 4)},
				{Addr: addr("172.17.0.3"), Proto: 132, Port: 80}: {Verdict: to(Drop)},
			}},
			{Name: "published6", Key: []Field{IP6Daddr, L4Proto, Dport}, Verdicts: true, Elements: map[Key]Element{
				{Addr: addr("fd00::2"), Proto: 6, Port: 80}: {Verdict: to(Goto, "from_office"), Comment: "c"},
			}},
			{Name: "reached4", Key: []Field{CtOrigIPDaddr, IPDaddr, L4Proto, Dport}, Verdicts: true, Elements: map[Key]Element{
				{Orig: addr("198.51.100.2"), Addr: addr("172.17.0.2"), Proto: 6, Port: 80}: {Verdict: to(Return)},
			}},
			{Name: "reached6", Key: []Field{CtOrigIP6Daddr, IP6Daddr, L4Proto, Dport}, Verdicts: true, Elements: map[Key]Element{
				{Orig: addr("2001:db8::1"), Addr: addr("fd00::2"), Proto: 6, Port: 80}: {Verdict: to(Accept)},
			}},
			{Name: "trusted4", Key: []Field{IPSaddr}, Interval: true, Ranges: addrset.SegmentsOf(append(
				slicesOf(segments(t, time.Time{}, "192.0.2.10", "203.0.113.0/24", "198.51.100.5-198.51.100.9", "224.0.0.0-255.255.255.255")),
				slicesOf(segments(t, soon, "192.0.2.11", "203.0.114.0-203.0.115.7"))...)...)},
			{Name: "trusted6", Key: []Field{IP6Saddr}, Interval: true, Ranges: addrset.SegmentsOf(append(
				slicesOf(segments(t, time.Time{}, "2001:db8:1::/48", "2001:db8::5-2001:db8::9", "ffff::/16")),
				slicesOf(segments(t, soon, "2001:db8:2::1"))...)...)},
		},
		Chains: []*Chain{
			{Name: "guard", Hook: Prerouting, Priority: PriorityRaw - 5, Policy: Accept, Rules: []Rule{{Verdict: to(Accept)}}},
			{Name: "forwarded", Hook: Forward, Priority: PriorityFilter - 10, Policy: Drop, Rules: rules},
			{Name: "inbound", Hook: Input, Priority: PriorityFilter - 10, Policy: Accept},
			{Name: "outbound", Hook: Output, Priority: PriorityFilter - 11, Policy: Accept, Rules: []Rule{{Counter: true}}},
			{Name: "from_office", Rules: []Rule{{Matches: []Match{In("trusted4", IPSaddr)}, Verdict: to(Accept)}, {Verdict: to(Goto, "refuse")}}},
			{Name: "refuse", Rules: []Rule{{Counter: true}, {Verdict: to(Drop)}}},
		},
	}
}

func slicesOf(s *addrset.Segments) []addrset.Segment {
	return append([]addrset.Segment(nil), s.All()...)
}

func TestCommitIsWhatNftWouldLoad(t *testing.T) {
	k := inNamespace(t)
	want := rich(t)
	if err := want.Validate(); err != nil {
		t.Fatal(err)
	}
	put(t, k, want)
	wantSettled(t, k, want)
	text := want.Text(time.Now())
	listing := nft(t, k, "", "list", "table", "inet", "nftfw")
	if diff := cmp.Diff(expiry.ReplaceAllString(text, "timeout T expires T"), expiry.ReplaceAllString(listing, "timeout T expires T")); diff != "" {
		t.Errorf("listing (-want +got):\n%s", diff)
	}

	// The other way round: what nft makes of the text is the table.
	nft(t, k, "", "flush", "ruleset")
	nft(t, k, text, "-f", "-")
	wantSettled(t, k, want)
}
