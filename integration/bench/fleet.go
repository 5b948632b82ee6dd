package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/nftfw/nftfw/integration/lab"
)

const fleetPrefix = "/nftfw/sets/trusted/"

// fleet measures how long an entry that is added on one host takes until every
// host of a fleet has it in force. The set lives in an etcd of three members;
// each host is a namespace of its own with a daemon and a table of its own. All
// of them, and etcd, share the processors of this machine.
func fleet(ctx context.Context, b *bench) (err error) {
	hosts, entries, adds := pick(b, 3, 20), pick(b, 200, 10_000), pick(b, 3, 100)
	l, err := lab.New(ctx, b.log)
	if err != nil {
		return err
	}
	var (
		nodes     []*lab.Node
		firewalls []*lab.Firewall
	)
	defer func() {
		for _, fw := range firewalls {
			err = errors.Join(err, fw.Kill(context.WithoutCancel(ctx)))
		}
		err = errors.Join(err, l.Close())
	}()
	var members []*lab.Node
	for i := range 3 {
		n, err := l.Client(ctx, fmt.Sprintf("etcd%d", i+1), uint8(11+i))
		if err != nil {
			return err
		}
		members = append(members, n)
	}
	cluster, err := l.Etcd(ctx, members...)
	if err != nil {
		return err
	}
	policy := fmt.Sprintf("version: 1\nsets:\n  trusted: {sources: [{etcd: {endpoints: [%s], prefix: %s}}]}\n",
		strings.Join(cluster.Endpoints(), ", "), fleetPrefix)
	for i := range hosts {
		n, err := l.Client(ctx, fmt.Sprintf("host%d", i+1), uint8(101+i))
		if err != nil {
			return err
		}
		nodes = append(nodes, n)
		fw, err := l.Firewall(lab.FirewallOptions{Bin: b.bin, Node: n})
		if err != nil {
			return err
		}
		firewalls = append(firewalls, fw)
		if err := errors.Join(fw.WritePolicy(policy), fw.Launch(ctx, "--no-docker")); err != nil {
			return err
		}
	}
	for _, fw := range firewalls {
		if err := fw.WaitReady(ctx, false); err != nil {
			return err
		}
	}
	f := &fleetProbe{nodes: nodes, first: firewalls[0]}
	fill, err := f.fill(ctx, l.Dir(), entries)
	if err != nil {
		return err
	}
	var took []float64
	for i := range adds {
		d, err := f.add(ctx, netip.AddrFrom4([4]byte{198, 51, byte(100 + i/100), byte(2*(i%100) + 1)}))
		if err != nil {
			return err
		}
		took = append(took, milliseconds(d))
	}
	what := fmt.Sprintf("%d hosts, %d entries in etcd: ", hosts, entries)
	b.add(row{What: what + "filled, until all have them in force", Figure: fill.Seconds(), Unit: "s"}, true)
	b.add(row{What: what + "sets add --fleet until all have it, p50", Figure: median(took), Unit: "ms"}, true)
	b.add(row{What: what + "sets add --fleet until all have it, p99", Figure: quantile(took, 0.99), Unit: "ms"}, true)
	return nil
}

// fleetProbe hears from the kernel of every host what is in force there.
type fleetProbe struct {
	nodes []*lab.Node
	first *lab.Firewall // of the first node
}

// fill adds n entries on the first host and gives the time until all hosts
// have the last of them.
func (f *fleetProbe) fill(ctx context.Context, dir string, n int) (time.Duration, error) {
	var text strings.Builder
	addr := func(i int) netip.Addr { // with gaps, so that none merge
		return netip.AddrFrom4([4]byte{10, byte(i >> 15), byte(i >> 7), byte(2 * i)})
	}
	for i := range n {
		fmt.Fprintln(&text, addr(i))
	}
	file := filepath.Join(dir, "fleet.txt")
	if err := os.WriteFile(file, []byte(text.String()), 0o644); err != nil {
		return 0, err
	}
	return f.measure(ctx, addr(n-1), "sets", "add", "trusted", "--fleet", "--file", file)
}

// add adds one entry on the first host and gives the time until all have it.
func (f *fleetProbe) add(ctx context.Context, addr netip.Addr) (time.Duration, error) {
	return f.measure(ctx, addr, "sets", "add", "trusted", addr.String(), "--fleet")
}

// measure runs a command on the first host and gives the time from its start
// until the kernel of every host has addr in its set.
func (f *fleetProbe) measure(ctx context.Context, addr netip.Addr, command ...string) (took time.Duration, err error) {
	var hosts []*elements
	defer func() {
		var closing sync.WaitGroup
		for _, h := range hosts {
			closing.Go(h.close)
		}
		closing.Wait()
	}()
	for _, n := range f.nodes {
		h, err := listenFor(n.Namespace, addr.AsSlice())
		if err != nil {
			return 0, err
		}
		hosts = append(hosts, h)
	}
	began := time.Now()
	if o := f.first.Exec(ctx, command...); o.Status != 0 {
		return 0, fmt.Errorf("add to the fleet: %s", o)
	}
	for _, h := range hosts {
		at, err := h.next()
		if err != nil {
			return 0, err
		}
		took = max(took, at.Sub(began))
	}
	return took, nil
}
