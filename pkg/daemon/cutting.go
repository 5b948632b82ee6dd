package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nftfw/nftfw/nft"
	"github.com/nftfw/nftfw/pkg/links"
	"github.com/nftfw/nftfw/pkg/ruleset"
	"github.com/nftfw/nftfw/policy"
)

// ask fills in who judges, and who is granted again.
func (w *withdrawal) ask(ctx context.Context) error {
	routes, err := links.ReadRoutes()
	if err != nil {
		return err
	}
	if w.recount {
		cuts, err := w.kernel.Cuts(ctx, w.table)
		if err != nil {
			return err
		}
		w.cuts = cutFlows{}
		w.cuts.take(cuts)
	}
	w.judge = newJudge(w.table, w.before, routes, w.links, w.now)
	w.judge.hostOnly = w.early
	w.granted = grantedCuts(newJudge(w.table, nil, routes, w.links, w.now), w.cuts)
	return nil
}

// grantedCuts gives the cuts that j lets in.
func grantedCuts(j *judge, cuts cutFlows) []nft.Cut {
	var out []nft.Cut
	for id, until := range cuts {
		if cut := id.cut(until); !j.refuses(cut.Flow()) {
			out = append(out, cut)
		}
	}
	return out
}

// cutBatch is about how many flows are cut in one commit, so that the loop is not
// held up for long.
const cutBatch = 16384

// withdraw does what w is about. run runs a function on the goroutine that
// owns the core.
func (c *core) withdraw(ctx context.Context, w *withdrawal, run func(func(context.Context) error) error) error {
	err := w.ask(ctx)
	if err == nil && w.look {
		err = c.cutRefused(ctx, w, run)
	}
	if err == nil && w.recount {
		err = run(func(context.Context) error { c.recount(w); return nil })
	}
	for part := range slices.Chunk(w.granted, cutBatch) {
		if err == nil {
			err = run(func(ctx context.Context) error { return c.grant(ctx, w, part) })
		}
	}
	if err == nil {
		err = run(c.dropCuts)
	}
	if err != nil {
		return fmt.Errorf("cut connections that lost their permission: %w", err)
	}
	return nil
}

// cutRefused lists live connections, judges them, cuts the refused and deletes
// their entries, all at once: each part goes on to the next step while the kernel
// still lists the rest, and no more of them are held than are under way.
func (c *core) cutRefused(ctx context.Context, w *withdrawal, run func(func(context.Context) error) error) error {
	known := c.accepted(ctx, w)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	work, ctx := errgroup.WithContext(ctx)
	put := func(to chan<- []nft.Flow, flows []nft.Flow) {
		select {
		case to <- flows:
		case <-ctx.Done():
		}
	}
	listed, refused, cut := make(chan []nft.Flow, 1), make(chan []nft.Flow, 1), make(chan []nft.Flow, 1)
	work.Go(func() error {
		defer close(listed)
		put(listed, flowsOf(known))
		return w.kernel.Flows(ctx, func(flows []nft.Flow) {
			put(listed, append(append(flows, turned(flows, known)...), w.judge.answers(flows)...))
		})
	})
	work.Go(func() error {
		defer close(refused)
		w.judge.refused(listed, func(flows []nft.Flow) { put(refused, flows) })
		return nil
	})
	work.Go(func() error {
		for flows := range cut {
			if err := w.kernel.DeleteFlows(ctx, flows); err != nil {
				return err
			}
		}
		return nil
	})
	err := inBatches(refused, func(flows []nft.Flow) error {
		err := run(func(ctx context.Context) (err error) {
			flows, err = c.cutStillRefused(ctx, w, flows)
			return err
		})
		if err == nil {
			put(cut, flows)
		}
		return err
	})
	close(cut)
	if err != nil {
		stop()
	}
	failed := work.Wait()
	return cmp.Or(err, failed)
}

// accepted gives the connections that sockets of the host have accepted, where there was
// no table and perhaps nothing tracked them.
func (c *core) accepted(ctx context.Context, w *withdrawal) map[ends]bool {
	if !w.opened {
		return nil
	}
	known, dialled := w.host.connections() // in the network namespace of this thread
	// What only the far side of a connection says would never be let in where
	// nothing tracked the connection before.
	if err := w.kernel.TrackFlows(ctx, dialled); err != nil {
		c.log.Warn("connections that this host has made may hang until it sends something", "err", err)
	}
	return known
}

// inBatches calls f with what comes, cutBatch at a time.
func inBatches(in <-chan []nft.Flow, f func([]nft.Flow) error) error {
	var some []nft.Flow
	for flows := range in {
		if some == nil {
			some = make([]nft.Flow, 0, cutBatch+cutBatch/4)
		}
		if some = append(some, flows...); len(some) < cutBatch {
			continue
		}
		if err := f(some); err != nil {
			return err
		}
		some = nil
	}
	if len(some) == 0 {
		return nil
	}
	return f(some)
}

