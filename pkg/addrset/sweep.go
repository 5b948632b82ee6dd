package addrset

// sweep turns overlapping pieces, added in the order of their first address,
// into disjoint ones with the latest expiry.
type sweep[A address[A]] struct {
	out    pageBuilder[A, piece[A]]
	last   piece[A]   // not in out yet: the next one may join it
	some   bool       // there is a last
	active []piece[A] // heap, the latest expiry on top; may hold pieces that ended before at
	at     A          // where the sweep stands: everything below has been emitted
	over   bool       // the last address of the family has been emitted
}

func newSweep[A address[A]]() *sweep[A] { return &sweep[A]{} }

// add puts g in. g.from must not be lower than that of the one before.
func (s *sweep[A]) add(g piece[A]) {
	s.advance(g.from, false)
	if len(s.active) > 0 {
		top := s.active[0]
		if top.to.compare(g.to) >= 0 && top.expires >= g.expires {
			return // it will never be the one that counts
		}
	}
	s.push(g)
}

// finish emits the rest and gives all pieces.
func (s *sweep[A]) finish() pages[A, piece[A]] {
	s.end()
	return s.out.done()
}

// pieces is finish for few pieces, of which no pages are made.
func (s *sweep[A]) pieces() []piece[A] {
	s.end()
	var out []piece[A]
	for _, p := range s.out.list {
		out = append(out, p.items...)
	}
	return append(out, s.out.buf...)
}

func (s *sweep[A]) end() {
	var none A
	s.advance(none, true)
	if s.some {
		s.out.add(s.last)
		s.some = false
	}
}

// advance emits what lies below until, or all.
func (s *sweep[A]) advance(until A, all bool) {
	for len(s.active) > 0 && !s.over {
		top := s.active[0]
		if top.to.compare(s.at) < 0 {
			s.pop()
			continue
		}
		if !all && top.to.compare(until) >= 0 {
			if s.at.compare(until) < 0 {
				before, _ := until.prev()
				s.emit(piece[A]{s.at, before, top.expires})
			}
			break
		}
		s.emit(piece[A]{s.at, top.to, top.expires})
		next, ok := top.to.next()
		if !ok {
			s.over = true // nothing reaches further
			break
		}
		s.at = next
		s.pop()
	}
	s.at = until
}

// emit appends a piece, joining it to the last one where they touch and
// expire together.
func (s *sweep[A]) emit(p piece[A]) {
	if s.some {
		if next, ok := s.last.to.next(); ok && next == p.from && s.last.expires == p.expires {
			s.last.to = p.to
			return
		}
		s.out.add(s.last)
	}
	s.last, s.some = p, true
}

// push and pop are those of container/heap, without an interface call for
// each comparison.
func (s *sweep[A]) push(g piece[A]) {
	h := append(s.active, g)
	i := len(h) - 1
	for i > 0 {
		parent := (i - 1) / 2
		if h[parent].expires >= g.expires {
			break
		}
		h[i] = h[parent]
		i = parent
	}
	h[i] = g
	s.active = h
}

func (s *sweep[A]) pop() {
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
		if child+1 < n && h[child].expires < h[child+1].expires {
			child++
		}
		if g.expires >= h[child].expires {
			break
		}
		h[i] = h[child]
		i = child
	}
	h[i] = g
}
