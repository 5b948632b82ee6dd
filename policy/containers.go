package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/nftfw/nftfw/pkg/inventory"
	"github.com/nftfw/nftfw/pkg/ruleset"
)

// placement is an element that a decision has, or would have if no other had
// it.
type placement struct {
	place
	*claim
}

// claim is a decision with what its elements carry.
type claim struct {
	*Decision
	element ruleset.Element
	refused ruleset.Element // of the set that counts refusals; none where everybody is let in
	early   bool            // stands back for whoever has the key
}

// containerMaps makes the verdict maps: one element for every address and
// port at which a container can be reached, and the others that containers have a
// part in.
func (c *compiler) containerMaps(inv inventory.Snapshot) *containerPart {
	port := []ruleset.Field{ruleset.L4Proto, ruleset.Dport}
	for _, f := range families {
		addrPort := append([]ruleset.Field{f.daddr}, port...)
		c.portMap(mapPublished+f.suffix, addrPort)
		c.portMap(mapPublishedAt+f.suffix, append([]ruleset.Field{f.origDaddr}, addrPort...))
		c.portMap(mapRouted+f.suffix, addrPort)
		c.portMap(mapHostPorts+f.suffix, addrPort)
		c.portMap(mapHostAny+f.suffix, port)
	}
	c.countingSets()
	networks := networksByID(inv)
	decisions, diags := Decide(c.p, inv)
	c.diags = append(c.diags, diags...)
	c.reportTrustedBridges(inv.Networks)
	// Ports that Docker holds come first: a label of a container in the
	// host's network never opens one of them.
	c.publishAll(decisions, networks)
	for i := range decisions {
		if d := &decisions[i]; d.HostNetwork {
			c.openHostPort(d)
		}
	}
	for i := range inv.Containers {
		for _, p := range c.foreseen(inv.Containers[i], networks) {
			if _, taken := c.sets[p.set()].Elements[p.key]; taken && p.early {
				c.contested[p.place] = true
				continue
			}
			c.put(p)
		}
	}
	if !c.p.Containers.ToHost.Any {
		c.publishedHost(decisions, networks)
	}
	return c.containerPart(inv, c.leaving(inv, networks))
}

// reportTrustedBridges says which patterns in interfaces.trusted match a bridge of the
// engine's: what containers there send then passes whatever their egress is.
func (c *compiler) reportTrustedBridges(networks []inventory.Network) {
	for _, name := range c.p.TrustedInterfaces {
		prefix, pattern := strings.CutSuffix(name, "*")
		for _, n := range networks {
			if pattern && onBridge(n) && strings.HasPrefix(n.Bridge, prefix) {
				c.diags = append(c.diags, Diagnostic{Severity: SeverityWarning, Message: fmt.Sprintf(
					"%s in interfaces.trusted matches %s, the bridge of network %s: whatever its containers send is accepted", name, n.Bridge, n.Name)})
			}
		}
	}
}

// publishAll adds the elements of published ports to maps that have just the
// room for them: a map that grows to ten thousand elements is copied a dozen
// times on the way.
func (c *compiler) publishAll(decisions []Decision, networks map[string]inventory.Network) {
	claims := make([]claim, len(decisions))
	c.placed = make([]placement, 0, 4*len(decisions))
	for i := range decisions {
		if d := &decisions[i]; !d.HostNetwork {
			claims[i] = c.claim(d)
			for _, p := range d.places(networks) {
				c.placed = append(c.placed, placement{p, &claims[i]})
			}
		}
	}
	room := map[string]int{}
	for _, p := range c.placed {
		room[p.set()]++
		if p.refused.Comment != "" {
			room[p.counted().set()]++
		}
	}
	for name, n := range room {
		c.sets[name].Elements = make(map[ruleset.Key]ruleset.Element, n)
	}
	for _, p := range c.placed {
		c.enter(p)
	}
}

