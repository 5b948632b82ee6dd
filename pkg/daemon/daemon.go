package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	sdnotify "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"

	"github.com/nftfw/nftfw/dockerwatch"
	"github.com/nftfw/nftfw/nft"
	"github.com/nftfw/nftfw/pkg/api"
	"github.com/nftfw/nftfw/pkg/inventory"
	"github.com/nftfw/nftfw/pkg/links"
	"github.com/nftfw/nftfw/pkg/store"
	"github.com/nftfw/nftfw/policy"
)

// Daemon keeps a policy in force beside a running engine. Make one with New,
// and call Run once.
type Daemon struct {
	core     *core
	log      *slog.Logger
	watcher  *dockerwatch.Watcher // nil without an engine
	links    *links.Watcher
	listener net.Listener
	close    []func()

	requests  chan func(context.Context)
	snapshots slot[inventory.Snapshot]
	linkLists slot[[]inventory.Link]
	sandboxes slot[[]string]
	saves     slot[savedSnapshot]
	foreign   chan nft.Event
	following following
	listSaves *listSaves

	restores   int
	restored   *api.Restore
	unrestored *nft.Event // altered the table, which could not be put right yet
	retry      *time.Timer
	backoff    time.Duration
	clock      time.Time // at the last look at it, see checkClock
	putBackAt  time.Time // not before this moment, after an attempt that failed

	withdrawals withdrawals

	watching  watching
	packetLog PacketLog

	metrics   *metrics
	listenAt  slot[string] // address of the metrics
	listening string       // what was last put there
	told      standing     // what was last logged of it
	oldest    atomic.Int64 // of the engine's events that are not enforced yet: Unix time in ns, 0 is none
}

// Waiting times of the loop.
const (
	lockWait   = 10 * time.Second // for a one-shot command that holds the state
	lockQuiet  = time.Second      // before that is said
	retryFirst = 50 * time.Millisecond
	retryMost  = time.Second // what is to be in force may not be
	pruneEvery = time.Minute

	putBackAgain = time.Second      // after a policy could not be put back
	noteAgain    = 10 * time.Second // after that could not be written down
)

// New takes the state directory, and puts the policy in force before it
// returns: from then on the host is closed, whatever becomes of Docker. The
// error says what stands in the way and how to clear it.
func New(ctx context.Context, cfg Config) (*Daemon, error) {
	begin()
	d := &Daemon{
		log: cfg.Log, requests: make(chan func(context.Context)),
		snapshots: newSlot[inventory.Snapshot](), linkLists: newSlot[[]inventory.Link](),
		sandboxes: newSlot[[]string](), saves: newSlot[savedSnapshot](),
		foreign: make(chan nft.Event, 64), links: links.New(cfg.Log), packetLog: listenNFLOG,
		listenAt:  newSlot[string](),
		following: following{each: map[listKey]*followed{}, updates: make(chan sourceUpdate)}, listSaves: newListSaves(),
	}
	d.metrics = newMetrics(d)
	if err := d.open(ctx, cfg); err != nil {
		d.shut()
		return nil, err
	}
	return d, nil
}

func (d *Daemon) open(ctx context.Context, cfg Config) error {
	st, err := store.Open(cfg.StateDir)
	if err != nil {
		return asRoot(err)
	}
	unlock, err := lockFor(ctx, st, lockQuiet)
	if errors.Is(err, store.ErrLocked) {
		cfg.Log.Warn("waiting for another nftfw, which holds the state directory", "dir", cfg.StateDir, "for", lockWait)
		unlock, err = lockFor(ctx, st, lockWait)
	}
	if err != nil {
		return asRoot(err)
	}
	d.close = append(d.close, unlock)
	kernel, err := nft.Open()
	if err != nil {
		return err
	}
	d.close = append(d.close, func() { _ = kernel.Close() })
	d.core = newCore(cfg, st, kernel)
	if err := d.core.load(ctx); err != nil {
		return err
	}
	if !cfg.NoDocker {
		if err := d.watchEngine(ctx, cfg); err != nil {
			return err
		}
	}
	if err := d.core.start(ctx); err != nil {
		return err
	}
	d.listener, err = listen(cfg.Socket)
	if err != nil {
		return err
	}
	d.close = append(d.close, func() { _ = d.listener.Close() })
	return nil
}

// lockFor locks the state directory, and waits for so long at the most.
func lockFor(ctx context.Context, st *store.Store, wait time.Duration) (unlock func(), err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, wait, fmt.Errorf("for more than %s", wait))
	defer cancel()
	return st.Lock(ctx)
}

