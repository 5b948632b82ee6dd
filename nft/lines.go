package nft

import (
	"fmt"
	"slices"
	"time"

	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/ruleset"
)

// Line is one line of a plan for people.
type Line struct {
	// Text begins with "- " for what goes and with "+ " for what comes.
	Text string
	// Origin is that of the rule or element; "" where it has none, or was read
	// from the kernel, which does not keep it.
	Origin string
	// Owner is the comment of an element.
	Owner string
}

// Lines gives the texts of Changes.
func (p Plan) Lines() []string {
	var out []string
	for _, l := range p.Changes() {
		out = append(out, l.Text)
	}
	return out
}

// Changes gives the plan for people. Rules that stay but are sent again,
// because their chain is, are left out.
func (p Plan) Changes() []Line {
	var out []Line
	say := func(format string, args ...any) { out = append(out, Line{Text: fmt.Sprintf(format, args...)}) }
	switch p.begin {
	case deleteTable:
		say("- table inet %s", p.table)
		return out
	case replaceTable:
		say("- table inet %s", p.table)
		say("+ table inet %s", p.table)
	case createTable:
		say("+ table inet %s", p.table)
	case keepTable:
	}
	for _, name := range p.goneSets {
		say("- set %s", name)
	}
	for _, name := range p.goneChains {
		say("- chain %s", name)
	}
	for _, s := range p.newSets {
		say("+ %s %s { type %s }", setKind(s), s.Name, s.TypeText())
	}
	for _, c := range p.newChains {
		say("+ chain %s", chainText(c))
	}
	for _, c := range p.policies {
		former := *c
		if former.Policy = ruleset.Accept; c.Policy == ruleset.Accept {
			former.Policy = ruleset.Drop
		}
		say("- chain %s", chainText(&former))
		say("+ chain %s", chainText(c))
	}
	for _, name := range p.flush {
		out = append(out, p.ruleLines(name)...)
	}
	for _, c := range p.rules {
		if !slices.Contains(p.flush, c.Name) {
			for _, r := range c.Rules {
				out = append(out, ruleLine("+", c.Name, Line{Text: r.String(), Origin: r.Origin}))
			}
		}
	}
	for _, c := range p.elements {
		if c.flush {
			say("- all elements of %s", c.set.Name)
		}
		for _, e := range c.delete {
			out = append(out, elementLine("-", c.set, e))
		}
		c.recount = false // what stays is no news
		for _, e := range sortElements(slices.Collect(c.added())) {
			out = append(out, elementLine("+", c.set, e))
		}
	}
	return out
}

func ruleLine(sign, chain string, rule Line) Line {
	rule.Text = sign + " rule " + chain + " " + rule.Text
	return rule
}

func elementLine(sign string, s *ruleset.Set, e element) Line {
	return Line{Text: sign + " element " + elementText(s, e), Origin: e.origin, Owner: e.comment}
}

// ruleLines compares the rules that a chain loses with those that it gets.
func (p Plan) ruleLines(chain string) []Line {
	var now []Line
	for _, c := range p.rules {
		if c.Name == chain {
			for _, r := range c.Rules {
				now = append(now, Line{Text: r.String(), Origin: r.Origin})
			}
		}
	}
	return lineDiff(chain, p.formerRules[chain], now)
}

// foreignRule stands for a rule that was read and is none of the wanted ones.
const foreignRule = "(a rule that is not in this policy)"

// lineDiff gives the shortest list of - and + lines.
func lineDiff(chain string, before, after []Line) []Line {
	// common[i][j] is the length of the longest common list of before[i:] and after[j:].
	common := make([][]int, len(before)+1)
	for i := range common {
		common[i] = make([]int, len(after)+1)
	}
	for i := len(before) - 1; i >= 0; i-- {
		for j := len(after) - 1; j >= 0; j-- {
			if before[i].Text == after[j].Text {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	var out []Line
	i, j := 0, 0
	for i < len(before) || j < len(after) {
		switch {
		case i < len(before) && j < len(after) && before[i].Text == after[j].Text:
			i, j = i+1, j+1
		case j == len(after) || i < len(before) && common[i+1][j] >= common[i][j+1]:
			out = append(out, ruleLine("-", chain, before[i]))
			i++
		default:
			out = append(out, ruleLine("+", chain, after[j]))
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
	case s.HoldsRanges():
		g := pieceOf(s, e)
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
