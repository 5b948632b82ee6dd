package policy

import (
	"slices"
	"strings"
	"time"

	rs "github.com/nftfw/nftfw/pkg/ruleset"
)

// Reason says in one word why a packet was refused, or in observe mode would
// have been. Each has a chain, which counts, logs and drops.
type Reason string

// The reasons.
const (
	ReasonClosed       Reason = "closed"        // no published port that anything opens
	ReasonFrom         Reason = "from"          // a published port whose FROM does not hold the source
	ReasonHost         Reason = "host"          // a port of the host that is not open to the source
	ReasonBlocked      Reason = "blocked"       // the source is in the set blocked
	ReasonEgress       Reason = "egress"        // a container may not connect there
	ReasonUnknown      Reason = "unknown"       // an address on a Docker bridge that is no known container's
	ReasonToHost       Reason = "to_host"       // a container may not reach that port of the host
	ReasonToContainers Reason = "to_containers" // a container may not reach the other one
	ReasonForward      Reason = "forward"       // not to be forwarded between two foreign links
	ReasonLoopback     Reason = "loopback"      // the host's loopback, from outside
	ReasonInvalid      Reason = "invalid"       // part of no connection that is known
	ReasonCut          Reason = "cut"           // of a connection that lost its permission
)

// reasons are those that every table has, in the order of their chains.
var reasons = []Reason{
	ReasonClosed, ReasonFrom, ReasonHost, ReasonBlocked, ReasonEgress, ReasonUnknown,
	ReasonToHost, ReasonToContainers, ReasonForward, ReasonLoopback, ReasonInvalid,
}

// Reasons lists all reasons, each once.
func Reasons() []Reason { return append(slices.Clone(reasons), ReasonCut) }

// LogGroup is the NFLOG group to which refused packets go: the number of the
// port of the metrics, so that it meets no other program's.
const LogGroup = 9469

// logPrefix begins the NFLOG prefix of a refused packet; the Reason follows.
const logPrefix = "nftfw "

// ReasonOfPrefix reads the NFLOG prefix of a refused packet; ok is false for
// the packets of others.
func ReasonOfPrefix(prefix string) (r Reason, ok bool) {
	word, ours := strings.CutPrefix(prefix, logPrefix)
	r = Reason(word)
	return r, ours && slices.Contains(Reasons(), r)
}

// ReasonOfChain gives the Reason whose chain has that name; ok is false for the chains
// in which nothing ends that is refused.
func ReasonOfChain(name string) (r Reason, ok bool) {
	i := slices.IndexFunc(reasons, func(r Reason) bool { return r.chain() == name })
	if i < 0 {
		return "", false
	}
	return reasons[i], true
}

// Chains gives the names of the chains that count refusals for r.
func (r Reason) Chains() []string {
	if r == ReasonCut {
		return []string{chainHeld + families[0].suffix, chainHeld + families[1].suffix}
	}
	return []string{r.chain()}
}

func (r Reason) chain() string {
	if r == ReasonClosed {
		return chainRefuse
	}
	return chainRefuse + "_" + string(r)
}

func (r Reason) verdict() rs.Verdict { return rs.Verdict{Kind: rs.Goto, Chain: r.chain()} }

// refuse makes a rule that refuses what matches.
func refuse(why Reason, matches ...rs.Match) rs.Rule {
	return rs.Rule{Matches: matches, Verdict: why.verdict()}
}

// Names of what counts the refusals of each published port, beside the
// verdict maps, whose elements count those that asked. No user's set is called
// so, see reservedSets.
const (
	setRefused    = "refused"     // by address, protocol and port: published, routed and host_ports
	setRefusedAt  = "refused_at"  // the same for published_at
	setRefusedAny = "refused_any" // the same for host_any

	// In observe mode: who would have been refused what.
	setObserved   = "observed"
	chainObserved = "observed"
	observedSize  = 8192 // sources times ports of a family; what comes later is not noted
	observedFor   = 24 * time.Hour
)

// refusedSets tells for each verdict map which set counts what it refused.
var refusedSets = map[string]string{
	mapPublished: setRefused, mapRouted: setRefused, mapHostPorts: setRefused,
	mapPublishedAt: setRefusedAt, mapHostAny: setRefusedAny,
}

// OnlyCounts reports whether the table's set called name decides nothing.
func OnlyCounts(name string) bool {
	name = withoutFamily(name)
	return name == setRefused || name == setRefusedAt || name == setRefusedAny || name == setObserved
}

// withoutFamily is the name of a set of the table without the suffix of its family.
func withoutFamily(set string) string { return set[:max(len(set)-1, 0)] }

// refusedFields are the keys of the sets that count refusals.
func refusedFields(set string, f family) []rs.Field {
	switch set {
	case setRefusedAt:
		return []rs.Field{f.origDaddr, f.daddr, rs.L4Proto, rs.Dport}
	case setRefusedAny:
		return []rs.Field{rs.L4Proto, rs.Dport}
	}
	return []rs.Field{f.daddr, rs.L4Proto, rs.Dport}
}

