package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

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
	var firewalls []*lab.Firewall
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
	f := newFleetProbe(firewalls)
	fill, err := f.fill(ctx, l.Dir(), entries)
	if err != nil {
		return err
	}
	var took []float64
	for i := range adds {
		d, err := f.add(ctx, fmt.Sprintf("198.51.%d.%d", 100+i/250, i%250+1))
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

// fleetProbe asks all hosts of a fleet what they have in force. A daemon
// answers between two commits, so what it says is in the kernel.
type fleetProbe struct {
	firewalls []*lab.Firewall
	clients   []*http.Client
}

func newFleetProbe(firewalls []*lab.Firewall) *fleetProbe {
	f := &fleetProbe{firewalls: firewalls}
	for _, fw := range firewalls {
		f.clients = append(f.clients, &http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", fw.SocketPath())
			},
		}})
	}
	return f
}

// fill adds n entries on the first host and gives the time until all hosts
// have the last of them.
func (f *fleetProbe) fill(ctx context.Context, dir string, n int) (time.Duration, error) {
	var text strings.Builder
	for i := range n {
		fmt.Fprintf(&text, "10.%d.%d.%d\n", i>>15&255, i>>7&255, 2*i&255) // with gaps, so that none merge
	}
	file := filepath.Join(dir, "fleet.txt")
	if err := os.WriteFile(file, []byte(text.String()), 0o644); err != nil {
		return 0, err
	}
	last := fmt.Sprintf("10.%d.%d.%d", (n-1)>>15&255, (n-1)>>7&255, 2*(n-1)&255)
	return f.measure(ctx, last, "sets", "add", "trusted", "--fleet", "--file", file)
}

// add adds one entry on the first host and gives the time until all have it.
func (f *fleetProbe) add(ctx context.Context, addr string) (time.Duration, error) {
	return f.measure(ctx, addr, "sets", "add", "trusted", addr, "--fleet")
}

// measure runs a command on the first host and gives the time from its start
// until every host lets addr in.
func (f *fleetProbe) measure(ctx context.Context, addr string, command ...string) (time.Duration, error) {
	began := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		if o := f.firewalls[0].Exec(ctx, command...); o.Status != 0 {
			return fmt.Errorf("add to the fleet: %s", o)
		}
		return nil
	})
	for _, client := range f.clients {
		group.Go(func() error { return has(ctx, client, addr) })
	}
	err := group.Wait()
	return time.Since(began), err
}

// has waits until a host has addr in force.
func has(ctx context.Context, client *http.Client, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return lab.Poll(ctx, time.Millisecond, func() error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://nftfw/v1/sets/trusted/test?address="+addr, nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		var answer struct {
			In bool `json:"in"`
		}
		if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
			return err
		}
		if !answer.In {
			return fmt.Errorf("%s is not in force", addr)
		}
		return nil
	})
}
