package migrate

import (
	"errors"
	"net/netip"
	"slices"
	"strings"

	"github.com/nftfw/nftfw/pkg/addrset"
)

const (
	tcp      = 6
	udp      = 17
	icmp     = 1
	ipv6ICMP = 58
	sctp     = 132
)

// otherLink is behind a beginning of names, or alone, a link that no rule
// names. It is no character of a name.
const otherLink = "\x01"

// private are the addresses that containers have unless told otherwise
// (RFC 1918), in order.
var private = []addrset.Range{
	addrset.RangeOf(netip.MustParsePrefix("10.0.0.0/8")),
	addrset.RangeOf(netip.MustParsePrefix("172.16.0.0/12")),
	addrset.RangeOf(netip.MustParsePrefix("192.168.0.0/16")),
}

// decisions are who may reach what, as far as a policy can say it.
type decisions struct {
	*source
	classes []sourceClass // of IPv4, then of IPv6
	ports   []portRange
	outside []string // links that are not Docker's
	inside  []string

	host       map[string]map[uint8][]who // by link and protocol; one who for each of ports, or one for all
	ping       who
	containers map[place]map[uint8][]who
	trusted    who
	blocked    who
	egress4    bool // containers may connect anywhere over IPv4
	egress6    bool
	toHost     map[uint8][]bool // host ports that containers may reach
	forwardAll bool
	forward    map[[2]string]who // by the links in and out
	own        who               // what addresses containers may have
	elsewhere  who               // gets through from a container's link, or past the host
}

// place is where a published port is reached: the zero values stand for every
// container and address that no rule names.
type place struct {
	name string
	host netip.Addr
}

// maxSteps bounds the work: how many rules are looked at in all, which takes
// some seconds. A thousand rules with an address each need half of it; chains
// that call chains many times over would take for ever.
const maxSteps = 200_000_000

var errTooMuch = errors.New("too many rules with addresses of their own to ask them all: put the addresses into one ipset, or import them with nftfw sets add --file")

// decide asks the rules about everything that they tell apart.
func (s *source) decide() (*decisions, error) {
	s.ranges = append(s.ranges, private)
	d := &decisions{source: s, ports: portClasses(s.ports)}
	d.classes = append(sourceClasses(s.ranges, false), sourceClasses(s.ranges, true)...)
	d.elsewhere, d.own = d.nobody(), d.nobody()
	for i, c := range d.classes {
		d.own[i] = c.sample.Is6() || covers(private, c.sample)
	}
	for _, p := range []uint8{tcp, udp, sctp} {
		remember(&s.protos, p)
	}
	d.sortLinks()
	d.askHost()
	d.askContainers()
	d.askInside()
	d.askForward()
	if s.steps < 0 {
		return nil, errTooMuch
	}
	d.findTrusted()
	d.findBlocked()
	return d, nil
}

func (d *decisions) sortLinks() {
	d.outside, d.inside = []string{otherLink}, []string{"docker0"}
	for _, link := range d.links {
		prefix, wildcard := strings.CutSuffix(link, "+")
		switch {
		case link == "lo":
		case wildcard:
			if beginsBridge(prefix) {
				remember(&d.inside, prefix+otherLink)
			}
			remember(&d.outside, prefix+otherLink)
		case d.isBridge(link):
			remember(&d.inside, link)
		default:
			remember(&d.outside, link)
		}
	}
	slices.Sort(d.outside)
}

// nobody is a who without anybody.
func (d *decisions) nobody() who { return make(who, len(d.classes)) }

func (d *decisions) everybody() who {
	w := d.nobody()
	for i := range w {
		w[i] = true
	}
	return w
}

// of gives the rules of the family that a class is of.
func (d *decisions) of(c sourceClass) *family {
	if c.sample.Is4() {
		return d.v4
	}
	return d.v6
}

// ask gives the sources whose packets like p are accepted.
func (d *decisions) ask(p packet) who {
	w := d.nobody()
	for i, c := range d.classes {
		if f := d.of(c); f != nil {
			p.src = c.sample
			w[i] = asker{d.source, f}.accepts(p)
		}
	}
	return w
}

// askPorts asks for each class of ports, or once where a protocol has none.
func (d *decisions) askPorts(p packet) []who {
	if p.proto != tcp && p.proto != udp && p.proto != sctp {
		p.port = 1
		return []who{d.ask(p)}
	}
	out := make([]who, len(d.ports))
	for i, r := range d.ports {
		p.port = r.low
		out[i] = d.ask(p)
	}
	return out
}

func (d *decisions) askHost() {
	d.host = map[string]map[uint8][]who{}
	d.ping = d.everybody()
	for _, link := range d.outside {
		byProto := map[uint8][]who{}
		for _, proto := range append(slices.Clone(d.protos), anyProto) {
			byProto[proto] = d.askPorts(packet{kind: toHost, in: link, proto: proto})
		}
		d.host[link] = byProto
		ping4, ping6 := d.ask(packet{kind: toHost, in: link, proto: icmp, port: 1}), d.ask(packet{kind: toHost, in: link, proto: ipv6ICMP, port: 1})
		for i, c := range d.classes {
			d.ping[i] = d.ping[i] && (c.sample.Is4() && ping4[i] || c.sample.Is6() && ping6[i])
		}
	}
}

// everyPort is who reaches every port of a protocol.
func everyPort(byPort []who) who {
	all := byPort[0]
	for _, w := range byPort[1:] {
		all = all.and(w)
	}
	return all
}

