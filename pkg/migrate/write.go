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
			d.note(Note{Rule: "set " + name, Why: "it holds more than addresses, or sets that were not given or end by themselves"})
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
		return policy.CheckSetName(s) != nil || slices.Contains([]string{policy.SetTrusted, policy.SetBlocked, policy.SetSwarmNodes, "null", "true", "false"}, s) ||
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
	w.line("mode: observe # refuses nothing yet; enforce does, once nftfw ports shows what you want")
	w.writeSets()
	return []byte(w.b.String() + body)
}

func (w *writer) head(files []File) {
	var names []string
	for _, f := range files {
		names = append(names, strings.Map(printable, f.Name))
	}
	w.line("# Imported by nftfw from %s.", strings.Join(names, ", "))
	w.line("#")
	w.line("# It opens no more than the source did: what a policy cannot say is closed here,")
	w.line("# and stands below. Answers, ICMP errors, neighbour discovery and answers to DHCP")
	w.line("# clients are always let through. Read it, see what it would refuse, and remove")
	w.line("# the old rules once nftfw enforces: what they drop stays dropped until then.")
	if w.d.v4 == nil && (w.d.v6 != nil || len(w.d.source.sets) == 0) {
		w.d.note(Note{Why: "nothing is open over IPv4: no rules for it were given (iptables-save)"})
	}
	if w.d.v6 == nil && w.d.v4 != nil {
		w.d.note(Note{Why: "nothing is open over IPv6: no rules for it were given (ip6tables-save)"})
	}
	if w.d.v4 == nil && w.d.v6 == nil {
		w.d.note(Note{Why: "no rules were given, only sets: nothing is open"})
	}
	w.missing()
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
			w.line("#   %s%s", place, n.Rule)
			w.line("#     %s", n.Why)
			continue
		}
		w.line("#   %s", n.Why)
	}
}

// missing notes what is closed because the rules about it were not given.
func (w *writer) missing() {
	for _, f := range []*family{w.d.v4, w.d.v6} {
		if f == nil {
			continue
		}
		if !f.has("INPUT") {
			w.d.note(Note{Why: "no rules of the chain INPUT were given for " + familyName(f.is6) +
				", so all ports of the host are closed over it: add your ssh port under host.allow"})
		}
		if !f.has("FORWARD") && f.userChain() == "" {
			w.d.note(Note{Why: "no rules of the chain FORWARD were given for " + familyName(f.is6) +
				", so all published ports are closed over it"})
		}
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
		w.set(outSet{name: policy.SetBlocked, comment: "reached nothing; now their answers are refused as well", ranges: ranges})
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
