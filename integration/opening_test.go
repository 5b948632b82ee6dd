package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/nftfw/nftfw/integration/lab"
)

// pair is a source that the tests ask from, as one address of each family or
// one alone.
type pair struct{ v4, v6 netip.Addr }

func newPair(v4, v6 string) pair {
	return pair{netip.MustParseAddr(v4), netip.MustParseAddr(v6)}
}

// lend gives a client further addresses for the time of the test.
func (s *set) lend(n *lab.Node, pairs ...pair) {
	s.t.Helper()
	for _, p := range pairs {
		for _, a := range []netip.Addr{p.v4, p.v6} {
			if !a.IsValid() {
				continue
			}
			if err := n.AddAddr(s.ctx(), a); err != nil {
				s.t.Fatal(err)
			}
			s.t.Cleanup(func() {
				if err := n.DelAddr(context.Background(), a); err != nil {
					s.t.Error(err)
				}
			})
		}
	}
}

// ready waits until the host itself, which nothing keeps out, is answered.
func (s *set) ready(server string, ports ...string) {
	s.t.Helper()
	s.open(s.Host.Namespace, server, hostPorts(ports...))
}

// trust is a policy fragment: the client `permitted` is trusted.
const trust = `
sets:
  trusted: [198.18.0.10, "fd00:18::10"]
`

func TestScenario01NoPolicyFile(t *testing.T) {
	s := scene(t, "")
	s.run("web", "-p", "8080:80", "-p", "8080:80/udp")
	s.ready("web", "8080", "8080/udp")
	probes := hostPorts("8080", "8080/udp")
	s.closed(s.stranger.Namespace, probes)
	s.closed(s.permitted.Namespace, probes)

	s.nftfw("sets", "add", "trusted", s.permitted.V4.String(), s.permitted.V6.String())
	s.open(s.permitted.Namespace, "web", probes)
	s.closed(s.stranger.Namespace, probes)
}

func TestScenario02From(t *testing.T) {
	s := scene(t, `version: 1
sets:
  trusted: [198.18.0.10, "fd00:18::10"]
  office: [198.18.1.0/24, "fd00:18::1:0/112"]
`)
	sources := []struct {
		name string
		pair
	}{
		{"trusted", newPair("198.18.0.10", "fd00:18::10")},
		{"stranger", newPair("198.18.0.66", "fd00:18::66")},
		{"office", newPair("198.18.1.20", "fd00:18::1:20")},
		{"cidr", newPair("198.18.0.15", "fd00:18::f")},
		{"past cidr", newPair("198.18.0.16", "fd00:18::11")},
		{"before range", newPair("198.18.2.9", "fd00:18::2:f")},
		{"first of range", newPair("198.18.2.10", "fd00:18::2:10")},
		{"last of range", newPair("198.18.2.20", "fd00:18::2:20")},
		{"past range", newPair("198.18.2.21", "fd00:18::2:21")},
	}
	for _, src := range sources[2:] {
		s.lend(s.stranger, src.pair)
	}
	const (
		cidr   = "198.18.0.0/28,fd00:18::/124"
		ranges = "198.18.2.10-198.18.2.20,fd00:18::2:10-fd00:18::2:20"
	)
	tests := []struct {
		from string
		can  []string
	}{
		{"any", []string{"trusted", "stranger", "office", "cidr", "past cidr", "before range", "first of range", "last of range", "past range"}},
		{"trusted", []string{"trusted"}},
		{"none", nil},
		{"office", []string{"trusted", "office"}},
		{cidr, []string{"trusted", "cidr"}},
		{ranges, []string{"trusted", "first of range", "last of range"}},
		{"office," + cidr + "," + ranges, []string{"trusted", "office", "cidr", "first of range", "last of range"}},
	}
	for i, tt := range tests {
		port := strconv.Itoa(8080 + i)
		name := "from" + port
		s.run(name, "-p", port+":80", "--label", "nftfw.expose="+tt.from)
		s.ready(name, port)
		var can, cannot []lab.Probe
		for _, src := range sources[1:] {
			probes := from(hostPorts(port), src.v4, src.v6)
			if slices.Contains(tt.can, src.name) {
				can = append(can, probes...)
			} else {
				cannot = append(cannot, probes...)
			}
		}
		t.Logf("expose=%s", tt.from)
		if slices.Contains(tt.can, "trusted") {
			s.open(s.permitted.Namespace, name, hostPorts(port))
		} else {
			s.closed(s.permitted.Namespace, hostPorts(port))
		}
		if len(can) > 0 {
			s.open(s.stranger.Namespace, name, can)
		}
		if len(cannot) > 0 {
			s.closed(s.stranger.Namespace, cannot)
		}
	}
}

