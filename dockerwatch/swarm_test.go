package dockerwatch

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/docker/docker/api/types/events"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/nftfw/nftfw/pkg/inventory"
)

// What engine 20.10.24 says on a manager and a worker, shortened.
const (
	netGateway = "a0c35aacd7c1fb6a851d2de72c0681b98b0279f0fbab78e36c5dbbc7612ab922"
	netIngress = "d3r96pk3ag7nqe2tsdv6lmujn"
	netOverlay = "t2zyc2gwvlj02mu4ct7lutz4g"
)

func manager() object {
	return object{
		"NodeID": "n1", "NodeAddr": "198.18.0.1", "LocalNodeState": "active", "ControlAvailable": true,
		"RemoteManagers": []object{{"NodeID": "n1", "Addr": "198.18.0.1:2999"}, {"NodeID": "n3", "Addr": "198.18.0.3:2377"}},
		"Cluster":        object{"ID": "v35", "DataPathPort": 4790},
	}
}

func worker() object {
	return object{
		"NodeID": "n2", "NodeAddr": "198.18.0.2", "LocalNodeState": "active", "ControlAvailable": false,
		"RemoteManagers": []object{{"NodeID": "n1", "Addr": "198.18.0.1:2377"}, {"NodeID": "n3", "Addr": "[fd00::3]:2377"}},
	}
}

func service(id, name string, published int) object {
	return object{
		"ID": id,
		"Spec": object{
			"Name": name, "Labels": object{"nftfw.expose": "any"},
			"TaskTemplate": object{"ContainerSpec": object{"Image": "web:1", "Labels": object{"x": "y"}}},
		},
		"Endpoint": object{"Ports": []object{
			{"Protocol": "tcp", "TargetPort": 80, "PublishedPort": published, "PublishMode": "ingress"},
			{"Protocol": "tcp", "TargetPort": 81, "PublishedPort": 8181, "PublishMode": "host"},
		}},
	}
}

// inSwarm makes the fake's engine a node of a swarm.
func inSwarm(f *fakeEngine, info object) {
	f.edit(func() {
		f.swarm = info
		f.networks = append(f.networks,
			object{"Id": netGateway, "Name": "docker_gwbridge", "Driver": "bridge", "Options": object{"com.docker.network.bridge.name": "docker_gwbridge"}},
			object{
				"Id": netIngress, "Name": "ingress", "Driver": "overlay", "Scope": "swarm", "Ingress": true,
				"Options": object{"com.docker.network.driver.overlay.vxlanid_list": "4096"},
			},
			object{
				"Id": netOverlay, "Name": "back", "Driver": "overlay", "Scope": "swarm",
				"Options": object{"com.docker.network.driver.overlay.vxlanid_list": "4098,4097", "encrypted": ""},
			},
		)
		f.attached[netGateway] = object{"ingress-sbox": object{"Name": "gateway_ingress-sbox", "IPv4Address": "172.18.0.2/16"}}
		f.peers = []object{{"Name": "a", "IP": "198.18.0.1"}, {"Name": "b", "IP": "198.18.0.2"}, {"Name": "c", "IP": "198.18.0.4"}, {"Name": "d", "IP": "unknown"}}
		f.nodes = []object{
			{"ID": "n1", "Status": object{"State": "ready", "Addr": "0.0.0.0"}, "ManagerStatus": object{"Addr": "198.18.0.1:2377"}},
			{"ID": "n2", "Status": object{"State": "down", "Addr": "198.18.0.2"}},
			{"ID": "n3", "Status": object{"State": "ready", "Addr": "127.0.0.1"}, "ManagerStatus": object{"Addr": "198.18.0.3:2377"}},
		}
		f.services = []object{service("svc1", "shop", 8080)}
	})
}

var shop = inventory.Service{
	ID: "svc1", Name: "shop", Image: "web:1",
	Labels: map[string]string{"nftfw.expose": "any"}, ContainerLabels: map[string]string{"x": "y"},
	Ports: []inventory.ServicePort{{Published: 8080, Target: 80, Proto: 6}},
}

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, addr(s))
	}
	return out
}

