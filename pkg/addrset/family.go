package addrset

import (
	"cmp"
	"slices"
	"sync"
)

// about is what an entry has besides its range and expiry. Entries share it.
type about struct {
	source          Source
	comment, origin string
}

// record is an entry of one family.
type record[A address[A]] struct {
	from, to A
	expires  int64
	about    *about
}

func (r record[A]) ends() (from, to A) { return r.from, r.to }
func (r record[A]) expiry() int64      { return r.expires }

// entry is the record as callers see it.
func (r *record[A]) entry() Entry {
	return Entry{
		Range: Range{r.from.addr(), r.to.addr()}, Expires: timeOf(r.expires),
		Comment: r.about.comment, Source: r.about.source, Origin: r.about.origin,
	}
}

func (r *record[A]) equal(o *record[A]) bool {
	return r.from == o.from && r.to == o.to && r.expires == o.expires && (r.about == o.about || *r.about == *o.about)
}

// compare orders by key: range, then source.
func (r *record[A]) compare(o *record[A]) int {
	if c := r.from.compare(o.from); c != 0 {
		return c
	}
	if c := r.to.compare(o.to); c != 0 {
		return c
	}
	if r.about == o.about {
		return 0
	}
	return cmp.Compare(r.about.source, o.about.source)
}

// canonical sorts records by key and leaves of those with one key the last one
// only. It works in list.
func canonical[A address[A]](list []record[A]) []record[A] {
	byKey := func(a, b record[A]) int { return a.compare(&b) }
	sorted := true
	for i := 1; i < len(list) && sorted; i++ {
		sorted = list[i-1].compare(&list[i]) < 0
	}
	if sorted {
		return list
	}
	if many, ok := any(list).([]record[v4]); ok && len(many) > pageSize {
		sortByFrom(many)
		for rest := list; len(rest) > 0; {
			n := 1
			for n < len(rest) && rest[n].from == rest[0].from {
				n++
			}
			slices.SortStableFunc(rest[:n], byKey)
			rest = rest[n:]
		}
	} else {
		slices.SortStableFunc(list, byKey)
	}
	n := 0
	for i := range list {
		if i+1 < len(list) && list[i].compare(&list[i+1]) == 0 {
			continue // the later one replaces it
		}
		list[n] = list[i]
		n++
	}
	clear(list[n:])
	return list[:n]
}

// sortByFrom sorts by the first address, and leaves those with the same one in
// their order. It is a radix sort, which for a million entries takes a tenth of
// the time of one that compares.
func sortByFrom(list []record[v4]) {
	const digit = 11 // bits; three of them are an address
	from, to := list, make([]record[v4], len(list))
	for shift := 0; shift < 32; shift += digit {
		var start [1<<digit + 1]int
		for i := range from {
			start[from[i].from>>shift&(1<<digit-1)+1]++
		}
		for i := 1; i < len(start); i++ {
			start[i] += start[i-1]
		}
		for i := range from {
			n := &start[from[i].from>>shift&(1<<digit-1)]
			to[*n] = from[i]
			*n++
		}
		from, to = to, from
	}
	copy(list, from) // three passes end in the other list
}

// family is the entries of one family, with their segments once somebody has
// asked for them. It is not changed otherwise; nil is no entries.
type family[A address[A]] struct {
	records pages[A, record[A]]

	mu    sync.Mutex
	known *Segments
}

// familyOf makes a family of canonical records.
func familyOf[A address[A]](list []record[A]) *family[A] {
	if len(list) == 0 {
		return nil
	}
	return &family[A]{records: pagesOf[A](list)}
}

func (f *family[A]) size() int {
	if f == nil {
		return 0
	}
	return f.records.n
}

// each calls yield for all entries until it returns false.
func (f *family[A]) each(yield func(Entry) bool) bool {
	return f == nil || f.records.each(func(r *record[A]) bool { return yield(r.entry()) })
}

// find gives the place of the first record whose key is not lower, and whether
// it is the same.
func (f *family[A]) find(key *record[A]) (place, bool) {
	p := f.records.search(func(r *record[A]) bool { return r.compare(key) >= 0 })
	return p, p != f.records.end() && f.records.list[p.page].items[p.at].compare(key) == 0
}

