package policy

import (
	"fmt"
	"testing"

	"github.com/nftfw/nftfw/pkg/inventory"
	rs "github.com/nftfw/nftfw/pkg/ruleset"
)

func TestHostPorts(t *testing.T) {
	proxied := container("web", labels{"nftfw.expose.80": "office"}, "8080:80/tcp")
	run(t, []verdicts{
		{
			name:   "host.allow opens ports to its FROM, and trusted reaches every port",
			policy: "host: {allow: [{ports: [22/tcp], from: any}, {ports: [9100/tcp, 60000-61000/udp], from: [office, 10.0.0.0/8]}]}",
			accept: packets(from(input, host1+":22", stranger, blockedNeighbour), from(input, "["+host6+"]:22", stranger6),
				from(input, host2+":9100", office, partner), from(input, "["+host6+"]:9100", office6),
				input(partner, host1+":60000/udp"), input(partner, host1+":61000/udp"), input(trusted, host1+":5432")),
			drop: packets(from(input, host1+":9100", stranger), input(partner, host1+":59999/udp"), input(partner, host1+":61001/udp"),
				input(partner, host1+":60000/tcp"), input(stranger, host1+":22/udp"), input(stranger6, "["+host6+"]:9100"), input(stranger, host1+":5432")),
		},
		{
			name:   "host.allow with in: opens on that interface only",
			policy: `host: {allow: [{in: virbr0, ports: [53/udp, 67/udp], from: any}, {in: "eth*", ports: [80/tcp], from: any}]}`,
			accept: packets(links("virbr0", "", input(stranger, host1+":53/udp")), links("eth1", "", input(stranger, host1+":80"))),
			drop:   packets(input(stranger, host1+":53/udp"), links("virbr0", "", input(stranger, host1+":80"))),
		},
		{
			name:   "protocols without ports",
			policy: "host: {allow: [{ports: [esp, vrrp, 47/proto], from: office}]}",
			accept: packets(from(input, host1+"/esp", office, trusted), input(office, host1+"/vrrp"), input(office6, host6+"/gre")),
			drop:   packets(from(input, host1+"/esp", stranger), input(office, host1+"/ah"), input(office, host1+":22")),
		},
		{
			name:   "entries of host.allow count in the order of the file where one of them is none",
			policy: "host: {allow: [{in: wg0, ports: [22/tcp], from: any}, {ports: [25/tcp], from: office}, {ports: [20-30/tcp], from: none}, {ports: [22/tcp], from: any}]}",
			accept: packets(links("wg0", "", input(stranger, host1+":22")), input(trusted, host1+":31"), from(input, host1+":25", office, trusted)),
			drop:   packets(from(input, host1+":22", stranger, trusted), from(input, host1+":30", trusted)),
		},
		{
			name:       "a port that docker-proxy holds follows its container; host.allow never opens it",
			policy:     "host: {allow: [{ports: [8080/tcp, 80/tcp], from: any}]}",
			containers: []inventory.Container{proxied},
			accept:     packets(from(input, host1+":8080", office, trusted), from(input, "["+host6+"]:8080", office6), input(stranger, host1+":80")),
			drop:       packets(from(input, host1+":8080", stranger), input(stranger6, "["+host6+"]:8080")),
		},
		{
			name:       "host.default: accept leaves the host's own ports alone, and keeps published ones",
			policy:     "host: {default: accept}",
			containers: []inventory.Container{proxied},
			accept:     packets(input(stranger, host1+":22"), input(stranger6, "["+host6+"]:9999"), input(office, host1+":8080")),
			drop:       packets(input(stranger, host1+":8080"), input(stranger6, "["+host6+"]:8080"), dnat(stranger, web+":80"), input(stranger, "127.0.0.1:22")),
		},
		{
			name:       "a port published on one address opens neither the host's own nor another container's on the other",
			policy:     "host: {allow: [{ports: [6379/tcp], from: office}]}",
			containers: []inventory.Container{container("db", labels{"nftfw.expose.5432": "any"}, "198.18.0.2:5432:5432/tcp", "198.18.0.2:6379:6379/tcp")},
			accept:     packets(input(stranger, host2+":5432"), through(host2, dnat(stranger, web+":5432")), input(office, host1+":6379")),
			drop:       packets(input(stranger, host1+":5432"), input(stranger6, "["+host6+"]:5432"), input(office, host2+":6379")),
		},
		{
			name: "two containers hold one port number on two addresses",
			containers: []inventory.Container{
				container("a", labels{"nftfw.expose.5432": "any"}, "198.18.0.2:5432:5432/tcp"),
				on(container("b", labels{"nftfw.expose.5432": "none"}, "198.18.0.1:5432:5432/tcp", "[fd00:18::1]:5432:5432/tcp"), endpoint("n-app", app, app6)),
			},
			accept: packets(input(stranger, host2+":5432"), dnat(stranger, web+":5432")),
			drop:   packets(from(input, host1+":5432", trusted), from(input, "["+host6+"]:5432", trusted6), dnat(trusted, app+":5432"), dnat(trusted6, "["+app6+"]:5432")),
		},
		{
			name:   "what the default policy opens besides sshd: nothing but to trusted",
			policy: "host: {allow: [{ports: [2222/tcp], from: any}]}",
			accept: packets(input(stranger, host1+":2222"), input(trusted6, "["+host6+"]:80")),
			drop:   packets(input(stranger, host1+":22"), input(stranger6, "["+host6+"]:80")),
		},
	})
}

