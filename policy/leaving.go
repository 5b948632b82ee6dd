package policy

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/inventory"
	rs "github.com/nftfw/nftfw/pkg/ruleset"
)

// Names of what decides where containers may connect.
const (
	mapEgress       = "egress"         // bridge and container address -> its egress
	mapEgressBridge = "egress_unknown" // bridge -> egress of addresses on it that are no container's
	setProxied      = "proxied"        // host ports that are published
	chainLeaving    = "leaving"
	chainPeers      = "peers"
	mapProject      = "project" // bridge and container address -> its project's peers

	egressPrefix  = "egress."
	projectPrefix = "project."
)

// leaving makes the maps and sets that decide where containers may connect.
// They are there whether or not anything is narrowed, so that a container that
// is narrowed is one more element, which is there before its first packet. It
// gives the egress of each container by its ID.
func (c *compiler) leaving(inv inventory.Snapshot, networks map[string]inventory.Network) map[string]Egress {
	if c.p.Containers.ToContainers == ToContainersSameProject {
		c.projects(inv, networks)
	}
	for _, f := range families {
		c.verdictMap(mapEgress+f.suffix, senderKey(f))
	}
	limits := make(map[string]Egress, len(inv.Containers))
	for _, container := range sorted(inv.Containers, func(a, b *inventory.Container) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	}) {
		e, origin, ok := c.egressOf(container, networks)
		if !ok {
			continue
		}
		limits[container.ID] = e
		for _, a := range bridgeAddrs(container, networks) {
			c.limit(container, a, e, origin)
		}
	}
	c.unknownSources(inv, networks, limits)
	c.proxiedPorts(inv)
	return limits
}

// egressOf gives the egress of a container and who said so, and reports what is wrong
// with its label; of one that is being started that is reported when it runs. ok is false
// for a container that no bridge holds.
func (c *compiler) egressOf(container *inventory.Container, networks map[string]inventory.Network) (e Egress, origin string, ok bool) {
	if !container.Starting && len(bridgeAddrs(container, networks)) == 0 {
		c.reportUnheld(container)
		return Egress{}, "", false
	}
	e, origin, diags := egressOf(c.p, container)
	if !container.Starting {
		c.diags = append(c.diags, diags...)
	}
	return e, origin, true
}

// sorted gives the containers in an order.
func sorted(containers []inventory.Container, order func(a, b *inventory.Container) int) []*inventory.Container {
	out := make([]*inventory.Container, len(containers))
	for i := range containers {
		out[i] = &containers[i]
	}
	slices.SortFunc(out, order)
	return out
}

// reportUnheld says that a container's egress label has nothing to hold on to.
func (c *compiler) reportUnheld(container *inventory.Container) {
	effective := operatorLabels(c.p, container)
	_, asked := effective[labelEgress]
	i := slices.IndexFunc(c.p.Containers.Rules, func(r Rule) bool {
		return r.Egress != nil && r.Match.names() && r.Match.Container(container.Name, container.Image, effective)
	})
	if !asked && i < 0 {
		return
	}
	why := "the container is on no bridge network, so its traffic does not pass this host's firewall"
	switch mode := container.NetworkMode; {
	case mode == "host":
		why = "the container is in the host's network, and nftfw does not filter what the host sends"
	case strings.HasPrefix(mode, "container:"):
		why = "the container shares the network of another one, whose labels and rules count"
	}
	d := Diagnostic{Severity: SeverityError, Container: container.Name, ContainerID: container.ID, Message: "cannot be enforced: " + why}
	if asked {
		d.Label = labelEgress
		c.diags = append(c.diags, d)
	}
	if i >= 0 {
		d.Label, d.Message = "", fmt.Sprintf("egress at %s %s", c.p.Containers.Rules[i].Pos, d.Message)
		c.diags = append(c.diags, d)
	}
}

// senderKey is by what a container's packets are told: their source, and the
// bridge that it belongs to. With CAP_NET_RAW, which Docker gives by default, a
// container can write any source, but not come in by another bridge.
func senderKey(f family) []rs.Field { return []rs.Field{rs.IIfName, f.saddr} }

