package addrset

import (
	"cmp"
	"net/netip"
	"slices"
	"sort"
	"time"
)

// Source says who asked for an entry.
type Source string

// The sources.
const (
	Policy  Source = "policy"  // the policy file
	Runtime Source = "runtime" // a command
	Docker  Source = "docker"  // the engine: nodes of its swarm
)

// Entry is a range of addresses in a set.
type Entry struct {
	Range   Range
	Expires time.Time // zero = never; a Set keeps it in UTC without a monotonic reading
	Comment string
	Source  Source
	Origin  string // where it was written, "policy.yaml:12"; "" for runtime
}

// Set is a collection of entries, keyed by range and source. It is immutable
// and safe for concurrent use. A nil *Set and the zero Set are the empty set:
// all methods work on them.
type Set struct {
	entries []Entry   // sorted by compareKeys, keys unique
	n4      int       // how many of them are IPv4; they come first
	seg4    *segments // nil for no entries
	seg6    *segments
}

// New makes a set. Later entries with the same range and source replace
// earlier ones. An entry whose Range is not valid is left out: ParseRange and
// RangeOf make no such ranges.
func New(entries ...Entry) *Set {
	return newSet(canonical(entries))
}

// newSet takes entries that are in canonical form.
func newSet(entries []Entry) *Set {
	n4 := sort.Search(len(entries), func(i int) bool { return !entries[i].Range.Is4() })
	return &Set{entries: entries, n4: n4, seg4: newSegments(entries[:n4]), seg6: newSegments(entries[n4:])}
}

// Len returns the number of entries.
func (s *Set) Len() int { return len(s.Entries()) }

// Entries returns the entries sorted by range, then source. The caller must
// not modify them.
func (s *Set) Entries() []Entry {
	if s == nil {
		return nil
	}
	return s.entries
}

// Lookup returns the entry for exactly this range and source.
func (s *Set) Lookup(r Range, src Source) (Entry, bool) {
	i, ok := search(s.Entries(), r, src)
	if !ok {
		return Entry{}, false
	}
	return s.entries[i], true
}

// Add returns s with entries put in, each replacing one with the same range
// and source. It returns s itself when nothing changes.
func (s *Set) Add(entries ...Entry) *Set {
	have := s.Entries()
	added := canonical(entries)
	var moved windows
	changed := false
	for _, e := range added {
		i, ok := search(have, e.Range, e.Source)
		if ok && have[i] == e {
			continue
		}
		changed = true
		if !ok || have[i].Expires != e.Expires {
			moved.add(e.Range)
		}
	}
	if !changed {
		return s
	}
	return s.derive(merge(have, added), moved)
}

// merge joins two canonical lists; where keys are equal, the entry of b counts.
func merge(a, b []Entry) []Entry {
	out := make([]Entry, 0, len(a)+len(b))
	for _, e := range b {
		i, ok := search(a, e.Range, e.Source)
		out = append(append(out, a[:i]...), e)
		if ok {
			i++
		}
		a = a[i:]
	}
	return append(out, a...)
}

// Delete returns s without the entries of src for exactly these ranges. Those
// that are not there are ignored. It returns s itself when nothing changes.
func (s *Set) Delete(src Source, ranges ...Range) *Set {
	have := s.Entries()
	var gone []int
	for _, r := range ranges {
		if i, ok := search(have, r, src); ok {
			gone = append(gone, i)
		}
	}
	if len(gone) == 0 {
		return s
	}
	slices.Sort(gone)
	gone = slices.Compact(gone)
	var moved windows
	left := make([]Entry, 0, len(have)-len(gone))
	from := 0
	for _, i := range gone {
		left = append(left, have[from:i]...)
		moved.add(have[i].Range)
		from = i + 1
	}
	return s.derive(append(left, have[from:]...), moved)
}

// Prune returns s without the entries that have expired at now. It returns s
// itself when there are none.
func (s *Set) Prune(now time.Time) *Set {
	have := s.Entries()
	live := 0
	for i := range have {
		if have[i].live(now) {
			live++
		}
	}
	if live == len(have) {
		return s
	}
	var moved windows
	left := make([]Entry, 0, live)
	for _, e := range have {
		if e.live(now) {
			left = append(left, e)
		} else {
			moved.add(e.Range)
		}
	}
	return s.derive(left, moved)
}

func (e *Entry) live(now time.Time) bool {
	return e.Expires.IsZero() || e.Expires.After(now)
}

