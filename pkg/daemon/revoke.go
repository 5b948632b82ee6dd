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
	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/inventory"
	"github.com/nftfw/nftfw/pkg/links"
	"github.com/nftfw/nftfw/pkg/ruleset"
	"github.com/nftfw/nftfw/policy"
)

// Conntrack is what is needed of connection tracking, and of the sets that
// refuse flows which connection tracking calls established.
type Conntrack interface {
	Flows(ctx context.Context, take func([]nft.Flow)) error
	DeleteFlows(ctx context.Context, flows []nft.Flow) error
	TrackFlows(ctx context.Context, flows []nft.Flow) error
	Cuts(ctx context.Context, t *ruleset.Table) ([]nft.Cut, error)
}

// revocation is what is known of live connections that lost their permission.
//
// Connections are listed after the commit that narrows, not before it: one
// that began between a list and the commit would be in neither. Those that
// the table in force refuses go into its sets of cut flows, and only then
// their entries are deleted: without an entry the server's next packet would
// begin a connection of its own, and the client's be answers to it.
type revocation struct {
	look   bool // access narrowed since connections were last listed
	opened bool // and before that there was no table
	regard bool // something changed since the cuts were last asked about
	// adopted is set when a table stood at start: its containers are known
	// without the engine.
	adopted bool
	// before is the table that held until now where only the difference to
	// it is cut; nil elsewhere.
	before *ruleset.Table
	// early is the table that held until now while nobody has said yet what runs.
	// Once somebody has, all connections are looked at and it is nil.
	early *ruleset.Table

	active  bool      // the table in force has sets for cut flows
	cuts    cutFlows  // those in the sets; some may have gone
	recheck time.Time // when the kernel is asked which are left

	expiries map[string]expiry // of permissions, by set
}

// expiry is the next one of a set.
type expiry struct {
	set *addrset.Set
	at  time.Time // zero for never
}

// cutting tells whether connections are cut at all.
func (c *core) cutting() bool {
	return c.policy.Policy != nil && c.policy.Mode == policy.Enforce && c.policy.OnRevoke == policy.Cut
}

// withCuts gives t with sets for cut flows while there are any.
func (c *core) withCuts(t *ruleset.Table) *ruleset.Table {
	if c.revoked.active && c.cutting() {
		return policy.WithCuts(t)
	}
	return t
}

// keepCuts adds to a plan that makes the sets for cut flows anew what they
// held.
func (c *core) keepCuts(p nft.Plan, want *ruleset.Table) nft.Plan {
	if !p.EmptiesCuts(want) {
		return p
	}
	cuts := make([]nft.Cut, 0, len(c.revoked.cuts))
	for id := range c.revoked.cuts {
		cuts = append(cuts, id.cut(c.now().Add(policy.CutHold(id.proto)).UnixNano()))
	}
	return p.WithCuts(want, cuts)
}

// adoptCuts notes what a table that stands says of cut flows.
func (c *core) adoptCuts(have *nft.State) {
	c.revoked.adopted = have.Exists()
	c.revoked.active = policy.HasCuts(have.Table())
}

// noteCommit notes what a plan that is in force means for live connections.
func (c *core) noteCommit(p nft.Plan) {
	if c.narrows(p) {
		c.revoked.look = true
	}
	c.revoked.opened = c.revoked.opened || p.Closes()
	c.revoked.regard = true
}

// narrows tells whether a plan may take access away from somebody.
func (c *core) narrows(p nft.Plan) bool {
	trusted := c.sets[policy.SetTrusted].Len() > 0
	closing := func(set string, k ruleset.Key, v ruleset.Verdict) bool { return c.policy.Closes(set, k, v, trusted) }
	return p.Narrows(policy.Refuses, closing, c.linkMoved)
}

// linkMoved tells whether an element is about a link that has gone or has
// become a bridge's port, as the ends of veths do whenever a container starts:
// nothing arrives or leaves by that name any more. A bridge on which a
// container was arriving is opened by its removal. What only counts takes
// nothing away.
func (c *core) linkMoved(set string, k ruleset.Key) bool {
	switch {
	case set == policy.SetArriving, policy.OnlyCounts(set):
		return true
	case k.IIf == "":
		return false
	}
	for _, l := range c.links {
		if l.Name == k.IIf {
			return set == policy.SetForeignLinks && l.Master != 0
		}
	}
	return true
}

