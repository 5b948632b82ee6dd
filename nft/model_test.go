package nft

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nftfw/nftfw/pkg/ruleset"
)

// model is a kernel that holds one table, and refuses what the real one does:
// see the facts about nf_tables that TestErrors shows.
type model struct {
	exists bool
	chains map[string]*ruleset.Chain
	sets   map[string]*modelSet
}

type modelSet struct {
	set      *ruleset.Set // its type
	elements map[string]element
}

func newModel() *model {
	return &model{chains: map[string]*ruleset.Chain{}, sets: map[string]*modelSet{}}
}

// modelOf is the model that holds t.
func modelOf(t *ruleset.Table, now time.Time) (*model, error) {
	m := newModel()
	return m, m.apply(whole(t, createTable), now)
}

// apply does what Commit sends for a plan, in its order.
func (m *model) apply(p Plan, now time.Time) error {
	if m.exists != (p.begin == keepTable || p.begin == replaceTable || p.begin == deleteTable) && !p.Empty() {
		return fmt.Errorf("the table is there: %v; the plan begins with %d", m.exists, p.begin)
	}
	if p.begin == replaceTable || p.begin == deleteTable {
		*m = *newModel()
	}
	m.exists = m.exists || p.begin == createTable || p.begin == replaceTable
	for _, s := range p.newSets {
		if m.sets[s.Name] != nil {
			return fmt.Errorf("set %s: EEXIST", s.Name)
		}
		m.sets[s.Name] = &modelSet{set: s, elements: map[string]element{}}
	}
	for _, c := range p.newChains {
		if m.chains[c.Name] != nil {
			return fmt.Errorf("chain %s: EEXIST", c.Name)
		}
		m.chains[c.Name] = &ruleset.Chain{Name: c.Name, Hook: c.Hook, Priority: c.Priority, Policy: c.Policy}
	}
	for _, c := range p.policies {
		have := m.chains[c.Name]
		if have == nil || have.Hook != c.Hook || have.Priority != c.Priority {
			return fmt.Errorf("policy of chain %s: ENOENT or EOPNOTSUPP", c.Name)
		}
		have.Policy = c.Policy
	}
	if err := m.changeRules(p); err != nil {
		return err
	}
	for _, c := range p.elements {
		if err := m.changeElements(c, now); err != nil {
			return err
		}
	}
	return m.remove(p)
}

func (m *model) changeRules(p Plan) error {
	for _, name := range p.flush {
		if m.chains[name] == nil {
			return fmt.Errorf("flush chain %s: ENOENT", name)
		}
		m.chains[name].Rules = nil
	}
	for _, c := range p.rules {
		for _, r := range c.Rules {
			if m.chains[c.Name] == nil {
				return fmt.Errorf("rule of chain %s: ENOENT", c.Name)
			}
			chains, sets := refersTo(r)
			for _, name := range chains {
				if m.chains[name] == nil {
					return fmt.Errorf("rule %s: no chain %s", r, name)
				}
			}
			for _, name := range sets {
				if m.sets[name] == nil {
					return fmt.Errorf("rule %s: no set %s", r, name)
				}
			}
			m.chains[c.Name].Rules = append(m.chains[c.Name].Rules, r)
		}
	}
	return nil
}

func refersTo(r ruleset.Rule) (chains, sets []string) {
	if r.Verdict.Chain != "" {
		chains = append(chains, r.Verdict.Chain)
	}
	if r.VMap != nil {
		sets = append(sets, r.VMap.Map)
	}
	for _, match := range r.Matches {
		if match.Set != "" {
			sets = append(sets, match.Set)
		}
	}
	return chains, sets
}

func (m *model) changeElements(c elementChange, now time.Time) error {
	s := m.sets[c.set.Name]
	if s == nil || definitionOf(s.set) != definitionOf(c.set) {
		return fmt.Errorf("elements of set %s: there is none of that type", c.set.Name)
	}
	if c.flush || c.recount {
		clear(s.elements)
	}
	for _, e := range c.deleted() {
		if old, ok := s.elements[string(e.key)]; !ok || !bytes.Equal(old.end, e.end) {
			return fmt.Errorf("delete element %s: ENOENT", elementText(c.set, e))
		}
		delete(s.elements, string(e.key))
	}
	for e := range c.added() {
		if !e.expires.IsZero() && !e.expires.After(now) {
			continue
		}
		if err := m.fits(s, e); err != nil {
			return fmt.Errorf("add element %s: %w", elementText(c.set, e), err)
		}
		s.elements[string(e.key)] = e
	}
	return nil
}

func (m *model) fits(s *modelSet, e element) error {
	if e.verdict.Chain != "" && m.chains[e.verdict.Chain] == nil {
		return fmt.Errorf("ENOENT: no chain %s", e.verdict.Chain)
	}
	if _, taken := s.elements[string(e.key)]; taken {
		return fmt.Errorf("EEXIST")
	}
	if !s.set.Interval {
		return nil
	}
	for _, o := range s.elements {
		before, behind := o, e
		if bytes.Compare(e.key, o.key) < 0 {
			before, behind = e, o
		}
		if before.end == nil || bytes.Compare(before.end, behind.key) > 0 {
			return fmt.Errorf("EEXIST: overlaps %s", elementText(s.set, o))
		}
	}
	return nil
}

