package integration

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nftfw/nftfw/integration/lab"
)

func TestScenario31LabelsOfImages(t *testing.T) {
	const head = "version: 1" + trust
	const rules = `containers:
  image_labels: %v
  rules:
    - {match: {project: shop}, expose: {81/tcp: any}}
    - {match: {service: web}, expose: {82/tcp: any}}
    - {match: {label: {tier: front}}, expose: {83/tcp: any}}
`
	s := scene(t, head+fmt.Sprintf(rules, false))
	args := []string{"tcp:80", "tcp:81", "tcp:82", "tcp:83"}
	publish := func(base int) []string {
		return []string{"-p", fmt.Sprintf("%d-%d:80-83", base, base+3)}
	}
	s.runSpec(lab.Spec{Name: "baked", Image: badImage, Options: publish(8080), Args: args})
	// Saying again what the image says does not make it the operator's.
	s.runSpec(lab.Spec{Name: "said-again", Image: badImage, Options: append(publish(8090), "--label", "nftfw.expose=any"), Args: args})
	s.runSpec(lab.Spec{Name: "operators", Options: append(publish(8100), "--label", "nftfw.expose.80/tcp=any",
		"--label", "com.docker.compose.project=shop", "--label", "com.docker.compose.service=web", "--label", "tier=front"), Args: args})

	baked := hostPorts("8080", "8081", "8082", "8083", "8090", "8091", "8092", "8093")
	s.open(s.stranger.Namespace, "operators", hostPorts("8100", "8101", "8102", "8103"))
	s.open(s.permitted.Namespace, "", baked)
	s.closed(s.stranger.Namespace, baked)

	t.Log("image_labels: true")
	if err := s.fw.WritePolicy(head + fmt.Sprintf(rules, true)); err != nil {
		t.Fatal(err)
	}
	s.nftfw("apply")
	s.open(s.stranger.Namespace, "baked", hostPorts("8080", "8081", "8082", "8083"))
}

// A rule by image goes on to hold a container whose image has lost its name, as a
// pull or a build takes it. The engine lists the image's ID then.
func TestScenario31ImageLosesItsName(t *testing.T) {
	s := scene(t, "version: 1"+trust+`containers: {rules: [{match: {image: "moved:*"}, expose: {"*": none}, egress: none}]}`)
	outside, err := s.Service(s.ctx(), s.stranger, built.echo, "outside", "tcp:7000")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(outside.Stop)
	load := func(version string) {
		t.Helper()
		if err := s.engine.LoadImage(s.ctx(), built.echo, "moved:1", "LABEL version="+version); err != nil {
			t.Fatal(err)
		}
	}
	load("1")
	s.runSpec(lab.Spec{Name: "web", Image: "moved:1", Options: []string{"-p", "8080:80", "--label", "nftfw.expose=any"}})
	s.run("other", "-p", "8081:80", "--label", "nftfw.expose=any")
	held := func(name string) {
		t.Helper()
		s.eventually(openWithin, func() error {
			if strings.Contains(s.nftfw("ports"), name) {
				return nil
			}
			return fmt.Errorf("nftfw does not know %s", name)
		})
		s.open(s.stranger.Namespace, "other", hostPorts("8081"))
		s.ready("web", "8080")
		s.closed(s.stranger.Namespace, hostPorts("8080"))
		s.closed(s.permitted.Namespace, hostPorts("8080"))
		c, err := s.engine.Container(s.ctx(), name)
		if err != nil {
			t.Fatal(err)
		}
		s.closed(c.Namespace, addrPorts(s.stranger.V4, "7000"))
	}
	restart := func() {
		t.Helper()
		if err := errors.Join(s.fw.Stop(s.ctx()), s.fw.Start(s.ctx())); err != nil {
			t.Fatal(err)
		}
	}
	held("web")

	t.Log("another image has its name")
	load("2")
	s.docker("rename", "web", "renamed")
	held("renamed")
	restart()
	held("renamed")

	t.Log("it has no name, and nftfw was not there when it had one")
	s.docker("rmi", "moved:1")
	s.docker("stop", "-t", "0", "renamed")
	restart()
	s.docker("start", "renamed")
	held("renamed")
	s.docker("restart", "-t", "0", "renamed")
	held("renamed")
}

// outsider attaches a client to the host by a link of its own, which on the
// host is called link. Its addresses are the caller's business.
func (s *set) outsider(link string) *lab.Node {
	s.t.Helper()
	n, err := s.Aside(s.ctx(), "outsider", link)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := s.Detach(context.Background(), n); err != nil {
			s.t.Error(err)
		}
	})
	return n
}

