package policy

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

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
	var base []*rs.Chain
	if pre := c.prerouting(); len(pre.Rules) > 0 {
		base = append(base, pre)
	}
	base = append(base, c.forward(), c.input())
	called := []*rs.Chain{c.outbound(), c.essential(), c.hostAllow(), c.throughHost()}
	if !c.p.Containers.ToHost.Any {
		called = append(called, c.toHost(), c.toPublished())
	}
	if c.swarm.Role != "" {
		called = append(called, c.fromNodes())
	}
	called = append(called, c.leavingChains()...)
	called = append(called, c.refuseChains()...)
	// A label that names a set makes no new chain. The chains of lists come
	// and go with their labels, so they stand last.
	for name := range c.p.Sets {
		if name != SetBlocked {
			c.fromVerdict(From{Sets: setList(name)})
		}
	}
	names := slices.SortedFunc(maps.Keys(c.froms), func(a, b string) int {
		return cmp.Or(cmp.Compare(listed(a), listed(b)), cmp.Compare(a, b))
	})
	for _, name := range names {
		called = append(called, c.fromChain(name))
	}
	return append(base, called...)
}

// setList is the Sets of a FROM that is one set.
func setList(name string) []string {
	if name == SetTrusted {
		return nil
	}
	return []string{name}
}

// listed is 1 for the chain of a FROM that is a list, and 0 for that of a set.
func listed(chain string) int {
	if strings.HasPrefix(chain, fromListPrefix) {
		return 1
	}
	return 0
}

// basePolicy is what becomes of a packet that no rule decided on.
func (c *compiler) basePolicy() rs.VerdictKind {
	if c.p.Mode == Observe {
		return rs.Accept
	}
	return rs.Drop
}

var acceptVerdict = rs.Verdict{Kind: rs.Accept}

// reachedLoopback is why a packet to the host's loopback is refused.
const reachedLoopback = "loopback is the host's own"

// Origins of rules that speak of a ping among others, which is what host.ping decides.
const (
	OriginEssential   = "what no host can do without"
	OriginHostDefault = "host.default"
)

// Origins of rules behind which there is another word: an entry of the set, or what a
// container's own policy line or label says.
const (
	OriginTrusted = "sets." + SetTrusted
	OriginBlocked = "sets." + SetBlocked
	OriginEgress  = "containers.egress"
)

// because gives a rule the words by which people know who asked for it.
func because(origin string, rule rs.Rule) rs.Rule {
	rule.Origin = origin
	return rule
}

func accept(matches ...rs.Match) rs.Rule { return rs.Rule{Matches: matches, Verdict: acceptVerdict} }
func jump(chain string, matches ...rs.Match) rs.Rule {
	return rs.Rule{Matches: matches, Verdict: rs.Verdict{Kind: rs.Jump, Chain: chain}}
}

func lookup(verdictMap string, key []rs.Field, matches ...rs.Match) rs.Rule {
	return rs.Rule{Matches: matches, VMap: &rs.VMap{Key: key, Map: verdictMap}}
}

// prerouting drops blocked sources ahead of connection tracking, so that
// established connections end too. Every packet passes it, so the table has it
// only where something is blocked, and asks only those sets that hold something.
// Few packets are from blocked sources, so whether they came by lo is asked last.
func (c *compiler) prerouting() *rs.Chain {
	chain := &rs.Chain{Name: chainPrerouting, Hook: rs.Prerouting, Priority: blockedPriority, Policy: rs.Accept}
	for _, f := range families {
		for _, set := range c.kernelSets(SetBlocked, f) {
			if c.sets[set].PieceCount() > 0 {
				chain.Rules = append(chain.Rules, because(cmp.Or(c.p.Sets[SetBlocked].Pos.String(), OriginBlocked),
					refuse(ReasonBlocked, rs.In(set, f.saddr), rs.Named(rs.IIfName, "lo").Negate())))
			}
		}
	}
	return chain
}

// asksBlocked reports whether t looks sources up in a kernel set of blocked.
func asksBlocked(t *rs.Table, set string) bool {
	chain := t.Chain(chainPrerouting)
	return chain != nil && slices.ContainsFunc(chain.Rules, func(r rs.Rule) bool {
		return slices.ContainsFunc(r.Matches, func(m rs.Match) bool { return m.Op == rs.OpSet && m.Set == set })
	})
}

// relatedErrors lets in ICMP errors about established connections, and
// nothing else that a connection-tracking helper calls related.
func relatedErrors() rs.Rule {
	return accept(rs.HasBits(rs.CtState, rs.StateRelated), rs.In(setICMPProtocols, rs.L4Proto))
}

func (c *compiler) fromTrustedInterfaces() []rs.Rule {
	var rules []rs.Rule
	for _, name := range c.p.TrustedInterfaces {
		rules = append(rules, because("interfaces.trusted", accept(rs.Named(rs.IIfName, name))))
	}
	return rules
}

