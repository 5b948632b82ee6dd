package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nftfw/nftfw/integration/lab"
)

const (
	// swarmStart is how long Swarm may take to start a service or to make its
	// networks, with engines of other tests beside it.
	swarmStart = 60 * time.Second
	// swarmHears is how long a node may take to hear of others. A worker asks
	// every five seconds.
	swarmHears = 30 * time.Second
)

// swarm gives a test a host whose engine manages a swarm. With flags of its own
// the engine, and with it the swarm, ends with the test.
func swarm(t *testing.T, policy string) *set {
	s := scene(t, policy, "--label", "test=swarm")
	// Without a default route the routing mesh takes long to come; with one
	// that leads nowhere each task waits for a registry.
	s.ip(s.Host.Namespace, []string{"route add default via 198.18.0.66"}, nil)
	s.docker("swarm", "init", "--advertise-addr", lab.HostV4.String())
	s.awaitMesh()
	s.ip(s.Host.Namespace, []string{"route del default"}, nil)
	return s
}

// awaitMesh waits until the engine has made the routing mesh's sandbox.
func (s *set) awaitMesh() {
	s.t.Helper()
	s.eventually(swarmStart, func() error {
		mesh, err := s.engine.Docker(s.ctx(), "network", "inspect", "docker_gwbridge", "--format", `{{(index .Containers "ingress-sbox").IPv4Address}}`)
		if err == nil && !strings.Contains(mesh, "/") {
			err = fmt.Errorf("no address of the routing mesh: %q", mesh)
		}
		return err
	})
}

// publish makes a service of the echo server.
func (s *set) publish(name, publish string, options ...string) {
	s.t.Helper()
	args := []string{"service", "create", "--detach", "--no-resolve-image", "--name", name, "--hostname", name, "--publish", publish}
	s.docker(append(append(args, options...), lab.Image)...)
}

// started waits until the host itself reaches the ports.
func (s *set) started(probes []lab.Probe) {
	s.t.Helper()
	s.eventually(swarmStart, func() error {
		for _, p := range probes {
			if r := s.Host.Probe(s.ctx(), p); r.Outcome != lab.Answered {
				return fmt.Errorf("%s: %s", p, r)
			}
		}
		return nil
	})
}

// A service that publishes with mode=host is containers like any other, whether
// or not it is on an overlay network: then its published port is at an address
// that the engine lists nowhere.
func TestScenario18HostModeService(t *testing.T) {
	s := swarm(t, "version: 1"+trust)
	s.docker("network", "create", "--driver", "overlay", "back")
	host := func(port int) string { return fmt.Sprintf("mode=host,published=%d,target=80", port) }
	s.publish("shop", host(8080), "--container-label", "nftfw.expose=any")
	s.publish("plain", host(8081))
	s.publish("inner", host(8082), "--network", "back", "--container-label", "nftfw.expose.80/tcp=any")
	s.publish("innerplain", host(8083), "--network", "back")
	probes := hostPorts("8080", "8081", "8082", "8083")
	s.started(probes)
	s.open(s.stranger.Namespace, "shop", hostPorts("8080"))
	s.open(s.stranger.Namespace, "inner", hostPorts("8082"))
	s.open(s.permitted.Namespace, "plain", hostPorts("8081"))
	s.open(s.permitted.Namespace, "innerplain", hostPorts("8083"))
	s.closed(s.stranger.Namespace, hostPorts("8081", "8083"))
	t.Log("the swarm's own ports are not for everybody")
	s.closed(s.stranger.Namespace, hostPorts("2377", "7946"))
	if problems := s.status().Problems; len(problems) > 0 {
		t.Errorf("problems: %+v", problems)
	}
	s.docker("service", "rm", "shop", "plain", "inner", "innerplain")
	s.eventually(swarmStart, func() error {
		if tasks := s.docker("ps", "--quiet"); tasks != "" {
			return fmt.Errorf("tasks of services that are gone: %s", tasks)
		}
		return nil
	})
	s.closes(s.Host.Namespace, probes)
}

