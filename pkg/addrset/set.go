package addrset

import (
	"iter"
	"net/netip"
	"slices"
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
	Range Range
	// Expires is when the entry ends, zero for never. A Set keeps it in UTC
	// without a monotonic reading, to the nanosecond, and nothing later than
	// 2262.
	Expires time.Time
	Comment string
	Source  Source
	Origin  string // where it was written, "policy.yaml:12"; "" for runtime
}

// Set is a collection of entries, keyed by range and source. It is immutable
// and safe for concurrent use. A nil *Set and the zero Set are the empty set:
// all methods work on them. A Set that was made from another by a change shares
// with it what did not change, so that a change of one entry costs about the
// same in a set of ten and of a million.
type Set struct {
	v4 *family[v4]
	v6 *family[v6]
}

// New makes a set. Later entries with the same range and source replace
// earlier ones. An entry whose Range is not valid is left out: ParseRange and
// RangeOf make no such ranges.
func New(entries ...Entry) *Set {
	var b Builder
	for _, e := range entries {
		b.Add(e)
	}
	return b.Set()
}

// Builder collects entries for a Set in the little memory that a Set takes. The
// zero Builder is ready.
type Builder struct {
	v4    []record[v4]
	v6    []record[v6]
	known map[about]*about
	last  *about
}

// Add puts an entry in. One whose Range is not valid is left out.
func (b *Builder) Add(e Entry) {
	if !e.Range.IsValid() {
		return
	}
	a := b.about(about{e.Source, e.Comment, e.Origin})
	if e.Range.Is4() {
		b.v4 = append(b.v4, recordOf[v4](e, a))
	} else {
		b.v6 = append(b.v6, recordOf[v6](e, a))
	}
}

func recordOf[A address[A]](e Entry, a *about) record[A] {
	return record[A]{numberOf[A](e.Range.From), numberOf[A](e.Range.To), instant(e.Expires), a}
}

func (b *Builder) about(a about) *about {
	if b.last != nil && *b.last == a {
		return b.last
	}
	if b.known == nil {
		b.known = map[about]*about{}
	}
	b.last = b.known[a]
	if b.last == nil {
		kept := a // so that only what is kept takes memory
		b.last = &kept
		b.known[a] = b.last
	}
	return b.last
}

// Set gives the set of the entries so far; of those with the same range and
// source the last one counts. The Builder is empty afterwards.
func (b *Builder) Set() *Set {
	s := &Set{familyOf(canonical(b.v4)), familyOf(canonical(b.v6))}
	*b = Builder{}
	return s
}

// Len returns the number of entries.
func (s *Set) Len() int {
	if s == nil {
		return 0
	}
	return s.v4.size() + s.v6.size()
}

// Each yields the entries sorted by range, then source; IPv4 comes first.
func (s *Set) Each() iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		if s != nil && s.v4.each(yield) {
			s.v6.each(yield)
		}
	}
}

// Entries returns what Each yields as a new list, which takes several times
// the memory of the set itself.
func (s *Set) Entries() []Entry {
	if s.Len() == 0 {
		return nil
	}
	return slices.AppendSeq(make([]Entry, 0, s.Len()), s.Each())
}

// Lookup returns the entry for exactly this range and source.
func (s *Set) Lookup(r Range, src Source) (Entry, bool) {
	if s == nil || !r.IsValid() {
		return Entry{}, false
	}
	if r.Is4() {
		return lookupEntry(s.v4, r, src)
	}
	return lookupEntry(s.v6, r, src)
}

func lookupEntry[A address[A]](f *family[A], r Range, src Source) (Entry, bool) {
	p, ok := f.locate(r, src)
	if !ok {
		return Entry{}, false
	}
	return f.at(p).entry(), true
}

func (f *family[A]) locate(r Range, src Source) (place, bool) {
	if f == nil {
		return place{}, false
	}
	key := recordOf[A](Entry{Range: r}, &about{source: src})
	return f.find(&key)
}

// with is s with other families; s itself where they are the same.
func (s *Set) with(f4 *family[v4], f6 *family[v6]) *Set {
	if s != nil && s.v4 == f4 && s.v6 == f6 {
		return s
	}
	return &Set{f4, f6}
}

