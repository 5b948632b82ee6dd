package nft

import (
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/ruleset"
)

// pick returns one of the values.
func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

// randomTable makes a valid table out of a small stock of names and values, so
// that two of them have much in common and differ in every way that a table can.
func randomTable(r *rand.Rand, now time.Time) *ruleset.Table {
	t := &ruleset.Table{Name: "rnd"}
	regular := []string{"alpha", "beta", "gamma", "delta"}
	regular = regular[:r.IntN(len(regular)+1)]
	for i, name := range []string{"m0", "m1", "s0", "s1", "s2"} {
		if r.IntN(5) > 0 {
			t.Sets = append(t.Sets, randomSet(r, name, i < 2, regular, now))
		}
	}
	for _, c := range []ruleset.Chain{
		{Name: "in", Hook: ruleset.Input, Priority: pick(r, -10, -10, -10, -10, -10, -10, -10, -11)},
		{Name: "fwd_", Hook: ruleset.Forward, Priority: -10},
		{Name: "out", Hook: ruleset.Output, Priority: -10},
	} {
		if r.IntN(4) > 0 {
			c.Policy = pick(r, ruleset.Accept, ruleset.Drop)
			c.Rules = randomRules(r, true, t.Sets, regular)
			t.Chains = append(t.Chains, &c)
		}
	}
	for i, name := range regular {
		t.Chains = append(t.Chains, &ruleset.Chain{Name: name, Rules: randomRules(r, false, t.Sets, regular[i+1:])})
	}
	return t
}

func randomSet(r *rand.Rand, name string, verdicts bool, chains []string, now time.Time) *ruleset.Set {
	s := &ruleset.Set{Name: name, Verdicts: verdicts}
	odd := r.IntN(20) == 0 // of another type than the set of this name mostly is
	counts := odd || r.IntN(20) == 0
	if !verdicts && (name == "s2") == odd {
		s.Interval = true
		s.Key = []ruleset.Field{map[string]ruleset.Field{"s0": ruleset.IPSaddr, "s1": ruleset.IP6Saddr, "s2": ruleset.IPSaddr}[name]}
		s.Ranges = randomRanges(r, s.Key[0] == ruleset.IP6Saddr, now)
		s.Part = pick(r, ruleset.Whole, ruleset.Whole, ruleset.Wide, ruleset.Rest)
		if r.IntN(12) == 0 {
			s.Interval, s.Part = false, pick(r, ruleset.Hosts, ruleset.Lasting)
		}
		if s.Part == ruleset.Lasting {
			s.Size = pick[uint32](r, 16, 64)
		}
		return s
	}
	s.Key = []ruleset.Field{ruleset.IPDaddr, ruleset.L4Proto, ruleset.Dport}
	switch {
	case odd:
		s.Key = []ruleset.Field{ruleset.L4Proto, ruleset.Dport}
	case name == "s2":
		s.Key = []ruleset.Field{ruleset.IIfName}
	}
	s.Counter = counts
	s.Elements = map[ruleset.Key]ruleset.Element{}
	for range r.IntN(20) {
		var k ruleset.Key
		for _, f := range s.Key {
			switch f {
			case ruleset.IPDaddr:
				k.Addr = netip.AddrFrom4([4]byte{172, 17, 0, byte(r.IntN(6))})
			case ruleset.L4Proto:
				k.Proto = pick[uint8](r, 6, 17)
			case ruleset.Dport:
				k.Port = uint16(r.IntN(4))
			default:
				k.IIf = pick(r, "eth0", "eth1", "docker0", "br-1")
			}
		}
		var e ruleset.Element
		if verdicts {
			e.Verdict = randomVerdict(r, chains)
		}
		e.Comment = pick(r, "", "", "a comment", strings.Repeat("x", maxComment))
		s.Elements[k] = e
	}
	return s
}

