package addrset

import (
	"iter"
	"net/netip"
	"slices"
	"time"
)

// Segment is a piece of a set: the addresses From to To, both included, with
// the latest expiry of the entries that cover them (zero: never).
type Segment struct {
	From, To netip.Addr
	Expires  time.Time
}

// Single reports whether the piece is one address.
func (g Segment) Single() bool { return g.From == g.To }

// Few is how many addresses a piece has at most that is called few: so many are
// rather kept one by one, where that saves asking for ranges as well.
const Few = 4

// Few reports whether the piece has Few addresses at most.
func (g Segment) Few() bool {
	switch {
	case g.Single():
		return true
	case g.From.Is4():
		return numberOf[v4](g.From).few(numberOf[v4](g.To)) > 0
	}
	return numberOf[v6](g.From).few(numberOf[v6](g.To)) > 0
}

// Lasting reports whether the piece has Few addresses at most and never expires.
func (g Segment) Lasting() bool { return g.Expires.IsZero() && g.Few() }

// Addrs yields the addresses of the piece, each as a piece of its own.
func (g Segment) Addrs() iter.Seq[Segment] {
	return func(yield func(Segment) bool) {
		for a := g.From; yield(Segment{a, a, g.Expires}) && a != g.To; {
			a = a.Next()
		}
	}
}

// Count is a number of pieces and of addresses in them.
type Count struct{ Pieces, Addrs int }

func (c *Count) add(o Count) {
	c.Pieces += o.Pieces
	c.Addrs += o.Addrs
}

// Segments are the disjoint pieces of one address family, sorted, where
// neighbours with the same expiry are one piece. They are immutable. A nil
// *Segments is empty, and an empty one is always nil. Those that were made from
// others by a change share what did not change with them.
type Segments struct {
	v4 pages[v4, piece[v4]]
	v6 pages[v6, piece[v6]]
}

// piece is a Segment as it is stored.
type piece[A address[A]] struct {
	from, to A
	expires  int64
}

func (p piece[A]) ends() (from, to A) { return p.from, p.to }
func (p piece[A]) expiry() int64      { return p.expires }

func (p *piece[A]) segment() Segment {
	return Segment{p.from.addr(), p.to.addr(), timeOf(p.expires)}
}

// within is the part of p in w, which there must be.
func (p piece[A]) within(w span[A]) piece[A] {
	if p.from.compare(w.from) < 0 {
		p.from = w.from
	}
	if p.to.compare(w.to) > 0 {
		p.to = w.to
	}
	return p
}

func segmentsOf[A address[A]](list pages[A, piece[A]]) *Segments {
	if list.n == 0 {
		return nil
	}
	s := &Segments{}
	*piecesOf[A](s) = list
	return s
}

// piecesOf gives the pieces of a family.
func piecesOf[A address[A]](s *Segments) *pages[A, piece[A]] {
	if list, ok := any(&s.v4).(*pages[A, piece[A]]); ok {
		return list
	}
	list, _ := any(&s.v6).(*pages[A, piece[A]])
	return list
}

// Len returns the number of pieces.
func (s *Segments) Len() int {
	if s == nil {
		return 0
	}
	return s.v4.n + s.v6.n
}

// Few counts the pieces of Few addresses at most.
func (s *Segments) Few() Count {
	if s == nil {
		return Count{}
	}
	c := s.v4.few
	c.add(s.v6.few)
	return c
}

// Lasting counts those pieces of Few addresses at most that never expire.
func (s *Segments) Lasting() Count {
	if s == nil {
		return Count{}
	}
	c := s.v4.lasting
	c.add(s.v6.lasting)
	return c
}

// Each yields the pieces in order.
func (s *Segments) Each() iter.Seq[Segment] {
	return func(yield func(Segment) bool) {
		if s != nil && s.v4.each(func(p *piece[v4]) bool { return yield(p.segment()) }) {
			s.v6.each(func(p *piece[v6]) bool { return yield(p.segment()) })
		}
	}
}

// All returns the pieces in order as a new list, which takes several times the
// memory of the Segments themselves.
func (s *Segments) All() []Segment {
	if s == nil {
		return nil
	}
	return slices.AppendSeq(make([]Segment, 0, s.Len()), s.Each())
}

