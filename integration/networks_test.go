package integration

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/nftfw/nftfw/integration/lab"
)

// outside runs an echo server on a client, to be called by containers. The
// client routed has the way back to containers whose address Docker leaves as
// it is.
func (s *set) outside(name string, n *lab.Node, args ...string) {
	s.t.Helper()
	svc, err := s.Service(s.ctx(), n, built.echo, name, args...)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(svc.Stop)
}

// apply puts a policy in force.
func (s *set) apply(policy string) {
	s.t.Helper()
	if err := s.fw.WritePolicy(policy); err != nil {
		s.t.Fatal(err)
	}
	s.nftfw("apply")
}

func TestScenario09ConnectedWhileHammered(t *testing.T) {
	s := scene(t, "version: 1"+trust)
	s.network("one", "172.30.1.0/24", "fd00:d0c:91::/64")
	s.network("two", "172.30.2.0/24", "fd00:d0c:92::/64", "-o", "com.docker.network.bridge.name=dk0")
	s.run("web", "--network", "one", "-p", "8080:80")
	s.run("shop", "--network", "one", "-p", "8081:80", "--label", "nftfw.expose=any")
	s.open(s.permitted.Namespace, "web", hostPorts("8080"))
	closed := s.hammer(s.stranger, hostPort(8080)...)
	for range 3 {
		for _, step := range [][2]string{{"connect", "two"}, {"disconnect", "one"}, {"connect", "one"}, {"disconnect", "two"}} {
			for _, name := range []string{"web", "shop"} {
				s.docker("network", step[0], step[1], name)
			}
			s.open(s.permitted.Namespace, "web", hostPorts("8080"))
			s.open(s.stranger.Namespace, "shop", hostPorts("8081"))
		}
	}
	closed()
}

// way is one question between the parties of a scene.
type way struct {
	what   string
	from   lab.Namespace
	probes []lab.Probe
}

// key tells a probe of a way from all others.
func (w way) key(p lab.Probe) string { return w.what + ": " + p.String() }

// eachWay calls ask for all ways at once: most of what they do is to wait.
func eachWay(ways []way, ask func(way)) {
	var wg sync.WaitGroup
	for _, w := range ways {
		wg.Go(func() { ask(w) })
	}
	wg.Wait()
}

// reached asks all ways and says which of their probes were answered.
func (s *set) reached(ways []way) map[string]bool {
	s.t.Helper()
	var mu sync.Mutex
	got := map[string]bool{}
	eachWay(ways, func(w way) {
		s.each(w.probes, func(p lab.Probe) error {
			r := w.from.Probe(s.ctx(), p)
			mu.Lock()
			defer mu.Unlock()
			got[w.key(p)] = r.Outcome == lab.Answered
			return nil
		})
	})
	return got
}

// asBefore demands that the ways lead where they led before.
func (s *set) asBefore(before map[string]bool, ways ...way) {
	s.t.Helper()
	eachWay(ways, func(w way) {
		var led, ended []lab.Probe
		for _, p := range w.probes {
			if before[w.key(p)] {
				led = append(led, p)
			} else {
				ended = append(ended, p)
			}
		}
		if len(led) > 0 {
			s.open(w.from, "", led)
		}
		if len(ended) > 0 {
			s.unanswered(w.from, ended)
		}
	})
}

// unanswered is closed for ways on which there may be a listener that never
// speaks: engines without a proxy hold published ports to keep others from
// them.
func (s *set) unanswered(ns lab.Namespace, probes []lab.Probe) {
	s.t.Helper()
	s.each(probes, func(p lab.Probe) error {
		if r := ns.Probe(s.ctx(), p); r.Outcome == lab.Answered {
			return fmt.Errorf("%s: %s, want no answer", p, r)
		}
		return nil
	})
}

// sysctl reads a key on the host.
func (s *set) sysctl(key string) string {
	s.t.Helper()
	value, err := s.Host.Run(s.ctx(), "sysctl", "-n", key)
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.TrimSpace(value)
}

func TestScenario16FromContainers(t *testing.T) {
	for name, flags := range map[string][]string{"as the engine comes": nil, "with IPv6 NAT": dualStack, "without userland proxy": {"--userland-proxy=false"}} {
		t.Run(name, func(t *testing.T) { testFromContainers(t, bare(t, flags...)) })
	}
}

