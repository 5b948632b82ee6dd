package ruleset_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	. "github.com/nftfw/nftfw/pkg/ruleset"
)

// around gives a table with one chain that has these rules, and some sets.
func around(rules ...Rule) *Table {
	return &Table{
		Name: "t",
		Sets: []*Set{
			{Name: "addr4", Key: []Field{IPSaddr}, Interval: true},
			{Name: "ends4", Key: endpoint4, Verdicts: true},
		},
		Chains: []*Chain{{Name: "base", Hook: Input, Policy: Drop}, {Name: "c", Rules: rules}},
	}
}

func withSet(s *Set) *Table { return &Table{Name: "t", Sets: []*Set{s}} }

func ladder(n int) *Table {
	t := &Table{Name: "t", Chains: []*Chain{{Name: "base", Hook: Input, Policy: Drop, Rules: []Rule{{Verdict: to(Jump, "c1")}}}}}
	for i := 1; i <= n; i++ {
		c := &Chain{Name: fmt.Sprintf("c%d", i)}
		if i < n {
			c.Rules = []Rule{{Verdict: to(Goto, fmt.Sprintf("c%d", i+1))}}
		}
		t.Chains = append(t.Chains, c)
	}
	return t
}

func TestValidateRefuses(t *testing.T) {
	tests := []struct {
		name  string
		table *Table
		want  string // part of the error
	}{
		{"empty name", &Table{}, `table "": no name`},
		{"keyword", &Table{Name: "fwd"}, "keyword"},
		{"digit first", &Table{Name: "1a"}, "not a name"},
		{"blank", &Table{Name: "a b"}, "not a name"},
		{"long name", &Table{Name: strings.Repeat("a", 128)}, "longer than 127"},
		{"no such chain", around(Rule{Verdict: to(Goto, "x")}), `chain "c" rule 0: goto x: no such chain`},
		{"jump to a base chain", around(Rule{Verdict: to(Jump, "base")}), "a base chain"},
		{"jump to nowhere", around(Rule{Verdict: to(Jump)}), "no such chain"},
		{"accept of a chain", around(Rule{Verdict: to(Accept, "c")}), "names a chain"},
		{"empty rule", around(Rule{}), "nothing in it"},
		{"no such set", around(Rule{Matches: []Match{In("x", IPSaddr)}}), "no such set: @x"},
		{"lookup of another type", around(Rule{Matches: []Match{In("addr4", IP6Saddr)}}), "do not fit @addr4"},
		{"lookup in a map", around(Rule{Matches: []Match{In("ends4", endpoint4...)}}), "is a verdict map"},
		{"vmap of a set", around(Rule{VMap: &VMap{Key: []Field{IPSaddr}, Map: "addr4"}}), "no verdict map"},
		{"vmap and verdict", around(Rule{Verdict: to(Drop), VMap: &VMap{Key: endpoint4, Map: "ends4"}}), "both a verdict"},
		{"no field", around(Rule{Matches: []Match{{Op: OpNum}}}), "a match has one field"},
		{"two fields", around(Rule{Matches: []Match{{Op: OpNum, Fields: []Field{Sport, Dport}}}}), "a match has one field"},
		{"port too big", around(Rule{Matches: []Match{Is(Dport, 65536)}}), "not an operand"},
		{"inverted range", around(Rule{Matches: []Match{Between(Dport, 10, 9)}}), "not an operand"},
		{"v6 prefix for ip", around(Rule{Matches: []Match{Within(IPSaddr, prefix("fd00::/8"))}}), "not an operand"},
		{"interface name too long", around(Rule{Matches: []Match{Named(IIfName, "0123456789abcdef")}}), "not an operand"},
		{"any interface", around(Rule{Matches: []Match{Named(IIfName, "*")}}), "not an operand"},
		{"quote in a name", around(Rule{Matches: []Match{Named(IIfName, `a"b`)}}), "not an operand"},
		{"none of the bits", around(Rule{Matches: []Match{HasBits(CtState, 6).Negate()}}), "not an operand"},
		{"two bits at once", around(Rule{Matches: []Match{Is(CtState, 6)}}), "not an operand"},
		{"both families", around(Rule{Matches: []Match{Within(IPSaddr, prefix("10.0.0.0/8")), In("addr4", IPSaddr), Is(NFProto, NFProtoIPv6)}}), "contradicts the family"},
		{"two protocols", around(Rule{Matches: []Match{Is(L4Proto, 6), Is(ICMPType, 3)}}), "contradicts the protocol"},
		{"ports of esp", around(Rule{Matches: []Match{Is(L4Proto, 50), Is(Dport, 3)}}), "no ports"},
		{"dport ahead of sport", around(Rule{Matches: []Match{Is(L4Proto, 17), Is(Dport, 3), Is(Sport, 3)}}), "two ports"},
		{"ports of no protocol", around(Rule{Matches: []Match{Is(Sport, 3), Is(Dport, 3)}}), "two ports"},
		{"neither port", around(Rule{Matches: []Match{Is(L4Proto, 17), Is(Sport, 3).Negate(), Is(Dport, 3).Negate()}}), "two ports"},
		{"limit of nothing", around(Rule{Limit: &Limit{Unit: "second"}}), "no limit"},
		{"limit by fortnight", around(Rule{Limit: &Limit{Rate: 1, Unit: "fortnight"}}), "no limit"},
		{"log prefix", around(Rule{Log: &Log{Prefix: "a$b"}}), "log prefix"},
		{"policy of a regular chain", &Table{Name: "t", Chains: []*Chain{{Name: "c", Policy: Drop}}}, "neither policy"},
		{"no policy", &Table{Name: "t", Chains: []*Chain{{Name: "c", Hook: Input}}}, "accept or drop"},
		{"no such hook", &Table{Name: "t", Chains: []*Chain{{Name: "c", Hook: "egress", Policy: Drop}}}, "no such hook"},
		{"chain twice", &Table{Name: "t", Chains: []*Chain{{Name: "c"}, {Name: "c"}}}, "another chain"},
		{"sets out of order", &Table{Name: "t", Sets: []*Set{{Name: "b", Key: []Field{Dport}}, {Name: "a", Key: []Field{Dport}}}}, "does not sort after"},
		{"no key", withSet(&Set{Name: "s"}), "no key"},
		{"state as key", withSet(&Set{Name: "s", Key: []Field{CtState}}), "cannot be part of a key"},
		{"two ports in a key", withSet(&Set{Name: "s", Key: []Field{Sport, Dport}}), "same member"},
		{"interval of ports", withSet(&Set{Name: "s", Key: []Field{Dport}, Interval: true}), "one address"},
		{"interval map", withSet(&Set{Name: "s", Key: []Field{IPSaddr}, Interval: true, Verdicts: true}), "ranges only"},
		{"v6 ranges in a v4 set", withSet(&Set{Name: "s", Key: []Field{IPSaddr}, Interval: true, Ranges: ranges("::1")}), "no range of ipv4_addr"},
		{"v6 key in a v4 set", withSet(&Set{Name: "s", Key: []Field{IPSaddr}, Elements: map[Key]Element{{Addr: addr("::1")}: {}}}), "no ipv4_addr"},
		{"mapped key", withSet(&Set{Name: "s", Key: []Field{IPSaddr}, Elements: map[Key]Element{{Addr: addr("::ffff:1.2.3.4")}: {}}}), "no ipv4_addr"},
		{"more than the key", withSet(&Set{Name: "s", Key: []Field{Dport}, Elements: map[Key]Element{{Port: 1, Proto: 6}: {}}}), "more than the fields"},
		{"wildcard element", withSet(&Set{Name: "s", Key: []Field{IIfName}, Elements: map[Key]Element{{IIf: "a*"}: {}}}), "no interface name"},
		{"no verdict in a map", withSet(&Set{Name: "s", Key: []Field{Dport}, Verdicts: true, Elements: map[Key]Element{{}: {}}}), "no verdict"},
		{"verdict in a set", withSet(&Set{Name: "s", Key: []Field{Dport}, Elements: map[Key]Element{{}: {Verdict: to(Drop)}}}), "no map"},
		{"element of no chain", withSet(&Set{Name: "s", Key: []Field{Dport}, Verdicts: true, Elements: map[Key]Element{{}: {Verdict: to(Goto, "x")}}}), "no such chain"},
		{"long comment", withSet(&Set{Name: "s", Key: []Field{Dport}, Elements: map[Key]Element{{}: {Comment: strings.Repeat("x", 129)}}}), "longer than 128"},
		{"quote in a comment", withSet(&Set{Name: "s", Key: []Field{Dport}, Elements: map[Key]Element{{}: {Comment: `"`}}}), "cannot quote"},
		{"jump to itself", around(Rule{Verdict: to(Jump, "c")}), "lead back"},
		{"too deep", ladder(16), "16 deep"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.table.Validate()
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error %v, want one with %q", err, tt.want)
			}
			var invalid *InvalidError
			if !errors.As(err, &invalid) {
				t.Errorf("%T, want an *InvalidError in it", err)
			}
		})
	}
}

