package integration

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nftfw/nftfw/integration/lab"
)

// onPodman runs a test with each of the two network backends that Debian's
// Podman has, on a stage with no nftfw.
func onPodman(t *testing.T, test func(s *set)) {
	needRoot(t)
	for _, backend := range []string{"netavark", "cni"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			stage, err := newStageWith(context.Background(), nil, func(l *lab.Lab) (*lab.Engine, error) { return l.Podman(backend) })
			if err != nil {
				noEngine(t, err)
			}
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("log of Podman:\n%s", tail(stage.engine.Log(), 50))
				}
				if err := stage.Close(); err != nil {
					t.Error(err)
				}
			})
			test(&set{stage: stage, t: t})
		})
	}
}

func TestPodmanPublished(t *testing.T) {
	onPodman(t, func(s *set) {
		s.network("dual", "172.30.1.0/24", "fd00:d0c:a1::/64")
		only4 := func(ports ...string) []lab.Probe { return addrPorts(lab.HostV4, ports...) }
		web := s.runSpec(lab.Spec{
			Name:    "web",
			Options: []string{"-p", "8080:80", "-p", "8080:80/udp", "-p", "127.0.0.1:8082:81", "--label", "nftfw.expose.80/tcp=any"},
			Args:    []string{"tcp:80", "udp:80", "tcp:81"},
		})
		s.run("plain", "-p", "8081:80")
		s.run("dual", "--network", "dual", "-p", "8090:80", "-p", "8090:80/udp", "--label", "nftfw.expose=any")
		s.run("shut", "--network", "dual", "-p", "8091:80", "--label", "nftfw.expose=none")
		s.runSpec(lab.Spec{Name: "range", Options: []string{"-p", "8093-8095:93-95", "--label", "nftfw.expose.94-95=any"}, Args: []string{"tcp:93", "tcp:94", "tcp:95"}})
		s.runSpec(lab.Spec{Name: "baked", Image: badImage, Options: []string{"-p", "8096:80"}})
		t, loopback := s.t, addrPorts(netip.MustParseAddr("127.0.0.1"), "8082")
		straight := addrPorts(web.Addr4("podman"), "80", "81")
		t.Log("without nftfw the ways are there")
		s.open(s.stranger.Namespace, "", slices.Concat(only4("8080", "8080/udp", "8081", "8093", "8095", "8096"), hostPorts("8090", "8091")))
		s.open(s.routed.Namespace, "web", straight)
		s.open(s.loopback.Namespace, "web", loopback)

		s.start("version: 1" + trust + `containers: {rules: [{match: {image: "echo:*", name: plain}, expose: {80/tcp: trusted}}]}` + "\n")
		s.open(s.permitted.Namespace, "", slices.Concat(only4("8080", "8080/udp", "8081", "8093", "8094", "8095", "8096"), hostPorts("8090", "8090/udp")))
		s.open(s.stranger.Namespace, "web", only4("8080"))
		s.open(s.stranger.Namespace, "dual", hostPorts("8090", "8090/udp"))
		s.open(s.stranger.Namespace, "range", only4("8094", "8095"))
		s.open(s.Host.Namespace, "web", loopback)
		s.closed(s.stranger.Namespace, hostPorts("8080/udp", "8081", "8082", "8091", "8093", "8096"))
		s.closed(s.permitted.Namespace, hostPorts("8091"))
		s.closed(s.routed.Namespace, straight)
		s.closed(s.loopback.Namespace, loopback)
		if p := s.ports("plain"); len(p) == 0 || p[0].DecidedBy != "rule" {
			t.Errorf("plain: %+v, want it decided by a rule that matches the image's short name", p)
		}
		if o := s.fw.Exec(s.ctx(), "doctor"); strings.Contains(o.Stdout, "iptables") || strings.Contains(o.Stdout, "foreign-drop") {
			t.Errorf("doctor takes Podman for something else: %s", o)
		}
	})
}