// watchEngine asks the engine what runs, while the policy is put in force: Run
// takes the answers. The host's links have been read, so that the engine's first
// list is the younger of the two and has the network of each of its bridges.
func (d *Daemon) watchEngine(ctx context.Context, cfg Config) (err error) {
	d.watcher, err = dockerwatch.New(dockerwatch.Options{Host: cfg.DockerHost, Log: cfg.Log, SandboxDirs: d.sandboxes.put})
	if err != nil {
		return err
	}
	d.core.ask = d.watcher.Ask
	d.core.away = func() time.Time { return d.watcher.Status().AwaySince }
	ctx, cancel := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() { d.watcher.Run(ctx, d.putSnapshot) })
	d.close = append(d.close, func() {
		cancel()
		watching.Wait()
	})
	return nil
}

// load reads what is known without asking anybody: the state directory, the
// policy, the table that stands and the host's links. Damaged state is logged and
// survived: without the daemon the host would be open.
func (c *core) load(ctx context.Context) error {
	damage := c.loadSets()
	if err := c.loadLists(); err != nil {
		c.log.Error("saved lists damaged, their sources are asked again", "err", err)
	}
	c.setPolicy(c.beginPolicy())
	if err := c.adopt(ctx); err != nil {
		return err
	}
	if damage != nil {
		c.log.Error("saved sets damaged", "err", damage)
		c.recoverSets(c.have.Table())
		c.saveFound(damage)
	}
	var err error
	if c.links, err = links.Read(c.sandboxDirs); err != nil {
		return err
	}
	return nil
}

// start enforces for the first time what load has read. A full disk is logged and
// survived.
func (c *core) start(ctx context.Context) error {
	c.spareSessions()
	c.warnPolicy()
	if err := c.reconcile(ctx); err != nil {
		return err
	}
	// A permission may have run out while nobody was there to cut its connections, or
	// whoever was about to has ended.
	c.revoked.look = true
	err := c.store.SetDown(false)
	if c.policy.err == nil {
		err = errors.Join(err, c.savePolicy(c.policy))
	}
	if err != nil {
		c.log.Error("in force, but not noted in the state directory", "err", err)
	}
	return nil
}

func (d *Daemon) shut() {
	for i := len(d.close) - 1; i >= 0; i-- {
		d.close[i]()
	}
}

// Run serves until ctx is done, and leaves the rules in force.
func (d *Daemon) Run(ctx context.Context) error {
	defer d.shut()
	group, ctx := errgroup.WithContext(ctx)
	c := d.core
	d.show()
	d.links.SandboxDirs(c.sandboxDirs)
	group.Go(func() error { return d.loop(ctx) })
	group.Go(func() error { return d.serve(ctx) })
	group.Go(func() error {
		return quiet(ctx, d.links.Run(ctx, d.linkLists.put))
	})
	group.Go(func() error {
		return quiet(ctx, c.kernel.Monitor(ctx, c.cfg.Table, func(e nft.Event) {
			select {
			case d.foreign <- e:
			case <-ctx.Done():
			}
		}))
	})
	group.Go(func() error { return d.saveSnapshots(ctx) })
	group.Go(func() error { return d.followDrops(ctx) })
	group.Go(func() error { return d.serveMetrics(ctx) })
	group.Go(func() error { return d.saveLists(ctx) })
	err := group.Wait()
	select {
	case saved := <-d.saves: // the newest, which a restart will want to know
		d.saveSnapshot(saved)
	default:
	}
	d.saveWaitingLists()
	return err
}

