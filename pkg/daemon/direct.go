package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/nftfw/nftfw/dockerwatch"
	"github.com/nftfw/nftfw/nft"
	"github.com/nftfw/nftfw/pkg/api"
	"github.com/nftfw/nftfw/pkg/inventory"
	"github.com/nftfw/nftfw/pkg/links"
	"github.com/nftfw/nftfw/pkg/store"
	"github.com/nftfw/nftfw/policy"
)

// ErrBusy is in the chain of the error of a one-shot change that found the
// state in use: a daemon is starting, or another command is under way.
var ErrBusy = errors.New("state in use")

// Direct does for one command what a daemon does, where none runs. Its
// changes take the state's lock; its answers do not.
type Direct struct {
	Config
	// LockWait is how long a change waits for the lock.
	LockWait time.Duration
	// Warn is called with what the caller should know besides the result.
	Warn func(string)
}

// engineWait bounds how long a one-shot command waits for the engine.
const engineWait = 5 * time.Second

// opened is a core with what has to be given back.
type opened struct {
	*core
	close []func()
}

func (o *opened) shut() {
	for i := len(o.close) - 1; i >= 0; i-- {
		o.close[i]()
	}
}

// access is what an operation needs.
type access struct {
	lock   bool // to itself: it writes to the state directory
	kernel bool
	sets   bool // the saved sets, undamaged: it shows them, writes them, or a table from them
}

// survivable tells whether damaged sets have an older generation in their
// place. A file that merely could not be read may be whole: the generation
// before it would take back what was acknowledged.
func survivable(err error) bool {
	var damaged *store.DamagedError
	return errors.As(err, &damaged) && damaged.Fallback != "" && !damaged.Unread()
}

// open makes a core with what is needed.
func (x Direct) open(ctx context.Context, need access) (*opened, error) {
	st, err := store.Open(x.StateDir)
	if err != nil {
		return nil, asRoot(err)
	}
	o := &opened{core: newCore(x.Config, st, nil)}
	o.alone = true
	if need.lock {
		unlock, err := lockFor(ctx, st, x.LockWait)
		if errors.Is(err, store.ErrLocked) {
			return nil, fmt.Errorf("%w: %w", ErrBusy, err)
		}
		if err != nil {
			return nil, asRoot(err)
		}
		o.close = append(o.close, unlock)
	}
	if need.kernel {
		k, err := nft.Open()
		if err != nil {
			o.shut()
			return nil, err
		}
		o.close = append(o.close, func() { _ = k.Close() })
		o.kernel = k
	}
	if err := o.loadLists(); err != nil {
		x.Warn(err.Error())
	}
	switch err := o.loadSets(); {
	case err == nil:
	case need.sets && !survivable(err):
		o.shut()
		return nil, err
	default:
		x.Warn(err.Error())
	}
	return o, nil
}

// asRoot adds to err what helps where rights are lacking.
func asRoot(err error) error {
	if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
		return fmt.Errorf("%w: run as root", err)
	}
	return err
}

// with runs f on a core that is open for as long as f runs.
func with[Out any](ctx context.Context, x Direct, need access, f func(*core) (Out, error)) (Out, error) {
	o, err := x.open(ctx, need)
	if err != nil {
		var none Out
		return none, err
	}
	defer o.shut()
	out, err := f(o.core)
	if err == nil && need.lock && need.kernel {
		warn(&out, o.withdrawNow(ctx))
	}
	return out, err
}

// Status says how things stand, from the kernel and the state directory.
func (x Direct) Status(ctx context.Context) (api.Status, error) {
	return with(ctx, x, access{kernel: true}, func(c *core) (api.Status, error) {
		c.setPolicy(savedPolicy(c.cfg.PolicyPath, c.store))
		c.loadTrial()
		if err := c.adopt(ctx); err != nil {
			return api.Status{}, err
		}
		c.believe()
		altered := c.altered()
		c.inForce = c.have.Exists() && !altered
		c.down = !c.have.Exists() && c.store.Down()
		out := c.status()
		if altered {
			out.Problems = append(out.Problems, api.Problem{Severity: string(policy.SeverityError), Message: errAltered.Error()})
		}
		if inv, _, err := x.list(ctx); err == nil {
			out.Docker.Containers = len(inv.Containers)
		}
		out.Docker.Error = "no daemon follows the engine"
		return out, nil
	})
}

// Ports lists every published port and who may reach it under the policy file,
// with what a table that stands has counted.
func (x Direct) Ports(ctx context.Context) (api.Ports, error) {
	return with(ctx, x, access{}, func(c *core) (api.Ports, error) {
		if err := x.prepare(ctx, c, c.cfg.PolicyPath, true); err != nil {
			return api.Ports{}, err
		}
		c.down = c.store.Down()
		kernel, err := nft.Open()
		if err != nil {
			return c.ports(nil).Ports, nil // the list needs no rights, the counters do
		}
		defer func() { _ = kernel.Close() }()
		c.kernel = kernel
		have, err := kernel.Observe(ctx, c.cfg.Table)
		if err != nil || !have.Exists() {
			return c.ports(nil).Ports, nil
		}
		c.down, c.inForce = false, !observes(have.Table())
		return c.ports(have.Table()).count(ctx)
	})
}

