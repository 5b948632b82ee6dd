package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/nftfw/nftfw/nft"
	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/inventory"
	"github.com/nftfw/nftfw/pkg/links"
	"github.com/nftfw/nftfw/pkg/ruleset"
	"github.com/nftfw/nftfw/pkg/store"
	"github.com/nftfw/nftfw/policy"
)

// core holds what is known and what is in force, and changes the two
// together. It is not safe for concurrent use: the daemon's loop owns one, and
// a one-shot operation makes its own under the store's lock.
type core struct {
	cfg    Config
	log    *slog.Logger
	kernel Kernel
	store  *store.Store
	now    func() time.Time
	host   host

	policy   loadedPolicy
	declared policy.Sets             // entries of the policy file
	runtime  map[string]*addrset.Set // entries added by command
	unsaved  bool                    // the file of the state directory holds others than runtime
	damage   error                   // why that file could not be read
	lists    map[listKey]*list       // entries of the sets' sources
	sets     policy.Sets             // all three together

	engine      inventory.Snapshot // containers and networks
	links       []inventory.Link
	sandboxDirs []string
	fresh       newBridges
	ask         func() uint64    // see dockerwatch.Watcher.Ask; nil without a watcher
	away        func() time.Time // since when the engine does not answer, zero if it does; nil without a watcher
	doubted     map[string]bool  // bridges: see doubt

	compiler policy.Compiler
	have     *nft.State     // what the kernel is known to hold; nil: ask it
	table    *ruleset.Table // what is meant to be in force; nil before the first commit
	diags    []policy.Diagnostic
	unseen   []policy.Diagnostic // see policy.Unseen; as of the last commit

	// onlySet restricts commits to the kernel sets that hold it, where it is not
	// empty: a one-shot change of a set leaves everything else as it finds it.
	onlySet string

	trial   *trial // nil: none was begun
	unnoted bool   // it is over, and the state directory does not know: see note

	revoked revocation

	alone      bool // for one command, without a daemon
	down       bool // nftfw down was called
	inForce    bool // the last commit went through
	lastChange time.Time
	// repaired is set when a commit found the table altered and put it
	// right, before the kernel's message about the culprit was read.
	repaired bool
}

// newCore makes a core that knows nothing yet. A kernel of nil is enough for
// operations that neither read nor change what is in force.
func newCore(cfg Config, st *store.Store, kernel Kernel) *core {
	return &core{cfg: cfg, log: cfg.Log, kernel: kernel, store: st, now: time.Now, host: thisHost, fresh: newBridges{}, doubted: map[string]bool{}}
}

// savedSnapshot is what the state directory keeps of the inventory.
type savedSnapshot struct {
	Snapshot    inventory.Snapshot `json:"snapshot"`
	SandboxDirs []string           `json:"sandbox_dirs,omitempty"`
}

func (s savedSnapshot) save(st *store.Store) error {
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return st.SaveSnapshot(text)
}

// loadSets reads the runtime entries. A *store.DamagedError leaves the core
// with the entries of the save before, or with none: the caller decides
// whether that will do.
func (c *core) loadSets() error {
	sets, err := c.store.LoadSets()
	if sets == nil {
		sets = map[string]*addrset.Set{}
	}
	c.runtime, c.unsaved, c.damage = sets, err != nil, err
	return err
}

// recoverSets takes the runtime entries from the table that stands, after the
// file that held them was found damaged: what is in force stays so. Entries of
// the save before stay where the table has them, with their comments; others
// come back merged where they overlap.
func (c *core) recoverSets(t *ruleset.Table) {
	if t == nil {
		return
	}
	standing := map[string]*addrset.Segments{}
	for _, s := range t.Sets {
		if s.HoldsRanges() {
			standing[s.Name] = s.Ranges
		}
	}
	for name := range c.declared {
		var inKernel []addrset.Segment
		for kernelSet, pieces := range standing {
			if policy.Holds(name, kernelSet) {
				inKernel = append(inKernel, pieces.All()...)
			}
		}
		former := c.runtime[name]
		delete(c.runtime, name)
		if found := recovered(inKernel, c.join(name, c.now()), former); found.Len() > 0 {
			c.runtime[name] = found
		}
	}
	c.setPolicy(c.policy)
}

