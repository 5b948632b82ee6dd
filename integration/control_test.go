package integration

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nftfw/nftfw/integration/lab"
)

// strictest lets nobody reach anything but one port of the host.
const strictest = `version: 1
host:
  default: drop
  ping: %v
  allow: [{ports: [9100/tcp], from: any}]
containers: {default: none, labels: none, to_containers: none, to_host: none, egress: none}
forward: {default: drop}
`

func TestScenario19ControlTraffic(t *testing.T) {
	s := scene(t, fmt.Sprintf(strictest, true))
	s.service("host", "tcp:9100", "udp:9101")
	s.open(s.stranger.Namespace, "host", hostPorts("9100"))
	s.closed(s.stranger.Namespace, hostPorts("9101/udp"))

	t.Run("neighbour discovery", func(t *testing.T) {
		s := s.in(t)
		flush := []string{"neigh flush dev eth0"}
		s.ip(s.Host.Namespace, flush, nil)
		s.ip(s.stranger.Namespace, flush, nil)
		s.open(s.stranger.Namespace, "host", hostPorts("9100"))
	})
	t.Run("DHCP", func(t *testing.T) { testDHCP(t, s.in(t)) })
	t.Run("ICMP errors", func(t *testing.T) { testPortUnreachable(t, s.in(t)) })
	t.Run("path MTU", func(t *testing.T) { testPathMTU(t, s.in(t)) })
	t.Run("router advertisement", func(t *testing.T) { testRouterAdvertisement(t, s.in(t)) })
	t.Run("ping", func(t *testing.T) {
		for _, a := range []netip.Addr{lab.HostV4, lab.HostV6} {
			if err := ping(s.ctx(), s.stranger, a, 1); err != nil {
				t.Errorf("with ping: true: %v", err)
			}
		}
		if err := s.fw.WritePolicy(fmt.Sprintf(strictest, false)); err != nil {
			t.Fatal(err)
		}
		s.nftfw("apply")
		for _, a := range []netip.Addr{lab.HostV4, lab.HostV6} {
			if err := ping(s.ctx(), s.stranger, a, 2); err == nil {
				t.Errorf("with ping: false %s answers", a)
			}
		}
	})
}

// ping sends one echo request and waits for its reply. Requests with the same
// id are one flow.
func ping(ctx context.Context, n *lab.Node, to netip.Addr, id byte) error {
	network, request, reply := "ip4:icmp", byte(8), byte(0)
	if to.Is6() {
		network, request, reply = "ip6:ipv6-icmp", 128, 129
	}
	c, err := n.ListenPacket(ctx, network, "")
	if err != nil {
		return err
	}
	defer c.Close()
	msg := []byte{request, 0, 0, 0, 0x4e, id, 0, 1}
	if to.Is4() {
		binary.BigEndian.PutUint16(msg[2:], checksum(msg)) // ICMPv6's is the kernel's work
	}
	if _, err := c.WriteTo(msg, &net.IPAddr{IP: to.AsSlice()}); err != nil {
		return err
	}
	if err := c.SetReadDeadline(time.Now().Add(lab.ProbeTimeout)); err != nil {
		return err
	}
	buf := make([]byte, 1500)
	for {
		k, _, err := c.ReadFrom(buf)
		if err != nil {
			return fmt.Errorf("ping %s: %w", to, err)
		}
		if k >= 8 && buf[0] == reply && bytes.Equal(buf[4:8], msg[4:8]) {
			return nil
		}
	}
}

// checksum is the Internet checksum of RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// listenAgain listens on the host where a moment ago somebody else did: a
// process that is just being started may still hold the socket.
func listenAgain(t *testing.T, s *set, addr string) net.PacketConn {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; {
		conn, err := s.Host.ListenPacket(s.ctx(), "udp", addr)
		if err == nil {
			return conn
		}
		if !errors.Is(err, syscall.EADDRINUSE) || time.Now().After(deadline) {
			t.Fatal(err)
		}
		<-time.After(10 * time.Millisecond)
	}
}

// testDHCP sends what a server would send to a client on the host, and what no
// server would.
func testDHCP(t *testing.T, s *set) {
	host6, server6 := linkLocal(t, s.Host), linkLocal(t, s.stranger)
	tests := []struct {
		name           string
		server, client string
		to             netip.AddrPort
		arrives        bool
	}{
		{"v4", "0.0.0.0:67", "0.0.0.0:68", netip.AddrPortFrom(lab.HostV4, 68), true},
		{"v4 from another port", "0.0.0.0:6700", "0.0.0.0:68", netip.AddrPortFrom(lab.HostV4, 68), false},
		{"v6", netip.AddrPortFrom(server6, 547).String(), "[::]:546", netip.AddrPortFrom(host6, 546), true},
		{"v6 from another port", netip.AddrPortFrom(server6, 5470).String(), "[::]:546", netip.AddrPortFrom(host6, 546), false},
		{"v6 not from the link", "[fd00:18::66]:547", "[::]:546", netip.AddrPortFrom(lab.HostV6, 546), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			client := listenAgain(t, s, tt.client)
			defer client.Close()
			server, err := s.stranger.ListenPacket(s.ctx(), "udp", tt.server)
			if err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			if _, err := server.WriteTo([]byte("offer"), net.UDPAddrFromAddrPort(tt.to)); err != nil {
				t.Fatal(err)
			}
			if err := client.SetReadDeadline(time.Now().Add(lab.ProbeTimeout)); err != nil {
				t.Fatal(err)
			}
			if _, _, err := client.ReadFrom(make([]byte, 16)); (err == nil) != tt.arrives {
				t.Errorf("read: %v, want it to arrive: %v", err, tt.arrives)
			}
		})
	}
}

