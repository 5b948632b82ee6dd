package ruleset_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	. "github.com/nftfw/nftfw/pkg/ruleset"
)

// TestRandomRulesListAsWritten makes rules of every form at random, in one
// table, and compares what nft lists with what was written.
func TestRandomRulesListAsWritten(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	table := randomTable(rand.New(rand.NewPCG(seed, 0)), 400)
	if err := table.Validate(); err != nil {
		t.Fatal(err)
	}
	checkListing(t, table)
}

// randomTable has one chain with n rules that Validate accepts.
func randomTable(r *rand.Rand, n int) *Table {
	table := &Table{Name: "made", Chains: []*Chain{{Name: "rules"}, {Name: "sub"}}}
	keys := [][]Field{
		{IPSaddr},
		{IP6Saddr},
		{L4Proto},
		{Dport},
		{IIfName},
		{ICMPType},
		{ICMPv6Type},
		{IPSaddr, Dport},
		{L4Proto, Dport},
		{IPSaddr, L4Proto, Dport},
		{IP6Saddr, L4Proto, Dport},
		{CtOrigIPDaddr, IPDaddr, L4Proto, Dport},
		{IIfName, OIfName},
		{Sport, IPSaddr},
	}
	for i, key := range keys {
		table.Sets = append(table.Sets,
			&Set{Name: fmt.Sprintf("m%02d", i), Key: key, Verdicts: true},
			&Set{Name: fmt.Sprintf("s%02d", i), Key: key})
	}
	sortSets(table)
	for len(table.Chains[0].Rules) < n {
		rule := randomRule(r, table)
		probe := &Table{Name: "probe", Sets: table.Sets, Chains: []*Chain{{Name: "rules", Rules: []Rule{rule}}, {Name: "sub"}}}
		if probe.Validate() == nil {
			table.Chains[0].Rules = append(table.Chains[0].Rules, rule)
		}
	}
	return table
}

func sortSets(table *Table) {
	for i := range table.Sets {
		for j := i; j > 0 && table.Sets[j].Name < table.Sets[j-1].Name; j-- {
			table.Sets[j], table.Sets[j-1] = table.Sets[j-1], table.Sets[j]
		}
	}
}

func randomRule(r *rand.Rand, table *Table) Rule {
	var rule Rule
	for range r.IntN(5) {
		rule.Matches = append(rule.Matches, randomMatch(r, table))
	}
	if r.IntN(8) == 0 {
		rule.Matches = append(rule.Matches, Is(L4Proto, 17), Is(Sport, 67), Is(Dport, 68))
	}
	if r.IntN(6) == 0 {
		rule.Limit = &Limit{Rate: 1 + r.Uint64N(100), Unit: pick(r, "second", "minute", "hour", "day"), Burst: uint32(r.IntN(7))}
	}
	rule.Counter = r.IntN(4) == 0
	if r.IntN(6) == 0 {
		rule.Log = &Log{Prefix: pick(r, "", "drop ", "a'b;c"), Group: uint16(r.IntN(3))}
	}
	switch r.IntN(3) {
	case 0:
		s := table.Sets[r.IntN(len(table.Sets))]
		rule.VMap = &VMap{Key: otherSide(r, s.Key), Map: s.Name}
	case 1:
		rule.Verdict = pick(r, to(Accept), to(Drop), to(Return), to(Jump, "sub"), to(Goto, "sub"))
	}
	return rule
}

// otherSide now and then looks the other end of the packet up.
func otherSide(r *rand.Rand, key []Field) []Field {
	key = append([]Field(nil), key...)
	swap := map[Field]Field{
		IPSaddr: IPDaddr, IPDaddr: IPSaddr, IP6Saddr: IP6Daddr, IP6Daddr: IP6Saddr,
		Sport: Dport, Dport: Sport, IIfName: OIfName, OIfName: IIfName,
	}
	for i, f := range key {
		if other, ok := swap[f]; ok && r.IntN(2) == 0 {
			key[i] = other
		}
	}
	return key
}

func randomMatch(r *rand.Rand, table *Table) Match {
	var m Match
	switch r.IntN(11) {
	case 0:
		s := table.Sets[r.IntN(len(table.Sets))]
		m = In(s.Name, otherSide(r, s.Key)...)
	case 1:
		m = Is(NFProto, pick[uint32](r, NFProtoIPv4, NFProtoIPv6, NFProtoIPv4, 3))
	case 2:
		m = Is(L4Proto, pick[uint32](r, 1, 6, 17, 58, 50, 132, 33, 136, 200, 0))
	case 3:
		m = Is(pick(r, Sport, Dport), r.Uint32N(65536))
	case 4:
		low := r.Uint32N(60000)
		m = Between(pick(r, Sport, Dport), low, low+1+r.Uint32N(5000))
	case 5:
		m = Is(pick(r, ICMPType, ICMPv6Type), r.Uint32N(256))
	case 6:
		low := r.Uint32N(200)
		m = Between(pick(r, ICMPType, ICMPv6Type, L4Proto), low, low+1+r.Uint32N(55))
	case 7:
		f := pick(r, IPSaddr, IPDaddr, CtOrigIPDaddr, IP6Saddr, IP6Daddr, CtOrigIP6Daddr)
		m = Within(f, randomPrefix(r, strings.Contains(f.String(), "ip6")))
	case 8:
		m = Named(pick(r, IIfName, OIfName), pick(r, "eth0", "tun*", "br-0123456789ab", "a.b@c", "0x", "lo"))
	case 9:
		m = HasBits(pick(r, CtState, CtStatus), 1+r.Uint32N(127))
		return m
	case 10:
		m = Is(pick(r, CtState, CtStatus), pick[uint32](r, 0, StateEstablished, StateNew|StateEstablished, StateUntracked, StatusDNAT))
	}
	if r.IntN(4) == 0 {
		m = m.Negate()
	}
	return m
}

func randomPrefix(r *rand.Rand, six bool) netip.Prefix {
	if six {
		var a [16]byte
		for i := range a {
			if r.IntN(2) == 0 {
				a[i] = byte(r.Uint32())
			}
		}
		return netip.PrefixFrom(netip.AddrFrom16(a), r.IntN(129))
	}
	a := netip.AddrFrom4([4]byte{byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32())})
	return netip.PrefixFrom(a, r.IntN(33))
}

func pick[T any](r *rand.Rand, list ...T) T { return list[r.IntN(len(list))] }
