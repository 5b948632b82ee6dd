package integration

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nftfw/nftfw/integration/lab"
)

// late is for how long somebody may be answered over UDP who asked docker-proxy before
// the engine said that the container is connected. The kernel takes up to three seconds to
// resolve the container's address, and nftfw looks each second whom an answer reached.
func (s *set) late() time.Duration {
	if s.engine.Major < 26 {
		return 0
	}
	return 5 * time.Second
}

// asker connects to an address again and again.
type asker struct {
	answers atomic.Int64 // of an echo server
	stop    func()
}

// ask starts an asker, over UDP with one socket that sends all the time.
func (s *set) ask(n *lab.Node, network string, to netip.AddrPort) *asker {
	ctx, cancel := context.WithCancel(s.ctx())
	var a asker
	var asking sync.WaitGroup
	count := func() {
		if r := n.Probe(ctx, lab.Probe{Network: "tcp", To: to, Timeout: 3 * time.Second}); r.Outcome == lab.Answered {
			a.answers.Add(1)
		}
	}
	each := func(f func()) {
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(5 * time.Millisecond):
				f()
			}
		}
	}
	if network == "tcp" {
		asking.Go(func() { each(func() { asking.Go(count) }) })
	} else {
		c, err := n.Dial(ctx, network, to, netip.Addr{})
		if err != nil {
			s.t.Fatal(err)
		}
		asking.Go(func() { each(func() { _, _ = c.Write([]byte("probe\n")) }) }) // refused until somebody listens
		asking.Go(func() {
			for buf := make([]byte, 512); ctx.Err() == nil; {
				_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
				if _, err := c.Read(buf); err == nil {
					a.answers.Add(1)
				}
			}
		})
		s.t.Cleanup(func() { _ = c.Close() })
	}
	a.stop = func() {
		cancel()
		asking.Wait()
	}
	return &a
}

// A published port is its container's from the moment that docker-proxy listens, also
// where rules about the host's own ports would let others in. Whoever is quicker than
// the engine's word is cut. From release 26 on, as far as was seen, the port is bound ahead of
// the engine's word, so that some are answered: see late.
func TestHeldWhileStarting(t *testing.T) {
	for name, policy := range map[string]string{
		"host.default":      "version: 1\nhost: {default: accept}\n",
		"host.allow":        "version: 1\nhost: {allow: [{ports: [8000-8999/tcp, 8000-8999/udp], from: any}]}\n",
		"trusted, and none": "version: 1\nsets: {trusted: [198.18.0.0/16, \"fd00:18::/64\"]}\n",
	} {
		t.Run(name, func(t *testing.T) {
			s := scene(t, policy)
			for range 3 {
				askers := map[string]*asker{}
				for _, to := range hostPort(8080) {
					for _, network := range []string{"tcp", "udp"} {
						askers[fmt.Sprint(network, " ", to)] = s.ask(s.stranger, network, to)
					}
				}
				s.run("closed", "-p", "8080:80", "-p", "8080:80/udp", "--label", "nftfw.expose=none")
				s.ready("closed", "8080")
				<-time.After(300 * time.Millisecond)
				for what, a := range askers {
					if n := a.answers.Load(); n > 0 && s.late() == 0 {
						t.Errorf("%s: %d answers while it was started", what, n)
					} else if n > 0 {
						t.Logf("%s: %d answers while it was started", what, n)
					}
				}
				<-time.After(s.late())
				for _, a := range askers {
					a.answers.Store(0)
				}
				<-time.After(500 * time.Millisecond)
				for what, a := range askers {
					a.stop()
					if n := a.answers.Load(); n > 0 {
						t.Errorf("%s: %d answers after that", what, n)
					}
				}
				s.docker("rm", "-f", "closed")
			}
			// The port is nobody's any more, and no rule of a container's speaks of it.
			l, err := s.Host.Listen(s.ctx(), ":8080")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			s.eventually(answerWithin, func() error {
				if r := s.stranger.Probe(s.ctx(), lab.Probe{Network: "tcp", To: hostPort(8080)[0]}); r.Outcome != lab.Mute {
					return fmt.Errorf("the host's own port: %s", r)
				}
				return nil
			})
		})
	}
}
