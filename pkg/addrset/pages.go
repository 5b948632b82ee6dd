package addrset

import "sort"

// pageSize is how many items a page holds at most. A change copies the pages
// that it touches and the list of pages: with this size both are some
// kilobytes in a set of a million.
const pageSize = 512

// item is what pages hold: something about the addresses from to to.
type item[A any] interface {
	ends() (from, to A)
	expiry() int64
}

// page is a sorted part of a list. It is never changed.
type page[A address[A], T item[A]] struct {
	items   []T
	highest A     // of all ends
	soonest int64 // of all expiries
	few     Count // items of few addresses
	lasting Count // those of them that never expire
}

func newPage[A address[A], T item[A]](items []T) page[A, T] {
	p := page[A, T]{items: items, soonest: forever}
	for i, it := range items {
		from, to := it.ends()
		if n := from.few(to); n > 0 {
			c := Count{1, n}
			p.few.add(c)
			if it.expiry() == forever {
				p.lasting.add(c)
			}
		}
		if i == 0 || to.compare(p.highest) > 0 {
			p.highest = to
		}
		p.soonest = min(p.soonest, it.expiry())
	}
	return p
}

// same reports whether both are one page, so that neither has to be looked at.
func (p *page[A, T]) same(q *page[A, T]) bool {
	return len(p.items) == len(q.items) && &p.items[0] == &q.items[0]
}

// pages is a sorted list that shares what it has in common with the list that
// it was made from. It is never changed; the zero pages are empty. No page is
// empty.
type pages[A address[A], T item[A]] struct {
	list    []page[A, T]
	reach   []A // the highest end of all pages up to here
	n       int
	few     Count
	lasting Count
}

// place is where an item is, or the end: the number of pages and 0.
type place struct{ page, at int }

func (l *pages[A, T]) end() place { return place{page: len(l.list)} }

// after is the place behind p, which is not the end.
func (l *pages[A, T]) after(p place) place {
	if p.at++; p.at == len(l.list[p.page].items) {
		return place{page: p.page + 1}
	}
	return p
}

// search finds the first item for which ok is true; it is so for all behind it.
func (l *pages[A, T]) search(ok func(*T) bool) place {
	p := sort.Search(len(l.list), func(i int) bool {
		items := l.list[i].items
		return ok(&items[len(items)-1])
	})
	if p == len(l.list) {
		return l.end()
	}
	items := l.list[p].items
	return place{p, sort.Search(len(items), func(i int) bool { return ok(&items[i]) })}
}

// each calls f for all items in order until it returns false.
func (l *pages[A, T]) each(f func(*T) bool) bool {
	for i := range l.list {
		items := l.list[i].items
		for j := range items {
			if !f(&items[j]) {
				return false
			}
		}
	}
	return true
}

// overlapping calls f for all items that have an address from from to to.
// Items are sorted by their first address.
func (l *pages[A, T]) overlapping(from, to A, f func(*T)) {
	last := sort.Search(len(l.list), func(i int) bool {
		first, _ := l.list[i].items[0].ends()
		return first.compare(to) > 0
	})
	// Nothing before first reaches from.
	first := sort.Search(last, func(i int) bool { return l.reach[i].compare(from) >= 0 })
	for i := first; i < last; i++ {
		if l.list[i].highest.compare(from) < 0 {
			continue
		}
		for j := range l.list[i].items {
			it := &l.list[i].items[j]
			a, b := (*it).ends()
			if a.compare(to) > 0 {
				break
			}
			if b.compare(from) >= 0 {
				f(it)
			}
		}
	}
}

// cut replaces the items from from up to but not including to.
type cut[T any] struct {
	from, to place
	items    []T
}

// splice makes the list that l becomes by cuts, which are sorted and do not
// overlap.
func (l *pages[A, T]) splice(cuts []cut[T]) pages[A, T] {
	var b pageBuilder[A, T]
	b.list = make([]page[A, T], 0, len(l.list)+len(cuts)/pageSize+2)
	at := place{}
	for _, c := range cuts {
		b.keep(l, at, c.from)
		for _, it := range c.items {
			b.add(it)
		}
		at = c.to
	}
	b.keep(l, at, l.end())
	return b.done()
}

// pageBuilder makes pages of items that are added in order.
type pageBuilder[A address[A], T item[A]] struct {
	list []page[A, T]
	buf  []T // not in a page yet
}

// smallPage is what is rather copied than kept beside another small one.
const smallPage = pageSize / 4

func (b *pageBuilder[A, T]) add(it T) {
	b.buf = append(b.buf, it)
	if len(b.buf) == 2*pageSize {
		b.cut(pageSize)
	}
}

// cut makes a page of the first n items that wait.
func (b *pageBuilder[A, T]) cut(n int) {
	items := make([]T, n)
	copy(items, b.buf)
	b.list = append(b.list, newPage[A](items))
	b.buf = b.buf[:copy(b.buf, b.buf[n:])]
}

// flush makes pages of all items that wait.
func (b *pageBuilder[A, T]) flush() {
	if len(b.buf) > pageSize {
		b.cut(len(b.buf) / 2)
	}
	if len(b.buf) > 0 {
		b.cut(len(b.buf))
	}
}

// keep adds the items of l from from up to but not including to, and shares
// pages that are whole.
func (b *pageBuilder[A, T]) keep(l *pages[A, T], from, to place) {
	for from.page < to.page {
		p := l.list[from.page]
		if from.at == 0 && (len(b.buf) == 0 || len(b.buf) >= smallPage && len(p.items) >= smallPage) {
			b.flush()
			b.list = append(b.list, p)
		} else {
			b.addAll(p.items[from.at:])
		}
		from = place{page: from.page + 1}
	}
	if to.page < len(l.list) {
		b.addAll(l.list[to.page].items[from.at:to.at])
	}
}

func (b *pageBuilder[A, T]) addAll(items []T) {
	for _, it := range items {
		b.add(it)
	}
}

func (b *pageBuilder[A, T]) done() pages[A, T] {
	b.flush()
	l := pages[A, T]{list: b.list, reach: make([]A, len(b.list))}
	for i := range l.list {
		l.n += len(l.list[i].items)
		l.few.add(l.list[i].few)
		l.lasting.add(l.list[i].lasting)
		l.reach[i] = l.list[i].highest
		if i > 0 && l.reach[i-1].compare(l.reach[i]) > 0 {
			l.reach[i] = l.reach[i-1]
		}
	}
	return l
}

// pagesOf makes pages of a sorted list.
func pagesOf[A address[A], T item[A]](list []T) pages[A, T] {
	b := pageBuilder[A, T]{list: make([]page[A, T], 0, len(list)/pageSize+1)}
	b.addAll(list)
	return b.done()
}
