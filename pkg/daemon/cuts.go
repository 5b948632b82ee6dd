package daemon

import (
	"net/netip"
	"time"

	"github.com/nftfw/nftfw/nft"
	"github.com/nftfw/nftfw/policy"
)

// cutFlows are flows that are cut, with the time until which they are: Unix time
// in ns. There may be very many, so that there is no pointer in it: the collector
// passes over it.
type cutFlows map[cutID]int64

// cutID is a nft.Cut without its time.
type cutID struct {
	proto uint8
	is4   bool
	ends  [3]struct { // client, asked, server
		addr [16]byte
		port uint16
	}
}

func idOf(c nft.Cut) cutID {
	id := cutID{proto: c.Proto, is4: c.Client.Addr().Is4()}
	for i, end := range []netip.AddrPort{c.Client, c.Asked, c.Server} {
		id.ends[i].addr, id.ends[i].port = end.Addr().As16(), end.Port()
	}
	return id
}

// cut gives the flow back with its time.
func (id cutID) cut(until int64) nft.Cut {
	end := func(i int) netip.AddrPort {
		a := netip.AddrFrom16(id.ends[i].addr)
		if id.is4 {
			a = a.Unmap()
		}
		return netip.AddrPortFrom(a, id.ends[i].port)
	}
	return nft.Cut{Proto: id.proto, Client: end(0), Asked: end(1), Server: end(2), Expires: time.Unix(0, until)}
}

// take puts cuts in, each with its time.
func (f cutFlows) take(cuts []nft.Cut) {
	for _, cut := range cuts {
		f[idOf(cut)] = cut.Expires.UnixNano()
	}
}

// first is the time at which the first of them ends; zero without any.
func (f cutFlows) first() (at time.Time) {
	for _, until := range f {
		if end := time.Unix(0, until); at.IsZero() || end.Before(at) {
			at = end
		}
	}
	return at
}

// room tells how many more can be cut of IPv4, under true, and of IPv6.
func (f cutFlows) room() map[bool]int {
	four := 0
	for id := range f {
		if id.is4 {
			four++
		}
	}
	return map[bool]int{true: policy.MaxCuts - four, false: policy.MaxCuts - (len(f) - four)}
}