func TestValidateCircleThroughMap(t *testing.T) {
	table := around(Rule{VMap: &VMap{Key: endpoint4, Map: "ends4"}})
	table.Sets[1].Elements = map[Key]Element{endpoint("10.0.0.1", 6, 80): {Verdict: to(Goto, "c")}}
	if err := table.Validate(); err == nil || !strings.Contains(err.Error(), "lead back") {
		t.Errorf("error %v, want a circle", err)
	}
}

func TestValidateReportsEverything(t *testing.T) {
	err := around(Rule{Verdict: to(Goto, "x")}, Rule{Verdict: to(Jump, "y")}).Validate()
	if got := strings.Count(err.Error(), "\n") + 1; got != 2 {
		t.Errorf("%d mistakes, want 2:\n%v", got, err)
	}
}

func TestValidateAccepts(t *testing.T) {
	for _, table := range append(samples(), ladder(15), around(
		Rule{Matches: []Match{Within(IPSaddr, netip.MustParsePrefix("10.0.0.0/8")).Negate(), In("addr4", IPDaddr).Negate()}, Verdict: to(Drop)},
	)) {
		if err := table.Validate(); err != nil {
			t.Errorf("table %q: %v", table.Name, err)
		}
	}
}

// TestKernelAgreesOnDepth loads what Validate takes and what it refuses.
func TestKernelAgreesOnDepth(t *testing.T) {
	for depth, loads := range map[int]bool{15: true, 16: false} {
		ns := newNetns(t)
		_, diag, err := ns.try(ladder(depth).Text(now), "nft", "-f", "-")
		if (err == nil) != loads || (ladder(depth).Validate() == nil) != loads {
			t.Errorf("%d deep: nft %v %s, Validate %v", depth, err, diag, ladder(depth).Validate())
		}
	}
}

