package daemon

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/nftfw/nftfw/pkg/api"
	"github.com/nftfw/nftfw/pkg/inventory"
	"github.com/nftfw/nftfw/pkg/links"
	"github.com/nftfw/nftfw/pkg/ruleset"
	"github.com/nftfw/nftfw/policy"
)

// reach gives what one source reaches under a table (nil: nothing is enforced):
// of published ports and those of containers in the host's network, each at every
// address of the host, and of the host's own.
func (c *core) reach(q api.Source, t *ruleset.Table) (api.Reach, error) {
	from, err := netip.ParseAddr(q.From)
	if err != nil {
		return api.Reach{}, api.Invalidf("--open-to %q is no address", q.From)
	}
	from = from.Unmap().WithZone("")
	routes, err := links.ReadRoutes()
	if err != nil {
		return api.Reach{}, err
	}
	r := reacher{
		explainer: explainer{core: c, inv: c.inventory(), routes: routes, table: t},
		source:    from, link: routes.Link(from),
		out: api.Reach{
			From: from.String(), In: routes.Link(from), Mode: string(c.policy.Mode), Down: c.down,
			Ports: []api.Reached{}, Host: []api.ReachedHost{},
		},
	}
	addrs, err := r.hostAddrs()
	if err != nil {
		return api.Reach{}, err
	}
	for _, container := range r.inv.Containers {
		for _, port := range container.Ports {
			r.published(container, port, addrs)
		}
	}
	decisions, _ := policy.Decide(c.policy.Policy, r.inv)
	for _, d := range decisions {
		if d.HostNetwork {
			at := d.Port
			at.HostIP = d.AtHostIP
			r.published(*d.Container, at, addrs)
		}
	}
	if len(addrs) > 0 {
		r.host(addrs[0])
	}
	slices.SortStableFunc(r.out.Ports, func(a, b api.Reached) int {
		return cmp.Or(cmp.Compare(a.Container, b.Container), cmp.Compare(a.Address, b.Address), cmp.Compare(a.Port, b.Port))
	})
	r.out.Ports = slices.Compact(r.out.Ports)
	return r.out, nil
}

// reacher asks about one source.
type reacher struct {
	explainer
	source netip.Addr
	link   string // by which its packets come
	out    api.Reach
}

// asks reports whether a packet of the source gets to an address and port, and
// who says so.
func (r *reacher) asks(to netip.Addr, proto uint8, port uint16) (decidedBy string, open bool) {
	e := explainer{core: r.core, inv: r.inv, routes: r.routes, table: r.table}
	e.packet = ruleset.Packet{
		Src: r.source, Dst: to, Proto: proto, DPort: port, SPort: ephemeralPort,
		IIf: r.link, State: ruleset.StateNew, Time: r.now(),
	}
	e.follow()
	return e.out.DecidedBy, e.out.Verdict == string(ruleset.Accept)
}

// published takes in one port of a container, at each address where it may be
// asked for.
func (r *reacher) published(c inventory.Container, p inventory.Port, host []netip.Addr) {
	add := func(to netip.Addr, port uint16) {
		if to.Is4() != r.source.Is4() {
			return
		}
		if by, open := r.asks(to, p.Proto, port); open {
			r.out.Ports = append(r.out.Ports, api.Reached{
				Container: c.Name, Address: to.String(), Port: port, ContainerPort: p.ContainerPort,
				Proto: ruleset.ProtocolName(p.Proto), DecidedBy: by,
			})
		}
	}
	switch {
	case !p.Published() || p.HostIP.IsLoopback():
	case !p.HostIP.IsValid() || p.HostIP.IsUnspecified():
		for _, a := range host {
			if !p.HostIP.IsValid() || a.Is4() == p.HostIP.Is4() {
				add(a, p.HostPort)
			}
		}
	default:
		add(p.HostIP, p.HostPort)
	}
	for _, end := range c.Endpoints {
		n := r.networkOf(end)
		if end.Addr4.IsValid() && n.Gateway4 == inventory.GatewayRouted {
			add(end.Addr4, p.ContainerPort)
		}
		if end.Addr6.IsValid() && n.Gateway6 == inventory.GatewayRouted {
			add(end.Addr6, p.ContainerPort)
		}
	}
}

// tcp is TCP's number (IANA).
const tcp = 6

// otherPort stands for a port of the host of which nothing speaks.
const otherPort = 1

// host takes in the host's own ports: those that host.allow lists, and all
// others together.
func (r *reacher) host(at netip.Addr) {
	spoken := false
	for _, a := range r.policy.Host.Allow {
		for _, spec := range a.Ports {
			spoken = spoken || spec.Contains(tcp, otherPort)
			if by, open := r.asks(at, spec.Proto, spec.Low); open {
				r.out.Host = append(r.out.Host, api.ReachedHost{Ports: spec.String(), DecidedBy: by})
			}
		}
	}
	if by, open := r.asks(at, tcp, otherPort); open && !spoken {
		r.out.Host = append(r.out.Host, api.ReachedHost{Ports: "*", DecidedBy: by})
	}
	r.out.Host = slices.Compact(r.out.Host)
}

// hostAddrs are the addresses of the host in the source's family, but those that
// only it and its containers see.
func (r *reacher) hostAddrs() ([]netip.Addr, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list the host's addresses: %w", err)
	}
	var out []netip.Addr
	for _, i := range interfaces {
		if i.Flags&net.FlagLoopback != 0 || r.isBridge(i.Name) {
			continue
		}
		list, err := i.Addrs()
		if err != nil {
			return nil, fmt.Errorf("list the addresses of %s: %w", i.Name, err)
		}
		for _, a := range list {
			p, err := netip.ParsePrefix(a.String())
			if err == nil && p.Addr().Is4() == r.source.Is4() && !p.Addr().IsLinkLocalUnicast() {
				out = append(out, p.Addr())
			}
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out, nil
}
