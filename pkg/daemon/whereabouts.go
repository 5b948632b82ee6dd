package daemon

import (
	"net/netip"

	"github.com/nftfw/nftfw/pkg/inventory"
	"github.com/nftfw/nftfw/policy"
)

// whereabouts says which container is at an address, as a packet shows it. It
// is not changed once made.
type whereabouts struct {
	containers map[netip.Addr]string
	inside     map[insidePort]*policy.Decision // by the container's own port
	outside    map[hostPort][]*policy.Decision // by the host's
}

type insidePort struct {
	container string // name
	hostPort
}

type hostPort struct {
	proto uint8
	port  uint16
}

func newWhereabouts(inv inventory.Snapshot, decisions []policy.Decision) *whereabouts {
	w := &whereabouts{
		containers: map[netip.Addr]string{}, inside: map[insidePort]*policy.Decision{}, outside: map[hostPort][]*policy.Decision{},
	}
	for _, container := range inv.Containers {
		for _, e := range container.Endpoints {
			for _, a := range []netip.Addr{e.Addr4, e.Addr6} {
				if a.IsValid() {
					w.containers[a.Unmap().WithZone("")] = container.Name
				}
			}
		}
	}
	for i := range decisions {
		d := &decisions[i]
		at := hostPort{d.Port.Proto, d.Port.HostPort}
		w.outside[at] = append(w.outside[at], d)
		if !d.HostNetwork && !d.AtHostIP.IsValid() {
			w.inside[insidePort{d.Container.Name, hostPort{d.Port.Proto, d.Port.ContainerPort}}] = d
		}
	}
	return w
}

// target says which container a packet to an address and port is for, after
// DNAT or before, and the decision about that port, nil where there is none.
func (w *whereabouts) target(dst netip.Addr, proto uint8, port uint16) (container string, d *policy.Decision) {
	if name := w.containers[dst]; name != "" {
		return name, w.inside[insidePort{name, hostPort{proto, port}}]
	}
	for _, d := range w.outside[hostPort{proto, port}] {
		if at := d.Port.HostIP; !at.IsValid() || at == dst || at.IsUnspecified() && at.Is4() == dst.Is4() {
			return d.Container.Name, d
		}
	}
	return "", nil
}
