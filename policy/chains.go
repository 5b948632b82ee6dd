package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"net/netip"
	"slices"

	"github.com/nftfw/nftfw/pkg/addrset"
	rs "github.com/nftfw/nftfw/pkg/ruleset"
)

// IANA protocol numbers that the fixed rules name.
const (
	protoICMP   = 1
	protoIGMP   = 2
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
)

var (
	loopback4 = netip.MustParsePrefix("127.0.0.0/8")
	loopback6 = netip.MustParsePrefix("::1/128")
	linkLocal = netip.MustParsePrefix("fe80::/10")
)

// chains makes every chain: the base chains first in the order in which a
// packet may meet them, then those that they call.
func (c *compiler) chains() []*rs.Chain {
	base := []*rs.Chain{c.prerouting(), c.forward(), c.input()}
	called := []*rs.Chain{c.essential(), c.hostAllow(), c.throughHost()}
	if !c.p.Containers.ToHost.Any {
		called = append(called, c.toHost(), c.toPublished())
	}
	for _, name := range slices.Sorted(maps.Keys(c.froms)) {
		called = append(called, c.fromChain(name))
	}
	called = append(called, c.refuse())
	return append(base, called...)
}

// basePolicy is what becomes of a packet that no rule decided on.
func (c *compiler) basePolicy() rs.VerdictKind {
	if c.p.Mode == Observe {
		return rs.Accept
	}
	return rs.Drop
}

var (
	acceptVerdict = rs.Verdict{Kind: rs.Accept}
	refuseVerdict = rs.Verdict{Kind: rs.Goto, Chain: chainRefuse}
)

func accept(matches ...rs.Match) rs.Rule { return rs.Rule{Matches: matches, Verdict: acceptVerdict} }
func refuse(matches ...rs.Match) rs.Rule { return rs.Rule{Matches: matches, Verdict: refuseVerdict} }
func jump(chain string, matches ...rs.Match) rs.Rule {
	return rs.Rule{Matches: matches, Verdict: rs.Verdict{Kind: rs.Jump, Chain: chain}}
}

func lookup(verdictMap string, key []rs.Field, matches ...rs.Match) rs.Rule {
	return rs.Rule{Matches: matches, VMap: &rs.VMap{Key: key, Map: verdictMap}}
}

// prerouting drops blocked sources ahead of connection tracking, so that
// established connections end too.
func (c *compiler) prerouting() *rs.Chain {
	chain := &rs.Chain{Name: "prerouting", Hook: rs.Prerouting, Priority: blockedPriority, Policy: rs.Accept}
	for _, f := range families {
		rule := rs.Rule{
			Matches: []rs.Match{rs.Named(rs.IIfName, "lo").Negate(), rs.In(SetBlocked+f.suffix, f.saddr)},
			Counter: true,
			Origin:  c.p.Sets[SetBlocked].Pos.String(),
		}
		if c.p.Mode == Enforce {
			rule.Verdict = rs.Verdict{Kind: rs.Drop}
		}
		chain.Rules = append(chain.Rules, rule)
	}
	return chain
}

// relatedErrors lets in ICMP errors about established connections, and
// nothing else that a connection-tracking helper calls related.
func relatedErrors() []rs.Rule {
	related := rs.HasBits(rs.CtState, rs.StateRelated)
	return []rs.Rule{
		accept(related, rs.Is(rs.L4Proto, protoICMP)),
		accept(related, rs.Is(rs.L4Proto, protoICMPv6)),
	}
}

func (c *compiler) fromTrustedInterfaces() []rs.Rule {
	var rules []rs.Rule
	for _, name := range c.p.TrustedInterfaces {
		rule := accept(rs.Named(rs.IIfName, name))
		rule.Origin = "interfaces.trusted"
		rules = append(rules, rule)
	}
	return rules
}

