package migrate

import (
	"net/netip"
	"slices"

	"github.com/nftfw/nftfw/pkg/addrset"
)

// sourceClass are the addresses that no rule tells from one another.
type sourceClass struct {
	ranges []addrset.Range // disjoint, sorted, of one family
	sample netip.Addr
	listed bool // in a list at least, unlike the rest of the world
}

// everyone are all addresses of a family.
func everyone(is6 bool) addrset.Range {
	if is6 {
		return addrset.RangeOf(netip.MustParsePrefix("::/0"))
	}
	return addrset.RangeOf(netip.MustParsePrefix("0.0.0.0/0"))
}

// sourceClasses cuts the addresses of a family wherever a list begins or ends,
// and puts the pieces together again that lie in the same lists.
func sourceClasses(lists [][]addrset.Range, is6 bool) []sourceClass {
	all := everyone(is6)
	starts := []netip.Addr{all.From}
	var own [][]addrset.Range
	for _, list := range lists {
		list = flat(list, is6)
		own = append(own, list)
		for _, r := range list {
			starts = append(starts, r.From)
			if next := r.To.Next(); next.IsValid() {
				starts = append(starts, next)
			}
		}
	}
	slices.SortFunc(starts, netip.Addr.Compare)
	starts = slices.Compact(starts)
	at := make([]int, len(own)) // the first range of each list that does not end before the piece
	index := map[string]int{}
	var classes []sourceClass
	for i, from := range starts {
		to := all.To
		if i+1 < len(starts) {
			to = starts[i+1].Prev()
		}
		signature := make([]byte, len(own))
		for l, list := range own {
			for at[l] < len(list) && list[at[l]].To.Less(from) {
				at[l]++
			}
			if at[l] < len(list) && list[at[l]].Contains(from) {
				signature[l] = 1
			}
		}
		c, ok := index[string(signature)]
		if !ok {
			c = len(classes)
			index[string(signature)] = c
			classes = append(classes, sourceClass{sample: from, listed: slices.Contains(signature, 1)})
		}
		classes[c].ranges = append(classes[c].ranges, addrset.Range{From: from, To: to})
	}
	return classes
}

// flat gives the ranges of one family as disjoint ones in order.
func flat(list []addrset.Range, is6 bool) []addrset.Range {
	entries := make([]addrset.Entry, 0, len(list))
	for _, r := range list {
		if r.Is4() != is6 {
			entries = append(entries, addrset.Entry{Range: r})
		}
	}
	set := addrset.New(entries...)
	segments := set.Segments4()
	if is6 {
		segments = set.Segments6()
	}
	out := make([]addrset.Range, 0, segments.Len())
	for _, s := range segments.All() {
		out = append(out, addrset.Range{From: s.From, To: s.To})
	}
	return out
}

// covers reports whether a lies in a list of disjoint ranges in order.
func covers(list []addrset.Range, a netip.Addr) bool {
	i, found := slices.BinarySearchFunc(list, a, func(r addrset.Range, a netip.Addr) int {
		switch {
		case r.To.Less(a):
			return -1
		case a.Less(r.From):
			return 1
		}
		return 0
	})
	return found && i < len(list)
}

// portClasses cuts the ports 1 to 65535 wherever a range begins or ends.
func portClasses(named []portRange) []portRange {
	starts := []int{1}
	for _, r := range named {
		starts = append(starts, int(r.low), int(r.high)+1)
	}
	slices.Sort(starts)
	starts = slices.Compact(starts)
	var out []portRange
	for i, low := range starts {
		high := 1<<16 - 1
		if i+1 < len(starts) {
			high = starts[i+1] - 1
		}
		if low >= 1 && low <= high {
			out = append(out, portRange{uint16(low), uint16(high)})
		}
	}
	return out
}

// who is a set of sources: one mark for each class.
type who []bool

func (w who) and(o who) who { return w.with(o, func(a, b bool) bool { return a && b }) }

func (w who) or(o who) who { return w.with(o, func(a, b bool) bool { return a || b }) }

func (w who) without(o who) who { return w.with(o, func(a, b bool) bool { return a && !b }) }

func (w who) with(o who, op func(a, b bool) bool) who {
	out := make(who, len(w))
	for i := range w {
		out[i] = op(w[i], o[i])
	}
	return out
}

func (w who) equal(o who) bool { return slices.Equal(w, o) }

func (w who) none() bool { return !slices.Contains(w, true) }

func (w who) all() bool { return !slices.Contains(w, false) }
