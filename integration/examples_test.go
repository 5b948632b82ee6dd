package integration

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"github.com/nftfw/nftfw/integration/lab"
)

// visits are connections that one policy treats alike: from each source to
// each port.
type visits struct {
	from   []string // addresses; each asks addresses of its own family
	server string   // who answers, "" for anyone
	ports  []string
	at     []netip.Addr // of the host; nil is both of the lab's
}

func (v visits) probes() []lab.Probe {
	at := v.at
	if at == nil {
		at = []netip.Addr{lab.HostV4, lab.HostV6}
	}
	var sources []netip.Addr
	for _, a := range v.from {
		sources = append(sources, netip.MustParseAddr(a))
	}
	var list []lab.Probe
	for _, a := range at {
		list = append(list, from(addrPorts(a, v.ports...), sources...)...)
	}
	return list
}

// The addresses of the visitors of the examples. The first of each pair is in
// a list of an example, the second lies just outside.
const (
	one, notOne         = "192.0.2.10", "192.0.2.9"
	subnet, notSubnet   = "198.51.100.64", "198.51.100.63"
	last, notLast       = "203.0.113.9", "203.0.113.10"
	six, notSix         = "2001:db8:1::7", "2001:db8:2::7"
	cloud, notCloud     = "173.245.48.1", "173.245.47.9"
	cloud6, notCloud6   = "2606:4700::1", "2606:4701::1"
	node, notNode       = "192.0.2.12", "192.0.2.14"
	officeIn, officeOut = "203.0.113.15", "203.0.113.16"
)

// ssh is open to everybody in these examples.
var ssh = visits{[]string{notOne, notSix}, "host", []string{"22"}, nil}

// The two addresses of the example that tells them apart.
var public, inner = netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.2")

// examples are what each file of ../examples promises.
var examples = []struct {
	file         string
	open, closed []visits
}{
	{
		"trusted-list.yaml",
		[]visits{
			ssh,
			{[]string{one, subnet, last, six}, "host", []string{"9100", "9999", "51820/udp"}, nil},
			{[]string{one, subnet, last, six}, "proxy", []string{"8080", "8443", "9000"}, nil},
			{[]string{one, six}, "web", []string{"8081"}, nil},
		},
		[]visits{{
			[]string{notOne, notSubnet, notLast, notSix},
			"",
			[]string{"9100", "9999", "51820/udp", "8080", "8443", "9000", "8081"},
			nil,
		}},
	},
	{
		"only-these-sources.yaml",
		[]visits{
			{[]string{one, subnet, last}, "proxy", []string{"8080", "9000"}, nil},
			{[]string{one, subnet, last}, "web", []string{"8081"}, nil},
			{[]string{notOne, notSix}, "host", []string{"22", "9999"}, nil}, // left to others
		},
		[]visits{
			{[]string{notOne, notSubnet, notLast, six, notSix}, "", []string{"8080", "9000", "8081"}, nil},
			{[]string{notOne, notSix}, "", []string{"8085"}, nil}, // a label asks for any
		},
	},
	{
		"per-host-address.yaml",
		[]visits{
			{[]string{notOne, officeIn}, "proxy", []string{"8080", "9000"}, []netip.Addr{public}},
			{[]string{officeIn}, "proxy", []string{"8080", "9000"}, []netip.Addr{inner}},
			{[]string{notOne}, "first", []string{"8090"}, []netip.Addr{public}},
			{[]string{officeIn}, "second", []string{"8090"}, []netip.Addr{inner}},
			{[]string{officeIn}, "host", []string{"22"}, []netip.Addr{public, inner}},
		},
		[]visits{
			{[]string{notOne, officeOut}, "", []string{"8080", "9000", "8090"}, []netip.Addr{inner}},
			{[]string{notOne, officeOut}, "", []string{"22", "9999"}, []netip.Addr{public, inner}},
			{[]string{notOne, officeIn, notSix}, "", []string{"8080", "9000"}, nil}, // at other addresses
		},
	},
	{
		"ports-by-number.yaml",
		[]visits{
			ssh,
			{[]string{notOne, notSix}, "host", []string{"51820/udp"}, nil},
			{[]string{one}, "host", []string{"9100"}, nil},
			{[]string{notOne, notSix}, "proxy", []string{"8080", "8443"}, nil},
			{[]string{notOne, notSix}, "web", []string{"8081"}, nil},
			{[]string{one}, "plain", []string{"5010"}, nil},
		},
		[]visits{
			{[]string{notOne, notSix}, "", []string{"9100", "5010"}, nil},
			{[]string{one, notOne, notSix}, "", []string{"9999", "9000", "5011"}, nil},
		},
	},
	{
		"swarm-nodes.yaml",
		[]visits{ssh, {[]string{node}, "host", []string{"2377", "7946", "7946/udp", "4789/udp"}, nil}},
		[]visits{
			{[]string{notNode, notSix}, "", []string{"2377", "7946", "7946/udp", "4789/udp"}, nil},
			{[]string{node}, "", []string{"9999", "8080"}, nil},
		},
	},
	{
		"reverse-proxy.yaml",
		[]visits{ssh, {[]string{notOne, notSix}, "proxy", []string{"8080", "8443"}, nil}},
		[]visits{{[]string{one, notOne, six, notSix}, "", []string{"9000", "8081", "8085", "5010", "9999"}, nil}},
	},
	{
		"cloudflare-origin.yaml",
		[]visits{ssh, {[]string{cloud, cloud6}, "web", []string{"8081"}, nil}},
		[]visits{
			{[]string{notCloud, notCloud6, notOne}, "", []string{"8081"}, nil},
			{[]string{cloud, cloud6}, "", []string{"8080", "9000", "8444", "9999"}, nil},
		},
	},
}

