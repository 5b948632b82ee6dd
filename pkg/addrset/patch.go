package addrset

import (
	"net/netip"
	"slices"
	"sort"
	"time"
)

// patch returns the segments of entries, old being those of a list that
// differs from entries only inside of moved. Only what lies there is worked
// out anew. It returns old itself when nothing came out differently. All
// arguments are of one family; moved is not empty.
func patch(old *Segments, entries []Entry, moved []Range) *Segments {
	changed := union(moved)
	fresh := within(entries, changed)
	out := &sweep{out: make([]Segment, 0, old.Len()+len(fresh)+len(changed))}
	rest := RangeOf(netip.PrefixFrom(changed[0].From, 0)) // what is still to be written
	for _, w := range changed {
		if rest.From.Less(w.From) {
			out.keep(old.All(), Range{rest.From, w.From.Prev()})
		}
		for len(fresh) > 0 && !w.To.Less(fresh[0].From) {
			out.emit(fresh[0].From, fresh[0].To, fresh[0].Expires)
			fresh = fresh[1:]
		}
		rest.From = w.To.Next() // invalid after the last address
	}
	if rest.From.IsValid() {
		out.keep(old.All(), rest)
	}
	s := out.finish()
	if s.Equal(old) {
		return old
	}
	return s
}

// keep emits the part of old that lies in r.
func (s *sweep) keep(old []Segment, r Range) {
	i := sort.Search(len(old), func(i int) bool { return !old[i].To.Less(r.From) })
	j := sort.Search(len(old), func(j int) bool { return r.To.Less(old[j].From) })
	part := old[i:j]
	for len(part) > 0 {
		g, _ := clip(part[0].From, part[0].To, part[0].Expires, r)
		s.emit(g.From, g.To, g.Expires)
		part = part[1:]
		if n := len(part) - 1; n > 0 {
			// Neither joined to a neighbour nor cut by an end of r.
			s.out = append(s.out, part[:n]...)
			part = part[n:]
		}
	}
}

// clip returns the part of a piece that lies in r, false when there is none.
func clip(from, to netip.Addr, expires time.Time, r Range) (Segment, bool) {
	if from.Less(r.From) {
		from = r.From
	}
	if r.To.Less(to) {
		to = r.To
	}
	return Segment{from, to, expires}, !to.Less(from)
}

// union joins ranges of one family that overlap. The result is sorted.
func union(ranges []Range) []Range {
	sorted := slices.Clone(ranges)
	slices.SortFunc(sorted, Range.Compare)
	out := sorted[:1]
	for _, r := range sorted[1:] {
		last := &out[len(out)-1]
		switch {
		case last.To.Less(r.From):
			out = append(out, r)
		case last.To.Less(r.To):
			last.To = r.To
		}
	}
	return out
}

// within returns the disjoint pieces that entries make inside of the windows,
// which are sorted and disjoint.
func within(entries []Entry, windows []Range) []Segment {
	clips := make([][]Segment, len(windows))
	end := windows[len(windows)-1].To
	for i := range entries {
		e := &entries[i]
		if end.Less(e.Range.From) {
			break
		}
		first := sort.Search(len(windows), func(w int) bool { return !windows[w].To.Less(e.Range.From) })
		for w := first; w < len(windows); w++ {
			g, ok := clip(e.Range.From, e.Range.To, e.Expires, windows[w])
			if !ok {
				break
			}
			clips[w] = append(clips[w], g)
		}
	}
	sw := newSweep(0)
	for _, list := range clips {
		for _, g := range list {
			sw.add(g)
		}
	}
	return sw.finish().All()
}
