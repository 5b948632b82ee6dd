package nft

import (
	"slices"

	"github.com/nftfw/nftfw/pkg/ruleset"
)

// OnlySets gives the part of p that changes the contents of the named sets,
// which must be there already. The rest is left out: nothing else is created,
// changed or removed.
func (p Plan) OnlySets(names ...string) Plan {
	if p.begin != keepTable {
		return Plan{table: p.table}
	}
	out := Plan{table: p.table}
	for _, c := range p.elements {
		isNew := slices.ContainsFunc(p.newSets, func(s *ruleset.Set) bool { return s.Name == c.set.Name })
		if !isNew && slices.Contains(names, c.set.Name) {
			out.elements = append(out.elements, c)
		}
	}
	return out
}