// linkLocal is a node's address in fe80::/10, with the number of its eth0 as
// the zone. Both ends have their own numbers: the address of one is only of
// use on the other with that one's zone, which is why all nodes of a lab have
// the same layout.
func linkLocal(t *testing.T, n *lab.Node) netip.Addr {
	t.Helper()
	var found netip.Addr
	err := n.Do(func() error {
		link, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		addrs, err := link.Addrs()
		if err != nil {
			return err
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().IsLinkLocalUnicast() {
				found = p.Addr().WithZone(fmt.Sprint(link.Index))
				return nil
			}
		}
		return errors.New("no link-local address")
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// testPortUnreachable sends datagrams from the host to a port where nobody
// listens: only the ICMP error tells the sender.
func testPortUnreachable(t *testing.T, s *set) {
	for _, a := range []netip.Addr{s.stranger.V4, s.stranger.V6} {
		r := s.Host.Probe(s.ctx(), lab.Probe{Network: "udp", To: netip.AddrPortFrom(a, 4444)})
		if r.Outcome != lab.Refused {
			t.Errorf("a datagram to a closed port of %s: %s, want it refused", a, r)
		}
	}
}

// testPathMTU sends a lot from the host through a link that carries less than
// the wire: without the errors of the router in between nothing arrives.
func testPathMTU(t *testing.T, s *set) {
	const size = 200_000
	far, err := s.Behind(s.ctx(), s.routed, "far", 1300)
	if err != nil {
		t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := s.Detach(context.Background(), far); err != nil {
			t.Error(err)
		}
	})
	l, err := s.Host.Listen(s.ctx(), ":9105")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s.nftfw("sets", "add", "trusted", far.V4.String(), far.V6.String())
	sent := make(chan error, 2)
	for _, a := range []netip.Addr{lab.HostV4, lab.HostV6} {
		go func() {
			c, err := l.Accept()
			if err != nil {
				sent <- err
				return
			}
			defer c.Close()
			if err := c.SetWriteDeadline(time.Now().Add(5 * time.Second)); err != nil {
				sent <- err
				return
			}
			_, err = c.Write(make([]byte, size))
			sent <- err
		}()
		c, err := far.Dial(s.ctx(), "tcp", netip.AddrPortFrom(a, 9105), netip.Addr{})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, c); n != size || err != nil {
			t.Errorf("from %s: %d of %d bytes: %v", a, n, size, err)
		}
		if err := <-sent; err != nil {
			t.Error(err)
		}
	}
}

// testRouterAdvertisement offers the host a default route.
func testRouterAdvertisement(t *testing.T, s *set) {
	if err := s.Host.Sysctl("net.ipv6.conf.eth0.accept_ra", "2"); err != nil {
		t.Fatal(err)
	}
	router := linkLocal(t, s.stranger)
	s.t.Cleanup(func() {
		ctx := context.Background()
		if err := errors.Join(
			s.Host.Sysctl("net.ipv6.conf.eth0.accept_ra", "0"),
			s.Host.IP(ctx, fmt.Sprintf("route del ::/0 via %s dev eth0", router.WithZone(""))),
		); err != nil {
			t.Error(err)
		}
	})
	c, err := s.stranger.ListenPacket(s.ctx(), "ip6:ipv6-icmp", router.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var setErr error
	if err := raw.Control(func(fd uintptr) {
		// A router's word must not have crossed another router (RFC 4861).
		setErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255)
	}); err != nil || setErr != nil {
		t.Fatal(err, setErr)
	}
	// Type 134, hop limit 64, a lifetime of 1800 seconds (RFC 4861, 4.2).
	advertisement := []byte{134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0}
	allNodes := &net.IPAddr{IP: net.IPv6linklocalallnodes, Zone: router.Zone()}
	s.eventually(3*time.Second, func() error {
		if _, err := c.WriteTo(advertisement, allNodes); err != nil {
			return err
		}
		routes, err := s.Host.Run(s.ctx(), "ip", "-6", "route", "show", "default")
		if err != nil {
			return err
		}
		if !strings.Contains(routes, router.WithZone("").String()) {
			return fmt.Errorf("the host has no route from the advertisement: %q", routes)
		}
		return nil
	})
}