// limit adds the element that holds a container's address to the egress that origin
// gave it. Two
// containers with one address and different words may connect nowhere.
func (c *compiler) limit(container *inventory.Container, a bridgeAddr, e Egress, origin string) {
	at := a.sender()
	elements := c.elements(at.set())
	verdict := c.egressVerdict(e)
	if old, taken := elements[at.key]; taken {
		if old.Comment != ElementOwner(container.ID) {
			c.contested[at] = true
		}
		if old.Verdict != verdict {
			old.Verdict = ReasonEgress.verdict()
			elements[at.key] = old
		}
		return
	}
	elements[at.key] = rs.Element{
		Verdict: verdict, Comment: ElementOwner(container.ID),
		Origin: origin + ", egress of container " + container.Name,
	}
}

// sender is the element for packets from the address.
func (a bridgeAddr) sender() place {
	return place{mapEgress, familyOf(a.addr), rs.Key{IIf: a.bridge, Addr: a.addr}}
}

// unknownSources gives every bridge the egress of addresses on it that are no
// known container's: the one that all containers there and the default agree
// on, else none.
func (c *compiler) unknownSources(inv inventory.Snapshot, networks map[string]inventory.Network, limits map[string]Egress) {
	usual := c.p.Containers.Egress
	narrowed := map[string]bool{} // by bridge
	for i := range inv.Containers {
		container := &inv.Containers[i]
		if limits[container.ID].same(usual) {
			continue
		}
		for _, e := range container.Endpoints {
			if bridge := networks[e.NetworkID].Bridge; !unaddressed(container, e) {
				narrowed[bridge] = true
			}
		}
	}
	c.verdictMap(mapEgressBridge, []rs.Field{rs.IIfName})
	for _, n := range networks {
		if n.Bridge == "" {
			continue
		}
		verdict := ReasonUnknown.verdict()
		if !narrowed[n.Bridge] && !usual.same(Egress{}) {
			verdict = c.egressVerdict(usual)
		}
		c.sets[mapEgressBridge].Elements[rs.Key{IIf: n.Bridge}] = rs.Element{
			Verdict: verdict,
			Origin:  "egress of addresses on network " + n.Name + " that are no known container's",
		}
	}
}

// unaddressed reports whether the address of a container that is being started
// is not known yet.
func unaddressed(container *inventory.Container, e inventory.Endpoint) bool {
	return container.Starting && !e.Addr4.IsValid() && !e.Addr6.IsValid()
}

// arriving makes the set of the bridges on which there is a container whose
// address is not known yet, unless it may connect to where unknown addresses
// may. Connections that are established there go on.
//
// The kernel tells of a container's veth before the engine tells of the
// container, and engines of version 28 leave only milliseconds between that and
// its first packet: a bridge with more veths than endpoints has one arriving.
func (c *compiler) arriving(inv inventory.Snapshot, networks map[string]inventory.Network, limits map[string]Egress) {
	set := c.addSet(&rs.Set{Name: SetArriving, Key: []rs.Field{rs.IIfName}, Elements: map[rs.Key]rs.Element{}})
	add := func(bridge string) {
		set.Elements[rs.Key{IIf: bridge}] = rs.Element{Origin: "a container is being started on bridge " + bridge}
	}
	known := map[string]int{} // endpoints by bridge
	for i := range inv.Containers {
		container := &inv.Containers[i]
		narrower := !limits[container.ID].same(c.p.Containers.Egress)
		for _, e := range container.Endpoints {
			bridge := networks[e.NetworkID].Bridge
			switch {
			case bridge == "":
			case !unaddressed(container, e):
				known[bridge]++
			case narrower:
				add(bridge)
			case !container.Unidentified:
				known[bridge]++
			}
		}
	}
	if inv.Engine != inventory.EngineListed {
		return
	}
	ours := map[string]bool{}
	for _, n := range networks {
		ours[n.Bridge] = n.Bridge != ""
		if n.Name == inventory.GatewayNetwork && inv.Swarm.Ingress.IsValid() {
			known[n.Bridge]++ // the routing mesh
		}
	}
	veths := map[int]int{} // by bridge
	for _, l := range inv.Links {
		if l.Kind == linkKindVeth && l.Master != 0 {
			veths[l.Master]++
		}
	}
	for _, l := range inv.Links {
		if ours[l.Name] && veths[l.Index] > known[l.Name] {
			add(l.Name)
		}
	}
}

