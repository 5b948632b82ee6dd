package integration

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nftfw/nftfw/integration/lab"
)

// revokeArgs are echo servers on a port that is published under another
// number and on one that keeps its own. The pushing one speaks without being
// asked.
var (
	quietArgs  = []string{"tcp:80", "udp:80", "tcp:8081", "udp:8081"}
	pushArgs   = []string{"-push", "50ms", "tcp:80", "udp:80", "tcp:8083", "udp:8083"}
	quietPorts = []string{"8080", "8080/udp", "8081", "8081/udp", "9000", "9000/udp"}
	pushPorts  = []string{"8082", "8082/udp", "8083", "8083/udp", "9001", "9001/udp"}
)

const revokePolicy = `version: 1
host: {allow: [{ports: [9000-9001/tcp, 9000-9001/udp], from: trusted}]}
`

// revokeServers starts two containers and two services of the host.
func (s *set) revokeServers() {
	s.t.Helper()
	publish := func(host, container string) []string {
		return []string{"-p", host + ":" + container + "/tcp", "-p", host + ":" + container + "/udp"}
	}
	s.runSpec(lab.Spec{Name: "quiet", Args: quietArgs, Options: append(publish("8080", "80"), publish("8081", "8081")...)})
	s.runSpec(lab.Spec{Name: "push", Args: pushArgs, Options: append(publish("8082", "80"), publish("8083", "8083")...)})
	for name, args := range map[string][]string{
		"hostquiet": {"tcp:9000", "udp:9000"},
		"hostpush":  {"-push", "50ms", "tcp:9001", "udp:9001"},
	} {
		service, err := s.Service(s.ctx(), s.Host, built.echo, name, args...)
		if err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(service.Stop)
	}
}

// dialogue is one connection that is used all the time: the client sends, or only
// listens to a server that pushes.
type dialogue struct {
	probe lab.Probe
	pushy bool
	conn  net.Conn
	last  atomic.Int64 // when something arrived, Unix nanoseconds
	gap   atomic.Int64 // the longest time without
}

// silent is the longest time in which nothing arrived, up to now.
func (k *dialogue) silent() time.Duration {
	return max(time.Duration(k.gap.Load()), time.Since(time.Unix(0, k.last.Load())))
}

func (k *dialogue) String() string {
	if k.pushy {
		return k.probe.String() + ", only the server sends"
	}
	return k.probe.String() + ", the client sends"
}

// dialogues connects to every port and keeps the connections busy.
func (s *set) dialogues(n *lab.Node) []*dialogue {
	s.t.Helper()
	if s.pulse == nil {
		s.outside("pulse", s.routed, "tcp:7100")
		s.open(s.permitted.Namespace, "pulse", addrPorts(s.routed.V4, "7100"))
		s.pulse = s.converse(s.permitted, []*dialogue{{probe: addrPorts(s.routed.V4, "7100")[0]}})[0]
	}
	var out []*dialogue
	for _, pushy := range []bool{false, true} {
		ports := quietPorts
		if pushy {
			ports = pushPorts
		}
		for _, p := range hostPorts(ports...) {
			out = append(out, &dialogue{probe: p, pushy: pushy})
		}
	}
	return s.converse(n, out)
}

// converse begins the dialogues, from n, and keeps them up.
func (s *set) converse(n *lab.Node, out []*dialogue) []*dialogue {
	s.t.Helper()
	s.eachDialogue(out, func(k *dialogue) error {
		var err error
		if k.conn, err = n.Dial(s.ctx(), k.probe.Network, k.probe.To, netip.Addr{}); err != nil {
			return err
		}
		if _, err := k.conn.Write([]byte("first")); err != nil {
			return err
		}
		_ = k.conn.SetReadDeadline(time.Now().Add(openWithin))
		if _, err := k.conn.Read(make([]byte, 1500)); err != nil {
			return err
		}
		k.last.Store(time.Now().UnixNano())
		return nil
	})
	if s.t.Failed() {
		s.t.FailNow()
	}
	var running sync.WaitGroup
	ctx, stop := context.WithCancel(context.Background())
	for _, k := range out {
		running.Go(func() { k.listen(ctx) })
		if !k.pushy {
			running.Go(func() { k.ask(ctx) })
		}
	}
	s.t.Cleanup(func() {
		stop()
		for _, k := range out {
			_ = k.conn.Close()
		}
		running.Wait()
	})
	return out
}

func (k *dialogue) ask(ctx context.Context) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		_ = k.conn.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = k.conn.Write([]byte("ask")) // what comes of it, listen sees
		<-tick.C
	}
}

func (k *dialogue) listen(ctx context.Context) {
	buf := make([]byte, 64<<10)
	for ctx.Err() == nil {
		_ = k.conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		_, err := k.conn.Read(buf)
		switch {
		case err == nil:
			now := time.Now().UnixNano()
			k.gap.Store(max(k.gap.Load(), now-k.last.Swap(now)))
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return
		}
	}
}

func (s *set) eachDialogue(talks []*dialogue, check func(*dialogue) error) {
	s.t.Helper()
	errs := make([]error, len(talks))
	var all sync.WaitGroup
	for i, k := range talks {
		all.Go(func() { errs[i] = check(k) })
	}
	all.Wait()
	for i, err := range errs {
		if err != nil {
			s.t.Errorf("%s: %v", talks[i], err)
		}
	}
}

