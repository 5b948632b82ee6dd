package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/api"
	"github.com/nftfw/nftfw/pkg/sources"
	"github.com/nftfw/nftfw/pkg/sources/spec"
)

const (
	// fleetWait is how long etcd has for a change of a whole fleet.
	fleetWait = 30 * time.Second
	// hereWait is how long it is waited for until such a change is in force on
	// this host.
	hereWait = 10 * time.Second
	// readWait is how long a source has that is read for one command.
	readWait = 10 * time.Second
)

// fleetChange is a change of a set in etcd that was found to be in order.
type fleetChange struct {
	api.SetChange
	key    listKey
	source spec.Source
	before list // of the source, on this host
	ranges []addrset.Range
}

// fleetWrite makes a change in etcd. It gives the number of entries changed,
// and the revision of the store that shows it.
type fleetWrite struct {
	do func(ctx context.Context, s Sources, f fleetChange) (n int, revision int64, err error)
	// edit makes the same change in the set of this host.
	edit func(set *addrset.Set, f fleetChange) *addrset.Set
}

// The two changes that there are.
var (
	putInFleet = fleetWrite{
		do: func(ctx context.Context, s Sources, f fleetChange) (int, int64, error) {
			revision, err := s.Put(ctx, *f.source.Etcd, f.ranges, f.Comment, f.Timeout)
			return len(f.ranges), revision, err
		},
		edit: func(set *addrset.Set, f fleetChange) *addrset.Set {
			entries := make([]addrset.Entry, len(f.ranges))
			for i, r := range f.ranges {
				entries[i] = addrset.Entry{Range: r, Source: addrset.Source(f.key.source)}
			}
			return set.Add(entries...)
		},
	}
	deleteFromFleet = fleetWrite{
		do: func(ctx context.Context, s Sources, f fleetChange) (int, int64, error) {
			return s.Delete(ctx, *f.source.Etcd, f.ranges, f.Exist)
		},
		edit: func(set *addrset.Set, f fleetChange) *addrset.Set {
			return set.Delete(addrset.Source(f.key.source), f.ranges...)
		},
	}
)

// checkFleet finds the etcd of a set, and whether the change would cut an SSH
// connection of this host. Of the other hosts nothing is known.
func (c *core) checkFleet(name string, change api.SetChange, w fleetWrite) (fleetChange, error) {
	f := fleetChange{SetChange: change}
	if err := c.declaredSet(name); err != nil {
		return f, err
	}
	var err error
	if f.ranges, err = parseEntries(change.Entries); err != nil {
		return f, err
	}
	if err := checkChange(change); err != nil {
		return f, err
	}
	for _, source := range c.policy.Sets[name].Sources {
		if source.Etcd != nil && f.source.Etcd == nil {
			f.source, f.key = source.Source, listKey{name, source.Name()}
		}
	}
	if f.source.Etcd == nil {
		return f, api.Invalidf("set %s has no source of kind etcd in the policy in force: --fleet writes there", name)
	}
	if l := c.lists[f.key]; l != nil {
		f.before = *l
	}
	if c.cfg.Sources == nil {
		return f, api.Failedf("sources are not followed here")
	}
	if c.down || c.table == nil || change.Force {
		return f, nil
	}
	return f, c.guardSet(c.tableWith(name, w.edit(c.sets[name], f)), len(change.Entries))
}

// fleetError is the error of a change in etcd as users read it.
func fleetError(name string, err error) error {
	var missing *sources.MissingError
	if errors.As(err, &missing) {
		return api.Failedf("%s is not in the etcd of set %s (--exist passes over it)", missing.Range, name)
	}
	return api.Failedf("change set %s for the fleet: %v", name, err)
}

