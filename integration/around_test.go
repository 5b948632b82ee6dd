package integration

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/nftfw/nftfw/integration/lab"
)

// witness counts, on the host, what arrives by eth0 and what of it is let
// through: behind nftfw's chains and ahead of Docker's. What no policy refuses is
// not counted.
const witness = `table inet witness {
	counter arrived { }
	counter passed { }
	chain arrives { type filter hook prerouting priority -500; iifname "eth0" jump count_arrived; }
	chain forwarded { type filter hook forward priority -5; iifname "eth0" jump count_passed; }
	chain accepted { type filter hook input priority -5; iifname "eth0" jump count_passed; }
	chain count_arrived {
		icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, mld-listener-report, mld2-listener-report } return
		meta l4proto igmp return
		counter name "arrived"
	}
	chain count_passed {
		icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, mld-listener-report, mld2-listener-report } return
		meta l4proto igmp return
		counter name "passed"
	}
}`

// counters reads the witness.
func (s *set) counters() (arrived, passed int) {
	s.t.Helper()
	out, err := s.Host.Run(s.ctx(), "nft", "--json", "list", "counters", "table", "inet", "witness")
	if err != nil {
		s.t.Fatal(err)
	}
	var list struct {
		Nftables []struct {
			Counter struct {
				Name    string
				Packets int
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		s.t.Fatal(err)
	}
	for _, c := range list.Nftables {
		switch c.Counter.Name {
		case "arrived":
			arrived = c.Counter.Packets
		case "passed":
			passed = c.Counter.Packets
		}
	}
	return arrived, passed
}

// attempt is one way to get around a firewall.
type attempt struct {
	name    string
	packets [][]byte
}

// packer makes the transport headers of packets from one source port. Each round
// has another, so that none goes on with connections of the one before.
type packer uint16

func (k packer) tcp(from, to netip.Addr, port uint16, flags uint8) []byte {
	return lab.TCP(netip.AddrPortFrom(from, uint16(k)), netip.AddrPortFrom(to, port), flags)
}

func (k packer) udp(from, to netip.Addr, port uint16) []byte {
	return lab.UDP(netip.AddrPortFrom(from, uint16(k)), netip.AddrPortFrom(to, port))
}

// attempts are packets for the ports of the host and the container's own
// addresses that a stranger has no permission for.
func (s *set) attempts(web *lab.Container, k packer) []attempt {
	var out []attempt
	add := func(name string, packets ...lab.IPPacket) {
		a := attempt{name: name}
		for _, p := range packets {
			a.packets = append(a.packets, p.Bytes())
		}
		out = append(out, a)
	}
	for _, to := range []netip.Addr{lab.HostV4, web.Addr4("dual"), lab.HostV6, web.Addr6("dual")} {
		from, port, at := s.stranger.V4, uint16(8080), "host"
		if to.Is6() {
			from = s.stranger.V6
		}
		if to != lab.HostV4 && to != lab.HostV6 {
			port, at = 80, "container"
		}
		at = fmt.Sprintf("%s at %s: ", at, to)
		ip := func(proto uint8, payload []byte) lab.IPPacket {
			return lab.IPPacket{Src: from, Dst: to, Proto: proto, Payload: payload}
		}
		const fin, syn, rst, psh, ack, urg = 1, 2, 4, 8, 16, 32
		for name, flags := range map[string]uint8{"SYN": syn, "ACK": ack, "SYN ACK": syn | ack, "FIN": fin, "RST": rst, "no flags": 0, "all flags": fin | syn | rst | psh | ack | urg} {
			add(at+"TCP "+name, ip(lab.ProtoTCP, k.tcp(from, to, port, flags)))
		}
		udp := k.udp(from, to, port)
		add(at+"UDP", ip(lab.ProtoUDP, udp))
		add(at+"UDP-Lite", ip(lab.ProtoUDPLite, lab.UDPLite(netip.AddrPortFrom(from, uint16(k)), netip.AddrPortFrom(to, port))))
		add(at+"SCTP", ip(lab.ProtoSCTP, lab.SCTP(uint16(k), port)))
		for name, proto := range map[string]uint8{"IPv4 in IP": 4, "IPv6 in IP": 41, "GRE": 47, "ESP": 50, "AH": 51, "DCCP": 33, "an unknown protocol": 253} {
			add(at+name, ip(proto, append([]byte{0, 0, 8, 0, 0, 0, 0, 1}, udp...)))
		}
		out = append(out, fragmented(k, at, from, to, port)...)
		if to.Is4() {
			out = append(out, s.attempts4(k, at, from, to, port, web)...)
		} else {
			out = append(out, attempts6(k, at, from, to, port)...)
		}
	}
	return out
}

// fragmented splits what else would go in one piece.
func fragmented(k packer, at string, from, to netip.Addr, port uint16) []attempt {
	var out []attempt
	split := func(name string, proto uint8, payload []byte, order ...int) {
		a := attempt{name: at + name}
		for _, i := range order {
			p := lab.IPPacket{Src: from, Dst: to, Proto: proto, Payload: payload[i*8 : min(i*8+8, len(payload))]}
			more := i*8+8 < len(payload)
			if to.Is4() {
				p.Offset, p.More = uint16(i), more
			} else {
				p.Extensions = []lab.Extension{lab.Fragment(uint16(i), more)}
			}
			a.packets = append(a.packets, p.Bytes())
		}
		out = append(out, a)
	}
	syn := k.tcp(from, to, port, 2)
	split("TCP in tiny fragments", lab.ProtoTCP, syn, 0, 1, 2)
	split("TCP in fragments, the last first", lab.ProtoTCP, syn, 2, 1, 0)
	split("UDP in fragments", lab.ProtoUDP, k.udp(from, to, port), 0, 1, 2, 3, 4)
	split("a fragment alone, not the first", lab.ProtoUDP, k.udp(from, to, port), 3)
	return out
}

func (s *set) attempts4(k packer, at string, from, to netip.Addr, port uint16, web *lab.Container) []attempt {
	var out []attempt
	add := func(name string, p lab.IPPacket) { out = append(out, attempt{at + name, [][]byte{p.Bytes()}}) }
	syn := func(from, to netip.Addr) lab.IPPacket {
		return lab.IPPacket{Src: from, Dst: to, Proto: lab.ProtoTCP, Payload: k.tcp(from, to, port, 2)}
	}
	hop := web.Addr4("dual").As4()
	for name, options := range map[string][]byte{
		"record route":        {7, 7, 4, 0, 0, 0, 0, 0},
		"loose source route":  {131, 7, 4, hop[0], hop[1], hop[2], hop[3], 0},
		"strict source route": {137, 7, 4, hop[0], hop[1], hop[2], hop[3], 0},
		"router alert":        {148, 4, 0, 0},
	} {
		p := syn(from, to)
		p.Options = options
		add("option "+name, p)
	}
	for name, spoofed := range map[string]netip.Addr{
		"the host's": lab.HostV4, "the container's": web.Addr4("dual"), "its gateway's": netip.MustParseAddr("172.30.0.1"),
		"127.0.0.1": netip.MustParseAddr("127.0.0.1"), "0.0.0.0": netip.IPv4Unspecified(), "a multicast address": netip.MustParseAddr("224.0.0.1"),
		"the broadcast address": netip.MustParseAddr("255.255.255.255"),
	} {
		add("source is "+name, syn(spoofed, to))
		add("source is "+name+", UDP", lab.IPPacket{Src: spoofed, Dst: to, Proto: lab.ProtoUDP, Payload: k.udp(spoofed, to, port)})
	}
	for name, kind := range map[string]uint8{"redirect": 5, "timestamp request": 13, "mask request": 17} {
		add("ICMP "+name, lab.IPPacket{Src: from, Dst: to, Proto: lab.ProtoICMP, Payload: lab.ICMP(from, to, kind, 0, make([]byte, 32))})
	}
	if to == lab.HostV4 {
		for name, a := range map[string]string{
			"the wire's broadcast address": "198.18.255.255", "all": "255.255.255.255", "0.0.0.0": "0.0.0.0", "all hosts": "224.0.0.1",
			"mDNS": "224.0.0.251", "the containers' broadcast address": "172.30.0.255", "the containers' gateway": "172.30.0.1", "docker0": "172.17.0.1", "127.0.0.1": "127.0.0.1",
		} {
			d := netip.MustParseAddr(a)
			add("to "+name+" instead", lab.IPPacket{Src: from, Dst: d, Proto: lab.ProtoUDP, Payload: k.udp(from, d, port)})
			add("TCP to "+name+" instead", syn(from, d))
		}
	} else {
		inner := lab.IPPacket{Src: to, Dst: from, Proto: lab.ProtoUDP, Payload: k.udp(to, from, port)}.Bytes()
		add("ICMP error about a packet that it never sent", lab.IPPacket{Src: from, Dst: to, Proto: lab.ProtoICMP, Payload: lab.ICMP(from, to, 3, 3, append(make([]byte, 4), inner...))})
		add("ping", lab.IPPacket{Src: from, Dst: to, Proto: lab.ProtoICMP, Payload: lab.ICMP(from, to, 8, 0, make([]byte, 32))})
	}
	return out
}

func attempts6(k packer, at string, from, to netip.Addr, port uint16) []attempt {
	var out []attempt
	add := func(name string, p lab.IPPacket) { out = append(out, attempt{at + name, [][]byte{p.Bytes()}}) }
	syn := func(from, to netip.Addr, x ...lab.Extension) lab.IPPacket {
		return lab.IPPacket{Src: from, Dst: to, Proto: lab.ProtoTCP, Payload: k.tcp(from, to, port, 2), Extensions: x}
	}
	pad := []byte{0, 0, 1, 4, 0, 0, 0, 0}
	options := lab.Extension{Number: 60, Bytes: pad}
	add("hop-by-hop options", syn(from, to, lab.Extension{Number: 0, Bytes: pad}))
	add("destination options", syn(from, to, options))
	add("many destination options", syn(from, to, slices.Repeat([]lab.Extension{options}, 12)...))
	add("an atomic fragment", syn(from, to, lab.Fragment(0, false)))
	add("options behind a fragment header", syn(from, to, lab.Fragment(0, false), options))
	add("options before and behind a fragment header", syn(from, to, options, lab.Fragment(0, false), options))
	for name, kind := range map[string]byte{"0": 0, "2 of mobile IPv6": 2, "3 of RPL": 3, "4 of segment routing": 4} {
		route := append([]byte{0, 2, kind, 1, 0, 0, 0, 0}, to.AsSlice()...)
		add("routing header, type "+name, syn(from, to, lab.Extension{Number: 43, Bytes: route}))
		spent := append([]byte{0, 2, kind, 0, 0, 0, 0, 0}, to.AsSlice()...)
		add("spent routing header, type "+name, syn(from, to, lab.Extension{Number: 43, Bytes: spent}))
	}
	add("an authentication header", syn(from, to, lab.Extension{Number: 51, Bytes: append([]byte{0, 4}, make([]byte, 22)...)}))
	add("mobility header", syn(from, to, lab.Extension{Number: 135, Bytes: make([]byte, 8)}))
	for name, a := range map[string]string{
		"::1": "::1", "::": "::", "the host's": lab.HostV6.String(), "trusted, mapped": "::ffff:198.18.0.10", "6to4 of a trusted one": "2002:c612:a::1",
		"a multicast address": "ff02::1", "link-local": "fe80::66",
	} {
		spoofed := netip.MustParseAddr(a)
		add("source is "+name, syn(spoofed, to))
		add("source is "+name+", UDP", lab.IPPacket{Src: spoofed, Dst: to, Proto: lab.ProtoUDP, Payload: k.udp(spoofed, to, port)})
	}
	if to == lab.HostV6 {
		for name, a := range map[string]string{
			"all nodes": "ff02::1", "all routers": "ff02::2", "mDNS": "ff02::fb", "the wire's routers": "fd00:18::", "the containers' routers": "fd00:d0c:a8::",
			"the containers' gateway": "fd00:d0c:a8::1", "::1": "::1", "the mapped address": "::ffff:198.18.0.1",
		} {
			d := netip.MustParseAddr(a)
			add("to "+name+" instead", lab.IPPacket{Src: from, Dst: d, Proto: lab.ProtoUDP, Payload: k.udp(from, d, port)})
			add("TCP to "+name+" instead", syn(from, d))
		}
	} else {
		add("ping", lab.IPPacket{Src: from, Dst: to, Proto: lab.ProtoICMPv6, Payload: lab.ICMP(from, to, 128, 0, make([]byte, 32))})
	}
	return out
}

// Packets that no ordinary client sends: malformed, split, tunnelled, with
// addresses that are not the sender's. Without nftfw most of them get through to
// Docker's chains or the host's sockets; with it none does, by whatever rules of
// others connection tracking is led astray.
func TestAroundTheFirewall(t *testing.T) {
	for name, flags := range map[string][]string{"proxied IPv6": nil, "forwarded IPv6": dualStack} {
		t.Run(name, func(t *testing.T) {
			s := bare(t, flags...)
			s.network("dual", "172.30.0.0/24", "fd00:d0c:a8::/64")
			web := s.run("web", "--network", "dual", "-p", "8080:80", "-p", "8080:80/udp")
			s.open(s.stranger.Namespace, "web", hostPorts("8080"))
			if err := s.Host.NFT(s.ctx(), witness); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := s.Host.NFT(context.Background(), "delete table inet witness"); err != nil {
					t.Error(err)
				}
			})
			attempts := s.attempts(web, 40000)
			_, before := s.counters()
			s.fire(attempts)
			_, passed := s.counters()
			t.Logf("without nftfw %d packets of %d attempts pass", passed-before, len(attempts))
			// From release 28 on Docker drops what is sent straight to containers.
			if passed-before < len(attempts)/3 {
				t.Error("too few: this tests little")
			}
			s.start("version: 1" + trust)
			const theirs = "table inet theirs {\n chain pre { type filter hook prerouting priority -300; iifname \"eth0\" %s\n }\n}"
			for i, rule := range []string{"", "notrack", "ct zone set 7"} {
				if rule != "" {
					if err := s.Host.NFT(s.ctx(), fmt.Sprintf(theirs, rule)); err != nil {
						t.Fatal(err)
					}
				}
				for name := range s.try(s.attempts(web, packer(41000+i))) {
					t.Errorf("got through (%s): %s", cmp.Or(rule, "no rules of others"), name)
				}
				if rule != "" {
					if err := s.Host.NFT(s.ctx(), "delete table inet theirs"); err != nil {
						t.Fatal(err)
					}
				}
			}
			s.open(s.permitted.Namespace, "web", hostPorts("8080"))
		})
	}
}

