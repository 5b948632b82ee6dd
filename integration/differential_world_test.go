package integration

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/nftfw/nftfw/integration/lab"
)

// world is one case of the differential test: a policy, what was added to sets
// by command, and containers. It is made of parts that can be left out one by
// one, and is not changed once made.
type world struct {
	policy     []part
	runtime    []entry
	containers []box
}

// part is one line of a policy, below its section. A section is "host" or a
// key in one, such as "host.allow", whose lines are items of a list.
type part struct {
	section, line string
	says          any // an allowance, a ruling or words, for the oracle
}

// words is a FROM, word by word.
type words []string

// allowance is an entry of host.allow.
type allowance struct {
	in    string
	ports []string
	from  words
}

// ruling is an entry of containers.rules.
type ruling struct {
	match  []string
	expose []grant
}

// grant is a port and who may reach it.
type grant struct {
	ports string
	from  words
}

// entry is an address in a set.
type entry struct{ set, addr string }

// box is a container of a world.
type box struct {
	name, image string
	networks    []string // the first is docker run's; "host" stands alone
	publish     []string // as docker run -p has it
	labels      []string // KEY=VALUE
}

func (b box) options() []string {
	out := []string{"--network", b.networks[0]}
	for _, p := range b.publish {
		out = append(out, "-p", p)
	}
	for _, l := range b.labels {
		out = append(out, "--label", l)
	}
	return out
}

func (b box) onHost() bool { return b.networks[0] == "host" }

func (b box) String() string {
	return fmt.Sprintf("docker run --name %s %s %s  (networks %s)", b.name, strings.Join(b.options(), " "), b.image, strings.Join(b.networks, ", "))
}

// The ports on which the echo servers of every container, of the host's own
// network, and of the clients listen.
var (
	insidePorts  = []string{"tcp:80", "udp:80", "tcp:81", "udp:81", "tcp:82"}
	onHostPorts  = []string{"tcp:9000", "udp:9000", "tcp:9001", "tcp:9002"}
	servicePorts = []string{"tcp:9100", "udp:9100", "tcp:9101", "udp:9101", "tcp:198.18.0.1:5432", "tcp:[fd00:18::1]:5432"}
	outsidePorts = []string{"tcp:7000", "udp:7000", "tcp:7001"}
)

// Addresses of the differential test beside those of the lab.
var (
	hostSecond = newPair("198.18.0.2", "fd00:18::2")
	asideHost  = newPair("198.19.5.1", "fd00:19:5::1")
	asideNode  = newPair("198.19.5.2", "fd00:19:5::2")
	lent       = []pair{
		newPair("198.18.1.20", "fd00:18::1:20"),
		newPair("198.18.0.13", "fd00:18::13"),
		newPair("198.18.2.30", "fd00:18::2:30"),
	}
)

// addressWords are what sets and FROM are made of.
var addressWords = []string{
	"198.18.0.10", "fd00:18::10", "198.18.0.66", "fd00:18::66", "198.18.0.77", "fd00:18::77",
	"198.18.1.20", "fd00:18::1:20", "198.18.2.30", "fd00:18::2:30", "198.19.5.2", "fd00:19:5::2",
	"198.18.1.0/24", "198.18.0.0/28", "fd00:18::1:0/112", "198.18.0.60-198.18.0.80",
	"fd00:18::10-fd00:18::66", "172.30.0.0/24", "172.16.0.0/12", "fd00:d0c::/32", "0.0.0.0/0",
}

var setNames = []string{"office", "partners"}

// maker makes worlds and packets.
type maker struct{ *rand.Rand }

func pick[T any](m maker, from []T) T { return from[m.IntN(len(from))] }

// some picks between low and high of a list, in its order and each once.
func some[T any](m maker, low, high int, from []T) []T {
	take := m.Perm(len(from))[:low+m.IntN(high-low+1)]
	slices.Sort(take)
	out := make([]T, len(take))
	for i, j := range take {
		out[i] = from[j]
	}
	return out
}