// publishedHost makes the sets of container ports that other containers may
// reach through the host's addresses. After DNAT the host's port is not to be
// seen any more: a port that is published twice needs both in to_host.
func (c *compiler) publishedHost(decisions []Decision, networks map[string]inventory.Network) {
	open := map[ruleset.Key]bool{}
	for _, d := range decisions {
		if !d.Port.Published() || d.HostNetwork || d.HostOnly() {
			continue
		}
		listed := slices.ContainsFunc(c.p.Containers.ToHost.Ports, func(s PortSpec) bool {
			return s.Contains(d.Port.Proto, d.Port.HostPort)
		})
		for _, t := range d.targets(networks) {
			key := ruleset.Key{Addr: t.addr, Proto: d.Port.Proto, Port: t.port}
			other, seen := open[key]
			open[key] = listed && (other || !seen)
		}
	}
	for _, f := range families {
		c.addSet(&ruleset.Set{
			Name: setPublishedHost + f.suffix, Key: []ruleset.Field{f.daddr, ruleset.L4Proto, ruleset.Dport},
			Elements: map[ruleset.Key]ruleset.Element{},
		})
	}
	for key, listed := range open {
		if listed {
			c.sets[setPublishedHost+familyOf(key.Addr).suffix].Elements[key] = ruleset.Element{}
		}
	}
}

// portMap makes a verdict map whose elements count who asked for the port:
// packets of established connections do not come by.
func (c *compiler) portMap(name string, key []ruleset.Field) {
	c.verdictMap(name, key)
	c.sets[name].Counter = true
}

func (c *compiler) verdictMap(name string, key []ruleset.Field) {
	c.addSet(&ruleset.Set{Name: name, Key: key, Verdicts: true, Elements: map[ruleset.Key]ruleset.Element{}})
}

// foreseen gives what a container that is being started will have at addresses of
// its own, which nobody else has by then: so they are there when its process
// is. On the host's side its ports may be somebody else's until it runs, and a
// failed start leaves them so: see held. What is wrong with its labels is reported
// when it runs.
func (c *compiler) foreseen(container inventory.Container, networks map[string]inventory.Network) []placement {
	if !container.Starting || container.Unidentified || len(container.Foreseen) == 0 {
		return nil
	}
	container.Ports = container.Foreseen
	var out []placement
	for _, d := range newDecider(c.p, networks, &container).decide() {
		if d.HostNetwork || d.HostOnly() {
			continue
		}
		by := c.claim(&d)
		for _, t := range d.targets(networks) {
			for _, p := range d.containerSide(t) {
				out = append(out, placement{p, &by})
			}
		}
		out = append(out, c.held(&d)...)
	}
	return out
}

// held refuses a port of the host to all while the container that will publish it is
// being started, where other rules would let somebody in who may not reach the
// container: docker-proxy listens before it is known whether the start succeeds.
func (c *compiler) held(d *Decision) []placement {
	if !d.Port.Published() || d.From.Any || !d.From.None && !c.p.letsToHost(d.Port.Proto, d.Port.HostPort) {
		return nil
	}
	by := &claim{Decision: d, early: true, element: ruleset.Element{
		Verdict: ReasonFrom.verdict(),
		Comment: ElementOwner(d.Container.ID),
		Origin:  d.subject() + " is being started",
	}}
	var out []placement
	for _, p := range d.hostSide() {
		out = append(out, placement{p, by})
	}
	return out
}

// letsToHost reports whether what the policy says of the host's own ports may let
// somebody reach the port whom sets.trusted does not.
func (p *Policy) letsToHost(proto uint8, port uint16) bool {
	_, named := p.hostAllows(proto, port)
	return named || p.Host.DefaultAccept
}

// Closes reports whether an element that is new in a verdict map may take access
// away from somebody whom the rules behind that map let in: from ports of the host that
// host.default or host.allow opens, or where nobody may in from those in trusted, if
// there are any.
func (p *Policy) Closes(set string, k ruleset.Key, v ruleset.Verdict, trusted bool) bool {
	name := withoutFamily(set)
	if name != mapHostPorts && name != mapHostAny || v == acceptVerdict {
		return false
	}
	return trusted && v == ReasonFrom.verdict() || p.letsToHost(k.Proto, k.Port)
}

// bridgeAddr is an address of a container on a bridge of Docker's.
type bridgeAddr struct {
	addr   netip.Addr
	mode   inventory.GatewayMode // of the network, for the address's family
	bridge string
}

func bridgeAddrs(c *inventory.Container, networks map[string]inventory.Network) []bridgeAddr {
	var out []bridgeAddr
	for _, e := range c.Endpoints {
		n := networks[e.NetworkID]
		if !onBridge(n) {
			continue
		}
		for _, a := range []bridgeAddr{{e.Addr4, n.Gateway4, n.Bridge}, {e.Addr6, n.Gateway6, n.Bridge}} {
			if a.addr.IsValid() {
				a.addr = plain(a.addr)
				out = append(out, a)
			}
		}
	}
	return out
}