// swarmStatus is what nftfw status --json says of the swarm.
type swarmStatus struct {
	Swarm *struct {
		Role     string   `json:"role"`
		Nodes    []string `json:"nodes"`
		Ingress  string   `json:"ingress"`
		Services int      `json:"services"`
	} `json:"swarm"`
	Problems []struct {
		Message string `json:"message"`
	} `json:"problems"`
}

func (s *set) status() swarmStatus {
	s.t.Helper()
	var out swarmStatus
	if err := json.Unmarshal([]byte(s.nftfw("status", "--json")), &out); err != nil {
		s.t.Fatal(err)
	}
	return out
}

// standIn does what the engine does for a port of the routing mesh where the
// kernel has IPVS, up to the mesh's sandbox: it translates what arrives over
// IPv4, and holds the port itself.
func (s *set) standIn(ports ...string) {
	s.t.Helper()
	mesh := netip.MustParseAddr(s.status().Swarm.Ingress)
	var rules, listen []string
	for _, p := range ports {
		rules = append(rules, fmt.Sprintf("fib daddr type local tcp dport %s dnat to %s:%[1]s", p, mesh))
		listen = append(listen, "tcp:"+p)
	}
	if err := s.Host.NFT(s.ctx(), "table ip mesh { chain pre { type nat hook prerouting priority dstnat - 1; "+strings.Join(rules, "; ")+"; }; }"); err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.Host.Run(s.ctx(), "iptables", "-I", "DOCKER-USER", "-d", mesh.String(), "-j", "ACCEPT"); err != nil {
		s.t.Fatal(err)
	}
	inside, err := s.Service(s.ctx(), &lab.Node{Namespace: s.engine.Sandbox("ingress_sbox")}, built.echo, "mesh", listen...)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(inside.Stop)
	s.service("engine", listen...)
}

// This kernel has no IPVS, so that the engine gives the mesh's sandbox up: all
// that comes before it is real or, where the engine would have made it, stood in
// for.
func TestScenario18RoutingMesh(t *testing.T) {
	s := swarm(t, "version: 1"+trust+`
swarm: {ingress: {8093/tcp: any}}
containers:
  rules:
    - {match: {name: ruled}, expose: {80/tcp: any}}
    - {match: {project: shop, service: web}, expose: {80/tcp: trusted}}
`)
	s.publish("labelled", "8090:80", "--label", "nftfw.expose=any")
	s.publish("plain", "8091:80")
	s.publish("ruled", "8092:80", "--container-label", "nftfw.expose=none")
	s.publish("listed", "8093:80")
	s.publish("shop_web", "8094:80", "--label", "nftfw.expose=any", "--label", "com.docker.stack.namespace=shop")
	s.publish("inside", "8095:80", "--container-label", "nftfw.expose.80=any")
	s.eventually(swarmHears, func() error {
		if w := s.status().Swarm; w == nil || w.Services != 6 || w.Ingress == "" {
			return fmt.Errorf("status says of the swarm: %+v", w)
		}
		return nil
	})
	s.standIn("8090", "8091", "8092", "8093", "8094", "8095", "8096")
	v4 := func(ports ...string) []lab.Probe { return addrPorts(lab.HostV4, ports...) }
	v6 := func(ports ...string) []lab.Probe { return addrPorts(lab.HostV6, ports...) }
	all := []string{"8090", "8091", "8092", "8093", "8094", "8095"}
	s.open(s.permitted.Namespace, "mesh", v4(all...))
	s.open(s.permitted.Namespace, "engine", v6(all...))
	open, shut := []string{"8090", "8092", "8093", "8095"}, []string{"8091", "8094", "8096"}
	s.open(s.stranger.Namespace, "mesh", v4(open...))
	s.open(s.stranger.Namespace, "engine", v6(open...))
	s.closed(s.stranger.Namespace, v4(shut...))
	s.closed(s.stranger.Namespace, v6(shut...))
	t.Log("what no service publishes is not a port of the mesh, whoever asks")
	s.closed(s.permitted.Namespace, v4("8096"))
	t.Log("nor does a route to the mesh lead in")
	mesh := netip.MustParseAddr(s.status().Swarm.Ingress)
	s.closed(s.routed.Namespace, addrPorts(mesh, "8090"))

	s.nftfw("explain", "--from", s.stranger.V4.String(), "--to", lab.HostV4.String()+":8090", "--expect", "accept")
	said := s.nftfw("explain", "--from", s.stranger.V4.String(), "--to", lab.HostV4.String()+":8091", "--expect", "drop")
	if want := "containers.default, for service plain"; !strings.Contains(said, want) {
		t.Errorf("explain does not say %q:\n%s", want, said)
	}
	if said := s.nftfw("ports"); !strings.Contains(said, "label nftfw.expose") || !strings.Contains(said, "labelled") {
		t.Errorf("ports does not list the service:\n%s", said)
	}

	t.Log("a label is followed while the service runs, and so is its end")
	s.docker("service", "update", "--detach", "--no-resolve-image", "--label-add", "nftfw.expose=any", "plain")
	s.open(s.stranger.Namespace, "mesh", v4("8091"))
	s.docker("service", "update", "--detach", "--no-resolve-image", "--label-rm", "nftfw.expose", "labelled")
	s.closes(s.stranger.Namespace, slices.Concat(v4("8090"), v6("8090")))
	s.docker("service", "rm", "inside")
	s.closes(s.stranger.Namespace, slices.Concat(v4("8095"), v6("8095")))
}