func (m maker) chance(percent int) bool { return m.IntN(100) < percent }

// from makes a FROM as a list of words.
func (m maker) from() []string {
	switch n := m.IntN(100); {
	case n < 20:
		return []string{"any"}
	case n < 30:
		return []string{"none"}
	case n < 45:
		return []string{"trusted"}
	case n < 65:
		return []string{pick(m, setNames)}
	case n < 80:
		return []string{pick(m, addressWords)}
	default:
		return some(m, 1, 4, slices.Concat(setNames, addressWords))
	}
}

// egress makes an egress as a list of words.
func (m maker) egress() []string {
	if m.chance(30) {
		return []string{pick(m, []string{"any", "none"})}
	}
	return some(m, 1, 4, []string{
		"office", "198.18.0.10", "198.18.0.77:7000/tcp", "198.18.0.0/16", "fd00:18::/64", "[fd00:18::77]:7000/udp",
		":7001/tcp", ":7000/udp", ":80/tcp", ":80-81/udp", ":8001-8006/tcp", "172.30.0.0/24", "198.18.0.1:9100/tcp", "198.19.5.2",
	})
}

// yamlList writes words as a YAML list, or a single one as itself at times.
func yamlList(words []string) string {
	if len(words) == 1 {
		return fmt.Sprintf("%q", words[0])
	}
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = fmt.Sprintf("%q", w)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// policy makes the parts of a policy.
func (m maker) policy() []part {
	var out []part
	add := func(section, format string, args ...any) {
		out = append(out, part{section: section, line: fmt.Sprintf(format, args...)})
	}
	if m.chance(30) {
		add("interfaces.trusted", "%s", pick(m, []string{"side0", "brblue", `"side*"`}))
	}
	for _, a := range some(m, 0, 3, addressWords[:len(addressWords)-1]) {
		add("sets.trusted", "%q", a)
	}
	if m.chance(40) {
		add("sets.blocked", "%q", pick(m, []string{"198.18.0.13", "fd00:18::13", "198.18.0.60-198.18.0.70", "172.30.0.0/24"}))
	}
	for _, name := range setNames {
		for _, a := range some(m, 0, 3, addressWords) {
			add("sets."+name, "%q", a)
		}
	}
	if m.chance(20) {
		add("host", "default: accept")
	}
	for range m.IntN(5) {
		a := allowance{from: m.from()}
		in := ""
		if m.chance(30) {
			a.in = pick(m, []string{"eth0", "side0", "docker0", "brred"})
			in = "in: " + a.in + ", "
		}
		a.ports = some(m, 1, 2, []string{"9100/tcp", "9100-9101/tcp", "9101/udp", "9100/udp", "8001-8004/tcp", "5432/tcp", "9001/tcp", "9200/tcp"})
		out = append(out, part{"host.allow", fmt.Sprintf("{%sports: [%s], from: %s}", in, strings.Join(a.ports, ", "), yamlList(a.from)), a})
	}
	out = append(out, m.containerParts()...)
	if m.chance(50) {
		add("forward", "default: drop")
	}
	for range m.IntN(3) {
		ways := some(m, 0, 2, []string{"in: side0, ", "out: side0, ", "in: eth0, ", "out: eth0, "})
		if len(ways) == 2 && ways[0][:2] == ways[1][:2] {
			ways = ways[:1]
		}
		add("forward.allow", "{%sfrom: %s}", strings.Join(ways, ""), yamlList(m.from()))
	}
	return out
}

// containerParts makes the section containers of a policy.
func (m maker) containerParts() []part {
	var out []part
	add := func(percent int, format string, args ...any) {
		if m.chance(percent) {
			out = append(out, part{section: "containers", line: fmt.Sprintf(format, args...)})
		}
	}
	for _, key := range []string{"default", "labels"} {
		if from := m.from(); m.chance(50) {
			out = append(out, part{"containers", key + ": " + yamlList(from), words(from)})
		}
	}
	add(20, "image_labels: true")
	add(40, "to_host: %s", pick(m, []string{"none", "any", "[9100/tcp, 8001-8003/tcp]", "[9100-9101/udp, 5432/tcp]", "[8001-8009/udp, 9000/tcp]"}))
	add(35, "to_containers: %s", pick(m, []string{"none", "same-project", "docker"}))
	add(40, "egress: %s", yamlList(m.egress()))
	for range m.IntN(5) {
		out = append(out, m.rule())
	}
	return out
}

func (m maker) rule() part {
	match := some(m, 1, 2, []string{
		"name: web", `name: "shop-*"`, `name: "*"`, "project: shop", "service: web", `image: "echo*"`, "image: bad:1",
		"label: {tier: front}", "host_ip: 198.18.0.2", "host_ip: 198.18.0.1", `host_ip: "fd00:18::1"`,
	})
	if len(match) == 2 && strings.HasPrefix(match[1], match[0][:4]) {
		match = match[:1]
	}
	r := ruling{match: match}
	var says []string
	if m.chance(25) && !strings.Contains(strings.Join(match, ""), "host_ip") {
		says = append(says, "egress: "+yamlList(m.egress()))
	}
	if len(says) == 0 || m.chance(60) {
		var expose []string
		for _, port := range some(m, 1, 3, []string{"80/tcp", "81/tcp", "80-82/tcp", "80/udp", "80-81/udp", `"*"`, "9000/tcp", "9000-9002/tcp", "9000/udp"}) {
			g := grant{strings.Trim(port, `"`), m.from()}
			r.expose = append(r.expose, g)
			expose = append(expose, port+": "+yamlList(g.from))
		}
		says = append(says, "expose: {"+strings.Join(expose, ", ")+"}")
	}
	return part{"containers.rules", fmt.Sprintf("{match: {%s}, %s}", strings.Join(match, ", "), strings.Join(says, ", ")), r}
}

// text writes a policy.
func policyText(parts []part) string {
	items := func(section string) (lines []string) {
		for _, p := range parts {
			if p.section == section {
				lines = append(lines, p.line)
			}
		}
		return lines
	}
	var b strings.Builder
	fmt.Fprintf(&b, "version: 1\ninterfaces: {trusted: [%s]}\nsets:\n", strings.Join(items("interfaces.trusted"), ", "))
	for _, name := range slices.Concat([]string{"trusted", "blocked"}, setNames) {
		fmt.Fprintf(&b, "  %s: [%s]\n", name, strings.Join(items("sets."+name), ", "))
	}
	for _, section := range []struct{ name, list string }{{"host", "allow"}, {"containers", "rules"}, {"forward", "allow"}} {
		list := items(section.name + "." + section.list)
		lines := items(section.name)
		if len(list) > 0 {
			lines = append(lines, section.list+":")
		}
		for _, item := range list {
			lines = append(lines, "  - "+item)
		}
		if len(lines) > 0 {
			fmt.Fprintf(&b, "%s:\n  %s\n", section.name, strings.Join(lines, "\n  "))
		}
	}
	return b.String()
}

// containers makes the containers of a world: one of each kind, with ports and
// labels as they come.
func (m maker) containers() []box {
	port := 8000
	publish := func() []string {
		var out []string
		for range 1 + m.IntN(3) {
			port++
			at := pick(m, []string{"", "", "", "198.18.0.1:", "198.18.0.2:", "127.0.0.1:", "[fd00:18::1]:"})
			out = append(out, fmt.Sprintf("%s%d:%s", at, port, pick(m, []string{"80", "80", "81", "80/udp", "81/udp", "82"})))
		}
		return out
	}
	boxes := []box{
		{name: "web", networks: []string{pick(m, []string{"bridge", "red"})}, publish: publish()},
		{name: "db", networks: []string{"blue"}, publish: append(publish(), "198.18.0.1:8500:80", "198.18.0.2:5432:80")},
		{name: "shop-1", networks: []string{"red"}, publish: append(publish(), "198.18.0.2:8500:80")},
		{name: "shop-2", networks: []string{pick(m, []string{"bridge", "blue", "red"})}, publish: publish()},
		{name: "two", networks: []string{"red", "blue"}, publish: publish()},
		{name: "on-host", networks: []string{"host"}},
	}
	for i := range boxes {
		b := &boxes[i]
		b.image = lab.Image
		if m.chance(15) {
			b.image = badImage
		}
		b.labels = m.labels(b.onHost())
	}
	return boxes
}

// labels makes the labels of a container.
func (m maker) labels(onHost bool) []string {
	var out []string
	add := func(percent int, format string, args ...any) {
		if m.chance(percent) {
			out = append(out, fmt.Sprintf(format, args...))
		}
	}
	add(35, "com.docker.compose.project=%s", pick(m, []string{"shop", "shop", "other"}))
	add(35, "com.docker.compose.service=web")
	add(30, "tier=%s", pick(m, []string{"front", "back"}))
	add(25, "nftfw.egress=%s", strings.Join(m.egress(), ","))
	if onHost {
		add(80, "nftfw.expose.9000/tcp=%s", strings.Join(m.from(), ","))
		add(60, "nftfw.expose.9000/udp=%s", strings.Join(m.from(), ","))
		add(30, "nftfw.expose.9001-9002=%s", strings.Join(m.from(), ","))
		return out
	}
	add(40, "nftfw.expose=%s", strings.Join(m.from(), ","))
	add(30, "nftfw.expose.80=%s", strings.Join(m.from(), ","))
	add(25, "nftfw.expose.80-82/tcp=%s", strings.Join(m.from(), ","))
	add(20, "nftfw.expose.80/udp=%s", strings.Join(m.from(), ","))
	add(6, "nftfw.expose.http=any")
	add(6, "nftfw.expose.81=nobody")
	return out
}

// smaller gives the worlds that have less, those with least first.
func (w world) smaller() []world {
	var out []world
	for _, parts := range fewer(w.policy) {
		out = append(out, world{parts, w.runtime, w.containers})
	}
	for _, entries := range fewer(w.runtime) {
		out = append(out, world{w.policy, entries, w.containers})
	}
	for _, boxes := range fewer(w.containers) {
		out = append(out, world{w.policy, w.runtime, boxes})
	}
	for i, b := range w.containers {
		change := func(less box) {
			boxes := slices.Clone(w.containers)
			boxes[i] = less
			out = append(out, world{w.policy, w.runtime, boxes})
		}
		for _, labels := range fewer(b.labels) {
			less := b
			less.labels = labels
			change(less)
		}
		for _, publish := range fewer(b.publish) {
			less := b
			less.publish = publish
			change(less)
		}
		if len(b.networks) > 1 {
			less := b
			less.networks = b.networks[:1]
			change(less)
		}
	}
	return out
}

// fewer gives the list without all, a half, a quarter and so on of its items,
// down to one.
func fewer[T any](list []T) [][]T {
	var out [][]T
	for size := len(list); size > 0; size /= 2 {
		for i := 0; i < len(list); i += size {
			out = append(out, slices.Concat(list[:i], list[min(i+size, len(list)):]))
		}
	}
	return out
}

func without[T any](list []T, i int) []T { return slices.Concat(list[:i], list[i+1:]) }

// String writes the world as what a person would type to have it.
func (w world) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "policy:\n%s", policyText(w.policy))
	for _, e := range w.runtime {
		fmt.Fprintf(&b, "nftfw sets add %s %s\n", e.set, e.addr)
	}
	for _, c := range w.containers {
		fmt.Fprintln(&b, c)
	}
	return b.String()
}