// recovered gives the runtime entries of a set of which the kernel holds
// inKernel, those of former among them where they fit. declared is what the set
// has from elsewhere.
func recovered(inKernel []addrset.Segment, declared, former *addrset.Set) *addrset.Set {
	ranges := make([]addrset.Range, len(inKernel))
	for i, g := range inKernel {
		ranges[i] = addrset.Range{From: g.From, To: g.To}
	}
	var found []addrset.Entry
	for _, e := range former.Entries() {
		if addrset.Covers(ranges, e.Range) {
			found = append(found, e)
		}
	}
	known := declared.Add(found...)
	for i, g := range inKernel {
		written := known.Segments4()
		if !g.From.Is4() {
			written = known.Segments6()
		}
		if w, ok := written.Lookup(g.From); !ok || w.To.Less(g.To) {
			found = append(found, addrset.Entry{Range: ranges[i], Expires: g.Expires, Source: addrset.Runtime})
		}
	}
	return addrset.New(found...)
}

// saveFound saves what was found in place of damaged sets: it was acknowledged
// once, and must outlive the kernel's table. With nothing found the damaged
// file stays as it is, and so does one that a newer version will read.
func (c *core) saveFound(damage error) {
	var damaged *store.DamagedError
	if errors.As(damage, &damaged) && damaged.Newer() {
		return
	}
	found := 0
	for _, s := range c.runtime {
		found += s.Len()
	}
	if found == 0 {
		return
	}
	if err := c.store.SaveSets(c.runtime); err != nil {
		c.log.Error("what was found of the sets not saved", "err", err)
		return
	}
	c.unsaved = false
}

// setPolicy makes p the policy and joins its sets with the runtime entries and
// the lists of their sources. It changes nothing in the kernel.
func (c *core) setPolicy(p loadedPolicy) {
	c.policy = p
	c.declared = policy.Sets{}
	c.sets = policy.Sets{}
	now := c.now()
	for name, s := range p.Sets {
		c.declared[name] = addrset.New(s.Entries...)
		c.sets[name] = c.join(name, now)
	}
}

// warnPolicy logs what the policy file asks for in vain.
func (c *core) warnPolicy() {
	if c.policy.err != nil {
		c.log.Error("policy file not in force", "source", c.policy.source, "err", c.policy.err)
	}
	for _, w := range c.policy.warnings {
		c.log.Warn("policy", "at", w.Pos.String(), "warning", w.Message)
	}
	for name, s := range c.runtime {
		if _, ok := c.policy.Sets[name]; !ok && s.Len() > 0 {
			c.log.Warn("saved entries of a set that the policy does not declare are not in force", "set", name, "entries", s.Len())
		}
	}
}

// inventory is the engine's snapshot with the host's links.
func (c *core) inventory() inventory.Snapshot {
	inv := c.engine
	inv.Links = c.links
	inv.NewBridges = c.fresh.names()
	inv.Containers = c.certain(inv.Containers)
	return inv
}

// takeLinks makes list the host's links. Of bridges that were not there before
// the engine is asked.
func (c *core) takeLinks(list []inventory.Link) {
	if c.ask != nil {
		c.fresh.take(c.links, list, c.engine.Networks, c.now(), c.ask)
	}
	if c.away != nil {
		if since := c.away(); !since.IsZero() && c.now().Sub(since) > awayGrace {
			c.doubt(newPorts(c.links, list))
		}
	}
	c.links = list
}

// takeEngine makes snap what the engine runs.
func (c *core) takeEngine(snap inventory.Snapshot) {
	c.setEngine(snap)
	c.fresh.answered(snap.Asked)
	if c.away == nil || c.away().IsZero() { // else it is what the engine said before it went away
		clear(c.doubted)
	}
}

// compile makes the table for what is known now.
func (c *core) compile() *ruleset.Table {
	t, diags := c.compiler.Compile(c.policy.Policy, c.sets, c.inventory())
	c.diags = diags
	if c.cfg.Table != t.Name {
		named := *t
		named.Name = c.cfg.Table
		t = &named
	}
	return c.withCuts(t)
}

// reconcile makes the kernel equal to what is known now.
func (c *core) reconcile(ctx context.Context) error {
	if c.down {
		return nil
	}
	before := c.diags
	want := c.compile()
	c.report(c.diags, before)
	return c.commit(ctx, want)
}

// commitAttempts bounds how often a commit is made again because the kernel's
// state had moved under it.
const commitAttempts = 5

// commit makes the kernel hold want, in one transaction but for what only counts
// of very much: see put. When it fails nothing else was changed, and what is in
// force stays known.
func (c *core) commit(ctx context.Context, want *ruleset.Table) error {
	var err error
	for range commitAttempts {
		if c.have == nil {
			if c.have, err = c.kernel.Survey(ctx, c.cfg.Table); err != nil {
				c.have, c.inForce = nil, false
				return err
			}
		}
		plan := nft.Diff(c.have, want, c.now())
		if c.onlySet != "" {
			if plan.Replaces() || plan.Closes() {
				err = errNotAlone
				break
			}
			plan = plan.OnlySets(func(set string) bool { return policy.Holds(c.onlySet, set) }, policy.ChainsFor(c.onlySet)...)
		}
		if plan.Empty() {
			c.committed(want, false)
			return nil
		}
		var counts bool
		if plan, err = c.keepCuts(ctx, plan, want); err != nil {
			break
		}
		if counts, err = c.put(ctx, plan); err == nil {
			c.committed(want, true)
			if !counts {
				c.have = nil // the kernel is asked what of it is there
			}
			return nil
		}
		// Whatever went wrong, the kernel is asked before it is believed again.
		c.have = nil
		var failed *nft.CommitError
		if !errors.As(err, &failed) || !failed.Stale() {
			break
		}
		c.repaired = true
	}
	c.inForce = false
	return err
}