// blockedNeighbour is one address beside blocked.
const blockedNeighbour = "100.64.66.7"

func TestHostNetwork(t *testing.T) {
	run(t, []verdicts{
		{
			name:       "a label opens that port of the host",
			containers: []inventory.Container{hostNetwork("metrics", labels{"nftfw.expose.9000/tcp": "any", "nftfw.expose.9001-9002": "office"})},
			accept:     packets(input(stranger, host1+":9000"), input(stranger6, "["+host6+"]:9000"), from(input, host1+":9002", office, trusted)),
			drop:       packets(input(stranger, host1+":9000/udp"), input(stranger, host1+":9002"), input(stranger, host1+":9003"), dnat(stranger, web+":9000")),
		},
		{
			name:   "without the container it is closed",
			accept: packets(input(trusted, host1+":9000")),
			drop:   packets(input(stranger, host1+":9000")),
		},
		{
			name:       "never one that host.allow names",
			policy:     "host: {allow: [{ports: [20-30/tcp], from: office}]}",
			containers: []inventory.Container{hostNetwork("evil", labels{"nftfw.expose.22": "any", "nftfw.expose.22/udp": "any"})},
			accept:     packets(input(office, host1+":22"), input(stranger, host1+":22/udp")),
			drop:       packets(input(stranger, host1+":22"), input(stranger6, "["+host6+"]:22")),
			says:       []string{"error: container evil: label nftfw.expose.22: host port 22/tcp stays as policy.yaml:7 says: host.allow names it"},
		},
		{
			name: "never one that docker-proxy holds",
			containers: []inventory.Container{
				container("web", nil, "8080:80/tcp", "198.18.0.2:9000:90/tcp"),
				hostNetwork("evil", labels{"nftfw.expose.8080": "any", "nftfw.expose.9000": "any"}),
			},
			accept: packets(input(trusted, host1+":8080"), input(stranger, host1+":9000")),
			drop:   packets(input(stranger, host1+":8080"), input(stranger6, "["+host6+"]:8080"), input(stranger, host2+":9000")),
			says:   []string{"error: container evil: host port 8080/tcp is held by container web, which publishes it"},
		},
		{
			name:       "a label in error leaves the port to trusted, under host.default: accept as well",
			policy:     "host: {default: accept}",
			containers: []inventory.Container{hostNetwork("metrics", labels{"nftfw.expose.9000": "everyone"})},
			accept:     packets(input(trusted, host1+":9000"), input(stranger, host1+":9001")),
			drop:       packets(input(stranger, host1+":9000")),
			says:       []string{"error: container metrics: label nftfw.expose.9000: …"},
		},
		{
			name:       "a label in error is reported once for a range",
			containers: []inventory.Container{hostNetwork("metrics", labels{"nftfw.expose.9000-9999": "everyone"})},
			drop:       packets(input(stranger, host1+":9000")),
			says:       []string{"error: container metrics: label nftfw.expose.9000-9999: …"},
		},
		{
			name:       "a label without a port opens nothing",
			containers: []inventory.Container{hostNetwork("metrics", labels{"nftfw.expose": "any"})},
			drop:       packets(input(stranger, host1+":9000")),
			says:       []string{"warning: container metrics: label nftfw.expose: a container in the host's network publishes no ports; name the port, as in nftfw.expose.80/tcp"},
		},
		{
			name: "a rule stands above the label, and opens by itself what it names by number",
			policy: `containers:
  rules:
  - {match: {name: metrics, host_ip: 198.18.0.2}, expose: {9002/tcp: any}}
  - {match: {name: metrics}, expose: {9001/tcp: any, 9000/tcp: office}}`,
			containers: []inventory.Container{hostNetwork("metrics", labels{"nftfw.expose.9000": "any"})},
			accept:     packets(input(stranger, host1+":9001"), input(office, host1+":9000"), input(stranger, host2+":9002")),
			drop:       packets(input(stranger, host1+":9000"), input(stranger, host1+":9002")),
		},
		{
			name:   "a rule about an address of the host leaves to a container what that publishes there",
			policy: "containers: {rules: [{match: {host_ip: 198.18.0.2}, expose: {443/tcp: any}}]}",
			containers: []inventory.Container{
				container("web", labels{"nftfw.expose.80": "10.1.2.3"}, "198.18.0.2:443:80/tcp"), hostNetwork("exporter", nil),
			},
			accept: packets(input(partner, host2+":443"), input(trusted, host2+":443")),
			drop:   packets(input(stranger, host2+":443")),
		},
		{
			name: "two of them that say different things of a port close it",
			containers: []inventory.Container{
				hostNetwork("a", labels{"nftfw.expose.9000": "any"}), hostNetwork("b", labels{"nftfw.expose.9000": "office"}),
			},
			drop: packets(from(input, host1+":9000", office, trusted, stranger)),
			says: []string{"error: container b: container a and container b claim the same address and port with different permissions (any, office): closed"},
		},
	})
}

