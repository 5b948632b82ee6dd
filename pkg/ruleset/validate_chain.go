package ruleset

import (
	"fmt"
	"slices"
	"strings"
)

func (v *validator) chain(c *Chain) {
	v.name("chain", c.Name)
	where := v.where
	switch c.Hook {
	case "":
		if c.Policy != NoVerdict || c.Priority != 0 {
			v.failf("a regular chain has neither policy nor priority")
		}
	case Prerouting, Input, Forward, Output, Postrouting:
		if c.Policy != Accept && c.Policy != Drop {
			v.failf("the policy of a base chain is accept or drop, not %q", c.Policy)
		}
	default:
		v.failf("no such hook: %q", c.Hook)
	}
	for i := range c.Rules {
		v.where = fmt.Sprintf("%s rule %d", where, i)
		v.rule(&c.Rules[i])
	}
	v.where = where
}

func (v *validator) rule(r *Rule) {
	if len(r.Matches) == 0 && r.Limit == nil && !r.Counter && r.Log == nil && r.VMap == nil && r.Verdict.Kind == NoVerdict {
		v.failf("nothing in it")
	}
	before := len(v.errs)
	for _, m := range r.Matches {
		v.match(m)
	}
	if len(v.errs) == before {
		v.protocols(r)
	}
	if l := r.Limit; l != nil {
		if l.Rate == 0 || !slices.Contains([]string{"second", "minute", "hour", "day"}, l.Unit) {
			v.failf("no limit: %d/%s", l.Rate, l.Unit)
		}
	}
	if l := r.Log; l != nil {
		// nft expands $name in a prefix.
		if len(l.Prefix) > maxLogPrefix || !isQuotable(l.Prefix) || strings.Contains(l.Prefix, "$") {
			v.failf("nft cannot write the log prefix %q", l.Prefix)
		}
	}
	if r.VMap == nil {
		v.verdict(r.Verdict)
		return
	}
	if r.Verdict != (Verdict{}) {
		v.failf("both a verdict and a verdict map")
	}
	v.lookup(r.VMap.Map, r.VMap.Key, true)
}

// lookup checks that fields can be looked up in the set or map called name.
func (v *validator) lookup(name string, fields []Field, verdicts bool) {
	s := v.table.Set(name)
	switch {
	case s == nil:
		v.failf("no such set: @%s", name)
	case s.Verdicts && !verdicts:
		v.failf("@%s is a verdict map", name)
	case !s.Verdicts && verdicts:
		v.failf("@%s is no verdict map", name)
	default:
		types := func(fields []Field) (list []string) {
			for _, f := range fields {
				list = append(list, f.KeyType())
			}
			return list
		}
		if !slices.Equal(types(fields), types(s.Key)) {
			v.failf("%s do not fit @%s of type %s", fields, name, s.TypeText())
		}
	}
}

func (v *validator) match(m Match) {
	if len(m.Fields) == 0 || m.Op != OpSet && len(m.Fields) != 1 || slices.ContainsFunc(m.Fields, func(f Field) bool { return f.String() == "" }) {
		v.failf("a match has one field, or for a set the fields of its key")
		return
	}
	f := m.Fields[0]
	info := f.info()
	fits := false
	switch m.Op {
	case OpSet:
		v.lookup(m.Set, m.Fields, false)
		return
	case OpNum:
		fits = m.Num <= maxNum(info)
	case OpRange:
		fits = (info.kind == kindPort || info.kind == kindICMP || f == L4Proto) && m.Num < m.High && m.High <= maxNum(info)
	case OpPrefix:
		fits = info.kind == kindAddr && m.Prefix.IsValid() && inFamily(m.Prefix.Addr(), info.family)
	case OpName:
		fits = info.kind == kindIface && isIface(m.Name)
	case OpBits:
		fits = info.kind == kindBits && m.Num != 0 && !m.Not
	}
	if !fits {
		v.failf("%q: not an operand of %q", strings.TrimSpace(m.String()), f)
	}
}