// doctorNames demands that doctor finds something and names it.
func (s *set) doctorNames(name string) {
	s.t.Helper()
	if !strings.Contains(s.fw.Exec(s.ctx(), "help").Stdout, "doctor") {
		s.t.Log("NOT TESTED: what doctor says; this nftfw has no such command")
		return
	}
	o := s.fw.Exec(s.ctx(), "doctor")
	if o.Status != 1 || !strings.Contains(o.Stdout, name) {
		s.t.Errorf("doctor does not name %s: %s", name, o)
	}
}

func TestScenario32ForeignBridge(t *testing.T) {
	s := bare(t)
	out := s.outsider("out0")
	s.ip(s.Host.Namespace, []string{
		"link add brx type bridge", "link set out0 master brx up", "link set brx up",
		"addr add 198.19.5.1/24 dev brx", "addr add fd00:19:5::1/64 dev brx nodad",
	}, []string{"link del brx"})
	s.ip(out.Namespace, []string{
		"addr add 198.19.5.2/24 dev eth0", "addr add fd00:19:5::2/64 dev eth0 nodad", "link set eth0 up",
		"route add default via 198.19.5.1", "route add default via fd00:19:5::1",
	}, nil)
	s.service("host", "tcp:9100", "udp:9100")
	web := s.run("web", "-p", "8080:80")
	straight := addrPorts(web.Addr4("bridge"), "80")
	ways := slices.Concat(hostPorts("9100", "8080"),
		addrPorts(netip.MustParseAddr("198.19.5.1"), "9100", "9100/udp", "8080"),
		addrPorts(netip.MustParseAddr("fd00:19:5::1"), "9100", "9100/udp", "8080"))
	t.Log("without nftfw the ways are there")
	s.open(out.Namespace, "", ways)
	s.openUntil(28, out.Namespace, "", straight)
	ways = append(ways, straight...)

	s.start("version: 1")
	s.closed(out.Namespace, ways)
	s.docker("network", "create", "--subnet", "198.19.5.0/24", "--gateway", "198.19.5.1",
		"-o", "com.docker.network.bridge.name=brx", "taken")
	s.closed(out.Namespace, ways)
	t.Log("with a container on it, too")
	s.run("bait", "--network", "taken", "--ip", "198.19.5.9", "-p", "8081:80")
	s.ready("bait", "8081")
	s.closed(out.Namespace, slices.Concat(ways, hostPorts("8081")))
	s.doctorNames("brx")
}

func TestScenario32ForeignPort(t *testing.T) {
	s := scene(t, "version: 1\ncontainers: {to_host: [9101/tcp]}\n")
	out := s.outsider("out0")
	s.ip(out.Namespace, []string{
		"addr add 172.17.200.1/16 dev eth0", "link set eth0 up", "route add default via 172.17.0.1",
	}, nil)
	s.service("host", "tcp:9100", "tcp:9101")
	s.docker("network", "create", "--subnet", "172.30.1.0/24", "other")
	s.run("web", "-p", "8080:80")
	other := s.run("other", "--network", "other", "-p", "8081:80")
	inside, err := s.engine.Container(s.ctx(), "web")
	if err != nil {
		t.Fatal(err)
	}
	bridge := netip.MustParseAddr("172.17.0.1")
	s.open(inside.Namespace, "host", addrPorts(bridge, "9101"))
	s.closed(inside.Namespace, addrPorts(bridge, "9100"))

	s.ip(s.Host.Namespace, []string{"link set out0 master docker0 up"}, nil)
	ways := slices.Concat(addrPorts(bridge, "9100", "9101", "8081"), addrPorts(lab.HostV4, "9100", "9101", "8081"),
		addrPorts(other.Addr4("other"), "80"))
	s.closes(out.Namespace, ways)
	s.closed(out.Namespace, ways)
	s.doctorNames("docker0")
	t.Log("the link leaves: the bridge is a container's again")
	s.ip(s.Host.Namespace, []string{"link set out0 nomaster"}, nil)
	s.open(inside.Namespace, "host", addrPorts(bridge, "9101"))
}

