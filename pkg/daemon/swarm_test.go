package daemon

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nftfw/nftfw/pkg/api"
	"github.com/nftfw/nftfw/pkg/inventory"
	"github.com/nftfw/nftfw/policy"
)

// meshAddr is the routing mesh's, on docker0 in the place of docker_gwbridge.
var meshAddr = netip.MustParseAddr("172.17.0.9")

// swarmHost is a host that is a manager, with other nodes and a service on
// port 8090 that is open to any.
func swarmHost(nodes ...string) inventory.Snapshot {
	inv := docker("a")
	inv.Networks[0].Name = inventory.GatewayNetwork
	inv.Swarm = inventory.Swarm{Role: inventory.SwarmManager, Ingress: meshAddr, Services: []inventory.Service{{
		ID: "cdjxjohchie2duhsgqd8zqwpu", Name: "shop", Labels: map[string]string{"nftfw.expose": "any"},
		Ports: []inventory.ServicePort{{Published: 8090, Target: 80, Proto: protoTCP}},
	}}}
	for _, n := range nodes {
		inv.Swarm.Nodes = append(inv.Swarm.Nodes, netip.MustParseAddr(n))
	}
	return inv
}

// permitted tells what of the swarm is in the kernel's table.
func (w *world) permitted(nodes ...string) map[string]bool {
	w.Helper()
	out := map[string]bool{"service": strings.Contains(w.nft("list", "map", "inet", "nftfw", "published4"), "172.17.0.9 . tcp . 8090")}
	for _, n := range nodes {
		out[n] = w.inKernel(policy.SetSwarmNodes+"4", n)
	}
	return out
}

func TestSwarmNodesAreEntries(t *testing.T) {
	w := newWorld(t)
	w.policy(openPolicy)
	w.cfg.NoDocker = false
	c := w.start()
	c.links = dockerLinks()
	take := func(inv inventory.Snapshot) {
		t.Helper()
		c.takeEngine(inv)
		w.must(c.reconcile(w.Context()))
	}
	check := func(when string, want map[string]bool) {
		t.Helper()
		if diff := cmp.Diff(want, w.permitted("198.18.0.2", "198.18.0.3", "198.18.0.9")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", when, diff)
		}
	}
	take(swarmHost("198.18.0.2", "198.18.0.3"))
	check("at first", map[string]bool{"service": true, "198.18.0.2": true, "198.18.0.3": true, "198.18.0.9": false})
	if _, err := c.addToSet(t.Context(), policy.SetSwarmNodes, add("198.18.0.9")); err != nil {
		t.Fatal(err)
	}
	check("one added by command", map[string]bool{"service": true, "198.18.0.2": true, "198.18.0.3": true, "198.18.0.9": true})

	shown, err := c.showSet(policy.SetSwarmNodes)
	w.must(err)
	var sources []string
	for _, e := range shown.Entries {
		sources = append(sources, e.Entry+" "+e.Source)
	}
	if diff := cmp.Diff([]string{"198.18.0.2 docker", "198.18.0.3 docker", "198.18.0.9 runtime"}, sources); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
	_, err = c.deleteFromSet(t.Context(), policy.SetSwarmNodes, api.SetChange{Entries: []string{"198.18.0.2"}})
	w.mustFail(err, "is a node of the swarm", "docker node rm")

	take(inventory.Snapshot{Engine: inventory.EngineListed, Swarm: inventory.Swarm{Unknown: true}})
	check("while the engine has not told", map[string]bool{"service": true, "198.18.0.2": true, "198.18.0.3": true, "198.18.0.9": true})
	take(swarmHost("198.18.0.3"))
	check("one has left", map[string]bool{"service": true, "198.18.0.2": false, "198.18.0.3": true, "198.18.0.9": true})
	if s := c.status().Swarm; s == nil || s.Role != "manager" || len(s.Nodes) != 1 || s.Services != 1 || s.Ingress != "172.17.0.9" {
		t.Errorf("status %+v", s)
	}
	take(docker("a"))
	check("this host has left", map[string]bool{"service": false, "198.18.0.2": false, "198.18.0.3": false, "198.18.0.9": true})
	if s := c.status().Swarm; s != nil {
		t.Errorf("status %+v of no swarm", s)
	}
}

