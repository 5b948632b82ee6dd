package policy

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/nftfw/nftfw/pkg/inventory"
	rs "github.com/nftfw/nftfw/pkg/ruleset"
)

// An address on docker0 that no container has.
const (
	unknown  = "172.17.0.99"
	unknown6 = "fd00:17::99"
)

// leave is a packet from a container on docker0 or br-app to the outside or to
// another container.
func leave(src, dst string) rs.Packet {
	p := to(src, dst)
	p.Hook, p.IIf, p.OIf = rs.Forward, bridgeOf(p.Src), bridgeOf(p.Dst)
	return p
}

// toHost is a packet from a container to an address of the host.
func toHost(src, dst string) rs.Packet {
	p := to(src, dst)
	p.Hook, p.IIf = rs.Input, bridgeOf(p.Src)
	return p
}

func appContainer(name string, l labels, ports ...string) inventory.Container {
	return on(container(name, l, ports...), endpoint("n-app", app, app6))
}

func TestEgress(t *testing.T) {
	run(t, []verdicts{
		{
			name:       "nothing narrowed: containers connect to anywhere",
			containers: []inventory.Container{container("web", nil)},
			accept:     packets(leave(web, stranger+":80"), leave(web6, "["+stranger6+"]:80"), leave(unknown, stranger+":80"), leave(web, app+":80")),
		},
		{
			name:       "egress: none lets nothing out, also not to another bridge, and peers on the bridge talk",
			policy:     "containers: {egress: none}",
			containers: []inventory.Container{container("web", nil), appContainer("db", nil, "5432:5432/tcp")},
			accept:     packets(leave(web, unknown+":80"), state(rs.StateEstablished, leave(web, stranger+":80")), toHost(web, host1+":53/udp")),
			drop: packets(leave(web, stranger+":80"), leave(web6, "["+stranger6+"]:80"), leave(web, stranger+"/icmp"),
				leave(web, app+":5432"), leave(unknown, stranger+":80"), leave(unknown6, "["+stranger6+"]:80"),
				toHost(web, host1+":5432")),
		},
		{
			name:       "a list holds sets, addresses, addresses with a port and ports alone",
			policy:     `containers: {egress: [office, 10.0.0.0/8, "192.0.2.53:53/udp", ":123/udp", "[2001:db8:9::9]:443/tcp"]}`,
			containers: []inventory.Container{container("web", nil)},
			accept: packets(leave(web, office+":1"), leave(web6, "["+office6+"]:1"), leave(web, partner+":1/udp"), leave(web, "192.0.2.53:53/udp"),
				leave(web, stranger+":123/udp"), leave(web6, "["+stranger6+"]:443"), leave(unknown, office+":1"), leave(web6, "["+stranger6+"]:123/udp")),
			drop: packets(leave(web, stranger+":1"), leave(web, "192.0.2.53:53"), leave(web, "192.0.2.54:53/udp"), leave(web, stranger+":123"),
				leave(web6, "["+stranger6+"]:80"), leave(unknown, stranger+":1")),
		},
		{
			name:   "a rule stands above the label, and the first one that speaks of egress counts",
			policy: `containers: {rules: [{match: {name: web}, expose: {80: any}}, {match: {name: web}, egress: office}, {match: {name: "*"}, egress: any}]}`,
			containers: []inventory.Container{
				container("web", labels{"nftfw.egress": "none"}, "8080:80/tcp"), appContainer("db", labels{"nftfw.egress": "none"}),
			},
			accept: packets(leave(web, office+":1"), leave(app, stranger+":1"), dnat(stranger, web+":80")),
			drop:   packets(leave(web, stranger+":1")),
		},
		{
			name:       "a label narrows, and an address on its bridge that is no container's connects nowhere",
			containers: []inventory.Container{container("web", labels{"nftfw.egress": "office, :53/udp"}), appContainer("db", nil)},
			accept:     packets(leave(web, office+":1"), leave(web, stranger+":53/udp"), leave(app, stranger+":1"), leave("172.20.0.99", stranger+":1")),
			drop:       packets(leave(web, stranger+":1"), leave(web6, "["+stranger6+"]:1"), leave(unknown, office+":1"), leave(unknown6, "["+office6+"]:1")),
		},
		{
			name:       "a label cannot widen",
			policy:     `containers: {egress: [office, ":80-90/tcp", 10.0.0.0/8]}`,
			containers: []inventory.Container{container("web", labels{"nftfw.egress": "any"}), appContainer("db", labels{"nftfw.egress": "office:443/tcp, 10.1.0.0/16, :85/tcp"})},
			accept:     packets(leave(app, office+":443"), leave(app, partner+":1"), leave(app, stranger+":85")),
			drop:       packets(leave(web, office+":1"), leave(app, office+":80"), leave(app, stranger+":80")),
			says:       []string{"error: container web: label nftfw.egress: asks for more than containers.egress gives; a label can only narrow it; the container may connect nowhere"},
		},
		{
			name:   "a label within several items together is no more than they",
			policy: `containers: {egress: [198.18.0.0/17, 198.18.128.0/17, ":7000/tcp", ":7001-7005/tcp", "10.0.0.0/9:53/udp", "10.128.0.0/9:50-60/udp"]}`,
			containers: []inventory.Container{
				container("web", labels{"nftfw.egress": "198.18.0.0/16, :7000-7005/tcp, 10.0.0.0/8:53/udp"}),
			},
			accept: packets(leave(web, "198.18.200.1:1"), leave(web, stranger+":7003"), leave(web, partner+":53/udp")),
			drop:   packets(leave(web, stranger+":7006"), leave(web, stranger+":53/udp")),
		},
		{
			name:   "a label beyond what they give together is refused",
			policy: `containers: {egress: [10.0.0.0/8, ":7000/tcp", ":7002/tcp", "192.0.2.0/24:53/udp"]}`,
			containers: []inventory.Container{
				on(container("a", labels{"nftfw.egress": "8.8.8.8"}), endpoint("n-docker0", "172.17.0.21", "")),
				on(container("b", labels{"nftfw.egress": ":7000-7002/tcp"}), endpoint("n-docker0", "172.17.0.22", "")),
				on(container("c", labels{"nftfw.egress": "192.0.2.53:53-54/udp"}), endpoint("n-docker0", "172.17.0.23", "")),
				on(container("d", labels{"nftfw.egress": "192.0.2.53"}), endpoint("n-docker0", "172.17.0.24", "")),
			},
			drop: packets(
				leave("172.17.0.21", "8.8.8.8:1"), leave("172.17.0.22", stranger+":7000"),
				leave("172.17.0.23", "192.0.2.53:53/udp"), leave("172.17.0.24", "192.0.2.53:53/udp"),
			),
			says: []string{
				"error: container a: label nftfw.egress: asks for more…", "error: container b: label nftfw.egress: asks for more…",
				"error: container c: label nftfw.egress: asks for more…", "error: container d: label nftfw.egress: asks for more…",
			},
		},
		{
			name: "two containers with one address and different words connect nowhere",
			containers: []inventory.Container{
				container("a", labels{"nftfw.egress": "office"}), container("b", nil),
			},
			drop: packets(leave(web, office+":1"), leave(web, stranger+":1")),
		},
		{
			name:       "a port that is published on the loopback is the host's own everywhere else",
			policy:     "containers: {egress: none}",
			containers: []inventory.Container{container("web", nil), appContainer("db", nil, "127.0.0.1:5432:5432/tcp", "5433:5433/tcp")},
			accept:     packets(toHost(web, host1+":5432")),
			drop:       packets(toHost(web, host1+":5433")),
		},
		{
			name: "a label that cannot be understood lets nothing out",
			containers: []inventory.Container{
				container("web", labels{"nftfw.egress": "nowhere"}), appContainer("db", labels{"nftfw.egres": "none"}),
			},
			drop: packets(leave(web, stranger+":1"), leave(app, stranger+":1")),
			says: []string{"error: container web: label nftfw.egress: no set named \"nowhere\"…", "error: container db: label nftfw.egres: …"},
		},
		{
			name:       "egress of a container that no firewall of the host sees is an error",
			containers: []inventory.Container{hostNetwork("web", labels{"nftfw.egress": "none"})},
			says:       []string{"error: container web: label nftfw.egress: cannot be enforced: the container is in the host's network…"},
		},
		{
			name: "and so is a rule that names it, but not one that happens to be about it",
			policy: `containers: {rules: [{match: {name: "s*"}, egress: office}, {match: {name: joiner}, egress: none, expose: {"*": none}},
  {match: {name: own}, egress: none}]}`,
			containers: []inventory.Container{joined("joiner"), joined("side"), hostNetwork("own", nil)},
			says: []string{
				"error: container joiner: egress at policy.yaml:7 cannot be enforced: the container shares the network of another one…",
				"error: container joiner: expose at policy.yaml:7 cannot be enforced: the container shares the network of another one…",
				"error: container own: egress at policy.yaml:8 cannot be enforced: the container is in the host's network…",
			},
		},
	})
}