// errNotAlone refuses to change a set alone where the whole table would have to be
// made anew.
var errNotAlone = errors.New("the table has what nftfw did not put there, or is another version's: no set of it can be changed alone, `nftfw apply` puts it right")

// manyThings is from which size on what only counts is put in force after all
// else, which it would hold up by half as long again.
const manyThings = 1000

// put puts a plan in force. What only counts may be refused, of which counts tells:
// it decides about nothing, and what is in force by then is what was asked for.
func (c *core) put(ctx context.Context, plan nft.Plan) (counts bool, err error) {
	var counting nft.Plan
	if plan.Size() > manyThings {
		plan, counting = plan.Split(policy.OnlyCounts)
	}
	if err := c.kernel.Commit(ctx, plan); err != nil {
		return false, err
	}
	c.noteCommit(plan)
	if counting.Empty() {
		return true, nil
	}
	err = c.kernel.Commit(ctx, counting)
	var failed *nft.CommitError
	if err == nil || errors.As(err, &failed) && failed.Stale() {
		return err == nil, err
	}
	c.log.Warn("in force, but not all of what counts refused connections is, until the next change", "err", err)
	return false, nil
}

func (c *core) committed(want *ruleset.Table, changed bool) {
	c.have, c.table, c.inForce = nft.StateOf(want), want, want != nil
	if changed {
		c.lastChange = c.now()
	}
	before := c.unseen
	c.unseen = nil
	if want != nil {
		c.unseen, _ = policy.Unseen(c.policy.Policy, c.sets, c.inventory(), bridged())
	}
	c.report(c.unseen, before)
}

// check compares the kernel with what is meant to be in force and puts right
// what differs. It reports whether anything did. What large sets hold is not
// read but written anew, where elements says that somebody may have changed it.
func (c *core) check(ctx context.Context, elements bool) (differed bool, err error) {
	if c.down || c.table == nil {
		return false, nil
	}
	have, err := c.kernel.Survey(ctx, c.cfg.Table)
	if err != nil {
		c.have = nil // what was believed may be wrong
		return false, err
	}
	differed, c.repaired = c.repaired, false
	if plan := nft.Diff(have, c.table, c.now()); !plan.Empty() && (elements || !plan.Refreshes()) {
		c.have, differed = have, true
		err = c.commit(ctx, c.table)
	}
	if err == nil && elements {
		err = c.cutAgain(ctx) // what their sets hold is in no comparison
	}
	return differed, err
}

// adopt takes over a table that stands: its containers keep what they have
// until the engine's first complete answer. Without a table the saved
// networks are believed, and no container.
func (c *core) adopt(ctx context.Context) error {
	look := c.kernel.Survey
	if c.unsaved {
		look = c.kernel.Observe // the table knows what the state directory does not
	}
	have, err := look(ctx, c.cfg.Table)
	if err != nil {
		return err
	}
	c.have = have
	c.adoptCuts(have)
	saved := c.loadSnapshot()
	c.sandboxDirs = saved.SandboxDirs
	if c.cfg.NoDocker {
		c.setEngine(inventory.Snapshot{Engine: inventory.EngineAbsent})
		return nil
	}
	owners, foreign := map[string]bool{}, map[string]bool{}
	if have.Exists() {
		owners, foreign = owned(have.Table())
	}
	engine := saved.Snapshot
	engine.Engine = inventory.EngineUnknown
	engine.Containers = slices.DeleteFunc(slices.Clone(engine.Containers), func(container inventory.Container) bool {
		return !owners[policy.ElementOwner(container.ID)]
	})
	engine.ForeignBridges = slices.Sorted(maps.Keys(foreign))
	engine.Swarm = adoptSwarm(engine.Swarm, have, owners)
	c.setEngine(engine)
	return nil
}