// forward sees what Docker forwards to and from containers, after DNAT.
func (c *compiler) forward() *rs.Chain {
	rules := []rs.Rule{accept(rs.HasBits(rs.CtState, rs.StateEstablished))}
	rules = append(rules, relatedErrors()...)
	rules = append(rules,
		// A port published on 127.0.0.1 is the host's alone, even where
		// Docker would translate a neighbour's packet to it.
		refuse(rs.Within(rs.CtOrigIPDaddr, loopback4)),
		refuse(rs.Within(rs.CtOrigIP6Daddr, loopback6)),
	)
	rules = append(rules, c.fromTrustedInterfaces()...)
	if !c.p.Containers.ToHost.Any {
		// A container that connects to an address of the host, and that
		// Docker sends on to another container.
		rules = append(rules, rs.Rule{
			Matches: []rs.Match{
				rs.In(setInside, rs.IIfName), rs.HasBits(rs.CtStatus, rs.StatusDNAT),
				rs.In(SetForeignLinks, rs.OIfName).Negate(),
			},
			Verdict: rs.Verdict{Kind: rs.Goto, Chain: chainToPublished},
		})
	}
	rules = append(rules,
		accept(rs.In(setBridges, rs.IIfName, rs.OIfName)),
		accept(rs.In(setInside, rs.IIfName)),
		refuse(rs.HasBits(rs.CtState, rs.StateInvalid), rs.In(setInside, rs.OIfName)),
	)
	dnat := rs.HasBits(rs.CtStatus, rs.StatusDNAT)
	for _, f := range families {
		rules = append(rules,
			lookup(mapPublishedAt+f.suffix, []rs.Field{f.origDaddr, f.daddr, rs.L4Proto, rs.Dport}, dnat),
			lookup(mapPublished+f.suffix, []rs.Field{f.daddr, rs.L4Proto, rs.Dport}, dnat),
			lookup(mapRouted+f.suffix, []rs.Field{f.daddr, rs.L4Proto, rs.Dport}),
		)
	}
	rules = append(rules,
		jump(chainForeign, rs.In(SetForeignLinks, rs.IIfName), rs.In(SetForeignLinks, rs.OIfName)),
		refuse(),
	)
	return &rs.Chain{Name: "forward", Hook: rs.Forward, Priority: familyPriority, Policy: c.basePolicy(), Rules: rules}
}

// input sees what comes to the host itself: its own services, those of
// containers in its network, and what docker-proxy accepts for containers.
func (c *compiler) input() *rs.Chain {
	rules := []rs.Rule{
		accept(rs.HasBits(rs.CtState, rs.StateEstablished)),
		accept(rs.Named(rs.IIfName, "lo")),
		// With route_localnet set, a packet from outside can be addressed
		// to the host's loopback. Established ones are past already: the
		// answer of a container to the host's own 127.0.0.1 is one.
		refuse(rs.Within(rs.IPDaddr, loopback4)),
		refuse(rs.Within(rs.IP6Daddr, loopback6)),
		jump(chainEssential),
		refuse(rs.HasBits(rs.CtState, rs.StateInvalid)),
	}
	rules = append(rules, c.fromTrustedInterfaces()...)
	if c.p.Containers.ToHost.Any {
		rules = append(rules, accept(rs.In(setInside, rs.IIfName)))
	} else {
		rules = append(rules, rs.Rule{
			Matches: []rs.Match{rs.In(setInside, rs.IIfName)},
			Verdict: rs.Verdict{Kind: rs.Goto, Chain: chainFromInside},
		})
	}
	for _, f := range families {
		rules = append(rules, lookup(mapHostPorts+f.suffix, []rs.Field{f.daddr, rs.L4Proto, rs.Dport}))
	}
	for _, f := range families {
		rules = append(rules, lookup(mapHostAny+f.suffix, []rs.Field{rs.L4Proto, rs.Dport}, rs.Is(rs.NFProto, f.nfproto)))
	}
	rules = append(rules, jump(chainHostAllow))
	for _, f := range families {
		rule := accept(rs.In(SetTrusted+f.suffix, f.saddr))
		rule.Origin = "sets.trusted"
		rules = append(rules, rule)
	}
	if c.p.Host.DefaultAccept {
		rule := accept()
		rule.Origin = "host.default"
		rules = append(rules, rule)
	} else {
		rules = append(rules, refuse())
	}
	return &rs.Chain{Name: "input", Hook: rs.Input, Priority: familyPriority, Policy: c.basePolicy(), Rules: rules}
}

