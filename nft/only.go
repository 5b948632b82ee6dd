package nft

import (
	"slices"

	"github.com/nftfw/nftfw/pkg/ruleset"
)

// OnlySets gives the part of p that is about the sets that named is true for:
// their contents, those of them that come or go, the rules of the chains that ask
// them, and the chains that are called always, which may come or go. The rest is
// left out: nothing else is created, changed or removed. Of a plan that makes,
// replaces or deletes the table, as Closes and Replaces tell, nothing is left:
// what it would do to the sets cannot be done alone.
func (p Plan) OnlySets(named func(set string) bool, always ...string) Plan {
	out := Plan{table: p.table, formerRules: p.formerRules}
	if p.begin != keepTable {
		return out
	}
	for _, s := range p.newSets {
		if named(s.Name) {
			out.newSets = append(out.newSets, s)
		}
	}
	for _, name := range p.goneSets {
		if named(name) {
			out.goneSets = append(out.goneSets, name)
		}
	}
	for _, c := range p.elements {
		if named(c.set.Name) {
			out.elements = append(out.elements, c)
		}
	}
	for _, name := range p.goneChains {
		if slices.Contains(always, name) {
			out.goneChains, out.flush = append(out.goneChains, name), append(out.flush, name)
		}
	}
	for _, c := range p.newChains {
		if slices.Contains(always, c.Name) {
			out.newChains, out.rules = append(out.newChains, c), append(out.rules, c)
		}
	}
	changed := len(out.newSets)+len(out.goneSets) > 0
	for _, c := range p.rules {
		if !slices.Contains(p.flush, c.Name) { // the chain is new
			continue
		}
		if slices.Contains(always, c.Name) || changed && asksAny(c, named) {
			out.flush = append(out.flush, c.Name)
			out.rules = append(out.rules, c)
		}
	}
	return out
}

// asksAny reports whether a rule of c looks something up in a set of that name.
func asksAny(c *ruleset.Chain, named func(string) bool) bool {
	return slices.ContainsFunc(c.Rules, func(r ruleset.Rule) bool {
		return slices.ContainsFunc(r.Matches, func(m ruleset.Match) bool { return m.Op == ruleset.OpSet && named(m.Set) })
	})
}
