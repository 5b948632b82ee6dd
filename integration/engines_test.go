package integration

import (
	"slices"
	"testing"

	"github.com/nftfw/nftfw/integration/lab"
)

// openUntil is open with engines before the major version, which leave the way
// open. Later ones close it themselves, and that is demanded of them.
func (s *set) openUntil(major int, ns lab.Namespace, server string, probes []lab.Probe) {
	s.t.Helper()
	if s.engine.Major < major {
		s.open(ns, server, probes)
		return
	}
	s.closed(ns, probes)
}

// gatewayModes are options of docker network create.
func gatewayModes(mode string) []string {
	const option = "com.docker.network.bridge.gateway_mode_"
	return []string{"-o", option + "ipv4=" + mode, "-o", option + "ipv6=" + mode}
}

// needEngine skips a test of what engines have only from a version on.
func (s *set) needEngine(major int) {
	s.t.Helper()
	if s.engine.Major < major {
		s.t.Skipf("NOT TESTED: engine %s has no such thing; make test-engines takes engines that do", s.engine.Version)
	}
}

// serve are the ports of the containers of the tests below. They publish the
// first two.
var serve = []string{"tcp:80", "udp:80", "tcp:81", "udp:81"}

func TestScenario14NATUnprotected(t *testing.T) {
	s := bare(t)
	s.needEngine(28)
	s.network("bare", "172.30.0.0/24", "fd00:d0c:14::/64", gatewayModes("nat-unprotected")...)
	start := func(name, port string, options ...string) []lab.Probe {
		c := s.runSpec(lab.Spec{
			Name:    name,
			Options: append([]string{"--network", "bare", "-p", port + ":80", "-p", port + ":80/udp"}, options...),
			Args:    serve,
		})
		all := []string{"80", "80/udp", "81", "81/udp"}
		return slices.Concat(addrPorts(c.Addr4("bare"), all...), addrPorts(c.Addr6("bare"), all...))
	}
	straight := slices.Concat(
		start("anyone", "8080", "--label", "nftfw.expose=any"), start("plain", "8081"), start("none", "8082", "--label", "nftfw.expose=none"))
	t.Log("without nftfw every port is there")
	s.open(s.routed.Namespace, "", straight)

	s.start("version: 1" + trust)
	s.nftfw("sets", "add", "trusted", s.routed.V4.String(), s.routed.V6.String())
	s.open(s.stranger.Namespace, "anyone", hostPorts("8080", "8080/udp"))
	s.open(s.permitted.Namespace, "plain", hostPorts("8081", "8081/udp"))
	s.closed(s.stranger.Namespace, hostPorts("8081", "8081/udp", "8082", "8082/udp"))
	s.closed(s.permitted.Namespace, hostPorts("8082", "8082/udp"))
	s.closed(s.routed.Namespace, straight)
}

func TestScenario14Routed(t *testing.T) {
	s := bare(t)
	s.needEngine(28)
	s.network("routed", "172.30.0.0/24", "fd00:d0c:14::/64", gatewayModes("routed")...)
	start := func(name string, options ...string) *lab.Container {
		return s.runSpec(lab.Spec{
			Name:    name,
			Options: append([]string{"--network", "routed", "-p", "80", "-p", "80/udp"}, options...),
			Args:    serve,
		})
	}
	anyone, plain, none := start("anyone", "--label", "nftfw.expose=any"), start("plain"), start("none", "--label", "nftfw.expose.80/tcp=none", "--label", "nftfw.expose.80/udp=none")
	at := func(c *lab.Container, ports ...string) []lab.Probe {
		return slices.Concat(addrPorts(c.Addr4("routed"), ports...), addrPorts(c.Addr6("routed"), ports...))
	}
	published, rest := []string{"80", "80/udp"}, []string{"81", "81/udp"}
	t.Log("without nftfw what is published is there")
	s.open(s.routed.Namespace, "none", at(none, published...))

	s.start("version: 1" + trust)
	s.open(s.routed.Namespace, "anyone", at(anyone, published...))
	s.closed(s.routed.Namespace, slices.Concat(at(plain, published...), at(none, published...), at(anyone, rest...)))
	s.nftfw("sets", "add", "trusted", s.routed.V4.String(), s.routed.V6.String())
	s.open(s.routed.Namespace, "plain", at(plain, published...))
	s.closed(s.routed.Namespace, slices.Concat(at(none, published...), at(plain, rest...)))
	s.docker("rm", "-f", "anyone")
	heir := start("heir")
	if heir.Addr4("routed") != anyone.Addr4("routed") {
		t.Logf("the heir of %s got %s", anyone.Addr4("routed"), heir.Addr4("routed"))
	}
	s.open(s.routed.Namespace, "heir", at(heir, published...))
	s.nftfw("sets", "del", "trusted", s.routed.V4.String(), s.routed.V6.String())
	s.closed(s.routed.Namespace, at(heir, published...))
}

func TestScenario14Isolated(t *testing.T) {
	s := scene(t, "version: 1\nsets: {trusted: [198.18.0.77, \"fd00:18::77\"]}\n")
	s.needEngine(28)
	s.network("isolated", "172.30.0.0/24", "fd00:d0c:14::/64", append([]string{"--internal"}, gatewayModes("isolated")...)...)
	web := s.run("web", "--network", "isolated", "-p", "8080:80", "--label", "nftfw.expose=any")
	caller := s.run("caller", "--network", "isolated")
	straight := slices.Concat(addrPorts(web.Addr4("isolated"), "80", "80/udp"), addrPorts(web.Addr6("isolated"), "80", "80/udp"))
	s.open(caller.Namespace, "web", straight)
	s.closed(s.routed.Namespace, slices.Concat(straight, hostPorts("8080")))
	s.closed(caller.Namespace, hostPorts("8080"))
}
