package addrset

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// crowded gives a random entry among so many addresses that most overlap
// others: IPv4, or IPv6 with its addresses on both sides of a word's end.
func crowded(rng *rand.Rand, addresses uint32) Entry {
	from := rng.Uint32N(addresses)
	to := from
	switch rng.IntN(20) {
	case 0:
		to = from + rng.Uint32N(addresses-from)
	case 1, 2, 3:
		to = min(addresses-1, from+rng.Uint32N(9))
	}
	e := Entry{Source: []Source{Policy, Runtime}[rng.IntN(2)], Comment: []string{"", "x"}[rng.IntN(2)]}
	if rng.IntN(2) == 0 {
		e.Range = Range{v4(from + 0x0a00ff00).addr(), v4(to + 0x0a00ff00).addr()}
	} else {
		base := v6{1 << 60, ^uint64(0) - 5000}
		add := func(n uint32) netip.Addr {
			a := v6{base.hi, base.lo + uint64(n)}
			if a.lo < base.lo {
				a.hi++
			}
			return a.addr()
		}
		e.Range = Range{add(from), add(to)}
	}
	if rng.IntN(3) == 0 {
		e.Expires = epoch.Add(time.Duration(1+rng.IntN(9)) * time.Minute)
	}
	return e
}

// TestChangesOverManyPages changes sets of many pages, by one entry and by
// thousands, and compares each with the set that is made of its entries anew.
func TestChangesOverManyPages(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	var s *Set
	now := epoch
	for round := range 60 {
		before4, before6 := s.Segments4(), s.Segments6()
		had := s
		what := "add"
		n := []int{1, 1, 1, 3, 100, 4000}[rng.IntN(6)]
		switch k := rng.IntN(10); {
		case k < 6 || s.Len() == 0:
			var list []Entry
			for range n {
				list = append(list, crowded(rng, 20000))
			}
			s = s.Add(list...)
		case k < 9:
			what = "delete"
			all := s.Entries()
			gone := map[Source][]Range{}
			for range n {
				e := all[rng.IntN(len(all))]
				gone[e.Source] = append(gone[e.Source], e.Range)
			}
			for src, ranges := range gone {
				s = s.Delete(src, ranges...)
			}
		default:
			what = "prune"
			now = now.Add(20 * time.Second)
			s = s.Prune(now)
		}
		what = fmt.Sprintf("round %d: %s %d: %d entries", round, what, n, s.Len())
		anew := New(s.Entries()...)
		if !slices.Equal(s.Entries(), anew.Entries()) {
			t.Fatalf("%s: not canonical", what)
		}
		for i, pair := range [][3]*Segments{{before4, s.Segments4(), anew.Segments4()}, {before6, s.Segments6(), anew.Segments6()}} {
			before, got, want := pair[0], pair[1], pair[2]
			if !slices.Equal(got.All(), want.All()) || !got.Equal(want) || got.Few() != count(got, Segment.Few) || got.Lasting() != count(got, Segment.Lasting) {
				t.Fatalf("%s: family %d: %d pieces, want %d", what, i, got.Len(), want.Len())
			}
			checkChanges(t, what, before, got)
		}
		checkSmallPages(t, what, had, s)
	}
	if s.Len() < 3*pageSize {
		t.Fatalf("%d entries at the end: no many pages", s.Len())
	}
}

func count(s *Segments, is func(Segment) bool) Count {
	var c Count
	for g := range s.Each() {
		if is(g) {
			c.Pieces++
			for range g.Addrs() {
				c.Addrs++
			}
		}
	}
	return c
}

// TestFew asks how many addresses there are up to another, at the ends of words and
// of the address space too.
func TestFew(t *testing.T) {
	for text, few := range map[string]bool{
		"192.0.2.1-192.0.2.1":                           true,
		"192.0.2.1-192.0.2.4":                           true,
		"192.0.2.1-192.0.2.5":                           false,
		"192.0.2.254-192.0.3.1":                         true,
		"255.255.255.252-255.255.255.255":               true,
		"0.0.0.0-255.255.255.255":                       false,
		"2001:db8::1-2001:db8::4":                       true,
		"2001:db8::1-2001:db8::5":                       false,
		"2001:db8::ffff:ffff:ffff:fffe-2001:db8:0:1::1": true,
		"2001:db8::ffff:ffff:ffff:fffe-2001:db8:0:1::2": false,
		"2001:db8::1-2001:db8:0:1::1":                   false,
		"2001:db8::2-2001:db8:0:1::1":                   false,
		"2001:db8::1-2001:db8:0:2::1":                   false,
		"::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff":    false,
	} {
		r, err := ParseRange(text)
		if err != nil {
			t.Fatal(err)
		}
		g := Segment{From: r.From, To: r.To}
		if got := g.Few(); got != few {
			t.Errorf("%s: few: %v", text, got)
		}
		if !few {
			continue
		}
		list := slices.Collect(g.Addrs())
		if s := SegmentsOf(g); s.Few() != (Count{1, len(list)}) || s.Lasting() != s.Few() || list[0].From != g.From || list[len(list)-1].To != g.To {
			t.Errorf("%s: counts %v and %v, %v one by one", text, s.Few(), s.Lasting(), list)
		}
	}
}

// checkChanges applies what differs to the list before.
func checkChanges(t *testing.T, what string, before, now *Segments) {
	t.Helper()
	pieces := map[Segment]bool{}
	for g := range before.Each() {
		pieces[g] = true
	}
	for c := range now.Changes(before) {
		if c.Old == c.New {
			t.Fatalf("%s: %v is no change", what, c)
		}
		if c.Old != (Segment{}) {
			if !pieces[c.Old] {
				t.Fatalf("%s: %v was not there", what, c.Old)
			}
			delete(pieces, c.Old)
		}
		if c.New != (Segment{}) {
			pieces[c.New] = true
		}
	}
	if len(pieces) != now.Len() {
		t.Fatalf("%s: the changes give %d pieces, want %d", what, len(pieces), now.Len())
	}
	for g := range now.Each() {
		if !pieces[g] {
			t.Fatalf("%s: the changes do not give %v", what, g)
		}
	}
}

// checkSmallPages makes sure that many changes do not leave many pages with
// little in them, and that one change leaves most as they were.
func checkSmallPages(t *testing.T, what string, had, s *Set) {
	t.Helper()
	f, _ := s.families()
	if f == nil {
		return
	}
	if got, most := len(f.records.list), f.records.n/(smallPage/2)+2; got > most {
		t.Fatalf("%s: %d pages for %d entries", what, got, f.records.n)
	}
	if had == nil || had.v4 == nil || s.Len()-had.Len() != 1 {
		return
	}
	shared := 0
	for i := range f.records.list {
		if slices.ContainsFunc(had.v4.records.list, func(p page[v4, record[v4]]) bool { return p.same(&f.records.list[i]) }) {
			shared++
		}
	}
	if len(f.records.list)-shared > 4 {
		t.Fatalf("%s: only %d of %d pages are shared", what, shared, len(f.records.list))
	}
}

func TestExpiriesBeyondTheirRange(t *testing.T) {
	far := time.Date(12000, 1, 1, 0, 0, 0, 0, time.UTC)
	s := New(Entry{Range: RangeOf(netip.MustParsePrefix("192.0.2.1/32")), Expires: far, Source: Runtime})
	if got := s.Entries()[0].Expires; got.Year() != 2262 {
		t.Errorf("expires %v", got)
	}
	if s.Prune(epoch) != s || s.Segments4().Len() != 1 {
		t.Error("it is gone before its time")
	}
}