// BenchmarkHostPorts compiles two containers in the host's network that open the same
// ports: twice as many ports take twice the time.
func BenchmarkHostPorts(b *testing.B) {
	for _, n := range []int{1000, 2000, 4000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			p, _ := mustParse(b, worldSets)
			open := labels{fmt.Sprintf("nftfw.expose.1-%d", n): "any"}
			inv := world()
			inv.Containers = []inventory.Container{hostNetwork("a", open), hostNetwork("b", open)}
			for b.Loop() {
				Compile(p, setsOf(p), inv)
			}
		})
	}
}

func TestPaths(t *testing.T) {
	open := labels{"nftfw.expose": "any"}
	run(t, []verdicts{
		{
			name:       "straight to a container's address nothing is reachable, for trusted neither",
			containers: []inventory.Container{container("web", open, "8080:80/tcp", "443/tcp")},
			accept:     packets(dnat(stranger, web+":80")),
			drop:       packets(from(direct, web+":80", stranger, trusted), from(direct, "["+web6+"]:80", stranger6, trusted6), from(direct, web+":443", trusted), dnat(trusted, web+":443")),
		},
		{
			name:       "nor in gateway mode nat-unprotected",
			containers: []inventory.Container{on(container("web", open, "8080:80/tcp"), endpoint("n-unprotected", "172.31.0.2", ""))},
			accept:     packets(dnat(stranger, "172.31.0.2:80")),
			drop:       packets(from(direct, "172.31.0.2:80", stranger, trusted)),
		},
		{
			name:       "except in gateway mode routed, where FROM decides for each exposed port",
			containers: []inventory.Container{on(container("web", labels{"nftfw.expose.80": "office"}, "80/tcp", "81/tcp"), endpoint("n-routed", routed, routed6))},
			accept:     packets(from(direct, routed+":80", office, trusted), from(direct, "["+routed6+"]:80", office6), direct(trusted, routed+":81")),
			drop:       packets(from(direct, routed+":80", stranger), from(direct, "["+routed6+"]:80", stranger6), direct(office, routed+":81"), direct(trusted, routed+":82")),
		},
		{
			name:       "also of a port that is bound to one address of the host, about which a rule is",
			policy:     "containers: {rules: [{match: {host_ip: 198.18.0.2}, expose: {80/tcp: any}}]}",
			containers: []inventory.Container{on(container("web", nil, "198.18.0.2:8080:80/tcp"), endpoint("n-routed", routed, routed6))},
			accept:     packets(direct(trusted, routed+":80"), direct(trusted6, "["+routed6+"]:80"), input(stranger, host2+":8080")),
			drop:       packets(direct(stranger, routed+":80"), direct(stranger6, "["+routed6+"]:80"), direct(trusted, routed+":81")),
		},
		{
			name: "and on a network that is routed for one family alone",
			change: func(inv *inventory.Snapshot) {
				inv.Networks[2].Gateway4 = inventory.GatewayNAT
			},
			containers: []inventory.Container{on(container("web", open, "8080:80/tcp"), endpoint("n-routed", routed, routed6))},
			accept:     packets(direct(stranger6, "["+routed6+"]:80"), dnat(stranger, routed+":80")),
			drop:       packets(direct(stranger, routed+":80")),
		},
		{
			name: "a port published on loopback is the host's alone, on every way and for everyone",
			containers: []inventory.Container{
				container("web", open, "127.0.0.1:8082:81/tcp", "[::1]:8082:81/tcp", "8080:80/tcp"),
				on(container("routed", open, "127.0.0.1:8083:81/tcp"), endpoint("n-routed", routed, routed6)),
			},
			accept: packets(dnat(stranger, web+":80"), links("lo", "", input("127.0.0.1", "127.0.0.1:8082"))),
			drop: packets(from(dnat, web+":81", stranger, trusted), through("127.0.0.1", dnat(trusted, web+":81")), through("::1", dnat(trusted6, "["+web6+"]:81")),
				from(direct, web+":81", trusted), direct(trusted, routed+":81"), direct(trusted6, "["+routed6+"]:81"),
				input(stranger, host1+":8082"), from(input, "127.0.0.1:8082", trusted, web), input(trusted6, "[::1]:8082")),
		},
		{
			name:       "a port published on loopback and elsewhere is open elsewhere",
			containers: []inventory.Container{container("web", open, "127.0.0.1:8082:81/tcp", "198.18.0.1:8083:81/tcp")},
			accept:     packets(dnat(stranger, web+":81"), input(stranger, host1+":8083")),
			drop:       packets(through("127.0.0.1", dnat(stranger, web+":81")), through("::1", dnat(stranger6, "["+web6+"]:81")), links("wg0", "docker0", through("127.0.0.1", dnat(trusted, web+":81")))),
		},
		{
			name:       "all networks and addresses of a container",
			containers: []inventory.Container{on(container("web", open, "8080:80/tcp"), endpoint("n-docker0", web, web6), endpoint("n-app", app, app6))},
			accept:     packets(dnat(stranger, web+":80"), dnat(stranger, app+":80"), dnat(stranger6, "["+app6+"]:80")),
			drop:       packets(direct(stranger, app+":80")),
		},
		{
			name:       "but not the address on a network that is no bridge of this host",
			containers: []inventory.Container{on(container("web", open, "8080:80/tcp"), endpoint("n-docker0", web, ""), endpoint("n-macvlan", app, ""))},
			accept:     packets(dnat(stranger, web+":80")),
			drop:       packets(dnat(stranger, app+":80")),
		},
		{
			name:       "a port published on the IPv4 wildcard opens nothing of the host's over IPv6",
			containers: []inventory.Container{container("web", open, "0.0.0.0:8080:80/tcp")},
			accept:     packets(input(stranger, host2+":8080")),
			drop:       packets(input(stranger6, "["+host6+"]:8080")),
		},
		{
			name:       "a container that claims another's address with another word closes both",
			containers: []inventory.Container{container("a", open, "8080:80/tcp"), container("b", nil, "8081:80/tcp")},
			accept:     packets(input(stranger, host1+":8080"), input(trusted, host1+":8081")),
			drop:       packets(from(dnat, web+":80", stranger, trusted), input(stranger, host1+":8081")),
			says:       []string{"error: container b: container a and container b claim the same address and port with different permissions (any, trusted): closed"},
		},
		{
			name:       "addresses with zones and IPv4 in IPv6 are what packets carry",
			containers: []inventory.Container{on(container("web", open, "[fe80::1%eth0]:8080:80/tcp", "[::ffff:198.18.0.2]:81:81/tcp"), endpoint("n-docker0", "::ffff:172.17.0.2", "fe80::2%eth0"))},
			accept:     packets(input(stranger6, "[fe80::1]:8080"), input(stranger, host2+":81"), dnat(stranger, web+":80")),
			drop:       packets(input(stranger, host1+":81")),
		},
		{
			name:       "established flows go on, and only ICMP is related by itself",
			containers: []inventory.Container{container("web", nil, "8080:80/tcp")},
			accept: packets(state(rs.StateEstablished, dnat(stranger, web+":80")), state(rs.StateEstablished, input(stranger, host1+":9")),
				state(rs.StateRelated, icmp(3, dnat(stranger, web+"/icmp"))), state(rs.StateRelated, icmp(1, dnat(stranger6, web6+"/icmpv6"))),
				state(rs.StateRelated, icmp(0, input(stranger, host1+"/icmp")))),
			drop: packets(state(rs.StateRelated, dnat(stranger, web+":20")), state(rs.StateRelated, input(stranger, host1+":20")), icmp(3, dnat(stranger, web+"/icmp"))),
		},
		{
			name:       "invalid is refused towards host and containers only",
			containers: []inventory.Container{container("web", open, "8080:80/tcp")},
			accept:     packets(state(rs.StateInvalid, direct(stranger, "198.51.100.7:80"))),
			drop:       packets(state(rs.StateInvalid, dnat(stranger, web+":80")), state(rs.StateInvalid, input(trusted, host1+":22"))),
		},
	})
}

