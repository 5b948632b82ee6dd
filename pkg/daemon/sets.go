package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/api"
	"github.com/nftfw/nftfw/pkg/ruleset"
	"github.com/nftfw/nftfw/pkg/store"
	"github.com/nftfw/nftfw/policy"
)

// listSets summarises every declared set.
func (c *core) listSets() api.Sets {
	out := api.Sets{Sets: []api.SetSummary{}}
	for _, name := range slices.Sorted(maps.Keys(c.sets)) {
		summary := api.SetSummary{Name: name, Comment: c.policy.Sets[name].Comment}
		for e := range c.sets[name].Prune(c.now()).Each() {
			switch e.Source {
			case addrset.Policy:
				summary.Policy++
			case addrset.Runtime:
				summary.Runtime++
			default:
				summary.Sources++
			}
		}
		summary.Entries = summary.Policy + summary.Runtime + summary.Sources
		out.Sets = append(out.Sets, summary)
	}
	return out
}

func (c *core) showSet(name string) (api.Set, error) {
	if err := c.declaredSet(name); err != nil {
		return api.Set{}, err
	}
	return api.Set{Name: name, Comment: c.policy.Sets[name].Comment, Entries: entries(c.sets[name].Prune(c.now()).Entries())}, nil
}

func entries(list []addrset.Entry) []api.Entry {
	out := make([]api.Entry, 0, len(list))
	for _, e := range list {
		entry := api.Entry{Entry: e.Range.String(), Source: string(e.Source), Comment: e.Comment, Origin: e.Origin}
		if !e.Expires.IsZero() {
			at := e.Expires.UTC()
			entry.ExpiresAt = &at
		}
		out = append(out, entry)
	}
	return out
}

// testSet tells whether every address of an entry is in the set now.
func (c *core) testSet(name, text string) (api.Membership, error) {
	if err := c.declaredSet(name); err != nil {
		return api.Membership{}, err
	}
	r, err := addrset.ParseRange(text)
	if err != nil {
		return api.Membership{}, api.Invalidf("%v", err)
	}
	out := api.Membership{Name: name, Address: r.String(), Entries: []api.Entry{}}
	covering := c.sets[name].Overlapping(r, c.now())
	ranges := make([]addrset.Range, len(covering))
	for i, e := range covering {
		ranges[i] = e.Range
	}
	if out.In = addrset.Covers(ranges, r); out.In {
		out.Entries = entries(covering)
	}
	return out, nil
}

// declaredSet gives an error that names the sets there are when name is not
// one of them.
func (c *core) declaredSet(name string) error {
	if _, ok := c.policy.Sets[name]; ok {
		return nil
	}
	return api.Invalidf("no set %q in the policy in force (it declares %s): declare it under sets: in %s and apply",
		name, strings.Join(slices.Sorted(maps.Keys(c.policy.Sets)), ", "), c.policy.path)
}

// addToSet adds entries or renews those that are there.
func (c *core) addToSet(ctx context.Context, name string, change api.SetChange) (api.Change, error) {
	if err := c.declaredSet(name); err != nil {
		return api.Change{}, err
	}
	if err := checkChange(change); err != nil {
		return api.Change{}, err
	}
	added, err := c.entriesToAdd(change)
	if err != nil {
		return api.Change{}, err
	}
	n := len(change.Entries)
	var saved store.Change
	if n < manyEntries {
		saved.Add = added.Entries()
	} else {
		clear(change.Entries) // their text is of no use any more, and large
		defer releaseMemory()
	}
	return c.changeSet(ctx, name, n, change.Force, saved, func(s *addrset.Set) *addrset.Set { return s.Merge(added) })
}

// manyEntries is from how many entries on a change leaves so much memory behind
// that it is worth giving back at once.
const manyEntries = 10_000

// entriesToAdd reads the entries of a change that adds.
func (c *core) entriesToAdd(change api.SetChange) (*addrset.Set, error) {
	if len(change.Entries) == 0 {
		return nil, api.Invalidf("no address given")
	}
	e := addrset.Entry{Comment: change.Comment, Source: addrset.Runtime}
	if change.Timeout > 0 {
		e.Expires = c.now().Add(change.Timeout)
	}
	var b addrset.Builder
	for _, text := range change.Entries {
		var err error
		if e.Range, err = addrset.ParseRange(text); err != nil {
			return nil, api.Invalidf("%v", err)
		}
		b.Add(e)
	}
	return b.Set(), nil
}

// checkChange says what is wrong with a change besides its entries.
func checkChange(change api.SetChange) error {
	if change.Timeout < 0 {
		return api.Invalidf("timeout %s is negative", change.Timeout)
	}
	if strings.ContainsFunc(change.Comment, unicode.IsControl) {
		return api.Invalidf("comment %q has a control character: keep it to one line of text", change.Comment)
	}
	return nil
}

// deleteFromSet removes runtime entries: all of them or, where one is not
// there, none.
func (c *core) deleteFromSet(ctx context.Context, name string, change api.SetChange) (api.Change, error) {
	if err := c.declaredSet(name); err != nil {
		return api.Change{}, err
	}
	ranges, err := parseEntries(change.Entries)
	if err != nil {
		return api.Change{}, err
	}
	live := c.sets[name].Prune(c.now())
	var found []addrset.Range
	for _, r := range ranges {
		if _, ok := live.Lookup(r, addrset.Runtime); ok {
			found = append(found, r)
			continue
		}
		if e, ok := fixed(live, r, c.now()); ok {
			return api.Change{}, api.Failedf("%s in set %s %s", r, name, elsewhere(e, name))
		}
		if !change.Exist {
			return api.Change{}, api.Failedf("%s", missingEntry(live, name, r, c.now()))
		}
	}
	return c.changeSet(ctx, name, len(found), change.Force, store.Change{Delete: found}, func(s *addrset.Set) *addrset.Set { return s.Delete(addrset.Runtime, found...) })
}

