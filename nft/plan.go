package nft

import (
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/nftfw/nftfw/pkg/addrset"
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

	formerRules map[string][]string // text of the rules that flush takes away, for Lines
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
	set    *ruleset.Set // the set as it will be
	all    bool         // everything in set is added; the lists are empty
	delete []element
	add    []element
}

// added yields the elements that are added.
func (c elementChange) added() iter.Seq[element] {
	if !c.all {
		return slices.Values(c.add)
	}
	return contents(c.set)
}

// contents yields the elements of a set, in no order where they are keys.
func contents(s *ruleset.Set) iter.Seq[element] {
	return func(yield func(element) bool) {
		for _, g := range s.Ranges.All() {
			if !yield(rangeElement(g)) {
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
	if c.all {
		return len(c.set.Elements) + c.set.Ranges.Len()
	}
	return len(c.delete) + len(c.add)
}

// Empty reports whether there is nothing to send.
func (p Plan) Empty() bool { return p.Size() == 0 }

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

// Lines gives the plan for people: what goes after "- ", what comes after "+ ".
// Rules that stay but are sent again, because their chain is, are left out.
func (p Plan) Lines() []string {
	var out []string
	switch p.begin {
	case deleteTable:
		return []string{"- table inet " + p.table}
	case replaceTable:
		out = append(out, "- table inet "+p.table, "+ table inet "+p.table)
	case createTable:
		out = append(out, "+ table inet "+p.table)
	case keepTable:
	}
	for _, name := range p.goneSets {
		out = append(out, "- set "+name)
	}
	for _, name := range p.goneChains {
		out = append(out, "- chain "+name)
	}
	for _, s := range p.newSets {
		out = append(out, fmt.Sprintf("+ %s %s { type %s }", setKind(s), s.Name, s.TypeText()))
	}
	for _, c := range p.newChains {
		out = append(out, "+ chain "+chainText(c))
	}
	for _, c := range p.policies {
		out = append(out, "~ chain "+chainText(c))
	}
	for _, name := range p.flush {
		out = append(out, p.ruleLines(name)...)
	}
	for _, c := range p.rules {
		if !slices.Contains(p.flush, c.Name) {
			for _, r := range c.Rules {
				out = append(out, "+ rule "+c.Name+" "+r.String())
			}
		}
	}
	for _, c := range p.elements {
		for _, e := range c.delete {
			out = append(out, "- element "+elementText(c.set, e))
		}
		for _, e := range sortElements(slices.Collect(c.added())) {
			out = append(out, "+ element "+elementText(c.set, e))
		}
	}
	return out
}

// ruleLines compares the rules that a chain loses with those that it gets.
func (p Plan) ruleLines(chain string) []string {
	var now []string
	for _, c := range p.rules {
		if c.Name == chain {
			for _, r := range c.Rules {
				now = append(now, r.String())
			}
		}
	}
	return lineDiff(chain, p.formerRules[chain], now)
}

// foreignRule stands for a rule that was read and is none of the wanted ones.
const foreignRule = "(a rule that is not in this policy)"

// lineDiff gives the shortest list of - and + lines.
func lineDiff(chain string, before, after []string) []string {
	// common[i][j] is the length of the longest common list of before[i:] and after[j:].
	common := make([][]int, len(before)+1)
	for i := range common {
		common[i] = make([]int, len(after)+1)
	}
	for i := len(before) - 1; i >= 0; i-- {
		for j := len(after) - 1; j >= 0; j-- {
			if before[i] == after[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	var out []string
	i, j := 0, 0
	for i < len(before) || j < len(after) {
		switch {
		case i < len(before) && j < len(after) && before[i] == after[j]:
			i, j = i+1, j+1
		case j == len(after) || i < len(before) && common[i+1][j] >= common[i][j+1]:
			out = append(out, "- rule "+chain+" "+before[i])
			i++
		default:
			out = append(out, "+ rule "+chain+" "+after[j])
			j++
		}
	}
	return out
}

func setKind(s *ruleset.Set) string {
	if s.Verdicts {
		return "map"
	}
	return "set"
}

func chainText(c *ruleset.Chain) string {
	if c.Hook == "" {
		return c.Name
	}
	return fmt.Sprintf("%s { type filter hook %s priority %d; policy %s; }", c.Name, c.Hook, c.Priority, c.Policy)
}

func elementText(s *ruleset.Set, e element) string {
	text := s.Name + " "
	switch {
	case len(e.key) != int(definitionOf(s).keyLen):
		return text + "(an element that nftfw does not know)"
	case s.Interval:
		g := segmentOf(e)
		text += addrset.Range{From: g.From, To: g.To}.String()
		if !e.expires.IsZero() {
			text += " expires " + e.expires.UTC().Format(time.RFC3339)
		}
	default:
		text += decodeKey(s.Key, e.key).Format(s.Key)
	}
	if e.comment != "" {
		text += fmt.Sprintf(" comment %q", e.comment)
	}
	if s.Verdicts {
		text += " : " + e.verdict.String()
	}
	return text
}