func TestEssentials(t *testing.T) {
	const (
		router   = "fe80::1"
		multi    = "ff02::1"
		strictly = "host: {ping: false, default: drop}\ncontainers: {default: none, to_host: none}\nforward: {default: drop}"
	)
	essentials := packets(
		sport(67, input("198.18.0.254", "255.255.255.255:68/udp")),
		sport(547, input(router, "[fe80::2]:546/udp")),
		input(stranger, host1+"/igmp"),
		links("docker0", "", icmp(135, input("fe80::3", "fe80::2/icmpv6"))),
	)
	for _, kind := range []uint8{3, 11, 12} {
		essentials = append(essentials, icmp(kind, input(stranger, host1+"/icmp")))
	}
	for _, kind := range []uint8{1, 2, 3, 4, 130, 131, 132, 133, 134, 135, 136, 143} {
		essentials = append(essentials, icmp(kind, input(router, multi+"/icmpv6")), state(rs.StateUntracked, icmp(kind, input(router, multi+"/icmpv6"))))
	}
	ping := packets(icmp(8, input(stranger, host1+"/icmp")), icmp(128, input(stranger6, host6+"/icmpv6")))
	run(t, []verdicts{
		{
			name:   "DHCP, IGMP, ICMP errors, ND, RA and MLD pass under the strictest policy, ping does not",
			policy: strictly,
			accept: essentials,
			drop: packets(ping, sport(68, input(stranger, host1+":68/udp")), sport(67, input(stranger, host1+":69/udp")),
				sport(547, input(stranger6, "[fe80::2]:546/udp")), sport(546, input(router, "[fe80::2]:546/udp")),
				sport(67, input(router, "[fe80::2]:68/udp")), icmp(5, input(stranger, host1+"/icmp")), icmp(13, input(stranger, host1+"/icmp")),
				icmp(137, input(router, multi+"/icmpv6"))),
		},
		{name: "ping: true is the default", accept: ping},
		{name: "ping: false does not stop trusted", policy: "host: {ping: false}", accept: packets(icmp(8, input(trusted, host1+"/icmp"))), drop: ping},
	})
}

