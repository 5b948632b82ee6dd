package addrset

import (
	"net/netip"
	"slices"
	"sort"
	"time"
)

// Segment is a piece of a set: the addresses From to To, both included, with
// the latest expiry of the entries that cover them (zero: never).
type Segment struct {
	From, To netip.Addr
	Expires  time.Time
}

// Segments are the disjoint pieces of one address family, sorted, where
// neighbours with the same expiry are one piece. They are immutable. A nil
// *Segments is empty, and an empty one is always nil.
type Segments struct {
	list []Segment
}

// Len returns the number of pieces.
func (s *Segments) Len() int { return len(s.All()) }

// All returns the pieces in order. The caller must not modify them.
func (s *Segments) All() []Segment {
	if s == nil {
		return nil
	}
	return s.list
}

// Lookup returns the piece that holds a, expired or not. IPv4-mapped
// addresses are taken as IPv4, zones are not looked at.
func (s *Segments) Lookup(a netip.Addr) (Segment, bool) {
	a = plain(a)
	list := s.All()
	i := sort.Search(len(list), func(i int) bool { return !list[i].To.Less(a) })
	if i == len(list) || a.Less(list[i].From) { // also where the family is another
		return Segment{}, false
	}
	return list[i], true
}

// Equal reports whether both hold the same pieces with the same expiries.
func (s *Segments) Equal(o *Segments) bool {
	return s == o || slices.Equal(s.All(), o.All())
}

// SegmentsOf makes Segments of pieces of one family that do not overlap,
// given in any order. Expiries are kept in UTC without a monotonic reading.
// Pieces that are no valid range are left out; where pieces overlap after
// all, the later expiry counts.
func SegmentsOf(list ...Segment) *Segments {
	sorted := slices.Clone(list)
	slices.SortFunc(sorted, func(a, b Segment) int { return a.From.Compare(b.From) })
	sw := newSweep(len(sorted))
	for _, g := range sorted {
		if (Range{g.From, g.To}).IsValid() {
			g.Expires = wall(g.Expires)
			sw.add(g)
		}
	}
	return sw.finish()
}

// wall returns t in the one form in which == means the same instant.
func wall(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return t.Round(0).UTC()
}

// outlives reports whether something that expires at a lasts at least as long
// as something that expires at b.
func outlives(a, b time.Time) bool {
	return a.IsZero() || (!b.IsZero() && !a.Before(b))
}

// sweep turns overlapping pieces, added in the order of their From, into
// disjoint ones with the latest expiry.
type sweep struct {
	out    []Segment
	active []Segment  // heap, the latest expiry on top; may hold pieces that ended before at
	at     netip.Addr // where the sweep stands: everything below has been emitted
}

func newSweep(size int) *sweep { return &sweep{out: make([]Segment, 0, size)} }

// add puts g in. g.From must not be lower than that of the one before.
func (s *sweep) add(g Segment) {
	s.advance(g.From)
	if len(s.active) > 0 {
		top := s.active[0]
		if !top.To.Less(g.To) && outlives(top.Expires, g.Expires) {
			return // it will never be the one that counts
		}
	}
	s.push(g)
}

// finish emits the rest.
func (s *sweep) finish() *Segments {
	s.advance(netip.Addr{})
	if len(s.out) == 0 {
		return nil
	}
	if len(s.out) < cap(s.out)/2 {
		s.out = slices.Clone(s.out) // give back the room that merging left
	}
	return &Segments{list: s.out}
}

// advance emits what lies below until, or all when until is invalid.
func (s *sweep) advance(until netip.Addr) {
	for len(s.active) > 0 {
		top := s.active[0]
		if top.To.Less(s.at) {
			s.pop()
			continue
		}
		if until.IsValid() && !top.To.Less(until) {
			if s.at.Less(until) {
				s.emit(s.at, until.Prev(), top.Expires)
			}
			break
		}
		s.emit(s.at, top.To, top.Expires)
		next := top.To.Next()
		if !next.IsValid() {
			break // the last address of the family: nothing active reaches further
		}
		s.at = next
		s.pop()
	}
	s.at = until
}

// emit appends a piece, joining it to the last one where they touch and
// expire together.
func (s *sweep) emit(from, to netip.Addr, expires time.Time) {
	if n := len(s.out); n > 0 {
		last := &s.out[n-1]
		if last.Expires.Equal(expires) && last.To.Next() == from {
			last.To = to
			return
		}
	}
	s.out = append(s.out, Segment{from, to, expires})
}

// push and pop are those of container/heap, without an interface call for
// each comparison.
func (s *sweep) push(g Segment) {
	h := append(s.active, g)
	i := len(h) - 1
	for i > 0 {
		parent := (i - 1) / 2
		if outlives(h[parent].Expires, g.Expires) {
			break
		}
		h[i] = h[parent]
		i = parent
	}
	h[i] = g
	s.active = h
}

func (s *sweep) pop() {
	h := s.active
	n := len(h) - 1
	g := h[n]
	h = h[:n]
	s.active = h
	if n == 0 {
		return
	}
	i := 0
	for {
		child := 2*i + 1
		if child >= n {
			break
		}
		if child+1 < n && !outlives(h[child].Expires, h[child+1].Expires) {
			child++
		}
		if outlives(g.Expires, h[child].Expires) {
			break
		}
		h[i] = h[child]
		i = child
	}
	h[i] = g
}
