package daemon

import (
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/nftfw/nftfw/nft"
	"github.com/nftfw/nftfw/pkg/inventory"
	"github.com/nftfw/nftfw/pkg/links"
	"github.com/nftfw/nftfw/pkg/ruleset"
	"github.com/nftfw/nftfw/policy"
)

// judge says which live connections a table would refuse if they began now.
// It is for one goroutine.
type judge struct {
	table  *ruleset.Table
	before *ruleset.Table // what it refused already is none of our business; nil: nothing
	now    time.Time
	routes *links.Routes
	names  []string // of the host's links, for sources that any of them may have

	hostOnly bool // of what goes further it refuses nothing

	places map[netip.Addr]place
}

// place is where an address lies.
type place struct {
	link  string
	local bool // the host's own
	group bool // more than one host, or none yet
}

func newJudge(table, before *ruleset.Table, routes *links.Routes, list []inventory.Link, now time.Time) *judge {
	j := &judge{table: table, before: before, now: now, routes: routes, places: map[netip.Addr]place{}}
	for _, l := range list {
		if l.Name != "lo" {
			j.names = append(j.names, l.Name)
		}
	}
	return j
}

func (j *judge) place(a netip.Addr) place {
	p, known := j.places[a]
	if !known {
		p = place{
			link:  j.routes.Link(a),
			local: a.IsLoopback() || j.routes.Local(a),
			group: a.IsMulticast() || a.IsUnspecified() || j.routes.Broadcast(a),
		}
		j.places[a] = p
	}
	return p
}

// refuses tells whether f is refused now, and was not before. What the host
// itself began is never refused: the table has no say in it. Nor is what goes
// to a group: nobody answers as the group, so that each packet is a new one to
// the table anyway.
//
// That TCP is over according to connection tracking does not count: a client makes it
// believe so by a RST or FIN that does not get as far as the server, and goes on.
func (j *judge) refuses(f nft.Flow) bool {
	client, server := j.place(f.Src.Addr()), j.place(f.ReplySrc.Addr())
	if client.local || client.group || server.group || j.hostOnly && !server.local {
		return false
	}
	p := ruleset.Packet{
		IIf: client.link, Src: f.Src.Addr(), SPort: f.Src.Port(), Proto: f.Proto, ICMPType: f.ICMPType,
		OrigDst: f.Dst.Addr(), State: ruleset.StateNew, Time: j.now,
	}
	if f.Dst != f.ReplySrc {
		p.Status = ruleset.StatusDNAT
	}
	from := []string{client.link}
	if p.Src.IsLinkLocalUnicast() {
		from = j.names // every link has these addresses: one that lets it in is enough
	}
	for _, p.IIf = range from {
		if passes(j.table, p, f, server) || j.before != nil && !passes(j.before, p, f, server) {
			return false
		}
	}
	return true
}

// passes walks the first packet of f through the hooks that it meets.
func passes(t *ruleset.Table, p ruleset.Packet, f nft.Flow, server place) bool {
	p.Hook, p.Dst, p.DPort = ruleset.Prerouting, f.Dst.Addr(), f.Dst.Port()
	if t.Decide(p) == ruleset.Drop {
		return false
	}
	p.Hook, p.Dst, p.DPort = ruleset.Forward, f.ReplySrc.Addr(), f.ReplySrc.Port()
	if server.local {
		p.Hook = ruleset.Input
	} else {
		p.OIf = server.link
	}
	return t.Decide(p) != ruleset.Drop
}

// refused hands on those of the flows that are refused, in any order, until listed
// is closed. It works on all processors, and writes into the slices that it is
// given.
func (j *judge) refused(listed <-chan []nft.Flow, take func([]nft.Flow)) {
	var all sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		all.Go(func() {
			own := *j
			own.places = map[netip.Addr]place{}
			for flows := range listed {
				if flows = own.only(flows); len(flows) > 0 {
					take(flows)
				}
			}
		})
	}
	all.Wait()
}

// only keeps those of the flows that are refused.
func (j *judge) only(flows []nft.Flow) []nft.Flow {
	return slices.DeleteFunc(flows, func(f nft.Flow) bool { return !j.refuses(f) })
}

// protoUDP is IANA's number for UDP.
const protoUDP = 17

// answers gives those of the flows that have docker-proxy ask and its client answer,
// turned. It begins nothing: the engine deletes the UDP entries of a port when it
// starts the port's container, and what docker-proxy still sends makes such an entry.
func (j *judge) answers(flows []nft.Flow) []nft.Flow {
	var out []nft.Flow
	for _, f := range flows {
		if f.Proto == protoUDP && policy.Proxied(j.table, f.Proto, f.Src) {
			out = append(out, f.Reversed())
		}
	}
	return out
}

// ends are the two ends of a connection.
type ends struct{ local, remote netip.AddrPort }

// flowsOf gives accepted connections as flows that no entry stands for.
func flowsOf(accepted map[ends]bool) []nft.Flow {
	var out []nft.Flow
	for e := range accepted {
		out = append(out, nft.Flow{Proto: protoTCP, Src: e.remote, Dst: e.local, ReplySrc: e.local, ReplyDst: e.remote})
	}
	return out
}

// turned gives those of the flows that accepted has the other way round, turned.
func turned(flows []nft.Flow, accepted map[ends]bool) []nft.Flow {
	var out []nft.Flow
	for _, f := range flows {
		if f.Proto == protoTCP && accepted[ends{f.Src, f.Dst}] {
			out = append(out, f.Reversed())
		}
	}
	return out
}
