package integration

import (
	"cmp"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"

	"github.com/nftfw/nftfw/integration/lab"
)

// The oracle reads a world as a person reads the manual, without nftfw's own
// code: may a client reach this port of the host? It speaks of nothing else,
// and where an answer needs more than the manual's plain words it gives none.

// imageLabels are what badImage carries.
var imageLabels = map[string]string{
	"nftfw.expose": "any", "com.docker.compose.project": "shop",
	"com.docker.compose.service": "web", "tier": "front",
}

// expected says whether a packet should be let through, if that is known.
func (w world) expected(q question) (open, known bool) {
	src := q.source.v4
	if q.to.Is6() {
		src = q.source.v6
	}
	if !src.IsValid() || !slices.Contains([]netip.Addr{lab.HostV4, hostSecond.v4, lab.HostV6, hostSecond.v6}, q.to) {
		return false, false
	}
	link := "eth0"
	if q.from == "aside" {
		link = "side0"
	}
	if w.holds("blocked", src) {
		return false, true
	}
	if w.blocksContainers() {
		return false, false // those cannot answer, whoever may ask them
	}
	if slices.ContainsFunc(w.lines("interfaces.trusted"), func(l string) bool { return fits(l, link) }) {
		return true, true
	}
	for _, b := range w.containers {
		from, held, known := w.ofContainer(b, q)
		if held {
			return known && w.lets(from, src), known
		}
	}
	return w.ofHost(q, src, link), true
}

// blocksContainers reports whether containers of the network red are in the
// set blocked.
func (w world) blocksContainers() bool {
	return w.holds("blocked", netip.MustParseAddr("172.30.0.2")) || w.holds("blocked", netip.MustParseAddr("fd00:d0c:1::2"))
}

// ofContainer gives the FROM of a port that a container holds on the host.
func (w world) ofContainer(b box, q question) (from words, held, known bool) {
	for _, p := range b.publish {
		host, proto := publishedPort(p)
		at, inside := publishedAt(p)
		if parsePort(host) != q.port || proto != q.proto || at.IsValid() && at != q.to {
			continue
		}
		from, _, known = w.decide(b, inside, proto, q.to)
		return from, true, known
	}
	if !b.onHost() || !w.names(b, q) || slices.ContainsFunc(says[allowance](w, "host.allow"), func(a allowance) bool {
		return slices.ContainsFunc(a.ports, func(s string) bool { return coversPort(s, q.port, q.proto) })
	}) {
		return nil, false, true
	}
	from, byDefault, known := w.decide(b, q.port, q.proto, q.to)
	return from, !byDefault, known
}

// names reports whether a rule or a label for a container in the host's network
// gives the port's number.
func (w world) names(b box, q question) bool {
	for _, r := range says[ruling](w, "containers.rules") {
		for _, g := range r.expose {
			if w.fits(b, r) && g.ports != "*" && coversPort(g.ports, q.port, q.proto) {
				return true
			}
		}
	}
	for key := range w.labels(b) {
		if ports, ok := strings.CutPrefix(key, "nftfw.expose."); ok && coversPort(ports, q.port, q.proto) {
			return true
		}
	}
	return false
}