// randomRanges gives ranges that touch, leave gaps, and reach both ends of the
// address space. Half the time they are single addresses in runs.
func randomRanges(r *rand.Rand, six bool, now time.Time) *addrset.Segments {
	runs := r.IntN(2) == 0
	at := func(n int) netip.Addr {
		if n == 15 && !runs {
			n = 255
		}
		if runs {
			a := netip.MustParseAddr("20.0.0.250")
			if six {
				a = netip.MustParseAddr("2000::ffff:ffff:ffff:fffa")
			}
			for range n {
				a = a.Next()
			}
			return a
		}
		if six {
			return netip.AddrFrom16([16]byte{0: byte(n), 15: byte(n)})
		}
		return netip.AddrFrom4([4]byte{byte(n), 0, 0, byte(n)})
	}
	var list []addrset.Segment
	for n := 0; n < 16; n++ {
		if r.IntN(2) == 0 {
			continue
		}
		g := addrset.Segment{From: at(n), To: at(n)}
		if n < 15 && r.IntN(2) == 0 {
			g.To = at(n + 1).Prev()
		}
		if n == 15 && r.IntN(2) == 0 {
			g.To = netip.MustParseAddr("255.255.255.255") // the last there is
			if six {
				g.To = netip.MustParseAddr("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
			}
		}
		if r.IntN(3) == 0 {
			g.Expires = now.Add(time.Duration(1+r.IntN(3)) * time.Hour)
		}
		list = append(list, g)
	}
	return addrset.SegmentsOf(list...)
}

func randomVerdict(r *rand.Rand, chains []string) ruleset.Verdict {
	if len(chains) > 0 && r.IntN(2) == 0 {
		return ruleset.Verdict{Kind: pick(r, ruleset.Goto, ruleset.Jump), Chain: pick(r, chains...)}
	}
	return ruleset.Verdict{Kind: pick(r, ruleset.Accept, ruleset.Drop, ruleset.Return)}
}

func randomRules(r *rand.Rand, base bool, sets []*ruleset.Set, chains []string) []ruleset.Rule {
	var rules []ruleset.Rule
	for range r.IntN(5) {
		rule := ruleset.Rule{Counter: r.IntN(2) == 0}
		switch r.IntN(3) {
		case 0:
			rule.Matches = append(rule.Matches, ruleset.Is(ruleset.L4Proto, pick[uint32](r, 6, 17)), ruleset.Is(ruleset.Dport, uint32(r.IntN(3))))
		case 1:
			rule.Matches = append(rule.Matches, ruleset.Within(ruleset.IPSaddr, netip.MustParsePrefix(pick(r, "10.0.0.0/8", "10.0.0.0/9", "10.0.0.1/32"))))
		}
		rule.Verdict = randomVerdict(r, chains)
		if len(sets) > 0 && r.IntN(2) == 0 {
			s := pick(r, sets...)
			switch {
			case !s.Verdicts && s.Key[0] == ruleset.IP6Saddr:
				rule.Matches = []ruleset.Match{ruleset.In(s.Name, s.Key...)}
			case !s.Verdicts:
				rule.Matches = append(rule.Matches, ruleset.In(s.Name, s.Key...))
			case base: // elsewhere the map might lead back to the chain: a loop
				rule.Verdict = ruleset.Verdict{}
				rule.VMap = &ruleset.VMap{Key: s.Key, Map: s.Name}
			}
		}
		rules = append(rules, rule)
	}
	return rules
}

func TestAnyTableBecomesAnyOther(t *testing.T) {
	k := inNamespace(t)
	now := time.Now()
	replaced, changed, seeds := 0, 0, 40
	if testing.Short() {
		seeds /= 4
	}
	for seed := range uint64(seeds) {
		r := rand.New(rand.NewPCG(seed, 1))
		from, to := randomTable(r, now), randomTable(r, now)
		for _, table := range []*ruleset.Table{from, to} {
			if err := table.Validate(); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
		for _, way := range []string{"observed", "remembered"} {
			put(t, k, from)
			wantSettled(t, k, from)
			have := StateOf(from)
			if way == "observed" {
				have = observe(t, k, "rnd")
			}
			p := Diff(have, to, time.Now())
			if p.Replaces() {
				replaced++
			} else {
				changed++
			}
			commit(t, k, p)
			wantSettled(t, k, to)
			listing := nft(t, k, "", "list", "table", "inet", "rnd")
			if diff := cmp.Diff(blocks(to.Text(now)), blocks(listing)); diff != "" {
				t.Errorf("seed %d, %s: listing (-want +got):\n%s", seed, way, diff)
			}
		}
	}
	if replaced < seeds/4 || changed < seeds/4 {
		t.Errorf("%d tables were replaced and %d changed in parts; the test means to try both", replaced, changed)
	}
}
