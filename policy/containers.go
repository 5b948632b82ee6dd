package policy

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/nftfw/nftfw/pkg/inventory"
	"github.com/nftfw/nftfw/pkg/ruleset"
)

// labelPrefix begins every label that is meant for nftfw.
const labelPrefix = "nftfw."

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
		c.verdictMap(mapPublished+f.suffix, addrPort)
		c.verdictMap(mapPublishedAt+f.suffix, append([]ruleset.Field{f.origDaddr}, addrPort...))
		c.verdictMap(mapRouted+f.suffix, addrPort)
		c.verdictMap(mapHostPorts+f.suffix, addrPort)
		c.verdictMap(mapHostAny+f.suffix, port)
	}
	networks := make(map[string]inventory.Network, len(inv.Networks))
	for _, n := range inv.Networks {
		networks[n.ID] = n
	}
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
}

func (c *compiler) verdictMap(name string, key []ruleset.Field) {
	c.addSet(&ruleset.Set{Name: name, Key: key, Verdicts: true, Elements: map[ruleset.Key]ruleset.Element{}})
}

// publish adds the elements of one decision about a container's port: at its
// addresses, for what Docker forwards, and at the host's, for what
// docker-proxy accepts.
func (c *compiler) publish(d Decision, networks map[string]inventory.Network) {
	for _, e := range d.Container.Endpoints {
		n := networks[e.NetworkID]
		if n.Bridge == "" {
			continue
		}
		for _, at := range []struct {
			addr netip.Addr
			mode inventory.GatewayMode
		}{{e.Addr4, n.Gateway4}, {e.Addr6, n.Gateway6}} {
			if at.addr.IsValid() {
				c.publishAt(d, at.addr, at.mode)
			}
		}
	}
	if d.Port.Published() && !d.HostOnly() {
		c.hostSide(d)
	}
}

func (c *compiler) publishAt(d Decision, addr netip.Addr, mode inventory.GatewayMode) {
	f := familyOf(addr)
	key := ruleset.Key{Addr: addr, Proto: d.Port.Proto, Port: d.Port.ContainerPort}
	if mode == inventory.GatewayRouted && !d.AtHostIP.IsValid() {
		c.put(mapRouted+f.suffix, key, d)
	}
	switch {
	case !d.Port.Published(), d.HostOnly():
	case d.AtHostIP.IsValid():
		if d.AtHostIP.Is4() == addr.Is4() {
			key.Orig = d.AtHostIP
			c.put(mapPublishedAt+f.suffix, key, d)
		}
	default:
		c.put(mapPublished+f.suffix, key, d)
	}
}

// hostSide adds the elements under which docker-proxy's listener, or a
// container in the host's network, is reached at the host's own addresses.
func (c *compiler) hostSide(d Decision) {
	key := ruleset.Key{Proto: d.Port.Proto, Port: d.Port.HostPort}
	at := d.Port.HostIP
	if d.AtHostIP.IsValid() {
		at = d.AtHostIP
	}
	if at.IsValid() && !at.IsUnspecified() {
		key.Addr = at
		c.put(mapHostPorts+familyOf(at).suffix, key, d)
		return
	}
	for _, f := range families {
		if !at.IsValid() || at.Is4() == (f.nfproto == ruleset.NFProtoIPv4) {
			c.put(mapHostAny+f.suffix, key, d)
		}
	}
}

// openHostPort adds the elements of a port of a container in the host's
// network, unless a published port already holds one of them.
func (c *compiler) openHostPort(d Decision) {
	key := ruleset.Key{Proto: d.Port.Proto, Port: d.Port.HostPort}
	for _, f := range families {
		if other, taken := c.owners[ownerKey{mapHostAny + f.suffix, key}]; taken && !other.HostNetwork {
			c.diags = append(c.diags, Diagnostic{
				Severity: SeverityError, Container: d.Container.Name, ContainerID: d.Container.ID,
				Port:    portName(d.Port.Proto, d.Port.HostPort),
				Message: fmt.Sprintf("host port %s is held by container %s, which publishes it", portName(d.Port.Proto, d.Port.HostPort), other.Container.Name),
			})
			return
		}
	}
	c.hostSide(d)
}

// put adds an element for a decision. Where two containers claim one key with
// different words, nobody is let in.
func (c *compiler) put(set string, key ruleset.Key, d Decision) {
	owner := ownerKey{set, key}
	if other, taken := c.owners[owner]; taken && other.From.String() != d.From.String() {
		c.diags = append(c.diags, Diagnostic{
			Severity: SeverityError, Container: d.Container.Name, ContainerID: d.Container.ID,
			Port: portName(d.Port.Proto, d.Port.ContainerPort),
			Message: fmt.Sprintf("containers %s and %s claim the same address and port with different permissions (%s, %s): closed",
				other.Container.Name, d.Container.Name, other.From, d.From),
		})
		d.From = From{None: true}
	} else if taken {
		return
	}
	c.owners[owner] = d
	c.sets[set].Elements[key] = ruleset.Element{
		Verdict: c.fromVerdict(d.From),
		Comment: ElementOwner(d.Container.ID),
		Origin:  d.describe(),
	}
}

// describe names the line or label that decided, for people.
func (d Decision) describe() string {
	switch {
	case d.Err != "":
		return fmt.Sprintf("label %s of container %s, which does not count: %s", d.Origin, d.Container.Name, d.Err)
	case d.By == ByLabel:
		return fmt.Sprintf("label %s of container %s", d.Origin, d.Container.Name)
	default:
		return fmt.Sprintf("%s, for container %s", d.Origin, d.Container.Name)
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
