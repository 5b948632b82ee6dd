package ruleset_test

import (
	"testing"

	. "github.com/nftfw/nftfw/pkg/ruleset"
)

func TestRuleString(t *testing.T) {
	office := []Match{Is(NFProto, NFProtoIPv4), Is(L4Proto, 6)}
	vmap := &VMap{Key: endpoint4, Map: "m"}
	tests := []struct {
		rule Rule
		want string
	}{
		{Rule{Verdict: to(Goto, "refuse")}, "goto refuse"},
		{Rule{Matches: office, Verdict: to(Accept)}, "meta nfproto ipv4 meta l4proto tcp accept"},
		{Rule{Matches: append(office, Is(Dport, 22)), Counter: true, Verdict: to(Accept)}, "meta nfproto ipv4 tcp dport 22 counter accept"},
		{Rule{Matches: append(office, Is(Dport, 22), Within(IPSaddr, prefix("10.0.0.0/8")))}, "tcp dport 22 ip saddr 10.0.0.0/8"},
		{Rule{Matches: office, VMap: vmap}, "ip daddr . meta l4proto . tcp dport vmap @m"},
		// What a statement parts from its match is not hidden any more.
		{Rule{Matches: office, Counter: true, VMap: vmap}, "meta nfproto ipv4 meta l4proto tcp counter ip daddr . meta l4proto . tcp dport vmap @m"},
		{Rule{Matches: office[:1], Limit: &Limit{Rate: 3, Unit: "day"}, VMap: vmap}, "meta nfproto ipv4 limit rate 3/day ip daddr . meta l4proto . th dport vmap @m"},
		{Rule{Matches: []Match{Is(NFProto, NFProtoIPv6), Is(L4Proto, 58)}}, "meta l4proto ipv6-icmp"},
		{Rule{Matches: []Match{Is(NFProto, NFProtoIPv6), Is(L4Proto, 1)}}, "meta nfproto ipv6 meta l4proto icmp"},
		{Rule{Matches: []Match{Is(NFProto, NFProtoIPv4), Within(CtOrigIPDaddr, prefix("10.0.0.1/32"))}}, "meta nfproto ipv4 ct original ip daddr 10.0.0.1"},
		{Rule{Matches: []Match{Is(L4Proto, 58), Is(ICMPv6Type, 135)}}, "icmpv6 type nd-neighbor-solicit"},
		{Rule{Matches: []Match{Is(L4Proto, 6).Negate(), Is(Dport, 22)}}, "meta l4proto != tcp th dport 22"},
		{Rule{Matches: []Match{HasBits(CtState, StateNew|StateInvalid), Is(CtState, StateNew)}}, "ct state invalid,new ct state == new"},
		{Rule{Matches: []Match{Is(L4Proto, 17), Is(Dport, 4789), Is(VNI, 4097), Is(IPsec, 0)}, Verdict: to(Drop)}, "udp dport 4789 @th,96,24 0x1001 meta ipsec missing drop"},
		{Rule{Matches: []Match{Named(OIfName, "tun*").Negate()}, Log: &Log{Group: 0}}, `oifname != "tun*" log group 0`},
		{Rule{Limit: &Limit{Rate: 1, Unit: "hour", Burst: 5}, Log: &Log{Prefix: "a ", Group: 2}}, `limit rate 1/hour log prefix "a " group 2`},
	}
	for _, tt := range tests {
		if got := tt.rule.String(); got != tt.want {
			t.Errorf("rule %q, want %q", got, tt.want)
		}
	}
}

// TestListingKeepsWhatStatementsPart shows where the rules of TestRuleString
// about hidden matches come from.
func TestListingKeepsWhatStatementsPart(t *testing.T) {
	table := around(
		Rule{Matches: []Match{Is(NFProto, NFProtoIPv4), Is(L4Proto, 6)}, Counter: true, VMap: &VMap{Key: endpoint4, Map: "ends4"}},
		Rule{Matches: []Match{Is(NFProto, NFProtoIPv4)}, Limit: &Limit{Rate: 3, Unit: "day"}, VMap: &VMap{Key: endpoint4, Map: "ends4"}},
	)
	if err := table.Validate(); err != nil {
		t.Fatal(err)
	}
	checkListing(t, table)
}

func TestKeyFormat(t *testing.T) {
	tests := []struct {
		key    Key
		fields []Field
		want   string
	}{
		{endpoint("172.17.0.2", 6, 80), endpoint4, "172.17.0.2 . tcp . 80"},
		{Key{Addr: addr("fd00::1"), Proto: 200}, []Field{IP6Saddr, L4Proto}, "fd00::1 . 200"},
		{Key{IIf: "a", OIf: "b"}, []Field{IIfName, OIfName}, `"a" . "b"`},
		{Key{IIf: "a"}, []Field{OIfName}, `"a"`},
		{Key{Orig: addr("10.0.0.1"), Addr: addr("10.0.0.2")}, []Field{CtOrigIPDaddr, IPDaddr}, "10.0.0.1 . 10.0.0.2"},
		{Key{Type: 8}, []Field{ICMPType}, "echo-request"},
		{Key{Type: 8}, []Field{ICMPv6Type}, "8"},
		{Key{Addr: addr("::ffff:0:1.2.3.4")}, []Field{IP6Saddr}, "::ffff:0:102:304"},
		{Key{Addr: addr("::1.2.3.4")}, []Field{IP6Saddr}, "::1.2.3.4"},
	}
	for _, tt := range tests {
		if got := tt.key.Format(tt.fields); got != tt.want {
			t.Errorf("key %s, want %s", got, tt.want)
		}
	}
}