// joined is a container in the network of another one.
func joined(name string) inventory.Container {
	c := container(name, nil)
	c.NetworkMode, c.Endpoints = "container:"+strings.Repeat("e", 64), nil
	return c
}

// beginning is c as it is known before its process runs.
func beginning(c inventory.Container) inventory.Container {
	c.Starting, c.Ports = true, nil
	return c
}

// TestEgressOfStarting is about containers before their first packet.
func TestEgressOfStarting(t *testing.T) {
	addressless := func(c inventory.Container) inventory.Container {
		return on(beginning(c), endpoint("n-docker0", "", ""))
	}
	stub := on(inventory.Container{ID: "1", Starting: true, Unidentified: true, ImageUnknown: true}, endpoint("n-docker0", "", ""))
	narrow := labels{"nftfw.egress": "office"}
	run(t, []verdicts{
		{
			name:       "a label holds it like one that runs",
			containers: []inventory.Container{beginning(container("web", narrow)), appContainer("db", nil)},
			accept:     packets(leave(web, office+":1"), leave(web6, "["+office6+"]:1"), leave(app, stranger+":1")),
			drop:       packets(leave(web, stranger+":1"), leave(web6, "["+stranger6+"]:1"), leave(unknown, office+":1")),
		},
		{
			name:       "with no address yet it holds all unknown ones on its bridge, and nobody else",
			containers: []inventory.Container{addressless(container("web", narrow)), appContainer("db", nil), on(container("api", nil), endpoint("n-docker0", "172.17.0.3", ""))},
			accept:     packets(leave("172.17.0.3", stranger+":1"), leave(app, stranger+":1"), leave("172.20.0.99", stranger+":1")),
			drop:       packets(leave(web, stranger+":1"), leave(web6, "["+stranger6+"]:1"), leave(web, office+":1")),
		},
		{
			name:       "one that is not narrowed holds nobody",
			containers: []inventory.Container{addressless(container("web", nil))},
			accept:     packets(leave(web, stranger+":1"), leave(app, stranger+":1")),
		},
		{
			name:       "one that is not identified holds unknown addresses on its bridge",
			containers: []inventory.Container{stub, on(container("api", nil), endpoint("n-docker0", "172.17.0.3", ""))},
			accept:     packets(leave("172.17.0.3", stranger+":1"), leave("172.20.0.99", stranger+":1"), state(rs.StateEstablished, leave(unknown, stranger+":1"))),
			drop:       packets(leave(web, stranger+":1"), leave(web, office+":1"), leave(web6, "["+office6+"]:1")),
		},
		{
			name:       "while the default is narrow, an address that is not known yet has the default",
			policy:     "containers: {egress: office}",
			containers: []inventory.Container{addressless(container("web", nil))},
			accept:     packets(leave(web, office+":1")),
			drop:       packets(leave(web, stranger+":1")),
		},
		{
			name:       "the label counts while the image cannot be inspected, for it can only narrow",
			containers: []inventory.Container{imageUnknown(beginning(container("web", narrow)))},
			accept:     packets(leave(web, office+":1")),
			drop:       packets(leave(web, stranger+":1")),
		},
		{
			name:       "a veth whose container the engine has not told of holds unknown addresses on its bridge",
			containers: []inventory.Container{container("web", nil), appContainer("db", nil)},
			change: func(inv *inventory.Snapshot) {
				inv.Links = append(inv.Links, inventory.Link{Index: 23, Name: "veth3", Kind: "veth", Master: 10, Settling: true})
			},
			accept: packets(leave(web, stranger+":1"), leave("172.20.0.99", stranger+":1"), leave(web, app+":1")),
			drop:   packets(leave(unknown, stranger+":1"), leave(unknown6, "["+stranger6+"]:1"), leave(unknown, app+":1")),
		},
		{
			name:       "one that the engine is not asked about does not",
			containers: []inventory.Container{container("web", nil)},
			change: func(inv *inventory.Snapshot) {
				inv.Engine = inventory.EngineUnknown
				inv.Links = append(inv.Links, inventory.Link{Index: 23, Name: "veth3", Kind: "veth", Master: 10, Settling: true})
			},
			accept: packets(leave(web, stranger+":1"), leave(unknown, stranger+":1")),
		},
		{
			name:       "the routing mesh has a veth on the bridge of a swarm's tasks",
			containers: []inventory.Container{container("web", nil)},
			change: func(inv *inventory.Snapshot) {
				inv.Networks[0].Name = inventory.GatewayNetwork
				inv.Swarm = inventory.Swarm{Role: inventory.SwarmWorker, Ingress: netip.MustParseAddr("172.17.0.9")}
				inv.Links = append(inv.Links, inventory.Link{Index: 23, Name: "veth3", Kind: "veth", Master: 10, Sandbox: "/run/docker/netns/3"})
			},
			accept: packets(leave(unknown, stranger+":1")),
		},
		{
			name:       "nothing is opened for it and nothing said of its labels",
			containers: []inventory.Container{beginning(container("web", labels{"nftfw.expose": "nobody", "nftfw.egress": "nowhere"})), hostStarting()},
			drop:       packets(dnat(trusted, web+":80"), input(stranger, host1+":9000"), leave(web, office+":1")),
		},
		{
			name:       "same-project: it talks to its project at once",
			policy:     "containers: {to_containers: same-project}",
			containers: []inventory.Container{beginning(container("web", labels{composeProject: "shop"})), appContainer("db", labels{composeProject: "shop"})},
			accept:     packets(leave(web, app+":5432"), leave(app, web+":80")),
		},
	})
}

