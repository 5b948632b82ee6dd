package nft

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/ruleset"
)

// withCutSets is t with sets for cut flows.
func withCutSets(t *ruleset.Table) *ruleset.Table {
	out := *t
	out.Sets = append([]*ruleset.Set{
		{Name: "cut4", Key: flowFields(true), Dynamic: true, Size: 1 << 19, Timeout: time.Minute},
		{Name: "cut6", Key: flowFields(false), Dynamic: true, Size: 1 << 19},
	}, out.Sets...)
	return &out
}

func cutsOf(t *testing.T, k *Kernel, table *ruleset.Table) []Cut {
	t.Helper()
	cuts, err := k.Cuts(context.Background(), table)
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(cuts, func(a, b Cut) int { return a.Client.Compare(b.Client) })
	return cuts
}

var sameCut = cmp.Options{cmpopts.EquateComparable(netip.AddrPort{}), cmpopts.EquateApproxTime(10 * time.Second)}

func TestCuts(t *testing.T) {
	k := inNamespace(t)
	table := withCutSets(published(2))
	if got := cutsOf(t, k, table); len(got) > 0 {
		t.Fatalf("cuts %v without a table", got)
	}
	in := func(d time.Duration) time.Time { return time.Now().Add(d) }
	cut := func(f Flow, d time.Duration) Cut {
		c, ok := f.Cut(in(d))
		if !ok {
			t.Fatalf("%v cannot be cut", f)
		}
		return c
	}
	tcp := cut(translated(6, "10.0.0.1:4000", "198.18.0.1:8080", "172.17.0.2:80"), time.Hour)
	udp := cut(translated(17, "10.0.0.2:53", "198.18.0.1:53", "198.18.0.1:53"), time.Minute)
	six := cut(translated(6, "[fd00::1]:4000", "[fd00::2]:80", "[fd00:1::2]:8080"), 2*time.Hour)

	// The table and the first cuts in one batch; one flow twice, as two entries may give it.
	p := Diff(observe(t, k, table.Name), table, time.Now())
	if !p.EmptiesCuts(table) {
		t.Error("a new table is not said to lose cuts")
	}
	commit(t, k, p.WithCuts(table, []Cut{tcp, udp, tcp}))
	if diff := cmp.Diff([]Cut{tcp, udp}, cutsOf(t, k, table), sameCut); diff != "" {
		t.Fatalf("cuts (-want +got):\n%s", diff)
	}
	wantSettled(t, k, table)

	// Both directions, as a packet shows them.
	listing := nft(t, k, "", "get", "element", "inet", "nftfw", "cut4", "{ 10.0.0.1 . tcp . 4000 . 172.17.0.2 . 80, 172.17.0.2 . tcp . 80 . 10.0.0.1 . 4000 }")
	if n := len(slices.Collect(elementsListed(listing))); n != 2 {
		t.Errorf("%d elements of a flow, want 2:\n%s", n, listing)
	}

	again := Diff(StateOf(table), table, time.Now())
	if again.EmptiesCuts(table) {
		t.Error("an empty plan is said to lose cuts")
	}
	commit(t, k, again.WithCuts(table, []Cut{tcp, six}))
	if diff := cmp.Diff([]Cut{tcp, udp, six}, cutsOf(t, k, table), sameCut); diff != "" {
		t.Fatalf("cuts (-want +got):\n%s", diff)
	}
	// One of them is not there.
	gone := tcp
	gone.Client = netip.MustParseAddrPort("10.9.9.9:1")
	commit(t, k, again.WithoutCuts(table, []Cut{tcp, gone}))
	if diff := cmp.Diff([]Cut{udp, six}, cutsOf(t, k, table), sameCut); diff != "" {
		t.Errorf("cuts that are left (-want +got):\n%s", diff)
	}
	if plain := published(2); !(Plan{}).WithCuts(plain, []Cut{tcp}).Empty() {
		t.Error("a table without sets for it takes cuts")
	}
}

func TestCutOfFlowWithoutPorts(t *testing.T) {
	if _, ok := translated(50, "10.0.0.1:0", "10.0.0.2:0", "10.0.0.2:0").Cut(time.Time{}); ok {
		t.Error("ESP can be cut by its ports")
	}
}

