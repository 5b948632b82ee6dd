package policy

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nftfw/nftfw/pkg/inventory"
	rs "github.com/nftfw/nftfw/pkg/ruleset"
)

// Addresses of a swarm's nodes, and of the routing mesh on docker0, which
// stands for docker_gwbridge here.
const (
	node  = "198.18.7.1"
	node6 = "fd00:18:7::1"
	mesh  = "172.17.0.99"
)

// inSwarm makes the host a node, with an encrypted overlay network.
func inSwarm(role inventory.SwarmRole, services ...inventory.Service) func(*inventory.Snapshot) {
	return func(inv *inventory.Snapshot) {
		inv.Swarm = inventory.Swarm{
			Role: role, Services: services, Ingress: netip.MustParseAddr(mesh),
			Nodes: []netip.Addr{netip.MustParseAddr(node), netip.MustParseAddr(node6)},
		}
		inv.Networks = append(inv.Networks,
			inventory.Network{ID: "n-ingress", Name: "ingress", Driver: "overlay", Ingress: true, VNIs: []uint32{4096}},
			inventory.Network{ID: "n-secret", Name: "secret", Driver: "overlay", Encrypted: true, VNIs: []uint32{4098, 4099}},
		)
	}
}

// service publishes the ports "PUBLISHED:TARGET/PROTO" in the routing mesh.
func service(name string, own, ofContainers labels, ports ...string) inventory.Service {
	s := inventory.Service{ID: "id-of-" + name, Name: name, Image: name + ":1", Labels: own, ContainerLabels: ofContainers}
	for _, p := range ports {
		port := parsePorts(p)[0]
		s.Ports = append(s.Ports, inventory.ServicePort{Published: port.HostPort, Target: port.ContainerPort, Proto: port.Proto})
	}
	return s
}

// throughMesh are the ways to a port of the mesh over both families: what the
// engine translates, and what reaches its own listener.
func throughMesh(port string, sources ...string) []rs.Packet {
	var out []rs.Packet
	for _, s := range sources {
		if netip.MustParseAddr(s).Is4() {
			out = append(out, dnat(s, mesh+":"+port), input(s, host1+":"+port))
		} else {
			out = append(out, input(s, "["+host6+"]:"+port))
		}
	}
	return out
}

func vxlan(id uint32, ipsec bool, p rs.Packet) rs.Packet {
	p.VNI, p.IPsec = id, ipsec
	return p
}