// dead demands that nothing arrives any more, from a second after since on.
func (s *set) dead(talks []*dialogue, since time.Time) {
	s.t.Helper()
	const watch = 1500 * time.Millisecond // TCP has tried again several times by then
	end := since.Add(time.Second + watch)
	s.eachDialogue(talks, func(k *dialogue) error {
		select {
		case <-time.After(time.Until(end)):
		case <-s.ctx().Done():
		}
		if late := time.Unix(0, k.last.Load()).Sub(since); late > time.Second+s.pulse.silent() {
			return fmt.Errorf("something arrived %s after it was cut", late)
		}
		return nil
	})
}

// fluent demands that the connections live and never paused.
func (s *set) fluent(talks []*dialogue) {
	s.t.Helper()
	const pause = 900 * time.Millisecond // TCP would need more to recover
	s.eachDialogue(talks, func(k *dialogue) error {
		// A busy machine pauses all alike.
		if silent, all := k.silent(), s.pulse.silent(); silent > pause+all {
			return fmt.Errorf("nothing arrived for %s, and %s where no firewall is", silent, all)
		}
		return nil
	})
}

func (s *set) both(n *lab.Node) []string { return []string{n.V4.String(), n.V6.String()} }

func TestScenario25Revocation(t *testing.T) {
	s := scene(t, revokePolicy)
	s.revokeServers()
	s.nftfw(slices.Concat([]string{"sets", "add", "trusted"}, s.both(s.permitted), s.both(s.routed))...)
	all := hostPorts(slices.Concat(quietPorts, pushPorts)...)
	s.open(s.permitted.Namespace, "", all)
	mine, others := s.dialogues(s.permitted), s.dialogues(s.routed)

	s.nftfw(append([]string{"sets", "del", "trusted"}, s.both(s.permitted)...)...)
	s.dead(mine, time.Now())
	s.closed(s.permitted.Namespace, all)
	s.fluent(others)

	s.nftfw(append([]string{"sets", "add", "trusted"}, s.both(s.permitted)...)...)
	s.each(all, func(p lab.Probe) error { // once: it works when the command returns
		if r := s.permitted.Probe(s.ctx(), p); r.Outcome != lab.Answered {
			return fmt.Errorf("%s: %s, want it open again", p, r)
		}
		return nil
	})
	s.fluent(others)
}

// With the daemon away a command cuts as well.
func TestScenario25RevocationWithoutDaemon(t *testing.T) {
	s := scene(t, revokePolicy)
	s.revokeServers()
	s.nftfw(slices.Concat([]string{"sets", "add", "trusted"}, s.both(s.permitted), s.both(s.routed))...)
	s.open(s.permitted.Namespace, "", hostPorts(slices.Concat(quietPorts, pushPorts)...))
	mine, others := s.dialogues(s.permitted), s.dialogues(s.routed)
	if err := s.fw.Stop(s.ctx()); err != nil {
		t.Fatal(err)
	}
	s.nftfw(append([]string{"sets", "del", "trusted"}, s.both(s.permitted)...)...)
	s.dead(mine, time.Now())
	s.fluent(others)

	// The daemon takes over what the command cut.
	if err := s.fw.Start(s.ctx()); err != nil {
		t.Fatal(err)
	}
	s.dead(mine, time.Now())
	s.fluent(others)
	s.nftfw(append([]string{"sets", "add", "trusted"}, s.both(s.permitted)...)...)
	s.open(s.permitted.Namespace, "", hostPorts(quietPorts...))
}

// What ran out while no daemon was there is cut by the next one.
func TestScenario25RanOutWithoutDaemon(t *testing.T) {
	s := scene(t, revokePolicy)
	s.revokeServers()
	const life = 5 * time.Second
	s.nftfw(append([]string{"sets", "add", "trusted"}, s.both(s.routed)...)...)
	s.nftfw(append([]string{"sets", "add", "trusted", "--timeout", life.String()}, s.both(s.permitted)...)...)
	ends := time.Now().Add(life)
	s.open(s.permitted.Namespace, "", hostPorts(slices.Concat(quietPorts, pushPorts)...))
	mine, others := s.dialogues(s.permitted), s.dialogues(s.routed)
	if err := s.fw.Stop(s.ctx()); err != nil {
		t.Fatal(err)
	}
	<-time.After(time.Until(ends.Add(500 * time.Millisecond)))
	s.fluent(mine) // nobody has cut them: what follows is the daemon's doing
	if err := s.fw.Start(s.ctx()); err != nil {
		t.Fatal(err)
	}
	s.dead(mine, time.Now())
	s.fluent(others)
}

// tracked leaves out what nobody can know of: without a table the engine of
// this machine has IPv6 go by untracked, and a UDP socket does not tell with
// whom it talks.
func tracked(all []*dialogue) []*dialogue {
	return slices.DeleteFunc(slices.Clone(all), func(k *dialogue) bool {
		return k.probe.Network == "udp" && k.probe.To.Addr().Is6()
	})
}

func TestScenario25OlderThanTheFirewall(t *testing.T) {
	s := bare(t)
	s.revokeServers()
	s.open(s.permitted.Namespace, "", hostPorts(slices.Concat(quietPorts, pushPorts)...))
	strangers, mine := tracked(s.dialogues(s.stranger)), s.dialogues(s.permitted)
	s.start(revokePolicy + trust)
	s.dead(strangers, time.Now())
	s.fluent(mine)

	// The table is gone while nobody looks after it, and comes back.
	if err := s.fw.Kill(s.ctx()); err != nil {
		t.Fatal(err)
	}
	if err := s.Host.NFT(s.ctx(), "delete table inet nftfw"); err != nil {
		t.Fatal(err)
	}
	strangers = tracked(s.dialogues(s.stranger))
	if err := s.fw.Start(s.ctx()); err != nil {
		t.Fatal(err)
	}
	s.dead(strangers, time.Now())
	s.fluent(mine)
}