func TestScenario03OnePortOfTwo(t *testing.T) {
	s := scene(t, "version: 1"+trust)
	s.runSpec(lab.Spec{
		Name:    "web",
		Options: []string{"-p", "8080:80", "-p", "8080:80/udp", "-p", "8081:81", "--label", "nftfw.expose.80/tcp=any"},
		Args:    []string{"tcp:80", "udp:80", "tcp:81"},
	})
	s.open(s.permitted.Namespace, "web", hostPorts("8080/tcp", "8080/udp", "8081/tcp"))
	s.open(s.stranger.Namespace, "web", hostPorts("8080/tcp"))
	s.closed(s.stranger.Namespace, hostPorts("8080/udp", "8081/tcp"))

	t.Log("what ports lists for one source, and draws for all")
	for who, want := range map[netip.Addr][]bool{s.stranger.V4: {true, false, false}, s.permitted.V6: {true, true, true}} {
		list := s.nftfw("ports", "--open-to", who.String())
		for i, port := range []string{":8080/tcp", ":8080/udp", ":8081/tcp"} {
			if strings.Contains(list, port) != want[i] {
				t.Errorf("ports --open-to %s: %s is there: %v, want %v\n%s", who, port, !want[i], want[i], list)
			}
		}
	}
	picture := filepath.Join(s.Dir(), "ports.svg")
	s.nftfw("ports", "--picture", picture)
	if svg, err := os.ReadFile(picture); err != nil || !strings.Contains(string(svg), "*:8080/tcp") {
		t.Errorf("ports --picture: %v: %s", err, svg)
	}
}

func TestScenario04Rules(t *testing.T) {
	s := scene(t, `version: 1
sets:
  trusted: [198.18.0.10, "fd00:18::10"]
  office: [198.18.1.0/24, "fd00:18::1:0/112"]
containers:
  rules:
    - {match: {name: "shop-*"}, expose: {80/tcp: any}}
    - {match: {project: proj}, expose: {"*": any}}
    - {match: {service: svc}, expose: {70-90/tcp: any}}
    - {match: {image: "nginx*"}, expose: {80: any}}
    - {match: {label: {tier: front}}, expose: {80/tcp: any}}
    - {match: {name: shut}, expose: {80/tcp: none}}
    - {match: {name: narrowed}, expose: {80/tcp: office}}
    - {match: {name: other-port}, expose: {81/tcp: any}}
`)
	s.docker("tag", lab.Image, "nginx:1")
	office := newPair("198.18.1.20", "fd00:18::1:20")
	s.lend(s.stranger, office)
	const none, officeOnly, all = 0, 1, 2
	tests := []struct {
		name, image string
		labels      []string
		opens       int  // to whom
		untrusted   bool // closed to trusted, too
	}{
		{name: "shop-web", opens: all},
		{name: "by-project", labels: []string{"com.docker.compose.project=proj"}, opens: all},
		{name: "by-service", labels: []string{"com.docker.compose.service=svc"}, opens: all},
		{name: "by-image", image: "nginx:1", opens: all},
		{name: "by-label", labels: []string{"tier=front"}, opens: all},
		{name: "not-this-label", labels: []string{"tier=back"}, opens: none},
		{name: "shut", labels: []string{"nftfw.expose=any"}, opens: none, untrusted: true},
		{name: "narrowed", labels: []string{"nftfw.expose.80/tcp=any"}, opens: officeOnly},
		{name: "other-port", labels: []string{"nftfw.expose=office"}, opens: officeOnly},
		{name: "nothing-said", opens: none},
	}
	for i, tt := range tests {
		port := strconv.Itoa(8080 + i)
		spec := lab.Spec{Name: tt.name, Image: tt.image, Options: []string{"-p", port + ":80"}}
		for _, l := range tt.labels {
			spec.Options = append(spec.Options, "--label", l)
		}
		s.runSpec(spec)
		t.Log(tt.name)
		if tt.untrusted {
			s.ready(tt.name, port)
			s.closed(s.permitted.Namespace, hostPorts(port))
		} else {
			s.open(s.permitted.Namespace, tt.name, hostPorts(port))
		}
		probes := from(hostPorts(port), s.stranger.V4, s.stranger.V6)
		fromOffice := from(hostPorts(port), office.v4, office.v6)
		switch tt.opens {
		case all:
			s.open(s.stranger.Namespace, tt.name, slices.Concat(probes, fromOffice))
		case officeOnly:
			s.open(s.stranger.Namespace, tt.name, fromOffice)
			s.closed(s.stranger.Namespace, probes)
		default:
			s.closed(s.stranger.Namespace, slices.Concat(probes, fromOffice))
		}
	}
}