func TestSwarm(t *testing.T) {
	tests := []struct {
		name string
		info object
		want inventory.Swarm
	}{
		{"none", object{"LocalNodeState": "inactive"}, inventory.Swarm{}},
		{"an engine that knows of no swarms", nil, inventory.Swarm{}},
		{"manager", manager(), inventory.Swarm{
			Role: inventory.SwarmManager, Nodes: addrs("198.18.0.2", "198.18.0.3", "198.18.0.4"),
			ControlPort: 2999, DataPort: 4790, Ingress: addr("172.18.0.2"), Services: []inventory.Service{shop},
		}},
		{"worker", worker(), inventory.Swarm{
			Role: inventory.SwarmWorker, Nodes: addrs("198.18.0.1", "198.18.0.4", "fd00::3"), Ingress: addr("172.18.0.2"),
		}},
		{"locked", object{"LocalNodeState": "locked", "Error": "Swarm is encrypted and needs to be unlocked."}, inventory.Swarm{
			Role: inventory.SwarmWorker, Nodes: addrs("198.18.0.1", "198.18.0.2", "198.18.0.4"), Ingress: addr("172.18.0.2"),
			Problem: "the engine calls this node locked: who the other nodes are may not be known (Swarm is encrypted and needs to be unlocked.)",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFakeEngine(t)
			inSwarm(f, tt.info)
			got, err := List(t.Context(), Options{Host: "unix://" + f.path})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got.Swarm, values, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("swarm (-want +got):\n%s", diff)
			}
		})
	}
}

// The ingress network can be replaced by one of another name.
func TestIngressOfAnotherName(t *testing.T) {
	f := newFakeEngine(t)
	inSwarm(f, worker())
	f.edit(func() {
		for _, n := range f.networks {
			if n["Name"] == "ingress" {
				n["Name"] = "mesh"
			}
		}
		f.attached[netGateway]["mesh-sbox"] = object{"IPv4Address": "172.18.0.9/16"}
	})
	got, err := List(t.Context(), Options{Host: "unix://" + f.path})
	if err != nil {
		t.Fatal(err)
	}
	if want := addr("172.18.0.9"); got.Swarm.Ingress != want {
		t.Errorf("the mesh is at %v, want %v", got.Swarm.Ingress, want)
	}
}

func TestOverlayNetworks(t *testing.T) {
	f := newFakeEngine(t)
	inSwarm(f, manager())
	f.edit(func() {
		f.networks = append(f.networks, object{
			"Id": "bad", "Name": "bad", "Driver": "overlay",
			"Options": object{"com.docker.network.driver.overlay.vxlanid_list": "16777216"},
		})
	})
	got, err := List(t.Context(), Options{Host: "unix://" + f.path})
	if err != nil {
		t.Fatal(err)
	}
	want := []inventory.Network{
		{ID: netGateway, Name: "docker_gwbridge", Driver: "bridge", Bridge: "docker_gwbridge"},
		{ID: netA, Name: "a", Driver: "bridge", Bridge: "br-aaaaaaaaaaaa"},
		{ID: "bad", Name: "bad", Driver: "overlay"},
		{ID: netIngress, Name: "ingress", Driver: "overlay", Ingress: true, VNIs: []uint32{4096}},
		{ID: netOverlay, Name: "back", Driver: "overlay", Encrypted: true, VNIs: []uint32{4097, 4098}},
	}
	if diff := cmp.Diff(want, got.Networks, values, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("networks (-want +got):\n%s", diff)
	}
}

// overlayBox is a container on an overlay network, as the list shows it, and
// its endpoint on the gateway network, as only that network shows it.
func overlayBox(f *fakeEngine, n int) {
	c := box(n)
	c["NetworkSettings"] = object{"Networks": object{"back": object{"NetworkID": netOverlay, "IPAddress": "10.0.1.4"}}}
	f.set(c)
	f.edit(func() {
		f.attached[netGateway][id(n)] = object{"Name": "gateway_260afbfba7da", "IPv4Address": fmt.Sprintf("172.18.0.%d/16", 2+n)}
	})
}

