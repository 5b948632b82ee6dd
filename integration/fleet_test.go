package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nftfw/nftfw/integration/lab"
)

const fleetPrefix = "/nftfw/sets/trusted/"

// fleetHost is one host of a fleet, with a service that only `trusted` reaches.
type fleetHost struct {
	*lab.Node
	fw *lab.Firewall
}

// fleetPolicy follows a set in etcd.
func fleetPolicy(cluster *lab.Etcd) string {
	return fmt.Sprintf(`version: 1
sets:
  trusted: {sources: [{etcd: {endpoints: [%s], prefix: %s}}]}
`, strings.Join(cluster.Endpoints(), ", "), fleetPrefix)
}

// newFleet makes a cluster of three members, and hosts that follow it.
func newFleet(tb testing.TB, hosts int) (*lab.Lab, *lab.Etcd, []fleetHost) {
	tb.Helper()
	needRoot(tb)
	ctx := tb.Context()
	l, err := lab.New(ctx, newLogger())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := l.Close(); err != nil {
			tb.Error(err)
		}
	})
	node := func(name string, id int) *lab.Node {
		n, err := l.Client(ctx, name, uint8(id))
		if err != nil {
			tb.Fatal(err)
		}
		return n
	}
	var members []*lab.Node
	for i := range 3 {
		members = append(members, node(fmt.Sprintf("etcd%d", i+1), 11+i))
	}
	cluster, err := l.Etcd(ctx, members...)
	if errors.Is(err, lab.ErrNoEtcd) && os.Getenv("CI") == "" {
		tb.Skip(err)
	}
	if err != nil {
		tb.Fatal(err)
	}
	var out []fleetHost
	for i := range hosts {
		h := fleetHost{Node: node(fmt.Sprintf("host%d", i+1), 101+i)}
		if h.fw, err = l.Firewall(lab.FirewallOptions{Bin: built.nftfw, Node: h.Node}); err != nil {
			tb.Fatal(err)
		}
		if err := h.fw.WritePolicy(fleetPolicy(cluster)); err != nil {
			tb.Fatal(err)
		}
		if err := h.fw.Launch(ctx, "--no-docker"); err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() {
			if err := h.fw.Kill(context.Background()); err != nil {
				tb.Error(err)
			}
			if tb.Failed() {
				tb.Logf("log of nftfw on %s:\n%s", h.Name, tail(h.fw.Log(), 60))
			}
		})
		out = append(out, h)
	}
	for _, h := range out {
		if err := h.fw.WaitReady(ctx, false); err != nil {
			tb.Fatal(err)
		}
	}
	return l, cluster, out
}

