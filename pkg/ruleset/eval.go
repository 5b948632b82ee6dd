package ruleset

import (
	"slices"
	"strings"
	"time"
)

// jumpStackSize is NFT_JUMP_STACK_SIZE, net/netfilter/nf_tables.h: a chain
// that takes so many jumps and gotos to reach does not load.
const jumpStackSize = 16

// Trace is what a Table does to a packet, step by step.
type Trace struct {
	Verdict VerdictKind // Accept or Drop
	Steps   []Step
}

// Step is one rule that was looked at, or the policy of a base chain.
type Step struct {
	Chain  string
	Rule   int    // index in the Rules of the chain; -1 for its policy
	Text   string // the rule or "policy drop", as nft prints it
	Result string // "no match", "continue" (matched, without a verdict), or the verdict: "accept", "goto refuse"
	Origin string // of the element that gave the verdict where it has one, else of the rule
	// Element is the set or map element that matched, "172.17.0.2 . tcp . 80 : goto refuse";
	// those of several sets are joined with ", ". "" for none.
	Element string
}

// Eval says what the kernel would do to p with t loaded. It walks every base
// chain of p.Hook in the order of their priorities: accept ends that chain
// only, drop is final. A hook without base chains accepts.
//
// Rate limits never run out here, and dynamic sets are empty. Eval needs a
// Table that Validate accepts; a set or chain that is missing matches nothing,
// and rules that go round in a circle end in a drop.
func (t *Table) Eval(p Packet) Trace {
	w := walk{table: t, traced: true}
	verdict := w.hook(p)
	return Trace{Verdict: verdict, Steps: w.steps}
}

// Decide gives the verdict of Eval without the steps, at a fraction of its
// cost: for those who have many packets to ask about.
func (t *Table) Decide(p Packet) VerdictKind {
	w := walk{table: t}
	return w.hook(p)
}

// baseChains gives the base chains of the hook in the order in which they run.
// Those of equal priority are in the order of the Table; the kernel may turn
// it round, which changes no verdict.
func (t *Table) baseChains(h Hook) []*Chain {
	var list []*Chain
	for _, c := range t.Chains {
		if c.Hook == h && h != "" {
			list = append(list, c)
		}
	}
	slices.SortStableFunc(list, func(a, b *Chain) int { return a.Priority - b.Priority })
	return list
}

// walk is the way of one packet through a Table.
type walk struct {
	table  *Table
	packet Packet
	traced bool
	steps  []Step
}

func (w *walk) hook(p Packet) VerdictKind {
	for _, c := range w.table.baseChains(p.Hook) {
		w.packet = p.seenBy(c)
		if w.base(c) == Drop {
			return Drop
		}
	}
	return Accept
}

// place is where evaluation goes on after a return.
type place struct {
	chain *Chain
	rule  int
}

// base runs a base chain and everything that it leads to. It follows
// nft_do_chain, net/netfilter/nf_tables_core.c: jump remembers the next rule,
// goto does not, and return or the end of a chain goes back to what was
// remembered last, or to the policy.
func (w *walk) base(c *Chain) VerdictKind {
	var stack []place
	at := place{c, 0}
	for hops := 0; hops <= maxHops; {
		if at.rule == len(at.chain.Rules) {
			if len(stack) == 0 {
				return w.policy(c)
			}
			at, stack = stack[len(stack)-1], stack[:len(stack)-1]
			continue
		}
		verdict := w.rule(at.chain, at.rule)
		at.rule++
		switch verdict.Kind {
		case NoVerdict:
		case Accept, Drop:
			return verdict.Kind
		case Return:
			at.rule = len(at.chain.Rules)
		case Jump, Goto:
			hops++
			next := w.table.Chain(verdict.Chain)
			if next == nil {
				continue
			}
			if verdict.Kind == Jump {
				if len(stack) == jumpStackSize {
					return Drop
				}
				stack = append(stack, at)
			}
			at = place{next, 0}
		}
	}
	return Drop
}

// maxHops bounds the jumps and gotos of one base chain, so that a Table that
// Validate refuses cannot hold Eval up for ever.
const maxHops = 1 << 16

func (w *walk) policy(c *Chain) VerdictKind {
	verdict := c.Policy
	if verdict != Drop {
		verdict = Accept
	}
	if w.traced {
		w.steps = append(w.steps, Step{
			Chain: c.Name, Rule: -1, Text: "policy " + string(verdict), Result: string(verdict),
		})
	}
	return verdict
}