// changeFleet makes a change in etcd, beside the loop, and waits until it is in
// force on this host.
func (d *Daemon) changeFleet(ctx context.Context, name string, change api.SetChange, w fleetWrite) (api.Change, error) {
	var (
		f   fleetChange
		err error
	)
	if stopped := d.do(ctx, func(context.Context) { f, err = d.core.checkFleet(name, change, w) }); stopped != nil || err != nil {
		return api.Change{}, errors.Join(stopped, err)
	}
	// Whoever asked may go: what was begun is finished.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), fleetWait)
	defer cancel()
	n, revision, err := w.do(ctx, d.core.cfg.Sources, f)
	if err != nil {
		return api.Change{}, fleetError(name, err)
	}
	out := api.Change{Changed: n > 0, Entries: n}
	if n == 0 {
		return out, nil
	}
	if err := d.awaitRevision(ctx, f, revision); err != nil {
		out.Warnings = append(out.Warnings, err.Error())
		return out, nil
	}
	warn(&out, d.awaitWithdrawal(ctx))
	return out, nil
}

// awaitRevision waits until a change that etcd shows at a revision is in force
// here.
func (d *Daemon) awaitRevision(ctx context.Context, f fleetChange, revision int64) error {
	done := make(chan struct{})
	stopped := d.do(ctx, func(context.Context) {
		d.following.waiting = append(d.following.waiting, waitingChange{f.key, revision, f.before, done})
		if !d.core.unsettled() {
			d.announce() // it may be here already
		}
	})
	if stopped != nil {
		return fmt.Errorf("written to etcd, and this host takes it up when its daemon is back: %w", stopped)
	}
	late := time.NewTimer(hereWait)
	defer late.Stop()
	select {
	case <-done:
		return nil
	case <-late.C:
		_ = d.do(ctx, func(context.Context) { // a daemon that stops forgets it anyway
			d.following.waiting = slices.DeleteFunc(d.following.waiting, func(w waitingChange) bool { return w.done == done })
		})
		return fmt.Errorf("written to etcd, but after %s not in force on this host yet: see `nftfw status`", hereWait)
	}
}

// changeFleet makes a change in etcd and reads the set from there, for an
// operation that is alone with its core.
func (c *core) changeFleet(ctx context.Context, name string, change api.SetChange, w fleetWrite) (api.Change, error) {
	f, err := c.checkFleet(name, change, w)
	if err != nil {
		return api.Change{}, err
	}
	n, _, err := w.do(ctx, c.cfg.Sources, f)
	if err != nil {
		return api.Change{}, fleetError(name, err)
	}
	out := api.Change{Changed: n > 0, Entries: n}
	if err := c.readSource(ctx, f.key, f.source); err != nil {
		out.Warnings = append(out.Warnings, fmt.Sprintf("written to etcd, but not in force on this host yet: %v", err))
	}
	return out, nil
}

// readSource reads a source once and puts what it says in force.
func (c *core) readSource(ctx context.Context, key listKey, s spec.Source) error {
	reading, cancel := context.WithTimeout(ctx, readWait)
	defer cancel()
	var last sources.Last
	if l := c.lists[key]; l != nil {
		last = sources.Last{GoodAt: l.goodAt, Entries: l.entries, Resume: l.resume}
	}
	u := sources.Update{Err: fmt.Errorf("no answer within %s", readWait)}
	c.cfg.Sources.Follow(reading, s, last, func(first sources.Update) {
		if reading.Err() == nil {
			u = first
			cancel()
		}
	})
	if u.Err != nil {
		return u.Err
	}
	save, err := c.takeUpdate(ctx, key, u)
	if err != nil || !save {
		return err
	}
	return c.store.SaveList(c.savedList(key))
}

// readSources reads what no daemon reads: files, which may have changed, and
// the sources of which nothing is known yet.
func (c *core) readSources(ctx context.Context, warn func(string)) {
	if c.cfg.Sources == nil {
		return
	}
	for name, set := range c.policy.Sets {
		for _, source := range set.Sources {
			key := listKey{name, source.Name()}
			if source.File == nil && c.lists[key] != nil {
				continue
			}
			if err := c.readSource(ctx, key, source.Source); err != nil {
				warn(fmt.Sprintf("%s of set %s: %v", key.source, name, err))
			}
		}
	}
	c.forgetLists()
}