func testFromContainers(t *testing.T, s *set) {
	s.network("one", "172.30.1.0/24", "fd00:d0c:161::/64")
	s.network("two", "172.30.2.0/24", "fd00:d0c:162::/64")
	s.service("host", "tcp:9100", "udp:9100")
	s.outside("world", s.routed, "tcp:7000", "udp:7000", "tcp:7001")
	caller := s.run("caller", "--network", "one")
	peer := s.run("peer", "--network", "one", "-p", "8080:80", "-p", "8080:80/udp")
	other := s.run("other", "--network", "two", "-p", "8081:80", "-p", "8081:80/udp")

	gateways := slices.Concat(addrPorts(netip.MustParseAddr("172.30.1.1"), "9100", "9100/udp"),
		addrPorts(netip.MustParseAddr("fd00:d0c:161::1"), "9100"))
	host := way{"host", caller.Namespace, slices.Concat(hostPorts("9100", "9100/udp"), gateways)}
	samePublished := way{"published, same bridge", caller.Namespace, hostPorts("8080", "8080/udp")}
	otherPublished := way{"published, other bridge", caller.Namespace, hostPorts("8081", "8081/udp")}
	peers := way{"peer", caller.Namespace, slices.Concat(addrPorts(peer.Addr4("one"), "80", "80/udp"), addrPorts(peer.Addr6("one"), "80", "80/udp"))}
	across := way{"other bridge", caller.Namespace, slices.Concat(addrPorts(other.Addr4("two"), "80", "80/udp"), addrPorts(other.Addr6("two"), "80", "80/udp"))}
	world := way{"outside", caller.Namespace, slices.Concat(addrPorts(s.routed.V4, "7000", "7000/udp", "7001"), addrPorts(s.routed.V6, "7000", "7000/udp", "7001"))}
	ways := []way{host, samePublished, otherPublished, peers, across, world}
	only := func(w way, ports ...string) []lab.Probe {
		return slices.DeleteFunc(slices.Clone(w.probes), func(p lab.Probe) bool {
			return !slices.Contains(ports, fmt.Sprintf("%d/%s", p.To.Port(), p.Network))
		})
	}

	s.open(caller.Namespace, "host", slices.Concat(only(host, "9100/tcp"), gateways))
	s.open(caller.Namespace, "peer", peers.probes)
	s.open(caller.Namespace, "world", world.probes)
	docker := s.reached(ways)
	// Then what is only switched passes the forward hook.
	switched := s.sysctl("net.bridge.bridge-nf-call-iptables") == "1"
	t.Log("as with Docker alone")
	s.start("version: 1")
	s.asBefore(docker, ways...)
	without := func(what string, closed ...way) {
		t.Helper()
		t.Log(what)
		eachWay(ways, func(w way) {
			if slices.ContainsFunc(closed, func(c way) bool { return c.what == w.what }) {
				s.unanswered(w.from, w.probes)
			} else {
				s.asBefore(docker, w)
			}
		})
	}

	s.apply("version: 1\ncontainers: {to_host: none}\n")
	without("to_host: none", host, samePublished, otherPublished)
	s.apply("version: 1\ncontainers: {egress: none}\n")
	// After DNAT a peer on the same bridge is a peer, which egress never
	// covers. To docker-proxy the connection is one to the host.
	leaving := []way{otherPublished, across, world}
	if !switched {
		leaving = append(leaving, samePublished)
	}
	without("egress: none", leaving...)
	s.apply("version: 1\ncontainers: {to_containers: none}\n")
	if switched {
		without("to_containers: none", across, peers)
	} else {
		without("to_containers: none", across)
	}

	t.Log("to_host: a list")
	s.apply("version: 1\ncontainers: {to_host: [9100/tcp, 8081/tcp]}\n")
	s.open(caller.Namespace, "host", only(host, "9100/tcp"))
	s.closed(caller.Namespace, only(host, "9100/udp"))
	s.asBefore(docker, way{otherPublished.what, caller.Namespace, only(otherPublished, "8081/tcp")}, peers, world)
	s.unanswered(caller.Namespace, slices.Concat(only(otherPublished, "8081/udp"), samePublished.probes))

	t.Log("egress: a list, by address and port, and of one container alone")
	s.apply(fmt.Sprintf("version: 1\nsets: {world: [%s]}\ncontainers: {egress: [world, \"[%s]:7000/tcp\"]}\n", s.routed.V4, s.routed.V6))
	s.open(caller.Namespace, "world", slices.Concat(addrPorts(s.routed.V4, "7000", "7000/udp", "7001"), addrPorts(s.routed.V6, "7000")))
	s.closed(caller.Namespace, addrPorts(s.routed.V6, "7000/udp", "7001"))
	s.asBefore(docker, host, peers)
	s.apply("version: 1\ncontainers: {rules: [{match: {name: caller}, egress: none}]}\n")
	eachWay(leaving, func(w way) { s.unanswered(w.from, w.probes) })
	s.asBefore(docker, host, peers)
	s.open(peer.Namespace, "world", world.probes)
}