// rule looks at one rule and gives its verdict, none when it does not match.
func (w *walk) rule(c *Chain, i int) Verdict {
	r := &c.Rules[i]
	hit, ok := w.outcome(r)
	if !w.traced {
		return hit.verdict
	}
	step := Step{Chain: c.Name, Rule: i, Text: r.String(), Result: "no match", Origin: r.Origin}
	if ok {
		step.Result = "continue"
		if hit.verdict.Kind != NoVerdict {
			step.Result = hit.verdict.String()
		}
		step.Element = strings.Join(hit.elements, ", ")
		if hit.origin != "" {
			step.Origin = hit.origin
		}
	}
	w.steps = append(w.steps, step)
	return hit.verdict
}

// hit is what a rule that matches does, and through which elements. Only a
// traced walk fills in the texts.
type hit struct {
	verdict  Verdict
	elements []string
	origin   string
}

func (w *walk) outcome(r *Rule) (hit, bool) {
	h := hit{verdict: r.Verdict}
	for i := range r.Matches {
		element, ok := w.matches(&r.Matches[i])
		if !ok {
			return hit{}, false
		}
		if element != "" {
			h.elements = append(h.elements, element)
		}
	}
	if r.Update != nil && slices.ContainsFunc(r.Update.Key, func(f Field) bool { return !w.packet.has(f) }) {
		return hit{}, false
	}
	if r.VMap == nil {
		return h, true
	}
	s, key, ok := w.lookup(r.VMap.Map, r.VMap.Key)
	if !ok {
		return hit{}, false
	}
	e, ok := s.Elements[key]
	if !ok {
		return hit{}, false
	}
	h.verdict, h.origin = e.Verdict, e.Origin
	if w.traced {
		h.elements = append(h.elements, string(s.appendElement(nil, key, Element{Verdict: e.Verdict}, false)))
	}
	return h, true
}

// matches tells whether m holds, and through which element of a set.
func (w *walk) matches(m *Match) (element string, ok bool) {
	p := &w.packet
	for _, f := range m.Fields {
		if !p.has(f) {
			return "", false
		}
	}
	f := m.Fields[0]
	switch m.Op {
	case OpSet:
		element, ok = w.contains(m.Set, m.Fields)
	case OpNum:
		ok = p.num(f) == m.Num
	case OpRange:
		ok = m.Num <= p.num(f) && p.num(f) <= m.High
	case OpPrefix:
		ok = m.Prefix.Contains(p.addr(f))
	case OpName:
		prefix, wild := strings.CutSuffix(m.Name, "*")
		ok = p.name(f) == m.Name || wild && strings.HasPrefix(p.name(f), prefix)
	case OpBits:
		ok = p.num(f)&m.Num != 0
	}
	return element, ok != m.Not
}

// contains looks the packet's fields up in a set and gives the element that
// holds them.
func (w *walk) contains(name string, fields []Field) (element string, ok bool) {
	s, key, ok := w.lookup(name, fields)
	switch {
	case !ok || s.Dynamic:
		return "", false
	case !s.HoldsRanges():
		if _, ok := s.Elements[key]; !ok {
			return "", false
		}
		if w.traced {
			element = key.Format(s.Key)
		}
		return element, true
	}
	seg, ok := s.Ranges.Lookup(w.packet.addr(fields[0]))
	if !ok || !s.Part.holds(seg) || w.expired(seg.Expires) {
		return "", false
	}
	if w.traced {
		element = string(appendRange(nil, seg.From, seg.To))
	}
	return element, true
}

func (w *walk) expired(at time.Time) bool {
	return !at.IsZero() && !w.packet.Time.IsZero() && !at.After(w.packet.Time)
}

// lookup gives the set and the key that the packet's fields make in it; not ok
// without such a set, or when the packet lacks one of the fields.
func (w *walk) lookup(name string, fields []Field) (*Set, Key, bool) {
	p := &w.packet
	s := w.table.Set(name)
	if s == nil || len(s.Key) != len(fields) {
		return nil, Key{}, false
	}
	var k Key
	for i, f := range fields {
		if !p.has(f) {
			return nil, Key{}, false
		}
		p.fill(&k, s.Key, s.Key[i], f)
	}
	return s, k, true
}

// fill puts the packet's field f where a key of fields keeps the field at.
func (p *Packet) fill(k *Key, fields []Field, at, f Field) {
	switch at {
	case IPSaddr, IPDaddr, IP6Saddr, IP6Daddr:
		k.Addr = p.addr(f)
	case CtOrigIPDaddr, CtOrigIP6Daddr:
		k.Orig = p.addr(f)
	case L4Proto:
		k.Proto = p.Proto
	case Sport, Dport:
		k.Port = uint16(p.num(f))
	case ICMPType, ICMPv6Type:
		k.Type = p.ICMPType
	case IIfName:
		k.IIf = p.name(f)
	case OIfName:
		if len(fields) == 1 {
			k.IIf = p.name(f)
		} else {
			k.OIf = p.name(f)
		}
	case NFProto, CtState, CtStatus, IPsec, VNI:
	}
}