func imageUnknown(c inventory.Container) inventory.Container { c.ImageUnknown = true; return c }

func hostStarting() inventory.Container {
	return beginning(hostNetwork("own", labels{"nftfw.expose.9000/tcp": "any"}))
}

func TestToContainers(t *testing.T) {
	shop := labels{composeProject: "shop"}
	peer := on(container("api", shop), endpoint("n-docker0", "172.17.0.3", "fd00:17::3"))
	run(t, []verdicts{
		{
			name:       "none: no container reaches another one, but by a port published on the host",
			policy:     "containers: {to_containers: none}",
			containers: []inventory.Container{container("web", nil), peer, appContainer("db", nil, "5432:5432/tcp")},
			accept:     packets(leave(web, stranger+":80"), through(host1, status(leave(web, app+":5432"))), toHost(web, host1+":5432")),
			drop:       packets(leave(web, "172.17.0.3:80"), leave(web, app+":5432"), leave(web6, "["+app6+"]:5432")),
		},
		{
			name:       "same-project: containers of one compose project, on one bridge and across",
			policy:     "containers: {to_containers: same-project}",
			containers: []inventory.Container{container("web", shop), peer, appContainer("db", shop)},
			accept:     packets(leave(web, "172.17.0.3:80"), leave(web, app+":5432"), leave(app6, "["+web6+"]:80"), leave(web, stranger+":80")),
			drop:       packets(leave(web, unknown+":80"), leave(unknown, web+":80"), leave(web, "172.20.0.99:80")),
		},
		{
			name:       "neighbour discovery is let through, whoever is apart",
			policy:     "containers: {to_containers: same-project, egress: none}",
			containers: []inventory.Container{container("web", shop), peer},
			accept:     packets(peers(135, "ff02::1:ff00:3"), peers(136, "fd00:17::3"), peers(143, "ff02::16")),
			drop:       packets(peers(128, "fd00:17::9"), peers(1, "fd00:17::9")),
		},
		{
			name:   "same-project: containers of two projects, and those of none, are apart",
			policy: "containers: {to_containers: same-project}",
			containers: []inventory.Container{
				container("web", shop), on(container("api", nil), endpoint("n-docker0", "172.17.0.3", "")), appContainer("db", labels{composeProject: "bank"}),
			},
			drop: packets(leave(web, "172.17.0.3:80"), leave("172.17.0.3", web+":80"), leave(web, app+":5432"), leave(app, web+":5432")),
		},
	})
}

// peers is an ICMPv6 packet of web's to another end of its bridge.
func peers(kind uint8, dst string) rs.Packet {
	return icmp(kind, links("docker0", "docker0", leave(web6, dst+"/icmpv6")))
}

func status(p rs.Packet) rs.Packet { p.Status = rs.StatusDNAT; return p }
