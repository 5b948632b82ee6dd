package vm

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nftfw/nftfw/integration/lab"
)

// swarmSoon is how long Swarm may take to do anything on emulated machines.
const swarmSoon = 8 * time.Minute

// Ports of the nodes, and those that services publish.
const (
	controlPort = 2377
	gossipPort  = 7946
	vxlanPort   = 4789

	openMesh   = 8080 // labelled, and listed in the worker's policy
	closedMesh = 8081 // nobody speaks of it
)

// forgedPort is the source port of VXLAN that no node sent: the kernel takes
// those of its own from net.ipv4.ip_local_port_range.
const forgedPort = 4242

const managerPolicy = `version: 1
sets:
  trusted: [198.18.0.10, "fd00:18::10"]
`

// workerPolicy lists what a worker is not told.
const workerPolicy = managerPolicy + `swarm: {ingress: {8080/tcp: any}}
`

// customs counts VXLAN and ESP before nftfw's chains and just behind them: a
// format, of the identifier of the encrypted network.
const customs = `
table inet customs {
	counter forged_arrived {}
	counter forged_passed {}
	counter esp_passed {}
	counter sealed_passed {}
	counter bare_passed {}
	chain prerouting {
		type filter hook prerouting priority raw - 10; policy accept;
		udp sport 4242 udp dport 4789 counter name forged_arrived
	}
	chain input {
		type filter hook input priority filter - 9; policy accept;
		udp sport 4242 udp dport 4789 counter name forged_passed
		meta l4proto esp counter name esp_passed
		udp dport 4789 @th,96,24 %[1]d meta ipsec exists counter name sealed_passed
		udp dport 4789 @th,96,24 %[1]d meta ipsec missing counter name bare_passed
	}
}
`

// pair is two machines that become one swarm.
type pair struct {
	manager, worker     *site
	stranger, permitted *lab.Node
	t                   *testing.T
	vault               uint32     // the identifier of the encrypted network
	near, far           netip.Addr // of containers on it, of the manager and the worker
}

// TestSwarm takes two nodes from their joining to one's leaving, with nftfw
// enforced on both: what the kernel of a lab cannot do, IPVS and ESP, is real
// here.
func TestSwarm(t *testing.T) {
	image := imageOf(t, Suites[0])
	l := newWire(t)
	p := &pair{t: t}
	p.manager = newMachine(t, l, Options{Image: image, Name: "manager", V4: lab.HostV4, V6: lab.HostV6})
	p.worker = newMachine(t, l, Options{
		Image: image, Name: "worker",
		V4: netip.MustParseAddr("198.18.0.2"), V6: netip.MustParseAddr("fd00:18::2"),
	})
	p.stranger, p.permitted = p.manager.neighbour("stranger", 66), p.manager.neighbour("permitted", 10)
	p.worker.introduce(p.stranger)
	p.worker.introduce(p.permitted)
	inParts(t, p.in, []part{
		{"boot", p.boot},
		{"join", p.join},
		{"ports of the nodes", p.nodePorts},
		{"routing mesh", p.mesh},
		{"encrypted overlay", p.overlay},
		{"forged VXLAN", p.forged},
		{"leave", p.leave},
	})
}

// in runs a part as a test of its own.
func (p *pair) in(t *testing.T, run func()) {
	whole := p.t
	p.t, p.manager.t, p.worker.t = t, t, t
	defer func() { p.t, p.manager.t, p.worker.t = whole, whole, whole }()
	run()
}

func (p *pair) nodes() []*site { return []*site{p.manager, p.worker} }

// boot starts both machines at once.
func (p *pair) boot() {
	var (
		booting sync.WaitGroup
		errs    [2]error
	)
	for i, policy := range []string{managerPolicy, workerPolicy} {
		booting.Go(func() {
			m := p.nodes()[i].Machine
			errs[i] = m.Boot(p.t.Context(), slices.Concat(programs.Base(), Docker(), programs.Firewall(policy))...)
			if errs[i] == nil {
				errs[i] = m.LoadEcho(p.t.Context())
			}
		})
	}
	booting.Wait()
	p.manager.must(errors.Join(errs[:]...))
}