func (d *decisions) askContainers() {
	d.containers = map[place]map[uint8][]who{}
	// Over IPv6 a container without it is reached through docker-proxy, and
	// so by the host's own rules, at a port that is not the container's.
	proxied := d.everybody()
	for _, link := range d.outside {
		for _, proto := range []uint8{tcp, udp} {
			every := everyPort(d.host[link][proto])
			for i, c := range d.classes {
				proxied[i] = proxied[i] && (c.sample.Is4() || every[i])
			}
		}
	}
	for _, host := range append(slices.Clone(d.hosts), netip.Addr{}) {
		for _, name := range append(slices.Clone(d.names), "") {
			byProto := map[uint8][]who{}
			for _, proto := range []uint8{tcp, udp, sctp} {
				for _, link := range d.outside {
					found := d.askPorts(packet{kind: toContainer, in: link, proto: proto, host: host, name: name})
					for i := range found {
						found[i] = found[i].and(proxied)
						if before := byProto[proto]; before != nil {
							found[i] = found[i].and(before[i])
						}
					}
					byProto[proto] = found
				}
			}
			d.containers[place{name, host}] = byProto
		}
	}
}

// askInside asks about what containers send.
func (d *decisions) askInside() {
	d.egress4, d.egress6 = d.v4 != nil, d.v6 != nil
	d.toHost = map[uint8][]bool{}
	for _, proto := range []uint8{tcp, udp, sctp, anyProto} {
		open := slices.Repeat([]bool{d.v4 != nil || d.v6 != nil}, len(d.ports))
		for _, link := range d.inside {
			for _, w := range d.askPorts(packet{kind: fromContainer, in: link, proto: proto}) {
				d.egress4 = d.egress4 && d.insiders(w, false)
				d.egress6 = d.egress6 && d.insiders(w, true)
				d.elsewhere = d.elsewhere.or(w.and(d.own))
			}
			for i, w := range d.askPorts(packet{kind: toHost, in: link, proto: proto}) {
				open[i] = open[i] && (d.v4 == nil || d.insiders(w, false)) && (d.v6 == nil || d.insiders(w, true))
				d.elsewhere = d.elsewhere.or(w.and(d.own))
			}
		}
		if proto == anyProto {
			open = open[:1]
		}
		d.toHost[proto] = open
	}
}

// insiders reports whether w has every address of a family that a container
// may have.
func (d *decisions) insiders(w who, is6 bool) bool {
	for i, c := range d.classes {
		if d.own[i] && c.sample.Is6() == is6 && !w[i] {
			return false
		}
	}
	return true
}

// askForward asks about what only passes through the host.
func (d *decisions) askForward() {
	d.forward, d.forwardAll = map[[2]string]who{}, true
	for _, in := range d.outside {
		for _, out := range d.outside {
			all := d.everybody()
			for _, proto := range append(slices.Clone(d.protos), anyProto) {
				for _, w := range d.askPorts(packet{kind: through, in: in, out: out, proto: proto}) {
					all, d.elsewhere = all.and(w), d.elsewhere.or(w)
				}
			}
			d.forwardAll = d.forwardAll && all.all()
			if !strings.Contains(in+out, otherLink) && !all.none() {
				d.forward[[2]string{in, out}] = all
			}
		}
	}
}

// each calls fn with every who that was found.
func (d *decisions) each(fn func(who)) {
	for _, byProto := range d.host {
		for _, list := range byProto {
			for _, w := range list {
				fn(w)
			}
		}
	}
	for _, byProto := range d.containers {
		for _, list := range byProto {
			for _, w := range list {
				fn(w)
			}
		}
	}
}

// findTrusted finds who reaches everything. A whole family does not become
// trusted.
func (d *decisions) findTrusted() {
	d.trusted = d.everybody()
	d.each(func(w who) { d.trusted = d.trusted.and(w) })
	for _, is6 := range []bool{false, true} {
		if d.whole(d.trusted, is6) {
			d.trusted = d.trusted.without(d.familyOf(is6))
		}
	}
}

// findBlocked finds who reaches nothing although the rest of the world does:
// those without whom a list of sources would be everybody. What is in blocked is
// refused on every link, so it holds nobody who gets through elsewhere.
func (d *decisions) findBlocked() {
	refused, useful := d.everybody().without(d.elsewhere), false
	d.each(func(w who) { refused = refused.without(w) })
	for i, c := range d.classes {
		if !c.listed && refused[i] {
			refused = refused.without(d.familyOf(c.sample.Is6()))
		}
	}
	d.each(func(w who) {
		for _, is6 := range []bool{false, true} {
			useful = useful || !d.whole(w, is6) && d.whole(w.or(refused), is6) && !d.whole(refused, is6)
		}
	})
	for _, is6 := range []bool{false, true} {
		if d.whole(refused, is6) {
			refused = refused.without(d.familyOf(is6))
		}
	}
	d.blocked = d.nobody()
	if useful {
		d.blocked = refused
	}
}

// familyOf are all sources of a family.
func (d *decisions) familyOf(is6 bool) who {
	w := d.nobody()
	for i, c := range d.classes {
		w[i] = c.sample.Is4() != is6
	}
	return w
}

// whole reports whether w has all of a family.
func (d *decisions) whole(w who, is6 bool) bool {
	return d.familyOf(is6).without(w).none()
}