// quiet drops the error of something that ended because it was told to.
func quiet(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// loop is the only goroutine that touches the core while Run runs.
func (d *Daemon) loop(ctx context.Context) error {
	c := d.core
	d.retry = time.NewTimer(time.Hour)
	d.retry.Stop()
	d.clock = time.Now()
	prune := time.NewTicker(pruneEvery)
	defer prune.Stop()
	pace := newPace()
	defer pace.settled.Stop()
	watchdog := d.notifyReady()
	defer watchdog.Stop()
	defer d.withdrawals.running.Wait()
	defer d.following.group.Wait()
	for {
		d.follow(ctx)
		d.show()
		d.tell()
		d.withdraw(ctx)
		select {
		case <-ctx.Done():
			_, _ = sdnotify.SdNotify(false, sdnotify.SdNotifyStopping)
			return nil
		case snap := <-d.snapshots:
			pace.busy()
			d.takeSnapshot(ctx, snap)
		case list := <-d.linkLists:
			pace.busy()
			c.takeLinks(list)
			d.reconcile(ctx, "links")
		case dirs := <-d.sandboxes:
			d.takeSandboxes(ctx, dirs)
			d.reconcile(ctx, "sandboxes")
		case u := <-d.following.updates:
			d.takeUpdate(ctx, u)
		case e := <-d.foreign: // the first finds what was altered before anybody listened
			pace.busy()
			d.restore(ctx, e)
		case request := <-d.requests:
			request(ctx)
			if c.unsettled() {
				d.reconcile(ctx, "failed request")
			}
		case <-d.retry.C:
			d.reconcile(ctx, "retry")
		case <-d.trialEnds():
			d.putBack(ctx)
		case <-d.bridgesDue():
			c.fresh.ask(c.now(), c.ask)
		case <-d.permissionEnds():
			c.expire()
		case <-d.answersDue():
			c.lookLate()
		case <-d.withdrawalDue():
		case <-prune.C:
			c.pruneSets()
			d.checkClock(ctx)
		case <-pace.settled.C:
			pace.rest()
		case <-watchdog.C:
			_, _ = sdnotify.SdNotify(false, sdnotify.SdNotifyWatchdog)
		}
	}
}

// takeSnapshot puts in force what the engine runs.
func (d *Daemon) takeSnapshot(ctx context.Context, snap inventory.Snapshot) {
	c := d.core
	select {
	case dirs := <-d.sandboxes:
		d.takeSandboxes(ctx, dirs) // learned before what runs
	default:
	}
	c.takeEngine(snap)
	d.reconcile(ctx, "containers")
	d.timeEvent()
	d.saves.put(savedSnapshot{Snapshot: c.engine, SandboxDirs: c.sandboxDirs})
}

// clockStep is by how much the wall clock is set, or the host suspended, before the
// kernel's timeouts are compared.
const clockStep = time.Second

// checkClock finds out whether the wall clock was set since the last look.
func (d *Daemon) checkClock(ctx context.Context) {
	now := time.Now()
	step := now.Round(0).Sub(d.clock.Round(0)) - now.Sub(d.clock)
	d.clock = now
	if step.Abs() >= clockStep {
		d.clockSet(ctx, step)
	}
}

// clockSet compares the kernel's table with what is meant after the wall clock was
// set: the daemon's expiries are moments of it, and the kernel counts what is left of
// them by a clock of its own, which also stands still while the host is suspended.
func (d *Daemon) clockSet(ctx context.Context, step time.Duration) {
	d.log.Info("the clock was set, timeouts are compared with the kernel's", "by", step.Round(time.Second))
	d.core.have = nil
	d.reconcile(ctx, "clock")
}

// show gives what packets are named by to those who name them.
func (d *Daemon) show() {
	p := d.core.policy.Policy
	d.watching.show(scene{policy: p, inv: d.core.inventory(), table: d.core.table})
	if p.Metrics.Listen != d.listening {
		d.listening = p.Metrics.Listen
		d.listenAt.put(d.listening)
	}
}

// standing is what the log says of the policy in force.
type standing struct {
	policy *policy.Policy
	down   bool
	until  time.Time // when it is put back unless it is confirmed; zero for never
}

// tell logs which policy is in force where that is news.
func (d *Daemon) tell() {
	c := d.core
	now := standing{policy: c.policy.Policy, down: c.down}
	if c.trial.open() {
		now.until = c.trial.Deadline
	}
	if now == d.told {
		return
	}
	d.told = now
	if now.down {
		d.log.Warn("nothing is enforced, as nftfw down asked for, until nftfw apply or a restart")
		return
	}
	about := []any{"mode", string(c.policy.Mode), "source", c.policy.source, "path", c.policy.path}
	if hash := c.policy.hash(); hash != "" {
		about = append(about, "sha256", hash[:12])
	}
	if !now.until.IsZero() {
		about = append(about, "unconfirmed_until", now.until.UTC().Format(time.RFC3339))
	}
	d.log.Info("policy in force", about...)
}

// putSnapshot hands over what runs. It is called from one goroutine.
func (d *Daemon) putSnapshot(s inventory.Snapshot) {
	if !s.Since.IsZero() {
		d.oldest.CompareAndSwap(0, s.Since.UnixNano())
	}
	d.snapshots.put(s)
}

// timeEvent notes how long the oldest of the engine's events took until it was
// in force.
func (d *Daemon) timeEvent() {
	if !d.core.inForce {
		return // it takes longer
	}
	if at := d.oldest.Swap(0); at != 0 {
		d.metrics.enforced.Observe(time.Since(time.Unix(0, at)).Seconds())
	}
}

// notifyReady tells the service manager that the rules are in force, and
// gives the ticker at which it wants to hear of the loop. See sd_notify(3) and
// sd_watchdog_enabled(3); half the interval is what the latter advises.
func (d *Daemon) notifyReady() *time.Ticker {
	if _, err := sdnotify.SdNotify(false, sdnotify.SdNotifyReady); err != nil {
		d.log.Warn("service manager not told", "err", err)
	}
	interval, err := sdnotify.SdWatchdogEnabled(false)
	if err != nil || interval == 0 {
		ticker := time.NewTicker(time.Hour)
		ticker.Stop()
		return ticker
	}
	return time.NewTicker(interval / 2)
}

// reconcile commits what an input changed, and tries again by and by when
// that fails.
func (d *Daemon) reconcile(ctx context.Context, reason string) {
	changed := d.core.lastChange
	err := d.core.reconcile(ctx)
	if err == nil {
		d.retry.Stop()
		d.backoff = 0
		if d.unrestored != nil {
			d.count(*d.unrestored)
		}
		d.announce()
		if d.core.lastChange != changed {
			d.log.Debug("committed", "reason", reason)
		}
		return
	}
	d.again(reason, err)
}

func (d *Daemon) again(reason string, err error) {
	d.backoff = min(max(2*d.backoff, retryFirst), retryMost)
	d.retry.Reset(d.backoff)
	d.log.Error("commit failed, trying again", "reason", reason, "in", d.backoff, "err", err)
}

// sandboxWait is how long the loop waits for a look at the links, which takes
// milliseconds. What it shows later comes by itself.
const sandboxWait = time.Second

// takeSandboxes has the host's links looked at again, with the folders in which
// the engine keeps the namespaces that they lead to.
func (d *Daemon) takeSandboxes(ctx context.Context, dirs []string) {
	d.core.sandboxDirs = dirs
	late := time.NewTimer(sandboxWait)
	defer late.Stop()
	select {
	case <-d.links.SandboxDirs(dirs):
	case <-late.C:
	case <-ctx.Done():
	}
	select {
	case list := <-d.linkLists:
		d.core.takeLinks(list)
	default:
	}
}

// trialEnds gives the moment at which an unconfirmed policy is put back, or that is
// noted; nil when there is neither to do.
func (d *Daemon) trialEnds() <-chan time.Time {
	wait := time.Until(d.putBackAt)
	switch c := d.core; {
	case c.trial.open():
		wait = max(wait, time.Until(c.trial.Deadline))
	case !c.unnoted:
		return nil
	}
	return time.After(wait)
}

// bridgesDue gives the moment at which the engine is to be asked what bridges are
// that appeared lately; nil when there are none.
func (d *Daemon) bridgesDue() <-chan time.Time {
	at := d.core.fresh.due()
	if at.IsZero() {
		return nil
	}
	return time.After(time.Until(at))
}

func (d *Daemon) putBack(ctx context.Context) {
	end := d.core.note
	if d.core.trial.open() {
		end = func() error { return d.core.putBack(ctx) }
	}
	err := end()
	switch {
	case err == nil:
	case d.core.trial.open():
		d.putBackAt = time.Now().Add(putBackAgain)
		d.log.Error("former policy not put back, trying again", "in", putBackAgain, "err", err)
	default:
		d.putBackAt = time.Now().Add(noteAgain)
		d.log.Error("former policy put back, but not noted in the state directory, trying again", "in", noteAgain, "err", err)
	}
}

// restore puts the table right after somebody else changed it.
func (d *Daemon) restore(ctx context.Context, e nft.Event) {
	differed, err := d.core.check(ctx, e.Elements)
	if err != nil {
		if differed || e.TableGone {
			d.unrestored = &e
		}
		d.again("restore", err)
		return
	}
	if differed {
		d.count(e)
	}
}

// count notes that the table was put right after e.
func (d *Daemon) count(e nft.Event) {
	d.unrestored = nil
	d.restores++
	d.restored = &api.Restore{At: time.Now().UTC(), Process: e.Process, PID: e.PID}
	d.log.Warn("table altered by another process, put right", "process", e.Process, "pid", e.PID, "gone", e.TableGone)
}

// saveSnapshots writes the newest inventory to the state directory, behind
// the loop's back: it matters only after a restart.
func (d *Daemon) saveSnapshots(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case saved := <-d.saves:
			d.saveSnapshot(saved)
		}
	}
}

func (d *Daemon) saveSnapshot(saved savedSnapshot) {
	if err := saved.save(d.core.store); err != nil {
		d.log.Warn("inventory not saved", "err", err)
	}
}

// errStopping answers requests that come while the daemon stops.
var errStopping = errors.New("daemon is stopping")

// do runs f on the loop and waits for it. A request that was taken is
// finished, also when the caller has gone or the daemon is told to stop.
func (d *Daemon) do(ctx context.Context, f func(context.Context)) error {
	done := make(chan struct{})
	request := func(ctx context.Context) {
		defer close(done)
		f(context.WithoutCancel(ctx))
	}
	select {
	case d.requests <- request:
		<-done
		return nil
	case <-ctx.Done():
		return errStopping
	}
}

// Reload reads the policy file again. A bad file changes nothing.
func (d *Daemon) Reload(ctx context.Context) (api.Change, error) {
	var (
		out api.Change
		err error
	)
	if stopped := d.do(ctx, func(ctx context.Context) { out, err = d.core.reload(ctx, false) }); stopped != nil {
		return out, stopped
	}
	return out, err
}
