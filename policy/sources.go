package policy

import (
	"crypto/sha256"
	"encoding/hex"

	"github.com/nftfw/nftfw/pkg/addrset"
	rs "github.com/nftfw/nftfw/pkg/ruleset"
)

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
	return append(c.inSet(SetTrusted), c.listed(f)...)
}

// inSet matches the sources in a named set.
func (c *compiler) inSet(name string) [][]rs.Match {
	var out [][]rs.Match
	for _, fam := range families {
		for _, set := range c.kernelSets(name, fam) {
			out = append(out, []rs.Match{rs.In(set, fam.saddr)})
		}
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
		out = append(out, c.inSet(name)...)
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
		return ReasonFrom.verdict()
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
	chain.Rules = append(chain.Rules, refuse(ReasonFrom))
	return chain
}
