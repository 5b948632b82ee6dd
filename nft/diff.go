package nft

import (
	"bytes"
	"cmp"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/ruleset"
)

const (
	// expiryMargin is how close to its end an element is left alone: it goes by
	// itself, and deleting it might come too late.
	expiryMargin = 50 * time.Millisecond
	// expiryDoubt is for how long after its end an element may still be there by
	// the kernel's clock.
	expiryDoubt = time.Second
	// expiryTolerance is how far an expiry that was read from the kernel may be
	// from the one that was asked for.
	expiryTolerance = 2 * time.Second
)

// Diff gives the plan that turns have into want; a want of nil is no table. What
// did not change is not in the plan, and set contents that both share are not
// looked at. Elements that have expired at now are taken as gone.
//
// Where the parts that changed can be changed one by one they are; a set whose
// type changed, a base chain whose hook or priority changed, and a table with
// flags or objects of somebody else are put right by replacing the table.
func Diff(have *State, want *ruleset.Table, now time.Time) Plan {
	switch {
	case want == nil && !have.Exists():
		return Plan{}
	case want == nil:
		return Plan{table: have.name, begin: deleteTable}
	case !have.Exists():
		return whole(want, createTable)
	case mustReplace(have, want):
		return whole(want, replaceTable)
	}
	p := Plan{table: want.Name, formerRules: map[string][]Line{}}
	p.diffChains(have, want)
	p.diffSets(have, want, now)
	return p
}

// whole is the plan that makes all of t.
func whole(t *ruleset.Table, begin beginning) Plan {
	p := Plan{table: t.Name, begin: begin, newSets: t.Sets, newChains: t.Chains}
	for _, c := range t.Chains {
		if len(c.Rules) > 0 {
			p.rules = append(p.rules, c)
		}
	}
	for _, s := range t.Sets {
		if c := (elementChange{set: s, all: true}); c.size() > 0 {
			p.elements = append(p.elements, c)
		}
	}
	return p
}

func mustReplace(have *State, want *ruleset.Table) bool {
	if have.odd || have.name != want.Name {
		return true
	}
	chains, sets := chainsByName(want), setsByName(want)
	for _, h := range have.chains {
		w := chains[h.def.Name]
		if w != nil && (h.odd || h.def.Hook != w.Hook || h.def.Priority != w.Priority) {
			return true
		}
	}
	for i := range have.sets {
		h := &have.sets[i]
		w := sets[h.name]
		if w != nil && (h.odd || h.def != definitionOf(w)) {
			return true
		}
	}
	return false
}

func chainsByName(t *ruleset.Table) map[string]*ruleset.Chain {
	m := make(map[string]*ruleset.Chain, len(t.Chains))
	for _, c := range t.Chains {
		m[c.Name] = c
	}
	return m
}

func setsByName(t *ruleset.Table) map[string]*ruleset.Set {
	m := make(map[string]*ruleset.Set, len(t.Sets))
	for _, s := range t.Sets {
		m[s.Name] = s
	}
	return m
}

func (p *Plan) diffChains(have *State, want *ruleset.Table) {
	wanted := chainsByName(want)
	at := make(map[string]*chainState, len(have.chains))
	for i := range have.chains {
		h := &have.chains[i]
		at[h.def.Name] = h
		if wanted[h.def.Name] == nil && !h.anonymous {
			p.goneChains = append(p.goneChains, h.def.Name)
			p.takeRules(h, nil)
		}
	}
	for _, w := range want.Chains {
		h := at[w.Name]
		switch {
		case h == nil:
			p.newChains = append(p.newChains, w)
			p.rules = append(p.rules, w)
			continue
		case h.def == w:
			continue
		}
		if h.def.Policy != w.Policy {
			p.policies = append(p.policies, w)
		}
		if !h.sameRules(w) {
			p.takeRules(h, w)
			p.rules = append(p.rules, w)
		}
	}
}