func TestBlocked(t *testing.T) {
	everything := packets(input(blocked, host1+":22"), dnat(blocked, web+":80"), input(blocked6, "["+host6+"]:22"), dnat(blocked6, "["+web6+"]:80"),
		state(rs.StateEstablished, dnat(blocked, web+":80")), state(rs.StateEstablished, input(blocked, host1+":22")),
		icmp(3, input(blocked, host1+"/icmp")), links("wg0", "", input(blocked, host1+":22")), links("docker0", "eth0", direct(blocked, "198.51.100.7:80")),
		direct(blocked, "198.51.100.7:80"))
	all := `host: {default: accept, allow: [{ports: [22/tcp], from: any}]}
interfaces: {trusted: [wg0]}
containers: {default: any}
`
	c := []inventory.Container{container("web", nil, "8080:80/tcp")}
	run(t, []verdicts{
		{
			name: "blocked is dropped before everything else, on every interface but lo", policy: all, containers: c,
			drop:   everything,
			accept: packets(links("lo", "", input(blocked, host1+":22")), from(dnat, web+":80", blockedNeighbour)),
		},
		{name: "in mode observe it is not", policy: all + "mode: observe", containers: c, accept: everything},
	})
}

func TestBlockedBeforeTrusted(t *testing.T) {
	p, _ := mustParse(t, "version: 1\nsets: {trusted: [192.0.2.0/24], blocked: [192.0.2.10]}\ncontainers: {default: any}")
	table, _ := Compile(p, setsOf(p), world())
	for _, packet := range packets(input(trusted, host1+":22"), state(rs.StateEstablished, input(trusted, host1+":22"))) {
		if got := verdictOf(table, packet); got.Verdict != rs.Drop {
			t.Errorf("%s: accepted\n%s", describePacket(packet), describeTrace(got))
		}
	}
	if got := verdictOf(table, input("192.0.2.11", host1+":22")); got.Verdict != rs.Accept {
		t.Errorf("trusted, not blocked: refused\n%s", describeTrace(got))
	}
}