// derive makes the set that s becomes when its entries are replaced, moved
// being the ranges in which coverage or expiry may differ.
func (s *Set) derive(entries []Entry, moved windows) *Set {
	d := newSet(entries)
	if s == nil {
		return d
	}
	d.seg4 = s.seg4.derive(d.seg4, moved.v4)
	d.seg6 = s.seg6.derive(d.seg6, moved.v6)
	return d
}

// windows are ranges in which something changed, by family.
type windows struct{ v4, v6 []Range }

func (w *windows) add(r Range) {
	if r.Is4() {
		w.v4 = append(w.v4, r)
	} else {
		w.v6 = append(w.v6, r)
	}
}

// Covering returns the entries live at now that contain a, in the order of
// Entries. IPv4-mapped addresses are taken as IPv4.
func (s *Set) Covering(a netip.Addr, now time.Time) []Entry {
	a = plain(a)
	have := s.Entries()
	end := sort.Search(len(have), func(i int) bool { return a.Less(have[i].Range.From) })
	var found []Entry
	for i := range have[:end] {
		if e := &have[i]; e.live(now) && e.Range.Contains(a) {
			found = append(found, *e)
		}
	}
	return found
}

// NextExpiry returns the earliest expiry of any entry, be it past or to come;
// false when no entry expires.
func (s *Set) NextExpiry() (time.Time, bool) {
	var next time.Time
	for i := range s.Entries() {
		if t := s.entries[i].Expires; !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	return next, !next.IsZero()
}

// Segments4 returns the IPv4 part of s as disjoint segments. They are worked
// out once for each set: the pointer is the same every time, and the same as
// that of the set from which s was made by an Add, Delete or Prune that left
// the IPv4 part as it was.
func (s *Set) Segments4() *Segments {
	if s == nil {
		return nil
	}
	return s.seg4.get()
}

// Segments6 is Segments4 for the IPv6 part.
func (s *Set) Segments6() *Segments {
	if s == nil {
		return nil
	}
	return s.seg6.get()
}

// search finds the place of a key in a canonical list.
func search(list []Entry, r Range, src Source) (int, bool) {
	return slices.BinarySearchFunc(list, Entry{Range: r, Source: src}, func(a, b Entry) int {
		return compareKeys(&a, &b)
	})
}

func compareKeys(a, b *Entry) int {
	if c := a.Range.Compare(b.Range); c != 0 {
		return c
	}
	return cmp.Compare(a.Source, b.Source)
}

// canonical returns a new list of the valid entries, sorted by key, the last
// one of each key only, expiries in wall form.
func canonical(entries []Entry) []Entry {
	order, sorted := sortKeys(entries)
	list := make([]Entry, 0, len(order))
	for i, k := range order {
		e := entries[k.index]
		if !sorted && i+1 < len(order) && compareKeys(&e, &entries[order[i+1].index]) == 0 {
			continue // a later one replaces it
		}
		e.Expires = wall(e.Expires)
		list = append(list, e)
	}
	return list
}

// sortKey stands for an entry while sorting: moving and comparing whole
// entries takes several times as long.
type sortKey struct {
	hi, lo uint64 // of Range.From
	bits   int32
	index  int32
}

// sortKeys returns the order of the valid entries, equal keys in the order in
// which they came, and whether they were sorted without duplicates.
func sortKeys(entries []Entry) (order []sortKey, sorted bool) {
	order = make([]sortKey, 0, len(entries))
	sorted = true
	for i := range entries {
		r := &entries[i].Range
		if !r.IsValid() {
			continue
		}
		if n := len(order); n > 0 && sorted {
			sorted = compareKeys(&entries[order[n-1].index], &entries[i]) < 0
		}
		hi, lo := words(r.From)
		order = append(order, sortKey{hi, lo, int32(r.From.BitLen()), int32(i)})
	}
	if sorted {
		return order, true
	}
	slices.SortFunc(order, func(a, b sortKey) int {
		switch {
		case a.bits != b.bits:
			return cmp.Compare(a.bits, b.bits)
		case a.hi != b.hi:
			return cmp.Compare(a.hi, b.hi)
		case a.lo != b.lo:
			return cmp.Compare(a.lo, b.lo)
		}
		return cmp.Or(compareKeys(&entries[a.index], &entries[b.index]), cmp.Compare(a.index, b.index))
	})
	return order, false
}
