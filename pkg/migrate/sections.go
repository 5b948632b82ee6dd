package migrate

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/nftfw/nftfw/policy"
)

// entry is one FROM and what it opens.
type entry struct {
	link  string
	who   who
	ports []string
}

// add puts ports to the entry with the same sources.
func add(list []entry, link string, sources who, port string) []entry {
	i := slices.IndexFunc(list, func(e entry) bool { return e.link == link && e.who.equal(sources) })
	if i < 0 {
		i, list = len(list), append(list, entry{link: link, who: sources})
	}
	list[i].ports = append(list[i].ports, port)
	return list
}

func (w *writer) host() {
	d := w.d
	common := map[uint8][]who{}
	for _, byProto := range d.host {
		for proto, list := range byProto {
			if common[proto] == nil {
				common[proto] = slices.Clone(list)
				continue
			}
			for i := range list {
				common[proto][i] = common[proto][i].and(list[i])
			}
		}
	}
	everything := d.ping.or(d.blocked).all()
	for _, list := range common {
		everything = everything && everyPort(list).or(d.blocked).all()
	}
	w.line("host:")
	w.line("  ping: %t", d.ping.or(d.blocked).all())
	if everything {
		w.line("  default: accept # as it was")
		return
	}
	entries := w.hostEntries(nil, "", common, nil)
	for _, link := range slices.Sorted(maps.Keys(d.host)) {
		switch {
		case link == otherLink:
		case strings.Contains(link, otherLink):
			prefix := strings.TrimSuffix(link, otherLink)
			entries = w.hostEntries(entries, prefix+"*", d.onAll(prefix), common)
		default:
			entries = w.hostEntries(entries, link, d.host[link], common)
		}
	}
	if len(entries) == 0 {
		return
	}
	w.line("  allow:")
	for _, e := range entries {
		in := ""
		if e.link != "" {
			in = "in: " + strconv.Quote(e.link) + ", "
		}
		w.line("    - {%sports: [%s], from: %s}", in, strings.Join(e.ports, ", "), w.from(e.who))
	}
}

// onAll is who reaches what on every link whose name begins with prefix, those
// that rules name among them.
func (d *decisions) onAll(prefix string) map[uint8][]who {
	all := map[uint8][]who{}
	for link, byProto := range d.host {
		if !strings.HasPrefix(link, prefix) {
			continue
		}
		for proto, list := range byProto {
			found := slices.Clone(list)
			for i := range found {
				if before := all[proto]; before != nil {
					found[i] = found[i].and(before[i])
				}
			}
			all[proto] = found
		}
	}
	return all
}

// hostEntries appends what byProto opens beyond what common does.
func (w *writer) hostEntries(list []entry, link string, byProto, common map[uint8][]who) []entry {
	for _, proto := range slices.Sorted(maps.Keys(byProto)) {
		found := slices.Clone(byProto[proto])
		for i := range found {
			if common != nil && found[i].without(common[proto][i]).none() {
				found[i] = w.d.nobody() // the entry for every link says it
			}
			if found[i].without(w.d.trusted).none() {
				found[i] = w.d.nobody()
			}
		}
		switch proto {
		case tcp, udp, sctp:
			for i := 0; i < len(found); {
				end := i + 1
				for end < len(found) && found[end].equal(found[i]) {
					end++
				}
				if !found[i].none() {
					list = add(list, link, found[i], portText(w.d.ports[i].low, w.d.ports[end-1].high, proto))
				}
				i = end
			}
		case icmp, ipv6ICMP:
			// host.ping speaks of it.
		default:
			if all := everyPort(found); !all.none() && proto != anyProto {
				list = add(list, link, all, protoText(proto))
			}
		}
	}
	return list
}

func portText(low, high uint16, proto uint8) string {
	name := policy.ProtocolName(proto)
	if low == high {
		return fmt.Sprintf("%d/%s", low, name)
	}
	return fmt.Sprintf("%d-%d/%s", low, high, name)
}

func protoText(proto uint8) string {
	if proto == 33 || proto == 136 {
		return "1-65535/" + policy.ProtocolName(proto)
	}
	return fmt.Sprintf("%d/proto", proto)
}