// join makes the worker one: it has to be let in first.
func (p *pair) join() {
	m, w := p.manager, p.worker
	m.sh("docker swarm init --advertise-addr " + m.V4.String())
	if got := w.connect(m.V4, controlPort); got != silent {
		p.t.Errorf("who is no node yet, to %d/tcp of the manager: %s", controlPort, got)
	}
	m.sh(fmt.Sprintf("nftfw sets add swarm_nodes %s --timeout 10m --comment joins", w.V4))
	token := strings.TrimSpace(m.sh("docker swarm join-token --quiet worker"))
	// The engine gives the command up after twenty seconds, and goes on by itself.
	out, err := w.Do(p.t.Context(), "docker", "swarm", "join", "--token", token, "--advertise-addr", w.V4.String(),
		fmt.Sprintf("%s:%d", m.V4, controlPort))
	w.must(err)
	p.t.Logf("join: %s%s", out.Stdout, out.Stderr)
	w.within(swarmSoon, func() error {
		state, err := w.Run(p.t.Context(), "docker", "info", "--format", "{{.Swarm.LocalNodeState}} {{.Swarm.Error}}")
		if err == nil && strings.TrimSpace(state) != "active" {
			err = fmt.Errorf("the worker's part of the swarm: %s", state)
		}
		return err
	})
	m.hears(w.V4)
	w.hears(m.V4)
	m.sh("nftfw sets del swarm_nodes " + w.V4.String())
	for _, s := range p.nodes() {
		s.within(swarmSoon, func() error {
			var st struct {
				Swarm struct{ Role, Ingress string }
			}
			if err := s.tryJSON(&st, "status"); err != nil {
				return err
			}
			if st.Swarm.Role != s.Name || st.Swarm.Ingress == "" {
				return fmt.Errorf("status of the %s: %+v", s.Name, st)
			}
			return nil
		})
	}
}

// nodePorts has the nodes reach each other's ports, and nobody else.
func (p *pair) nodePorts() {
	m, w := p.manager, p.worker
	for _, c := range []struct {
		from, to *site
		port     uint16
	}{{w, m, controlPort}, {w, m, gossipPort}, {m, w, gossipPort}} {
		c.from.eventually(func() error {
			if got := c.from.connect(c.to.V4, c.port); got != connected {
				return fmt.Errorf("%s to %d/tcp of %s: %s", c.from.Name, c.port, c.to.Name, got)
			}
			return nil
		})
	}
	for _, s := range p.nodes() {
		k := s.knockFor(time.Second, p.stranger, controlPort, gossipPort, vxlanPort)
		s.noneOf(k, "the ports of the "+s.Name)
	}
}

// mesh publishes two services in the routing mesh and reaches them through
// either node.
func (p *pair) mesh() {
	// A task of the one on each node, and the other on the worker alone.
	p.service("shop", fmt.Sprintf("--mode global --publish %d:80 --label nftfw.expose=any", openMesh))
	p.service("plain", fmt.Sprintf("--constraint node.role==worker --publish %d:80", closedMesh))
	for _, s := range p.nodes() {
		for _, from := range []*lab.Node{p.permitted, p.stranger} {
			p.reaches(s, from, openMesh, "shop-manager", "shop-worker")
		}
		p.reaches(s, p.permitted, closedMesh, "plain-worker")
		// The engine's own listener: it connects and answers nothing.
		for port, want := range map[uint16]lab.Outcome{openMesh: lab.Mute, closedMesh: lab.Silent} {
			r := p.stranger.Probe(p.t.Context(), lab.Probe{Network: "tcp", To: netip.AddrPortFrom(s.V6, port), Timeout: patience})
			if r.Outcome != want {
				p.t.Errorf("the stranger, to %d of the %s over IPv6: %s, want %s", port, s.Name, r, want)
			}
		}
		s.noneOf(s.knockFor(2*time.Second, p.stranger, closedMesh), "what is not labelled, through the "+s.Name)
		s.sh(fmt.Sprintf("nftfw explain --from %s --to %s:%d --expect accept", p.stranger.V4, s.V4, openMesh))
		s.sh(fmt.Sprintf("nftfw explain --from %s --to %s:%d --expect drop", p.stranger.V4, s.V4, closedMesh))
	}
}

