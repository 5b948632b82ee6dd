package daemon

import (
	"context"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nftfw/nftfw/nft"
	"github.com/nftfw/nftfw/pkg/api"
	"github.com/nftfw/nftfw/pkg/nflog"
	"github.com/nftfw/nftfw/pkg/ruleset"
	"github.com/nftfw/nftfw/policy"
)

// PacketLog hears of the packets that rules log: see nflog.Listener.Run.
type PacketLog func(ctx context.Context, group uint16, packet func(nflog.Packet), lost func(uint32)) error

// listenNFLOG is the real PacketLog.
func listenNFLOG(ctx context.Context, group uint16, packet func(nflog.Packet), lost func(uint32)) error {
	l, err := nflog.Open(group)
	if err != nil {
		return err
	}
	return l.Run(ctx, packet, lost)
}

const (
	listenAgain = 10 * time.Second // after which a group that is taken is tried again
	tallyAfter  = time.Second      // after a refused packet, what was not logged is counted
	tallyLag    = 250 * time.Millisecond
)

// followDrops tells those who watch, and the log, of refused packets.
func (d *Daemon) followDrops(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	t := &teller{
		namer: namer{watching: &d.watching}, log: d.log, counters: d.core.kernel,
		missed:  func(n uint64) { d.metrics.missed.Add(float64(n)) },
		packets: make(chan nflog.Packet), lost: make(chan uint32),
	}
	group.Go(func() error { return t.listen(ctx, d.packetLog) })
	group.Go(func() error { return t.run(ctx) })
	return group.Wait()
}

// teller hears of refused packets. Its run alone touches what follows lost.
type teller struct {
	namer
	log      *slog.Logger
	counters Counters
	missed   func(n uint64)    // counts packets that are told of to nobody
	packets  chan nflog.Packet // without room: while nobody takes one, the kernel's buffer fills, which it tells
	lost     chan uint32

	heard    uint64 // packets, and those known to be lost
	unlogged unlogged
}