func TestPodmanComesAndGoes(t *testing.T) {
	onPodman(t, func(s *set) {
		s.start("version: 1" + trust)
		s.network("dual", "172.30.1.0/24", "fd00:d0c:a2::/64")
		// The bridge is made with the first container on it, of which no event
		// tells.
		published := s.hammer(s.stranger, hostPort(8080)...)
		straight := []netip.AddrPort{netip.MustParseAddrPort("172.30.1.9:80"), netip.MustParseAddrPort("[fd00:d0c:a2::9]:80")}
		routed := s.hammer(s.routed, slices.Concat(hostPort(8080), straight)...)
		for range 3 {
			s.run("plain", "--network", "dual", "--ip", "172.30.1.9", "--ip6", "fd00:d0c:a2::9", "-p", "8080:80")
			s.open(s.permitted.Namespace, "plain", hostPorts("8080"))
			s.docker("rm", "-f", "plain")
		}
		published()
		routed()
		t := s.t

		t.Log("an address is not inherited")
		s.run("web", "--network", "dual", "--ip", "172.30.1.9", "-p", "8081:80", "--label", "nftfw.expose=any")
		s.open(s.stranger.Namespace, "web", hostPorts("8081"))
		s.docker("rm", "-f", "web")
		s.run("heir", "--network", "dual", "--ip", "172.30.1.9", "-p", "8081:80")
		s.open(s.permitted.Namespace, "heir", hostPorts("8081"))
		s.closed(s.stranger.Namespace, hostPorts("8081"))

		t.Log("connected and disconnected")
		s.docker("network", "create", "--subnet", "172.30.2.0/24", "second")
		s.run("mover", "--network", "dual", "-p", "8083:80", "--label", "nftfw.expose=any")
		s.open(s.stranger.Namespace, "mover", hostPorts("8083"))
		s.docker("network", "connect", "second", "mover")
		s.docker("network", "disconnect", "dual", "mover")
		s.open(s.stranger.Namespace, "mover", addrPorts(lab.HostV4, "8083"))
		s.docker("restart", "-t", "0", "mover")
		s.open(s.stranger.Namespace, "mover", addrPorts(lab.HostV4, "8083"))

		t.Log("in the host's network, and in another container's")
		s.runSpec(lab.Spec{Name: "host", Options: []string{"--network", "host", "--label", "nftfw.expose.9000/tcp=any"}, Args: []string{"tcp:9000", "tcp:9001"}})
		s.runSpec(lab.Spec{Name: "guest", Options: []string{"--network", "container:heir", "--label", "nftfw.expose=any"}, Args: []string{"tcp:81"}})
		s.open(s.stranger.Namespace, "host", hostPorts("9000"))
		s.open(s.permitted.Namespace, "heir", hostPorts("8081"))
		s.closed(s.stranger.Namespace, hostPorts("9001", "8081"))
		s.eventually(openWithin, func() error {
			if status := s.nftfw("status"); !anyLine(status, "guest", "nftfw.expose", "cannot be enforced") {
				return fmt.Errorf("status does not say that the label of guest cannot be enforced: %s", status)
			}
			return nil
		})
		s.docker("rm", "-f", "host")
		s.closes(s.stranger.Namespace, hostPorts("9000"))
	})
}

func TestPodmanEgress(t *testing.T) {
	onPodman(t, func(s *set) {
		const plain, first, starts = 6999, 7000, 5
		sink := s.catch(s.stranger, plain, starts+1)
		syns := s.countSYNs(plain, first+starts)
		s.start("version: 1\n")
		s.network("dual", "172.30.1.0/24", "fd00:d0c:a3::/64")
		dial := func(name string, port uint16, options ...string) {
			s.runSpec(lab.Spec{Name: name, Options: append(options, "--network", "dual"), Args: []string{"-dial", netip.AddrPortFrom(s.stranger.V4, port).String(), "tcp:80"}})
		}
		s.t.Log("a narrowed container is confined from its first packet on, whether its bridge is new or not")
		for i := range uint16(starts) {
			name := fmt.Sprintf("narrow%d", i)
			dial(name, first+i, "--label", "nftfw.egress=none")
			s.eventually(10*time.Second, func() error {
				if syns(first+i) < 3 {
					return fmt.Errorf("%s has not called yet", name)
				}
				return nil
			})
			if i%2 == 0 {
				s.docker("rm", "-f", name)
			}
		}
		for i := range uint16(starts) {
			if n := sink.on(first + i); n > 0 {
				s.t.Errorf("narrow%d got through %d times", i, n)
			}
		}
		dial("plain", plain)
		s.eventually(openWithin, func() error {
			if sink.on(plain) == 0 {
				return fmt.Errorf("a container without a label does not connect")
			}
			return nil
		})

		s.t.Log("to the host, to peers")
		s.service("host", "tcp:9100")
		peer := s.run("peer", "--network", "dual")
		caller := s.run("caller", "--network", "dual")
		s.open(caller.Namespace, "host", addrPorts(lab.HostV4, "9100"))
		s.open(caller.Namespace, "peer", slices.Concat(addrPorts(peer.Addr4("dual"), "80", "80/udp"), addrPorts(peer.Addr6("dual"), "80")))
		s.apply("version: 1\ncontainers: {to_host: none}\n")
		s.closed(caller.Namespace, addrPorts(lab.HostV4, "9100"))
		s.open(caller.Namespace, "peer", addrPorts(peer.Addr4("dual"), "80"))
	})
}
