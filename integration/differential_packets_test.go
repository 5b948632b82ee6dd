package integration

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/nftfw/nftfw/integration/lab"
)

// question is a packet, by the names of who sends it and of whom it is for:
// addresses of containers change.
type question struct {
	from    string     // a node or a container
	source  pair       // of a node; a container's is what its routes say
	to      netip.Addr // zero: that of a container
	toName  string
	network string // on which the container is asked
	six     bool
	proto   string
	port    uint16
	shut    bool   // Docker alone lets nothing through
	server  string // who answers without nftfw
}

func (q question) String() string {
	to := q.to.String()
	if q.toName != "" {
		to = fmt.Sprintf("%s on %s (IPv6: %v)", q.toName, q.network, q.six)
	}
	return fmt.Sprintf("%s -> %s %d/%s", q.from, to, q.port, q.proto)
}

// source is one who can send packets.
type source struct {
	name string
	pair
}

// questions makes packets: those that mean something in a world.
func (m maker) questions(w world, n int) []question {
	nodes := []source{
		{"permitted", newPair("198.18.0.10", "fd00:18::10")},
		{"stranger", newPair("198.18.0.66", "fd00:18::66")},
		{"routed", newPair("198.18.0.77", "fd00:18::77")},
		{"aside", asideNode},
	}
	for _, p := range lent {
		nodes = append(nodes, source{"stranger", p})
	}
	var boxes []source
	var published, locals []string // "8001/tcp"
	for _, b := range w.containers {
		if !b.onHost() {
			boxes = append(boxes, source{name: b.name})
		}
		for _, p := range b.publish {
			host, proto := publishedPort(p)
			published = append(published, host+"/"+proto)
			if strings.HasPrefix(p, "127.") {
				locals = append(locals, host+"/"+proto)
			}
		}
	}
	own := slices.Concat(published, published, []string{"9000/tcp", "9000/udp", "9001/tcp", "9100/tcp", "9100/udp", "9101/tcp", "9101/udp", "5432/tcp", "9200/tcp"})
	hosts := []netip.Addr{lab.HostV4, hostSecond.v4, lab.HostV6, hostSecond.v6}
	gateways := append(slices.Clone(hosts), netip.MustParseAddr("172.30.0.1"), netip.MustParseAddr("172.30.1.1"),
		netip.MustParseAddr("172.17.0.1"), asideHost.v4, asideHost.v6, netip.MustParseAddr("fd00:d0c:1::1"))
	inside := []string{"80/tcp", "81/tcp", "82/tcp", "80/udp", "81/udp"}

	seen := map[string]bool{}
	var out []question
	for tries := 0; len(out) < n && tries < 20*n; tries++ {
		var q question
		var port string
		switch k := m.IntN(100); {
		case k < 50:
			s := pick(m, nodes)
			q, port = question{from: s.name, source: s.pair, to: pick(m, hosts)}, pick(m, own)
		case k < 53 && len(locals) > 0:
			q = question{from: "loopback", source: newPair("198.18.0.127", "fd00:18::127"), to: netip.MustParseAddr("127.0.0.1")}
			port = pick(m, locals)
		case k < 70:
			q, port = question{from: pick(m, boxes).name, to: pick(m, gateways)}, pick(m, own)
		case k < 78:
			q = question{from: pick(m, boxes).name, to: pick(m, []netip.Addr{nodes[0].v4, nodes[2].v4, nodes[2].v6, asideNode.v4, asideNode.v6})}
			port = pick(m, []string{"7000/tcp", "7000/udp", "7001/tcp"})
		case k < 82:
			ends := []source{nodes[2], nodes[3]}
			m.Shuffle(2, func(i, j int) { ends[i], ends[j] = ends[j], ends[i] })
			q = question{from: ends[0].name, source: ends[0].pair, to: pick(m, []netip.Addr{ends[1].v4, ends[1].v6})}
			port = pick(m, []string{"7000/tcp", "7000/udp", "7001/tcp"})
		default:
			s := pick(m, slices.Concat(boxes, nodes[2:4]))
			b := pick(m, w.containers)
			if b.onHost() {
				continue
			}
			q = question{from: s.name, source: s.pair, toName: b.name, network: pick(m, b.networks), six: m.chance(35)}
			port = pick(m, inside)
		}
		number, proto, _ := strings.Cut(port, "/")
		q.port, q.proto = parsePort(number), proto
		if key := fmt.Sprint(q, q.source); !seen[key] {
			seen[key] = true
			out = append(out, q)
		}
	}
	return out
}

// publishedPort gives the host's port and the protocol of ADDR:HOST:PORT/PROTO.
func publishedPort(publish string) (host, proto string) {
	rest, proto, ok := strings.Cut(publish, "/")
	if !ok {
		proto = "tcp"
	}
	fields := strings.Split(rest, ":")
	return fields[len(fields)-2], proto
}