// countingSets makes the sets that only count.
func (c *compiler) countingSets() {
	for _, f := range families {
		for _, name := range []string{setRefused, setRefusedAt, setRefusedAny} {
			c.addSet(&rs.Set{Name: name + f.suffix, Key: refusedFields(name, f), Counter: true, Elements: map[rs.Key]rs.Element{}})
		}
		if c.p.Mode == Observe {
			c.addSet(&rs.Set{
				Name: setObserved + f.suffix, Key: observedFields(f), Counter: true,
				Dynamic: true, Size: observedSize, Timeout: observedFor,
			})
		}
	}
}

func observedFields(f family) []rs.Field { return []rs.Field{f.saddr, f.daddr, rs.L4Proto, rs.Dport} }

// refusedElement gives the element that counts what element of a verdict map
// refuses; the zero Element for one that refuses nobody. It is as old as that:
// with another verdict or another container both begin again, so that what was
// let in is always the difference.
func refusedElement(element rs.Element) rs.Element {
	if element.Verdict == acceptVerdict {
		return rs.Element{}
	}
	return rs.Element{Comment: element.Comment + " " + element.Verdict.Chain}
}

// refusedOf reports whether counts counts what an element of the same container
// refuses.
func refusedOf(counts, element rs.Element) bool {
	return strings.HasPrefix(counts.Comment, element.Comment+" ")
}

// counted is where the refusals of an element of a verdict map are counted.
func (p place) counted() place {
	p.verdicts = refusedSets[p.verdicts]
	return p
}

// refuseChains gives the chains that end what is refused: they log some of it
// and count and drop all. In observe mode they note the source and accept.
func (c *compiler) refuseChains() []*rs.Chain {
	var out []*rs.Chain
	if c.p.Mode == Observe {
		out = append(out, observedChain())
	}
	for _, why := range reasons {
		chain := &rs.Chain{Name: why.chain()}
		if c.p.Mode == Observe {
			// A port is where other protocols have something else.
			for _, proto := range []uint32{protoTCP, protoUDP} {
				chain.Rules = append(chain.Rules, jump(chainObserved, rs.Is(rs.L4Proto, proto)))
			}
		}
		chain.Rules = append(chain.Rules, logRule(why, c.p.Log.limit()))
		if why == ReasonFrom {
			chain.Rules = append(chain.Rules, rs.Rule{Counter: true})
			chain.Rules = append(chain.Rules, c.perPort()...)
			chain.Rules = append(chain.Rules, rs.Rule{Verdict: c.refusal()})
		} else {
			chain.Rules = append(chain.Rules, rs.Rule{Counter: true, Verdict: c.refusal()})
		}
		out = append(out, chain)
	}
	return out
}

// perPort counts a refusal at the one published port that it is about: that of
// the map in which the packet was found, which are asked in this order.
func (c *compiler) perPort() []rs.Rule {
	var rules []rs.Rule
	for _, name := range []string{setRefusedAt, setRefused, setRefusedAny} {
		for _, f := range families {
			var of []rs.Match
			if name == setRefusedAny {
				of = append(of, rs.Is(rs.NFProto, f.nfproto))
			}
			rules = append(rules, rs.Rule{
				Matches: append(of, rs.In(name+f.suffix, refusedFields(name, f)...)),
				Verdict: c.refusal(),
			})
		}
	}
	return rules
}

// refusal is what becomes of a packet that is refused.
func (c *compiler) refusal() rs.Verdict {
	if c.p.Mode == Observe {
		return acceptVerdict
	}
	return rs.Verdict{Kind: rs.Drop}
}

// logRule sends packets to whoever listens. It is a rule of its own: what is
// beyond the limit leaves the rule.
func logRule(why Reason, limit *rs.Limit) rs.Rule {
	return rs.Rule{Limit: limit, Log: &rs.Log{Prefix: logPrefix + string(why), Group: LogGroup}}
}

// limit is how much is logged of each reason. A whole unit's worth may come at
// once.
func (l Log) limit() *rs.Limit {
	return &rs.Limit{Rate: l.Rate, Unit: l.Unit, Burst: uint32(l.Rate)}
}

// observedChain notes who asked for what. A set that is full ends the rule.
func observedChain() *rs.Chain {
	chain := &rs.Chain{Name: chainObserved}
	for _, f := range families {
		chain.Rules = append(chain.Rules, rs.Rule{Update: &rs.Update{Set: setObserved + f.suffix, Key: observedFields(f)}})
	}
	return chain
}

// Text says the reason to people, after a number of packets or "refused:".
func (r Reason) Text() string {
	switch r {
	case ReasonClosed:
		return "to no published port"
	case ReasonFrom:
		return "not in FROM"
	case ReasonHost:
		return "host port not allowed"
	case ReasonBlocked:
		return "source blocked"
	case ReasonEgress:
		return "egress not allowed"
	case ReasonUnknown:
		return "from no known container's address"
	case ReasonToHost:
		return "container to host not allowed"
	case ReasonToContainers:
		return "container to container not allowed"
	case ReasonForward:
		return "forwarding not allowed"
	case ReasonLoopback:
		return "to the host's loopback"
	case ReasonInvalid:
		return "of no known connection"
	case ReasonCut:
		return "permission withdrawn"
	}
	return string(r)
}