// A network that Docker made a moment ago is closed by every path, and its
// container has its own connections soon.
func TestScenario33FreshNetwork(t *testing.T) {
	s := scene(t, "version: 1")
	calls, err := s.permitted.Listen(s.ctx(), net.JoinHostPort(s.permitted.V4.String(), "7000"))
	if err != nil {
		t.Fatal(err)
	}
	defer calls.Close()
	straight := []netip.AddrPort{netip.MustParseAddrPort("172.30.7.10:80"), netip.MustParseAddrPort("[fd00:d0c:33::10]:80")}
	published := s.hammer(s.stranger, hostPort(8080)...)
	routed := s.hammer(s.routed, slices.Concat(hostPort(8080), straight)...)
	for range 4 {
		s.network("fresh", "172.30.7.0/24", "fd00:d0c:33::/64")
		s.runSpec(lab.Spec{
			Name:    "web",
			Options: []string{"--network", "fresh", "--ip", "172.30.7.10", "--ip6", "fd00:d0c:33::10", "-p", "8080:80"},
			Args:    []string{"-dial", calls.Addr().String(), "tcp:80"},
		})
		s.called(calls, "web")
		s.ready("web", "8080")
		s.docker("rm", "-f", "web")
		s.docker("network", "rm", "fresh")
	}
	published()
	routed()
}

// called waits for the call of a container and demands that it came through
// within a second of the container's first attempt. The moment that the engine
// notes as its start is no measure: engine 28 sets the network up after it.
func (s *set) called(l net.Listener, name string) {
	s.t.Helper()
	for {
		c, err := l.Accept()
		if err != nil {
			s.t.Fatal(err)
		}
		line, err := bufio.NewReader(c).ReadString('\n')
		c.Close()
		if line == "" {
			continue // an attempt that was given up on its way
		}
		who, text, _ := strings.Cut(strings.TrimSpace(line), " ")
		took, bad := time.ParseDuration(text)
		if err := errors.Join(err, bad); err != nil || who != name {
			s.t.Fatalf("called by %q (%v), want %s", line, err, name)
		}
		s.t.Logf("%s reached a peer %s after its first attempt", name, took)
		if took > time.Second {
			s.t.Error("want it within a second")
		}
		return
	}
}

func TestScenario34AddressesOfTheHost(t *testing.T) {
	s := scene(t, "version: 1"+trust)
	second, third := newPair("198.18.0.2", "fd00:18::2"), newPair("198.18.0.3", "fd00:18::3")
	s.lend(s.Host, second, third)
	s.service("host", "tcp:198.18.0.1:5432", "tcp:[fd00:18::1]:5432")
	publish := func(p pair) []string {
		return []string{"-p", p.v4.String() + ":5432:5432", "-p", "[" + p.v6.String() + "]:5432:5432"}
	}
	args := []string{"tcp:5432"}
	s.runSpec(lab.Spec{Name: "open", Options: append(publish(second), "--label", "nftfw.expose=any"), Args: args})
	s.runSpec(lab.Spec{Name: "shut", Options: publish(third), Args: args})
	at := func(p pair) []lab.Probe {
		return slices.Concat(addrPorts(p.v4, "5432"), addrPorts(p.v6, "5432"))
	}
	s.open(s.permitted.Namespace, "host", hostPorts("5432"))
	s.open(s.permitted.Namespace, "shut", at(third))
	s.open(s.stranger.Namespace, "open", at(second))
	s.closed(s.stranger.Namespace, slices.Concat(hostPorts("5432"), at(third)))
}

func TestScenario35FTPHelper(t *testing.T) {
	s := scene(t, "version: 1\nhost: {allow: [{ports: [21/tcp], from: any}]}\n")
	if err := s.Host.NFT(s.ctx(), `
		table inet theirs {
			ct helper ftp { type "ftp" protocol tcp; }
			chain pre { type filter hook prerouting priority 0; tcp dport 21 ct helper set "ftp"; }
			chain seen { type filter hook prerouting priority -20; ct state related tcp dport 5176 counter name "related"; }
			counter related { }
		}`); err != nil {
		t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := s.Host.NFT(context.Background(), "delete table inet theirs"); err != nil {
			t.Error(err)
		}
	})
	// The server echoes, so that a client can put any words into its mouth.
	s.service("host", "tcp:21", "tcp:5176")
	forged := map[netip.Addr]string{
		lab.HostV4: "227 Entering Passive Mode (198,18,0,1,20,56)\r\n",
		lab.HostV6: "229 Entering Extended Passive Mode (|||5176|)\r\n",
	}
	for a, reply := range forged {
		ftp := netip.AddrPortFrom(a, 21)
		s.open(s.stranger.Namespace, "host", addrPorts(a, "21"))
		c, err := s.stranger.Dial(s.ctx(), "tcp", ftp, netip.Addr{})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(c)
		if _, err := r.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte(reply)); err != nil {
			t.Fatal(err)
		}
		if echoed, err := r.ReadString('\n'); err != nil || echoed != reply {
			t.Fatalf("echoed %q (%v), want %q", echoed, err, reply)
		}
		s.closed(s.stranger.Namespace, addrPorts(a, "5176"))
	}
	out, err := s.Host.Run(s.ctx(), "nft", "list", "counter", "inet", "theirs", "related")
	if err != nil || strings.Contains(out, "packets 0 ") {
		t.Errorf("the kernel took no packet for related, so nothing was tried (%v): %s", err, out)
	}
}