func TestScenario17Internal(t *testing.T) {
	s := bare(t)
	s.network("inner", "172.30.1.0/24", "fd00:d0c:171::/64", "--internal")
	s.outside("world", s.routed, "tcp:7000", "udp:7000")
	caller := s.run("caller", "--network", "inner")
	web := s.run("web", "--network", "inner", "-p", "8080:80", "--label", "nftfw.expose=any")
	straight := slices.Concat(addrPorts(web.Addr4("inner"), "80", "80/udp"), addrPorts(web.Addr6("inner"), "80", "80/udp"))
	out := []lab.Probe{}
	for _, n := range []netip.Addr{s.routed.V4, s.routed.V6} {
		out = append(out, addrPorts(n, "7000", "7000/udp")...)
	}
	s.open(s.Host.Namespace, "world", out)
	s.open(s.Host.Namespace, "web", straight)
	ways := []way{
		{"peer", caller.Namespace, straight},
		{"outside", caller.Namespace, out[:2]},
		{"from the host", s.Host.Namespace, straight},
	}
	docker := s.reached(ways)
	s.start("version: 1" + trust)
	s.asBefore(docker, ways...)
	s.closed(caller.Namespace, out[:2])
	s.closed(s.routed.Namespace, slices.Concat(addrPorts(web.Addr4("inner"), "80", "80/udp"), hostPorts("8080")))
}

func TestScenario17Macvlan(t *testing.T) {
	s := scene(t, "version: 1"+trust)
	s.docker("network", "create", "-d", "macvlan", "--subnet", "198.18.0.0/16", "-o", "parent=eth0", "lan")
	s.run("beside", "--network", "lan", "--ip", "198.18.7.7", "--label", "nftfw.expose=any")
	t.Log("it is on the wire by itself: no firewall of this host sees it")
	s.open(s.stranger.Namespace, "beside", addrPorts(netip.MustParseAddr("198.18.7.7"), "80"))
	s.eventually(openWithin, func() error {
		for what, text := range map[string]string{"status": s.nftfw("status"), "the log": s.fw.Log()} {
			if !anyLine(text, "beside", "nftfw.expose", "cannot be enforced") {
				return fmt.Errorf("%s does not say that the label of beside cannot be enforced", what)
			}
		}
		return nil
	})
	s.doctorNames("beside")
}

func TestScenario20HostAddresses(t *testing.T) {
	for name, flags := range map[string][]string{"as the engine comes": nil, "with IPv6 NAT": dualStack} {
		t.Run(name, func(t *testing.T) {
			s := scene(t, `version: 1
sets:
  trusted: [198.18.0.10, "fd00:18::10"]
containers:
  rules:
    - {match: {name: web, host_ip: 198.18.0.2}, expose: {443/tcp: any}}
    - {match: {name: web, host_ip: "fd00:18::2"}, expose: {443/tcp: any}}
    - {match: {name: shut, host_ip: 198.18.0.2}, expose: {"*": none}}
    - {match: {name: shut}, expose: {"*": any}}
`, flags...)
			second := newPair("198.18.0.2", "fd00:18::2")
			s.lend(s.Host, second)
			s.network("dual", "172.30.0.0/24", "fd00:d0c:20::/64")
			args := []string{"tcp:443", "udp:443"}
			s.runSpec(lab.Spec{Name: "web", Options: []string{"--network", "dual", "-p", "8443:443", "-p", "8443:443/udp"}, Args: args})
			s.runSpec(lab.Spec{Name: "shut", Options: []string{"--network", "dual", "-p", "198.18.0.1:8444:443", "-p", "198.18.0.2:8444:443"}, Args: args})
			at := func(ports ...string) []lab.Probe {
				return slices.Concat(addrPorts(second.v4, ports...), addrPorts(second.v6, ports...))
			}
			s.open(s.stranger.Namespace, "web", at("8443"))
			s.open(s.permitted.Namespace, "web", slices.Concat(hostPorts("8443"), at("8443")))
			// docker-proxy answers UDP over IPv6 from whichever address of the host.
			s.open(s.permitted.Namespace, "web", slices.Concat(addrPorts(lab.HostV4, "8443/udp"), addrPorts(second.v4, "8443/udp")))
			s.closed(s.stranger.Namespace, slices.Concat(hostPorts("8443", "8443/udp"), at("8443/udp")))
			s.open(s.stranger.Namespace, "shut", addrPorts(lab.HostV4, "8444"))
			s.closed(s.stranger.Namespace, addrPorts(second.v4, "8444"))
			s.closed(s.permitted.Namespace, addrPorts(second.v4, "8444"))
		})
	}
}