// forward sees what Docker forwards to and from containers, after DNAT.
func (c *compiler) forward() *rs.Chain {
	rules := []rs.Rule{
		because("established", accept(rs.HasBits(rs.CtState, rs.StateEstablished))),
		relatedErrors(),
		// A port published on 127.0.0.1 is the host's alone, even where
		// Docker would translate a neighbour's packet to it.
		because(reachedLoopback, refuse(ReasonLoopback, rs.Within(rs.CtOrigIPDaddr, loopback4))),
		// That a packet is IPv6 is known sooner than where it was sent to.
		because(reachedLoopback, refuse(ReasonLoopback, rs.Is(rs.NFProto, rs.NFProtoIPv6), rs.Within(rs.CtOrigIP6Daddr, loopback6))),
	}
	rules = append(rules, c.fromTrustedInterfaces()...)
	rules = append(rules, rs.Rule{
		Matches: []rs.Match{rs.In(setInside, rs.IIfName)},
		Verdict: rs.Verdict{Kind: rs.Goto, Chain: chainOutbound},
	})
	// What most new connections ask for comes first, and what is not known of
	// has no translation.
	dnat := rs.HasBits(rs.CtStatus, rs.StatusDNAT)
	for _, f := range families {
		if c.p.byHostIP() {
			rules = append(rules, lookup(mapPublishedAt+f.suffix, []rs.Field{f.origDaddr, f.daddr, rs.L4Proto, rs.Dport}, dnat))
		}
		rules = append(rules, lookup(mapPublished+f.suffix, []rs.Field{f.daddr, rs.L4Proto, rs.Dport}, dnat))
	}
	rules = append(rules, because("no connection that is known", refuse(ReasonInvalid, rs.HasBits(rs.CtState, rs.StateInvalid), rs.In(setInside, rs.OIfName))))
	for _, f := range families {
		rules = append(rules, lookup(mapRouted+f.suffix, []rs.Field{f.daddr, rs.L4Proto, rs.Dport}))
	}
	rules = append(rules, c.toMesh()...)
	rules = append(rules,
		jump(chainForeign, rs.In(SetForeignLinks, rs.IIfName), rs.In(SetForeignLinks, rs.OIfName)),
		because("closed until opened: no published port that anything opens", refuse(ReasonClosed)),
	)
	return &rs.Chain{Name: "forward", Hook: rs.Forward, Priority: familyPriority, Policy: c.basePolicy(), Rules: rules}
}

// outbound decides on what containers send, wherever it is forwarded to.
func (c *compiler) outbound() *rs.Chain {
	var rules []rs.Rule
	if !c.p.Containers.ToHost.Any {
		// A container that connects to an address of the host, and that
		// Docker sends on to another container.
		rules = append(rules, jump(chainToPublished, rs.HasBits(rs.CtStatus, rs.StatusDNAT), rs.In(SetForeignLinks, rs.OIfName).Negate()))
	}
	if c.p.Containers.ToContainers != ToContainersDocker {
		rules = append(rules, jump(chainPeers, rs.In(setInside, rs.OIfName)))
	}
	return &rs.Chain{Name: chainOutbound, Rules: append(rules,
		because("peers on one bridge", accept(rs.In(setBridges, rs.IIfName, rs.OIfName))),
		jump(chainLeaving),
		because(OriginEgress, accept()),
	)}
}