// TestKeywords asks nft about words of its grammar and about words that make
// good names: what Validate takes nft has to load and list.
func TestKeywords(t *testing.T) {
	words := strings.Fields(`accept add ah all and arp chain comment counter ct day delete dnat drop dst dup
		dynamic element elements eq esp fib flags flow forward from_any fwd goto group hour host hook icmp inet input insert
		inside interval ip ip6 jump last le limit ll log map mark meta meter monitor name nh not office osf out output
		over policy postrouting prerouting queue quota random rate raw redirect refuse reject replace return rule rt set
		size snat socket srh swarm table tcp th time timeout tproxy trusted type typeof udp update vlan vmap xor
		established filter foreign published4 egress ingress state in to a-b a.b _x X9`)
	ns := newNetns(t)
	refused := 0
	for _, word := range words {
		table := &Table{
			Name: word,
			Sets: []*Set{{Name: word, Key: []Field{IPSaddr}}, {Name: word + "_map", Key: []Field{IPSaddr}, Verdicts: true, Elements: map[Key]Element{
				{Addr: addr("10.0.0.1")}: {Verdict: to(Goto, word)},
			}}},
			Chains: []*Chain{
				{Name: "a_" + word, Rules: []Rule{{Matches: []Match{In(word, IPSaddr), HasBits(CtState, StateNew)}, Limit: &Limit{Rate: 1, Unit: "hour"}, Verdict: to(Goto, word)}}},
				{Name: word},
			},
		}
		if table.Validate() != nil {
			refused++
			continue
		}
		text := table.Text(now)
		ns.run(t, text, "nft", "-f", "-")
		if got := ns.run(t, "", "nft", "list", "table", "inet", word); normalize(got) != normalize(text) {
			t.Errorf("table %q lists as\n%s", word, got)
		}
	}
	if refused == 0 || refused == len(words) {
		t.Errorf("%d of %d words refused", refused, len(words))
	}
	for _, word := range []string{"forward", "input", "output", "inside", "foreign", "raw", "refuse", "from_any"} {
		if !slices.Contains(words, word) || (&Table{Name: word}).Validate() != nil {
			t.Errorf("%q is refused, and is a good name", word)
		}
	}
}