// listen hands over what is logged, and tries again where somebody else has
// the group.
func (t *teller) listen(ctx context.Context, listen PacketLog) error {
	said := ""
	for {
		t.watching.setDeaf(nil)
		err := listen(ctx, policy.LogGroup, func(p nflog.Packet) {
			select {
			case t.packets <- p:
			case <-ctx.Done():
			}
		}, func(n uint32) {
			select {
			case t.lost <- n:
			case <-ctx.Done():
			}
		})
		if ctx.Err() != nil {
			return nil
		}
		t.watching.setDeaf(err)
		if said != err.Error() {
			said = err.Error()
			t.log.Warn("refused packets cannot be shown, trying again", "every", listenAgain, "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(listenAgain):
		}
	}
}

// run tells of each packet, and a while after the last ones how many there
// were of which the kernel did not.
func (t *teller) run(ctx context.Context) error {
	if n, ok := t.count(ctx); ok {
		t.unlogged = unlogged{counted: n, last: n} // from here on
	}
	var due, compare <-chan time.Time
	var counted uint64
	var ok bool
	for {
		select {
		case <-ctx.Done():
			return nil
		case p := <-t.packets:
			t.heard++
			t.packet(p)
			if due == nil && compare == nil {
				due = time.After(tallyAfter)
			}
		case n := <-t.lost:
			t.heard += uint64(n)
			t.miss(uint64(n), "the log's buffer overflowed")
		case <-due:
			due = nil
			if counted, ok = t.count(ctx); ok {
				compare = time.After(tallyLag) // what was counted by now is heard by then
			}
		case <-compare:
			compare = nil
			missed, more := t.unlogged.at(counted, t.heard)
			if missed > 0 {
				t.miss(missed, "beyond log.rate")
			}
			if more {
				due = time.After(tallyAfter)
			}
		}
	}
}

// count gives how many packets were refused since the counters began.
func (t *teller) count(ctx context.Context) (uint64, bool) {
	sc := t.watching.scene.Load()
	if sc == nil || sc.table == nil {
		return 0, true
	}
	counts, err := t.counters.Counts(ctx, sc.table, func(string) bool { return false })
	if err != nil {
		return 0, false
	}
	var sum uint64
	for _, n := range byReason(counts) {
		sum += n
	}
	return sum, true
}

// unlogged finds how many packets were counted and not heard of.
type unlogged struct {
	counted, heard uint64 // where the comparison begins
	last           uint64 // counted the time before
	told           uint64 // since the beginning
}

// at compares what was counted with what was heard a little later, and gives
// what was not told yet. More may come: ask again.
func (u *unlogged) at(counted, heard uint64) (missed uint64, more bool) {
	if counted < u.last || counted < u.counted {
		// Counters began anew, with the table or with a chain.
		*u = unlogged{counted: counted, heard: heard, last: counted}
		return 0, false
	}
	more = counted > u.last
	u.last = counted
	gap, known := counted-u.counted, heard-u.heard+u.told
	if gap > known {
		missed = gap - known
		u.told += missed
	}
	return missed, more
}

// packet tells of one refused packet.
func (t *teller) packet(p nflog.Packet) {
	why, ours := policy.ReasonOfPrefix(p.Prefix)
	if !ours {
		return
	}
	e := t.refused(p, why)
	t.watching.tell(e)
	if sc := t.watching.scene.Load(); sc != nil && sc.policy.Log.Drops {
		t.log.Info("refused", "enforced", e.Verdict == api.Refused, "reason", e.Reason, "source", e.Source, "container", e.Container,
			"to", e.To, "port", e.Port, "proto", e.Proto, "in", e.In, "decided_by", e.DecidedBy)
	}
}

// miss tells that some packets are not shown.
func (t *teller) miss(n uint64, why string) {
	t.missed(n)
	t.watching.tell(api.Event{Time: time.Now().UTC(), Verdict: api.Missed, Missed: n, Why: why})
	if sc := t.watching.scene.Load(); sc != nil && sc.policy.Log.Drops {
		t.log.Warn("refused packets not logged", "packets", n, "reason", why)
	}
}

// namer gives packets the names of what they are about. It is for one
// goroutine.
type namer struct {
	watching *watching

	of    *scene // what follows is made of it
	where *whereabouts
	links map[int]string
}

// look makes the newest scene the one that names are taken from.
func (n *namer) look() *scene {
	sc := n.watching.scene.Load()
	if sc == n.of {
		return sc
	}
	n.of, n.where, n.links = sc, nil, nil
	decisions, _ := policy.Decide(sc.policy, sc.inv)
	n.where = newWhereabouts(sc.inv, decisions)
	n.links = make(map[int]string, len(sc.inv.Links))
	for _, l := range sc.inv.Links {
		n.links[l.Index] = l.Name
	}
	return sc
}

// refused describes a packet that was logged.
func (n *namer) refused(p nflog.Packet, why policy.Reason) api.Event {
	e := api.Event{
		Time: p.Time.UTC(), Verdict: api.Refused, Reason: string(why), Why: why.Text(),
		Source: p.Src.String(), SourcePort: p.SPort, To: p.Dst.String(), Port: p.DPort, Proto: ruleset.ProtocolName(p.Proto),
	}
	sc := n.look()
	if sc == nil {
		return e
	}
	if sc.policy.Mode == policy.Observe {
		e.Verdict = api.WouldRefuse
	}
	e.In, e.Out = n.links[p.In], n.links[p.Out]
	e.SourceContainer = n.where.containers[p.Src]
	container, d := n.where.target(p.Dst, p.Proto, p.DPort)
	e.Container = container
	if d != nil && why == policy.ReasonFrom {
		e.Why += " " + d.From.String()
		e.DecidedBy = decidedBy(*d)
		return e
	}
	e.DecidedBy = origin(sc.table, p, e, why)
	return e
}

// decidedBy names who decided about a port as explain does.
func decidedBy(d policy.Decision) string {
	if d.By == policy.ByLabel {
		return "label " + d.Origin
	}
	return d.Origin
}

// origin asks the table which line leads the packet to the reason's chain.
func origin(t *ruleset.Table, p nflog.Packet, e api.Event, why policy.Reason) string {
	if t == nil {
		return ""
	}
	packet := ruleset.Packet{
		Hook: ruleset.Input, IIf: e.In, OIf: e.Out, Src: p.Src, Dst: p.Dst, Proto: p.Proto,
		SPort: p.SPort, DPort: p.DPort, State: ruleset.StateNew, Time: p.Time,
	}
	switch {
	case why == policy.ReasonBlocked:
		packet.Hook = ruleset.Prerouting
	case p.Out != 0:
		packet.Hook = ruleset.Forward
	}
	for _, step := range t.Eval(packet).Steps {
		if step.Result == "goto "+why.Chains()[0] {
			return step.Origin
		}
	}
	return ""
}

// accepted describes a connection that began.
func (n *namer) accepted(f nft.Flow) api.Event {
	e := api.Event{
		Time: time.Now().UTC(), Verdict: api.Accepted,
		Source: f.Src.Addr().String(), SourcePort: f.Src.Port(), Proto: ruleset.ProtocolName(f.Proto),
		To: f.ReplySrc.Addr().String(), Port: f.ReplySrc.Port(),
	}
	if n.look() == nil {
		return e
	}
	e.SourceContainer = n.where.containers[f.Src.Addr()]
	container, d := n.where.target(f.ReplySrc.Addr(), f.Proto, f.ReplySrc.Port())
	if e.Container = container; d != nil {
		e.DecidedBy = decidedBy(*d)
	}
	return e
}