// patience is how long an answer through two emulated machines may take.
const patience = 5 * time.Second

// service makes a service of the echo server, which answers with its name and
// its node's.
func (p *pair) service(name, options string) {
	p.manager.sh(fmt.Sprintf(`docker service create --detach --no-resolve-image --name %[1]s --hostname '%[1]s-{{.Node.Hostname}}' %[2]s %[3]s`,
		name, options, lab.Image))
}

// reaches demands that a port of the node leads to each of the servers, one
// time or another.
func (p *pair) reaches(s *site, from *lab.Node, port uint16, servers ...string) {
	p.t.Helper()
	left := slices.Clone(servers)
	began := time.Now()
	s.within(swarmSoon, func() error {
		r := from.Probe(p.t.Context(), lab.Probe{Network: "tcp", To: netip.AddrPortFrom(s.V4, port), Timeout: patience})
		left = slices.DeleteFunc(left, func(server string) bool { return server == r.Server })
		if len(left) > 0 {
			return fmt.Errorf("%s to %d of the %s: %s; not seen: %v", from.Name, port, s.Name, r, left)
		}
		return nil
	})
	p.t.Logf("%s through the %s: %v after %.1f s", from.Name, s.Name, servers, time.Since(began).Seconds())
}

// overlay has two containers on different nodes talk over an encrypted network.
func (p *pair) overlay() {
	m, w := p.manager, p.worker
	m.sh("docker network create --driver overlay --opt encrypted vault")
	p.vault = m.vni("vault")
	for _, s := range p.nodes() {
		s.sh("nft -f - <<'END'" + fmt.Sprintf(customs, p.vault) + "END")
	}
	p.service("near", "--constraint node.role==manager --network vault")
	p.service("far", "--constraint node.role==worker --network vault")
	near, far := m.task("near"), w.task("far")
	p.near, p.far = m.on("vault", near), w.on("vault", far)
	for _, s := range p.nodes() {
		s.within(swarmSoon, func() error {
			if rules := s.sh("nft list chain inet nftfw input"); !strings.Contains(rules, fmt.Sprintf("%#x meta ipsec missing", p.vault)) {
				return fmt.Errorf("the %s does not know the encrypted network:\n%s", s.Name, rules)
			}
			return nil
		})
	}
	p.talks(m, near, p.far, "far-worker")
	p.talks(w, far, p.near, "near-manager")
	for _, s := range p.nodes() {
		t := s.tolls()
		p.t.Logf("on the %s: %v", s.Name, t)
		if t["esp_passed"] == 0 || t["sealed_passed"] == 0 || t["bare_passed"] != 0 {
			p.t.Errorf("what the %s received of the encrypted network: %v", s.Name, t)
		}
	}
}

// vni is the identifier of an overlay network that the engine knows.
func (s *site) vni(network string) uint32 {
	s.t.Helper()
	text := s.sh(`docker network inspect --format '{{index .Options "com.docker.network.driver.overlay.vxlanid_list"}}' ` + network)
	id, err := strconv.ParseUint(strings.TrimSpace(text), 10, 24)
	s.must(err)
	return uint32(id)
}