func readExample(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../examples", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// visitors gives the stranger every source address of the examples, and the
// host routes to them.
func (s *set) visitors() {
	s.t.Helper()
	for _, a := range []string{
		one, notOne, subnet, notSubnet, last, notLast, six, notSix, cloud, notCloud, cloud6, notCloud6,
		node, notNode, officeIn, officeOut,
	} {
		s.lend(s.stranger, pair{v4: netip.MustParseAddr(a)})
	}
	var add, del []string
	for _, net := range []string{
		"192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "173.245.0.0/16", "2001:db8::/32", "2606:4700::/31",
	} {
		add = append(add, "route add "+net+" dev eth0")
		del = append(del, "route del "+net+" dev eth0")
	}
	s.ip(s.Host.Namespace, add, del)
	for _, a := range []netip.Addr{public, inner} {
		s.lend(s.Host, pair{v4: a})
	}
}

func TestExamples(t *testing.T) {
	s := scene(t, "version: 1\n")
	s.visitors()
	s.service("host", "tcp:22", "tcp:9100", "tcp:9999", "udp:51820", "tcp:2377", "tcp:7946", "udp:7946", "udp:4789")
	s.compose("proxy", "edge", "proxy", []string{"8080:80", "8443:443", "9000:9000"})
	s.compose("web", "site", "web", []string{"8081:80", "8444:8444"})
	s.compose("plain", "", "", []string{"5010:5010", "5011:5011"})
	s.compose("greedy", "", "", []string{"8085:8085"}, "--label", "nftfw.expose=any")
	s.compose("first", "", "", []string{public.String() + ":8090:80"})
	s.compose("second", "", "", []string{inner.String() + ":8090:80"})

	var files []string
	for _, e := range examples {
		files = append(files, filepath.Join("../examples", e.file))
		t.Run(e.file, func(t *testing.T) {
			s := s.in(t)
			s.apply(readExample(t, e.file))
			for _, v := range e.open {
				s.open(s.stranger.Namespace, v.server, v.probes())
			}
			for _, v := range e.closed {
				s.closed(s.stranger.Namespace, v.probes())
			}
		})
	}
	all, err := filepath.Glob("../examples/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	all = slices.DeleteFunc(all, func(f string) bool { return filepath.Base(f) == forwardExample })
	if slices.Sort(files); !slices.Equal(files, all) {
		t.Errorf("tested are %v, and there are %v", files, all)
	}
}

// compose starts a container as compose would, which listens on the container
// ports that it publishes.
func (s *set) compose(name, project, service string, publish []string, options ...string) {
	s.t.Helper()
	spec := lab.Spec{Name: name, Options: options}
	if project != "" {
		spec.Options = append(spec.Options,
			"--label", "com.docker.compose.project="+project, "--label", "com.docker.compose.service="+service)
	}
	for _, p := range publish {
		_, inside := publishedAt(p)
		spec.Options = append(spec.Options, "-p", p)
		spec.Args = append(spec.Args, "tcp:"+strconv.Itoa(int(inside)))
	}
	s.runSpec(spec)
}

const forwardExample = "forward-two-interfaces.yaml"

func TestExampleForward(t *testing.T) {
	s := bare(t)
	lan := s.beside("lan", "lan0", "198.19.5.2", "fd00:19:5::2")
	wan := s.beside("wan", "wan0", "198.19.6.2", "fd00:19:6::2")
	for i, n := range []*lab.Node{lan, wan} {
		net4, net6 := fmt.Sprintf("198.19.%d.1", 5+i), fmt.Sprintf("fd00:19:%d::1", 5+i)
		link := n.Name + "0"
		s.ip(s.Host.Namespace, []string{
			"addr add " + net4 + "/24 dev " + link, "addr add " + net6 + "/64 dev " + link + " nodad", "link set " + link + " up",
		}, nil)
		s.ip(n.Namespace, []string{"route add default via " + net4, "route add default via " + net6}, nil)
		s.outside(n.Name, n, "tcp:7000", "udp:7000")
	}
	s.ip(s.stranger.Namespace,
		[]string{"route add 198.19.0.0/16 via " + lab.HostV4.String(), "route add fd00:19::/32 via " + lab.HostV6.String()},
		[]string{"route del 198.19.0.0/16", "route del fd00:19::/32"})
	web := s.run("web", "-p", "8080:80")
	at := func(n *lab.Node) []lab.Probe {
		return slices.Concat(addrPorts(n.V4, "7000", "7000/udp"), addrPorts(n.V6, "7000", "7000/udp"))
	}
	toWeb := slices.Concat(hostPorts("8080"), addrPorts(web.Addr4("bridge"), "80"))
	s.dockerForwards() // what Docker's own policy drops is not what this is about
	t.Log("without nftfw the two are open to a third, and so is the container to them")
	s.open(s.stranger.Namespace, "", slices.Concat(at(lan), at(wan)))
	s.open(lan.Namespace, "web", hostPorts("8080"))

	s.start(readExample(t, forwardExample))
	s.open(lan.Namespace, "wan", at(wan))
	s.open(wan.Namespace, "lan", at(lan))
	s.closed(s.stranger.Namespace, slices.Concat(at(lan), at(wan)))
	s.closed(lan.Namespace, toWeb)
	s.closed(wan.Namespace, toWeb)
}