// proxiedPorts makes the set of published host ports: a container that
// connects to one through docker-proxy is held to its egress too.
func (c *compiler) proxiedPorts(inv inventory.Snapshot) {
	set := c.addSet(&rs.Set{Name: setProxied, Key: []rs.Field{rs.L4Proto, rs.Dport}, Elements: make(map[rs.Key]rs.Element, portCount(inv))})
	for i := range inv.Containers {
		addHostPorts(set.Elements, &inv.Containers[i])
	}
	for _, service := range inv.Swarm.Services {
		for _, port := range service.Ports {
			set.Elements[rs.Key{Proto: port.Proto, Port: port.Published}] = rs.Element{}
		}
	}
}

// addHostPorts adds the host's ports that a container publishes where others can
// reach them.
func addHostPorts(to map[rs.Key]rs.Element, container *inventory.Container) {
	for _, port := range container.Ports {
		if port.Published() && !(port.HostIP.IsValid() && port.HostIP.IsLoopback()) {
			to[rs.Key{Proto: port.Proto, Port: port.HostPort}] = rs.Element{}
		}
	}
}

// hostPorts gives the host's ports that some containers publish.
func hostPorts(list []*inventory.Container) map[rs.Key]rs.Element {
	out := map[rs.Key]rs.Element{}
	for _, container := range list {
		addHostPorts(out, container)
	}
	return out
}

// egressOf gives the egress of a container: the first rule that speaks of it,
// else its label, else the default; and which of them it was. A label that cannot
// be understood, or that asks for more than the default, leaves the container
// without any, and so does not knowing which container it is. The label counts
// while the image cannot be inspected, for it can only narrow. Where it is not known
// whether a rule speaks of the container, it counts if it is narrower than what is
// left without it; of two of which neither is, nothing may leave.
func egressOf(p *Policy, container *inventory.Container) (e Egress, origin string, diags []Diagnostic) {
	if container.Unidentified {
		return Egress{}, "nobody knows yet which container it is", nil
	}
	return egressBy(p.Containers.Rules, p, container, operatorLabels(p, container))
}

// egressBy is egressOf with these rules. effective are the labels that count.
func egressBy(rules []Rule, p *Policy, container *inventory.Container, effective map[string]string) (e Egress, origin string, diags []Diagnostic) {
	for i, r := range rules {
		if r.Egress == nil || !r.Match.mayBe(container, effective) {
			continue
		}
		if r.Match.Container(container.Name, container.Image, effective) {
			return *r.Egress, r.Pos.String(), nil
		}
		e, origin, diags = egressBy(rules[i+1:], p, container, effective)
		switch {
		case r.Egress.covers(e):
			return e, origin, diags
		case e.covers(*r.Egress):
			return *r.Egress, r.Pos.String(), diags
		default:
			return Egress{}, r.Pos.String(), diags
		}
	}
	if container.ImageUnknown {
		effective = container.Labels
	}
	labels := ParseLabels(effective, p)
	err := labels.EgressErr
	switch {
	case err == nil && labels.Egress == nil:
		for _, problem := range labels.Problems {
			if !strings.HasPrefix(problem.Label, labelExpose) {
				return Egress{}, "label " + problem.Label, nil // it may have meant egress; reported already
			}
		}
		return p.Containers.Egress, "containers.egress", nil
	case err == nil && !p.Containers.Egress.covers(*labels.Egress):
		err = errors.New("asks for more than containers.egress gives; a label can only narrow it")
	case err == nil:
		return *labels.Egress, "label " + labelEgress, nil
	}
	return Egress{}, "label " + labelEgress, []Diagnostic{{
		Severity: SeverityError, Container: container.Name, ContainerID: container.ID, Label: labelEgress,
		Message: err.Error() + "; the container may connect nowhere",
	}}
}