// task is the container of a service on this node, as soon as it runs.
func (s *site) task(service string) (container string) {
	s.t.Helper()
	s.within(swarmSoon, func() error {
		container = strings.TrimSpace(s.sh("docker ps --quiet --filter label=com.docker.swarm.service.name=" + service))
		if container == "" {
			return fmt.Errorf("no task of %s on the %s", service, s.Name)
		}
		return nil
	})
	return container
}

// on is the address of a container on a network.
func (s *site) on(network, container string) netip.Addr {
	s.t.Helper()
	a, err := netip.ParseAddr(strings.TrimSpace(s.sh(fmt.Sprintf(
		`docker inspect --format '{{(index .NetworkSettings.Networks "%s").IPAddress}}' %s`, network, container))))
	s.must(err)
	return a
}

// talks demands that a container reaches the echo server at an address.
func (p *pair) talks(s *site, container string, to netip.Addr, server string) {
	p.t.Helper()
	sandbox := strings.TrimSpace(s.sh("docker inspect --format '{{.NetworkSettings.SandboxKey}}' " + container))
	ask := fmt.Sprintf("exec 3<>/dev/tcp/%s/80; read -r line <&3; echo $line", to)
	s.within(swarmSoon, func() error {
		out, err := s.Do(p.t.Context(), "nsenter", "--net="+sandbox, "timeout", "10", "bash", "-c", ask)
		if err == nil && !strings.HasPrefix(out.Stdout, server+" ") {
			err = fmt.Errorf("%s to %s: %+v, want an answer of %s", container, to, out, server)
		}
		return err
	})
}

// tolls are the counters of customs.
func (s *site) tolls() map[string]int {
	s.t.Helper()
	out := map[string]int{}
	name := ""
	for line := range strings.Lines(s.sh("nft list counters table inet customs")) {
		words := strings.Fields(line)
		switch {
		case len(words) >= 2 && words[0] == "counter":
			name = words[1]
		case len(words) >= 2 && words[0] == "packets":
			n, err := strconv.Atoi(words[1])
			s.must(err)
			out[name] = n
		}
	}
	if len(out) != 5 {
		s.t.Fatalf("counters %v, want five", out)
	}
	return out
}

// forge has the stranger send VXLAN to a node, and gives how many packets of it
// arrived, all of them, and how many nftfw let pass.
func (p *pair) forge(to *site, source netip.Addr, vni uint32) (passed int) {
	p.t.Helper()
	const times = 10
	before := to.tolls()
	inner := lab.IPPacket{
		Src: p.near, Dst: p.far, Proto: lab.ProtoUDP,
		Payload: lab.UDP(netip.AddrPortFrom(p.near, 5000), netip.AddrPortFrom(p.far, 80)),
	}
	outer := lab.IPPacket{
		Src: source, Dst: to.V4, Proto: lab.ProtoUDP,
		Payload: lab.VXLAN(netip.AddrPortFrom(source, forgedPort), netip.AddrPortFrom(to.V4, vxlanPort), vni,
			lab.Ethernet(overlayMAC(p.near), overlayMAC(p.far), inner.Bytes())),
	}
	to.must(p.stranger.SendFrames("eth0", to.MAC, slices.Repeat([][]byte{outer.Bytes()}, times)...))
	to.eventually(func() error {
		after := to.tolls()
		if n := after["forged_arrived"] - before["forged_arrived"]; n != times {
			return fmt.Errorf("%d of %d forged packets have arrived", n, times)
		}
		passed = after["forged_passed"] - before["forged_passed"]
		return nil
	})
	return passed
}

// overlayMAC is the link address that the engine gives to a container's end of
// an overlay network.
func overlayMAC(a netip.Addr) net.HardwareAddr {
	return append(net.HardwareAddr{0x02, 0x42}, a.AsSlice()...)
}