// Until the engine answers, nodes and services have what they had in the table,
// and nothing without one.
func TestSwarmIsAdopted(t *testing.T) {
	all := map[string]bool{"service": true, "198.18.0.2": true}
	none := map[string]bool{"service": false, "198.18.0.2": false}
	tests := []struct {
		name    string
		between func(w *world, c *core)
		want    map[string]bool
	}{
		{"as it was", func(*world, *core) {}, all},
		{"no table", func(w *world, _ *core) { w.nft("flush", "ruleset") }, none},
		{"others are saved", func(w *world, c *core) {
			inv := swarmHost("198.18.0.4")
			inv.Swarm.Services[0].ID = "another"
			w.saveSnapshot(c, inv)
		}, none},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.policy(openPolicy)
			w.cfg.NoDocker = false
			c := w.start()
			c.links = dockerLinks()
			c.takeEngine(swarmHost("198.18.0.2"))
			w.must(c.reconcile(w.Context()))
			w.saveSnapshot(c, c.engine)
			tt.between(w, c)
			c = w.start()
			if diff := cmp.Diff(tt.want, w.permitted("198.18.0.2")); diff != "" {
				t.Errorf("after the restart (-want +got):\n%s", diff)
			}
			if w.inKernel(policy.SetSwarmNodes+"4", "198.18.0.4") {
				t.Error("a node that had no permission has it")
			}
			c.setSaved()
			if shown, err := c.showSet(policy.SetSwarmNodes); err != nil || len(shown.Entries) != 1 {
				t.Errorf("saved for reading: %+v, %v", shown, err)
			}
		})
	}
}

// A worker does not know which ports the mesh publishes.
func TestExplainMeshOnWorker(t *testing.T) {
	c := explainUnder(t, explainPolicy+"containers: {default: office}\nswarm: {ingress: {8090/tcp: any}}\n")
	inv := swarmHost()
	inv.Swarm.Role, inv.Swarm.Services = inventory.SwarmWorker, nil
	c.takeEngine(inv)
	if err := c.reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, from string
		port       uint16
		verdict    string
		step       string
	}{
		{"listed", "203.0.113.9", 8090, "accept", "8090/tcp of the routing mesh"},
		{"not listed, and the default would let it in", "203.0.113.200", 8091, "drop", "if this port is, Docker translates it to 172.17.0.9:8091/tcp, and the verdict is accept"},
	} {
		got, err := c.explain(api.Question{From: tt.from, To: "198.18.0.1", Port: tt.port, Proto: protoTCP})
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		var steps strings.Builder
		for _, s := range got.Steps {
			steps.WriteString(s.What + "\n")
		}
		if got.Verdict != tt.verdict || !strings.Contains(steps.String(), tt.step) {
			t.Errorf("%s: %s\n%s", tt.name, got.Verdict, &steps)
		}
	}
}

func TestExplainRoutingMesh(t *testing.T) {
	c := explainWorld(t)
	inv := swarmHost()
	inv.Swarm.Services[0].Labels = map[string]string{"nftfw.expose": "office"}
	c.takeEngine(inv)
	if err := c.reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, from, to, verdict, decided, step string }{
		{"from a stranger", "203.0.113.9", "198.18.0.1", "drop", "label nftfw.expose of service shop", "Docker translates 198.18.0.1:8090/tcp to 172.17.0.9:8090/tcp of the routing mesh"},
		{"from the office", "203.0.113.200", "198.18.0.1", "accept", "label nftfw.expose of service shop", ""},
		{"over IPv6", "fd00:18::9", "fd00:18::1", "drop", "label nftfw.expose of service shop", "answers nothing over IPv6"},
	} {
		got, err := c.explain(api.Question{From: tt.from, To: tt.to, Port: 8090, Proto: protoTCP})
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		var steps strings.Builder
		for _, s := range got.Steps {
			steps.WriteString(s.Where + ": " + s.What + ": " + s.Result + "\n")
		}
		if got.Verdict != tt.verdict || got.Container != "shop" || got.DecidedBy != tt.decided || !strings.Contains(steps.String(), tt.step) {
			t.Errorf("%s: %s for %q, decided by %q\n%s", tt.name, got.Verdict, got.Container, got.DecidedBy, &steps)
		}
	}
}
