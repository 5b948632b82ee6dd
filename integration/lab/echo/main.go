// Command echo is what the lab's containers run: it turns TCP connections and
// UDP datagrams into answers that name the server and the peer that it saw. It
// never touches the network's configuration.
//
//	echo [-name NAME] [-push D] [-dial ADDR:PORT] [PROTO:PORT ...]
//
// With no PROTO:PORT it listens on tcp:80 and udp:80. A TCP connection is
// greeted with a line "NAME PEER" and then echoed. A datagram is answered by
// "NAME PEER\n" and the datagram itself. With -push every peer, once it has
// connected or sent a datagram, also gets a line each D for as long as it is
// there, without asking. With -dial it connects to that address until it
// succeeds once, starting at once, and tells it "NAME TOOK\n": how long that took
// it from its first attempt, as 1.5s.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"
)

// dialEvery is how long a dial may take and how long the next one waits. A
// lost SYN is so repeated sooner than the kernel would.
const dialEvery = 50 * time.Millisecond

type server struct {
	name string
	push time.Duration
	log  *slog.Logger
}

func main() {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	hostname, err := os.Hostname()
	if err != nil {
		log.Error("read hostname", "err", err)
	}
	name := flag.String("name", hostname, "what to answer")
	push := flag.Duration("push", 0, "send a line to every peer this often")
	dial := flag.String("dial", "", "connect to this `address` until it succeeds")
	flag.Parse()
	ports := flag.Args()
	if len(ports) == 0 {
		ports = []string{"tcp:80", "udp:80"}
	}

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	s := &server{name: *name, push: *push, log: log}
	if *dial != "" {
		go s.dial(ctx, *dial)
	}
	for _, p := range ports {
		if err := s.listen(ctx, p); err != nil {
			log.Error("listen", "port", p, "err", err)
			os.Exit(1)
		}
	}
	fmt.Println("ready")
	<-ctx.Done()
}

func (s *server) dial(ctx context.Context, addr string) {
	began := time.Now()
	d := net.Dialer{Timeout: dialEvery}
	tick := time.NewTicker(dialEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		c, err := d.DialContext(ctx, "tcp", addr)
		if err == nil {
			fmt.Fprintln(c, s.name, time.Since(began))
			c.Close()
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// listen starts to serve one PROTO:PORT or PROTO:ADDR:PORT.
func (s *server) listen(ctx context.Context, spec string) error {
	proto, addr, ok := strings.Cut(spec, ":")
	if !ok {
		return fmt.Errorf("%q is not PROTO:PORT", spec)
	}
	if !strings.Contains(addr, ":") {
		addr = ":" + addr
	}
	var lc net.ListenConfig
	// Multipath TCP would only add sockets of another kind to the tests.
	lc.SetMultipathTCP(false)
	switch proto {
	case "tcp":
		l, err := lc.Listen(ctx, "tcp", addr)
		if err != nil {
			return err
		}
		go s.accept(l)
	case "udp":
		c, err := lc.ListenPacket(ctx, "udp", addr)
		if err != nil {
			return err
		}
		go s.datagrams(c)
	default:
		return fmt.Errorf("%q is neither tcp nor udp", proto)
	}
	return nil
}

func (s *server) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			s.log.Error("accept", "err", err)
			return
		}
		go func() {
			defer c.Close()
			if _, err := fmt.Fprintf(c, "%s %s\n", s.name, c.RemoteAddr()); err != nil {
				return
			}
			if s.push > 0 {
				go s.every(func() error {
					_, err := fmt.Fprintln(c, "push")
					return err
				})
			}
			// How the peer ends the connection is its own affair.
			_, _ = io.Copy(c, c)
		}()
	}
}

func (s *server) datagrams(c net.PacketConn) {
	var pushed sync.Map // peers that get lines already
	buf := make([]byte, 64<<10)
	for {
		n, peer, err := c.ReadFrom(buf)
		if err != nil {
			s.log.Error("read datagram", "err", err)
			return
		}
		answer := append(fmt.Appendf(nil, "%s %s\n", s.name, peer), buf[:n]...)
		if _, err := c.WriteTo(answer, peer); err != nil {
			s.log.Error("answer datagram", "peer", peer, "err", err)
		}
		if s.push == 0 {
			continue
		}
		if _, seen := pushed.LoadOrStore(peer.String(), true); !seen {
			go s.every(func() error {
				_, err := c.WriteTo([]byte("push\n"), peer)
				return err
			})
		}
	}
}

// every calls send at the pace of -push until it fails.
func (s *server) every(send func() error) {
	for range time.Tick(s.push) {
		if send() != nil {
			return
		}
	}
}
