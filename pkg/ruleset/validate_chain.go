package ruleset

import (
	"fmt"
	"math/bits"
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
	if len(r.Matches) == 0 && r.Limit == nil && !r.Counter && r.Log == nil && r.Update == nil && r.VMap == nil && r.Verdict.Kind == NoVerdict {
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
	if r.Update != nil {
		v.update(r)
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
		// Of two bits nft lists "a | b", which it reads back as any of them.
		fits = m.Num <= maxNum(info) && (f != NFProto || m.Num == NFProtoIPv4 || m.Num == NFProtoIPv6) &&
			(info.kind != kindBits || m.Not || bits.OnesCount32(m.Num) < 2) &&
			(info.kind != kindFlag || !m.Not)
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
	case kindFlag:
		return 1
	case kindRaw:
		return 1<<24 - 1
	default:
		return 0
	}
}

// protocols refuses rules that ask for two families or two L4 protocols, for
// the same one twice, or for ports of a protocol that has none. They match
// nothing or no more than without, and nft either refuses them or lists them
// as another rule.
func (v *validator) protocols(r *Rule) {
	p := pinned{v: v}
	for i, m := range r.Matches {
		p.port(i, m)
		p.fields(m.Fields)
		if m.Op != OpNum || m.Not {
			continue
		}
		switch f := m.Fields[0]; f {
		case NFProto:
			p.twice(f, &p.saidFamily)
			p.wantFamily(f, m.Num)
		case L4Proto:
			p.twice(f, &p.saidProto)
			p.wantProto(f, uint8(m.Num))
		default:
		}
	}
	if r.Update != nil {
		p.fields(r.Update.Key)
	}
	if r.VMap != nil {
		p.fields(r.VMap.Key)
	}
}

// pinned is what the matches of a rule have pinned down so far.
type pinned struct {
	v                     *validator
	family                uint32
	proto                 l4Context
	saidFamily, saidProto bool           // by a match of its own
	ports                 [2]portMatches // with == and with !=
}

// portMatches are the comparisons of a port with a number so far.
type portMatches struct {
	n    int
	last int  // index of the last one
	pair bool // it may be the first half of sport a dport b
}

// port refuses two ports that nft would not keep as they are written: it joins
// them into one comparison of 4 bytes. "udp sport a udp dport b" comes out as
// it went in; in another order, with something in between or of no protocol in
// particular the listing is different, and of "sport != a dport != b" nft makes
// something that is true as soon as one of them differs.
func (p *pinned) port(i int, m Match) {
	if m.Op != OpNum || m.Fields[0].info().kind != kindPort {
		return
	}
	seen := &p.ports[0]
	if m.Not {
		seen = &p.ports[1]
	}
	seen.n++
	if seen.n > 1 && (seen.n > 2 || !seen.pair || seen.last != i-1 || m.Fields[0] != Dport) {
		p.v.failf("two ports that nft lists otherwise: sport and then dport belong side by side, after the protocol")
	}
	seen.last, seen.pair = i, m.Fields[0] == Sport && !m.Not && p.proto.known
}

func (p *pinned) twice(f Field, said *bool) {
	if *said {
		p.v.failf("asks for %q twice", f)
	}
	*said = true
}

func (p *pinned) wantFamily(f Field, family uint32) {
	if p.family != 0 && p.family != family {
		p.v.failf("%q contradicts the family that the rule asks for", f)
	}
	p.family = family
}

func (p *pinned) wantProto(f Field, proto uint8) {
	if p.proto.known && p.proto.proto != proto {
		p.v.failf("%q contradicts the protocol that the rule asks for", f)
	}
	p.proto = l4Context{proto, true}
}

func (p *pinned) fields(list []Field) {
	for _, f := range list {
		info := f.info()
		if info.family != 0 {
			p.wantFamily(f, info.family)
		}
		if info.needs != 0 {
			p.wantProto(f, info.needs)
		}
		if info.kind == kindPort && p.proto.known && !hasPorts(p.proto.proto) {
			p.v.failf("%q of protocol %s, which has no ports", f, ProtocolName(p.proto.proto))
		}
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