// decide gives the word that counts for a container's port: the first rule
// that mentions it, else the label, else the default.
func (w world) decide(b box, port uint16, proto string, to netip.Addr) (from words, byDefault, known bool) {
	for _, r := range says[ruling](w, "containers.rules") {
		i := slices.IndexFunc(r.match, func(m string) bool { return strings.HasPrefix(m, "host_ip: ") })
		if !w.fits(b, r) || i >= 0 && netip.MustParseAddr(strings.Trim(r.match[i][len("host_ip: "):], `"`)) != to {
			continue
		}
		if g, ok := narrowest(r.expose, port, proto); ok {
			return g.from, false, true
		}
	}
	standard := words{"trusted"}
	if given := w.given("default"); given != nil {
		standard = given
	}
	var grants []grant
	for key, value := range w.labels(b) {
		if key == "nftfw.expose" {
			grants = append(grants, grant{"*", strings.Split(value, ",")})
		} else if ports, ok := strings.CutPrefix(key, "nftfw.expose."); ok {
			if ports == "http" {
				return nil, false, false // which port is meant nobody knows
			}
			grants = append(grants, grant{ports, strings.Split(value, ",")})
		}
	}
	g, ok := narrowest(grants, port, proto)
	if !ok {
		return standard, true, true
	}
	switch granted, known := w.grants(g.from, standard); {
	case !known:
		return nil, false, false
	case granted:
		return g.from, false, true
	}
	// The label does not count: trusted at the most, and none where that is
	// anybody else's word.
	if standard[0] == "none" || slices.ContainsFunc(grants, func(g grant) bool { return g.from[0] == "none" && coversPort(g.ports, port, proto) }) {
		return words{"none"}, false, true
	}
	return words{"trusted"}, false, true
}

// grants reports whether a label may grant a FROM.
func (w world) grants(from, standard words) (granted, known bool) {
	if from[0] == "nobody" {
		return false, true
	}
	ceiling := w.given("labels")
	switch {
	case ceiling == nil || ceiling[0] == "any" || from[0] == "none":
		return true, true
	case from[0] == "any":
		return false, true
	case from[0] == "trusted":
		return slices.Contains(ceiling, "trusted") || standard[0] != "none", true
	}
	for _, word := range from {
		if !slices.Contains(ceiling, word) {
			if slices.Contains(setNames, word) {
				return false, true
			}
			granted, known = false, !slices.ContainsFunc(ceiling, isAddress)
			return granted, known
		}
	}
	return true, true
}

func isAddress(word string) bool { return slices.Contains(addressWords, word) }

// ofHost says whether host.allow, trusted or host.default let a source in.
func (w world) ofHost(q question, src netip.Addr, link string) bool {
	for _, a := range says[allowance](w, "host.allow") {
		if a.in != "" && a.in != link || !slices.ContainsFunc(a.ports, func(s string) bool { return coversPort(s, q.port, q.proto) }) {
			continue
		}
		if a.from[0] == "none" {
			return false
		}
		if w.lets(a.from, src) {
			return true
		}
	}
	return w.holds("trusted", src) || slices.Contains(w.lines("host"), "default: accept")
}

// lets reports whether a FROM lets a source in.
func (w world) lets(from words, src netip.Addr) bool {
	switch from[0] {
	case "any":
		return true
	case "none":
		return false
	}
	return w.holds("trusted", src) || slices.ContainsFunc(from, func(word string) bool {
		return slices.Contains(setNames, word) && w.holds(word, src) || isAddress(word) && within(word, src)
	})
}

// holds reports whether a source is in a set.
func (w world) holds(set string, src netip.Addr) bool {
	return slices.ContainsFunc(w.lines("sets."+set), func(l string) bool { return within(strings.Trim(l, `"`), src) }) ||
		slices.ContainsFunc(w.runtime, func(e entry) bool { return e.set == set && within(e.addr, src) })
}

// within reports whether an address lies in what a word stands for.
func within(word string, a netip.Addr) bool {
	if p, err := netip.ParsePrefix(word); err == nil {
		return p.Contains(a)
	}
	first, last, isRange := strings.Cut(word, "-")
	if !isRange {
		last = first
	}
	low, high := netip.MustParseAddr(first), netip.MustParseAddr(last)
	return low.Is4() == a.Is4() && low.Compare(a) <= 0 && a.Compare(high) <= 0
}

func (w world) lines(section string) (lines []string) {
	for _, p := range w.policy {
		if p.section == section {
			lines = append(lines, p.line)
		}
	}
	return lines
}

// says gives what the lines of a section mean.
func says[T any](w world, section string) (all []T) {
	for _, p := range w.policy {
		if it, ok := p.says.(T); ok && p.section == section {
			all = append(all, it)
		}
	}
	return all
}