// plain is a as packets carry it: IPv4 as such, and without a zone.
func plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

// openHostPort adds the elements of a port of a container in the host's
// network, unless a published port already holds one of them.
func (c *compiler) openHostPort(d *Decision) {
	key := ruleset.Key{Proto: d.Port.Proto, Port: d.Port.HostPort}
	places := d.places(nil)
	for _, at := range append([]place{{mapHostAny, families[0], key}, {mapHostAny, families[1], key}}, places...) {
		c.contested[at] = true // whoever publishes it takes all that d has
		if other := c.owner(at); other != nil && !other.HostNetwork {
			if d.By == ByRule {
				return // a rule is about both
			}
			c.diags = append(c.diags, Diagnostic{
				Severity: SeverityError, Container: d.Container.Name, ContainerID: d.Container.ID,
				Port:    portName(d.Port.Proto, d.Port.HostPort),
				Message: fmt.Sprintf("host port %s is held by %s, which publishes it", portName(d.Port.Proto, d.Port.HostPort), other.subject()),
			})
			return
		}
	}
	by := c.claim(d)
	for _, p := range places {
		c.put(placement{p, &by})
	}
}

// claim makes what the elements of a decision carry.
func (c *compiler) claim(d *Decision) claim {
	out := claim{Decision: d, element: ruleset.Element{
		Verdict: c.fromVerdict(d.From),
		Comment: ElementOwner(d.Container.ID),
		Origin:  d.describe(),
	}}
	out.refused = refusedElement(out.element)
	c.uses[out.element.Verdict.Chain]++
	return out
}

// owner gives who was the first to claim an element, nil where nobody did.
func (c *compiler) owner(p place) *claim {
	if _, taken := c.sets[p.set()].Elements[p.key]; !taken {
		return nil
	}
	if c.claims == nil {
		c.claims = map[place]*claim{}
	}
	for _, other := range c.placed[c.claimed:] {
		if _, later := c.claims[other.place]; !later {
			c.claims[other.place] = other.claim
		}
	}
	c.claimed = len(c.placed)
	return c.claims[p]
}

// put adds an element for a decision.
func (c *compiler) put(p placement) {
	c.placed = append(c.placed, p)
	c.enter(p)
}

// enter adds an element to its map. Where two containers claim one key with
// different words, nobody is let in.
func (c *compiler) enter(p placement) {
	elements := c.sets[p.set()].Elements
	element, refused := p.element, p.claim.refused
	if had, taken := elements[p.key]; taken {
		if had.Comment != element.Comment {
			c.contested[p.place] = true
		}
		if had.Verdict == element.Verdict {
			return // most often the same port on the wildcard of the other family
		}
		other := c.owner(p.place)
		if other.From.String() == p.From.String() {
			return
		}
		why := fmt.Sprintf("%s and %s claim the same address and port with different permissions (%s, %s): closed",
			other.subject(), p.subject(), other.From, p.From)
		c.diags = append(c.diags, Diagnostic{
			Severity: SeverityError, Container: p.Container.Name, ContainerID: p.Container.ID, Service: p.Ingress,
			Port: portName(p.Port.Proto, p.Port.ContainerPort), Message: why,
		})
		element = ruleset.Element{Verdict: ReasonFrom.verdict(), Comment: other.element.Comment, Origin: why}
		refused = refusedElement(element)
	}
	elements[p.key] = element
	if refused.Comment == "" {
		return
	}
	count := p.counted()
	counts := c.sets[count.set()].Elements
	if had, taken := counts[p.key]; taken && !refusedOf(had, element) {
		c.contested[count] = true // several maps have one set that counts
	}
	counts[p.key] = refused
}

// describe names for people the line or label that decided, and what is wrong
// where a label does not count.
func (d *Decision) describe() string {
	switch {
	case d.Err != "":
		return fmt.Sprintf("%s, for %s: %s", d.Origin, d.subject(), d.Err)
	case d.By == ByLabel:
		return fmt.Sprintf("label %s of %s", d.Origin, d.subject())
	default:
		return fmt.Sprintf("%s, for %s", d.Origin, d.subject())
	}
}

// ownerIDLength is how much of a container's ID its elements carry: what
// docker ps shows.
const ownerIDLength = 12

// ElementOwner gives the comment of the elements of the container with this
// ID.
func ElementOwner(id string) string {
	return strings.ToLower(id[:min(len(id), ownerIDLength)])
}
