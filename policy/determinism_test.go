package policy

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/inventory"
	rs "github.com/nftfw/nftfw/pkg/ruleset"
)

// shuffled is inv with everything in another order that has none.
func shuffled(r *rand.Rand, inv inventory.Snapshot) inventory.Snapshot {
	inv.Containers, inv.Networks, inv.Links = mixed(r, inv.Containers), mixed(r, inv.Networks), mixed(r, inv.Links)
	inv.ForeignBridges = mixed(r, inv.ForeignBridges)
	for i := range inv.Containers {
		c := &inv.Containers[i]
		c.Endpoints, c.Ports = mixed(r, c.Endpoints), mixed(r, c.Ports)
		c.Labels, c.ImageLabels = maps.Clone(c.Labels), maps.Clone(c.ImageLabels)
	}
	return inv
}

func mixed[T any](r *rand.Rand, list []T) []T {
	list = slices.Clone(list)
	r.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list
}

// compileTwice compiles inputs in two orders, and checks that nothing of it
// shows and that the table is valid.
func compileTwice(t *testing.T, r *rand.Rand, p *Policy, inv inventory.Snapshot) *rs.Table {
	t.Helper()
	table, diags := Compile(p, setsOf(p), inv)
	if err := table.Validate(); err != nil {
		t.Fatalf("Compile made an invalid table: %v", err)
	}
	again, diagsAgain := Compile(p, setsOf(p), shuffled(r, inv))
	if diff := cmp.Diff(textOf(table), textOf(again)); diff != "" {
		t.Fatalf("another order of the inputs gives another table (-first +second):\n%s", diff)
	}
	if diff := cmp.Diff(origins(table), origins(again)); diff != "" {
		t.Fatalf("another order of the inputs gives other origins (-first +second):\n%s", diff)
	}
	if diff := cmp.Diff(diags, diagsAgain); diff != "" {
		t.Fatalf("another order of the inputs gives other diagnostics (-first +second):\n%s", diff)
	}
	return table
}

// origins are what the text does not show of a table's elements.
func origins(table *rs.Table) []string {
	var out []string
	for _, s := range table.Sets {
		for _, k := range s.SortedKeys() {
			out = append(out, fmt.Sprintf("%s %s %s", s.Name, k.Format(s.Key), s.Elements[k].Origin))
		}
	}
	return out
}

func TestCompileInAnyOrder(t *testing.T) {
	dirs, err := filepath.Glob("testdata/compile/*")
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, dir := range dirs {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, 2))
			p, inv := readCase(t, dir)
			for range 10 {
				compileTwice(t, r, p, inv)
			}
		})
	}
}

// randomPolicies are what randomInventory is compiled with.
var randomPolicies = []string{
	"",
	"containers: {default: any, labels: [office, 10.0.0.0/8], to_host: [53/udp, 80/tcp]}",
	"containers: {default: none, image_labels: true, to_host: none}\nhost: {default: accept, allow: [{ports: [80-90/tcp, esp], from: [office, 10.0.0.0/8]}]}",
	`mode: observe
containers:
  rules:
  - {match: {name: "c*", host_ip: 198.18.0.1}, expose: {80/tcp: any, 85-90/tcp: office}}
  - {match: {host_ip: "fd00:18::1"}, expose: {"*": none}}
  - {match: {label: {tier: "*"}}, expose: {80-83/tcp: "10.0.0.1-10.0.0.7", 81/tcp: any}}
  - {match: {project: shop}, expose: {"*": branch}}`,
}

// randomInventory has few addresses, ports and words, so that containers get
// into each other's way.
func randomInventory(r *rand.Rand) inventory.Snapshot {
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	addr := func(list ...string) netip.Addr {
		a, _ := netip.ParseAddr(pick(list...)) // "" is no address
		return a
	}
	words := func() map[string]string {
		l := map[string]string{}
		for range r.IntN(4) {
			key := pick("nftfw.expose", "nftfw.expose.80", "nftfw.expose.80/tcp", "nftfw.expose.80-85", "nftfw.expose.81/udp", "nftfw.expose.1-200",
				"nftfw.exposed", "nftfw.expose.x", "NFTFW.expose", "nftfw.egress", "tier", composeProject)
			l[key] = pick("any", "none", "trusted", "office", "branch,10.0.0.0/8", "0.0.0.0/0", "nobody", "", "shop")
		}
		return l
	}
	inv := world()
	inv.Engine = inventory.Engine(r.IntN(3))
	for i := range r.IntN(8) {
		c := inventory.Container{
			ID: fmt.Sprintf("%064x", i), Name: fmt.Sprintf("c%d", r.IntN(5)), Image: "i",
			NetworkMode: pick("host", "bridge", "app", "none", "container:x", "bridge"),
			Labels:      words(), ImageLabels: words(), ImageUnknown: r.IntN(8) == 0,
		}
		for range r.IntN(3) {
			c.Endpoints = append(c.Endpoints, inventory.Endpoint{
				NetworkID: pick("n-docker0", "n-app", "n-routed", "n-taken", "n-macvlan", "n-unknown"),
				Addr4:     addr("", web, app, "::ffff:172.17.0.2", web6), Addr6: addr("", web6, app6, "fe80::1%eth0"),
			})
		}
		for range r.IntN(5) {
			c.Ports = append(c.Ports, inventory.Port{
				HostIP:   addr("", "0.0.0.0", "::", host1, host2, host6, "127.0.0.1", "::1", "fe80::1%eth0", "::ffff:198.18.0.1"),
				HostPort: uint16(r.IntN(3) * 80), ContainerPort: uint16(79 + r.IntN(4)), Proto: []uint8{6, 17, 132, 0}[r.IntN(4)],
			})
		}
		inv.Containers = append(inv.Containers, c)
	}
	return inv
}

