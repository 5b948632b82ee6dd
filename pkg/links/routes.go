package links

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Routes knows by which link each destination is reached, and which addresses
// are the host's own. It is a picture of the moment at which it was read; it
// may be used from several goroutines.
type Routes struct {
	unicast   []route // longest prefix first, then lowest metric
	local     []netip.Prefix
	broadcast []netip.Prefix
}

type route struct {
	to     netip.Prefix
	link   string
	metric int
}

// ReadRoutes reads the unicast, local and broadcast routes of the calling thread's
// network namespace, of all routing tables but without the rules that choose
// between them (see ip-rule(8)). A list that a change interrupted is read again.
func ReadRoutes() (*Routes, error) {
	names, err := linkNames()
	if err != nil {
		return nil, err
	}
	out := &Routes{}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := undisturbed(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range list {
			out.add(r, family, names)
		}
	}
	slices.SortStableFunc(out.unicast, func(a, b route) int {
		if d := b.to.Bits() - a.to.Bits(); d != 0 {
			return d
		}
		return a.metric - b.metric
	})
	return out, nil
}

func linkNames() (map[int]string, error) {
	list, err := undisturbed(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	names := make(map[int]string, len(list))
	for _, l := range list {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	return names, nil
}

func (r *Routes) add(in netlink.Route, family int, names map[int]string) {
	to := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if family == netlink.FAMILY_V6 {
		to = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	if in.Dst != nil {
		addr, ok := netip.AddrFromSlice(in.Dst.IP)
		bits, _ := in.Dst.Mask.Size()
		if !ok {
			return
		}
		if family == netlink.FAMILY_V4 {
			addr = addr.Unmap()
		}
		to = netip.PrefixFrom(addr, bits)
	}
	index := in.LinkIndex
	if index == 0 && len(in.MultiPath) > 0 {
		index = in.MultiPath[0].LinkIndex
	}
	switch in.Type {
	case unix.RTN_LOCAL:
		r.local = append(r.local, to)
	case unix.RTN_BROADCAST:
		r.broadcast = append(r.broadcast, to)
	case unix.RTN_UNICAST:
		r.unicast = append(r.unicast, route{to: to, link: names[index], metric: in.Priority})
	}
}

// Link names the link by which packets to a leave: "lo" for the host's own
// addresses, "" where there is no route.
func (r *Routes) Link(a netip.Addr) string {
	if r.Local(a) {
		return "lo"
	}
	for _, route := range r.unicast {
		if route.to.Contains(a) {
			return route.link
		}
	}
	return ""
}

// Local reports whether a is an address of the host itself.
func (r *Routes) Local(a netip.Addr) bool {
	for _, p := range r.local {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// Broadcast reports whether a is a broadcast address, of all links or of one
// of the host's.
func (r *Routes) Broadcast(a netip.Addr) bool {
	return a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) ||
		slices.ContainsFunc(r.broadcast, func(p netip.Prefix) bool { return p.Contains(a) })
}