// remove deletes sets and chains that nothing refers to any more.
func (m *model) remove(p Plan) error {
	used := func(name string, chain bool) error {
		for _, c := range m.chains {
			for _, r := range c.Rules {
				chains, sets := refersTo(r)
				if chain && slices.Contains(chains, name) || !chain && slices.Contains(sets, name) {
					return fmt.Errorf("delete %s: EBUSY: rule %s", name, r)
				}
			}
		}
		for _, s := range m.sets {
			for _, e := range s.elements {
				if chain && e.verdict.Chain == name {
					return fmt.Errorf("delete %s: EBUSY: an element of %s", name, s.set.Name)
				}
			}
		}
		return nil
	}
	for _, name := range p.goneSets {
		if m.sets[name] == nil {
			return fmt.Errorf("delete set %s: ENOENT", name)
		}
		if err := used(name, false); err != nil {
			return err
		}
		delete(m.sets, name)
	}
	for _, name := range p.goneChains {
		if m.chains[name] == nil {
			return fmt.Errorf("delete chain %s: ENOENT", name)
		}
		if err := used(name, true); err != nil {
			return err
		}
		delete(m.chains, name)
	}
	return nil
}

// describe writes the model down, for comparison.
func (m *model) describe() map[string][]string {
	out := map[string][]string{}
	if m.exists {
		out["table"] = nil
	}
	for name, c := range m.chains {
		var lines []string
		for _, r := range c.Rules {
			lines = append(lines, r.String())
		}
		out["chain "+chainText(c)] = lines
		_ = name
	}
	for _, s := range m.sets {
		var lines []string
		for _, e := range s.elements {
			lines = append(lines, elementText(s.set, e))
		}
		slices.Sort(lines)
		out[fmt.Sprintf("set %s %+v", s.set.Name, definitionOf(s.set))] = lines
	}
	return out
}

// observed is the state as Observe would read it.
func (m *model) observed(t *testing.T, name string) *State {
	t.Helper()
	if !m.exists {
		return &State{}
	}
	s := &State{name: name, exists: true}
	for _, c := range m.chains {
		state := chainState{read: true, def: &ruleset.Chain{Name: c.Name, Hook: c.Hook, Priority: c.Priority, Policy: c.Policy}}
		for _, r := range c.Rules {
			b, err := marshalRule(r)
			if err != nil {
				t.Fatal(err)
			}
			state.rules = append(state.rules, canonical(b))
		}
		s.chains = append(s.chains, state)
	}
	for _, set := range m.sets {
		state := setState{name: set.set.Name, def: definitionOf(set.set)}
		for _, e := range set.elements {
			state.elements = append(state.elements, e)
		}
		sortElements(state.elements)
		s.sets = append(s.sets, state)
	}
	return s
}

// bytesSource makes the decisions of a random table those of a fuzzer: a byte
// each, and once they are used up always the same ones.
type bytesSource struct {
	data []byte
	rest *rand.PCG
}

func (s *bytesSource) Uint64() uint64 {
	low := s.rest.Uint64() >> 8
	if len(s.data) == 0 {
		return low << 8
	}
	b := s.data[0]
	s.data = s.data[1:]
	return uint64(b)<<56 | low
}

func tableOf(data []byte, now time.Time) *ruleset.Table {
	if len(data) == 0 {
		return nil
	}
	return randomTable(rand.New(&bytesSource{data: data, rest: rand.NewPCG(1, 1)}), now)
}

// Whatever two tables there are: the plan from one to the other is one that the
// kernel takes, it leads to the other, and nothing is left to do then. That
// holds for what is remembered and for what is read.
func FuzzDiff(f *testing.F) {
	f.Add([]byte{}, []byte{1})
	f.Add([]byte{1}, []byte{})
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 2))
		data := make([]byte, 200)
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		f.Add(data[:100], data[100:])
		f.Add(data[:100], append(slices.Clone(data[:90]), 7, 8, 9)) // much in common
	}
	now := time.Unix(1<<31, 0)
	f.Fuzz(func(t *testing.T, one, other []byte) {
		from, to, again := tableOf(one, now), tableOf(other, now), tableOf(other, now)
		for _, table := range []*ruleset.Table{from, to} {
			if table != nil && table.Validate() != nil {
				t.Skip("no valid table")
			}
		}
		want := newModel()
		if to != nil {
			var err error
			if want, err = modelOf(to, now); err != nil {
				t.Fatalf("make the wanted table: %v", err)
			}
		}
		for _, way := range []string{"remembered", "read"} {
			m := newModel()
			if from != nil {
				var err error
				if m, err = modelOf(from, now); err != nil {
					t.Fatalf("make the first table: %v", err)
				}
			}
			have := StateOf(from)
			if way == "read" {
				have = m.observed(t, "rnd")
			}
			p := Diff(have, to, now)
			if err := m.apply(p, now); err != nil {
				t.Fatalf("%s: the plan is refused: %v\n%v", way, err, p.Lines())
			}
			if diff := cmp.Diff(want.describe(), m.describe()); diff != "" {
				t.Errorf("%s: applied, it gives (-want +got):\n%s", way, diff)
			}
			if p := Diff(m.observed(t, "rnd"), again, now); !p.Empty() {
				t.Errorf("%s: a second plan, from what would be read then: %v", way, p.Lines())
			}
			if p := Diff(StateOf(to), again, now); !p.Empty() {
				t.Errorf("%s: a second plan, from what is remembered then: %v", way, p.Lines())
			}
		}
	})
}
