package integration

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nftfw/nftfw/integration/lab"
)

// caught counts the connections that a client accepts on its ports.
type caught struct {
	mu     sync.Mutex
	byPort map[uint16]int
}

// catch listens on ports of a client until the test ends. Each connection is
// taken note of and closed.
func (s *set) catch(n *lab.Node, first uint16, ports int) *caught {
	s.t.Helper()
	c := &caught{byPort: map[uint16]int{}}
	for i := range ports {
		port := first + uint16(i)
		l, err := n.Listen(s.ctx(), net.JoinHostPort("", strconv.Itoa(int(port))))
		if err != nil {
			s.t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return // closed below
				}
				c.mu.Lock()
				c.byPort[port]++
				c.mu.Unlock()
				conn.Close()
			}
		})
		s.t.Cleanup(func() {
			l.Close()
			wg.Wait()
		})
	}
	return c
}

func (c *caught) on(port uint16) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.byPort[port]
}

// countSYNs has the host count who asks to connect to which of these ports,
// before anything can refuse it. The function that it returns reads a port's
// count.
func (s *set) countSYNs(first, last uint16) func(port uint16) int {
	s.t.Helper()
	if err := s.Host.NFT(s.ctx(), fmt.Sprintf(`table inet witness {
		set syns { type inet_service; flags dynamic; }
		chain c { type filter hook prerouting priority -350;
			tcp dport %d-%d tcp flags & (syn | ack) == syn update @syns { tcp dport counter }
		}
	}`, first, last)); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := s.Host.NFT(context.Background(), "delete table inet witness"); err != nil {
			s.t.Error(err)
		}
	})
	return func(port uint16) int {
		out, err := s.Host.Run(s.ctx(), "nft", "list", "set", "inet", "witness", "syns")
		if err != nil {
			s.t.Error(err)
			return 0
		}
		_, rest, _ := strings.Cut(out, fmt.Sprintf(" %d counter packets ", port))
		number, _, _ := strings.Cut(rest, " ")
		n, _ := strconv.Atoi(number) // 0 where the port is not among the elements
		return n
	}
}

// A container that is narrowed is so before its first packet, however it is
// started. Each here connects at once when it begins to run, and every 50 ms
// from then on; all that it would need to succeed is one packet let through.
func TestEgressFromTheFirstPacket(t *testing.T) {
	const (
		workers = 5
		rounds  = 2
		// Ways to start a container, as enumerated below.
		ways  = 5
		first = 7000
		ports = workers * rounds * ways // 50 starts
		plain = 6999
	)
	s := scene(t, "version: 1\nsets: {office: [198.18.0.10]}\n")
	sink := s.catch(s.stranger, plain, ports+1)
	syns := s.countSYNs(plain, first+ports)

	t.Log("without a label it gets through at once")
	dialer := func(name string, port uint16, options ...string) lab.Spec {
		return lab.Spec{
			Name: name, Options: options,
			Args: []string{"-dial", netip.AddrPortFrom(s.stranger.V4, port).String()},
		}
	}
	s.runSpec(dialer("plain", plain))
	s.eventually(openWithin, func() error {
		if sink.on(plain) == 0 {
			return errors.New("a container with no label does not connect")
		}
		return nil
	})
	if n := syns(plain); n == 0 {
		t.Fatal("the host does not count what containers send")
	}

	labels := []string{"none", "office", "198.18.0.10:443/tcp,:53/udp", "office,198.18.0.66:1/tcp"}
	var starts atomic.Int32
	// try starts a container by way of how and waits until it has called
	// more than once.
	try := func(port uint16, how func() error) error {
		before := syns(port)
		if err := how(); err != nil {
			return err
		}
		starts.Add(1)
		ctx, cancel := context.WithTimeout(s.ctx(), 20*time.Second)
		defer cancel()
		return lab.Poll(ctx, 30*time.Millisecond, func() error {
			if syns(port) < before+2 && sink.on(port) == 0 {
				return fmt.Errorf("port %d: it does not call", port)
			}
			return nil
		})
	}
	began := time.Now()
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for w := range workers {
		// Nobody else on the bridge, whose egress would hold it too.
		nets := [2]string{fmt.Sprintf("alone%d", w), fmt.Sprintf("beside%d", w)}
		for _, n := range nets {
			s.docker("network", "create", n)
		}
		wg.Go(func() {
			for r := range rounds {
				name := fmt.Sprintf("narrow%d-%d", w, r)
				port := uint16(first + (w*rounds+r)*ways)
				errs[w] = errors.Join(errs[w], s.startEveryWay(name, port, labels[(w+r)%len(labels)], nets, func() int { return sink.on(port) }, dialer, try))
			}
		})
	}
	wg.Wait()
	t.Logf("%d starts in %s", starts.Load(), time.Since(began).Round(time.Second))
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
	if n := starts.Load(); n != ports {
		t.Errorf("%d starts, want %d", n, ports)
	}
	escaped := 0
	for port := uint16(first); port < first+ports; port++ {
		escaped += sink.on(port)
	}
	if escaped > 0 {
		t.Errorf("%d connections escaped", escaped)
	}
}

