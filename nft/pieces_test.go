package nft

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/ruleset"
)

// TestPieces makes the elements of every part of a random set those of another: no
// element is touched twice, or without need.
func TestPieces(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	now := time.Now()
	random := func() *addrset.Segments {
		var list []addrset.Segment
		for n := byte(0); n < 60; n++ {
			if r.IntN(3) == 0 {
				continue
			}
			a := netip.AddrFrom4([4]byte{20, 0, 0, n})
			g := addrset.Segment{From: a, To: a}
			if r.IntN(8) == 0 {
				g.Expires = now.Add(time.Duration(1+r.IntN(2)) * time.Hour)
			}
			list = append(list, g)
		}
		return addrset.SegmentsOf(list...)
	}
	for range 300 {
		before, after := random(), random()
		for part := range ruleset.Lasting + 1 {
			set := func(s *addrset.Segments) *ruleset.Set {
				key := []ruleset.Field{ruleset.IPSaddr}
				return &ruleset.Set{Key: key, Part: part, Interval: part != ruleset.Hosts && part != ruleset.Lasting, Ranges: s}
			}
			old, want := set(before), set(after)
			pieces := slices.Collect(old.Pieces())
			if len(pieces) != old.PieceCount() {
				t.Fatalf("part %d: %d pieces, counted %d: %v", part, len(pieces), old.PieceCount(), pieces)
			}
			c := elementChange{set: want}
			c.pieces(old, now)
			for i, e := range c.delete {
				at := slices.Index(pieces, pieceOf(want, e))
				if at < 0 {
					t.Fatalf("part %d: %v is deleted and not there", part, pieceOf(want, e))
				}
				pieces = slices.Delete(pieces, at, at+1)
				if i > 0 && bytes.Compare(c.delete[i-1].key, e.key) >= 0 {
					t.Fatalf("part %d: %v deleted out of order", part, pieceOf(want, e))
				}
			}
			for i, e := range c.add {
				g := pieceOf(want, e)
				if slices.Contains(pieces, g) || slices.ContainsFunc(c.delete, func(d element) bool { return pieceOf(want, d) == g }) {
					t.Fatalf("part %d: %v is added and was there", part, g)
				}
				pieces = append(pieces, g)
				if i > 0 && bytes.Compare(c.add[i-1].key, e.key) >= 0 {
					t.Fatalf("part %d: %v added out of order", part, g)
				}
			}
			slices.SortFunc(pieces, func(a, b addrset.Segment) int { return a.From.Compare(b.From) })
			if want := slices.Collect(want.Pieces()); !slices.Equal(pieces, want) {
				t.Fatalf("part %d:\nfrom %v\nto   %v\ngot  %v", part, slices.Collect(old.Pieces()), want, pieces)
			}
		}
	}
}