// try makes all attempts and gives those of which a packet was let through. It
// makes them together, and each again alone only where one of many got through.
func (s *set) try(attempts []attempt) map[string]bool {
	s.t.Helper()
	_, before := s.counters()
	s.fire(attempts)
	if _, passed := s.counters(); passed == before {
		return nil
	}
	if len(attempts) == 1 {
		return map[string]bool{attempts[0].name: true}
	}
	out := s.try(attempts[:len(attempts)/2])
	if out == nil {
		out = map[string]bool{}
	}
	for name := range s.try(attempts[len(attempts)/2:]) {
		out[name] = true
	}
	return out
}

// fire sends the packets of attempts and waits until all have arrived.
func (s *set) fire(attempts []attempt) {
	s.t.Helper()
	mac, err := s.Host.MAC(s.ctx(), "eth0")
	if err != nil {
		s.t.Fatal(err)
	}
	before, _ := s.counters()
	var packets [][]byte
	for _, a := range attempts {
		packets = append(packets, a.packets...)
	}
	if err := s.stranger.SendFrames("eth0", mac, packets...); err != nil {
		s.t.Fatal(err)
	}
	// Some never get as far as the first hook: no IP header of theirs is valid.
	last, quiet := before, 0
	s.eventually(5*time.Second, func() error {
		arrived, _ := s.counters()
		if arrived == last && (arrived-before >= len(packets)*3/4 || quiet > 25) {
			return nil
		}
		if arrived == last {
			quiet++
		} else {
			last, quiet = arrived, 0
		}
		return fmt.Errorf("%d packets of %d have arrived", arrived-before, len(packets))
	})
}