// expiryMargin is how much later than our clock the kernel may drop an
// element.
const expiryMargin = 100 * time.Millisecond

// nextExpiry gives the time at which the next permission runs out; zero for
// never. What is blocked is no permission.
func (c *core) nextExpiry() time.Time {
	if c.revoked.expiries == nil {
		c.revoked.expiries = map[string]expiry{}
	}
	var next time.Time
	now := c.now()
	for name, set := range c.sets {
		e := c.revoked.expiries[name]
		ended := !e.at.IsZero() && !now.Before(e.at) // expire has yet to hear of it, whatever the set has become
		if e.set != set && !ended {
			e = expiry{set: set}
			if at, ok := set.Prune(now.Add(-expiryMargin)).NextExpiry(); ok {
				e.at = at
			}
			c.revoked.expiries[name] = e
		}
		if name != policy.SetBlocked && !e.at.IsZero() && (next.IsZero() || e.at.Before(next)) {
			next = e.at
		}
	}
	return next
}

// expire notes that a permission has run out, so that its connections are cut
// too. The kernel has dropped the elements by itself.
func (c *core) expire() {
	for name, e := range c.revoked.expiries {
		if !e.at.IsZero() && c.now().After(e.at) {
			delete(c.revoked.expiries, name)
			c.revoked.look = c.revoked.look || name != policy.SetBlocked
		}
	}
	c.pruneSets()
}

// withdrawal is one look at live connections. It touches nothing of the core
// and may be made on another goroutine.
type withdrawal struct {
	kernel Kernel
	table  *ruleset.Table
	before *ruleset.Table
	links  []inventory.Link
	now    time.Time

	look    bool // at connections
	opened  bool // at sockets of the host too
	early   bool // at those to the host alone
	host    host
	recount bool // of the cuts, in the kernel
	cuts    cutFlows

	judge   *judge
	granted []nft.Cut
}

// withdrawal gives what is to be done about live connections; nil for nothing.
func (c *core) withdrawal() *withdrawal {
	r := &c.revoked
	if !c.cutting() || c.table == nil || c.down {
		*r = revocation{look: r.look, opened: r.opened, adopted: r.adopted, before: r.before, expiries: r.expiries}
		return nil
	}
	now := c.now()
	w := &withdrawal{
		kernel: c.kernel, table: c.table, before: r.before, links: c.links, now: now, early: c.early(),
		look: r.look, opened: r.opened, host: c.host, recount: r.active && !now.Before(r.recheck),
	}
	if w.early {
		// Before the first table there was no permission to lose.
		w.before, w.look, w.opened = r.early, r.look && r.early != nil, false
		r.early, r.look = c.table, false
	} else {
		w.look = r.look || r.early != nil
		r.early, r.look, r.opened = nil, false, false
	}
	if !w.look && !w.recount && !(r.regard && len(r.cuts) > 0) {
		return nil
	}
	w.cuts = maps.Clone(r.cuts)
	r.regard = false
	return w
}

// early tells whether nobody has said yet what runs, so that nothing of it is open.
// What the engine's first answer lets in must not be cut. Whoever loses a port of the
// host that was open all the same needs no engine.
func (c *core) early() bool { return c.engine.Engine == inventory.EngineUnknown && !c.revoked.adopted }

// errNoEngine says why not all that a change took away is cut.
var errNoEngine = errors.New("the engine has not said yet what runs")

// unjudged gives an error where a change took something away and not all connections
// can be judged yet.
func (c *core) unjudged() error {
	if c.revoked.look && c.cutting() && !c.down && c.early() {
		return errNoEngine
	}
	return nil
}

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
		for _, cut := range cuts {
			w.cuts[idOf(cut)] = cut.Expires.UnixNano()
		}
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
		return w.kernel.Flows(ctx, func(flows []nft.Flow) { put(listed, append(flows, turned(flows, known)...)) })
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
