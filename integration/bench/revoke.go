package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/nftfw/nftfw/integration/lab"
)

// revocation measures how long it takes to withdraw the permission of all who have
// a connection, and how long the daemon does not answer others meanwhile.
func revocation(ctx context.Context, b *bench) error {
	s, err := newStage(ctx, b, portsEach)
	if err != nil {
		return err
	}
	if err = s.startFirewall(ctx, b, trustedPolicy(1)); err == nil {
		err = s.revocation(ctx, b, pick(b, 1000, 200_000))
	}
	return closeAll(err, s)
}

func (s *stage) revocation(ctx context.Context, b *bench, flows int) error {
	var took, silent []float64
	for range pick(b, 1, 5) {
		if err := s.nftfw(ctx, "sets", "add", "trusted", "20.0.0.0/8"); err != nil {
			return err
		}
		if err := s.connections(flows); err != nil {
			return err
		}
		ended := make(chan struct{})
		longest := make(chan time.Duration)
		go func() { longest <- s.longestAnswer(ended) }()
		t := s.timed(ctx, s.lab.Host, s.command("sets", "del", "trusted", "20.0.0.0/8"))
		close(ended)
		silent = append(silent, milliseconds(<-longest))
		if t.err != nil {
			return t.err
		}
		left, err := s.left()
		if err != nil {
			return err
		}
		if left > 0 {
			return fmt.Errorf("%d of %d connections live on", left, flows)
		}
		took = append(took, t.wall.Seconds())
	}
	what := fmt.Sprintf("revocation of %d connections: ", flows)
	b.add(row{What: what + "from the command to its end", Size: flows, Figure: median(took), Unit: "s", Reach: "under 2 s"}, median(took) < 2)
	b.add(row{What: what + "longest wait for an answer to another", Size: flows, Figure: median(silent), Unit: "ms"}, true)
	return nil
}

// from is the address of the client of the host's connection number i.
func from(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{20, byte(i >> 16), byte(i >> 8), byte(i)})
}

// connections makes entries of connection tracking in the host, of as many clients
// that all reach one published port.
func (s *stage) connections(n int) error {
	in, out := boxPort(0)
	return s.lab.Host.Do(func() error {
		h, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		defer h.Close()
		for i := range n {
			client, host, box := net.IP(from(i).AsSlice()), net.IP(lab.HostV4.AsSlice()), net.IP(boxAddr(0).AsSlice())
			if err := h.ConntrackCreate(netlink.ConntrackTable, unix.AF_INET, &netlink.ConntrackFlow{
				FamilyType: unix.AF_INET, TimeOut: 3600,
				Forward:   netlink.IPTuple{Protocol: unix.IPPROTO_TCP, SrcIP: client, DstIP: host, SrcPort: 4000, DstPort: out},
				Reverse:   netlink.IPTuple{Protocol: unix.IPPROTO_TCP, SrcIP: box, DstIP: client, SrcPort: in, DstPort: 4000},
				ProtoInfo: &netlink.ProtoInfoTCP{State: nl.TCP_CONNTRACK_ESTABLISHED},
			}); err != nil {
				return fmt.Errorf("make connection %d: %w", i, err)
			}
		}
		return nil
	})
}

// left counts the clients' connections that are still there.
func (s *stage) left() (n int, err error) {
	err = s.lab.Host.Do(func() error {
		flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
		for _, f := range flows {
			if f.Forward.SrcIP[0] == 20 {
				n++
			}
		}
		return err
	})
	return n, err
}

// longestAnswer asks the daemon for its status until ended, and gives how long the
// longest answer took.
func (s *stage) longestAnswer(ended <-chan struct{}) (longest time.Duration) {
	client := socketClient(s.firewall.SocketPath())
	for {
		select {
		case <-ended:
			return longest
		case <-time.After(20 * time.Millisecond):
		}
		began := time.Now()
		resp, err := client.Get("http://nftfw/v1/status")
		if err != nil {
			return time.Hour // no answer at all
		}
		_ = resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			longest = max(longest, time.Since(began))
		}
	}
}