// startEveryWay starts a narrowed container in five ways: anew, again after a
// stop, by a restart, by its restart policy, and on two networks.
func (s *set) startEveryWay(name string, port uint16, egress string, nets [2]string, reached func() int,
	dialer func(string, uint16, ...string) lab.Spec, try func(uint16, func() error) error,
) error {
	docker := func(args ...string) func() error {
		return func() error {
			_, err := s.engine.Docker(s.ctx(), args...)
			return err
		}
	}
	run := func(spec lab.Spec) func() error {
		return func() error {
			_, err := s.engine.Run(s.ctx(), spec)
			return err
		}
	}
	label := "nftfw.egress=" + egress
	steps := []func() error{
		func() error {
			return try(port, run(dialer(name, port, "--label", label, "--network", nets[0], "--restart", "always")))
		},
		docker("stop", "--time", "0", name),
		func() error { return try(port, docker("start", name)) },
		func() error { return try(port, docker("restart", "--time", "0", name)) },
		func() error {
			return try(port, func() error {
				c, err := s.engine.Container(s.ctx(), name)
				if err != nil {
					return err
				}
				return c.Signal(9)
			})
		},
		docker("rm", "-f", name),
		func() error {
			return s.engine.Create(s.ctx(), dialer(name, port, "--label", label, "--network", nets[0]))
		},
		docker("network", "connect", nets[1], name),
		func() error { return try(port, docker("start", name)) },
		docker("rm", "-f", name),
	}
	for i, step := range steps {
		before := reached()
		if err := step(); err != nil {
			return fmt.Errorf("%s, step %d: %w", name, i+1, err)
		}
		if reached() > before {
			s.t.Errorf("%s, narrowed to %s, got through in step %d", name, egress, i+1)
		}
	}
	return nil
}

// A start that fails leaves nothing behind that holds the next container.
func TestEgressAfterAFailedStart(t *testing.T) {
	s := scene(t, "version: 1")
	sink := s.catch(s.stranger, 7000, 1)
	for range 3 {
		if _, err := s.engine.Docker(s.ctx(), "run", "-d", "--name", "failing", "--label", "nftfw.egress=none",
			"--entrypoint", "/missing", lab.Image); err == nil {
			t.Fatal("a container with no program starts")
		}
	}
	s.runSpec(lab.Spec{Name: "heir", Args: []string{"-dial", netip.AddrPortFrom(s.stranger.V4, 7000).String()}})
	s.eventually(openWithin, func() error {
		if sink.on(7000) == 0 {
			return errors.New("its heir does not connect")
		}
		return nil
	})
}

// A set that egress names counts with what is in it now.
func TestEgressFollowsSets(t *testing.T) {
	s := scene(t, "version: 1\nsets: {office: []}\n")
	for _, n := range []*lab.Node{s.permitted, s.stranger} {
		svc, err := s.Service(s.ctx(), n, built.echo, n.Name, "tcp:7000", "tcp:7001")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(svc.Stop)
	}
	caller := s.run("caller", "--label", "nftfw.egress=office,198.18.0.66:7001/tcp")
	s.open(caller.Namespace, "stranger", addrPorts(s.stranger.V4, "7001"))
	s.closed(caller.Namespace, append(addrPorts(s.stranger.V4, "7000"), addrPorts(s.permitted.V4, "7000", "7001")...))
	s.nftfw("sets", "add", "office", s.permitted.V4.String())
	s.open(caller.Namespace, "permitted", addrPorts(s.permitted.V4, "7000", "7001"))
	s.nftfw("sets", "del", "office", s.permitted.V4.String())
	s.closes(caller.Namespace, addrPorts(s.permitted.V4, "7000"))
	s.closed(caller.Namespace, addrPorts(s.permitted.V4, "7001"))

	t.Log("others are not narrowed")
	other := s.run("other")
	s.open(other.Namespace, "stranger", addrPorts(s.stranger.V4, "7000"))
}

// Docker keeps bridges apart by rules of its own; an engine without them leaves
// that to to_containers.
func TestToContainersAcrossBridges(t *testing.T) {
	s := bare(t, "--iptables=false")
	s.docker("network", "create", "one")
	s.docker("network", "create", "two")
	shop, bank := "com.docker.compose.project=shop", "com.docker.compose.project=bank"
	caller := s.run("caller", "--network", "one", "--label", shop)
	sister := s.run("sister", "--network", "two", "--label", shop)
	foreign := s.run("foreign", "--network", "two", "--label", bank)
	svc, err := s.Service(s.ctx(), s.routed, built.echo, "outside", "tcp:7000")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(svc.Stop)
	outside := addrPorts(s.routed.V4, "7000")
	toSister, toForeign := addrPorts(sister.Addr4("two"), "80", "80/udp"), addrPorts(foreign.Addr4("two"), "80", "80/udp")

	t.Log("docker: as without nftfw")
	s.open(caller.Namespace, "sister", toSister)
	s.start("version: 1")
	s.open(caller.Namespace, "sister", toSister)
	s.open(caller.Namespace, "foreign", toForeign)
	s.open(caller.Namespace, "outside", outside)

	for policy, own := range map[string]bool{"none": false, "same-project": true} {
		if err := s.fw.WritePolicy("version: 1\ncontainers: {to_containers: " + policy + "}\n"); err != nil {
			t.Fatal(err)
		}
		s.nftfw("apply")
		if own {
			s.open(caller.Namespace, "sister", toSister)
		} else {
			s.closed(caller.Namespace, toSister)
		}
		s.closed(caller.Namespace, toForeign)
		s.open(caller.Namespace, "outside", outside)
	}
}