func TestGatewayEndpoints(t *testing.T) {
	f := newFakeEngine(t)
	inSwarm(f, worker())
	overlayBox(f, 1)
	f.set(box(2, netA))
	r := start(t, f, nil)
	r.first()
	endpoints := func(i int) []inventory.Endpoint { return r.last.Containers[i].Endpoints }
	want := []inventory.Endpoint{{NetworkID: netGateway, Addr4: addr("172.18.0.3")}, {NetworkID: netOverlay, Addr4: addr("10.0.1.4")}}
	if diff := cmp.Diff(want, endpoints(0), values); diff != "" {
		t.Errorf("container on an overlay network (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]inventory.Endpoint{{NetworkID: netA, Addr4: addr("172.17.0.2")}}, endpoints(1), values); diff != "" {
		t.Errorf("container on a bridge (-want +got):\n%s", diff)
	}
	t.Log("one that starts later")
	overlayBox(f, 3)
	f.container("start", id(3))
	r.until("the container", func(s inventory.Snapshot) bool { return len(s.Containers) == 3 })
	want[0].Addr4 = addr("172.18.0.5")
	if diff := cmp.Diff(want, endpoints(2), values); diff != "" {
		t.Errorf("container that started (-want +got):\n%s", diff)
	}
}

// A container that is connected to an overlay network has a way out over the
// gateway network from then on, whose address is asked for.
func TestStartOnOverlay(t *testing.T) {
	f := newFakeEngine(t)
	inSwarm(f, worker())
	r := start(t, f, nil)
	r.first()
	overlayBox(f, 1)
	f.edit(func() { f.containers[id(1)]["State"] = "created" })
	f.edit(func() { f.attached[netOverlay] = object{id(1): object{"IPv4Address": "10.0.1.4/24"}} })
	f.send(fmt.Sprintf(`{"Type":"network","Action":"connect","Actor":{"ID":%q,"Attributes":{"container":%q,"name":"back","type":"overlay"}}}`, netOverlay, id(1)))
	s := r.until("the container", func(s inventory.Snapshot) bool { return len(s.Containers) == 1 })
	want := []inventory.Endpoint{{NetworkID: netGateway}, {NetworkID: netOverlay}}
	if diff := cmp.Diff(want, s.Containers[0].Endpoints, values); diff != "" {
		t.Errorf("at first (-want +got):\n%s", diff)
	}
	r.until("its address", func(s inventory.Snapshot) bool {
		return len(s.Containers) == 1 && s.Containers[0].Starting && s.Containers[0].Endpoints[0].Addr4 == addr("172.18.0.3")
	})
	f.network("disconnect", netOverlay, id(1))
	r.until("its failure", func(s inventory.Snapshot) bool { return len(s.Containers) == 0 })
}

func TestSwarmEvents(t *testing.T) {
	f := newFakeEngine(t)
	inSwarm(f, manager())
	r := start(t, f, nil)
	r.first()
	f.edit(func() { f.services = append(f.services, service("svc2", "wiki", 8081)) })
	f.send(`{"Type":"service","Action":"create","Actor":{"ID":"svc2","Attributes":{"name":"wiki"}},"scope":"swarm"}`)
	r.until("the service", func(s inventory.Snapshot) bool { return len(s.Swarm.Services) == 2 })

	// Though the list still has it.
	f.send(`{"Type":"service","Action":"remove","Actor":{"ID":"svc1","Attributes":{"name":"shop"}},"scope":"swarm"}`)
	s := r.until("the service's end", func(s inventory.Snapshot) bool { return len(s.Swarm.Services) == 1 })
	if s.Swarm.Services[0].ID != "svc2" {
		t.Errorf("left: %+v", s.Swarm.Services)
	}

	f.edit(func() {
		f.nodes = append(f.nodes, object{"ID": "n5", "Status": object{"State": "ready", "Addr": "198.18.0.5"}})
	})
	f.send(`{"Type":"node","Action":"create","Actor":{"ID":"n5","Attributes":{"name":""}},"scope":"swarm"}`)
	r.until("the node", func(s inventory.Snapshot) bool { return len(s.Swarm.Nodes) == 4 })
}

// An answer from before the end of a service does not bring it back.
func TestSwarmStaleAnswer(t *testing.T) {
	s := newState(time.Second, slog.New(slog.DiscardHandler))
	a := swarmAnswer{seq: s.seq, swarm: inventory.Swarm{Role: inventory.SwarmManager, Services: []inventory.Service{shop}}}
	s.applySwarm(a)
	if !s.event(events.Message{Type: events.ServiceEventType, Action: events.ActionRemove, Actor: events.Actor{ID: shop.ID}}, time.Now()) {
		t.Error("its end changes nothing")
	}
	if s.applySwarm(a) || len(s.swarm.Services) > 0 {
		t.Errorf("it came back: %+v", s.swarm.Services)
	}
	a.seq = s.seq
	if !s.applySwarm(a) || len(s.swarm.Services) != 1 {
		t.Error("an answer from after it counts for nothing")
	}
}

// A host that joins may hear of an overlay network first, and nothing tells of
// leaving: the engine is asked again and again.
func TestJoinAndLeave(t *testing.T) {
	for name, event := range map[string]string{
		"with an event":    fmt.Sprintf(`{"Type":"network","Action":"create","Actor":{"ID":%q,"Attributes":{"name":"ingress","type":"overlay"}},"scope":"local"}`, netIngress),
		"without an event": "",
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeEngine(t)
			r := start(t, f, func(w *Watcher) {
				if event == "" {
					w.swarmPoll = 20 * time.Millisecond
				}
			})
			r.first()
			inSwarm(f, worker())
			if event != "" {
				f.send(event)
			}
			r.until("the swarm", func(s inventory.Snapshot) bool {
				return s.Swarm.Role == inventory.SwarmWorker && s.Swarm.Ingress.IsValid()
			})
			if event != "" {
				return
			}
			f.edit(func() { f.swarm = object{"LocalNodeState": "inactive"} })
			s := r.until("the end", func(s inventory.Snapshot) bool { return s.Swarm.Role == "" })
			if diff := cmp.Diff(inventory.Swarm{}, s.Swarm, values); diff != "" {
				t.Errorf("after leaving (-want +got):\n%s", diff)
			}
		})
	}
}