func TestSwarmNodes(t *testing.T) {
	ports := []string{":2377", ":7946", ":7946/udp", ":4789/udp"}
	nodes := func(sources ...string) (out []rs.Packet) {
		for _, port := range ports {
			for _, s := range sources {
				if netip.MustParseAddr(s).Is4() {
					out = append(out, input(s, host1+port))
				} else {
					out = append(out, input(s, "["+host6+"]"+port))
				}
			}
		}
		return out
	}
	worker := inSwarm(inventory.SwarmWorker)
	run(t, []verdicts{
		{
			name:   "nodes reach each other's ports, others do not, trusted reaches every port",
			change: worker,
			accept: packets(nodes(node, node6, trusted, trusted6), input(node, host1+"/esp"), input(node6, host6+"/esp")),
			drop: packets(nodes(stranger, stranger6, office), input(stranger, host1+"/esp"), input(node, host1+":22"),
				input(node, host1+":2378"), input(node, host1+":2377/udp"), input(node, host1+":4789/tcp"), input(node, host1+"/ah")),
		},
		{
			name:   "a host in no swarm has none of these ports, whatever the set holds",
			policy: "",
			change: func(inv *inventory.Snapshot) { inv.Swarm.Nodes = []netip.Addr{netip.MustParseAddr(node)} },
			drop:   packets(nodes(node, stranger), input(node, host1+"/esp")),
		},
		{
			name:   "ESP without an encrypted network",
			change: func(inv *inventory.Snapshot) { worker(inv); inv.Networks[len(inv.Networks)-1].Encrypted = false },
			accept: packets(nodes(node), vxlan(4098, false, input(node, host1+":4789/udp"))),
			drop:   packets(input(node, host1+"/esp")),
		},
		{
			name:   "packets of an encrypted network come out of IPsec, whoever sends them",
			policy: "host: {allow: [{ports: [4789/udp], from: [swarm_nodes, office]}]}",
			change: worker,
			accept: packets(
				vxlan(4098, true, input(node, host1+":4789/udp")), vxlan(4099, true, input(node6, "["+host6+"]:4789/udp")),
				vxlan(4096, false, input(node, host1+":4789/udp")), vxlan(4096, false, input(office, host1+":4789/udp")),
			),
			drop: packets(
				vxlan(4098, false, input(node, host1+":4789/udp")), vxlan(4099, false, input(node6, "["+host6+"]:4789/udp")),
				vxlan(4098, false, input(trusted, host1+":4789/udp")), vxlan(4098, false, input(office, host1+":4789/udp")),
				vxlan(4098, true, input(stranger, host1+":4789/udp")),
			),
		},
		{
			name: "ports of the swarm's own choice",
			change: func(inv *inventory.Snapshot) {
				worker(inv)
				inv.Swarm.ControlPort, inv.Swarm.DataPort = 2999, 4790
			},
			accept: packets(input(node, host1+":2999"), input(node, host1+":2377"), input(node, host1+":4790/udp"), vxlan(4098, true, input(node, host1+":4790/udp"))),
			drop:   packets(input(node, host1+":4789/udp"), vxlan(4098, false, input(node, host1+":4790/udp"))),
		},
		{
			name:   "host.allow comes first",
			policy: "host: {allow: [{ports: [2377/tcp], from: none}, {ports: [7946/tcp], from: office}]}",
			change: worker,
			accept: packets(from(input, host1+":7946", node, office)),
			drop:   packets(from(input, host1+":2377", node, trusted), input(stranger, host1+":7946")),
		},
		{
			name:   "entries of the policy are nodes too",
			policy: "  swarm_nodes: [203.0.114.7]",
			change: worker,
			accept: packets(nodes("203.0.114.7", node)),
			drop:   packets(nodes("203.0.114.8")),
		},
		{
			name: "what the engine cannot tell is reported",
			change: func(inv *inventory.Snapshot) {
				inv.Swarm = inventory.Swarm{Role: inventory.SwarmWorker, Problem: "the engine calls this node locked"}
			},
			drop: packets(nodes(node)),
			says: []string{"warning: swarm: the engine calls this node locked; what is not known of it stays closed"},
		},
	})
}