func TestScenario05LabelsGrantNoMore(t *testing.T) {
	const head = `version: 1
sets:
  trusted: [198.18.0.10, "fd00:18::10"]
  office: [198.18.1.0/24, "fd00:18::1:0/112"]
`
	s := scene(t, head+"containers: {labels: none}\n")
	office, inside := newPair("198.18.1.20", "fd00:18::1:20"), newPair("198.18.0.5", "fd00:18::5")
	s.lend(s.stranger, office, inside)
	containers := []struct{ name, port, from string }{
		{"any", "8080", "any"},
		{"wide", "8081", "office,198.18.0.0/27"},
		{"office", "8082", "office"},
		{"part", "8083", "198.18.0.4/30,fd00:18::4/126"},
	}
	for _, c := range containers {
		s.run("c-"+c.name, "-p", c.port+":80", "--label", "nftfw.expose="+c.from)
		s.open(s.permitted.Namespace, "c-"+c.name, hostPorts(c.port))
	}
	t.Log("labels: none")
	every := from(hostPorts("8080", "8081", "8082", "8083"),
		s.stranger.V4, s.stranger.V6, office.v4, office.v6, inside.v4, inside.v6)
	s.closed(s.stranger.Namespace, every)

	t.Log("labels: a list")
	if err := s.fw.WritePolicy(head + "containers: {labels: [office, 198.18.0.0/28, \"fd00:18::/124\"]}\n"); err != nil {
		t.Fatal(err)
	}
	s.nftfw("apply")
	s.open(s.stranger.Namespace, "c-office", from(hostPorts("8082"), office.v4, office.v6))
	s.open(s.stranger.Namespace, "c-part", from(hostPorts("8083"), inside.v4, inside.v6))
	// More than that is refused whole: not even what it might grant is open.
	s.closed(s.stranger.Namespace, slices.Concat(
		from(hostPorts("8080", "8081"), s.stranger.V4, s.stranger.V6, office.v4, office.v6, inside.v4, inside.v6),
		from(hostPorts("8082"), s.stranger.V4, s.stranger.V6, inside.v4, inside.v6),
		from(hostPorts("8083"), s.stranger.V4, s.stranger.V6, office.v4, office.v6),
	))
	s.open(s.permitted.Namespace, "", hostPorts("8080", "8081", "8082", "8083"))
}

func TestScenario08AddressTakenOver(t *testing.T) {
	s := scene(t, "version: 1"+trust)
	s.docker("network", "create", "--ipv6", "--subnet", "172.30.0.0/24", "--subnet", "fd00:d0c:8::/64", "shared")
	at := func(n int) []string {
		return []string{"--network", "shared", "--ip", fmt.Sprintf("172.30.0.%d", n), "--ip6", fmt.Sprintf("fd00:d0c:8::%d", n)}
	}
	labelled := []string{"--label", "nftfw.expose=any"}

	t.Log("removed, and its address taken by another")
	for range 3 {
		s.run("first", slices.Concat(at(10), labelled, []string{"-p", "8080:80"})...)
		s.open(s.stranger.Namespace, "first", hostPorts("8080"))
		s.docker("rm", "-f", "first")
		s.run("second", slices.Concat(at(10), []string{"-p", "8080:80"})...)
		s.closed(s.stranger.Namespace, hostPorts("8080"))
		s.open(s.permitted.Namespace, "second", hostPorts("8080"))
		s.closed(s.stranger.Namespace, hostPorts("8080"))
		s.docker("rm", "-f", "second")
	}

	t.Log("two containers swap addresses")
	s.run("labelled", slices.Concat(at(10), labelled, []string{"-p", "8080:80"})...)
	s.run("plain", slices.Concat(at(11), []string{"-p", "8081:80"})...)
	for _, swapped := range []bool{false, true} {
		if swapped {
			s.docker("stop", "-t", "0", "labelled", "plain")
			for _, c := range []string{"labelled", "plain"} {
				s.docker("network", "disconnect", "shared", c)
			}
			s.docker(slices.Concat([]string{"network", "connect"}, at(11)[2:], []string{"shared", "labelled"})...)
			s.docker(slices.Concat([]string{"network", "connect"}, at(10)[2:], []string{"shared", "plain"})...)
			s.docker("start", "plain", "labelled")
		}
		s.open(s.permitted.Namespace, "plain", hostPorts("8081"))
		s.open(s.stranger.Namespace, "labelled", hostPorts("8080"))
		s.closed(s.stranger.Namespace, hostPorts("8081"))
	}
}