// A container that may write any source address (CAP_NET_RAW, which Docker gives)
// does not borrow the egress or the project of one on another bridge.
func TestBorrowedAddress(t *testing.T) {
	s := bare(t)
	for i, name := range []string{"one", "two"} {
		s.network(name, fmt.Sprintf("172.30.%d.0/24", i+1), fmt.Sprintf("fd00:d0c:b%d::/64", i+1), "-o", "com.docker.network.bridge.name=dk"+name)
	}
	narrow := s.run("narrow", "--network", "one", "--label", "nftfw.egress=none")
	wide := s.run("wide", "--network", "two")
	if err := s.Host.NFT(s.ctx(), `table inet witness {
		counter arrived { }
		counter passed { }
		chain arrives { type filter hook prerouting priority -500; iifname { "dkone", "dktwo" } th dport 7000 counter name "arrived"; }
		chain forwarded { type filter hook forward priority -5; iifname { "dkone", "dktwo" } th dport 7000 counter name "passed"; }
	}`); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Host.NFT(context.Background(), "delete table inet witness"); err != nil {
			t.Error(err)
		}
	})
	// send has a container send datagrams to the outside, and says how many were
	// let through.
	send := func(by *lab.Container, bridge string, k packer, sources ...netip.Addr) int {
		t.Helper()
		mac, err := s.Host.MAC(s.ctx(), bridge)
		if err != nil {
			t.Fatal(err)
		}
		arrivedBefore, passedBefore := s.counters()
		for _, src := range sources {
			to := s.routed.V4
			if src.Is6() {
				to = s.routed.V6
			}
			if err := by.SendFrames("eth0", mac, lab.IPPacket{Src: src, Dst: to, Proto: lab.ProtoUDP, Payload: k.udp(src, to, 7000)}.Bytes()); err != nil {
				t.Fatal(err)
			}
		}
		s.eventually(openWithin, func() error {
			if arrived, _ := s.counters(); arrived-arrivedBefore != len(sources) {
				return fmt.Errorf("%d of %d packets arrived", arrived-arrivedBefore, len(sources))
			}
			return nil
		})
		_, passed := s.counters()
		return passed - passedBefore
	}
	own := []netip.Addr{narrow.Addr4("one"), narrow.Addr6("one")}
	borrowed := []netip.Addr{wide.Addr4("two"), wide.Addr6("two")}
	if n := send(narrow, "dkone", 40000, slices.Concat(own, borrowed)...); n != 4 {
		t.Fatalf("without nftfw %d of 4 packets pass", n)
	}
	s.start("version: 1\n")
	if n := send(narrow, "dkone", 41000, slices.Concat(own, borrowed)...); n != 0 {
		t.Errorf("%d packets of a container with no egress passed", n)
	}
	if n := send(wide, "dktwo", 42000, borrowed...); n != 2 {
		t.Errorf("%d of 2 packets of the container whose addresses these are passed", n)
	}
}