// covers reports whether everything that narrow lets through e lets through.
func (e Egress) covers(narrow Egress) bool {
	if e.Any {
		return true
	}
	return !narrow.Any && !slices.ContainsFunc(narrow.Items, func(item EgressItem) bool { return !e.coversItem(item) })
}

// coversItem reports whether e's items together let through what the item does.
func (e Egress) coversItem(item EgressItem) bool {
	return !slices.ContainsFunc(e.splits(item.Ports), func(ports *PortSpec) bool {
		var ranges []addrset.Range
		for _, wide := range e.Items {
			switch {
			case wide.Ports != nil && (ports == nil || !wide.Ports.covers(*ports)):
			case wide.Set == "" && !wide.Range.IsValid(), wide.Set != "" && wide.Set == item.Set:
				return false
			case wide.Range.IsValid():
				ranges = append(ranges, wide.Range)
			}
		}
		return !item.Range.IsValid() || !addrset.Covers(ranges, item.Range)
	})
}

// splits cuts ports, which may be nil, where ports of e's items begin or end.
func (e Egress) splits(ports *PortSpec) []*PortSpec {
	if ports == nil || ports.Portless {
		return []*PortSpec{ports}
	}
	first := []uint32{uint32(ports.Low)} // of each piece
	for _, wide := range e.Items {
		if wide.Ports == nil {
			continue
		}
		for _, at := range []uint32{uint32(wide.Ports.Low), uint32(wide.Ports.High) + 1} {
			if at > uint32(ports.Low) && at <= uint32(ports.High) {
				first = append(first, at)
			}
		}
	}
	slices.Sort(first)
	first = append(slices.Compact(first), uint32(ports.High)+1)
	var out []*PortSpec
	for i, next := range first[1:] {
		out = append(out, &PortSpec{Proto: ports.Proto, Low: uint16(first[i]), High: uint16(next - 1)})
	}
	return out
}

// covers reports whether all of narrow's ports are among s's.
func (s PortSpec) covers(narrow PortSpec) bool {
	return s.Contains(narrow.Proto, narrow.Low) && s.Contains(narrow.Proto, narrow.High)
}

// egressVerdict gives the verdict of an element that holds a source to e, and
// sees to it that its chain exists.
func (c *compiler) egressVerdict(e Egress) rs.Verdict {
	switch {
	case e.Any:
		return rs.Verdict{Kind: rs.Return}
	case len(e.Items) == 0:
		return ReasonEgress.verdict()
	}
	sum := sha256.Sum256([]byte(e.String()))
	name := egressPrefix + hex.EncodeToString(sum[:16])
	c.egresses[name] = e
	return rs.Verdict{Kind: rs.Goto, Chain: name}
}

// leavingChains gives the chains that decide where containers may connect. All
// of them return what may leave and refuse the rest.
func (c *compiler) leavingChains() []*rs.Chain {
	var out []*rs.Chain
	if c.p.Containers.ToContainers != ToContainersDocker {
		out = append(out, c.peers())
		for _, name := range slices.Sorted(maps.Keys(c.members)) {
			out = append(out, projectChain(name))
		}
	}
	chain := &rs.Chain{Name: chainLeaving}
	for _, f := range families {
		chain.Rules = append(chain.Rules, lookup(mapEgress+f.suffix, senderKey(f)))
	}
	chain.Rules = append(chain.Rules,
		because("a container is being started on that bridge, and is not known yet", refuse(ReasonUnknown, rs.In(SetArriving, rs.IIfName))),
		lookup(mapEgressBridge, []rs.Field{rs.IIfName}),
		refuse(ReasonUnknown),
	)
	out = append(out, chain)
	for _, name := range slices.Sorted(maps.Keys(c.egresses)) {
		out = append(out, c.egressChain(name))
	}
	return out
}

