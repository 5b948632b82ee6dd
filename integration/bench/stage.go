package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/nftfw/nftfw/integration/lab"
)

const (
	clientID   = 10
	strangerID = 66
	// targets is on how many of the published ports somebody listens, spread
	// evenly.
	targets = 16
)

// stage is a host with published ports and no rules but those that translate
// addresses. One namespace holds the addresses of all containers that answer,
// and the ports are translated by one lookup in a map: less than what Docker's
// own list of rules costs, so that what a firewall adds shows the more.
type stage struct {
	lab              *lab.Lab
	client, stranger *lab.Node
	box              *lab.Node
	ports            int
	to               []netip.AddrPort // where somebody listens, as clients know it
	listeners        []net.Listener
	engine           *fakeEngine
	firewall         *lab.Firewall
}

func newStage(ctx context.Context, b *bench, ports int) (_ *stage, err error) {
	s := &stage{ports: ports}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.lab, err = lab.New(ctx, b.log); err != nil {
		return nil, err
	}
	for _, c := range []struct {
		into **lab.Node
		name string
		id   uint8
	}{{&s.client, "client", clientID}, {&s.stranger, "stranger", strangerID}, {&s.box, "box", 20}} {
		if *c.into, err = s.lab.Client(ctx, c.name, c.id); err != nil {
			return nil, err
		}
	}
	return s, errors.Join(s.connectBox(ctx), s.translate(ctx), s.listen(ctx))
}

// connectBox moves the box from the wire to a bridge of the host.
func (s *stage) connectBox(ctx context.Context) error {
	if err := s.lab.Host.IP(ctx,
		"link add "+fakeBridge+" type bridge",
		fmt.Sprintf("addr add %s/16 dev %s", fakeGateway, fakeBridge),
		"link set "+fakeBridge+" up",
		"link add veth0 type veth peer name eth1 netns "+filepath.Base(s.box.Path()),
		"link set veth0 master "+fakeBridge+" up",
	); err != nil {
		return err
	}
	lines := []string{"link del eth0", "link set eth1 up"}
	for _, i := range s.open() {
		lines = append(lines, fmt.Sprintf("addr replace %s/16 dev eth1", boxAddr(i/portsEach)))
	}
	if err := s.box.IP(ctx, append(lines, "route add default via "+fakeGateway)...); err != nil {
		return err
	}
	return errors.Join(
		s.box.Sysctl("net.core.somaxconn", "65535"),
		// What was reset is forgotten soon, so that no table fills up.
		s.lab.Host.Sysctl("net.netfilter.nf_conntrack_tcp_timeout_close", "1"),
	)
}

// open gives the numbers of the ports on which somebody listens.
func (s *stage) open() []int {
	var out []int
	n := min(targets, s.ports)
	for i := range n {
		out = append(out, i*s.ports/n+s.ports/n/2)
	}
	return out
}

func (s *stage) translate(ctx context.Context) error {
	var text strings.Builder
	text.WriteString("table ip published {\n map to { type inet_service : ipv4_addr . inet_service; elements = {\n")
	for i := range s.ports {
		in, out := boxPort(i)
		fmt.Fprintf(&text, "%d : %s . %d,\n", out, boxAddr(i/portsEach), in)
	}
	fmt.Fprintf(&text, "}\n }\n chain pre { type nat hook prerouting priority dstnat; ip daddr %s dnat ip addr . port to tcp dport map @to\n }\n}\n", lab.HostV4)
	return s.lab.Host.NFT(ctx, text.String())
}

// listen answers at the open ports. Whoever comes is let go at once.
func (s *stage) listen(ctx context.Context) error {
	for _, i := range s.open() {
		in, out := boxPort(i)
		l, err := s.box.Listen(ctx, netip.AddrPortFrom(boxAddr(i/portsEach), in).String())
		if err != nil {
			return err
		}
		s.listeners = append(s.listeners, l)
		s.to = append(s.to, netip.AddrPortFrom(lab.HostV4, out))
		go serve(l)
	}
	return nil
}

func serve(l net.Listener) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_ = c.Close()
		}
	}
}

// startFirewall runs nftfw with the containers of the stage and a policy.
func (s *stage) startFirewall(ctx context.Context, b *bench, policy string) error {
	if err := s.prepareFirewall(b, policy, s.ports/portsEach, portsEach); err != nil {
		return err
	}
	return s.firewall.Start(ctx)
}

// prepareFirewall starts a fake engine with so many containers and ports of
// each, and prepares nftfw beside it.
func (s *stage) prepareFirewall(b *bench, policy string, boxes, ports int) (err error) {
	socket := filepath.Join(s.lab.Dir(), "engine.sock")
	if s.engine == nil {
		if s.engine, err = newFakeEngine(socket, s.box.Path(), boxes, ports); err != nil {
			return err
		}
	}
	s.firewall, err = s.lab.Firewall(lab.FirewallOptions{Bin: b.bin, Flags: []string{"--docker-host", "unix://" + socket}})
	if err != nil {
		return err
	}
	return s.firewall.WritePolicy(policy)
}

// check makes sure that what is measured is what is meant: the client is let
// in at every open port, and where there is a firewall the stranger nowhere.
func (s *stage) check(ctx context.Context, closed bool) error {
	waiting, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for _, to := range s.to {
		// The engine's first list may be under way.
		if err := lab.Poll(waiting, 10*time.Millisecond, func() error {
			if r := s.client.Probe(ctx, lab.Probe{Network: "tcp", To: to}); !r.Reached() {
				return fmt.Errorf("client to %s: %s", to, r)
			}
			return nil
		}); err != nil {
			return err
		}
	}
	if r := s.stranger.Probe(ctx, lab.Probe{Network: "tcp", To: s.to[0]}); r.Reached() == closed {
		return fmt.Errorf("stranger to %s: %s", s.to[0], r)
	}
	return nil
}

func (s *stage) close() error {
	for _, l := range s.listeners {
		_ = l.Close()
	}
	var err error
	if s.firewall != nil {
		err = s.firewall.Stop(context.Background())
	}
	if s.engine != nil {
		s.engine.close()
	}
	if s.lab != nil {
		err = errors.Join(err, s.lab.Close())
	}
	return err
}

// closeAll closes stages and keeps the error of what was done with them.
func closeAll[C io.Closer](err error, list ...C) error {
	for _, s := range list {
		err = errors.Join(err, s.Close())
	}
	return err
}

// Close makes a stage an io.Closer.
func (s *stage) Close() error { return s.close() }

// randomAddrs gives n different public IPv4 addresses, the same in every run.
func randomAddrs(n int) []netip.Addr {
	rng := rand.New(rand.NewPCG(5, uint64(n)))
	seen := make(map[uint32]bool, n)
	out := make([]netip.Addr, 0, n)
	for len(out) < n {
		// From 20.0.0.0 to 99.255.255.255: nothing of the lab's lies there.
		v := 20<<24 + rng.Uint32N(80<<24)
		if !seen[v] {
			seen[v] = true
			out = append(out, netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)}))
		}
	}
	return out
}

// trustedPolicy is a policy that trusts the client and n-1 others.
func trustedPolicy(n int) string {
	return "version: 1\nsets:\n  trusted:\n" + yamlList(append(randomAddrs(n-1), netip.AddrFrom4([4]byte{198, 18, 0, clientID})))
}

func yamlList(list []netip.Addr) string {
	var text strings.Builder
	for _, a := range list {
		fmt.Fprintf(&text, "    - %s\n", a)
	}
	return text.String()
}