// beside attaches a client with addresses to the host by a link of its own.
func (s *set) beside(name, link, v4, v6 string) *lab.Node {
	s.t.Helper()
	n, err := s.Aside(s.ctx(), name, link)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := s.Detach(context.Background(), n); err != nil {
			s.t.Error(err)
		}
	})
	n.V4, n.V6 = netip.MustParseAddr(v4), netip.MustParseAddr(v6)
	s.ip(n.Namespace, []string{"addr add " + v4 + "/24 dev eth0", "addr add " + v6 + "/64 dev eth0 nodad", "link set eth0 up"}, nil)
	return n
}

func TestScenario38BridgedLinks(t *testing.T) {
	s := bare(t)
	for _, key := range []string{"net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables"} {
		if err := s.Host.Sysctl(key, "1"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.Host.Sysctl(key, "0"); err != nil {
				t.Error(err)
			}
		})
	}
	vm := s.beside("vm", "vm0", "198.19.5.2", "fd00:19:5::2")
	wire := s.beside("far", "wire1", "198.19.5.3", "fd00:19:5::3")
	apart := s.beside("apart", "apart0", "198.19.6.2", "fd00:19:6::2")
	s.ip(s.Host.Namespace, []string{
		"link add vmbr0 type bridge", "link set vm0 master vmbr0 up", "link set wire1 master vmbr0 up", "link set vmbr0 up",
		"addr add 198.19.5.1/24 dev vmbr0", "addr add fd00:19:5::1/64 dev vmbr0 nodad",
		"addr add 198.19.6.1/24 dev apart0", "addr add fd00:19:6::1/64 dev apart0 nodad", "link set apart0 up",
	}, []string{"link del vmbr0"})
	for _, n := range []*lab.Node{vm, wire} {
		s.ip(n.Namespace, []string{"route add default via 198.19.5.1", "route add default via fd00:19:5::1"}, nil)
	}
	s.ip(apart.Namespace, []string{"route add default via 198.19.6.1", "route add default via fd00:19:6::1"}, nil)
	if err := s.Host.NFT(s.ctx(), `table inet theirs {
		counter switched { }
		chain seen { type filter hook forward priority -20; iifname "vmbr0" oifname "vmbr0" counter name "switched"; }
	}`); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Host.NFT(context.Background(), "delete table inet theirs"); err != nil {
			t.Error(err)
		}
	})
	// Docker's own FORWARD policy is not what this is about.
	s.dockerForwards()
	ports := []string{"80", "80/udp"}
	s.outside("wire", wire, "tcp:80", "udp:80")
	s.outside("vm", vm, "tcp:80", "udp:80")
	to := func(n *lab.Node) []lab.Probe {
		return slices.Concat(addrPorts(n.V4, ports...), addrPorts(n.V6, ports...))
	}
	s.open(vm.Namespace, "wire", to(wire))
	s.open(apart.Namespace, "vm", to(vm))

	s.start("version: 1\nforward: {default: drop}\n")
	s.open(vm.Namespace, "wire", to(wire))
	s.open(wire.Namespace, "vm", to(vm))
	t.Log("what the host routes is forwarding")
	s.closed(apart.Namespace, to(vm))
	out, err := s.Host.Run(s.ctx(), "nft", "list", "counter", "inet", "theirs", "switched")
	if err != nil || strings.Contains(out, "packets 0 ") {
		t.Errorf("no switched packet passed the forward hook, so nothing was tried (%v): %s", err, out)
	}
}

// dockerForwards has Docker's tables let through what it has no word about, as
// a host with virtual machines does.
func (s *set) dockerForwards() {
	s.t.Helper()
	for _, command := range []string{"iptables", "ip6tables"} {
		if _, err := s.Host.Run(s.ctx(), command, "-P", "FORWARD", "ACCEPT"); err != nil {
			s.t.Fatal(err)
		}
	}
}