// forged has the stranger forge VXLAN.
func (p *pair) forged() {
	m, w := p.manager, p.worker
	ingress := m.vni("ingress")
	for _, c := range []struct {
		name   string
		to     *site
		source netip.Addr
		vni    uint32
		pass   bool
	}{
		{"of the encrypted network, from its own address", w, p.stranger.V4, p.vault, false},
		{"of the mesh, from its own address", w, p.stranger.V4, ingress, false},
		{"of the encrypted network, from the manager's address", w, m.V4, p.vault, false},
		{"of the encrypted network, from the worker's address", m, w.V4, p.vault, false},
		{"of the encrypted network, from the address of who is trusted", w, p.permitted.V4, p.vault, false},
		// What docs/swarm.md says of networks that are not encrypted. It
		// also shows that the counters see what passes.
		{"of the mesh, from the manager's address", w, m.V4, ingress, true},
	} {
		switch passed := p.forge(c.to, c.source, c.vni); {
		case !c.pass && passed != 0:
			p.t.Errorf("VXLAN %s: %d packets passed", c.name, passed)
		case c.pass && passed == 0:
			p.t.Errorf("VXLAN %s: none passed", c.name)
		}
	}
	for _, s := range p.nodes() {
		if n := s.tolls()["bare_passed"]; n != 0 {
			p.t.Errorf("%d packets of the encrypted network passed the %s unencrypted", n, s.Name)
		}
	}
}

// leave has the worker leave: it loses its place among the nodes, and what that
// opens.
func (p *pair) leave() {
	m, w := p.manager, p.worker
	ingress := m.vni("ingress")
	if passed := p.forge(m, w.V4, ingress); passed == 0 {
		p.t.Error("VXLAN from the worker's address does not pass while it is a node")
	}
	id := strings.TrimSpace(m.sh("docker node ls --filter role=worker --quiet"))
	w.sh("docker swarm leave")
	w.hears()
	if got := m.connect(w.V4, gossipPort); got != silent {
		p.t.Errorf("the manager to %d/tcp of who has left: %s", gossipPort, got)
	}
	m.within(swarmSoon, func() error {
		_, err := m.Run(p.t.Context(), "docker", "node", "rm", "--force", id)
		return err
	})
	m.hears()
	for _, port := range []uint16{controlPort, gossipPort} {
		if got := w.connect(m.V4, port); got != silent {
			p.t.Errorf("who has left, to %d/tcp of the manager: %s", port, got)
		}
	}
	if passed := p.forge(m, w.V4, ingress); passed != 0 {
		p.t.Errorf("%d packets of VXLAN from the address of who has left passed", passed)
	}
	// What is left of the swarm serves on.
	p.reaches(m, p.stranger, openMesh, "shop-manager")
}

// hears demands that the engine accounts for these nodes in swarm_nodes, soon,
// and for no others.
func (s *site) hears(of ...netip.Addr) {
	s.t.Helper()
	s.within(swarmSoon, func() error {
		var set struct {
			Entries []struct{ Entry, Source string }
		}
		if err := s.tryJSON(&set, "sets", "show", "swarm_nodes"); err != nil {
			return err
		}
		var nodes, want []string
		for _, e := range set.Entries {
			if e.Source == "docker" {
				nodes = append(nodes, e.Entry)
			}
		}
		for _, a := range of {
			want = append(want, a.String())
		}
		if !slices.Equal(nodes, want) {
			return fmt.Errorf("the %s knows the nodes %v, want %v", s.Name, nodes, want)
		}
		return nil
	})
}

// What becomes of a connection that a machine tries to make.
const (
	connected = "connected"
	silent    = "silent"
)

// connect has the machine connect by TCP: connected, silent, or what it
// complained of.
func (s *site) connect(to netip.Addr, port uint16) string {
	s.t.Helper()
	out, err := s.Do(s.ctx(), "timeout", "5", "bash", "-c", fmt.Sprintf("exec 3<>/dev/tcp/%s/%d", to, port))
	s.must(err)
	switch out.Status {
	case 0:
		return connected
	case 124: // see timeout(1)
		return silent
	}
	return strings.TrimSpace(out.Stderr)
}
