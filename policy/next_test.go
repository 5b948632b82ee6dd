package policy

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nftfw/nftfw/pkg/inventory"
)

// later is what runs after some containers have gone, come, or become others. The
// rest is the same, also in memory.
func later(r *rand.Rand, inv inventory.Snapshot, newID func() string) inventory.Snapshot {
	strangers := randomInventory(r).Containers
	for i := range strangers {
		c := &strangers[i]
		c.ID = newID()
		if r.IntN(4) == 0 {
			c.Starting, c.Unidentified, c.Foreseen, c.Ports = true, r.IntN(4) == 0, c.Ports, nil
		}
	}
	var next []inventory.Container
	for _, c := range inv.Containers {
		switch r.IntN(12) {
		case 0: // gone
		case 1:
			c.Name += "x"
			next = append(next, c)
		case 2:
			c.Endpoints = mixed(r, c.Endpoints)
			c.Endpoints = c.Endpoints[:r.IntN(len(c.Endpoints)+1)]
			next = append(next, c)
		case 3: // runs
			if c.Starting {
				c.Starting, c.Unidentified, c.Ports, c.Foreseen = false, false, c.Foreseen, nil
			}
			next = append(next, c)
		default:
			next = append(next, c)
		}
	}
	inv.Containers = append(next, strangers[:min(len(strangers), r.IntN(3))]...)
	return inv
}

// TestNextIsCompile walks from one inventory to the next and compares what is made
// out of the one before with what is made of nothing.
func TestNextIsCompile(t *testing.T) {
	var policies []*Policy
	for _, src := range append(slices.Clone(randomPolicies),
		"containers: {default: office, labels: any, egress: [branch, \":443/tcp\"]}",
		"host: {default: accept}\ncontainers: {default: office}") {
		p, _ := mustParse(t, worldSets+src)
		policies = append(policies, p)
	}
	taken, steps := 0, 0
	for seed := range uint64(150) {
		r := rand.New(rand.NewPCG(seed, 3))
		p := policies[r.IntN(len(policies))]
		ids := 0
		newID := func() string { ids++; return fmt.Sprintf("%012x%052d", ids, 0) }
		inv := randomInventory(r)
		for i := range inv.Containers {
			inv.Containers[i].ID = newID()
		}
		if r.IntN(3) == 0 {
			inSwarm(inventory.SwarmManager, service("shop", nil, nil, "80:80/tcp"))(&inv)
		}
		part := newCompiler(p).containerMaps(inv)
		for step := range 12 {
			inv = later(r, inv, newID)
			gone, come, ok := part.owners.changes(ownersOf(inv))
			if !ok {
				t.Fatalf("seed %d, step %d: changes cannot be told", seed, step)
			}
			steps++
			next := part.with(inv, gone, come)
			if next == nil {
				part = newCompiler(p).containerMaps(inv)
				continue
			}
			taken++
			part = next
			k := Compiler{last: part}
			got, gotDiags := k.Compile(p, setsOf(p), inv)
			if k.last != part {
				t.Fatalf("seed %d, step %d: the part was not used", seed, step)
			}
			want, wantDiags := Compile(p, setsOf(p), inv)
			if err := got.Validate(); err != nil {
				t.Fatalf("seed %d, step %d: %v", seed, step, err)
			}
			for what, diff := range map[string]string{
				"table":       cmp.Diff(textOf(want), textOf(got)),
				"origins":     cmp.Diff(origins(want), origins(got)),
				"diagnostics": cmp.Diff(wantDiags, gotDiags),
			} {
				if diff != "" {
					t.Fatalf("seed %d, step %d: %s (-compiled +next):\n%s", seed, step, what, diff)
				}
			}
		}
	}
	if taken < steps/10 {
		t.Errorf("%d of %d steps were made out of the one before", taken, steps)
	}
}

// TestNextTakesOver checks that one container more leaves the others' decisions as
// they are, and the tables that were made before.
func TestNextTakesOver(t *testing.T) {
	p, inv := Default(nil), crowd(100)
	all := inv.Containers
	inv.Containers = all[:99:99]
	var k Compiler
	before, _ := k.Compile(p, nil, inv)
	text, part := textOf(before), k.last
	inv.Containers = slices.Clone(all)
	if gone, come, ok := part.owners.changes(ownersOf(inv)); len(gone) > 0 || len(come) != 1 || !ok {
		t.Fatalf("changes: %d gone, %d came, %v", len(gone), len(come), ok)
	}
	after, _ := k.Compile(p, nil, inv)
	want, _ := Compile(p, nil, inv)
	if diff := cmp.Diff(textOf(want), textOf(after)); diff != "" {
		t.Errorf("table (-compiled +next):\n%s", diff)
	}
	if diff := cmp.Diff(text, textOf(before)); diff != "" {
		t.Errorf("the table before was changed (-was +is):\n%s", diff)
	}
	if before.Set("host_ports4") != after.Set("host_ports4") {
		t.Error("a set to which nothing came was made anew")
	}
}

func TestContainerSame(t *testing.T) {
	one := inventory.Container{
		ID: "a", Labels: map[string]string{"a": "b"}, ImageLabels: map[string]string{"a": "b"},
		Endpoints: make([]inventory.Endpoint, 1), Ports: make([]inventory.Port, 1), Foreseen: make([]inventory.Port, 1),
	}
	if other := one; !one.Same(&other) {
		t.Error("a copy counts as another")
	}
	for i := range reflect.TypeFor[inventory.Container]().NumField() {
		other := one
		field := reflect.ValueOf(&other).Elem().Field(i)
		switch field.Kind() {
		case reflect.String:
			field.SetString("other")
		case reflect.Bool:
			field.SetBool(true)
		case reflect.Slice:
			field.Set(reflect.MakeSlice(field.Type(), 1, 1))
		case reflect.Map:
			field.Set(reflect.ValueOf(map[string]string{"a": "b"}))
		default:
			t.Fatalf("a field of kind %s", field.Kind())
		}
		if one.Same(&other) {
			t.Errorf("another %s counts as the same", reflect.TypeFor[inventory.Container]().Field(i).Name)
		}
	}
}