// essential lets in what a host cannot do without, under any policy: ICMP
// errors, neighbour and router discovery, multicast membership, and the
// answers to a DHCP client.
func (c *compiler) essential() *rs.Chain {
	udp := rs.Is(rs.L4Proto, protoUDP)
	return &rs.Chain{Name: chainEssential, Rules: append(relatedErrors(),
		accept(rs.In(setICMPAllowed, rs.ICMPType)),
		accept(rs.In(setICMPv6Allowed, rs.ICMPv6Type)),
		accept(rs.Is(rs.L4Proto, protoIGMP)),
		accept(rs.Is(rs.NFProto, rs.NFProtoIPv4), udp, rs.Is(rs.Sport, 67), rs.Is(rs.Dport, 68)),
		accept(rs.Within(rs.IP6Saddr, linkLocal), udp, rs.Is(rs.Sport, 547), rs.Is(rs.Dport, 546)),
	)}
}

// hostAllow lets in what host.allow lists, and refuses the ports whose FROM is
// none, which not even trusted may reach. The entries count in the order of
// the file; what none of them lists goes on to the rules behind the chain.
func (c *compiler) hostAllow() *rs.Chain {
	chain := &rs.Chain{Name: chainHostAllow}
	for _, a := range c.p.Host.Allow {
		var in []rs.Match
		if a.In != "" {
			in = append(in, rs.Named(rs.IIfName, a.In))
		}
		word, sources := accept, c.listed(a.From) // trusted is let in behind this chain
		if a.From.None {
			word, sources = refuse, [][]rs.Match{nil}
		}
		for _, source := range sources {
			for _, ports := range a.Ports {
				rule := word(slices.Concat(in, source, portMatches(ports))...)
				rule.Origin = a.Pos.String()
				chain.Rules = append(chain.Rules, rule)
			}
		}
	}
	return chain
}

// toHost decides which ports of the host containers may reach.
func (c *compiler) toHost() *rs.Chain {
	chain := &rs.Chain{Name: chainFromInside}
	for _, ports := range c.p.Containers.ToHost.Ports {
		rule := accept(portMatches(ports)...)
		rule.Origin = "containers.to_host"
		chain.Rules = append(chain.Rules, rule)
	}
	last := refuse()
	last.Origin = "containers.to_host"
	chain.Rules = append(chain.Rules, last)
	return chain
}

// toPublished decides which ports of the host containers may reach that are
// other containers' published ports, as they look after DNAT.
func (c *compiler) toPublished() *rs.Chain {
	chain := &rs.Chain{Name: chainToPublished}
	for _, f := range families {
		rule := accept(rs.In(setPublishedHost+f.suffix, f.daddr, rs.L4Proto, rs.Dport))
		rule.Origin = "containers.to_host"
		chain.Rules = append(chain.Rules, rule)
	}
	last := refuse()
	last.Origin = "containers.to_host"
	chain.Rules = append(chain.Rules, last)
	return chain
}

// throughHost decides on traffic between two foreign links.
func (c *compiler) throughHost() *rs.Chain {
	chain := &rs.Chain{Name: chainForeign}
	for _, a := range c.p.Forward.Allow {
		var links []rs.Match
		if a.In != "" {
			links = append(links, rs.Named(rs.IIfName, a.In))
		}
		if a.Out != "" {
			links = append(links, rs.Named(rs.OIfName, a.Out))
		}
		for _, source := range c.sources(a.From) {
			rule := accept(slices.Concat(links, source)...)
			rule.Origin = a.Pos.String()
			chain.Rules = append(chain.Rules, rule)
		}
	}
	last := accept()
	if c.p.Forward.DefaultDrop {
		last = refuse()
	}
	last.Origin = "forward.default"
	chain.Rules = append(chain.Rules, last)
	return chain
}

