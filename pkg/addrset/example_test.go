package addrset_test

import (
	"fmt"
	"time"

	"github.com/nftfw/nftfw/pkg/addrset"
)

// A visitor is let in for an hour, out of a network that is let in anyway
// until noon: the kernel gets three pieces, and one again when he is removed.
func ExampleSet() {
	noon := time.Date(2024, 1, 1, 12, 0, 0, 0, time.UTC)
	network, _ := addrset.ParseRange("198.51.100.0/24")
	visitor, _ := addrset.ParseRange("198.51.100.7")

	set := addrset.New(
		addrset.Entry{Range: network, Source: addrset.Runtime, Expires: noon},
		addrset.Entry{Range: visitor, Source: addrset.Runtime, Expires: noon.Add(time.Hour)},
	)
	show := func(s *addrset.Set) {
		for _, g := range s.Segments4().All() {
			fmt.Println(addrset.Range{From: g.From, To: g.To}, "until", g.Expires.Format(time.Kitchen))
		}
	}
	show(set)
	fmt.Println("without the visitor:")
	show(set.Delete(addrset.Runtime, visitor))
	// Output:
	// 198.51.100.0-198.51.100.6 until 12:00PM
	// 198.51.100.7 until 1:00PM
	// 198.51.100.8-198.51.100.255 until 12:00PM
	// without the visitor:
	// 198.51.100.0/24 until 12:00PM
}