func TestObserve(t *testing.T) {
	run(t, []verdicts{{
		name:       "observe refuses nothing",
		policy:     "mode: observe\nhost: {ping: false, allow: [{ports: [22/tcp], from: none}]}\ncontainers: {default: none, to_host: none}\nforward: {default: drop}",
		containers: []inventory.Container{container("web", nil, "8080:80/tcp", "127.0.0.1:8082:81/tcp")},
		accept: packets(input(stranger, host1+":22"), input(stranger, host1+":8080"), dnat(stranger, web+":80"), direct(stranger, web+":80"),
			direct(stranger, "198.51.100.7:80"), through("127.0.0.1", dnat(stranger, web+":81")), input(stranger, "127.0.0.1:22"),
			state(rs.StateInvalid, input(stranger, host1+":1")), icmp(8, input(stranger, host1+"/icmp")),
			links("docker0", "", input(web, host1+":22")), links("docker0", "br-app", dnat(web, app+":80")), links("br-new", "docker0", direct(stranger, web+":80"))),
	}})
}

func TestInterfaces(t *testing.T) {
	c := []inventory.Container{container("web", labels{"nftfw.expose.80": "none"}, "8080:80/tcp", "127.0.0.1:8082:81/tcp")}
	run(t, []verdicts{
		{
			name:       "what arrives on a trusted interface is accepted",
			policy:     `interfaces: {trusted: [wg0, "tailscale*"]}`,
			containers: c,
			accept: packets(links("wg0", "", input(stranger, host1+":5432")), links("tailscale0", "", input(stranger6, "["+host6+"]:8080")),
				links("wg0", "docker0", dnat(stranger, web+":80")), links("wg0", "docker0", direct(stranger, web+":80"))),
			drop: packets(input(stranger, host1+":5432"), links("wg00", "", input(stranger, host1+":5432")), links("tailscal", "", input(stranger, host1+":5432")),
				links("wg0", "", input(stranger, "127.0.0.1:5432")), links("wg0", "docker0", through("127.0.0.1", dnat(stranger, web+":81")))),
		},
		{
			name:       "lo is accepted, and every other interface is closed",
			containers: c,
			accept:     packets(links("lo", "", input("127.0.0.1", "127.0.0.1:5432")), links("lo", "", input(host1, host1+":8080"))),
			drop:       packets(input(stranger, host1+":5432"), links("eth1", "", input(stranger, host1+":5432")), links("br-new", "", input(web, host1+":5432"))),
		},
	})
}

