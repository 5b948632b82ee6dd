package policy

import (
	"cmp"
	"fmt"
	"maps"
	"math/bits"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/inventory"
	"github.com/nftfw/nftfw/pkg/ruleset"
)

// TableName is the name of nftfw's table unless the user gave another.
const TableName = "nftfw"

// Sets are the contents of the named sets by name: what the policy declares
// and what was added at run time, together. A set that is missing is empty.
type Sets map[string]*addrset.Set

// SetArriving is the table's set of the bridges on which a container is being
// started of which too little is known yet. It closes them to addresses that
// are no known container's, for a moment: what is taken out of it opens again.
const SetArriving = "arriving"

// SetForeignLinks is the table's set of the links that are not Docker's.
const SetForeignLinks = "foreign"

// Names of the table's sets, maps and chains. Users' sets are called NAME4 and
// NAME6; that none of them takes a name of these, see reservedSets.
const (
	setInside        = "inside"
	setBridges       = "bridges"
	setDiscovery     = "icmpv6_discovery" // neighbour discovery and MLD
	setICMPAllowed   = "icmp_allowed"
	setICMPv6Allowed = "icmpv6_allowed"
	setICMPProtocols = "icmp_protocols"
	setPublishedHost = "published_host"

	mapPublished   = "published"
	mapPublishedAt = "published_at"
	mapRouted      = "routed"
	mapHostPorts   = "host_ports"
	mapHostAny     = "host_any"

	chainPrerouting  = "prerouting"
	chainOutbound    = "outbound"
	chainRefuse      = "refuse"
	chainEssential   = "essential"
	chainHostAllow   = "host_allow"
	chainFromInside  = "to_host"
	chainToPublished = "to_published"
	chainForeign     = "through_host"

	// A FROM that is one set has a chain named after it. One that is a list
	// is named by a fingerprint; the dot, which a set's name cannot hold,
	// keeps the two apart.
	fromSetPrefix  = "from_"
	fromListPrefix = "from."
)

// Priorities of the base chains: ahead of Docker's at filter, and for blocked
// ahead of connection tracking.
const (
	familyPriority  = ruleset.PriorityFilter - 10
	blockedPriority = ruleset.PriorityRaw - 10
)

// families are the two address families with what differs between them.
var families = [...]family{
	{suffix: "4", saddr: ruleset.IPSaddr, daddr: ruleset.IPDaddr, origDaddr: ruleset.CtOrigIPDaddr, nfproto: ruleset.NFProtoIPv4},
	{suffix: "6", saddr: ruleset.IP6Saddr, daddr: ruleset.IP6Daddr, origDaddr: ruleset.CtOrigIP6Daddr, nfproto: ruleset.NFProtoIPv6},
}

type family struct {
	suffix                  string
	saddr, daddr, origDaddr ruleset.Field
	nfproto                 uint32
}

func familyOf(a netip.Addr) family {
	if a.Is4() {
		return families[0]
	}
	return families[1]
}

// Compile gives the table that enforces p for the sets and the inventory, and
// what could not be understood or enforced. It is total: whatever the inputs,
// the table is complete and what was in doubt is closed in it. Equal inputs,
// in any order, give equal tables. The table shares the sets' segments.
func Compile(p *Policy, sets Sets, inv inventory.Snapshot) (*ruleset.Table, []Diagnostic) {
	return new(Compiler).Compile(p, sets, inv)
}

// Compiler compiles again and again. What a table has because of containers it
// keeps for as long as they are the same, and its tables share it. The zero
// Compiler is ready for use, by one goroutine at a time.
type Compiler struct{ last *containerPart }