// takeRules plans to flush h. Rules may refer to each other's chains and to sets,
// so all go before any chain or set does.
func (p *Plan) takeRules(h *chainState, want *ruleset.Chain) {
	p.flush = append(p.flush, h.def.Name)
	if !h.read {
		for _, r := range h.def.Rules {
			p.formerRules[h.def.Name] = append(p.formerRules[h.def.Name], Line{Text: r.String(), Origin: r.Origin})
		}
		return
	}
	known := map[string]string{}
	if want != nil {
		for _, r := range want.Rules {
			if b, err := marshalRule(r); err == nil {
				known[canonical(b)] = r.String()
			}
		}
	}
	for _, c := range h.rules {
		text, ok := known[c]
		if !ok {
			text = foreignRule
		}
		p.formerRules[h.def.Name] = append(p.formerRules[h.def.Name], Line{Text: text})
	}
}

// sameRules reports whether the chain has the rules of w, in that order.
func (h *chainState) sameRules(w *ruleset.Chain) bool {
	if !h.read {
		return slices.EqualFunc(h.def.Rules, w.Rules, sameRule)
	}
	return slices.EqualFunc(h.rules, w.Rules, func(c string, r ruleset.Rule) bool {
		b, err := marshalRule(r)
		return err == nil && c == canonical(b)
	})
}

// sameRule compares all that reaches the kernel.
func sameRule(a, b ruleset.Rule) bool {
	a.Origin, b.Origin = "", ""
	return reflect.DeepEqual(a, b)
}

func (p *Plan) diffSets(have *State, want *ruleset.Table, now time.Time) {
	wanted := setsByName(want)
	at := make(map[string]*setState, len(have.sets))
	for i := range have.sets {
		h := &have.sets[i]
		at[h.name] = h
		if wanted[h.name] == nil {
			p.goneSets = append(p.goneSets, h.name)
		}
	}
	for _, w := range want.Sets {
		h := at[w.Name]
		if h == nil {
			p.newSets = append(p.newSets, w)
			if c := (elementChange{set: w, all: true}); c.size() > 0 {
				p.elements = append(p.elements, c)
			}
			continue
		}
		c := diffElements(h, w, now)
		// Under another policy a chain's refusals are other than those that were
		// counted: where nobody was refused, somebody would have been.
		c.recount = w.Counter && len(p.policies) > 0
		if c.size() > 0 {
			p.elements = append(p.elements, c)
		}
	}
}

func diffElements(h *setState, w *ruleset.Set, now time.Time) elementChange {
	c := elementChange{set: w}
	switch {
	case w.Dynamic:
	case h.unread:
		c.all, c.flush = true, true
	case h.set == nil && w.HoldsRanges():
		c.ranges(h.elements, pieceElements(w), expiryTolerance, now)
	case h.set == nil:
		c.seenKeys(h.elements, w)
	case w.HoldsRanges():
		c.pieces(h.set, now)
	case len(h.set.Elements) == 0:
		c.all = true
	default:
		if !sameMap(h.set.Elements, w.Elements) {
			c.keys(h.set.Elements, w.Elements)
		}
	}
	return c
}

// sameMap reports whether both are one map, which is then not walked.
func sameMap(a, b map[ruleset.Key]ruleset.Element) bool {
	return reflect.ValueOf(a).Pointer() == reflect.ValueOf(b).Pointer()
}

func pieceElements(s *ruleset.Set) []element {
	out := make([]element, 0, s.PieceCount())
	for g := range s.Pieces() {
		out = append(out, pieceElement(s, g))
	}
	return out
}

// appendPiece appends what g is in s to list; the zero Segment is nothing.
func appendPiece(list []element, s *ruleset.Set, g addrset.Segment) []element {
	if g.From.IsValid() {
		for e := range s.Split(g) {
			list = append(list, pieceElement(s, e))
		}
	}
	return list
}

// manyChanges is from how many changes on a set is rather filled, or written
// anew where they are more than half of it: a list of the changes would take
// several times the memory of the set.
const manyChanges = 10_000

// pieces compares with what a set was made to hold.
func (c *elementChange) pieces(had *ruleset.Set, now time.Time) {
	w := c.set
	switch {
	case had.Part != w.Part:
		c.ranges(pieceElements(had), pieceElements(w), 0, now)
		return
	case had.Ranges == w.Ranges:
		return
	case had.PieceCount() == 0 && w.PieceCount() > manyChanges:
		c.all = true
		return
	}
	// Of changes that overlap, until one begins behind their end.
	var have, want []element
	var end netip.Addr
	for change := range w.PieceChanges(had.Ranges) {
		from, to := change.Span()
		if end.Less(from) {
			c.ranges(have, want, 0, now)
			have, want = have[:0], want[:0]
			if n := len(c.add) + len(c.delete); w.Singles() && n > manyChanges && n > w.PieceCount()/2 {
				*c = elementChange{set: w, all: true, flush: true}
				return
			}
		}
		have, want = appendPiece(have, w, change.Old), appendPiece(want, w, change.New)
		if end.Less(to) {
			end = to
		}
	}
	c.ranges(have, want, 0, now)
}

