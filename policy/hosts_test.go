package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/inventory"
	rs "github.com/nftfw/nftfw/pkg/ruleset"
)

// spaced makes a set of n addresses, none beside another, from 20.0.0.1 on, and
// of one network.
func spaced(n int) *addrset.Set { return expiring(0, n) }

// expiring is spaced with the first of the addresses expiring.
func expiring(first, n int) *addrset.Set {
	list := []addrset.Entry{{Range: addrset.RangeOf(netip.MustParsePrefix("203.0.113.0/24")), Source: addrset.Runtime}}
	for i := range n {
		a := netip.AddrFrom4([4]byte{20, byte(i >> 15), byte(i >> 7), byte(i<<1 | 1)})
		e := addrset.Entry{Range: addrset.Range{From: a, To: a}, Source: addrset.Runtime}
		if i < first {
			e.Expires = time.Unix(1000, 0)
		}
		list = append(list, e)
	}
	return addrset.New(list...)
}

// TestLargeSets asks the table of sets on both sides of the sizes from which on
// single addresses have a hash of their own, and a larger one, with timeouts and
// without, and walks from each to each other by Fits and WithSet.
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
	network := netip.MustParsePrefix("203.0.113.0/24")
	alone := func(s *addrset.Set) *addrset.Set { return s.Delete(addrset.Runtime, addrset.RangeOf(network)) }
	runs := alone(spaced(1))
	for i := range byte(manyHosts / addrset.Few) {
		r := addrset.Range{From: netip.AddrFrom4([4]byte{20, 0, i + 1, 0}), To: netip.AddrFrom4([4]byte{20, 0, i + 1, addrset.Few - 1})}
		runs = runs.Add(addrset.Entry{Range: r, Source: addrset.Runtime})
	}
	kinds := map[string]struct {
		set    *addrset.Set
		hosts  string // the suffix of the set of hosts, if there is one
		ranges bool   // whether there is anything beside it
	}{
		"none":               {nil, "", false},
		"small":              {spaced(manyHosts - 1), "", true},
		"large":              {spaced(manyHosts), "_hosts.1024", true},
		"large, alone":       {alone(spaced(manyHosts)), "_hosts.1024", false},
		"not yet larger":     {spaced(767), "_hosts.1024", true},
		"larger":             {spaced(768), "_hosts.2048", true},
		"few that expire":    {expiring(manyHosts-1, 2*manyHosts-2), "", true},
		"some that expire":   {expiring(manyHosts-1, 2*manyHosts-1), "_hosts.1024", true},
		"many that expire":   {expiring(manyHosts, 2*manyHosts), "_hosts", true},
		"many expire, alone": {alone(expiring(manyHosts, 2*manyHosts)), "_hosts", false},
		"of short ranges":    {runs, "_hosts.1024", false},
	}
	for _, set := range []string{SetTrusted, SetBlocked} {
		for name, s := range kinds {
			table := compile(set, s.set)
			var hosts []string
			for _, k := range table.Sets {
				if Holds(set, k.Name) && k.Name != set+"4" && k.Name != set+"6" {
					hosts = append(hosts, k.Name)
				}
			}
			if want := set + "4" + s.hosts; s.hosts != "" && !slices.Equal(hosts, []string{want}) || s.hosts == "" && hosts != nil {
				t.Errorf("%s %s: sets of hosts %q, want %q", set, name, hosts, s.hosts)
			}
			for src, in := range map[string]bool{"20.0.0.1": true, "20.0.0.2": false, "20.0.3.1": len(s.set.Covering(netip.MustParseAddr("20.0.3.1"), time.Unix(1, 0))) > 0, "203.0.113.200": s.ranges} {
				if got, want := ask(table, src), (in && s.set != nil) == (set == SetTrusted) && set == SetTrusted; got != want {
					t.Errorf("%s %s: %s let in: %v, want %v", set, name, src, got, want)
				}
			}
			for other, o := range kinds {
				what := fmt.Sprintf("%s from %s to %s", set, name, other)
				// The one that blocks has rules only for what holds something.
				same := s.hosts == o.hosts && (set == SetTrusted || s.ranges == o.ranges)
				if Fits(table, set, o.set) != same {
					t.Errorf("%s: fits: %v", what, !same)
				}
				got, want := WithSet(table, set, o.set), compile(set, o.set)
				for _, src := range []string{"20.0.0.1", "20.0.0.2", "20.0.3.1", "203.0.113.200"} {
					if set == SetTrusted && ask(got, src) != ask(want, src) {
						t.Errorf("%s: %s let in: %v, not as compiled", what, src, ask(got, src))
					}
				}
			}
		}
	}
}