func TestNarrows(t *testing.T) {
	var never time.Time
	accept := ruleset.Element{Verdict: ruleset.Verdict{Kind: ruleset.Accept}}
	goTo := ruleset.Element{Verdict: ruleset.Verdict{Kind: ruleset.Goto, Chain: "from_any"}, Comment: "another"}
	drop := ruleset.Element{Verdict: ruleset.Verdict{Kind: ruleset.Drop}}
	without := func(t *ruleset.Table) *ruleset.Table { return with(t, publishedKey(9), accept) }
	ranges := func(name string, list ...string) *ruleset.Table {
		var out []addrset.Segment
		for _, s := range list {
			r, err := addrset.ParseRange(s)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, addrset.Segment{From: r.From, To: r.To})
		}
		return &ruleset.Table{Name: "nftfw", Sets: []*ruleset.Set{{Name: name, Key: []ruleset.Field{ruleset.IPSaddr}, Interval: true, Ranges: addrset.SegmentsOf(out...)}}}
	}
	expiring := func(at time.Time) *ruleset.Table { return trusted(2, at) }
	links := func(names ...string) *ruleset.Table {
		elements := map[ruleset.Key]ruleset.Element{}
		for _, n := range names {
			elements[ruleset.Key{IIf: n}] = ruleset.Element{}
		}
		return &ruleset.Table{Name: "nftfw", Sets: []*ruleset.Set{{Name: "foreign", Key: []ruleset.Field{ruleset.IIfName}, Elements: elements}}}
	}
	changed := func(f func(*ruleset.Table)) *ruleset.Table {
		out := published(1)
		f(out)
		return out
	}
	base := published(1)
	for _, c := range []struct {
		name       string
		have, want *ruleset.Table
		narrows    bool
	}{
		{"nothing", base, base, false},
		{"first table", nil, base, true},
		{"no table any more", base, nil, true},
		{"another container", base, with(base, publishedKey(1), goTo), false},
		{"a new key that closes what rules let in", base, with(base, publishedKey(2), drop), true},
		{"a new key that lets in as many", base, with(base, publishedKey(2), accept), false},
		{"a container less", without(base), base, true},
		{"key with a wider verdict", base, with(base, publishedKey(0), accept), false},
		{"key with another owner", base, with(base, publishedKey(0), goTo), false},
		{"key with a narrower verdict", base, with(base, publishedKey(0), drop), true},
		{"new FROM", base, changed(func(t *ruleset.Table) {
			t.Chains = append(t.Chains, &ruleset.Chain{Name: "from_office", Rules: []ruleset.Rule{{Verdict: drop.Verdict}}})
		}), false},
		{"new base chain", base, changed(func(t *ruleset.Table) {
			t.Chains = append(t.Chains, &ruleset.Chain{Name: "in", Hook: ruleset.Input, Policy: ruleset.Drop})
		}), true},
		{"chain less", changed(func(t *ruleset.Table) { t.Chains = append(t.Chains, &ruleset.Chain{Name: "more"}) }), base, true},
		{"another rule", base, changed(func(t *ruleset.Table) { t.Chains[1].Rules[0].Verdict = drop.Verdict }), true},
		{"another policy", base, changed(func(t *ruleset.Table) { t.Chains[0].Policy = ruleset.Drop }), true},
		{"set less", withCutSets(base), base, true},
		{"sets for cuts", base, withCutSets(base), false},
		{"more addresses", ranges("office4", "10.0.0.0/8"), ranges("office4", "10.0.0.0/8", "192.0.2.1"), false},
		{"addresses in a larger range", ranges("office4", "10.1.0.0/16"), ranges("office4", "10.0.0.0/8"), false},
		{"fewer addresses", ranges("office4", "10.0.0.0/8", "192.0.2.1"), ranges("office4", "10.0.0.0/8"), true},
		{"addresses in a smaller range", ranges("office4", "10.0.0.0/8"), ranges("office4", "10.0.0.0/9"), true},
		{"another time", expiring(never), expiring(time.Now().Add(time.Hour)), false},
		{"more blocked addresses", ranges("blocked4", "10.0.0.0/8"), ranges("blocked4", "10.0.0.0/8", "192.0.2.1"), true},
		{"link that came", links("eth0"), links("eth0", "eth1"), false},
		{"link that left", links("eth0", "gone0"), links("eth0"), false},
		{"link that is no longer foreign", links("eth0", "br0"), links("eth0"), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := Diff(StateOf(c.have), c.want, time.Now())
			moot := func(set string, k ruleset.Key) bool { return set == "foreign" && k.IIf == "gone0" }
			blocks := func(set string) bool { return set == "blocked4" }
			closing := func(_ string, k ruleset.Key, v ruleset.Verdict) bool {
				return k == publishedKey(2) && v == drop.Verdict
			}
			if got := p.Narrows(blocks, closing, moot); got != c.narrows {
				t.Errorf("narrows: %v, want %v; plan:\n%v", got, c.narrows, p.Lines())
			}
		})
	}
}

// elementsListed yields the elements of a listing with one to a line.
func elementsListed(listing string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for line := range strings.Lines(listing) {
			if strings.Contains(line, " . ") && !strings.Contains(line, "type ") && !yield(line) {
				return
			}
		}
	}
}