func (w *writer) containers() {
	d := w.d
	zero := place{}
	standard := w.rest(d.containers[zero])
	w.line("containers:")
	w.line("  default: %s", w.from(standard))
	w.line("  labels: none # there were none before; change it to let compose files open ports")
	var rules []string
	alike := true
	for _, at := range w.places() {
		alike = alike && w.same(d.containers[at], d.containers[zero])
	}
	for _, at := range w.places() {
		// The first rule that mentions the port counts, so that where one
		// place differs each of them needs its own.
		if alike && at != zero {
			continue
		}
		expose := w.expose(d.containers[at], standard, at != zero)
		if len(expose) == 0 {
			continue
		}
		match := []string{}
		if at.name != "" {
			match = append(match, "name: "+strconv.Quote(at.name))
		}
		if at.host.IsValid() {
			match = append(match, "host_ip: "+quoted(at.host.String()))
		}
		if at == zero {
			match = append(match, `name: "*"`)
		}
		rules = append(rules, fmt.Sprintf("    - match: {%s}\n      expose: {%s}", strings.Join(match, ", "), strings.Join(expose, ", ")))
	}
	if len(rules) > 0 {
		w.line("  rules:\n%s", strings.Join(rules, "\n"))
	}
	w.inside()
}

// places are those that were asked about, the more special first.
func (w *writer) places() []place {
	list := slices.Collect(maps.Keys(w.d.containers))
	rank := func(p place) (n int) {
		if p.name == "" {
			n += 2
		}
		if !p.host.IsValid() {
			n++
		}
		return n
	}
	slices.SortFunc(list, func(a, b place) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), strings.Compare(a.name, b.name), a.host.Compare(b.host))
	})
	return list
}

func (w *writer) same(a, b map[uint8][]who) bool {
	for proto := range a {
		if !slices.EqualFunc(a[proto], b[proto], who.equal) {
			return false
		}
	}
	return true
}

// rest is who reaches a port of which no rule speaks, over every protocol:
// those who reach the widest range of ports.
func (w *writer) rest(byProto map[uint8][]who) who {
	all := w.d.everybody()
	widest := 0
	for i, r := range w.d.ports {
		if int(r.high)-int(r.low) > int(w.d.ports[widest].high)-int(w.d.ports[widest].low) {
			widest = i
		}
	}
	for _, list := range byProto {
		all = all.and(list[widest])
	}
	return all
}

// expose lists the ports at which others get in than the standard says; with
// whole, "*" as well.
func (w *writer) expose(byProto map[uint8][]who, standard who, whole bool) []string {
	var list []string
	if whole {
		standard = w.rest(byProto)
	}
	for _, proto := range []uint8{tcp, udp, sctp} {
		found := byProto[proto]
		for i := 0; i < len(found); {
			end := i + 1
			for end < len(found) && found[end].equal(found[i]) {
				end++
			}
			if !found[i].equal(standard) {
				list = append(list, portText(w.d.ports[i].low, w.d.ports[end-1].high, proto)+": "+w.from(found[i]))
			}
			i = end
		}
	}
	if whole {
		list = append(list, `"*": `+w.from(standard))
	}
	return list
}

// inside writes where containers may connect.
func (w *writer) inside() {
	d := w.d
	known4, known6 := d.v4 != nil, d.v6 != nil
	switch {
	case (d.egress4 || !known4) && (d.egress6 || !known6):
	case d.egress4:
		w.line("  egress: 0.0.0.0/0 # over IPv6 what containers send was dropped, some of it at least")
	case d.egress6:
		w.line("  egress: \"::/0\" # over IPv4 what containers send was dropped, some of it at least")
	default:
		w.line("  egress: none # what containers send was dropped, some of it at least")
		w.line("  to_containers: none")
	}
	var ports []string
	all := true
	for _, proto := range []uint8{tcp, udp, sctp} {
		open := d.toHost[proto]
		for i := 0; i < len(open); {
			end := i + 1
			for end < len(open) && open[end] == open[i] {
				end++
			}
			if open[i] {
				ports = append(ports, portText(d.ports[i].low, d.ports[end-1].high, proto))
			}
			all = all && open[i]
			i = end
		}
	}
	switch {
	case all && d.toHost[anyProto][0]:
	case len(ports) == 0:
		w.line("  to_host: none")
	default:
		w.line("  to_host: [%s]", strings.Join(ports, ", "))
	}
}

func (w *writer) forward() {
	d := w.d
	if d.forwardAll {
		return
	}
	w.line("forward:")
	w.line("  default: drop # not all that passes through the host was let through")
	first := true
	for _, pair := range slices.SortedFunc(maps.Keys(d.forward), func(a, b [2]string) int { return slices.Compare(a[:], b[:]) }) {
		if pair[0] == pair[1] || !d.trusted.without(d.forward[pair]).none() {
			continue // every FROM lets trusted in
		}
		if first {
			w.line("  allow:")
			first = false
		}
		w.line("    - {in: %s, out: %s, from: %s}", strconv.Quote(pair[0]), strconv.Quote(pair[1]), w.from(d.forward[pair]))
	}
}
