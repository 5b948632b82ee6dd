package addrset

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// The model works on small windows of the address space: for every address in
// them, the latest expiry of the entries that cover it, found by looking at
// each entry. The windows lie at both ends of both families, where arithmetic
// goes wrong, and around the step from one word of an IPv6 address to the next.
var (
	windowStarts = []string{"0.0.0.0", "10.0.0.250", "255.255.255.240", "::", "fd00::ffff:ffff:ffff:fff8", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff0"}
	epoch        = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
)

const windowSize = 16

func window(start string) []netip.Addr {
	list := []netip.Addr{netip.MustParseAddr(start)}
	for len(list) < windowSize {
		list = append(list, list[len(list)-1].Next())
	}
	return list
}

func universe() []netip.Addr {
	var all []netip.Addr
	for _, s := range windowStarts {
		all = append(all, window(s)...)
	}
	return all
}

func genRange() *rapid.Generator[Range] {
	return rapid.Custom(func(t *rapid.T) Range {
		switch rapid.IntRange(0, 19).Draw(t, "kind") {
		case 0:
			return RangeOf(netip.MustParsePrefix("0.0.0.0/0"))
		case 1:
			return RangeOf(netip.MustParsePrefix("::/0"))
		case 2:
			// Across windows, to the end of the family.
			return Range{netip.MustParseAddr("10.0.0.253"), netip.MustParseAddr("255.255.255.255")}
		}
		w := window(rapid.SampledFrom(windowStarts).Draw(t, "window"))
		i := rapid.IntRange(0, windowSize-1).Draw(t, "from")
		j := rapid.IntRange(i, windowSize-1).Draw(t, "to")
		return Range{w[i], w[j]}
	})
}

func genEntry() *rapid.Generator[Entry] {
	return rapid.Custom(func(t *rapid.T) Entry {
		e := Entry{
			Range:   genRange().Draw(t, "range"),
			Source:  rapid.SampledFrom([]Source{Policy, Runtime}).Draw(t, "source"),
			Comment: rapid.SampledFrom([]string{"", "x"}).Draw(t, "comment"),
		}
		if n := rapid.IntRange(0, 4).Draw(t, "expires"); n > 0 {
			e.Expires = epoch.Add(time.Duration(n) * time.Minute)
		}
		return e
	})
}

type modelKey struct {
	r   Range
	src Source
}

type model map[modelKey]Entry

func (m model) clone() model {
	c := model{}
	for k, e := range m {
		c[k] = e
	}
	return c
}

func (m model) entries() []Entry {
	var list []Entry
	for _, e := range m {
		list = append(list, e)
	}
	slices.SortFunc(list, func(a, b Entry) int {
		if c := a.Range.Compare(b.Range); c != 0 {
			return c
		}
		if a.Source < b.Source {
			return -1
		}
		return 1
	})
	return list
}

// latest returns the latest expiry of the entries that hold a.
func (m model) latest(a netip.Addr) (expires time.Time, covered bool) {
	for _, e := range m {
		if a.BitLen() != e.Range.From.BitLen() || a.Compare(e.Range.From) < 0 || a.Compare(e.Range.To) > 0 {
			continue
		}
		switch {
		case !covered:
			expires, covered = e.Expires, true
		case expires.IsZero() || e.Expires.IsZero():
			expires = time.Time{}
		case e.Expires.After(expires):
			expires = e.Expires
		}
	}
	return expires, covered
}

// fatal is what *testing.T and *rapid.T have in common.
type fatal interface {
	Helper()
	Fatalf(format string, args ...any)
}

// checkSet compares a set with the model, address by address.
func checkSet(t fatal, s *Set, m model) {
	t.Helper()
	want := m.entries()
	if diff := cmp.Diff(want, s.Entries(), cmp.Comparer(func(a, b Entry) bool { return a == b })); diff != "" && len(want)+s.Len() > 0 {
		t.Fatalf("entries (-want +got):\n%s", diff)
	}
	for _, segs := range []*Segments{s.Segments4(), s.Segments6()} {
		checkShape(t, segs)
	}
	for _, a := range universe() {
		expires, covered := m.latest(a)
		segs := s.Segments6()
		if a.Is4() {
			segs = s.Segments4()
		}
		g, ok := segs.Lookup(a)
		if ok != covered || !g.Expires.Equal(expires) {
			t.Fatalf("%v: in %v until %v, want %v until %v\nsegments %v\nentries %v", a, ok, g.Expires, covered, expires, segs.All(), want)
		}
		if ok && !(Range{g.From, g.To}).Contains(a) {
			t.Fatalf("Lookup(%v) = %v", a, g)
		}
	}
	// Bounds outside of the windows show in the segments' own ends: each end
	// is one of an entry, or lies beside one.
	for _, g := range append(slices.Clone(s.Segments4().All()), s.Segments6().All()...) {
		ok4, ok6 := false, false
		for _, e := range want {
			ok4 = ok4 || g.From == e.Range.From || g.From == e.Range.To.Next()
			ok6 = ok6 || g.To == e.Range.To || g.To == e.Range.From.Prev()
		}
		if !ok4 || !ok6 {
			t.Fatalf("segment %v ends where no entry does", g)
		}
	}
}

func checkShape(t fatal, segs *Segments) {
	t.Helper()
	if segs != nil && segs.Len() == 0 {
		t.Fatalf("empty segments that are not nil")
	}
	list := segs.All()
	for i, g := range list {
		if !(Range{g.From, g.To}).IsValid() {
			t.Fatalf("segment %v is no range", g)
		}
		if i == 0 {
			continue
		}
		prev := list[i-1]
		if !prev.To.Less(g.From) {
			t.Fatalf("segments %v and %v are out of order or overlap", prev, g)
		}
		if prev.To.Next() == g.From && prev.Expires.Equal(g.Expires) {
			t.Fatalf("segments %v and %v should be one", prev, g)
		}
	}
}

func TestNewAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		list := rapid.SliceOfN(genEntry(), 0, 40).Draw(t, "entries")
		m := model{}
		for _, e := range list {
			m[modelKey{e.Range, e.Source}] = e
		}
		checkSet(t, New(list...), m)
	})
}

