package daemon

import (
	"context"
	"errors"
	"maps"
	"time"

	"github.com/nftfw/nftfw/nft"
	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/inventory"
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

	late lateAnswers

	active  bool      // the table in force has sets for cut flows
	cuts    cutFlows  // those in the sets; some may have gone
	unread  bool      // a table that stood at start has others
	recheck time.Time // when the kernel is asked which are left

	expiries map[string]expiry // of permissions, by set
}

// lateAnswers is when connections are looked at again because a port was published for
// UDP. Whoever asked docker-proxy there before its permission was known may be answered
// later, and go on from then, see judge.answers: the kernel keeps what goes to a
// container's address until the address is resolved, which it tries three times, a second
// apart (mcast_solicit and retrans_time_ms, arp(7)).
type lateAnswers struct {
	next time.Time // zero for never
	left int
}

const (
	lateStep  = time.Second + 50*time.Millisecond
	lateLooks = 4
)

// lookLate looks at connections in the way of lateAnswers.
func (c *core) lookLate() {
	late := &c.revoked.late
	c.revoked.look = true
	late.left--
	late.next = c.now().Add(lateStep)
	if late.left == 0 {
		late.next = time.Time{}
	}
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
func (c *core) keepCuts(ctx context.Context, p nft.Plan, want *ruleset.Table) (nft.Plan, error) {
	if !p.EmptiesCuts(want) {
		return p, nil
	}
	if c.revoked.unread {
		cuts, err := c.kernel.Cuts(ctx, want)
		if err != nil {
			return p, err
		}
		c.revoked.cuts, c.revoked.unread = cutFlows{}, false
		c.revoked.cuts.take(cuts)
	}
	return p.WithCuts(want, c.cutsAnew()), nil
}

// cutsAnew gives the cuts that are known, each with the time of a new one.
func (c *core) cutsAnew() []nft.Cut {
	cuts := make([]nft.Cut, 0, len(c.revoked.cuts))
	for id := range c.revoked.cuts {
		cuts = append(cuts, id.cut(c.now().Add(policy.CutHold(id.proto)).UnixNano()))
	}
	return cuts
}

// cutAgain puts back the cuts that somebody took out of their sets. Those that are
// there stay as they are.
func (c *core) cutAgain(ctx context.Context) error {
	if c.table == nil || len(c.revoked.cuts) == 0 {
		return nil
	}
	return c.kernel.Commit(ctx, nft.Plan{}.WithCuts(c.table, c.cutsAnew()))
}

// adoptCuts notes what a table that stands says of cut flows.
func (c *core) adoptCuts(have *nft.State) {
	c.revoked.adopted = have.Exists()
	c.revoked.active = policy.HasCuts(have.Table())
	c.revoked.unread = c.revoked.active
}

// noteCommit notes what a plan that is in force means for live connections.
func (c *core) noteCommit(p nft.Plan) {
	if c.narrows(p) {
		c.revoked.look = true
	}
	c.revoked.opened = c.revoked.opened || p.Closes()
	if p.Adds(policy.PublishesUDP) {
		c.revoked.late = lateAnswers{next: c.now().Add(lateStep), left: lateLooks}
	}
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
