package addrset

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

// randomEntries makes n IPv4 entries in random order: addresses for the most
// part, a tenth of them networks that overlap others, a fifth with an expiry.
func randomEntries(n int) []Entry {
	rng := rand.New(rand.NewPCG(uint64(n), 7))
	list := make([]Entry, n)
	for i := range list {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], rng.Uint32())
		bits := 32
		if i%10 == 0 {
			bits = 16 + rng.IntN(16)
		}
		list[i] = Entry{Range: RangeOf(netip.PrefixFrom(netip.AddrFrom4(b), bits)), Source: Runtime}
		if i%5 == 0 {
			list[i].Expires = epoch.Add(time.Duration(rng.IntN(100)) * time.Minute)
		}
	}
	return list
}

// disjointEntries makes n sorted IPv4 addresses, none beside another.
func disjointEntries(n int) []Entry {
	list := make([]Entry, n)
	for i := range list {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], uint32(i)*2)
		a := netip.AddrFrom4(b)
		list[i] = Entry{Range: Range{a, a}, Source: Runtime}
	}
	return list
}

var benchSizes = []int{10_000, 100_000, 1_000_000}

func BenchmarkNew(b *testing.B) {
	for _, n := range benchSizes {
		for name, list := range map[string][]Entry{"random": randomEntries(n), "disjoint": disjointEntries(n)} {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					New(list...).Segments4()
				}
			})
		}
	}
}

// BenchmarkChange adds one address to a set and deletes it again, segments
// included.
func BenchmarkChange(b *testing.B) {
	r := RangeOf(netip.MustParsePrefix("100.64.0.1/32"))
	for _, n := range benchSizes {
		for name, list := range map[string][]Entry{"random": randomEntries(n), "disjoint": disjointEntries(n)} {
			s := New(list...)
			s.Segments4()
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					added := s.Add(Entry{Range: r, Source: Runtime})
					added.Segments4()
					added.Delete(Runtime, r).Segments4()
				}
			})
		}
	}
}