// TestChangesAgainstModel makes random changes one after the other, looks at
// every set on the way, and at the end once more at all of them: none may have
// been touched by what was made from it.
func TestChangesAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s *Set
		m := model{}
		type version struct {
			s *Set
			m model
		}
		var versions []version
		for range rapid.IntRange(1, 25).Draw(t, "steps") {
			before, had := s, m.clone()
			switch rapid.IntRange(0, 5).Draw(t, "step") {
			case 0, 1, 2:
				list := rapid.SliceOfN(genEntry(), 0, 6).Draw(t, "add")
				s = s.Add(list...)
				for _, e := range list {
					m[modelKey{e.Range, e.Source}] = e
				}
			case 3, 4:
				src := rapid.SampledFrom([]Source{Policy, Runtime}).Draw(t, "source")
				var gone []Range
				if len(m) > 0 {
					for _, e := range rapid.SliceOfN(rapid.SampledFrom(m.entries()), 0, 6).Draw(t, "delete") {
						gone = append(gone, e.Range)
					}
				}
				gone = append(gone, genRange().Draw(t, "perhaps missing"))
				s = s.Delete(src, gone...)
				for _, r := range gone {
					delete(m, modelKey{r, src})
				}
			case 5:
				now := epoch.Add(time.Duration(rapid.IntRange(0, 9).Draw(t, "now")) * 30 * time.Second)
				s = s.Prune(now)
				for k, e := range m {
					if !e.Expires.IsZero() && !e.Expires.After(now) {
						delete(m, k)
					}
				}
			}
			if same := fmt.Sprint(had.entries()) == fmt.Sprint(m.entries()); same != (s == before) {
				t.Fatalf("contents the same: %v; set the same: %v", same, s == before)
			}
			// Often not asked for, so that changes to sets whose segments
			// are not yet known are seen too.
			if rapid.Bool().Draw(t, "look") {
				checkSet(t, s, m)
				checkKept(t, before, s)
			}
			versions = append(versions, version{s, m.clone()})
		}
		for _, v := range versions {
			checkSet(t, v.s, v.m)
		}
	})
}