func (f *family[A]) at(p place) *record[A] { return &f.records.list[p.page].items[p.at] }

// put makes the family that f becomes when records, which are canonical, are
// put in. It is f where nothing changes.
func (f *family[A]) put(list []record[A]) *family[A] {
	if f == nil || len(list) == 0 {
		if f == nil {
			return familyOf(list)
		}
		return f
	}
	var cuts []cut[record[A]]
	var moved []span[A]
	for i := range list {
		r := &list[i]
		p, there := f.find(r)
		to := p
		if there {
			had := f.at(p)
			if had.equal(r) {
				continue
			}
			to = f.records.after(p)
			if had.expires != r.expires {
				moved = append(moved, span[A]{r.from, r.to})
			}
		} else {
			moved = append(moved, span[A]{r.from, r.to})
		}
		if n := len(cuts) - 1; n >= 0 && cuts[n].to == p && &list[i-1] == &cuts[n].items[len(cuts[n].items)-1] {
			cuts[n].to, cuts[n].items = to, list[i-len(cuts[n].items):i+1]
			continue
		}
		cuts = append(cuts, cut[record[A]]{p, to, list[i : i+1]})
	}
	return f.derive(cuts, moved)
}

// remove makes the family that f becomes without the records at places, which
// are sorted.
func (f *family[A]) remove(places []place) *family[A] {
	var cuts []cut[record[A]]
	var moved []span[A]
	for i, p := range places {
		if i > 0 && p == places[i-1] {
			continue
		}
		r := f.at(p)
		moved = append(moved, span[A]{r.from, r.to})
		if n := len(cuts) - 1; n >= 0 && cuts[n].to == p {
			cuts[n].to = f.records.after(p)
			continue
		}
		cuts = append(cuts, cut[record[A]]{from: p, to: f.records.after(p)})
	}
	return f.derive(cuts, moved)
}

// prune is f without what has expired at now.
func (f *family[A]) prune(now int64) *family[A] {
	if f == nil {
		return nil
	}
	var gone []place
	for i := range f.records.list {
		p := &f.records.list[i]
		if p.soonest > now {
			continue
		}
		for j := range p.items {
			if p.items[j].expires <= now {
				gone = append(gone, place{i, j})
			}
		}
	}
	return f.remove(gone)
}

// of gives the places of all records of a source.
func (f *family[A]) of(src Source) []place {
	var out []place
	if f == nil {
		return nil
	}
	for i := range f.records.list {
		for j := range f.records.list[i].items {
			if f.records.list[i].items[j].about.source == src {
				out = append(out, place{i, j})
			}
		}
	}
	return out
}

// soonest is the earliest expiry, forever for none.
func (f *family[A]) soonest() int64 {
	next := forever
	if f != nil {
		for i := range f.records.list {
			next = min(next, f.records.list[i].soonest)
		}
	}
	return next
}

// derive makes the family that f becomes by cuts, moved being where coverage
// or expiry may differ.
func (f *family[A]) derive(cuts []cut[record[A]], moved []span[A]) *family[A] {
	if len(cuts) == 0 {
		return f
	}
	next := &family[A]{records: f.records.splice(cuts)}
	if next.records.n == 0 {
		return nil
	}
	f.mu.Lock()
	known := f.known
	f.mu.Unlock()
	// A change of a good part of a large set is quicker done from the start.
	if known != nil && (len(moved) == 0 || len(moved) <= next.records.n/8+64) {
		next.known = patch(known, &next.records, moved)
	}
	return next
}

// segments works the segments out when they are first asked for.
func (f *family[A]) segments() *Segments {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.known == nil {
		sw := newSweep[A]()
		f.records.each(func(r *record[A]) bool {
			sw.add(piece[A]{r.from, r.to, r.expires})
			return true
		})
		f.known = segmentsOf(sw.finish())
	}
	return f.known
}

// windowed gives the pieces that the records make inside of w.
func windowed[A address[A]](records *pages[A, record[A]], w span[A]) []piece[A] {
	sw := newSweep[A]()
	records.overlapping(w.from, w.to, func(r *record[A]) {
		sw.add(piece[A]{r.from, r.to, r.expires}.within(w))
	})
	return sw.pieces()
}
