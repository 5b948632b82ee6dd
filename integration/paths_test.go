package integration

import (
	"context"
	"net/netip"
	"slices"
	"testing"

	"github.com/nftfw/nftfw/integration/lab"
)

// service runs an echo server as a process of the host itself until the test
// ends.
func (s *set) service(name string, args ...string) *lab.Service {
	s.t.Helper()
	svc, err := s.Service(s.ctx(), s.Host, built.echo, name, args...)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(svc.Stop)
	return svc
}

// network makes a Docker network with both families.
func (s *set) network(name, subnet4, subnet6 string, options ...string) {
	s.t.Helper()
	s.docker(slices.Concat([]string{"network", "create", "--ipv6", "--subnet", subnet4, "--subnet", subnet6}, options, []string{name})...)
}

func TestScenario11ProxiedIPv6(t *testing.T) {
	const policy = `version: 1
sets:
  trusted: [198.18.0.10, "fd00:18::10"]
  office: [198.18.1.0/24, "fd00:18::1:0/112"]
`
	for name, flags := range map[string][]string{"proxied": nil, "forwarded": dualStack} {
		t.Run(name, func(t *testing.T) {
			s := scene(t, policy, flags...)
			office := newPair("198.18.1.20", "fd00:18::1:20")
			s.lend(s.stranger, office)
			s.network("dual", "172.30.0.0/24", "fd00:d0c:11::/64")
			const label = "nftfw.expose=office"
			s.docker("network", "create", "--subnet", "172.30.1.0/24", "only4")
			s.run("four", "--network", "only4", "-p", "8080:80", "-p", "8080:80/udp", "--label", label)
			s.run("dual", "--network", "dual", "-p", "8081:80", "-p", "8081:80/udp", "--label", label)
			// Docker 20.10 cannot proxy UDP from IPv6 to IPv4: nothing of ours.
			probes := hostPorts("8080", "8081", "8080/udp", "8081/udp")
			s.open(s.permitted.Namespace, "", probes)
			s.open(s.stranger.Namespace, "", from(probes, office.v4, office.v6))
			s.closed(s.stranger.Namespace, from(probes, s.stranger.V4, s.stranger.V6))
		})
	}
}

func TestScenario12LoopbackPublished(t *testing.T) {
	s := bare(t)
	s.runSpec(lab.Spec{
		Name:    "web",
		Options: []string{"-p", "8080:80", "-p", "127.0.0.1:8082:81", "-p", "[::1]:8082:81", "--label", "nftfw.expose=any"},
		Args:    []string{"tcp:80", "tcp:81"},
	})
	web, err := s.engine.Container(s.ctx(), "web")
	if err != nil {
		t.Fatal(err)
	}
	loopback := addrPorts(netip.MustParseAddr("127.0.0.1"), "8082")
	direct := addrPorts(web.Addr4("bridge"), "80", "81")
	t.Log("without nftfw the ways in are there")
	s.openUntil(28, s.loopback.Namespace, "web", loopback)
	s.openUntil(28, s.routed.Namespace, "web", direct)

	s.start("version: 1\nsets: {trusted: [198.18.0.127, 198.18.0.77]}\n")
	s.open(s.Host.Namespace, "web", slices.Concat(loopback, addrPorts(netip.IPv6Loopback(), "8082")))
	for _, c := range []*lab.Node{s.stranger, s.routed} {
		s.open(c.Namespace, "web", hostPorts("8080"))
		s.closed(c.Namespace, hostPorts("8082"))
	}
	s.open(s.loopback.Namespace, "web", hostPorts("8080"))
	s.closed(s.loopback.Namespace, loopback)
	s.closed(s.routed.Namespace, direct)
}

func TestScenario13RoutedStraight(t *testing.T) {
	for name, flags := range map[string][]string{"as the engine comes": nil, "with IPv6 NAT": dualStack} {
		t.Run(name, func(t *testing.T) {
			s := bare(t, flags...)
			s.network("dual", "172.30.0.0/24", "fd00:d0c:13::/64")
			start := func(name, port string, options ...string) *lab.Container {
				return s.runSpec(lab.Spec{
					Name:    name,
					Options: append([]string{"--network", "dual", "-p", port + ":80", "-p", port + ":80/udp"}, options...),
					Args:    []string{"tcp:80", "udp:80", "tcp:81", "udp:81"},
				})
			}
			anyone, plain := start("anyone", "8080", "--label", "nftfw.expose=any"), start("plain", "8081")
			all := []string{"80", "80/udp", "81", "81/udp"}
			straight4 := slices.Concat(addrPorts(anyone.Addr4("dual"), all...), addrPorts(plain.Addr4("dual"), all...))
			straight6 := slices.Concat(addrPorts(anyone.Addr6("dual"), all...), addrPorts(plain.Addr6("dual"), all...))
			t.Log("without nftfw the way is there")
			nat6 := flags != nil || s.engine.Major >= 27
			s.openUntil(28, s.routed.Namespace, "", straight4)
			if nat6 {
				// Docker's own rules let only what is published through.
				s.openUntil(28, s.routed.Namespace, "", addrPorts(plain.Addr6("dual"), "80", "80/udp"))
			} else {
				s.open(s.routed.Namespace, "", straight6)
			}

			s.start("version: 1\nsets: {trusted: [198.18.0.77]}\n")
			s.open(s.routed.Namespace, "anyone", hostPorts("8080", "8080/udp"))
			s.closed(s.routed.Namespace, slices.Concat(straight4, addrPorts(plain.Addr6("dual"), all...),
				addrPorts(anyone.Addr6("dual"), "81", "81/udp")))
			if nat6 {
				s.closed(s.routed.Namespace, addrPorts(anyone.Addr6("dual"), "80", "80/udp"))
				return
			}
			t.Log("without NAT for IPv6 there is no other way, and FROM decides")
			s.open(s.routed.Namespace, "anyone", addrPorts(anyone.Addr6("dual"), "80", "80/udp"))
			s.nftfw("sets", "add", "trusted", s.routed.V6.String())
			s.open(s.routed.Namespace, "plain", addrPorts(plain.Addr6("dual"), "80", "80/udp"))
			s.closed(s.routed.Namespace, addrPorts(plain.Addr6("dual"), "81", "81/udp"))
		})
	}
}