func TestScenario35RouteLocalnet(t *testing.T) {
	s := bare(t, "--userland-proxy=false")
	s.service("host", "tcp:127.0.0.1:6000", "udp:127.0.0.1:6000", "tcp:9100")
	web := s.run("web")
	if err := web.Sysctl("net.ipv4.conf.all.route_localnet", "1"); err != nil {
		t.Fatal(err)
	}
	if err := web.IP(s.ctx(), "addr del 127.0.0.1/8 dev lo", "route add 127.0.0.0/8 via 172.17.0.1"); err != nil {
		t.Fatal(err)
	}
	loopback := addrPorts(netip.MustParseAddr("127.0.0.1"), "6000", "6000/udp")
	t.Log("without nftfw the way is there")
	s.open(web.Namespace, "host", loopback)
	s.start("version: 1")
	s.open(web.Namespace, "host", addrPorts(netip.MustParseAddr("172.17.0.1"), "9100"))
	s.closed(web.Namespace, loopback)
}

// talk sends a line over a connection to an echo server and waits for its
// echo.
func talk(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("talk\n")); err != nil {
		return err
	}
	for r := bufio.NewReader(c); ; {
		line, err := r.ReadString('\n')
		if err != nil {
			return err
		}
		if line == "talk\n" {
			return nil
		}
	}
}

func TestScenario36RestartWhileEngineIsAway(t *testing.T) {
	s := scene(t, "version: 1"+trust, append([]string{"--live-restore"}, dualStack...)...)
	s.run("web", "-p", "8080:80", "--label", "nftfw.expose=any")
	doomed := s.run("doomed", "-p", "8081:80", "--label", "nftfw.expose=any")
	s.run("plain", "-p", "8082:80")
	s.open(s.stranger.Namespace, "", hostPorts("8080", "8081"))
	s.open(s.permitted.Namespace, "plain", hostPorts("8082"))
	var flows []net.Conn
	for _, to := range hostPort(8080) {
		c, err := s.stranger.Dial(s.ctx(), "tcp", to, netip.Addr{})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		flows = append(flows, c)
	}
	still := func(when string) {
		t.Helper()
		for _, c := range flows {
			if err := talk(c); err != nil {
				t.Errorf("%s: the flow to %s: %v", when, c.RemoteAddr(), err)
			}
		}
		s.open(s.stranger.Namespace, "web", hostPorts("8080"))
		s.closed(s.stranger.Namespace, hostPorts("8082"))
	}
	if err := s.engine.Stop(s.ctx()); err != nil {
		t.Fatal(err)
	}
	still("with the engine stopped")
	if err := s.fw.Stop(s.ctx()); err != nil {
		t.Fatal(err)
	}
	still("with both stopped")
	if err := s.fw.Launch(s.ctx()); err != nil {
		t.Fatal(err)
	}
	if err := s.fw.WaitReady(s.ctx(), false); err != nil {
		t.Fatal(err)
	}
	still("restarted without an engine")

	t.Log("a container ends that nobody hears of, and the engine comes back")
	if err := doomed.Signal(9); err != nil {
		t.Fatal(err)
	}
	if err := s.engine.Start(s.ctx()); err != nil {
		t.Fatal(err)
	}
	if err := s.fw.WaitReady(s.ctx(), true); err != nil {
		t.Fatal(err)
	}
	still("with the engine back")
	s.eventually(5*time.Second, func() error {
		if p := s.ports("doomed"); len(p) > 0 {
			return fmt.Errorf("ports still lists %+v", p)
		}
		if p := s.ports("web"); len(p) == 0 {
			return fmt.Errorf("ports does not list web")
		}
		return nil
	})
}