// refuse ends every packet that is not let in.
func (c *compiler) refuse() *rs.Chain {
	verdict := rs.Verdict{Kind: rs.Drop}
	if c.p.Mode == Observe {
		verdict = acceptVerdict
	}
	return &rs.Chain{Name: chainRefuse, Rules: []rs.Rule{{Counter: true, Verdict: verdict}}}
}

// portMatches matches one port specification.
func portMatches(s PortSpec) []rs.Match {
	switch {
	case s.All:
		return nil
	case s.Portless:
		return []rs.Match{rs.Is(rs.L4Proto, uint32(s.Proto))}
	case s.Low == s.High:
		return []rs.Match{rs.Is(rs.L4Proto, uint32(s.Proto)), rs.Is(rs.Dport, uint32(s.Low))}
	default:
		return []rs.Match{rs.Is(rs.L4Proto, uint32(s.Proto)), rs.Between(rs.Dport, uint32(s.Low), uint32(s.High))}
	}
}

// sources gives one list of matches for every way in which a packet can come
// from f: for any a single empty one, for none nothing.
func (c *compiler) sources(f From) [][]rs.Match {
	switch {
	case f.Any:
		return [][]rs.Match{nil}
	case f.None:
		return nil
	}
	return append(inSet(SetTrusted), c.listed(f)...)
}

// inSet matches the sources in a named set.
func inSet(name string) [][]rs.Match {
	var out [][]rs.Match
	for _, fam := range families {
		out = append(out, []rs.Match{rs.In(name+fam.suffix, fam.saddr)})
	}
	return out
}

// listed is sources without those in the set trusted.
func (c *compiler) listed(f From) [][]rs.Match {
	if f.Any {
		return [][]rs.Match{nil}
	}
	var out [][]rs.Match
	for _, name := range f.Sets {
		out = append(out, inSet(name)...)
	}
	for _, set := range c.literals(f) {
		out = append(out, []rs.Match{rs.In(set.Name, set.Key[0])})
	}
	return out
}

// literals gives the sets that hold the addresses written in f itself, one
// for each family that has any.
func (c *compiler) literals(f From) []*rs.Set {
	if len(f.Ranges) == 0 {
		return nil
	}
	name := fromListPrefix + fingerprint(f) + "."
	var segments [2][]addrset.Segment
	for _, r := range f.Ranges {
		i := 0
		if !r.Is4() {
			i = 1
		}
		segments[i] = append(segments[i], addrset.Segment{From: r.From, To: r.To})
	}
	var out []*rs.Set
	for i, fam := range families {
		if len(segments[i]) == 0 {
			continue
		}
		set, known := c.sets[name+fam.suffix]
		if !known {
			set = c.addSet(&rs.Set{
				Name: name + fam.suffix, Key: []rs.Field{fam.saddr}, Interval: true,
				Ranges: addrset.SegmentsOf(segments[i]...),
			})
		}
		out = append(out, set)
	}
	return out
}

// fingerprint names a FROM that a chain or set name cannot spell. It is long
// enough that nobody can write a label whose FROM takes another's name.
func fingerprint(f From) string {
	sum := sha256.Sum256([]byte(f.String()))
	return hex.EncodeToString(sum[:16])
}

// fromVerdict gives the verdict of an element that opens a port to f, and
// sees to it that its chain exists.
func (c *compiler) fromVerdict(f From) rs.Verdict {
	switch {
	case f.Any:
		return acceptVerdict
	case f.None:
		return refuseVerdict
	}
	name := fromSetPrefix + SetTrusted
	switch {
	case len(f.Ranges) == 0 && len(f.Sets) == 1:
		name = fromSetPrefix + f.Sets[0]
	case len(f.Ranges) > 0 || len(f.Sets) > 1:
		name = fromListPrefix + fingerprint(f)
	}
	c.froms[name] = f
	return rs.Verdict{Kind: rs.Goto, Chain: name}
}

// fromChain lets the sources of a FROM in and refuses all others.
func (c *compiler) fromChain(name string) *rs.Chain {
	chain := &rs.Chain{Name: name}
	for _, source := range c.sources(c.froms[name]) {
		chain.Rules = append(chain.Rules, accept(source...))
	}
	chain.Rules = append(chain.Rules, refuse())
	return chain
}