// input sees what comes to the host itself: its own services, those of
// containers in its network, and what docker-proxy accepts for containers.
func (c *compiler) input() *rs.Chain {
	rules := []rs.Rule{
		because("established", accept(rs.HasBits(rs.CtState, rs.StateEstablished))),
		because("the host itself", accept(rs.Named(rs.IIfName, "lo"))),
		// With route_localnet set, a packet from outside can be addressed
		// to the host's loopback. Established ones are past already: the
		// answer of a container to the host's own 127.0.0.1 is one.
		because(reachedLoopback, refuse(ReasonLoopback, rs.Within(rs.IPDaddr, loopback4))),
		because(reachedLoopback, refuse(ReasonLoopback, rs.Within(rs.IP6Daddr, loopback6))),
		jump(chainEssential),
		because("no connection that is known", refuse(ReasonInvalid, rs.HasBits(rs.CtState, rs.StateInvalid))),
	}
	rules = append(rules, c.fromTrustedInterfaces()...)
	rules = append(rules, c.toSealed()...)
	// To a published port through docker-proxy: to the container in the end.
	rules = append(rules, jump(chainLeaving, rs.In(setInside, rs.IIfName), rs.In(setProxied, rs.L4Proto, rs.Dport)))
	if c.p.Containers.ToHost.Any {
		rules = append(rules, because("containers.to_host", accept(rs.In(setInside, rs.IIfName))))
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
	if c.swarm.Role != "" {
		rules = append(rules, jump(chainSwarm))
	}
	for _, trusted := range c.inSet(SetTrusted) {
		rules = append(rules, because(OriginTrusted, accept(trusted...)))
	}
	if c.p.Host.DefaultAccept {
		rules = append(rules, because(OriginHostDefault, accept()))
	} else {
		rules = append(rules, because(OriginHostDefault, refuse(ReasonHost)))
	}
	return &rs.Chain{Name: "input", Hook: rs.Input, Priority: familyPriority, Policy: c.basePolicy(), Rules: rules}
}

// essential lets in what a host cannot do without, under any policy: ICMP
// errors, neighbour and router discovery, multicast membership, and the
// answers to a DHCP client.
func (c *compiler) essential() *rs.Chain {
	udp := rs.Is(rs.L4Proto, protoUDP)
	rules := []rs.Rule{
		relatedErrors(),
		accept(rs.In(setICMPAllowed, rs.ICMPType)),
		accept(rs.In(setICMPv6Allowed, rs.ICMPv6Type)),
		accept(rs.Is(rs.L4Proto, protoIGMP)),
		accept(rs.Is(rs.NFProto, rs.NFProtoIPv4), udp, rs.Is(rs.Sport, 67), rs.Is(rs.Dport, 68)),
		accept(rs.Within(rs.IP6Saddr, linkLocal), udp, rs.Is(rs.Sport, 547), rs.Is(rs.Dport, 546)),
	}
	for i := range rules {
		rules[i].Origin = OriginEssential
	}
	return &rs.Chain{Name: chainEssential, Rules: rules}
}

// hostAllow lets in what host.allow lists, and refuses the ports whose FROM is
// none, which not even trusted may reach. The entries count in the order of
// the file; what none of them lists goes on to the rules behind the chain.
func (c *compiler) hostAllow() *rs.Chain {
	chain := &rs.Chain{Name: chainHostAllow}
	// trusted is let in behind this chain, unless an entry refuses it before
	// that: then those ahead of it have to say so themselves.
	var trusted [][]rs.Match
	if slices.ContainsFunc(c.p.Host.Allow, func(a HostAllow) bool { return a.From.None }) {
		trusted = c.inSet(SetTrusted)
	}
	for _, a := range c.p.Host.Allow {
		var in []rs.Match
		if a.In != "" {
			in = append(in, rs.Named(rs.IIfName, a.In))
		}
		add := func(origin string, word func(...rs.Match) rs.Rule, sources [][]rs.Match) {
			for _, source := range sources {
				for _, ports := range a.Ports {
					chain.Rules = append(chain.Rules, because(origin, word(slices.Concat(in, source, portMatches(ports))...)))
				}
			}
		}
		if !a.From.Any && !a.From.None {
			add(OriginTrusted, accept, trusted)
		}
		word, sources := entry(a.From, c.listed, ReasonHost)
		add(a.Pos.String(), word, sources)
	}
	return chain
}

// entry gives what an entry of host.allow or forward.allow does, and the sources to
// which it does that: let's are let in, and with none everybody is refused for why.
func entry(f From, let func(From) [][]rs.Match, why Reason) (word func(...rs.Match) rs.Rule, sources [][]rs.Match) {
	if f.None {
		return func(matches ...rs.Match) rs.Rule { return refuse(why, matches...) }, [][]rs.Match{nil}
	}
	return accept, let(f)
}

// toHost decides which ports of the host containers may reach.
func (c *compiler) toHost() *rs.Chain {
	chain := &rs.Chain{Name: chainFromInside}
	for _, ports := range c.p.Containers.ToHost.Ports {
		chain.Rules = append(chain.Rules, because("containers.to_host", accept(portMatches(ports)...)))
	}
	chain.Rules = append(chain.Rules, because("containers.to_host", refuse(ReasonToHost)))
	return chain
}

// toPublished decides which ports of the host containers may reach that are
// other containers' published ports, as they look after DNAT.
func (c *compiler) toPublished() *rs.Chain {
	chain := &rs.Chain{Name: chainToPublished}
	for _, f := range families {
		chain.Rules = append(chain.Rules, rs.Rule{
			Matches: []rs.Match{rs.In(setPublishedHost+f.suffix, f.daddr, rs.L4Proto, rs.Dport)},
			Verdict: rs.Verdict{Kind: rs.Return},
		})
	}
	chain.Rules = append(chain.Rules, because("containers.to_host", refuse(ReasonToHost)))
	return chain
}

// throughHost decides on traffic between two foreign links. What one bridge
// only switches does not pass the host.
func (c *compiler) throughHost() *rs.Chain {
	chain := &rs.Chain{Name: chainForeign, Rules: []rs.Rule{
		because("switched by one bridge", accept(rs.In(setBridges, rs.IIfName, rs.OIfName))),
	}}
	for _, a := range c.p.Forward.Allow {
		var links []rs.Match
		if a.In != "" {
			links = append(links, rs.Named(rs.IIfName, a.In))
		}
		if a.Out != "" {
			links = append(links, rs.Named(rs.OIfName, a.Out))
		}
		word, sources := entry(a.From, c.sources, ReasonForward)
		for _, source := range sources {
			chain.Rules = append(chain.Rules, because(a.Pos.String(), word(slices.Concat(links, source)...)))
		}
	}
	last := accept()
	if c.p.Forward.DefaultDrop {
		last = refuse(ReasonForward)
	}
	last.Origin = "forward.default"
	chain.Rules = append(chain.Rules, last)
	return chain
}
