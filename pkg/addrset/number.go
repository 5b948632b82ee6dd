package addrset

import (
	"cmp"
	"encoding/binary"
	"math"
	"math/bits"
	"net/netip"
	"time"
)

// address is an address of one family as a number. A million of them are
// compared, stored and copied in a fraction of what netip.Addr takes, which is
// 24 bytes.
type address[A any] interface {
	comparable
	compare(A) int
	next() (A, bool) // false after the last address
	prev() (A, bool) // false before the first
	few(to A) int    // how many there are up to to, which is not less; 0 is more than Few
	addr() netip.Addr
}

type v4 uint32

func (a v4) compare(b v4) int { return cmp.Compare(a, b) }
func (a v4) next() (v4, bool) { return a + 1, a != math.MaxUint32 }
func (a v4) prev() (v4, bool) { return a - 1, a != 0 }
func (a v4) few(to v4) int    { return few(uint64(to - a)) }
func (a v4) addr() netip.Addr {
	return netip.AddrFrom4([4]byte{byte(a >> 24), byte(a >> 16), byte(a >> 8), byte(a)})
}

type v6 struct{ hi, lo uint64 }

func (a v6) compare(b v6) int {
	if c := cmp.Compare(a.hi, b.hi); c != 0 {
		return c
	}
	return cmp.Compare(a.lo, b.lo)
}

func (a v6) next() (v6, bool) {
	if a.lo++; a.lo == 0 {
		a.hi++
	}
	return a, a != v6{}
}

func (a v6) prev() (v6, bool) {
	ok := a != v6{}
	if a.lo == 0 {
		a.hi--
	}
	a.lo--
	return a, ok
}

func (a v6) few(to v6) int {
	lo, borrow := bits.Sub64(to.lo, a.lo, 0)
	if hi, _ := bits.Sub64(to.hi, a.hi, borrow); hi != 0 {
		return 0
	}
	return few(lo)
}

func (a v6) addr() netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], a.hi)
	binary.BigEndian.PutUint64(b[8:], a.lo)
	return netip.AddrFrom16(b)
}

func few(distance uint64) int {
	if distance >= Few {
		return 0
	}
	return int(distance) + 1
}

// numberOf is the inverse of addr. a must be of the family of A.
func numberOf[A address[A]](a netip.Addr) A {
	var out A
	hi, lo := words(a)
	switch n := any(&out).(type) {
	case *v4:
		*n = v4(lo)
	case *v6:
		*n = v6{hi, lo}
	}
	return out
}

// forever is the expiry of what never expires; all others are nanoseconds
// since 1970. What expires after 2262 does so in 2262.
const forever = int64(math.MaxInt64)

var lastInstant = time.Unix(0, forever-1)

func instant(t time.Time) int64 {
	switch {
	case t.IsZero():
		return forever
	case t.After(lastInstant):
		return forever - 1
	case t.Before(time.Unix(0, math.MinInt64)):
		return math.MinInt64
	}
	return t.UnixNano()
}

func timeOf(n int64) time.Time {
	if n == forever {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}
