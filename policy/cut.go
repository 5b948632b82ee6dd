package policy

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	rs "github.com/nftfw/nftfw/pkg/ruleset"
)

// Names of what a table has while there are cut flows. No user's set is
// called cut, see reservedSets.
const (
	setCut      = "cut"
	chainPrefix = "cut_" // of no other chain
	chainHeld   = chainPrefix + "held"
	chainCutIn  = chainPrefix + "input"
	chainCutTo  = chainPrefix + "forward"
	chainCutBy  = chainPrefix + "output"

	// cutPriority is just ahead of the chains that let established packets in.
	cutPriority = rs.PriorityFilter - 11
	// MaxCuts is how many flows of a family can be cut at a time: the greatest
	// default of nf_conntrack_max (nf_conntrack_init_start,
	// net/netfilter/nf_conntrack_core.c).
	MaxCuts = 1 << 18
	// cutSize is how many elements a set of cut flows takes, two for each. The
	// kernel reserves 8 MB for the buckets of a set of this size.
	cutSize = 2 * MaxCuts

	// A TCP peer that lives keeps trying, or asks after the other one: two
	// hours is tcp_keepalive_time, tcp(7). Held for longer than that, a
	// connection that both sides keep quiet about does not come to life again.
	holdTCP = 3 * time.Hour
	// Others have no state at their ends that would outlive their
	// connection-tracking entry: two minutes is nf_conntrack_udp_timeout_stream.
	holdOther = 3 * time.Minute
)

// CutHold is for how long a cut flow of the protocol is refused after its last
// packet.
func CutHold(proto uint8) time.Duration {
	if proto == protoTCP {
		return holdTCP
	}
	return holdOther
}

// WithCuts returns t with sets for flows that lost their permission and with
// chains that drop what is in them, on every way and ahead of everything that
// lets established packets in. The flows themselves are no part of the table.
// Without flows to cut t does the same alone, and costs packets less. What t
// holds is shared; a t that has cuts is returned as it is.
func WithCuts(t *rs.Table) *rs.Table {
	if HasCuts(t) {
		return t
	}
	out := *t
	out.Sets, out.Chains = slices.Clone(t.Sets), slices.Clone(t.Chains)
	log := logRule(ReasonCut, logLimit(t))
	var held []*rs.Chain
	base := []*rs.Chain{cutChain(chainCutIn, rs.Input), cutChain(chainCutTo, rs.Forward), cutChain(chainCutBy, rs.Output)}
	for _, f := range families {
		key := []rs.Field{f.saddr, rs.L4Proto, rs.Sport, f.daddr, rs.Dport}
		out.Sets = append(out.Sets, &rs.Set{Name: setCut + f.suffix, Key: key, Dynamic: true, Size: cutSize, Timeout: holdOther})
		for _, c := range base {
			c.Rules = append(c.Rules, rs.Rule{
				Matches: []rs.Match{rs.In(setCut+f.suffix, key...)},
				Verdict: rs.Verdict{Kind: rs.Goto, Chain: chainHeld + f.suffix},
			})
		}
		drop := rs.Rule{
			Update: &rs.Update{Set: setCut + f.suffix, Key: key, Timeout: holdOther}, Counter: true,
			Verdict: rs.Verdict{Kind: rs.Drop}, Origin: "on_revoke",
		}
		dropTCP := drop
		dropTCP.Matches = []rs.Match{rs.Is(rs.L4Proto, protoTCP)}
		dropTCP.Update = &rs.Update{Set: setCut + f.suffix, Key: key, Timeout: holdTCP}
		held = append(held, &rs.Chain{Name: chainHeld + f.suffix, Rules: []rs.Rule{log, dropTCP, drop}})
	}
	slices.SortFunc(out.Sets, func(a, b *rs.Set) int { return cmp.Compare(a.Name, b.Name) })
	out.Chains = append(append(out.Chains, base...), held...)
	return &out
}

// logLimit is how much t logs of each reason.
func logLimit(t *rs.Table) *rs.Limit {
	for _, r := range t.Chain(chainRefuse).Rules {
		if r.Log != nil {
			return r.Limit
		}
	}
	return nil
}

func cutChain(name string, hook rs.Hook) *rs.Chain {
	return &rs.Chain{Name: name, Hook: hook, Priority: cutPriority, Policy: rs.Accept}
}

// WithoutCuts undoes WithCuts. What t holds is shared; a t that has no cuts is
// returned as it is.
func WithoutCuts(t *rs.Table) *rs.Table {
	if !HasCuts(t) {
		return t
	}
	out := *t
	out.Sets = slices.DeleteFunc(slices.Clone(t.Sets), func(s *rs.Set) bool { return s.Dynamic && strings.HasPrefix(s.Name, setCut) })
	out.Chains = slices.DeleteFunc(slices.Clone(t.Chains), func(c *rs.Chain) bool { return strings.HasPrefix(c.Name, chainPrefix) })
	return &out
}

// HasCuts tells whether t refuses cut flows, as WithCuts makes it do.
func HasCuts(t *rs.Table) bool { return t != nil && t.Chain(chainCutTo) != nil }

// Proxied reports whether docker-proxy answers at a port of the host's, and t says who
// may reach it there. Nothing else of the host's sends from such a port.
func Proxied(t *rs.Table, proto uint8, at netip.AddrPort) bool {
	f, port := familyOf(at.Addr()), rs.Key{Proto: proto, Port: at.Port()}
	addrPort := port
	addrPort.Addr = at.Addr()
	has := func(set string, k rs.Key) bool {
		s := t.Set(set)
		if s == nil {
			return false
		}
		_, ok := s.Elements[k]
		return ok
	}
	return has(setProxied, port) && (has(mapHostAny+f.suffix, port) || has(mapHostPorts+f.suffix, addrPort))
}

// PublishesUDP reports whether an element of the table's map called name says who may
// reach an UDP port of the host.
func PublishesUDP(name string, k rs.Key) bool {
	name = withoutFamily(name)
	return k.Proto == protoUDP && (name == mapHostAny || name == mapHostPorts)
}

// Refuses reports whether the table's set called name takes access away when it
// grows.
func Refuses(name string) bool { return Holds(SetBlocked, name) }
