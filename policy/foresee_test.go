package policy

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nftfw/nftfw/pkg/inventory"
	rs "github.com/nftfw/nftfw/pkg/ruleset"
)

// foreseen is c before its process runs, with what is known of its ports.
func foreseen(c inventory.Container) inventory.Container {
	c.Starting, c.Ports, c.Foreseen = true, nil, c.Ports
	return c
}

// TestForeseen is about the ports of containers that are being started.
func TestForeseen(t *testing.T) {
	anyone := labels{"nftfw.expose": "any"}
	unidentified := foreseen(container("web", anyone, "8080:80"))
	unidentified.Unidentified = true
	run(t, []verdicts{
		{
			name:       "they are reached at its own address by whom its label names",
			containers: []inventory.Container{foreseen(container("web", labels{"nftfw.expose.80": "any"}, "8080:80", "8081:81"))},
			accept:     packets(dnat(stranger, web+":80"), dnat(stranger6, "["+web6+"]:80"), dnat(trusted, web+":81")),
			drop:       packets(dnat(stranger, web+":81"), dnat(stranger, web+":82"), direct(trusted, web+":80")),
		},
		{
			name:       "at the host's they may be somebody else's, until it runs",
			containers: []inventory.Container{foreseen(container("web", anyone, "8080:80"))},
			drop:       packets(input(stranger, host1+":8080"), input(stranger6, "["+host6+"]:8080")),
		},
		{
			name:       "nobody is let in there whom only other rules would",
			policy:     "host: {default: accept}",
			containers: []inventory.Container{foreseen(container("web", labels{"nftfw.expose.81": "any"}, "8080:80", "8081:81"))},
			accept:     packets(input(stranger, host1+":8081"), input(stranger, host1+":8082")),
			drop:       packets(input(stranger, host1+":8080"), input(stranger6, "["+host6+"]:8080")),
		},
		{
			name:       "nor by a range of host.allow, nor one that is trusted where nobody may in",
			policy:     "host: {allow: [{ports: [8000-8080/tcp], from: any}]}",
			containers: []inventory.Container{foreseen(container("web", labels{"nftfw.expose.81": "none"}, "8080:80", "8081:81"))},
			accept:     packets(input(stranger, host1+":8079"), input(trusted, host1+":8082")),
			drop:       packets(input(stranger, host1+":8080"), input(trusted, host1+":8081")),
		},
		{
			name:       "who has the port keeps it",
			policy:     "host: {default: accept}",
			containers: []inventory.Container{container("first", anyone, "8080:80"), foreseen(container("web", labels{}, "8080:81"))},
			accept:     packets(input(stranger, host1+":8080")),
		},
		{
			name:       "those bound to the loopback are not reached",
			containers: []inventory.Container{foreseen(container("web", anyone, "127.0.0.1:8080:80"))},
			drop:       packets(dnat(stranger, web+":80"), dnat(trusted, web+":80")),
		},
		{
			name:       "nobody reaches those of one that is not identified",
			containers: []inventory.Container{unidentified},
			drop:       packets(dnat(trusted, web+":80")),
		},
		{
			name:       "nothing is said of its labels before it runs",
			containers: []inventory.Container{foreseen(container("web", labels{"nftfw.expose": "nobody"}, "8080:80"))},
			accept:     packets(dnat(trusted, web+":80")),
			drop:       packets(dnat(stranger, web+":80")),
		},
	})
}

// TestForeseenStays shows that the elements of a start are those of the
// container that runs, so that their counters go on.
func TestForeseenStays(t *testing.T) {
	p, inv := readCase(t, "testdata/compile/labels")
	running, _ := Compile(p, setsOf(p), inv)
	before := inv
	before.Containers = nil
	for _, c := range inv.Containers {
		before.Containers = append(before.Containers, foreseen(c))
	}
	starting, diags := Compile(p, setsOf(p), before)
	if len(diags) > 0 {
		t.Errorf("diagnostics before anything runs: %v", describeDiagnostics(diags))
	}
	found := 0
	for _, name := range []string{mapPublished + "4", mapPublished + "6", mapRouted + "4", mapRouted + "6"} {
		got, want := starting.Set(name).Elements, running.Set(name).Elements
		if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b rs.Key) bool { return a == b })); diff != "" {
			t.Errorf("%s (-running +starting):\n%s", name, diff)
		}
		found += len(got)
	}
	if found == 0 {
		t.Error("the case has no published ports")
	}
}