// checkKept looks at the promise about pointers.
func checkKept(t fatal, before, after *Set) {
	t.Helper()
	family := func(s *Set, is4 bool) []Entry {
		var list []Entry
		for _, e := range s.Entries() {
			if e.Range.Is4() == is4 {
				list = append(list, e)
			}
		}
		return list
	}
	for _, is4 := range []bool{true, false} {
		a, b := before.Segments6(), after.Segments6()
		if is4 {
			a, b = before.Segments4(), after.Segments4()
		}
		if slices.Equal(family(before, is4), family(after, is4)) && a != b {
			t.Fatalf("is4=%v: nothing changed, yet the pointer did", is4)
		}
	}
	if first4, first6 := after.Segments4(), after.Segments6(); first4 != after.Segments4() || first6 != after.Segments6() {
		t.Fatalf("segments were worked out twice")
	}
}

// TestPatchAgainstSweep changes many entries at once, more than a Set would
// patch for.
func TestPatchAgainstSweep(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		gen := rapid.Custom(func(t *rapid.T) Entry {
			e := genEntry().Draw(t, "entry")
			e.Source = Runtime
			return e
		}).Filter(func(e Entry) bool { return e.Range.Is4() })
		kept := rapid.SliceOfN(gen, 1, 20).Draw(t, "kept")
		gone := rapid.SliceOfN(gen, 0, 5).Draw(t, "gone")
		added := rapid.SliceOfN(gen, 1, 5).Draw(t, "added")
		var moved []span[v4]
		for _, e := range slices.Concat(gone, added) {
			moved = append(moved, span[v4]{numberOf[v4](e.Range.From), numberOf[v4](e.Range.To)})
		}
		// Those of kept come last, so that the same key among the others
		// replaces none of them.
		before, after := New(slices.Concat(gone, kept)...), New(slices.Concat(added, kept)...)
		got := patch(before.Segments4(), &after.v4.records, moved)
		if want := after.Segments4(); !got.Equal(want) {
			t.Fatalf("patched %v, want %v\nbefore %v", texts(got), texts(want), texts(before.Segments4()))
		}
		if got.Equal(before.Segments4()) && got != before.Segments4() {
			t.Fatal("equal segments, another pointer")
		}
	})
}

func TestCoveringAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := New(rapid.SliceOfN(genEntry(), 0, 20).Draw(t, "entries")...)
		a := rapid.SampledFrom(universe()).Draw(t, "address")
		now := epoch.Add(time.Duration(rapid.IntRange(0, 9).Draw(t, "now")) * 30 * time.Second)
		var want []Entry
		for _, e := range s.Entries() {
			if e.Range.Contains(a) && (e.Expires.IsZero() || now.Before(e.Expires)) {
				want = append(want, e)
			}
		}
		if got := s.Covering(a, now); !slices.Equal(got, want) {
			t.Fatalf("Covering(%v) = %v, want %v", a, got, want)
		}
	})
}

func TestCoversAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		outer := rapid.SliceOfN(genRange(), 0, 8).Draw(t, "outer")
		w := window(rapid.SampledFrom(windowStarts).Draw(t, "window"))
		i := rapid.IntRange(0, windowSize-1).Draw(t, "from")
		j := rapid.IntRange(i, windowSize-1).Draw(t, "to")
		want := true
		for _, a := range w[i : j+1] {
			want = want && slices.ContainsFunc(outer, func(r Range) bool { return r.Contains(a) })
		}
		if got := Covers(outer, Range{w[i], w[j]}); got != want {
			t.Fatalf("Covers = %v, want %v", got, want)
		}
	})
}

func TestSegmentsOfAgainstSet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := New(rapid.SliceOfN(genEntry(), 0, 20).Draw(t, "entries")...)
		for _, want := range []*Segments{s.Segments4(), s.Segments6()} {
			list := slices.Clone(want.All())
			if len(list) > 0 {
				list = rapid.Permutation(list).Draw(t, "order")
			}
			if got := SegmentsOf(list...); !got.Equal(want) {
				t.Fatalf("SegmentsOf = %v, want %v", got.All(), want.All())
			}
		}
	})
}
