package ruleset

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/nftfw/nftfw/pkg/addrset"
)

// TestPieceChanges makes the pieces of every part of a random set those of another,
// change by change.
func TestPieceChanges(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	random := func() *addrset.Segments {
		var list []addrset.Segment
		for n := byte(0); n < 60; n++ {
			if r.IntN(3) == 0 {
				continue
			}
			a := netip.AddrFrom4([4]byte{20, 0, 0, n})
			g := addrset.Segment{From: a, To: a}
			if r.IntN(8) == 0 {
				g.Expires = time.Unix(int64(1+r.IntN(2)), 0).UTC()
			}
			list = append(list, g)
		}
		return addrset.SegmentsOf(list...)
	}
	for range 300 {
		before, after := random(), random()
		for part := range Lasting + 1 {
			old, now := &Set{Part: part, Ranges: before}, &Set{Part: part, Ranges: after}
			pieces := slices.Collect(old.Pieces())
			if len(pieces) != old.PieceCount() {
				t.Fatalf("part %d: %d pieces, counted %d: %v", part, len(pieces), old.PieceCount(), pieces)
			}
			var last netip.Addr
			for c := range now.PieceChanges(before) {
				at := c.New.From
				if c.Old.From.IsValid() {
					at = c.Old.From
					i := slices.Index(pieces, c.Old)
					if i < 0 {
						t.Fatalf("part %d: %v is changed and was not there", part, c.Old)
					}
					pieces = slices.Delete(pieces, i, i+1)
				}
				if c.New.From.IsValid() {
					pieces = append(pieces, c.New)
				}
				if c.Old == c.New || last.IsValid() && !last.Less(at) {
					t.Fatalf("part %d: %v behind %s", part, c, last)
				}
				last = at
			}
			slices.SortFunc(pieces, func(a, b addrset.Segment) int { return a.From.Compare(b.From) })
			if want := slices.Collect(now.Pieces()); !slices.Equal(pieces, want) {
				t.Fatalf("part %d:\nfrom %v\nto   %v\ngot  %v", part, slices.Collect(old.Pieces()), want, pieces)
			}
		}
	}
}