// families are those of s, which may be nil.
func (s *Set) families() (*family[v4], *family[v6]) {
	if s == nil {
		return nil, nil
	}
	return s.v4, s.v6
}

// Add returns s with entries put in, each replacing one with the same range
// and source. It returns s itself when nothing changes.
func (s *Set) Add(entries ...Entry) *Set { return s.Merge(New(entries...)) }

// Merge returns s with the entries of o put in, as Add does with a list.
func (s *Set) Merge(o *Set) *Set {
	switch {
	case o.Len() == 0:
		return s
	case s.Len() == 0:
		return o
	}
	return s.with(s.v4.put(o.v4.list()), s.v6.put(o.v6.list()))
}

// list copies the records.
func (f *family[A]) list() []record[A] {
	if f == nil {
		return nil
	}
	return f.records.slice(place{}, f.records.end())
}

// Delete returns s without the entries of src for exactly these ranges. Those
// that are not there are ignored. It returns s itself when nothing changes.
func (s *Set) Delete(src Source, ranges ...Range) *Set {
	var gone4, gone6 []place
	f4, f6 := s.families()
	for _, r := range ranges {
		if !r.IsValid() {
			continue
		}
		if r.Is4() {
			if p, ok := f4.locate(r, src); ok {
				gone4 = append(gone4, p)
			}
		} else if p, ok := f6.locate(r, src); ok {
			gone6 = append(gone6, p)
		}
	}
	return s.without(gone4, gone6)
}

// DeleteSource returns s without all entries of src. It returns s itself when
// there are none.
func (s *Set) DeleteSource(src Source) *Set {
	f4, f6 := s.families()
	return s.without(f4.of(src), f6.of(src))
}

func (s *Set) without(gone4, gone6 []place) *Set {
	if len(gone4)+len(gone6) == 0 {
		return s
	}
	order := func(a, b place) int {
		if a.before(b) {
			return -1
		}
		if b.before(a) {
			return 1
		}
		return 0
	}
	slices.SortFunc(gone4, order)
	slices.SortFunc(gone6, order)
	return s.with(s.v4.remove(gone4), s.v6.remove(gone6))
}

// Prune returns s without the entries that have expired at now. It returns s
// itself when there are none.
func (s *Set) Prune(now time.Time) *Set {
	if s == nil {
		return nil
	}
	at := instant(now)
	return s.with(s.v4.prune(at), s.v6.prune(at))
}

// Overlapping returns the entries live at now that have an address in r, in
// the order of Each.
func (s *Set) Overlapping(r Range, now time.Time) []Entry {
	f4, f6 := s.families()
	if r.Is4() {
		return overlapping(f4, r, instant(now))
	}
	return overlapping(f6, r, instant(now))
}

func overlapping[A address[A]](f *family[A], r Range, now int64) []Entry {
	var out []Entry
	if f != nil && r.IsValid() {
		f.records.overlapping(numberOf[A](r.From), numberOf[A](r.To), func(r *record[A]) {
			if r.expires > now {
				out = append(out, r.entry())
			}
		})
	}
	return out
}

// Covering returns the entries live at now that contain a, in the order of
// Each. IPv4-mapped addresses are taken as IPv4.
func (s *Set) Covering(a netip.Addr, now time.Time) []Entry {
	a = plain(a)
	return s.Overlapping(Range{a, a}, now)
}

// NextExpiry returns the earliest expiry of any entry, be it past or to come;
// false when no entry expires.
func (s *Set) NextExpiry() (time.Time, bool) {
	f4, f6 := s.families()
	next := min(f4.soonest(), f6.soonest())
	return timeOf(next), next != forever
}

// Segments4 returns the IPv4 part of s as disjoint segments. They are worked
// out once for each set: the pointer is the same every time, and the same as
// that of the set from which s was made by a change that left the IPv4 part as
// it was.
func (s *Set) Segments4() *Segments {
	f4, _ := s.families()
	return f4.segments()
}

// Segments6 is Segments4 for the IPv6 part.
func (s *Set) Segments6() *Segments {
	_, f6 := s.families()
	return f6.segments()
}