// cutStillRefused cuts those of the flows that the table in force refuses, and
// returns them.
func (c *core) cutStillRefused(ctx context.Context, w *withdrawal, flows []nft.Flow) ([]nft.Flow, error) {
	if flows = c.stillRefused(w, flows); len(flows) == 0 {
		return nil, nil
	}
	same := c.table == w.table
	err := c.cut(ctx, flows)
	if same {
		w.table = c.table
	}
	return flows, err
}

// stillRefused asks again about flows that an older table refused.
func (c *core) stillRefused(w *withdrawal, flows []nft.Flow) []nft.Flow {
	switch {
	case c.table == nil || !c.cutting():
		return nil
	case c.table == w.table:
		return flows
	}
	routes, err := links.ReadRoutes()
	if err != nil {
		return flows
	}
	return newJudge(c.table, w.before, routes, c.links, c.now()).only(flows)
}

// cut refuses the flows, in one commit. Those for which there is no room lose their
// entries alone.
func (c *core) cut(ctx context.Context, flows []nft.Flow) error {
	cuts := make([]nft.Cut, 0, len(flows))
	room, over := c.revoked.cuts.room(), 0
	for _, f := range flows {
		cut, ok := f.Cut(c.now().Add(policy.CutHold(f.Proto)))
		is4 := cut.Client.Addr().Is4()
		switch {
		case !ok:
		case room[is4] <= 0:
			over++
		default:
			room[is4]--
			cuts = append(cuts, cut)
		}
	}
	if len(cuts) > 0 {
		if err := c.commitCuts(ctx, policy.WithCuts(c.table), cuts, nil); err != nil {
			return err
		}
	}
	c.log.Info("connections cut that lost their permission", "connections", len(flows)-over)
	if over > 0 {
		c.log.Warn("too many connections to cut at a time, these may come to life again when their server sends", "connections", over)
	}
	return nil
}

// commitCuts makes want, which is the table in force with or without sets for
// cut flows, the one in force.
func (c *core) commitCuts(ctx context.Context, want *ruleset.Table, cuts, granted []nft.Cut) error {
	plan := nft.Diff(nft.StateOf(c.table), want, c.now()).WithCuts(want, cuts).WithoutCuts(want, granted)
	if err := c.kernel.Commit(ctx, plan); err != nil {
		c.have = nil // somebody has been at the table
		return err
	}
	c.table = want
	if c.have != nil {
		c.have = nft.StateOf(want)
	}
	r := &c.revoked
	first := !r.active // else a zero recheck is due
	r.active = policy.HasCuts(want)
	if r.cuts == nil {
		r.cuts = cutFlows{}
	}
	for _, cut := range cuts {
		r.cuts[idOf(cut)] = cut.Expires.UnixNano()
		if first || cut.Expires.Before(r.recheck) {
			r.recheck, first = cut.Expires, false
		}
	}
	for _, cut := range granted {
		delete(r.cuts, idOf(cut))
	}
	return nil
}

// recountEvery is how long it is at least from one recount to the next: the kernel
// takes seconds to list a hundred thousand cuts.
const recountEvery = 3 * time.Minute

// recount takes in which cuts the kernel still has.
func (c *core) recount(w *withdrawal) {
	r := &c.revoked
	if c.table == nil || !r.active {
		return
	}
	if r.cuts == nil {
		r.cuts = cutFlows{}
	}
	maps.Copy(r.cuts, w.cuts)
	r.unread = false
	maps.DeleteFunc(r.cuts, func(_ cutID, until int64) bool { return time.Unix(0, until).Before(w.now) })
	r.recheck = w.now.Add(recountEvery)
	if end := r.cuts.first(); end.After(r.recheck) {
		r.recheck = end
	}
}

// grant lets in whose permission came back.
func (c *core) grant(ctx context.Context, w *withdrawal, cuts []nft.Cut) error {
	if c.table == nil || !c.revoked.active {
		return nil
	}
	if c.table != w.table {
		routes, err := links.ReadRoutes()
		if err != nil {
			return err
		}
		j := newJudge(c.table, nil, routes, c.links, c.now())
		cuts = slices.DeleteFunc(cuts, func(cut nft.Cut) bool { return j.refuses(cut.Flow()) })
	}
	if len(cuts) == 0 {
		return nil
	}
	return c.commitCuts(ctx, c.table, nil, cuts)
}

// dropCuts takes the sets for cut flows away once nothing is in them.
func (c *core) dropCuts(ctx context.Context) error {
	if c.table == nil || !c.revoked.active || len(c.revoked.cuts) > 0 || !policy.HasCuts(c.table) {
		return nil
	}
	return c.commitCuts(ctx, policy.WithoutCuts(c.table), nil, nil)
}

// withdrawNow does at once what is to be done about live connections, for an
// operation that is alone with its core.
func (c *core) withdrawNow(ctx context.Context) error {
	unjudged := c.unjudged()
	w := c.withdrawal()
	if w == nil {
		return unjudged
	}
	return errors.Join(c.withdraw(ctx, w, func(f func(context.Context) error) error { return f(ctx) }), unjudged)
}
