package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/nftfw/nftfw/pkg/inventory"
	"github.com/nftfw/nftfw/pkg/ruleset"
)

// ownerKey is one element of one map, to see two containers claim it.
type ownerKey struct {
	set string
	key ruleset.Key
}

// containerMaps makes the verdict maps: one element for every address and
// port at which a container can be reached.
func (c *compiler) containerMaps(inv inventory.Snapshot) {
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
	// Ports that Docker holds come first: a label of a container in the
	// host's network never opens one of them.
	for _, d := range decisions {
		if !d.HostNetwork {
			c.publish(d, networks)
		}
	}
	for _, d := range decisions {
		if d.HostNetwork {
			c.openHostPort(d)
		}
	}
	for _, container := range inv.Containers {
		c.foresee(container, networks)
	}
	if !c.p.Containers.ToHost.Any {
		c.publishedHost(decisions, networks)
	}
	c.leaving(inv, networks)
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

// foresee adds what a container that is being started will have at addresses of
// its own, which nobody else has by then: so they are there when its process
// is. On the host's side its ports may be somebody else's until it runs, and a
// failed start leaves them so. What is wrong with its labels is reported when it
// runs.
func (c *compiler) foresee(container inventory.Container, networks map[string]inventory.Network) {
	if !container.Starting || container.Unidentified || len(container.Foreseen) == 0 {
		return
	}
	container.Ports = container.Foreseen
	for _, d := range newDecider(c.p, networks, container).decide() {
		if d.HostNetwork || d.HostOnly() {
			continue
		}
		for _, t := range d.targets(networks) {
			for _, p := range d.containerSide(t) {
				c.put(p, d)
			}
		}
	}
}

// publish adds the elements of one decision about a container's port.
func (c *compiler) publish(d Decision, networks map[string]inventory.Network) {
	for _, p := range d.places(networks) {
		c.put(p, d)
	}
}

// bridgeAddr is an address of a container on a bridge of Docker's.
type bridgeAddr struct {
	addr   netip.Addr
	mode   inventory.GatewayMode // of the network, for the address's family
	bridge string
}

func bridgeAddrs(c inventory.Container, networks map[string]inventory.Network) []bridgeAddr {
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
func (c *compiler) openHostPort(d Decision) {
	key := ruleset.Key{Proto: d.Port.Proto, Port: d.Port.HostPort}
	for _, f := range families {
		if other, taken := c.owners[ownerKey{mapHostAny + f.suffix, key}]; taken && !other.HostNetwork {
			c.diags = append(c.diags, Diagnostic{
				Severity: SeverityError, Container: d.Container.Name, ContainerID: d.Container.ID,
				Port:    portName(d.Port.Proto, d.Port.HostPort),
				Message: fmt.Sprintf("host port %s is held by %s, which publishes it", portName(d.Port.Proto, d.Port.HostPort), other.subject()),
			})
			return
		}
	}
	c.publish(d, nil)
}

// put adds an element for a decision. Where two containers claim one key with
// different words, nobody is let in.
func (c *compiler) put(p place, d Decision) {
	set := p.verdicts + p.family.suffix
	owner := ownerKey{set, p.key}
	element := ruleset.Element{
		Verdict: c.fromVerdict(d.From),
		Comment: ElementOwner(d.Container.ID),
		Origin:  d.describe(),
	}
	if other, taken := c.owners[owner]; taken {
		if other.From.String() == d.From.String() {
			return
		}
		why := fmt.Sprintf("%s and %s claim the same address and port with different permissions (%s, %s): closed",
			other.subject(), d.subject(), other.From, d.From)
		c.diags = append(c.diags, Diagnostic{
			Severity: SeverityError, Container: d.Container.Name, ContainerID: d.Container.ID, Service: d.Ingress,
			Port: portName(d.Port.Proto, d.Port.ContainerPort), Message: why,
		})
		element = ruleset.Element{Verdict: ReasonFrom.verdict(), Comment: ElementOwner(other.Container.ID), Origin: why}
	} else {
		c.owners[owner] = d
	}
	c.sets[set].Elements[p.key] = element
	c.countRefused(p, element)
}

// describe names for people the line or label that decided, and what is wrong
// where a label does not count.
func (d Decision) describe() string {
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