func TestRoutingMeshOnManager(t *testing.T) {
	manager := func(services ...inventory.Service) func(*inventory.Snapshot) {
		return inSwarm(inventory.SwarmManager, services...)
	}
	run(t, []verdicts{
		{
			name:   "a service without a word has the default",
			change: manager(service("shop", nil, nil, ":8080:80/tcp")),
			accept: packets(throughMesh("8080", trusted, trusted6)),
			drop: packets(throughMesh("8080", stranger, stranger6, office), dnat(trusted, mesh+":80"), dnat(trusted, mesh+":8081"),
				direct(trusted, mesh+":8080"), dnat(trusted, mesh+":8080/udp")),
		},
		{
			name:   "its own label, and the port is the containers'",
			change: manager(service("shop", labels{"nftfw.expose.80": "office", "nftfw.expose.81/udp": "any"}, nil, ":8080:80/tcp", ":8081:81/udp")),
			accept: packets(throughMesh("8080", office, office6, trusted), throughMesh("8081/udp", stranger, stranger6)),
			drop:   packets(throughMesh("8080", stranger, stranger6), throughMesh("8081", stranger)),
		},
		{
			name:   "its containers' label",
			change: manager(service("shop", nil, labels{"nftfw.expose": "office"}, ":8080:80/tcp")),
			accept: packets(throughMesh("8080", office, office6)),
			drop:   packets(throughMesh("8080", stranger)),
		},
		{
			name:   "of the same label in both its own counts",
			change: manager(service("shop", labels{"nftfw.expose": "office"}, labels{"nftfw.expose": "any"}, ":8080:80/tcp")),
			accept: packets(throughMesh("8080", office)),
			drop:   packets(throughMesh("8080", stranger, stranger6)),
		},
		{
			name:   "of the two the one that covers fewer ports counts",
			change: manager(service("shop", labels{"nftfw.expose": "any"}, labels{"nftfw.expose.80": "office"}, ":8080:80/tcp")),
			accept: packets(throughMesh("8080", office)),
			drop:   packets(throughMesh("8080", stranger)),
		},
		{
			name: "rules match name, stack, service, image and label, and win over labels",
			policy: `containers: {rules: [
				{match: {name: by-name}, expose: {80/tcp: office}},
				{match: {project: shop, service: web}, expose: {80/tcp: office}},
				{match: {service: "shop_db"}, expose: {80/tcp: office}},
				{match: {image: "by-image*"}, expose: {80/tcp: office}},
				{match: {label: {tier: front}}, expose: {80/tcp: office}},
			]}`,
			change: manager(
				service("by-name", labels{"nftfw.expose": "any"}, nil, ":8001:80/tcp"),
				service("shop_web", labels{"nftfw.expose": "any", stackNamespace: "shop"}, nil, ":8002:80/tcp"),
				service("shop_db", labels{"nftfw.expose": "any", stackNamespace: "shop"}, nil, ":8003:80/tcp"),
				service("by-image", labels{"nftfw.expose": "any"}, nil, ":8004:80/tcp"),
				service("by-label", labels{"nftfw.expose": "any"}, labels{"tier": "front"}, ":8005:80/tcp"),
				service("other_web", labels{"nftfw.expose": "any", stackNamespace: "other"}, nil, ":8006:80/tcp"),
			),
			accept: packets(throughMesh("8001", office), throughMesh("8002", office), throughMesh("8003", office), throughMesh("8004", office),
				throughMesh("8005", office), throughMesh("8006", stranger)),
			drop: packets(throughMesh("8001", stranger), throughMesh("8002", stranger), throughMesh("8003", stranger), throughMesh("8004", stranger),
				throughMesh("8005", stranger)),
		},
		{
			name:   "match.host_ip",
			policy: "containers: {rules: [{match: {host_ip: 198.18.0.2}, expose: {80/tcp: any}}]}",
			change: manager(service("shop", nil, nil, ":8080:80/tcp")),
			accept: packets(through(host2, dnat(stranger, mesh+":8080")), input(stranger, host2+":8080")),
			drop:   packets(throughMesh("8080", stranger, stranger6)),
		},
		{
			name:   "swarm.ingress says of a published port what it says on workers, and opens no other",
			policy: "swarm: {ingress: {8080/tcp: office, 8000-9000/tcp: any}}",
			change: manager(service("shop", labels{"nftfw.expose": "any"}, nil, ":8080:80/tcp", ":8081:81/tcp")),
			accept: packets(throughMesh("8080", office), throughMesh("8081", stranger)),
			drop:   packets(throughMesh("8080", stranger), throughMesh("8082", stranger)),
		},
		{
			name:   "none keeps even trusted out",
			change: manager(service("shop", labels{"nftfw.expose": "none"}, nil, ":8080:80/tcp")),
			drop:   packets(throughMesh("8080", trusted, trusted6)),
		},
		{
			name:   "host.allow does not open a port of the mesh",
			policy: "host: {allow: [{ports: [8080/tcp], from: any}]}",
			change: manager(service("shop", nil, nil, ":8080:80/tcp")),
			drop:   packets(throughMesh("8080", stranger, stranger6)),
		},
		{
			name:   "labels that do not count are named with the service",
			change: manager(service("shop", labels{"nftfw.expose.80": "offce", "nftfw.egress": "none", "nftfw.expose.81": "any"}, labels{"nftfw.expose.443": "any"}, ":8080:80/tcp")),
			accept: packets(throughMesh("8080", trusted)),
			drop:   packets(throughMesh("8080", stranger)),
			says: []string{
				"error: service shop: label nftfw.expose.80: no set named …",
				"error: service shop: label nftfw.egress: does not count on a service: …",
				"warning: service shop: label nftfw.expose.81: the service publishes no such port in the routing mesh; …",
			},
		},
		{
			name:   "containers reach the mesh as other published ports: to_host and egress decide",
			policy: "containers: {to_host: [8080/tcp], rules: [{match: {name: narrow}, egress: none}]}",
			change: manager(service("shop", labels{"nftfw.expose": "any"}, nil, ":8080:80/tcp", ":8081:81/tcp")),
			containers: []inventory.Container{
				on(container("wide", nil), endpoint("n-app", app, "")),
				on(container("narrow", nil), endpoint("n-app", "172.20.0.4", "")),
			},
			accept: packets(links("br-app", "docker0", dnat(app, mesh+":8080"))),
			drop: packets(links("br-app", "docker0", dnat(app, mesh+":8081")), links("br-app", "docker0", dnat("172.20.0.4", mesh+":8080")),
				links("br-app", "", input("172.20.0.4", host1+":8080"))),
		},
		{
			name:       "a container in the host's network opens no port of the mesh",
			change:     manager(service("shop", labels{"nftfw.expose": "any"}, nil, ":8080:80/tcp")),
			containers: []inventory.Container{hostNetwork("own", labels{"nftfw.expose.8080": "office"})},
			accept:     packets(throughMesh("8080", stranger)),
			says:       []string{"error: container own: host port 8080/tcp is held by service shop, which publishes it"},
		},
	})
}