// given is a FROM of the section containers; nil where it is not there.
func (w world) given(key string) words {
	for _, p := range w.policy {
		if from, ok := p.says.(words); ok && strings.HasPrefix(p.line, key+":") {
			return from
		}
	}
	return nil
}

// labels are those that count.
func (w world) labels(b box) map[string]string {
	out := map[string]string{}
	for _, l := range b.labels {
		key, value, _ := strings.Cut(l, "=")
		out[key] = value
	}
	if b.image != badImage {
		return out
	}
	baked := slices.Contains(w.lines("containers"), "image_labels: true")
	for key, value := range imageLabels {
		own, given := out[key]
		switch {
		case baked && !given:
			out[key] = value
		case !baked && own == value:
			delete(out, key)
		}
	}
	return out
}

// fits reports whether a rule is about a container, host_ip aside.
func (w world) fits(b box, r ruling) bool {
	labels := w.labels(b)
	for _, m := range r.match {
		key, pattern, _ := strings.Cut(m, ": ")
		value, ok := "", true
		switch key {
		case "name":
			value = b.name
		case "image":
			value = b.image
		case "project", "service":
			value, ok = labels["com.docker.compose."+key]
		case "label":
			pattern = strings.TrimSuffix(strings.TrimPrefix(pattern, "{tier: "), "}")
			value, ok = labels["tier"]
		default:
			continue
		}
		if !ok || !fits(pattern, value) {
			return false
		}
	}
	return true
}

// fits compares with a pattern that may stand in quotes.
func fits(pattern, value string) bool {
	ok, err := path.Match(strings.Trim(pattern, `"`), value)
	return ok && err == nil
}

// narrowest gives the grant that covers a port and the fewest others.
func narrowest(grants []grant, port uint16, proto string) (grant, bool) {
	var about []grant
	for _, g := range grants {
		if coversPort(g.ports, port, proto) {
			about = append(about, g)
		}
	}
	if len(about) == 0 {
		return grant{}, false
	}
	return slices.MinFunc(about, func(a, b grant) int {
		lowA, highA, _ := portRange(a.ports)
		lowB, highB, _ := portRange(b.ports)
		return cmp.Or(cmp.Compare(highA-lowA, highB-lowB), cmp.Compare(lowA, lowB))
	}), true
}

// coversPort reports whether PORT, PORT-PORT/PROTO or * has a port in it.
func coversPort(spec string, port uint16, proto string) bool {
	low, high, of := portRange(spec)
	return low <= port && port <= high && (of == "" || of == proto)
}

func portRange(spec string) (low, high uint16, proto string) {
	if spec == "*" {
		return 0, 65535, ""
	}
	ports, proto, ok := strings.Cut(spec, "/")
	if !ok {
		proto = "tcp"
	}
	first, last, isRange := strings.Cut(ports, "-")
	if !isRange {
		last = first
	}
	return parsePort(first), parsePort(last), proto
}

// publishedAt gives the host's address, zero for all, and the container's port
// of ADDR:HOST:PORT/PROTO.
func publishedAt(publish string) (at netip.Addr, inside uint16) {
	rest, _, _ := strings.Cut(publish, "/")
	i := strings.LastIndex(rest, ":")
	inside = parsePort(rest[i+1:])
	if j := strings.LastIndex(rest[:i], ":"); j >= 0 {
		at = netip.MustParseAddr(strings.Trim(rest[:j], "[]"))
	}
	return at, inside
}

// asExpected compares what became of a packet with what the oracle says.
func (w world) asExpected(q question, o outcome) error {
	open, known := w.expected(q)
	if !o.sent || !known || o.passed == open || q.shut && !o.passed {
		return nil
	}
	word := "closed"
	if open {
		word = "open"
	}
	return fmt.Errorf("%s: the kernel: %s; by the manual it is %s", o.probe, o.said, word)
}