// ranges compares two lists of ranges, both sorted by key.
func (c *elementChange) ranges(have, want []element, tolerance time.Duration, now time.Time) {
	i, j := 0, 0
	for i < len(have) || j < len(want) {
		order := 0
		switch {
		case i == len(have):
			order = 1
		case j == len(want):
			order = -1
		default:
			order = bytes.Compare(have[i].key, want[j].key)
		}
		switch {
		case order < 0:
			c.drop(have[i], now)
			i++
		case order > 0:
			c.put(want[j], now)
			j++
		default:
			c.change(have[i], want[j], tolerance, now)
			i, j = i+1, j+1
		}
	}
}

// change handles two ranges with one start.
func (c *elementChange) change(have, want element, tolerance time.Duration, now time.Time) {
	same := !have.odd && bytes.Equal(have.end, want.end) && sameExpiry(have.expires, want.expires, tolerance)
	switch {
	case same && !gone(have, now):
	case !lives(want, now):
		c.drop(have, now)
	default:
		// One that is about to expire, or has just, may be there or not. It must
		// not be left to the end of a new one, so it is deleted; if it is gone by
		// then the kernel refuses, and a new look at the table tells.
		if !gone(have, now) {
			c.delete = append(c.delete, have)
		}
		c.add = append(c.add, want)
	}
}

func (c *elementChange) drop(have element, now time.Time) {
	if lives(have, now) {
		c.delete = append(c.delete, have)
	}
}

func (c *elementChange) put(want element, now time.Time) {
	if lives(want, now) {
		c.add = append(c.add, want)
	}
}

// lives reports whether e is there for long enough to bother.
func lives(e element, now time.Time) bool {
	return e.expires.IsZero() || e.expires.After(now.Add(expiryMargin))
}

// gone reports whether e is certainly not there any more.
func gone(e element, now time.Time) bool {
	return !e.expires.IsZero() && e.expires.Before(now.Add(-expiryDoubt))
}

func sameExpiry(a, b time.Time, tolerance time.Duration) bool {
	if a.IsZero() || b.IsZero() {
		return a.IsZero() && b.IsZero()
	}
	return a.Sub(b).Abs() <= tolerance
}

// keys compares two maps.
func (c *elementChange) keys(have, want map[ruleset.Key]ruleset.Element) {
	for k, h := range have {
		w, ok := want[k]
		if ok && h.Verdict == w.Verdict && h.Comment == w.Comment {
			continue
		}
		c.delete = append(c.delete, keyElement(c.set.Key, k, h))
		if ok {
			c.add = append(c.add, keyElement(c.set.Key, k, w))
		}
	}
	for k, w := range want {
		if _, ok := have[k]; !ok {
			c.add = append(c.add, keyElement(c.set.Key, k, w))
		}
	}
	sortElements(c.delete)
	sortElements(c.add)
}

// seenKeys compares elements that were read with a wanted set.
func (c *elementChange) seenKeys(have []element, want *ruleset.Set) {
	missing := make(map[string]element, len(want.Elements))
	for k, v := range want.Elements {
		e := keyElement(want.Key, k, v)
		missing[string(e.key)] = e
	}
	for _, h := range have {
		w, ok := missing[string(h.key)]
		if ok && !h.odd && h.verdict == w.verdict && h.comment == w.comment {
			delete(missing, string(h.key))
			continue
		}
		c.delete = append(c.delete, h)
	}
	for _, w := range missing {
		c.add = append(c.add, w)
	}
	sortElements(c.delete)
	sortElements(c.add)
}

// sortElements sorts by key, and returns list.
func sortElements(list []element) []element {
	slices.SortFunc(list, func(a, b element) int {
		return cmp.Or(bytes.Compare(a.key, b.key), bytes.Compare(a.end, b.end))
	})
	return list
}
