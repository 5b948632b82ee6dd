package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nftfw/nftfw/integration/lab"
)

const (
	// flushPort is a port of the host that is closed to the stranger.
	flushPort = 9107
	// flushEvery is how often the stranger sends there.
	flushEvery = 200 * time.Microsecond
	// flushRest is how long a restored table is watched: what gets through
	// later would have to be another window.
	flushRest = 150 * time.Millisecond
)

// restore measures how long the table is away after somebody flushed the
// ruleset, and for how long packets get through.
func restore(ctx context.Context, b *bench) error {
	for _, boxes := range pick(b, []int{10}, []int{10, 1000}) {
		s, err := newStage(ctx, b, portsEach)
		if err != nil {
			return err
		}
		if err = s.prepareFirewall(b, trustedPolicy(100), boxes, 1); err == nil {
			err = s.firewall.Start(ctx)
		}
		if err == nil {
			err = s.restore(ctx, b, boxes)
		}
		if err := closeAll(err, s); err != nil {
			return err
		}
	}
	return nil
}

func (s *stage) restore(ctx context.Context, b *bench, boxes int) error {
	commits, err := listenForCommits(s.lab.Host.Namespace)
	if err != nil {
		return err
	}
	defer commits.close()
	d, err := s.drip(ctx)
	if err != nil {
		return err
	}
	defer d.stop()
	var away, open []float64
	for range pick(b, 3, 100) {
		commits.forget()
		d.reset()
		if err := s.lab.Host.NFT(ctx, "flush ruleset"); err != nil {
			return err
		}
		gone, err := commits.next()
		if err != nil {
			return err
		}
		back, err := commits.next()
		if err != nil {
			return err
		}
		select {
		case <-time.After(flushRest):
		case <-ctx.Done():
			return ctx.Err()
		}
		away = append(away, milliseconds(back.Sub(gone)))
		open = append(open, milliseconds(d.window()))
	}
	if status := s.firewall.Exec(ctx, "status"); !strings.Contains(status.Stdout, "nft") {
		return fmt.Errorf("status does not say who flushed: %s", status)
	}
	what := fmt.Sprintf("nft flush ruleset, %d containers: ", boxes)
	b.add(row{What: what + "table away, p50", Size: boxes, Figure: quantile(away, 0.5), Unit: "ms", Reach: "under 50 ms"}, quantile(away, 0.5) < 50)
	b.add(row{What: what + "table away, p99", Size: boxes, Figure: quantile(away, 0.99), Unit: "ms", Reach: "under 50 ms"}, quantile(away, 0.99) < 50)
	b.add(row{What: what + "packets get in, p50", Size: boxes, Figure: quantile(open, 0.5), Unit: "ms"}, true)
	b.add(row{What: what + "packets get in, p99", Size: boxes, Figure: quantile(open, 0.99), Unit: "ms"}, true)
	return nil
}

// drip is a stranger that sends to a closed port all the time, and somebody
// there who notes when anything arrives.
type drip struct {
	end         chan struct{}
	running     sync.WaitGroup
	first, last atomic.Int64 // Unix nanoseconds; zero is never
}

func (s *stage) drip(ctx context.Context) (*drip, error) {
	to := netip.AddrPortFrom(lab.HostV4, flushPort)
	heard, err := s.lab.Host.ListenPacket(ctx, "udp", to.String())
	if err != nil {
		return nil, err
	}
	// Not connected: a refusal, which never comes, would end it.
	said, err := s.stranger.ListenPacket(ctx, "udp", ":0")
	if err != nil {
		return nil, errors.Join(err, heard.Close())
	}
	d := &drip{end: make(chan struct{})}
	d.running.Go(func() {
		defer heard.Close()
		for buf := make([]byte, 16); ; {
			_ = heard.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			if _, _, err := heard.ReadFrom(buf); err == nil {
				now := time.Now().UnixNano()
				d.first.CompareAndSwap(0, now)
				d.last.Store(now)
			}
			select {
			case <-d.end:
				return
			default:
			}
		}
	})
	d.running.Go(func() {
		defer said.Close()
		tick := time.NewTicker(flushEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				_, _ = said.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(to)) // what arrives counts
			case <-d.end:
				return
			}
		}
	})
	return d, nil
}

func (d *drip) reset() {
	d.first.Store(0)
	d.last.Store(0)
}

// window is the time from the first packet that arrived to the last, and a
// packet's distance more.
func (d *drip) window() time.Duration {
	if d.first.Load() == 0 {
		return 0
	}
	return time.Duration(d.last.Load()-d.first.Load()) + flushEvery
}

func (d *drip) stop() {
	close(d.end)
	d.running.Wait()
}
