package addrset

import (
	"net/netip"
	"testing"
)

func TestOverlaps(t *testing.T) {
	var list []Segment
	for _, r := range []string{"10.0.0.5-10.0.0.7", "10.0.2.0-10.0.3.255", "172.17.0.9"} {
		span, err := ParseRange(r)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, Segment{From: span.From, To: span.To})
	}
	blocked := SegmentsOf(list...)
	for subnet, want := range map[string]bool{
		"10.0.0.0/24":    true,  // a range lies within
		"10.0.0.4/31":    true,  // and begins at its last address
		"10.0.0.7/32":    true,  // and ends at its first
		"10.0.0.8/29":    false, // a range ends before it
		"10.0.0.0/30":    false, // begins after it
		"10.0.2.128/25":  true,  // covers it
		"10.0.3.255/32":  true,
		"10.0.4.0/22":    false, // lies between two
		"172.17.0.0/16":  true,
		"192.168.0.0/16": false, // lies after all
		"0.0.0.0/0":      true,
	} {
		if got := blocked.Overlaps(RangeOf(netip.MustParsePrefix(subnet))); got != want {
			t.Errorf("%s: %t, want %t", subnet, got, want)
		}
	}
	if SegmentsOf().Overlaps(RangeOf(netip.MustParsePrefix("0.0.0.0/0"))) {
		t.Error("no segment overlaps anything")
	}
}
