package nft

import (
	"slices"

	"github.com/nftfw/nftfw/pkg/ruleset"
)

// OnlySets gives the part of p that is about the named sets: their contents,
// those of them that come or go, and the rules of the chains that ask them or
// are called always. The rest is left out: nothing else is created, changed or
// removed.
func (p Plan) OnlySets(names []string, always ...string) Plan {
	out := Plan{table: p.table, formerRules: p.formerRules}
	if p.begin != keepTable {
		return out
	}
	named := func(name string) bool { return slices.Contains(names, name) }
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
	if len(out.newSets)+len(out.goneSets) == 0 && !slices.ContainsFunc(always, func(name string) bool { return slices.Contains(p.flush, name) }) {
		return out
	}
	asks := func(c *ruleset.Chain) bool {
		return slices.Contains(always, c.Name) || slices.ContainsFunc(c.Rules, func(r ruleset.Rule) bool {
			return slices.ContainsFunc(r.Matches, func(m ruleset.Match) bool { return m.Op == ruleset.OpSet && named(m.Set) })
		})
	}
	for _, c := range p.rules {
		if asks(c) && slices.Contains(p.flush, c.Name) { // else the chain is new
			out.flush = append(out.flush, c.Name)
			out.rules = append(out.rules, c)
		}
	}
	return out
}