func TestForward(t *testing.T) {
	const outside = "198.51.100.7:80"
	out := links("docker0", "eth0", direct(web, outside))
	run(t, []verdicts{
		{
			name: "forward.default: accept lets foreign links talk, and nothing to containers or over links on neither side",
			accept: packets(direct(stranger, outside), links("virbr0", "eth0", direct(stranger, outside)), links("eth0", "virbr0", direct(stranger, outside)),
				links("virbr0", "virbr0", direct(stranger, outside)), out),
			drop: packets(links("br-new", "eth0", direct(stranger, outside)), links("eth0", "br-new", direct(stranger, outside)), links("br-new", "br-new", direct(stranger, outside)),
				links("br-taken", "eth0", direct(stranger, outside)), links("eth0", "br-taken", direct(stranger, outside)), links("br-taken", "br-taken", direct(stranger, outside)),
				links("br-taken", "docker0", direct(stranger, web+":80")), links("virbr0", "docker0", direct(trusted, web+":80"))),
		},
		{
			name:   "forward.default: drop, with what forward.allow lists, either way",
			policy: `forward: {default: drop, allow: [{in: virbr0, out: eth0, from: any}, {in: "eth*", out: virbr0, from: office}]}`,
			accept: packets(links("virbr0", "eth0", direct(stranger, outside)), links("eth1", "virbr0", direct(office, outside)), links("eth1", "virbr0", direct(trusted, outside)),
				state(rs.StateEstablished, links("eth0", "virbr0", direct(stranger, outside))), out),
			drop: packets(links("virbr0", "eth1", direct(stranger, outside)), links("eth0", "virbr0", direct(stranger, outside)), direct(stranger, outside), direct(trusted, outside),
				links("virbr0", "docker0", direct(office, web+":80"))),
		},
		{
			name:   "an entry of none refuses what later ones and the default let through",
			policy: `forward: {allow: [{in: virbr0, from: none}, {out: eth0, from: any}]}`,
			accept: packets(links("eth0", "virbr0", direct(stranger, outside))),
			drop:   packets(links("virbr0", "eth0", direct(stranger, outside)), links("virbr0", "eth0", direct(trusted, outside))),
		},
		{
			name:   "what one bridge only switches passes, under forward.default: drop as well",
			policy: "forward: {default: drop}",
			accept: packets(links("virbr0", "virbr0", direct(stranger, outside)), links("docker0", "docker0", direct("172.17.0.9", web+":5432"))),
			drop:   packets(links("eth0", "eth0", direct(stranger, outside))),
		},
		{
			name: "while the engine has not answered a bridge is on neither side, but for those known before",
			change: func(inv *inventory.Snapshot) {
				inv.Engine, inv.Networks, inv.ForeignBridges = inventory.EngineUnknown, nil, []string{"virbr0"}
			},
			accept: packets(links("virbr0", "eth0", direct(stranger, outside)), direct(stranger, outside)),
			drop:   packets(out, links("eth0", "docker0", dnat(trusted, web+":80")), links("docker0", "", input(web, host1+":22"))),
		},
		{
			name:       "links that arrive over a bridge with a strange port are outside: FROM decides for them",
			containers: []inventory.Container{container("web", labels{"nftfw.expose.80": "office"}, "8080:80/tcp")},
			accept:     packets(links("br-taken", "docker0", dnat(office, web+":80")), links("br-taken", "", input(office, host1+":8080"))),
			drop:       packets(links("br-taken", "docker0", dnat(stranger, web+":80")), links("br-taken", "", input(stranger, host1+":8080")), links("br-taken", "", input(stranger, host1+":22"))),
		},
	})
}