// Lookup returns the piece that holds a, expired or not. IPv4-mapped
// addresses are taken as IPv4, zones are not looked at.
func (s *Segments) Lookup(a netip.Addr) (Segment, bool) {
	a = plain(a)
	switch {
	case s == nil:
		return Segment{}, false
	case a.Is4():
		return lookup(&s.v4, numberOf[v4](a))
	case a.Is6():
		return lookup(&s.v6, numberOf[v6](a))
	}
	return Segment{}, false
}

func lookup[A address[A]](list *pages[A, piece[A]], a A) (Segment, bool) {
	at := list.search(func(p *piece[A]) bool { return p.to.compare(a) >= 0 })
	if at == list.end() {
		return Segment{}, false
	}
	p := &list.list[at.page].items[at.at]
	if a.compare(p.from) < 0 {
		return Segment{}, false
	}
	return p.segment(), true
}

// Overlaps reports whether a piece, expired or not, has an address in r.
func (s *Segments) Overlaps(r Range) bool {
	switch {
	case s == nil || !r.IsValid():
		return false
	case r.Is4():
		return overlaps(&s.v4, numberOf[v4](r.From), numberOf[v4](r.To))
	}
	return overlaps(&s.v6, numberOf[v6](r.From), numberOf[v6](r.To))
}

func overlaps[A address[A]](list *pages[A, piece[A]], from, to A) bool {
	at := list.search(func(p *piece[A]) bool { return p.to.compare(from) >= 0 })
	return at != list.end() && list.list[at.page].items[at.at].from.compare(to) <= 0
}

// Equal reports whether both hold the same pieces with the same expiries.
func (s *Segments) Equal(o *Segments) bool {
	if s == o {
		return true
	}
	if s.Len() != o.Len() {
		return false
	}
	for range s.Changes(o) {
		return false
	}
	return true
}

// Change is one place where two Segments differ: at From one of them has Old,
// the other New, or both do and are not the same. The zero Segment is none.
type Change struct{ Old, New Segment }

// Span gives the first and the last address that Old or New has.
func (c Change) Span() (from, to netip.Addr) {
	switch {
	case !c.Old.From.IsValid():
		return c.New.From, c.New.To
	case c.Old.To.Less(c.New.To):
		return c.Old.From, c.New.To
	}
	return c.Old.From, c.Old.To
}

// Changes yields in order where s differs from old. What both share is not
// looked at.
func (s *Segments) Changes(old *Segments) iter.Seq[Change] {
	if s == nil {
		s = &Segments{}
	}
	if old == nil {
		old = &Segments{}
	}
	return func(yield func(Change) bool) {
		if changes(&old.v4, &s.v4, yield) {
			changes(&old.v6, &s.v6, yield)
		}
	}
}

func changes[A address[A]](old, now *pages[A, piece[A]], yield func(Change) bool) bool {
	i, j := place{}, place{}
	for i != old.end() || j != now.end() {
		if i.at == 0 && j.at == 0 && i != old.end() && j != now.end() && old.list[i.page].same(&now.list[j.page]) {
			i, j = place{page: i.page + 1}, place{page: j.page + 1}
			continue
		}
		var a, b *piece[A]
		if i != old.end() {
			a = &old.list[i.page].items[i.at]
		}
		if j != now.end() {
			b = &now.list[j.page].items[j.at]
		}
		if a != nil && b != nil {
			switch c := a.from.compare(b.from); {
			case c < 0:
				b = nil
			case c > 0:
				a = nil
			}
		}
		same := a != nil && b != nil && *a == *b
		var c Change
		if a != nil {
			c.Old, i = a.segment(), old.after(i)
		}
		if b != nil {
			c.New, j = b.segment(), now.after(j)
		}
		if !same && !yield(c) {
			return false
		}
	}
	return true
}

// SegmentsOf makes Segments of pieces of one family that do not overlap,
// given in any order. Expiries are kept in UTC without a monotonic reading.
// Pieces that are no valid range are left out; where pieces overlap after
// all, the later expiry counts.
func SegmentsOf(list ...Segment) *Segments {
	var entries []Entry
	for _, g := range list {
		entries = append(entries, Entry{Range: Range{g.From, g.To}, Expires: g.Expires})
	}
	s := New(entries...)
	if s.v4 != nil {
		return s.Segments4()
	}
	return s.Segments6()
}