// Engines that say in answer to a ping that they are in no swarm are not asked
// for more.
func TestPingTellsOfNoSwarm(t *testing.T) {
	f := newFakeEngine(t)
	f.edit(func() { f.pingSwarm = "inactive" })
	r := start(t, f, nil)
	if s := r.first(); s.Swarm.Role != "" {
		t.Errorf("swarm %+v", s.Swarm)
	}
	if n := len(f.got("info")); n != 0 {
		t.Errorf("asked for information %d times", n)
	}
}

// What was known stays while the engine does not answer.
func TestSwarmFailures(t *testing.T) {
	f := newFakeEngine(t)
	inSwarm(f, manager())
	r := start(t, f, nil)
	r.first()
	known := r.last.Swarm
	var failing atomic.Value
	failing.Store("services")
	f.edit(func() {
		f.answer = func(w http.ResponseWriter, _ *http.Request, c call) bool {
			if c.what != failing.Load() {
				return false
			}
			w.WriteHeader(http.StatusInternalServerError)
			reply(w, object{"message": "The swarm does not have a leader."})
			return true
		}
		f.nodes = nil
	})
	update := func() {
		f.send(`{"Type":"node","Action":"update","Actor":{"ID":"n5","Attributes":{"name":""}},"scope":"swarm"}`)
	}
	update()
	s := r.until("the failure", func(s inventory.Snapshot) bool { return s.Swarm.Problem != "" })
	want := known
	want.Problem = "nodes and services cannot be listed: list services of unix://" + f.path + ": Error response from daemon: The swarm does not have a leader."
	if diff := cmp.Diff(want, s.Swarm, values); diff != "" {
		t.Errorf("without a leader (-want +got):\n%s", diff)
	}
	asked := len(f.got("info"))
	failing.Store("info")
	update()
	eventually(t, "a question", func() bool { return len(f.got("info")) > asked+1 })
	failing.Store("")
	r.until("the recovery", func(s inventory.Snapshot) bool {
		if s.Swarm.Role == "" {
			t.Errorf("forgot the swarm: %+v", s.Swarm)
		}
		return s.Swarm.Problem == ""
	})
}
