package sources

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/nftfw/nftfw/pkg/addrset"
)

// fleet is what is known of the keys under a prefix in etcd: what follows the
// prefix, the values and the leases. Several keys may stand for one range.
type fleet struct {
	keys    map[string]fleetKey
	ranges  map[addrset.Range]map[string]bool // to the keys
	bad     map[string]error                  // keys that are no ranges
	leases  map[int64]*lease
	touched map[addrset.Range]bool // since changes was last called
}

type fleetKey struct {
	rng     addrset.Range
	comment string
	lease   int64 // 0: none
}

// lease is one lease of etcd.
type lease struct {
	keys    map[string]bool
	expires time.Time // as told
	ask     time.Time // when it is asked about next; zero: at once
}

func newFleet() *fleet {
	return &fleet{
		keys: map[string]fleetKey{}, ranges: map[addrset.Range]map[string]bool{}, bad: map[string]error{},
		leases: map[int64]*lease{}, touched: map[addrset.Range]bool{},
	}
}

// put takes in a key.
func (f *fleet) put(key, value string, leaseID int64) {
	f.remove(key)
	rng, err := addrset.ParseRange(key)
	if err != nil {
		f.bad[key] = err
		return
	}
	f.keys[key] = fleetKey{rng: rng, comment: oneLine(value), lease: leaseID}
	if f.ranges[rng] == nil {
		f.ranges[rng] = map[string]bool{}
	}
	f.ranges[rng][key] = true
	f.touched[rng] = true
	if leaseID == 0 {
		return
	}
	if f.leases[leaseID] == nil {
		f.leases[leaseID] = &lease{keys: map[string]bool{}}
	}
	f.leases[leaseID].keys[key] = true
}

// remove forgets a key.
func (f *fleet) remove(key string) {
	delete(f.bad, key)
	k, ok := f.keys[key]
	if !ok {
		return
	}
	delete(f.keys, key)
	delete(f.ranges[k.rng], key)
	if len(f.ranges[k.rng]) == 0 {
		delete(f.ranges, k.rng)
	}
	f.touched[k.rng] = true
	if l := f.leases[k.lease]; l != nil {
		delete(l.keys, key)
		if len(l.keys) == 0 {
			delete(f.leases, k.lease)
		}
	}
}

// dueLeases lists the leases that are to be asked about.
func (f *fleet) dueLeases(now time.Time) []int64 {
	var out []int64
	for id, l := range f.leases {
		if !l.ask.After(now) {
			out = append(out, id)
		}
	}
	return out
}

// nextLease gives the time until a lease is to be asked about, an hour at the
// most.
func (f *fleet) nextLease(now time.Time) time.Duration {
	next := time.Hour
	for _, l := range f.leases {
		next = min(next, max(0, l.ask.Sub(now)))
	}
	return next
}

// putOff lets no lease be asked about before at.
func (f *fleet) putOff(at time.Time) {
	for _, l := range f.leases {
		if l.ask.Before(at) {
			l.ask = at
		}
	}
}

// lasts notes for how long a lease lasts from now. It is asked about again
// when half of that is over: it may have been renewed by then.
func (f *fleet) lasts(id int64, now time.Time, left time.Duration) {
	l := f.leases[id]
	if l == nil {
		return
	}
	l.ask = now.Add(max(left/2, time.Second))
	expires := now.Add(left)
	if d := expires.Sub(l.expires); d > -leaseSlack && d < leaseSlack {
		return
	}
	l.expires = expires
	for key := range l.keys {
		f.touched[f.keys[key].rng] = true
	}
}

// changes gives what is to be told since it was last called: entries that came
// or changed, and ranges that went or whose lease ended before now.
func (f *fleet) changes(source addrset.Source, now time.Time) (add []addrset.Entry, gone []addrset.Range) {
	for rng := range f.touched {
		if len(f.ranges[rng]) == 0 {
			gone = append(gone, rng)
			continue
		}
		e := f.entry(rng, source)
		if !e.Expires.IsZero() && !e.Expires.After(now) {
			gone = append(gone, rng)
			continue
		}
		add = append(add, e)
	}
	clear(f.touched)
	return add, gone
}

// gone gives of what changes would tell the ranges that no key has any more.
func (f *fleet) gone() (gone []addrset.Range) {
	for rng := range f.touched {
		if len(f.ranges[rng]) == 0 {
			gone = append(gone, rng)
			delete(f.touched, rng)
		}
	}
	return gone
}

// entry is what the keys of a range make together: it lasts as long as the one
// that lasts longest.
func (f *fleet) entry(rng addrset.Range, source addrset.Source) addrset.Entry {
	e := addrset.Entry{Range: rng, Source: source}
	first := true
	for _, name := range slices.Sorted(maps.Keys(f.ranges[rng])) {
		key := f.keys[name]
		var expires time.Time
		if l := f.leases[key.lease]; l != nil {
			expires = l.expires
		}
		if first || expires.IsZero() || !e.Expires.IsZero() && expires.After(e.Expires) {
			e.Expires = expires
		}
		if e.Comment == "" {
			e.Comment = key.comment
		}
		first = false
	}
	return e
}

// note says which keys were passed over.
func (f *fleet) note() string {
	if len(f.bad) == 0 {
		return ""
	}
	first := slices.Min(slices.Collect(maps.Keys(f.bad)))
	if len(f.bad) == 1 {
		return fmt.Sprintf("a key is no address and is passed over: %.60q", first)
	}
	return fmt.Sprintf("%d keys are no addresses and are passed over, such as %.60q", len(f.bad), first)
}

// oneLine is a text that can stand in a table.
func oneLine(s string) string {
	s = strings.ToValidUTF8(s[:min(len(s), maxComment)], "")
	return strings.TrimSpace(strings.Map(func(c rune) rune {
		if unicode.IsControl(c) {
			return ' '
		}
		return c
	}, s))
}