func TestScenario09Networks(t *testing.T) {
	s := scene(t, "version: 1"+trust)
	s.docker("network", "create", "--subnet", "172.30.1.0/24", "one")
	s.docker("network", "create", "--subnet", "172.30.2.0/24", "two")
	s.docker("network", "create", "--subnet", "172.30.3.0/24", "-o", "com.docker.network.bridge.name=dk0", "named")
	s.run("web", "-p", "8080:80", "--network", "one", "--label", "nftfw.expose=any")
	s.run("db", "-p", "8081:80", "--network", "one")
	check := func(what string, connected ...string) {
		t.Helper()
		t.Log(what)
		s.open(s.stranger.Namespace, "web", hostPorts("8080"))
		s.open(s.permitted.Namespace, "db", hostPorts("8081"))
		s.closed(s.stranger.Namespace, hostPorts("8081"))
		for _, name := range []string{"web", "db"} {
			c, err := s.engine.Container(s.ctx(), name)
			if err != nil {
				t.Fatal(err)
			}
			if len(c.Addrs) != len(connected) {
				t.Fatalf("%s is on %v, want %v", name, c.Addrs, connected)
			}
			for _, n := range connected {
				s.open(s.Host.Namespace, name, addrPorts(c.Addr4(n), "80"))
				s.closed(s.routed.Namespace, addrPorts(c.Addr4(n), "80", "81"))
			}
		}
	}
	both := func(verb, network string) {
		t.Helper()
		s.docker("network", verb, network, "web")
		s.docker("network", verb, network, "db")
	}
	check("on one network", "one")
	both("connect", "two")
	check("on two at once", "one", "two")
	both("disconnect", "one")
	check("on the second only", "two")
	both("connect", "named")
	both("disconnect", "two")
	check("on a network with a bridge name of its own", "named")
}

func TestScenario10BadLabels(t *testing.T) {
	s := scene(t, "version: 1"+trust)
	tests := []struct{ name, label, key string }{
		{"malformed", "nftfw.expose=198.18.0.300", "nftfw.expose"},
		{"not-a-port", "nftfw.expose.80/tpc=any", "nftfw.expose.80/tpc"},
		{"no-such-set", "nftfw.expose.80/tcp=nosuchset", "nftfw.expose.80/tcp"},
		{"too-long", "nftfw.expose=" + strings.Repeat("198.18.0.0/15,", 70_000/14) + "any", "nftfw.expose"},
	}
	for i, tt := range tests {
		port := strconv.Itoa(8080 + i)
		s.run(tt.name, "-p", port+":80", "--label", tt.label)
		s.open(s.permitted.Namespace, tt.name, hostPorts(port))
		s.closed(s.stranger.Namespace, hostPorts(port))
	}
	listing, status := s.nftfw("ports"), s.nftfw("status")
	log := s.fw.Log()
	for _, tt := range tests {
		ports := s.ports(tt.name)
		if len(ports) == 0 {
			t.Errorf("ports --json does not list %s", tt.name)
		}
		for _, p := range ports {
			if p.Error == "" {
				t.Errorf("ports --json gives no error for %s: %+v", tt.name, p)
			}
		}
		for what, text := range map[string]string{"ports": listing, "status": status, "the log": log} {
			if !anyLine(text, tt.name, tt.key) {
				t.Errorf("%s names %s and %s in no line:\n%s", what, tt.name, tt.key, tail(text, 40))
			}
		}
	}
}

// port is what nftfw ports --json says of one published port.
type port struct {
	Container     string   `json:"container"`
	HostIP        string   `json:"host_ip"`
	HostPort      int      `json:"host_port"`
	ContainerPort int      `json:"container_port"`
	Proto         string   `json:"proto"`
	From          []string `json:"from"`
	DecidedBy     string   `json:"decided_by"`
	Error         string   `json:"error"`
}

// ports are the published ports of a container as nftfw lists them.
func (s *set) ports(container string) []port {
	s.t.Helper()
	var all struct{ Ports []port }
	if err := json.Unmarshal([]byte(s.nftfw("ports", "--json")), &all); err != nil {
		s.t.Fatal(err)
	}
	return slices.DeleteFunc(all.Ports, func(p port) bool { return p.Container != container })
}

// anyLine reports whether a line of text holds all of the words.
func anyLine(text string, words ...string) bool {
	for line := range strings.Lines(text) {
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
			return true
		}
	}
	return false
}
