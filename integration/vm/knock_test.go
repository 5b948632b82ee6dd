package vm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nftfw/nftfw/integration/lab"
)

// knockEvery is the pace at which a neighbour knocks at each address and port: in
// turn over TCP and UDP.
const knockEvery = 20 * time.Millisecond

// knocker sends to ports of a machine over TCP and UDP, IPv4 and IPv6, until it
// is stopped.
type knocker struct {
	tcp     *lab.Hammer
	stop    context.CancelFunc
	running sync.WaitGroup
	sockets []net.PacketConn
	sent    atomic.Int64
	answers atomic.Int64 // datagrams that came back
}

// knocked is what came of it.
type knocked struct {
	tries   int // connections and datagrams
	reached int // handshakes, and datagrams that were answered
	refused int // a reset or an ICMP error: the packet got as far as a socket would
}

func (k knocked) String() string {
	return fmt.Sprintf("%d tries, %d reached something, %d were refused", k.tries, k.reached, k.refused)
}

// knock begins to knock at ports of the machine.
func (s *site) knock(from *lab.Node, ports ...uint16) *knocker {
	s.t.Helper()
	var to []netip.AddrPort
	for _, port := range ports {
		to = append(to, s.at(port)...)
	}
	ctx, cancel := context.WithCancel(context.Background())
	k := &knocker{tcp: from.HammerEvery(2*knockEvery, to...), stop: cancel}
	for _, family := range []string{"udp4", "udp6"} {
		c, err := from.ListenPacket(ctx, family, ":0")
		s.must(err)
		k.sockets = append(k.sockets, c)
		mine := slices.DeleteFunc(slices.Clone(to), func(a netip.AddrPort) bool {
			return a.Addr().Is4() != (family == "udp4")
		})
		k.running.Go(func() { k.send(ctx, c, mine) })
		k.running.Go(func() { k.receive(c) })
	}
	return k
}

// knockFor knocks for a while.
func (s *site) knockFor(d time.Duration, from *lab.Node, ports ...uint16) *knocker {
	s.t.Helper()
	k := s.knock(from, ports...)
	timer := time.NewTimer(d)
	defer timer.Stop()
	<-timer.C
	return k
}

func (k *knocker) send(ctx context.Context, c net.PacketConn, to []netip.AddrPort) {
	timer := time.NewTimer(knockEvery) // between two connections over TCP
	defer timer.Stop()
	<-timer.C
	tick := time.NewTicker(2 * knockEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, a := range to {
			// Where it fails the machine is off, or its port is closed.
			if _, err := c.WriteTo([]byte("knock\n"), net.UDPAddrFromAddrPort(a)); err == nil {
				k.sent.Add(1)
			}
		}
	}
}

func (k *knocker) receive(c net.PacketConn) {
	buf := make([]byte, 2048)
	for {
		if _, _, err := c.ReadFrom(buf); err == nil {
			k.answers.Add(1)
		} else if errors.Is(err, net.ErrClosed) {
			return
		}
	}
}

// end stops knocking and returns what came of it. It is called once.
func (k *knocker) end() (knocked, error) {
	tally, err := k.tcp.Stop()
	k.stop()
	for _, c := range k.sockets {
		err = errors.Join(err, c.Close())
	}
	k.running.Wait()
	return knocked{
		tries:   tally.Attempts + int(k.sent.Load()),
		reached: tally.Reached() + int(k.answers.Load()),
		refused: tally.Refused,
	}, err
}

// noneOf ends the knocking and demands that nothing was ever reached.
func (s *site) noneOf(k *knocker, when string) {
	s.t.Helper()
	got, err := k.end()
	s.must(err)
	s.t.Logf("%s: %s", when, got)
	if got.reached != 0 || got.refused != 0 {
		s.t.Errorf("%s: %s, want none to get through", when, got)
	}
	if got.tries == 0 {
		s.t.Errorf("%s: nobody knocked", when)
	}
}