// owned lists the containers that have an element in the table, and the links
// that it holds to be foreign.
func owned(t *ruleset.Table) (owners, foreign map[string]bool) {
	owners, foreign = map[string]bool{}, map[string]bool{}
	for _, s := range t.Sets {
		for key, e := range s.Elements {
			switch {
			case s.Verdicts && e.Comment != "":
				owners[e.Comment] = true
			case s.Name == policy.SetForeignLinks:
				foreign[key.IIf] = true
			}
		}
	}
	return owners, foreign
}

// believe takes the table that stands for the one that the policy makes now,
// so that a one-shot operation can change a part of it or compare with it.
func (c *core) believe() {
	if !c.have.Exists() {
		return
	}
	if c.policy.Mode == policy.Enforce && observes(c.have.Table()) {
		c.setPolicy(c.policy.observe(errObserving))
	}
	c.table = c.compile()
}

// errObserving says why a policy is not in force though its table stands.
var errObserving = errors.New("the table that stands only observes, as after a first start that would have cut an SSH connection; `nftfw apply` enforces")

// loadSnapshot reads the inventory of the daemon before, if there is any. It always
// names folders in which to look for sandboxes.
func (c *core) loadSnapshot() savedSnapshot {
	var saved savedSnapshot
	text, err := c.store.LoadSnapshot()
	if err == nil {
		err = json.Unmarshal(text, &saved)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.log.Warn("saved inventory unreadable, beginning without it", "err", err)
		saved = savedSnapshot{}
	}
	if len(saved.SandboxDirs) == 0 {
		// dockerwatch speaks up only for an engine with another folder.
		saved.SandboxDirs = []string{links.DefaultSandboxDir}
	}
	return saved
}

// applyPolicy puts p in force and keeps it as the last good one. When either
// fails, or the guard refuses and force is not set, what was in force before
// stays so.
func (c *core) applyPolicy(ctx context.Context, p loadedPolicy, force bool) error {
	undo := c.takePolicy(p)
	if !force {
		if err := c.guard(c.compile()); err != nil {
			undo()
			return err
		}
	}
	forget, err := c.keepPolicy(p)
	if err != nil {
		undo()
		return err
	}
	if err := c.reconcile(ctx); err != nil {
		undo()
		return errors.Join(err, forget(), c.settle(ctx))
	}
	c.revoked.look = true // under another policy elements that are only added may narrow too
	c.warnPolicy()
	return nil
}

// takePolicy makes p the policy that is to be enforced. It gives the way back.
func (c *core) takePolicy(p loadedPolicy) (undo func()) {
	old, oldDown, diags, unseen := c.policy, c.down, c.diags, c.unseen
	c.setPolicy(p)
	c.down = false
	return func() {
		c.setPolicy(old)
		c.down, c.diags, c.unseen = oldDown, diags, unseen
	}
}

// keepPolicy writes down that p is to be in force. It gives the way back.
func (c *core) keepPolicy(p loadedPolicy) (forget func() error, err error) {
	text, name, err := c.store.LoadPolicy()
	missing, wasDown := err != nil, c.store.Down()
	forget = func() error {
		var err error
		if missing {
			err = c.store.RemovePolicy()
		} else {
			err = c.store.SavePolicy(name, text)
		}
		if wasDown {
			err = errors.Join(err, c.store.SetDown(true))
		}
		return err
	}
	if err := c.savePolicy(p); err != nil {
		return nil, err
	}
	if err := c.store.SetDown(false); err != nil {
		return nil, errors.Join(fmt.Errorf("note that enforcement is on: %w", err), forget())
	}
	return forget, nil
}

// unsettled tells whether it is not known that what should be in force is.
func (c *core) unsettled() bool { return c.table != nil && !c.down && !c.inForce }

// savePolicy keeps p as the last good policy. One that only observes leaves
// none behind, so that the next start is again a first one.
func (c *core) savePolicy(p loadedPolicy) error {
	save := func() error { return c.store.SavePolicy(p.path, p.text) }
	if p.observing {
		save = c.store.RemovePolicy
	}
	if err := save(); err != nil {
		return fmt.Errorf("save policy: %w", err)
	}
	return nil
}

// settle finds out, after a refused commit, whether the table that was in
// force still is: a refused commit changes nothing.
func (c *core) settle(ctx context.Context) error {
	if c.table == nil || c.down {
		return nil
	}
	return c.commit(ctx, c.table)
}

// report logs the diagnostics that were not there before.
func (c *core) report(diags, before []policy.Diagnostic) {
	known := make(map[policy.Diagnostic]bool, len(before))
	for _, d := range before {
		known[d] = true
	}
	for _, d := range diags {
		if known[d] {
			continue
		}
		level := slog.LevelWarn
		if d.Severity == policy.SeverityError {
			level = slog.LevelError
		}
		c.log.Log(context.Background(), level, "not as asked", "container", d.Container, "label", d.Label, "port", d.Port, "reason", d.Message)
	}
}