// maxNum is the greatest number that the field can be compared with.
func maxNum(info fieldInfo) uint32 {
	switch info.kind {
	case kindProto, kindICMP:
		return 1<<8 - 1
	case kindPort:
		return 1<<16 - 1
	case kindBits:
		return 1<<32 - 1
	default:
		return 0
	}
}

// protocols refuses rules that ask for two families or two L4 protocols, and
// ports of a protocol that has none. They could not match, and nft either
// refuses them or lists them as another rule.
func (v *validator) protocols(r *Rule) {
	var family uint32
	var proto l4Context
	need := func(f Field, wantFamily uint32, wantProto l4Context) {
		if wantFamily != 0 {
			if family != 0 && family != wantFamily {
				v.failf("%s contradicts the family that the rule asks for", f)
			}
			family = wantFamily
		}
		if wantProto.known {
			if proto.known && proto != wantProto {
				v.failf("%s contradicts the protocol that the rule asks for", f)
			}
			proto = wantProto
		}
	}
	fields := func(list []Field) {
		for _, f := range list {
			info := f.info()
			need(f, info.family, l4Context{info.needs, info.needs != 0})
			if info.kind == kindPort && proto.known && !hasPorts(proto.proto) {
				v.failf("%s of protocol %s, which has no ports", f, ProtocolName(proto.proto))
			}
		}
	}
	for _, m := range r.Matches {
		fields(m.Fields)
		if m.Op != OpNum || m.Not {
			continue
		}
		switch f := m.Fields[0]; f {
		case NFProto:
			need(f, m.Num, l4Context{})
		case L4Proto:
			need(f, 0, l4Context{uint8(m.Num), true})
		default:
		}
	}
	if r.VMap != nil {
		fields(r.VMap.Key)
	}
}

// depth follows jumps and gotos from every base chain. The kernel refuses
// circles, and chains more than 15 calls away from a base chain
// (nft_chain_validate, net/netfilter/nf_tables_api.c).
func (v *validator) depth() {
	levels := make(map[string]int) // calls below a chain
	state := make(map[string]bool) // false: being visited
	var visit func(c *Chain) int
	visit = func(c *Chain) int {
		if done, ok := state[c.Name]; ok {
			if !done {
				v.where = fmt.Sprintf("chain %q", c.Name)
				v.failf("jumps lead back to it")
			}
			return levels[c.Name]
		}
		state[c.Name] = false
		deepest := 0
		for _, name := range v.calls(c) {
			deepest = max(deepest, 1+visit(v.table.Chain(name)))
		}
		state[c.Name], levels[c.Name] = true, deepest
		return deepest
	}
	for _, c := range v.table.Chains {
		if n := visit(c); n >= jumpStackSize && c.Hook != "" {
			v.where = fmt.Sprintf("chain %q", c.Name)
			v.failf("its jumps go %d deep, more than %d", n, jumpStackSize-1)
		}
	}
}

// calls gives the chains that c jumps or goes to, each once, in the order in
// which they are met.
func (v *validator) calls(c *Chain) []string {
	var names []string
	seen := make(map[string]bool)
	add := func(verdict Verdict) {
		if verdict.Chain != "" && !seen[verdict.Chain] {
			seen[verdict.Chain] = true
			names = append(names, verdict.Chain)
		}
	}
	for _, r := range c.Rules {
		add(r.Verdict)
		if r.VMap == nil {
			continue
		}
		s := v.table.Set(r.VMap.Map)
		for _, name := range s.targets() {
			add(Verdict{Kind: Jump, Chain: name})
		}
	}
	return names
}

// targets gives the chains that the elements of a map name, sorted.
func (s *Set) targets() []string {
	seen := make(map[string]bool)
	var names []string
	for _, e := range s.Elements {
		if e.Verdict.Chain != "" && !seen[e.Verdict.Chain] {
			seen[e.Verdict.Chain] = true
			names = append(names, e.Verdict.Chain)
		}
	}
	slices.Sort(names)
	return names
}
