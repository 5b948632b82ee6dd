package policy

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/inventory"
	rs "github.com/nftfw/nftfw/pkg/ruleset"
)

// spaced makes a set of n addresses, none beside another, from 20.0.0.1 on, and
// of one network.
func spaced(n int) *addrset.Set {
	list := []addrset.Entry{{Range: addrset.RangeOf(netip.MustParsePrefix("203.0.113.0/24")), Source: addrset.Runtime}}
	for i := range n {
		a := netip.AddrFrom4([4]byte{20, byte(i >> 15), byte(i >> 7), byte(i<<1 | 1)})
		list = append(list, addrset.Entry{Range: addrset.Range{From: a, To: a}, Source: addrset.Runtime})
	}
	return addrset.New(list...)
}

// TestLargeSets asks the table of sets on both sides of the size from which on
// single addresses have a hash of their own, and walks from each size to each
// other by Fits and WithRanges.
func TestLargeSets(t *testing.T) {
	p, _, err := Parse("policy.yaml", []byte("version: 1\nhost: {allow: [{ports: [22/tcp], from: trusted}]}\n"))
	if err != nil {
		t.Fatal(err)
	}
	inv := inventory.Snapshot{Engine: inventory.EngineAbsent}
	compile := func(set string, s *addrset.Set) *rs.Table {
		table, _ := Compile(p, Sets{set: s}, inv)
		if err := table.Validate(); err != nil {
			t.Fatalf("%s: %v", set, err)
		}
		return table
	}
	ask := func(table *rs.Table, src string) bool {
		a := netip.MustParseAddr(src)
		packet := rs.Packet{
			Hook: rs.Prerouting, IIf: "eth0", Src: a, Dst: netip.MustParseAddr("198.51.100.1"),
			Proto: protoTCP, SPort: 4000, DPort: 22, State: rs.StateNew, Time: time.Unix(1, 0),
		}
		if table.Decide(packet) == rs.Drop {
			return false
		}
		packet.Hook = rs.Input
		return table.Decide(packet) != rs.Drop
	}
	sizes := map[string]*addrset.Set{"none": nil, "small": spaced(manyHosts - 1), "large": spaced(manyHosts)}
	for _, set := range []string{SetTrusted, SetBlocked} {
		for name, s := range sizes {
			table := compile(set, s)
			if hosts := table.Set(set+"4"+hostsSuffix) != nil; hosts != (name == "large") {
				t.Errorf("%s %s: a set of hosts: %v", set, name, hosts)
			}
			for src, in := range map[string]bool{"20.0.0.1": true, "20.0.0.2": false, "203.0.113.200": true} {
				if got, want := ask(table, src), (in && s != nil) == (set == SetTrusted) && set == SetTrusted; got != want {
					t.Errorf("%s %s: %s let in: %v, want %v", set, name, src, got, want)
				}
			}
			for other, o := range sizes {
				what := fmt.Sprintf("%s from %s to %s", set, name, other)
				// The one that blocks has rules only while it holds something.
				same := name == other || set == SetTrusted && name != "large" && other != "large"
				if Fits(table, set, o) != same {
					t.Errorf("%s: fits: %v", what, !same)
				}
				if same {
					got, want := table.WithRanges(KernelSets(set, o)), compile(set, o)
					if ask(got, "20.0.0.1") != ask(want, "20.0.0.1") {
						t.Errorf("%s: not as compiled", what)
					}
				}
			}
		}
	}
}

// TestBlockedIsAsked makes sure that what is blocked is, in both of its sets, and
// that packets meet no chain for nothing.
func TestBlockedIsAsked(t *testing.T) {
	p, _, err := Parse("policy.yaml", []byte("version: 1\nhost: {default: accept}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if table, _ := Compile(p, nil, inventory.Snapshot{Engine: inventory.EngineAbsent}); table.Chain(chainPrerouting) != nil {
		t.Error("a chain for a set that is empty")
	}
	for _, n := range []int{0, 3, manyHosts} {
		table, _ := Compile(p, Sets{SetBlocked: spaced(n)}, inventory.Snapshot{Engine: inventory.EngineAbsent})
		if table.Chain(chainPrerouting) == nil {
			t.Errorf("%d addresses: none is asked for", n)
		}
		for src, blocked := range map[string]bool{"20.0.0.1": n > 0, "20.0.0.2": false, "203.0.113.7": true} {
			packet := rs.Packet{Hook: rs.Prerouting, IIf: "eth0", Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr("198.51.100.1"), Proto: protoTCP, Time: time.Unix(1, 0)}
			if got := table.Decide(packet) == rs.Drop; got != blocked {
				t.Errorf("%d addresses: %s blocked: %v", n, src, got)
			}
		}
	}
}
