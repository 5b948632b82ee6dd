package migrate

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/policy"
)

// writer makes the text of the policy.
type writer struct {
	d    *decisions
	b    strings.Builder
	sets []outSet // what FROM may name, in the order of the file
}

type outSet struct {
	name    string
	comment string
	ranges  []addrset.Range
	members who
}

// longFrom is how many addresses a FROM holds before they become a set.
const longFrom = 5

func newWriter(d *decisions) *writer {
	w := &writer{d: d}
	for _, name := range slices.Sorted(maps.Keys(d.source.sets)) {
		set := d.source.members(name, 0)
		if set == nil {
			d.note(Note{Rule: "set " + name, Why: "it holds more than addresses, or sets that were not given"})
			continue
		}
		members := d.nobody()
		for i, c := range d.classes {
			list := func(l []addrset.Range) []addrset.Range { return flat(l, c.sample.Is6()) }
			members[i] = membership(list(set.always), list(set.timed), list(set.except), c.sample) == yes
		}
		ranges := set.always
		if len(set.except) > 0 {
			ranges = d.ranges(members)
		}
		w.sets = append(w.sets, outSet{name: w.setName(name), comment: "ipset " + name, ranges: ranges, members: members})
	}
	return w
}

// setName makes a name that a policy takes of one that ipset took.
func (w *writer) setName(name string) string {
	var b strings.Builder
	for _, c := range strings.ToLower(name) {
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '_' || c == '-' {
			b.WriteRune(c)
		} else {
			b.WriteByte('_')
		}
	}
	base := b.String()
	if base == "" || base[0] < 'a' || base[0] > 'z' {
		base = "set_" + base
	}
	base = base[:min(len(base), 26)]
	out := base
	taken := func(s string) bool {
		return policy.CheckSetName(s) != nil || slices.Contains([]string{policy.SetTrusted, policy.SetBlocked, policy.SetSwarmNodes}, s) ||
			slices.ContainsFunc(w.sets, func(o outSet) bool { return o.name == s })
	}
	for n := 2; taken(out); n++ {
		out = base + "_" + strconv.Itoa(n)
	}
	return out
}

// ranges are the addresses of w, neighbours as one range.
func (d *decisions) ranges(w who) []addrset.Range {
	var all []addrset.Range
	for i, c := range d.classes {
		if w[i] {
			all = append(all, c.ranges...)
		}
	}
	return append(flat(all, false), flat(all, true)...)
}

// from writes w as a FROM.
func (w *writer) from(sources who) string {
	d := w.d
	all := sources.or(d.blocked) // what is blocked stays so, whatever a FROM says
	if all.all() {
		return "any"
	}
	var items []string
	if len(d.ranges(all)) < len(d.ranges(sources)) {
		sources = all
	}
	rest := sources.without(d.trusted)
	for _, is6 := range []bool{false, true} {
		if d.whole(all, is6) {
			items = append(items, quoted(everyone(is6).String()))
			rest = rest.without(d.familyOf(is6))
		}
	}
	for _, set := range w.sets {
		if !set.members.and(rest).none() && set.members.without(sources).none() {
			items = append(items, set.name)
			rest = rest.without(set.members)
		}
	}
	ranges := d.ranges(rest)
	if len(ranges) > longFrom {
		name := w.setName("imported")
		w.sets = append(w.sets, outSet{name: name, comment: "imported", ranges: ranges, members: rest})
		items, ranges = append(items, name), nil
	}
	for _, r := range ranges {
		items = append(items, quoted(r.String()))
	}
	switch len(items) {
	case 0:
		return policy.SetTrusted
	case 1:
		return items[0]
	}
	return "[" + strings.Join(items, ", ") + "]"
}

// quoted quotes what YAML would take for something else.
func quoted(s string) string {
	if strings.ContainsAny(s, ":*") {
		return strconv.Quote(s)
	}
	return s
}

func (w *writer) line(format string, args ...any) { fmt.Fprintf(&w.b, format+"\n", args...) }

// policy writes the whole file. Sections first, for they make sets.
func (w *writer) policy(files []File) []byte {
	w.host()
	w.containers()
	w.forward()
	body := w.b.String()
	w.b.Reset()
	w.head(files)
	w.line("version: 1")
	w.writeSets()
	return []byte(w.b.String() + body)
}

func (w *writer) head(files []File) {
	var names []string
	for _, f := range files {
		names = append(names, f.Name)
	}
	w.line("# Imported by nftfw from %s.", strings.Join(names, ", "))
	w.line("#")
	w.line("# It opens no more than the source did: what a policy cannot say is closed here,")
	w.line("# and stands below. Answers, ICMP errors, neighbour discovery and answers to DHCP")
	w.line("# clients are always let through. Read it, try it with mode: observe, and remove")
	w.line("# the old rules once nftfw enforces: what they drop stays dropped until then.")
	if w.d.v4 == nil && (w.d.v6 != nil || len(w.d.source.sets) == 0) {
		w.d.note(Note{Why: "nothing is open over IPv4: no rules for it were given (iptables-save)"})
	}
	if w.d.v6 == nil && w.d.v4 != nil {
		w.d.note(Note{Why: "nothing is open over IPv6: no rules for it were given (ip6tables-save)"})
	}
	if w.d.v4 == nil && w.d.v6 == nil {
		w.d.note(Note{Why: "no rules were given, only sets: nothing is open"})
	} else if !w.d.hostKnown {
		w.d.note(Note{Why: "no rules of the chain INPUT were given, so all ports of the host are closed: add your ssh port under host.allow"})
	}
	slices.SortStableFunc(w.d.notes, func(a, b Note) int {
		return cmp.Or(strings.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line))
	})
	if len(w.d.notes) > 0 {
		w.line("#\n# What is not as it was:\n#")
	}
	for _, n := range w.d.notes {
		if n.Rule != "" {
			place := ""
			if n.Line > 0 {
				place = fmt.Sprintf("%s:%d: ", n.File, n.Line)
			}
			w.line("#   %s%s", place, strings.Map(printable, n.Rule))
			w.line("#     %s", n.Why)
			continue
		}
		w.line("#   %s", n.Why)
	}
}

// printable keeps what somebody wrote into a rule from ending a comment.
func printable(c rune) rune {
	if c < ' ' || c == 0x7f || c >= 0x80 {
		return '?'
	}
	return c
}

func (w *writer) writeSets() {
	w.line("sets:")
	w.set(outSet{name: policy.SetTrusted, comment: "reached everything", ranges: w.d.ranges(w.d.trusted)})
	if ranges := w.d.ranges(w.d.blocked); len(ranges) > 0 {
		w.set(outSet{name: policy.SetBlocked, comment: "reached nothing", ranges: ranges})
	}
	for _, s := range w.sets {
		w.set(s)
	}
}

func (w *writer) set(s outSet) {
	if len(s.ranges) == 0 {
		w.line("  %s: []", s.name)
		return
	}
	w.line("  %s: # %s", s.name, strings.Map(printable, s.comment))
	for _, r := range s.ranges {
		w.line("    - %s", quoted(r.String()))
	}
}

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
			entries = w.hostEntries(entries, strings.TrimSuffix(link, otherLink)+"*", d.host[link], common)
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
			in = "in: " + quoted(e.link) + ", "
		}
		w.line("    - {%sports: [%s], from: %s}", in, strings.Join(e.ports, ", "), w.from(e.who))
	}
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
		w.line("    - {in: %s, out: %s, from: %s}", quoted(pair[0]), quoted(pair[1]), w.from(d.forward[pair]))
	}
}