func TestRoutingMeshOnWorker(t *testing.T) {
	worker := inSwarm(inventory.SwarmWorker)
	run(t, []verdicts{
		{
			name:   "what nobody lists has the default",
			change: worker,
			accept: packets(dnat(trusted, mesh+":8080"), from(input, host1+":8080", trusted)),
			drop:   packets(throughMesh("8080", stranger, stranger6, office), direct(trusted, mesh+":8080")),
		},
		{
			name:   "swarm.ingress lists published ports; the narrowest counts",
			policy: "swarm: {ingress: {8080/tcp: any, 8000-8100/tcp: office, 53/udp: office, 9000/tcp: none}}",
			change: worker,
			accept: packets(throughMesh("8080", stranger, stranger6), throughMesh("8081", office, office6), throughMesh("53/udp", office)),
			drop:   packets(throughMesh("8081", stranger, stranger6), throughMesh("8101", office), throughMesh("53", office), throughMesh("9000", trusted)),
		},
		{
			name:   "a wider default",
			policy: "containers: {default: office}",
			change: worker,
			accept: packets(dnat(office, mesh+":8080")),
			drop:   packets(dnat(stranger, mesh+":8080"), input(office, host1+":8080")),
		},
		{
			name:   "no mesh on this node",
			policy: "swarm: {ingress: {8080/tcp: any}}",
			change: func(inv *inventory.Snapshot) { worker(inv); inv.Swarm.Ingress = netip.Addr{} },
			drop:   packets(dnat(stranger, mesh+":8080"), dnat(trusted, mesh+":8081")),
		},
		{
			name:   "no swarm: swarm.ingress opens nothing",
			policy: "swarm: {ingress: {8080/tcp: any}}",
			drop:   packets(throughMesh("8080", stranger, stranger6)),
		},
	})
}

// A task on an overlay network is a container whose address is on the gateway
// network.
func TestTaskOnGatewayNetwork(t *testing.T) {
	run(t, []verdicts{{
		name: "mode=host with an overlay network",
		containers: []inventory.Container{
			on(container("task", labels{"nftfw.expose": "office"}, ":8080:80/tcp"), endpoint("n-docker0", web, ""), inventory.Endpoint{NetworkID: "n-secret", Addr4: netip.MustParseAddr("10.0.1.4")}),
		},
		change: inSwarm(inventory.SwarmWorker),
		accept: packets(dnat(office, web+":80"), input(office6, "["+host6+"]:8080")),
		drop:   packets(dnat(stranger, web+":80"), input(stranger6, "["+host6+"]:8080")),
	}})
}

// The label of a task's container is about the port of its service, of which
// the container knows nothing.
func TestTaskOfTheMesh(t *testing.T) {
	task := on(container("task", labels{"nftfw.expose.80": "any"}), endpoint("n-docker0", web, ""), inventory.Endpoint{NetworkID: "n-ingress", Addr4: netip.MustParseAddr("10.0.0.5")})
	run(t, []verdicts{
		{
			name:       "on a manager",
			containers: []inventory.Container{task},
			change:     inSwarm(inventory.SwarmManager, service("shop", nil, labels{"nftfw.expose.80": "any"}, ":8080:80/tcp")),
			accept:     packets(throughMesh("8080", stranger)),
		},
		{
			name:       "on a worker",
			containers: []inventory.Container{task},
			change:     inSwarm(inventory.SwarmWorker),
			drop:       packets(throughMesh("8080", stranger)),
			says:       []string{"warning: container task: label nftfw.expose.80: a worker is not told what the routing mesh publishes: here swarm.ingress decides about its ports"},
		},
	})
}

func TestNodeEntries(t *testing.T) {
	var got []string
	for _, e := range NodeEntries(inventory.Swarm{Nodes: []netip.Addr{netip.MustParseAddr("::ffff:198.18.0.1"), netip.MustParseAddr(node6)}}) {
		got = append(got, e.Range.String()+" "+string(e.Source))
	}
	if diff := cmp.Diff([]string{"198.18.0.1 docker", node6 + " docker"}, got); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
}