func TestContainersToHost(t *testing.T) {
	c := []inventory.Container{
		on(container("app", labels{"nftfw.expose": "none"}, "8080:80/tcp", "8081:81/tcp", "9081:81/tcp", "127.0.0.1:8082:82/tcp"), endpoint("n-app", app, app6)),
	}
	in := func(p rs.Packet) rs.Packet { return links("docker0", "", p) }
	across := func(p rs.Packet) rs.Packet { return links("docker0", "br-app", p) }
	hairpin := func(p rs.Packet) rs.Packet { return links("br-app", "br-app", p) }
	var (
		toHost      = packets(in(input(web, host1+":5432")), in(input(web, host1+":8080")), in(input(web6, "["+host6+"]:5432")))
		dns         = packets(in(input(web, host1+":53/udp")), in(input(web6, "["+host6+"]:53/udp")))
		published   = packets(across(dnat(web, app+":80")), hairpin(dnat(app, app+":80")), across(dnat(web6, "["+app6+"]:80")))
		publishedBy = packets(across(dnat(web, app+":81")), hairpin(dnat(app, app+":81")))
		peers       = packets(across(direct(web, app+":80")), hairpin(direct("172.20.0.9", app+":5432")), links("docker0", "eth0", direct(web, "198.51.100.7:80")))
	)
	run(t, []verdicts{
		{
			name: "containers are not FROM: they reach the host and its published ports by default", containers: c,
			accept: packets(toHost, dns, published, publishedBy, peers),
			drop:   packets(in(input(web, "127.0.0.1:5432")), across(through("127.0.0.1", dnat(web, app+":82"))), in(input(web6, "[::1]:5432"))),
		},
		{
			name: "to_host: none, for published ports that Docker forwards as well", policy: "containers: {to_host: none}", containers: c,
			accept: packets(peers, icmp(8, in(input(web, host1+"/icmp")))),
			drop:   packets(toHost, dns, published, publishedBy),
		},
		{
			name: "to_host: a list of the host's ports", policy: "containers: {to_host: [53/udp, 8080/tcp, 8081/tcp]}", containers: c,
			accept: packets(dns, published, peers, in(input(web, host1+":8080"))),
			drop:   packets(in(input(web, host1+":5432")), in(input(web, host1+":53/tcp")), publishedBy, in(input(web, host1+":9081"))),
		},
		{
			name: "trusted and host.allow are not asked for containers", policy: "containers: {to_host: none}\nhost: {default: accept, allow: [{ports: [5432/tcp], from: any}]}", containers: c,
			drop: packets(toHost, in(input(trusted, host1+":5432"))),
		},
		{
			name: "to_host leaves alone what the host's own rules send elsewhere", policy: "containers: {to_host: none}",
			accept: packets(links("docker0", "eth0", dnat(web, "198.51.100.7:53/udp"))),
		},
	})
}