// neighbour is another Docker host on the wire, with nftfw under the policy.
func (s *set) neighbour(name string, id uint8, policy string) *set {
	s.t.Helper()
	other, err := s.Neighbour(s.ctx(), name, id)
	if err != nil {
		s.t.Fatal(err)
	}
	engine, err := other.Engine(lab.EngineOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	if err := engine.Start(s.ctx()); err != nil {
		s.t.Fatal(err)
	}
	if err := engine.LoadImage(s.ctx(), built.echo, lab.Image); err != nil {
		s.t.Fatal(err)
	}
	n := &set{stage: &stage{Lab: other, engine: engine, stranger: s.stranger}, t: s.t}
	n.start(policy)
	return n
}

// nodes gives the entries of swarm_nodes that the engine accounts for.
func (s *set) nodes() []string {
	s.t.Helper()
	var out struct {
		Entries []struct{ Entry, Source string } `json:"entries"`
	}
	if err := json.Unmarshal([]byte(s.nftfw("sets", "show", "swarm_nodes", "--json")), &out); err != nil {
		s.t.Fatal(err)
	}
	list := []string{}
	for _, e := range out.Entries {
		if e.Source == "docker" {
			list = append(list, e.Entry)
		}
	}
	return list
}

func (s *set) hears(of ...string) {
	s.t.Helper()
	s.eventually(swarmHears, func() error {
		if got := s.nodes(); !slices.Equal(got, of) {
			return fmt.Errorf("%s knows the nodes %v, want %v; its status %+v", s.Host.Name, got, of, s.status())
		}
		return nil
	})
}

// connected demands that TCP connects, whoever answers, soon.
func (s *set) connected(ns lab.Namespace, probes []lab.Probe) {
	s.t.Helper()
	s.each(probes, func(p lab.Probe) error {
		ctx, cancel := context.WithTimeout(s.ctx(), openWithin)
		defer cancel()
		return lab.Poll(ctx, 20*time.Millisecond, func() error {
			if r := ns.Probe(ctx, p); !r.Reached() {
				return fmt.Errorf("%s: %s, want it reached", p, r)
			}
			return nil
		})
	})
}

// The nodes of a swarm reach each other's ports and nobody else does, from when
// one joins until it has left.
func TestScenario18Nodes(t *testing.T) {
	policy := "version: 1" + trust
	s := swarm(t, policy)
	second := s.neighbour("second", 2, policy)
	manager := addrPorts(lab.HostV4, "2377", "7946")
	worker := addrPorts(second.Host.V4, "7946")
	s.hears()
	t.Log("one that is no node yet has to be let in to join")
	s.closed(second.Host.Namespace, manager)
	s.nftfw("sets", "add", "swarm_nodes", second.Host.V4.String(), "--timeout", "10m", "--comment", "joins")
	token := s.docker("swarm", "join-token", "--quiet", "worker")
	second.ip(second.Host.Namespace, []string{"route add default via 198.18.0.66"}, nil)
	second.docker("swarm", "join", "--token", token, lab.HostV4.String()+":2377")
	s.hears(second.Host.V4.String())
	second.hears(lab.HostV4.String())
	s.nftfw("sets", "del", "swarm_nodes", second.Host.V4.String())
	second.awaitMesh()
	second.ip(second.Host.Namespace, []string{"route del default"}, nil)
	s.connected(second.Host.Namespace, manager)
	s.connected(s.Host.Namespace, worker)
	s.closed(s.stranger.Namespace, slices.Concat(manager, worker, addrPorts(lab.HostV6, "2377", "7946")))

	t.Log("an overlay network carries packets from node to node")
	s.docker("network", "create", "--driver", "overlay", "--attachable", "back")
	s.publish("far", "mode=host,published=8080,target=80", "--network", "back",
		"--constraint", "node.role==worker", "--container-label", "nftfw.expose=any")
	s.eventually(swarmStart, func() error {
		if r := s.stranger.Probe(s.ctx(), addrPorts(second.Host.V4, "8080")[0]); r.Server != "far" {
			return fmt.Errorf("the service on the other node: %s", r)
		}
		return nil
	})
	s.run("near", "--network", "back")
	task := second.docker("ps", "--quiet", "--filter", "name=far")
	address := second.docker("inspect", "--format", `{{(index .NetworkSettings.Networks "back").IPAddress}}`, task)
	sandbox := s.docker("inspect", "--format", "{{.NetworkSettings.SandboxKey}}", "near")
	s.open(lab.PathNamespace(sandbox), "far", addrPorts(netip.MustParseAddr(address), "80"))
	t.Log("and not from anybody: the worker refuses what the stranger sends as VXLAN")
	s.refusesVXLAN(second)

	t.Log("a node that leaves is one no more")
	s.docker("rm", "-f", "near")
	second.docker("swarm", "leave")
	second.hears()
	s.closes(s.Host.Namespace, worker)
	id := s.docker("node", "ls", "--filter", "role=worker", "--quiet")
	s.eventually(swarmHears, func() error {
		_, err := s.engine.Docker(s.ctx(), "node", "rm", "--force", id)
		return err
	})
	s.hears()
	s.closes(second.Host.Namespace, manager)
}

// refusesVXLAN demands that the other node counts a refusal for what the
// stranger sends to the overlay networks' port.
func (s *set) refusesVXLAN(other *set) {
	s.t.Helper()
	said := other.nftfw("explain", "--from", s.stranger.V4.String(), "--to", other.Host.V4.String()+":4789/udp", "--expect", "drop")
	if !strings.Contains(said, "host.default") {
		s.t.Errorf("explain says why not:\n%s", said)
	}
	other.nftfw("explain", "--from", lab.HostV4.String(), "--to", other.Host.V4.String()+":4789/udp", "--expect", "accept")
	other.nftfw("explain", "--from", lab.HostV4.String(), "--to", other.Host.V4.String()+":7946/udp", "--expect", "accept")
}