func TestCompileRandom(t *testing.T) {
	var policies []*Policy
	for _, src := range randomPolicies {
		p, _ := mustParse(t, worldSets+src)
		policies = append(policies, p)
	}
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 0))
		compileTwice(t, r, policies[r.IntN(len(policies))], randomInventory(r))
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// FuzzCompile gives one container labels that nobody thought of.
func FuzzCompile(f *testing.F) {
	f.Add(uint64(1), "nftfw.expose.80", "office,10.0.0.0/8", "bridge")
	f.Add(uint64(2), "nftfw.expose", "any", "host")
	f.Add(uint64(3), "nftfw.expose.1-1000/udp", "any", "host")
	f.Add(uint64(4), "nftfw.egress", "10.0.0.1:443", "container:x")
	f.Add(uint64(5), "nftfw.\"\n", "\xff", "none")
	f.Fuzz(func(t *testing.T, seed uint64, key, value, mode string) {
		r := rand.New(rand.NewPCG(seed, 1))
		p, _ := mustParse(t, worldSets+randomPolicies[seed%uint64(len(randomPolicies))])
		inv := randomInventory(r)
		c := container("fuzzed", labels{key: value, "nftfw.expose.81": value}, "8080:80/tcp", "81/udp")
		c.NetworkMode = mode
		inv.Containers = append(inv.Containers, c)
		inv.Links = append(inv.Links, inventory.Link{Index: 99, Name: link(key)})
		compileTwice(t, r, p, inv)
	})
}

// link is a name that the kernel would take for a link, dev_valid_name.
func link(s string) string {
	s = string(slices.DeleteFunc([]byte(s), func(c byte) bool {
		return c == '/' || c == ':' || c == ' ' || c >= '\t' && c <= '\r' || c == 0xa0 || c == 0
	}))
	s = s[:min(len(s), 15)]
	if s == "" || s == "." || s == ".." {
		return "eth9"
	}
	return s
}

func TestCompileSharesSets(t *testing.T) {
	p, _ := mustParse(t, worldSets+"containers: {default: office}")
	sets := setsOf(p)
	sets["office"] = sets["office"].Add(addrset.Entry{Range: mustRange(t, "100.64.0.0/10"), Source: addrset.Runtime})
	inv := world()
	first, _ := Compile(p, sets, inv)
	inv.Containers = []inventory.Container{container("web", nil, "8080:80/tcp")}
	second, _ := Compile(p, sets, inv)
	for name, s := range sets {
		for kernel, want := range map[string]*addrset.Segments{name + "4": s.Segments4(), name + "6": s.Segments6()} {
			a, b := first.Set(kernel), second.Set(kernel)
			if a == nil || b == nil {
				t.Fatalf("%s is missing from a table", kernel)
			}
			if a.Ranges != b.Ranges || a.Ranges != want {
				t.Errorf("%s was compiled again", kernel)
			}
		}
	}
	changed := maps.Clone(sets)
	changed["office"] = sets["office"].Add(addrset.Entry{Range: mustRange(t, "9.9.9.9"), Source: addrset.Runtime})
	third, _ := Compile(p, changed, inv)
	if third.Set("office4").Ranges == first.Set("office4").Ranges {
		t.Error("office4 is the same after a change")
	}
	if third.Set("office6").Ranges != first.Set("office6").Ranges {
		t.Error("office6 was compiled again, though only IPv4 changed")
	}
	if third.Set("trusted4").Ranges != first.Set("trusted4").Ranges {
		t.Error("trusted4 was compiled again, though office changed")
	}
	missing, _ := Compile(p, nil, inv)
	if err := missing.Validate(); err != nil {
		t.Errorf("without the contents of the sets: %v", err)
	}
}
