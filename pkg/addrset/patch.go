package addrset

import "slices"

// span is a range of addresses in which something changed.
type span[A address[A]] struct{ from, to A }

// patch returns the segments of records, old being those of a list that
// differs from records only inside of moved. Only what lies there is worked
// out anew. It returns old itself when nothing came out differently.
func patch[A address[A]](old *Segments, records *pages[A, record[A]], moved []span[A]) *Segments {
	if len(moved) == 0 {
		return old
	}
	had := piecesOf[A](old)
	var cuts []cut[piece[A]]
	windows := union(moved)
	for len(windows) > 0 {
		from, to := touched(had, windows[0])
		n := 1
		for ; n < len(windows); n++ {
			// Two windows that touch one piece are worked out together.
			first, last := touched(had, windows[n])
			if !first.before(to) {
				break
			}
			to = last
		}
		fresh := refill(had, records, from, to, windows[:n])
		if !slices.Equal(fresh, had.slice(from, to)) {
			cuts = append(cuts, cut[piece[A]]{from, to, fresh})
		}
		windows = windows[n:]
	}
	if len(cuts) == 0 {
		return old
	}
	return segmentsOf(had.splice(cuts))
}

func (p place) before(o place) bool { return p.page < o.page || p.page == o.page && p.at < o.at }

// touched gives the pieces that overlap w or lie beside it: from the first up
// to but not including the second place.
func touched[A address[A]](had *pages[A, piece[A]], w span[A]) (from, to place) {
	low, high := w.from, w.to
	if before, ok := low.prev(); ok {
		low = before
	}
	if after, ok := high.next(); ok {
		high = after
	}
	return had.search(func(p *piece[A]) bool { return p.to.compare(low) >= 0 }),
		had.search(func(p *piece[A]) bool { return p.from.compare(high) > 0 })
}

// slice copies the items from from up to but not including to.
func (l *pages[A, T]) slice(from, to place) []T {
	var out []T
	for ; from.before(to); from = l.after(from) {
		out = append(out, l.list[from.page].items[from.at])
	}
	return out
}

// refill makes what the pieces from from up to but not including to become:
// inside of windows what the records say, outside what they were.
func refill[A address[A]](had *pages[A, piece[A]], records *pages[A, record[A]], from, to place, windows []span[A]) []piece[A] {
	out := newSweep[A]()
	old := had.slice(from, to)
	for i, w := range windows {
		// What lies between the window before and this one.
		for _, p := range old {
			if p.from.compare(w.from) >= 0 {
				break
			}
			if p.to.compare(w.from) >= 0 {
				p.to, _ = w.from.prev()
			}
			if i > 0 {
				start, ok := windows[i-1].to.next()
				if !ok || p.to.compare(start) < 0 {
					continue
				}
				if p.from.compare(start) < 0 {
					p.from = start
				}
			}
			out.emit(p)
		}
		for _, p := range windowed(records, w) {
			out.emit(p)
		}
	}
	if start, ok := windows[len(windows)-1].to.next(); ok {
		for _, p := range old {
			if p.to.compare(start) < 0 {
				continue
			}
			if p.from.compare(start) < 0 {
				p.from = start
			}
			out.emit(p)
		}
	}
	return out.pieces()
}

// union joins windows that overlap or touch. The result is sorted.
func union[A address[A]](list []span[A]) []span[A] {
	sorted := slices.Clone(list)
	slices.SortFunc(sorted, func(a, b span[A]) int { return a.from.compare(b.from) })
	out := sorted[:1]
	for _, w := range sorted[1:] {
		last := &out[len(out)-1]
		next, ok := last.to.next()
		switch {
		case ok && next.compare(w.from) < 0:
			out = append(out, w)
		case last.to.compare(w.to) < 0:
			last.to = w.to
		}
	}
	return out
}
