package nft

import (
	"iter"
	"slices"

	"github.com/nftfw/nftfw/pkg/ruleset"
)

// Plan is what turns a table into another. The zero Plan does nothing. It is
// not changed once made, and shares contents with the tables that it was made
// from. Element times are absolute; Commit turns them into timeouts.
type Plan struct {
	table string
	begin beginning

	newSets    []*ruleset.Set
	newChains  []*ruleset.Chain
	policies   []*ruleset.Chain // base chains whose policy changes
	flush      []string         // chains that lose their rules
	rules      []*ruleset.Chain // chains whose rules are all added
	elements   []elementChange
	goneSets   []string
	goneChains []string

	formerRules map[string][]Line // what flush takes away, without signs, for Changes
}

// beginning is what happens to the table as a whole.
type beginning uint8

const (
	keepTable    beginning = iota
	createTable            // it is not there
	replaceTable           // delete and create
	deleteTable
)

// elementChange is what happens to the contents of one set.
type elementChange struct {
	set     *ruleset.Set // the set as it will be
	all     bool         // everything in set is added; the lists are empty
	flush   bool         // what the kernel has in the set goes first
	recount bool         // everything in set is made anew, and what differs is in the lists
	delete  []element
	add     []element
}

// added yields the elements that are added.
func (c elementChange) added() iter.Seq[element] {
	if !c.all && !c.recount {
		return slices.Values(c.add)
	}
	return contents(c.set)
}

// deleted gives the elements that are deleted one by one.
func (c elementChange) deleted() []element {
	if c.recount {
		return nil
	}
	return c.delete
}

// contents yields the elements of a set, in no order where they are keys.
func contents(s *ruleset.Set) iter.Seq[element] {
	return func(yield func(element) bool) {
		for g := range s.Pieces() {
			if !yield(pieceElement(s, g)) {
				return
			}
		}
		for k, v := range s.Elements {
			if !yield(keyElement(s.Key, k, v)) {
				return
			}
		}
	}
}

func (c elementChange) size() int {
	n := len(c.delete) + len(c.add)
	if c.all || c.recount {
		n = len(c.set.Elements) + c.set.PieceCount()
	}
	if c.flush || c.recount {
		n++
	}
	return n
}

// Split gives p in two parts, of which the second has the contents of the sets
// that wait is true for. It is to be committed after the first.
func (p Plan) Split(wait func(set string) bool) (first, second Plan) {
	first, second = p, Plan{table: p.table}
	first.elements = nil
	for _, c := range p.elements {
		part := &first
		if wait(c.set.Name) {
			part = &second
		}
		part.elements = append(part.elements, c)
	}
	return first, second
}

// Empty reports whether there is nothing to send.
func (p Plan) Empty() bool { return p.Size() == 0 }

// AltersRules reports whether the plan makes the table, gives a chain that stands other
// rules or another policy, or makes one that packets come to. Chains that go, as nothing
// leads to them, are no such alteration.
func (p Plan) AltersRules() bool {
	if p.begin != keepTable || len(p.policies) > 0 {
		return true
	}
	return slices.ContainsFunc(p.newChains, func(c *ruleset.Chain) bool { return c.Hook != "" }) ||
		slices.ContainsFunc(p.flush, func(name string) bool { return !slices.Contains(p.goneChains, name) })
}

// Refreshes reports whether the plan does nothing but write sets anew whose
// contents were not read: what they hold may well be what they should.
func (p Plan) Refreshes() bool {
	n := 0
	for _, c := range p.elements {
		if !c.flush {
			return false
		}
		n += c.size()
	}
	return n > 0 && n == p.Size()
}

// Replaces reports whether the whole table is deleted and made again, so that
// counters start again.
func (p Plan) Replaces() bool { return p.begin == replaceTable }

// Size is the number of things that the plan sends: the table, sets, chains,
// rules, and elements (a range is one).
func (p Plan) Size() int {
	n := len(p.newSets) + len(p.newChains) + len(p.policies) + len(p.flush) + len(p.goneSets) + len(p.goneChains)
	if p.begin != keepTable {
		n++
	}
	for _, c := range p.rules {
		n += len(c.Rules)
	}
	for _, c := range p.elements {
		n += c.size()
	}
	return n
}