func TestScenario14OtherEngines(t *testing.T) {
	engines := []struct {
		name  string
		flags []string
		only4 bool // what is published is not there over IPv6
	}{
		{"without userland proxy", []string{"--userland-proxy=false"}, true},
		{"without iptables", []string{"--iptables=false"}, false},
	}
	for _, e := range engines {
		t.Run(e.name, func(t *testing.T) {
			s := scene(t, "version: 1"+trust, e.flags...)
			s.runSpec(lab.Spec{
				Name:    "web",
				Options: []string{"-p", "8080:80", "-p", "8081:81", "-p", "8080:80/udp", "--label", "nftfw.expose.80/tcp=any"},
				Args:    []string{"tcp:80", "tcp:81", "udp:80"},
			})
			s.run("plain", "-p", "8082:80")
			s.run("none", "-p", "8083:80", "--label", "nftfw.expose=none")
			there := func(ports ...string) []lab.Probe {
				if e.only4 {
					return addrPorts(lab.HostV4, ports...)
				}
				return hostPorts(ports...)
			}
			s.open(s.Host.Namespace, "none", there("8083"))
			s.open(s.permitted.Namespace, "", there("8080", "8081", "8080/udp", "8082"))
			s.open(s.stranger.Namespace, "web", there("8080"))
			s.closed(s.stranger.Namespace, hostPorts("8081", "8080/udp", "8082", "8083"))
			s.closed(s.permitted.Namespace, hostPorts("8083"))
		})
	}
}

func TestScenario15HostNetwork(t *testing.T) {
	s := scene(t, `version: 1
sets:
  trusted: [198.18.0.10, "fd00:18::10"]
  office: [198.18.1.0/24, "fd00:18::1:0/112"]
host:
  allow:
    - {ports: [9100/tcp, 9100/udp], from: any}
    - {ports: [9101/tcp], from: office}
`)
	office := newPair("198.18.1.20", "fd00:18::1:20")
	s.lend(s.stranger, office)
	own := func(ports ...string) []lab.Probe { return from(hostPorts(ports...), s.stranger.V4, s.stranger.V6) }
	s.service("host", "tcp:9100", "udp:9100", "tcp:9101", "tcp:9102")
	s.open(s.stranger.Namespace, "host", hostPorts("9100", "9100/udp"))
	s.open(s.stranger.Namespace, "host", from(hostPorts("9101"), office.v4, office.v6))
	s.closed(s.stranger.Namespace, own("9101", "9102"))
	s.open(s.permitted.Namespace, "host", hostPorts("9101", "9102"))

	web := lab.Spec{
		Name: "web",
		Options: []string{
			"--network", "host", "--label", "nftfw.expose.9000/tcp=any",
			"--label", "nftfw.expose.9101/tcp=any", // host.allow speaks of it, so this grants nothing
		},
		Args: []string{"tcp:9000", "tcp:9001", "udp:9000"},
	}
	for range 2 {
		s.runSpec(web)
		s.open(s.stranger.Namespace, "web", hostPorts("9000"))
		s.open(s.permitted.Namespace, "web", hostPorts("9001", "9000/udp"))
		s.closed(s.stranger.Namespace, own("9001", "9000/udp", "9101"))
		s.docker("rm", "-f", "web")
		t.Log("gone: another on its port is not open")
		heir := s.service("heir", "tcp:9000")
		s.open(s.permitted.Namespace, "heir", hostPorts("9000"))
		s.closes(s.stranger.Namespace, hostPorts("9000"))
		heir.Stop()
	}
}

// ip runs ip commands on a node now, and others when the test ends.
func (s *set) ip(n lab.Namespace, now, after []string) {
	s.t.Helper()
	if err := n.IP(s.ctx(), now...); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := n.IP(context.Background(), after...); err != nil {
			s.t.Error(err)
		}
	})
}
