package nft

import (
	"fmt"
	"maps"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/ruleset"
)

// published makes a table with a verdict map of n elements.
func published(n int) *ruleset.Table {
	elements := make(map[ruleset.Key]ruleset.Element, n)
	for i := range n {
		elements[publishedKey(i)] = ruleset.Element{Verdict: ruleset.Verdict{Kind: ruleset.Goto, Chain: "from_any"}, Comment: fmt.Sprint(i)}
	}
	key := []ruleset.Field{ruleset.IPDaddr, ruleset.L4Proto, ruleset.Dport}
	return &ruleset.Table{
		Name: "nftfw",
		Sets: []*ruleset.Set{{Name: "published4", Key: key, Verdicts: true, Elements: elements}},
		Chains: []*ruleset.Chain{
			{Name: "forwarded", Hook: ruleset.Forward, Priority: -10, Policy: ruleset.Accept, Rules: []ruleset.Rule{
				{VMap: &ruleset.VMap{Key: key, Map: "published4"}}, {Counter: true, Verdict: ruleset.Verdict{Kind: ruleset.Drop}},
			}},
			{Name: "from_any", Rules: []ruleset.Rule{{Verdict: ruleset.Verdict{Kind: ruleset.Accept}}}},
		},
	}
}

func publishedKey(i int) ruleset.Key {
	return ruleset.Key{Addr: netip.AddrFrom4([4]byte{172, byte(17 + i>>16), byte(i >> 8), byte(i)}), Proto: 6, Port: 80}
}

// with returns t with another element in its map.
func with(t *ruleset.Table, k ruleset.Key, e ruleset.Element) *ruleset.Table {
	set := *t.Sets[0]
	set.Elements = maps.Clone(set.Elements)
	set.Elements[k] = e
	out := *t
	out.Sets = []*ruleset.Set{&set}
	return &out
}

func TestPlanIsAsLargeAsTheChange(t *testing.T) {
	one := ruleset.Element{Verdict: ruleset.Verdict{Kind: ruleset.Accept}}
	for _, n := range []int{0, 10, 10_000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			base := published(n)
			cases := []struct {
				name string
				want *ruleset.Table
				size int
			}{
				{"nothing", base, 0},
				{"equal but another map", published(n), 0},
				{"one more", with(base, publishedKey(n), one), 1},
			}
			if n > 0 {
				cases = append(cases, struct {
					name string
					want *ruleset.Table
					size int
				}{"another verdict", with(base, publishedKey(0), one), 2})
			}
			for _, c := range cases {
				if got := Diff(StateOf(base), c.want, time.Now()).Size(); got != c.size {
					t.Errorf("%s: size %d, want %d", c.name, got, c.size)
				}
			}
		})
	}
}

// A walk of the large map would take a thousand times as long as one of the small.
func TestSharedContentsAreNotWalked(t *testing.T) {
	quickest := func(elements int) time.Duration {
		big := published(elements)
		other := *big
		other.Sets = []*ruleset.Set{{}}
		*other.Sets[0] = *big.Sets[0]
		have, best := StateOf(big), time.Hour
		for range 20 {
			began := time.Now()
			for range 100 {
				if p := Diff(have, &other, time.Now()); !p.Empty() {
					t.Fatal("plan is not empty")
				}
			}
			best = min(best, time.Since(began))
		}
		return best
	}
	if small, large := quickest(30), quickest(30_000); large > 20*small {
		t.Errorf("comparing a shared map takes %v with 30 elements and %v with 30,000", small, large)
	}
}