// fixed gives the entry for exactly r that no command can remove.
func fixed(live *addrset.Set, r addrset.Range, now time.Time) (addrset.Entry, bool) {
	for _, e := range live.Covering(r.From, now) {
		if e.Range == r && e.Source != addrset.Runtime {
			return e, true
		}
	}
	return addrset.Entry{}, false
}

// missingEntry says why an entry cannot be removed, and what there is instead.
func missingEntry(live *addrset.Set, name string, r addrset.Range, now time.Time) string {
	if covering := live.Covering(r.From, now); len(covering) > 0 {
		return fmt.Sprintf("%s is no entry of set %s; %s covers it", r, name, covering[0].Range)
	}
	return fmt.Sprintf("%s is not in set %s (--exist passes over it)", r, name)
}

// flushSet removes every runtime entry.
func (c *core) flushSet(ctx context.Context, name string, flush api.Flush) (api.Change, error) {
	if err := c.declaredSet(name); err != nil {
		return api.Change{}, err
	}
	n := c.runtime[name].Len()
	if n >= manyEntries {
		defer releaseMemory()
	}
	out, err := c.changeSet(ctx, name, n, flush.Force, store.Change{}, func(s *addrset.Set) *addrset.Set { return s.DeleteSource(addrset.Runtime) })
	if left := c.declared[name].Len(); err == nil && left > 0 {
		out.Warnings = append(out.Warnings, fmt.Sprintf("%d entries of set %s stay: they are written in %s", left, name, c.policy.path))
	}
	if left := c.sets[name].Len() - c.declared[name].Len(); err == nil && left > 0 {
		out.Warnings = append(out.Warnings, fmt.Sprintf("%d entries of set %s stay: they come from its sources", left, name))
	}
	return out, err
}

func parseEntries(texts []string) ([]addrset.Range, error) {
	if len(texts) == 0 {
		return nil, api.Invalidf("no address given")
	}
	out := make([]addrset.Range, len(texts))
	for i, text := range texts {
		r, err := addrset.ParseRange(text)
		if err != nil {
			return nil, api.Invalidf("%v", err)
		}
		out[i] = r
	}
	return out, nil
}

// changeSet applies edit to the runtime entries of a set, on disk first and
// then in the kernel. When the kernel refuses, the disk has the old entries
// again.
//
// saved is the edit as it is written down; the zero Change has all written.
func (c *core) changeSet(ctx context.Context, name string, n int, force bool, saved store.Change, edit func(*addrset.Set) *addrset.Set) (api.Change, error) {
	now := c.now()
	oldRuntime, oldSet := c.runtime, c.sets[name]
	edited := edit(oldRuntime[name].Prune(now))
	set := edited
	if oldSet != oldRuntime[name] { // else the set is the runtime entries alone
		set = edit(oldSet.Prune(now))
	}
	enforced := !c.down && c.table != nil
	var want *ruleset.Table
	if enforced {
		want = c.tableWith(name, set)
	}
	if edited == oldRuntime[name] && !c.unsaved {
		// Nothing to save. The kernel is looked at all the same: what a
		// command that succeeds asks for is in force.
		if enforced {
			return api.Change{}, c.commit(ctx, want)
		}
		return api.Change{}, nil
	}
	if enforced && !force {
		if err := c.guardSet(want, n); err != nil {
			return api.Change{}, err
		}
	}
	runtime := maps.Clone(oldRuntime)
	runtime[name] = edited
	if err := c.saveSets(saved, name, runtime); err != nil {
		return api.Change{}, fmt.Errorf("save sets: %w", err)
	}
	c.runtime, c.sets[name], c.unsaved = runtime, set, false
	out := api.Change{Changed: true, Entries: n}
	if !enforced {
		out.Warnings = append(out.Warnings, "saved, but nothing is enforced: `nftfw apply` puts it in force")
		return out, nil
	}
	if err := c.commit(ctx, want); err != nil {
		c.runtime, c.sets[name] = oldRuntime, oldSet
		back := c.store.SaveSets(oldRuntime)
		c.unsaved = back != nil // the next change writes all, not this one's end
		return api.Change{}, errors.Join(err, back, c.settle(ctx))
	}
	return out, nil
}

// saveSets writes down what became of a set.
func (c *core) saveSets(saved store.Change, name string, runtime map[string]*addrset.Set) error {
	if c.unsaved || len(saved.Add)+len(saved.Delete) == 0 {
		return c.store.SaveSets(runtime)
	}
	saved.Set = name
	return c.store.SaveChange(saved, runtime)
}

// tableWith gives the table in force with other contents of a set.
func (c *core) tableWith(name string, set *addrset.Set) *ruleset.Table {
	if policy.Fits(c.table, name, set) {
		return policy.WithSet(c.table, name, set)
	}
	former, diags := c.sets[name], c.diags
	c.sets[name] = set
	t := c.compile()
	c.sets[name], c.diags = former, diags
	return t
}

// pruneSets forgets runtime entries that have expired; the kernel has dropped
// them by itself.
func (c *core) pruneSets() {
	now := c.now()
	for name, s := range c.runtime {
		c.runtime[name] = s.Prune(now)
	}
	for _, l := range c.lists {
		l.entries = l.entries.Prune(now)
	}
	for name, s := range c.sets {
		c.sets[name] = s.Prune(now)
	}
}
