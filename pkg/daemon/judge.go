package daemon

import (
	"net/netip"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/nftfw/nftfw/nft"
	"github.com/nftfw/nftfw/pkg/inventory"
	"github.com/nftfw/nftfw/pkg/links"
	"github.com/nftfw/nftfw/pkg/ruleset"
)

// judge says which live connections a table would refuse if they began now.
// It is for one goroutine.
type judge struct {
	table  *ruleset.Table
	before *ruleset.Table // what it refused already is none of our business; nil: nothing
	now    time.Time
	routes *links.Routes
	names  []string // of the host's links, for sources that any of them may have

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
func (j *judge) refuses(f nft.Flow) bool {
	client, server := j.place(f.Src.Addr()), j.place(f.ReplySrc.Addr())
	if f.Closed || client.local || client.group || server.group {
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

// refused gives those of the flows that are refused, in their order. It works
// on all processors.
func (j *judge) refused(flows []nft.Flow) []nft.Flow {
	const few = 1024
	parts := slices.Collect(slices.Chunk(flows, max(few, len(flows)/runtime.GOMAXPROCS(0)+1)))
	out := make([][]nft.Flow, len(parts))
	var all sync.WaitGroup
	for i, part := range parts {
		all.Go(func() {
			own := *j
			own.places = map[netip.Addr]place{}
			for _, f := range part {
				if own.refuses(f) {
					out[i] = append(out[i], f)
				}
			}
		})
	}
	all.Wait()
	return slices.Concat(out...)
}

// accepted gives the TCP connections that servers of the host have accepted
// and that are not among the flows, or are the wrong way round: where nothing
// tracked them until a moment ago, the next packet of the server makes an entry
// of its own. Of UDP nobody knows who began.
func accepted(proc string, flows []nft.Flow) []nft.Flow {
	var all []tcpSocket
	for _, file := range []string{"tcp", "tcp6"} {
		all = append(all, readSockets(filepath.Join(proc, "thread-self", "net", file))...)
	}
	listening := map[uint16]bool{}
	for _, s := range all {
		if s.state == tcpListen {
			listening[s.local.Port()] = true
		}
	}
	var out []nft.Flow
	ends := map[[2]netip.AddrPort]bool{}
	for _, s := range all {
		if s.state != tcpListen && listening[s.local.Port()] && s.remote.Port() != 0 {
			out = append(out, nft.Flow{Proto: protoTCP, Src: s.remote, Dst: s.local, ReplySrc: s.local, ReplyDst: s.remote})
			ends[[2]netip.AddrPort{s.local, s.remote}] = true
		}
	}
	for _, f := range flows {
		if f.Proto == protoTCP && ends[[2]netip.AddrPort{f.Src, f.Dst}] {
			out = append(out, f.Reversed())
		}
	}
	return out
}