// TestFleet has two hosts share a set that lives in etcd: while members of the
// cluster die, while a host is cut off, and while all of etcd is away.
func TestFleet(t *testing.T) {
	t.Parallel()
	l, cluster, hosts := newFleet(t, 2)
	here, there := hosts[0], hosts[1]
	client, err := l.Client(t.Context(), "client", 50)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range hosts {
		service, err := l.Service(t.Context(), h.Node, built.echo, h.Name, "tcp:9100")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(service.Stop)
	}
	try := func(h fleetHost) bool {
		p := addrPorts(h.V4, "9100")[0]
		// Tests run beside each other and three members of etcd: time enough for the
		// first SYN, and none for a second, which comes after a second.
		p.Timeout = 900 * time.Millisecond
		return client.Probe(t.Context(), p).Outcome == lab.Answered
	}
	soon := func(what string, ok func() bool) {
		t.Helper()
		deadline := time.Now().Add(30 * time.Second)
		for !ok() {
			if time.Now().After(deadline) {
				t.Fatalf("not in time: %s", what)
			}
			<-time.After(20 * time.Millisecond)
		}
	}
	opens := func(h fleetHost, want bool) {
		t.Helper()
		soon(fmt.Sprintf("%s open to the client: %v", h.Name, want), func() bool { return try(h) == want })
	}
	run := func(h fleetHost, args ...string) {
		t.Helper()
		if o := h.fw.Exec(t.Context(), args...); o.Status != 0 || o.Stderr != "" {
			t.Fatal(o)
		}
	}
	do := func(f func(ctx context.Context) error) {
		t.Helper()
		soon("a change in etcd", func() bool { return f(t.Context()) == nil })
	}
	address := client.V4.String()
	for _, h := range hosts {
		soon("the service of "+h.Name, func() bool {
			conn, err := h.Dial(t.Context(), "tcp", addrPorts(h.V4, "9100")[0].To, h.V4)
			if err == nil {
				_ = conn.Close()
			}
			return err == nil
		})
		if try(h) {
			t.Fatalf("%s is open", h.Name)
		}
	}

	t.Log("a command on one host is in force there when it ends, and soon on all")
	run(here, "sets", "add", "trusted", address, "--fleet", "--comment", "plumber")
	if !try(here) {
		t.Error("the host of the command does not let in whom it was told to")
	}
	opens(there, true)
	shown := there.fw.Exec(t.Context(), "sets", "show", "trusted")
	if !strings.Contains(shown.Stdout, "etcd:"+fleetPrefix) || !strings.Contains(shown.Stdout, "plumber") {
		t.Errorf("sets show: %s", shown)
	}
	if o := there.fw.Exec(t.Context(), "sets", "del", "trusted", address); o.Status != 5 || !strings.Contains(o.Stderr, "--fleet") {
		t.Errorf("%s; want exit status 5 and the way to remove it", o)
	}
	run(there, "sets", "del", "trusted", address, "--fleet")
	if try(there) {
		t.Error("the host of the command lets in whom it was told not to")
	}
	opens(here, false)
	if o := here.fw.Exec(t.Context(), "sets", "del", "trusted", address, "--fleet"); o.Status != 5 || !strings.Contains(o.Stderr, "--exist") {
		t.Errorf("%s; want exit status 5", o)
	}
	run(here, "sets", "del", "trusted", address, "--fleet", "--exist")
	if o := here.fw.Exec(t.Context(), "sets", "add", "blocked", address, "--fleet"); o.Status != 2 {
		t.Errorf("%s; want exit status 2 for a set without etcd", o)
	}

	t.Log("a timeout holds on every host")
	run(here, "sets", "add", "trusted", address, "--fleet", "--timeout", "3s")
	opens(there, true)
	opens(there, false)
	opens(here, false)

	t.Log("a member dies")
	cluster.Members[0].Kill()
	soon("a change with two members", func() bool {
		return here.fw.Exec(t.Context(), "sets", "add", "trusted", address, "--fleet").Status == 0
	})
	opens(there, true)

	t.Log("a host is cut off: what it knows stays, and it catches up over a compaction")
	if err := there.IP(t.Context(), "link set eth0 down"); err != nil {
		t.Fatal(err)
	}
	second := cluster.Members[1]
	do(func(ctx context.Context) error { return second.Delete(ctx, fleetPrefix+address) })
	for i := range 20 {
		do(func(ctx context.Context) error {
			return second.Put(ctx, fmt.Sprintf("%s192.0.2.%d", fleetPrefix, i), "")
		})
	}
	do(second.Compact)
	opens(here, false)
	until(t, there.fw, "etcd", "an error", func(s sourceState) bool { return s.Error != "" && s.Entries == 1 })
	if err := there.IP(t.Context(), "link set eth0 up"); err != nil {
		t.Fatal(err)
	}
	opens(there, false)
	until(t, there.fw, "etcd", "20 entries", func(s sourceState) bool { return s.Error == "" && s.Entries == 20 })

	t.Log("etcd is away: the last known state stays, also through a restart")
	do(func(ctx context.Context) error { return second.Put(ctx, fleetPrefix+address, "") })
	opens(here, true)
	opens(there, true)
	for _, m := range cluster.Members {
		m.Kill()
	}
	until(t, here.fw, "etcd", "an error", func(s sourceState) bool { return s.Error != "" && s.Entries == 21 })
	if o := here.fw.Exec(t.Context(), "sets", "add", "trusted", "192.0.2.99", "--fleet"); o.Status != 5 {
		t.Errorf("%s; want exit status 5", o)
	}
	if err := there.fw.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := there.NFT(t.Context(), "delete table inet nftfw"); err != nil {
		t.Fatal(err)
	}
	if err := there.fw.Launch(t.Context(), "--no-docker"); err != nil {
		t.Fatal(err)
	}
	if err := there.fw.WaitReady(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if !try(here) || !try(there) {
		t.Error("with etcd away a host forgot whom it let in")
	}

	t.Log("and back: a host without a daemon writes too")
	for _, m := range cluster.Members {
		if err := m.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := cluster.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := there.fw.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	run(there, "sets", "del", "trusted", address, "--fleet")
	if try(there) {
		t.Error("without a daemon the change is not in force")
	}
	opens(here, false)
}
