package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/nftfw/nftfw/integration/lab"
)

// patience is how long a connection may take before it counts as closed. The
// kernel repeats a lost SYN after one second.
const patience = 1500 * time.Millisecond

// client is a neighbour of the host.
type client struct {
	name string
	note string
	node *lab.Node
}

// container is a container that publishes one port.
type container struct {
	name string
	port uint16 // of the host
}

// at is the container's published port over an address family.
func (c container) at(f family) netip.AddrPort {
	if f == v4 {
		return netip.AddrPortFrom(lab.HostV4, c.port)
	}
	return netip.AddrPortFrom(lab.HostV6, c.port)
}

type family string

const (
	v4 family = "v4"
	v6 family = "v6"
)

var bothFamilies = [...]family{v4, v6}

// mark is what a connection came to.
type mark string

const (
	open    mark = "open"    // the container answered
	closed  mark = "closed"  // no answer at all
	refused mark = "refused" // a reset or an ICMP error came back
	strange mark = "strange" // connected, and not to that container
)

// cellKey is one way to connect.
type cellKey struct {
	client, container string
	family            family
}

// grid is what was measured, and what must hold.
type grid struct {
	clients    []client
	containers []container
	letIn      map[string][]string // by container: the clients that must get in
	found      map[cellKey]mark
}

// must is what has to be found in a cell.
func (g grid) must(key cellKey) mark {
	if slices.Contains(g.letIn[key.container], key.client) {
		return open
	}
	return closed
}

// measure has every client connect to every container over both families, all
// at once.
func (g grid) measure(ctx context.Context) grid {
	var (
		mu sync.Mutex
		wg sync.WaitGroup
	)
	g.found = map[cellKey]mark{}
	for _, cl := range g.clients {
		for _, co := range g.containers {
			for _, f := range bothFamilies {
				wg.Go(func() {
					m := connect(ctx, cl.node, co, f, patience)
					mu.Lock()
					defer mu.Unlock()
					g.found[cellKey{cl.name, co.name, f}] = m
				})
			}
		}
	}
	wg.Wait()
	return g
}

// connect connects once. The container makes itself known by its greeting.
func connect(ctx context.Context, from *lab.Node, to container, f family, within time.Duration) mark {
	r := from.Probe(ctx, lab.Probe{Network: "tcp", To: to.at(f), Timeout: within})
	switch {
	case r.Outcome == lab.Answered && r.Server == to.name:
		return open
	case r.Outcome == lab.Silent:
		return closed
	case r.Outcome == lab.Refused:
		return refused
	default:
		return strange
	}
}

// openLimit is how long a container may take to become reachable.
const openLimit = 30 * time.Second

// untilOpen connects again and again until the container answers over both
// families, and returns how long that took.
func untilOpen(ctx context.Context, from *lab.Node, to container) (time.Duration, error) {
	begun := time.Now()
	ctx, cancel := context.WithTimeout(ctx, openLimit)
	defer cancel()
	for _, f := range bothFamilies {
		err := lab.Poll(ctx, time.Millisecond, func() error {
			if m := connect(ctx, from, to, f, 50*time.Millisecond); m != open {
				return fmt.Errorf("%s at %s is %s to %s", to.name, to.at(f), m, from.Name)
			}
			return nil
		})
		if err != nil {
			return 0, err
		}
	}
	return time.Since(begun), nil
}

// hammer begins to connect to containers' ports every millisecond.
func hammer(from *lab.Node, at ...container) *lab.Hammer {
	var to []netip.AddrPort
	for _, c := range at {
		for _, f := range bothFamilies {
			to = append(to, c.at(f))
		}
	}
	return from.Hammer(to...)
}

// milliseconds writes a duration as people read it.
func milliseconds(d time.Duration) string {
	switch ms := float64(d) / float64(time.Millisecond); {
	case d >= time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case ms >= 10:
		return fmt.Sprintf("%.0f ms", ms)
	default:
		return fmt.Sprintf("%.1f ms", ms)
	}
}
