package policy

import (
	"github.com/nftfw/nftfw/pkg/inventory"
	rs "github.com/nftfw/nftfw/pkg/ruleset"
)

// Place is one element that a decision has in a verdict map of the table.
type Place struct {
	Map     string // whose element counts those that asked
	Refused string // the set whose element of the same key counts those that were refused
	Key     rs.Key
	IPv4    bool // what comes by it is IPv4
}

// place is a Place with its names as the compiler has them.
type place struct {
	verdicts string // without the family
	family   family
	key      rs.Key
}

// Places gives for each decision the elements by which it is enforced, in a
// table that Compile made of inv.
func Places(decisions []Decision, inv inventory.Snapshot) [][]Place {
	networks := networksByID(inv)
	out := make([][]Place, len(decisions))
	for i, d := range decisions {
		for _, p := range d.places(networks) {
			out[i] = append(out[i], Place{
				Map: p.set(), Refused: p.counted().set(),
				Key: p.key, IPv4: p.family.nfproto == rs.NFProtoIPv4,
			})
		}
	}
	return out
}

// set names the set of the table that has the element.
func (p place) set() string { return p.verdicts + p.family.suffix }

// places gives the elements of a decision: at the container's addresses, for
// what Docker forwards, and at the host's, for what docker-proxy, the engine or
// the container itself accepts. A port bound to a loopback address has none.
func (d Decision) places(networks map[string]inventory.Network) []place {
	if d.HostOnly() {
		return nil
	}
	if d.HostNetwork {
		return d.hostSide()
	}
	var out []place
	for _, t := range d.targets(networks) {
		out = append(out, d.containerSide(t)...)
	}
	if d.Port.Published() {
		out = append(out, d.hostSide()...)
	}
	return out
}

// target is where Docker sends what arrives at a published port.
type target struct {
	bridgeAddr
	port uint16
}

// targets gives where a port is reached behind Docker's translation: at its
// container's addresses, or for one of the routing mesh at the mesh's, which
// does the rest.
func (d Decision) targets(networks map[string]inventory.Network) []target {
	if d.Ingress {
		if !d.Mesh.IsValid() {
			return nil
		}
		return []target{{bridgeAddr{addr: plain(d.Mesh)}, d.Port.HostPort}}
	}
	var out []target
	for _, a := range bridgeAddrs(d.Container, networks) {
		out = append(out, target{a, d.Port.ContainerPort})
	}
	return out
}

// containerSide gives the elements at an address of the container.
func (d Decision) containerSide(a target) []place {
	f := familyOf(a.addr)
	key := rs.Key{Addr: a.addr, Proto: d.Port.Proto, Port: a.port}
	var out []place
	if a.mode == inventory.GatewayRouted && !d.AtHostIP.IsValid() {
		out = append(out, place{mapRouted, f, key})
	}
	switch {
	case !d.Port.Published():
	case d.AtHostIP.IsValid():
		if d.AtHostIP.Is4() == a.addr.Is4() {
			key.Orig = d.AtHostIP
			out = append(out, place{mapPublishedAt, f, key})
		}
	default:
		out = append(out, place{mapPublished, f, key})
	}
	return out
}

// hostSide gives the elements under which docker-proxy's listener, or a
// container in the host's network, is reached at the host's own addresses.
func (d Decision) hostSide() []place {
	key := rs.Key{Proto: d.Port.Proto, Port: d.Port.HostPort}
	at := d.Port.HostIP
	if d.AtHostIP.IsValid() {
		at = d.AtHostIP
	}
	if at.IsValid() && !at.IsUnspecified() {
		key.Addr = plain(at)
		return []place{{mapHostPorts, familyOf(key.Addr), key}}
	}
	var out []place
	for _, f := range families {
		if !at.IsValid() || at.Is4() == (f.nfproto == rs.NFProtoIPv4) {
			out = append(out, place{mapHostAny, f, key})
		}
	}
	return out
}
