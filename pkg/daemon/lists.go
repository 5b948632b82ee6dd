package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/api"
	"github.com/nftfw/nftfw/pkg/sources"
	"github.com/nftfw/nftfw/pkg/store"
	"github.com/nftfw/nftfw/policy"
)

// listKey names one source of one set.
type listKey struct{ set, source string }

// list is the last good list of a source, and how things stand with the source.
type list struct {
	entries  *addrset.Set
	goodAt   time.Time // zero: never
	resume   json.RawMessage
	revision int64 // of etcd
	readings int   // how often it was read whole since the start
	err      error // why the source could not be read since; nil when it could
	note     string
}

// loadLists reads the saved lists. It survives damage: a source whose list is
// lost is asked again.
func (c *core) loadLists() error {
	saved, err := c.store.LoadLists()
	c.lists = map[listKey]*list{}
	for _, l := range saved {
		c.lists[listKey{l.Set, l.Source}] = &list{entries: l.Entries, goodAt: l.GoodAt, resume: l.Resume}
	}
	return err
}

// join gives the set that the policy's entries, those added by command, those
// of the set's sources and the nodes of the swarm make together.
func (c *core) join(name string, now time.Time) *addrset.Set {
	s := c.declared[name].Merge(c.runtime[name].Prune(now))
	if name == policy.SetSwarmNodes {
		s = s.Add(policy.NodeEntries(c.engine.Swarm)...)
	}
	for _, source := range c.policy.Sets[name].Sources {
		if l := c.lists[listKey{name, source.Name()}]; l != nil {
			s = s.Merge(l.entries.Prune(now))
		}
	}
	return s
}

// takeUpdate joins what a source said with its set and puts the set in force.
// save reports whether the list is to be written down. When the kernel
// refuses, the set is meant to be in force all the same: the caller tries
// again.
func (c *core) takeUpdate(ctx context.Context, key listKey, u sources.Update) (save bool, err error) {
	l := c.lists[key]
	if l == nil {
		l = &list{}
		c.lists[key] = l
	}
	never := l.goodAt.IsZero()
	if u.Err != nil {
		switch log := c.log.With("set", key.set, "source", key.source, "err", u.Err); {
		case l.err != nil && l.err.Error() == u.Err.Error():
		case never:
			log.Warn("source not read, and never was: nothing of it is in force")
		default:
			log.Warn("source not read, its last good list stays in force")
		}
		l.err = u.Err
		return false, nil
	}
	if l.err != nil {
		c.log.Info("source is read again", "set", key.set, "source", key.source)
	}
	if u.Note != "" && u.Note != l.note {
		c.log.Warn("source read in part", "set", key.set, "source", key.source, "reason", u.Note)
	}
	l.err, l.note, l.goodAt = nil, u.Note, c.now()
	if u.Revision != 0 {
		l.revision = u.Revision
	}
	src := addrset.Source(key.source)
	gone := u.Del
	if u.Whole {
		gone = missing(l.entries, addrset.New(u.Add...))
		l.readings++
	}
	before := l.entries
	l.entries = before.Delete(src, gone...).Add(u.Add...).Prune(c.now())
	save = l.entries != before || u.Resume != nil && string(u.Resume) != string(l.resume) || u.Whole && never
	if u.Resume != nil {
		l.resume = u.Resume
	}
	set := c.sets[key.set].Delete(src, gone...).Add(u.Add...).Prune(c.now())
	if set == c.sets[key.set] {
		return save, nil
	}
	level := slog.LevelDebug // of what comes one by one
	if u.Whole {
		level = slog.LevelInfo
	}
	c.log.Log(ctx, level, "list of a source changed", "set", key.set, "source", key.source, "entries", l.entries.Len(), "gone", len(gone))
	if c.down || c.table == nil {
		c.sets[key.set] = set
		return save, nil
	}
	want := c.tableWith(key.set, set)
	c.sets[key.set] = set
	return save, c.commit(ctx, want)
}

// missing gives the ranges of the entries of old that are not in now.
func missing(old, now *addrset.Set) []addrset.Range {
	var out []addrset.Range
	for e := range old.Each() {
		if _, ok := now.Lookup(e.Range, e.Source); !ok {
			out = append(out, e.Range)
		}
	}
	return out
}

// savedList is the form in which a list is written down.
func (c *core) savedList(key listKey) store.List {
	l := c.lists[key]
	return store.List{Set: key.set, Source: key.source, GoodAt: l.goodAt, Resume: l.resume, Entries: l.entries}
}

// forgetLists drops the lists of sources that the policy does not name. One
// that is on trial, or stands in for a file that cannot be used, has no say:
// the lists are those of the policy that will be back.
func (c *core) forgetLists() {
	if c.trial.open() || c.policy.err != nil {
		return
	}
	named := map[listKey]bool{}
	for name, s := range c.policy.Sets {
		for _, source := range s.Sources {
			named[listKey{name, source.Name()}] = true
		}
	}
	for key := range c.lists {
		if named[key] {
			continue
		}
		delete(c.lists, key)
		if err := c.store.RemoveList(key.set, key.source); err != nil {
			c.log.Warn("saved list not removed", "set", key.set, "source", key.source, "err", err)
		}
	}
}

// sourceStates says how things stand with every source of the policy.
func (c *core) sourceStates() []api.SourceStatus {
	out := []api.SourceStatus{}
	for _, name := range slices.Sorted(maps.Keys(c.policy.Sets)) {
		for _, source := range c.policy.Sets[name].Sources {
			state := api.SourceStatus{Set: name, Source: source.Name(), Kind: source.Kind()}
			l := c.lists[listKey{name, source.Name()}]
			if l == nil {
				l = &list{}
			}
			state.Entries, state.Warning = l.entries.Prune(c.now()).Len(), l.note
			if l.err != nil {
				state.Error = l.err.Error()
			}
			if !l.goodAt.IsZero() {
				at := l.goodAt.UTC()
				age := int64(max(0, c.now().Sub(at)) / time.Second)
				state.LastGood, state.Age = &at, &age
			}
			out = append(out, state)
		}
	}
	return out
}

// holder names the entry by which a is in a set, and where it comes from.
func (c *core) holder(set string, a netip.Addr) string {
	entries := c.sets[set].Covering(a, c.now())
	if len(entries) == 0 {
		return "sets." + set
	}
	e := entries[0]
	in := fmt.Sprintf("%s in the set %s", e.Range, set)
	switch {
	case e.Source == addrset.Runtime:
		return in + ", added by command"
	case e.Source == addrset.Docker:
		return in + ", a node of the swarm"
	default:
		return cmp.Or(e.Origin, string(e.Source)) + ", " + in
	}
}

// elsewhere says where an entry lives that no command can remove, and what
// removes it.
func elsewhere(e addrset.Entry, set string) string {
	kind, place, _ := strings.Cut(string(e.Source), ":")
	switch {
	case e.Source == addrset.Policy:
		return fmt.Sprintf("is written at %s: remove it there and apply", e.Origin)
	case e.Source == addrset.Docker:
		return "is a node of the swarm: it stays until the engine says otherwise (`docker node rm`)"
	case e.Origin != "":
		return fmt.Sprintf("comes from %s: remove it there", e.Origin)
	case kind == "etcd":
		return fmt.Sprintf("comes from %s: remove it there with `nftfw sets del %s %s --fleet`", e.Source, set, e.Range)
	case kind == "dns":
		return fmt.Sprintf("is an address of the name %s: change the name's addresses, or take the source out of the policy", place)
	default:
		return fmt.Sprintf("comes from %s: remove it there, or take the source out of the policy", e.Source)
	}
}