// TestLargeSetsEverywhere puts a set of each size wherever a policy or a label can name
// one. What is decided of its members does not depend on the size.
func TestLargeSetsEverywhere(t *testing.T) {
	const member, outsider = "20.0.0.1", "20.0.0.2"
	toContainer := func(port string) func(string) rs.Packet {
		return func(a string) rs.Packet { return dnat(a, web+":"+port) }
	}
	for _, tt := range []struct {
		name, policy string
		packet       func(addr string) rs.Packet
	}{
		{"containers.default", "containers: {default: many}", toContainer("80")},
		{"a rule", "containers: {rules: [{match: {name: web}, expose: {80: [many, 192.0.2.99]}}]}", toContainer("80")},
		{"a label", "", toContainer("81")},
		{"host.allow", "host: {allow: [{ports: [9000/tcp], from: many}]}", func(a string) rs.Packet { return input(a, host1+":9000") }},
		{"forward.allow", "forward: {default: drop, allow: [{from: many}]}", func(a string) rs.Packet { return links("eth0", "virbr0", direct(a, "198.51.100.7:80")) }},
		{"swarm.ingress", "swarm: {ingress: {8080/tcp: many}}", func(a string) rs.Packet { return input(a, host1+":8080") }},
		{"containers.egress", "containers: {egress: many}", func(a string) rs.Packet { return leave(web, a+":80") }},
		{"egress with a port", "containers: {egress: [\"many:80/tcp\"]}", func(a string) rs.Packet { return leave(web, a+":80") }},
		{"egress of a rule", "containers: {rules: [{match: {name: web}, egress: many}]}", func(a string) rs.Packet { return leave(web, a+":80") }},
	} {
		for _, n := range []int{10, manyHosts, 2 * manyHosts} {
			p, _ := mustParse(t, worldSets+"  many: []\n"+tt.policy)
			inv := world()
			inv.Containers = []inventory.Container{container("web", labels{"nftfw.expose.81": "many"}, "8080:80", "8081:81")}
			if tt.name == "swarm.ingress" {
				inv.Containers = nil
				inSwarm(inventory.SwarmWorker)(&inv)
			}
			sets := setsOf(p)
			sets["many"] = spaced(n)
			table, _ := Compile(p, sets, inv)
			for addr, want := range map[string]rs.VerdictKind{member: rs.Accept, outsider: rs.Drop} {
				packet := tt.packet(addr)
				packet.Time = time.Unix(1, 0)
				if got := table.Decide(packet); got != want {
					t.Errorf("%s, %d addresses: %s: got %s, want %s", tt.name, n, addr, got, want)
				}
			}
		}
	}
	// The nodes of a swarm are a set as well.
	p, _ := mustParse(t, worldSets)
	inv := world()
	inSwarm(inventory.SwarmManager)(&inv)
	for _, n := range []int{10, manyHosts} {
		sets := setsOf(p)
		sets[SetSwarmNodes] = spaced(n)
		table, _ := Compile(p, sets, inv)
		packet := input(member, host1+":7946")
		packet.Time = time.Unix(1, 0)
		if got := table.Decide(packet); got != rs.Accept {
			t.Errorf("one of %d nodes: %s", n, got)
		}
	}
}

func TestHolds(t *testing.T) {
	for name, want := range map[string]bool{
		"x4": true, "x6": true, "x4_hosts": true, "x6_hosts.65536": true,
		"x": false, "x44": false, "x4_hosts6": false, "x4_hosts_655364": false, "y4": false,
	} {
		if got := Holds("x", name); got != want {
			t.Errorf("Holds(x, %s) = %v", name, got)
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