// Reach says what one source would reach under the policy file.
func (x Direct) Reach(ctx context.Context, from api.Source) (api.Reach, error) {
	return with(ctx, x, access{}, func(c *core) (api.Reach, error) {
		if err := x.prepare(ctx, c, c.cfg.PolicyPath, true); err != nil {
			return api.Reach{}, err
		}
		return c.reach(from, c.compile())
	})
}

// Explain says what becomes of a packet under what stands in the kernel: the
// policy that was last put in force, for what runs now.
func (x Direct) Explain(ctx context.Context, q api.Question) (api.Explanation, error) {
	return with(ctx, x, access{kernel: true}, func(c *core) (api.Explanation, error) {
		c.setPolicy(savedPolicy(c.cfg.PolicyPath, c.store))
		if err := c.adopt(ctx); err != nil {
			return api.Explanation{}, err
		}
		if err := x.inventory(ctx, c, false); err != nil {
			return api.Explanation{}, err
		}
		c.believe()
		if c.altered() {
			return api.Explanation{}, errAltered
		}
		return c.explain(q)
	})
}

// errAltered says that what the table does is not known.
var errAltered = errors.New("the rules of the table are not those that nftfw put there: `nftfw plan` shows what differs, `nftfw apply` puts it right")

// altered reports whether the table that stands has other rules than the one that it
// is believed to be.
func (c *core) altered() bool {
	return c.have.Exists() && nft.Diff(c.have, c.table, c.now()).AltersRules()
}

// Sets summarises the sets.
func (x Direct) Sets(ctx context.Context) (api.Sets, error) {
	return with(ctx, x, access{sets: true}, func(c *core) (api.Sets, error) {
		c.setSaved()
		return c.listSets(), nil
	})
}

// Set gives one set.
func (x Direct) Set(ctx context.Context, name string) (api.Set, error) {
	return with(ctx, x, access{sets: true}, func(c *core) (api.Set, error) {
		c.setSaved()
		return c.showSet(name)
	})
}

// TestSet tells whether a set holds an address.
func (x Direct) TestSet(ctx context.Context, name, addr string) (api.Membership, error) {
	return with(ctx, x, access{sets: true}, func(c *core) (api.Membership, error) {
		c.setSaved()
		return c.testSet(name, addr)
	})
}

// AddToSet adds entries to a set.
func (x Direct) AddToSet(ctx context.Context, name string, change api.SetChange) (api.Change, error) {
	return x.changeSet(ctx, name, func(c *core) (api.Change, error) { return c.addToSet(ctx, name, change) })
}

// DeleteFromSet removes runtime entries from a set.
func (x Direct) DeleteFromSet(ctx context.Context, name string, change api.SetChange) (api.Change, error) {
	return x.changeSet(ctx, name, func(c *core) (api.Change, error) { return c.deleteFromSet(ctx, name, change) })
}

// AddToFleet writes entries into the set's etcd and takes them from there.
func (x Direct) AddToFleet(ctx context.Context, name string, change api.SetChange) (api.Change, error) {
	return x.changeSet(ctx, name, func(c *core) (api.Change, error) { return c.changeFleet(ctx, name, change, putInFleet) })
}

// DeleteFromFleet removes entries from the set's etcd.
func (x Direct) DeleteFromFleet(ctx context.Context, name string, change api.SetChange) (api.Change, error) {
	return x.changeSet(ctx, name, func(c *core) (api.Change, error) { return c.changeFleet(ctx, name, change, deleteFromFleet) })
}

// FlushSet removes every runtime entry of a set.
func (x Direct) FlushSet(ctx context.Context, name string, flush api.Flush) (api.Change, error) {
	return x.changeSet(ctx, name, func(c *core) (api.Change, error) { return c.flushSet(ctx, name, flush) })
}

// changeSet changes one set under the policy in force, and in the kernel that
// set alone: containers and everything else stay as the daemon left them.
func (x Direct) changeSet(ctx context.Context, name string, f func(*core) (api.Change, error)) (api.Change, error) {
	return with(ctx, x, access{lock: true, kernel: true, sets: true}, func(c *core) (api.Change, error) {
		c.setPolicy(savedPolicy(c.cfg.PolicyPath, c.store))
		if err := c.adopt(ctx); err != nil {
			return api.Change{}, err
		}
		if c.damage != nil {
			c.recoverSets(c.have.Table())
		}
		var err error
		if c.links, err = links.Read(c.sandboxDirs); err != nil {
			return api.Change{}, err
		}
		c.believe()
		// Before anything is written down: a set that no rule asks is not in force.
		switch {
		case nft.Diff(c.have, c.table, c.now()).Replaces():
			return api.Change{}, errNotAlone
		case c.altered():
			return api.Change{}, errAltered
		}
		c.revoked.before = c.table // what else differs is not this command's business
		c.onlySet = name
		return f(c)
	})
}