// egressChain lets through what one egress lists.
func (c *compiler) egressChain(name string) *rs.Chain {
	chain := &rs.Chain{Name: name}
	for _, item := range c.egresses[name].Items {
		var ports []rs.Match
		if item.Ports != nil {
			ports = portMatches(*item.Ports)
		}
		for _, to := range c.destinations(item) {
			chain.Rules = append(chain.Rules, rs.Rule{
				Matches: slices.Concat(to, ports), Verdict: rs.Verdict{Kind: rs.Return},
				Origin: "egress " + item.String(),
			})
		}
	}
	chain.Rules = append(chain.Rules, refuse(ReasonEgress))
	return chain
}

// destinations gives one list of matches for every way to match an item's
// addresses.
func (c *compiler) destinations(item EgressItem) [][]rs.Match {
	switch {
	case item.Set != "":
		var out [][]rs.Match
		for _, f := range families {
			for _, set := range c.kernelSets(item.Set, f) {
				out = append(out, []rs.Match{rs.In(set, f.daddr)})
			}
		}
		return out
	case item.Range.IsValid():
		set := c.literals(From{Ranges: []addrset.Range{item.Range}})[0]
		return [][]rs.Match{{rs.In(set.Name, familyOf(item.Range.From).daddr)}}
	default:
		return [][]rs.Match{nil}
	}
}

// peers decides on what goes from one container to another. What Docker
// translated was meant for the host, where to_host decides.
func (c *compiler) peers() *rs.Chain {
	chain := &rs.Chain{Name: chainPeers, Rules: []rs.Rule{
		{Matches: []rs.Match{rs.HasBits(rs.CtStatus, rs.StatusDNAT)}, Verdict: rs.Verdict{Kind: rs.Return}},
		// Without it two of one project on one bridge never find each other.
		because(OriginEssential, accept(rs.In(setDiscovery, rs.ICMPv6Type))),
	}}
	c.addSet(typeSet(setDiscovery, rs.ICMPv6Type, icmpv6Discovery))
	if c.p.Containers.ToContainers == ToContainersSameProject {
		for _, f := range families {
			chain.Rules = append(chain.Rules, lookup(mapProject+f.suffix, senderKey(f)))
		}
	}
	chain.Rules = append(chain.Rules, because("containers.to_containers", refuse(ReasonToContainers)))
	return chain
}

// projects makes a set of the addresses of each compose project, and the map
// that leads a container's address to its own.
func (c *compiler) projects(inv inventory.Snapshot, networks map[string]inventory.Network) {
	for _, f := range families {
		c.verdictMap(mapProject+f.suffix, senderKey(f))
	}
	for _, container := range sorted(inv.Containers, func(a, b *inventory.Container) int { return cmp.Compare(a.ID, b.ID) }) {
		project := operatorLabels(c.p, container)[composeProject]
		if project == "" {
			continue
		}
		sum := sha256.Sum256([]byte(project))
		name := projectPrefix + hex.EncodeToString(sum[:16])
		if !c.members[name] {
			c.members[name] = true
			for _, f := range families {
				c.addSet(&rs.Set{Name: name + "." + f.suffix, Key: []rs.Field{f.daddr}, Elements: map[rs.Key]rs.Element{}})
			}
		}
		owner := rs.Element{Comment: ElementOwner(container.ID)}
		for _, a := range bridgeAddrs(container, networks) {
			key := rs.Key{Addr: a.addr}
			suffix := familyOf(a.addr).suffix
			c.sets[name+"."+suffix].Elements[key] = owner
			member := owner
			member.Verdict = rs.Verdict{Kind: rs.Goto, Chain: name}
			c.sets[mapProject+suffix].Elements[rs.Key{IIf: a.bridge, Addr: a.addr}] = member
		}
	}
}

func projectChain(name string) *rs.Chain {
	chain := &rs.Chain{Name: name}
	for _, f := range families {
		chain.Rules = append(chain.Rules, rs.Rule{
			Matches: []rs.Match{rs.In(name+"."+f.suffix, f.daddr)}, Verdict: rs.Verdict{Kind: rs.Return},
		})
	}
	chain.Rules = append(chain.Rules, because("containers.to_containers", refuse(ReasonToContainers)))
	return chain
}