// Compile is as the function of that name.
func (k *Compiler) Compile(p *Policy, sets Sets, inv inventory.Snapshot) (*ruleset.Table, []Diagnostic) {
	if k.last == nil || !k.last.isOf(p, inv) {
		k.last = k.last.next(p, inv)
	}
	c := newCompiler(p)
	c.take(k.last)
	c.namedSets(sets)
	c.linkSets(inv)
	c.icmpSets()
	c.swarm, c.sealed = inv.Swarm, sealed(inv.Networks)
	c.swarmSets()
	c.arriving(inv, networksByID(inv), k.last.limits)

	t := &ruleset.Table{Name: TableName, Chains: c.chains()}
	t.Sets = slices.SortedFunc(maps.Values(c.sets), func(a, b *ruleset.Set) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(c.diags, compareDiagnostics)
	return t, slices.Compact(c.diags) // a conflict shows in several maps
}

// compiler collects the parts of one table.
type compiler struct {
	p       *Policy
	sets    map[string]*ruleset.Set
	named   map[string][]string // kernel sets of each named set and family
	froms   map[string]From     // chain name -> its FROM, for those in use
	placed  []placement         // elements that decisions claim, the first to claim one first
	claims  map[place]*claim    // who was the first to claim an element, of the first so many of placed
	claimed int
	diags   []Diagnostic

	swarm  inventory.Swarm
	sealed []vni // overlay networks that are encrypted

	egresses map[string]Egress // chain name -> its egress, for those in use
	members  map[string]bool   // chain names of the projects that run

	uses      map[string]int  // chain name -> how many decisions of containers lead there
	contested map[place]bool  // elements that several containers claim
	shared    map[string]bool // sets whose elements another table has: see elements
}

func newCompiler(p *Policy) *compiler {
	return &compiler{
		p:        p,
		sets:     map[string]*ruleset.Set{},
		named:    map[string][]string{},
		froms:    map[string]From{},
		egresses: map[string]Egress{},
		members:  map[string]bool{},

		uses:      map[string]int{},
		contested: map[place]bool{},
	}
}

// containerPart is what a table has because of containers and of a swarm's
// services. Nothing in it is written to once it is made.
type containerPart struct {
	p          *Policy
	containers []inventory.Container
	networks   []inventory.Network
	swarm      inventory.Swarm

	sets     map[string]*ruleset.Set
	froms    map[string]From
	egresses map[string]Egress
	members  map[string]bool
	limits   map[string]Egress // by container ID
	diags    []Diagnostic

	// What the part of other containers is made from: see next.
	uses      map[string]int
	contested map[place]bool
	owners    owners
}

func (c *compiler) containerPart(inv inventory.Snapshot, limits map[string]Egress) *containerPart {
	return &containerPart{
		p: c.p, containers: inv.Containers, networks: inv.Networks, swarm: inv.Swarm,
		sets: c.sets, froms: c.froms, egresses: c.egresses, members: c.members, limits: limits, diags: c.diags,
		uses: c.uses, contested: c.contested, owners: ownersOf(inv),
	}
}

// isOf reports whether the part is that of p and inv. Containers and networks
// are told by their slices, into which nobody writes.
func (k *containerPart) isOf(p *Policy, inv inventory.Snapshot) bool {
	return k.p == p && inventory.Same(k.containers, inv.Containers) && inventory.Same(k.networks, inv.Networks) && reflect.DeepEqual(k.swarm, inv.Swarm)
}

// take makes the part that containers have in the table.
func (c *compiler) take(k *containerPart) {
	maps.Copy(c.sets, k.sets)
	maps.Copy(c.froms, k.froms)
	c.egresses, c.members, c.diags = k.egresses, k.members, slices.Clone(k.diags)
}

// elements gives the elements of a set to write to: a copy of those that another
// table has.
func (c *compiler) elements(name string) map[ruleset.Key]ruleset.Element {
	s := c.sets[name]
	if c.shared[name] {
		own := *s
		own.Elements = maps.Clone(s.Elements)
		s = c.addSet(&own)
		delete(c.shared, name)
	}
	return s.Elements
}

func (c *compiler) addSet(s *ruleset.Set) *ruleset.Set {
	c.sets[s.Name] = s
	return s
}

// manyHosts is from how many single addresses on a family of a named set has
// them in a hash of their own. Up to there the tree of an interval set is about as
// quick, and one set of the kernel holds all that is in the named one.
const manyHosts = 512

// hostsSuffix follows the name of a kernel set in that of its set of hosts. Behind
// that a dot and its size stand where it has one: with another it is another set.
const hostsSuffix = "_hosts"

// layout gives the kernel sets of a family for what a named set holds, that in
// which most sources are found first. Addresses that never expire have a hash of
// one size. Those that do are left with the ranges, or have all in a hash with
// timeouts where they are many.
func layout(name string, f family, g *addrset.Segments) []*ruleset.Set {
	set := &ruleset.Set{Name: name + f.suffix, Key: []ruleset.Field{f.saddr}, Interval: true, Ranges: g}
	hosts := &ruleset.Set{Name: set.Name + hostsSuffix, Key: set.Key, Ranges: g}
	switch {
	case g.Few().Addrs-g.Lasting().Addrs >= manyHosts:
		set.Part, hosts.Part = ruleset.Wide, ruleset.Hosts
	case g.Lasting().Addrs >= manyHosts:
		set.Part, hosts.Part = ruleset.Rest, ruleset.Lasting
		hosts.Size = room(g.Lasting().Addrs)
		hosts.Name = fmt.Sprintf("%s.%d", hosts.Name, hosts.Size)
	default:
		return []*ruleset.Set{set}
	}
	return []*ruleset.Set{hosts, set}
}

// room is the size of a hash for n elements: a power of two, which a third more of
// them leave as it is.
func room(n int) uint32 { return 1 << bits.Len(uint(n+n/3)) }

// namedSets makes the kernel sets of every declared set.
func (c *compiler) namedSets(sets Sets) {
	for name := range c.p.Sets {
		for _, f := range families {
			var names []string
			for _, s := range layout(name, f, f.segments(sets[name])) {
				names = append(names, c.addSet(s).Name)
			}
			c.named[name+f.suffix] = names
		}
	}
}

// segments are the pieces of a set that are of the family.
func (f family) segments(s *addrset.Set) *addrset.Segments {
	if f.nfproto == ruleset.NFProtoIPv4 {
		return s.Segments4()
	}
	return s.Segments6()
}

// kernelSets names the kernel sets of a family that hold the named set, that
// which most sources are found in first.
func (c *compiler) kernelSets(name string, f family) []string { return c.named[name+f.suffix] }

// WithSet gives t with other contents of the named set. What is in it is found in
// the table as it is in Compile's, which may spread it over other sets of the
// kernel unless it Fits.
func WithSet(t *ruleset.Table, name string, s *addrset.Set) *ruleset.Table {
	return t.WithRanges(func(set *ruleset.Set) (*addrset.Segments, bool) {
		if !Holds(name, set.Name) {
			return nil, false
		}
		i := slices.IndexFunc(families[:], func(f family) bool { return set.Key[0] == f.saddr })
		return families[i].segments(s), true
	})
}

// Holds reports whether the table's set called kernelSet holds what is in the
// named set, or did when that held more or less.
func Holds(name, kernelSet string) bool {
	for _, f := range families {
		if rest, ok := strings.CutPrefix(kernelSet, name+f.suffix); ok && (rest == "" || rest == hostsSuffix || strings.HasPrefix(rest, hostsSuffix+".")) {
			return true
		}
	}
	return false
}

// ChainsFor names the chains that a table has, or whose rules it has, only
// where the named set is not empty.
func ChainsFor(name string) []string {
	if name == SetBlocked {
		return []string{chainPrerouting}
	}
	return nil
}

// Fits reports whether t can hold s as the named set by other contents of its
// kernel sets alone. If not, Compile gives a table with other rules as well.
func Fits(t *ruleset.Table, name string, s *addrset.Set) bool {
	sets := 0
	for _, f := range families {
		for _, want := range layout(name, f, f.segments(s)) {
			if have := t.Set(want.Name); have == nil || have.Part != want.Part {
				return false
			}
			if name == SetBlocked && asksBlocked(t, want.Name) != (want.PieceCount() > 0) {
				return false
			}
			sets++
		}
	}
	for _, have := range t.Sets {
		if Holds(name, have.Name) {
			sets--
		}
	}
	return sets == 0
}

// linkSets sorts the host's links into inside, foreign and neither.
func (c *compiler) linkSets(inv inventory.Snapshot) {
	inside := c.addSet(&ruleset.Set{Name: setInside, Key: []ruleset.Field{ruleset.IIfName}, Elements: map[ruleset.Key]ruleset.Element{}})
	foreign := c.addSet(&ruleset.Set{Name: SetForeignLinks, Key: []ruleset.Field{ruleset.IIfName}, Elements: map[ruleset.Key]ruleset.Element{}})
	bridges := c.addSet(&ruleset.Set{Name: setBridges, Key: []ruleset.Field{ruleset.IIfName, ruleset.OIfName}, Elements: map[ruleset.Key]ruleset.Element{}})
	for _, l := range ClassifyLinks(inv) {
		switch l.Side {
		case Inside:
			inside.Elements[ruleset.Key{IIf: l.Link.Name}] = ruleset.Element{}
		case Foreign:
			foreign.Elements[ruleset.Key{IIf: l.Link.Name}] = ruleset.Element{}
		case Neither:
			if l.Reason != "" {
				c.diags = append(c.diags, Diagnostic{Severity: SeverityError, Message: l.Reason})
			}
			continue
		}
		if l.Link.Kind == linkKindBridge {
			// From a bridge to itself: with br_netfilter what is only
			// switched passes the forward hook too.
			bridges.Elements[ruleset.Key{IIf: l.Link.Name, OIf: l.Link.Name}] = ruleset.Element{}
		}
	}
}

// ICMP types that are never refused; the numbers are IANA's.
var (
	icmpErrors      = []uint8{3, 11, 12} // destination-unreachable, time-exceeded, parameter-problem
	icmpv6Discovery = []uint8{
		130, 131, 132, 143, // MLD, MLDv2
		133, 134, 135, 136, // router and neighbour discovery
	}
	icmpv6Essential = append([]uint8{
		1, 2, 3, 4, // errors, packet-too-big among them
	}, icmpv6Discovery...)
)

const (
	icmpEcho   = 8
	icmpv6Echo = 128
)

func (c *compiler) icmpSets() {
	v4, v6 := icmpErrors, icmpv6Essential
	if c.p.Host.Ping {
		v4, v6 = append(slices.Clone(v4), icmpEcho), append(slices.Clone(v6), icmpv6Echo)
	}
	for _, s := range []struct {
		name  string
		field ruleset.Field
		types []uint8
	}{{setICMPAllowed, ruleset.ICMPType, v4}, {setICMPv6Allowed, ruleset.ICMPv6Type, v6}} {
		c.addSet(typeSet(s.name, s.field, s.types))
	}
	c.addSet(&ruleset.Set{Name: setICMPProtocols, Key: []ruleset.Field{ruleset.L4Proto}, Elements: map[ruleset.Key]ruleset.Element{
		{Proto: protoICMP}: {}, {Proto: protoICMPv6}: {},
	}})
}

// typeSet makes a set of ICMP types.
func typeSet(name string, field ruleset.Field, types []uint8) *ruleset.Set {
	set := &ruleset.Set{Name: name, Key: []ruleset.Field{field}, Elements: map[ruleset.Key]ruleset.Element{}}
	for _, t := range types {
		set.Elements[ruleset.Key{Type: t}] = ruleset.Element{}
	}
	return set
}