// Apply puts a policy in force.
func (x Direct) Apply(ctx context.Context, a api.Apply) (api.Change, error) {
	if a.Confirm > 0 {
		// Somebody has to be there when the time is up.
		return api.Change{}, fmt.Errorf("%w: --confirm needs it to put the former policy back; start it with `systemctl start nftfw` or `nftfw run`", api.ErrNoDaemon)
	}
	return with(ctx, x, access{lock: !a.DryRun, kernel: true, sets: true}, func(c *core) (api.Change, error) {
		c.setPolicy(savedPolicy(a.Path, c.store))
		c.loadTrial()
		if err := c.adopt(ctx); err != nil {
			return api.Change{}, err
		}
		if c.damage != nil {
			c.recoverSets(c.have.Table())
			if !a.DryRun {
				c.saveFound(c.damage)
			}
		}
		if err := x.inventory(ctx, c, false); err != nil {
			return api.Change{}, err
		}
		c.believe()
		c.inForce = c.have.Exists()
		out, err := c.apply(ctx, a)
		if err == nil && !a.DryRun {
			x.saveSnapshot(c)
			before := c.lastChange
			c.readSources(ctx, x.Warn)
			out.Changed = out.Changed || c.lastChange != before
		}
		return out, err
	})
}

// saveSnapshot keeps what the engine has said runs, by which a later command knows who
// may reach which container.
func (x Direct) saveSnapshot(c *core) {
	if c.engine.Engine != inventory.EngineListed {
		return // what is saved says more
	}
	if err := (savedSnapshot{c.engine, c.sandboxDirs}).save(c.store); err != nil {
		x.Warn(fmt.Sprintf("in force, but what runs is not noted: %v", err))
	}
}

// Down removes the table.
func (x Direct) Down(ctx context.Context) (api.Change, error) {
	return with(ctx, x, access{lock: true, kernel: true}, func(c *core) (api.Change, error) {
		c.loadTrial()
		return c.stop(ctx)
	})
}

// Render writes the complete ruleset for the policy file at path, the saved
// sets and the running containers.
func (x Direct) Render(ctx context.Context, path string, w io.Writer) error {
	_, err := with(ctx, x, access{sets: true}, func(c *core) (struct{}, error) {
		if err := x.prepare(ctx, c, path, false); err != nil {
			return struct{}{}, err
		}
		return struct{}{}, c.compile().WriteText(w, c.now())
	})
	return err
}

// prepare gives c the policy file at path and what runs.
func (x Direct) prepare(ctx context.Context, c *core, path string, require bool) error {
	text, err := ReadPolicyFile(path)
	if err != nil {
		return err
	}
	p, err := parsePolicy(path, text)
	if err != nil {
		return err
	}
	c.setPolicy(p)
	c.sandboxDirs = c.loadSnapshot().SandboxDirs
	return x.inventory(ctx, c, require)
}

// inventory asks the engine and the kernel what there is. Where the engine
// does not answer, what c knows of it stays, unless its answer is required.
func (x Direct) inventory(ctx context.Context, c *core, require bool) error {
	inv, dirs, err := x.list(ctx)
	var unanswered *dockerwatch.Error
	if errors.As(err, &unanswered) && errors.Is(err, fs.ErrNotExist) {
		unanswered.Remedy = "start docker, or name its socket with --docker-host" // not the daemon's --no-docker, which a command lacks
	}
	switch {
	case err == nil:
		c.setEngine(inv)
		c.sandboxDirs = slices.Compact(slices.Sorted(slices.Values(append(slices.Clone(c.sandboxDirs), dirs...))))
	case require:
		return fmt.Errorf("ask Docker what runs: %w", err)
	default:
		x.Warn(fmt.Sprintf("Docker does not answer (%v): without its word containers keep what they have, and new ones stay closed", err))
	}
	c.links, err = links.Read(c.sandboxDirs)
	return err
}

func (x Direct) list(ctx context.Context) (inventory.Snapshot, []string, error) {
	if x.NoDocker {
		return inventory.Snapshot{Engine: inventory.EngineAbsent}, nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, engineWait)
	defer cancel()
	options := dockerwatch.Options{Host: x.DockerHost, Log: x.Log}
	inv, err := dockerwatch.List(ctx, options)
	if err != nil {
		return inventory.Snapshot{}, nil, err
	}
	// Without the folder no bridge would count as Docker's own: an engine
	// with a folder of its own is asked where that is.
	dirs := []string{dockerwatch.DefaultSandboxDir}
	if info, err := dockerwatch.AskInfo(ctx, options); err == nil && info.SandboxDir != "" {
		dirs = append(dirs, info.SandboxDir)
	}
	return inv, dirs, nil
}