func TestDiffOfExpiries(t *testing.T) {
	now := time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)
	in := func(d time.Duration) time.Time { return now.Add(d) }
	table := func(list ...addrset.Segment) *ruleset.Table {
		return &ruleset.Table{Name: "t", Sets: []*ruleset.Set{{
			Name: "s", Key: []ruleset.Field{ruleset.IPSaddr}, Interval: true, Ranges: addrset.SegmentsOf(list...),
		}}}
	}
	seg := func(s string, expires time.Time) addrset.Segment {
		r, err := addrset.ParseRange(s)
		if err != nil {
			t.Fatal(err)
		}
		return addrset.Segment{From: r.From, To: r.To, Expires: expires}
	}
	var never time.Time
	read := func(t *ruleset.Table) *State { // as if it had been observed
		s := StateOf(t)
		s.sets[0] = setState{name: "s", def: s.sets[0].def, elements: pieceElements(t.Sets[0])}
		return s
	}
	for _, c := range []struct {
		name string
		have *State
		want *ruleset.Table
		line []string
	}{
		{"same", StateOf(table(seg("10.0.0.0/8", in(time.Hour)))), table(seg("10.0.0.0/8", in(time.Hour))), nil},
		{
			"renewed", StateOf(table(seg("10.0.0.0/8", in(time.Hour)))), table(seg("10.0.0.0/8", in(time.Hour+time.Second))),
			[]string{"- element s 10.0.0.0/8 expires 2025-01-01T01:00:00Z", "+ element s 10.0.0.0/8 expires 2025-01-01T01:00:01Z"},
		},
		{"read back a little off", read(table(seg("10.0.0.0/8", in(time.Hour)))), table(seg("10.0.0.0/8", in(time.Hour+time.Second))), nil},
		{
			"read back far off", read(table(seg("10.0.0.0/8", in(time.Hour)))), table(seg("10.0.0.0/8", in(time.Hour+3*time.Second))),
			[]string{"- element s 10.0.0.0/8 expires 2025-01-01T01:00:00Z", "+ element s 10.0.0.0/8 expires 2025-01-01T01:00:03Z"},
		},
		{
			"now for ever", StateOf(table(seg("10.0.0.0/8", in(time.Hour)))), table(seg("10.0.0.0/8", never)),
			[]string{"- element s 10.0.0.0/8 expires 2025-01-01T01:00:00Z", "+ element s 10.0.0.0/8"},
		},
		{"expired is not deleted", StateOf(table(seg("10.0.0.0/8", in(-time.Second)))), table(), nil},
		{"expired is not added", StateOf(table()), table(seg("10.0.0.0/8", in(0))), nil},
		{"about to expire is left alone", StateOf(table(seg("10.0.0.0/8", in(10*time.Millisecond)))), table(), nil},
		{
			"long expired and renewed is added", StateOf(table(seg("10.0.0.0/8", in(-time.Minute)))), table(seg("10.0.0.0/8", in(time.Hour))),
			[]string{"+ element s 10.0.0.0/8 expires 2025-01-01T01:00:00Z"},
		},
		{
			"just expired and renewed is deleted first", StateOf(table(seg("10.0.0.0/8", in(-time.Millisecond)))), table(seg("10.0.0.0/8", in(time.Hour))),
			[]string{"- element s 10.0.0.0/8 expires 2024-12-31T23:59:59Z", "+ element s 10.0.0.0/8 expires 2025-01-01T01:00:00Z"},
		},
		{
			"same and long expired", StateOf(table(seg("10.0.0.0/8", in(-time.Hour)))), table(seg("10.0.0.0/8", in(-time.Hour)), seg("11.0.0.0/8", never)),
			[]string{"+ element s 11.0.0.0/8"},
		},
		{
			"grown", StateOf(table(seg("10.0.0.0/9", never))), table(seg("10.0.0.0/8", never)),
			[]string{"- element s 10.0.0.0/9", "+ element s 10.0.0.0/8"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.line, Diff(c.have, c.want, now).Lines()); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPlanForPeople(t *testing.T) {
	before := published(2)
	after := with(before, publishedKey(0), ruleset.Element{Verdict: ruleset.Verdict{Kind: ruleset.Drop}})
	after.Chains = []*ruleset.Chain{
		{Name: "forwarded", Hook: ruleset.Forward, Priority: -10, Policy: ruleset.Drop, Rules: append([]ruleset.Rule{
			{Matches: []ruleset.Match{ruleset.HasBits(ruleset.CtState, ruleset.StateEstablished)}, Verdict: ruleset.Verdict{Kind: ruleset.Accept}},
		},
			before.Chains[0].Rules[0])},
		before.Chains[1],
		{Name: "refuse", Rules: []ruleset.Rule{{Verdict: ruleset.Verdict{Kind: ruleset.Drop}}}},
	}
	for _, c := range []struct {
		name string
		have *State
		want *ruleset.Table
		line []string
	}{
		{"changed", StateOf(before), after, []string{
			"+ chain refuse",
			"- chain forwarded { type filter hook forward priority -10; policy accept; }",
			"+ chain forwarded { type filter hook forward priority -10; policy drop; }",
			"+ rule forwarded ct state established accept",
			"- rule forwarded counter drop",
			"+ rule refuse drop",
			`- element published4 172.17.0.0 . tcp . 80 comment "0" : goto from_any`,
			"+ element published4 172.17.0.0 . tcp . 80 : drop",
		}},
		{"removed", StateOf(before), nil, []string{"- table inet nftfw"}},
		{"nothing to remove", StateOf(nil), nil, nil},
		{"made", StateOf(nil), published(1), []string{
			"+ table inet nftfw",
			"+ map published4 { type ipv4_addr . inet_proto . inet_service : verdict }",
			"+ chain forwarded { type filter hook forward priority -10; policy accept; }",
			"+ chain from_any",
			"+ rule forwarded ip daddr . meta l4proto . th dport vmap @published4",
			"+ rule forwarded counter drop",
			"+ rule from_any accept",
			`+ element published4 172.17.0.0 . tcp . 80 comment "0" : goto from_any`,
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := Diff(c.have, c.want, time.Now())
			if diff := cmp.Diff(c.line, p.Lines()); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
		})
	}
}

// A line says who asked for what it is about, and whose element it is.
func TestPlanNamesOrigins(t *testing.T) {
	owned := func(verdict ruleset.VerdictKind, origin string) ruleset.Element {
		return ruleset.Element{Verdict: ruleset.Verdict{Kind: verdict}, Comment: "0a1b", Origin: origin}
	}
	before := with(published(1), publishedKey(0), owned(ruleset.Accept, "label nftfw.expose"))
	before.Chains = []*ruleset.Chain{{Name: "c", Rules: []ruleset.Rule{{Counter: true, Origin: "policy.yaml:3"}}}}
	after := with(before, publishedKey(0), owned(ruleset.Drop, "policy.yaml:9"))
	after.Chains = []*ruleset.Chain{{Name: "c", Rules: []ruleset.Rule{{Verdict: ruleset.Verdict{Kind: ruleset.Drop}, Origin: "policy.yaml:4"}}}}
	want := []Line{
		{Text: "- rule c counter", Origin: "policy.yaml:3"},
		{Text: "+ rule c drop", Origin: "policy.yaml:4"},
		{Text: `- element published4 172.17.0.0 . tcp . 80 comment "0a1b" : accept`, Origin: "label nftfw.expose", Owner: "0a1b"},
		{Text: `+ element published4 172.17.0.0 . tcp . 80 comment "0a1b" : drop`, Origin: "policy.yaml:9", Owner: "0a1b"},
	}
	if diff := cmp.Diff(want, Diff(StateOf(before), after, time.Now()).Changes()); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
}
