package migrate

import (
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/nftfw/nftfw/pkg/addrset"
)

// doubtful is a condition of which it is not known here when it holds.
func doubtful(text string) condition {
	return condition{text: text, ask: func(packet) answer { return maybe }}
}

// never is the answer to what no packet is that is asked about: they have no
// routing header, and connection tracking has put fragments together ahead of
// every rule.
func never(packet) answer { return no }

// inDoubt says why a rule was not carried over.
func inDoubt(option string) string {
	switch option {
	case "-d", "--dst-range":
		return "a policy names containers and ports, not destination addresses: write a rule with match"
	case "--ctorigdstport", "--ctorigdstport of another port":
		return "a policy speaks of the container's own port, not of the host's: write a rule with that port"
	case "--dst-type", "--dport", "--dports", "--destination-port", "--destination-ports":
		return "before Docker translates a destination it is the host's: write a rule with the container's own port"
	case "--match-set":
		return "the set was not given, or has entries that end: give the output of ipset save, and add what ends with nftfw sets add --timeout"
	case "-o":
		return "a policy does not choose between Docker's bridges: write a rule with match"
	case "--limit", "--hashlimit-upto", "--hashlimit-above", "--update", "--rcheck", "LIMIT":
		return "a policy does not limit rates"
	}
	return "a policy has nothing like " + option
}

// linkName are the names of links, and beginnings of them, that a policy takes.
var linkName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^([A-Za-z0-9_.@-]{1,15}\+?|\+)$`) })

// link remembers the argument of -i or -o, unless no policy takes such a name.
func (s *source) link(name string) (string, bool) {
	if !linkName().MatchString(name) {
		return "", false
	}
	remember(&s.links, name)
	return name, true
}

// readCondition reads an option and its argument.
func (s *source) readCondition(option string, arg func() string, is6 bool) condition {
	c := condition{text: option}
	switch option {
	case "-s", "--source":
		c.text = "-s"
		c.ask = s.fromRange(prefixes(arg(), is6))
	case "--src-range":
		c.ask = s.fromRange(prefixes(arg(), is6))
	case "-d", "--destination":
		c.text = "-d"
		c.ask = toRange(prefixes(arg(), is6))
	case "-i", "--in-interface":
		if link, ok := s.link(arg()); ok {
			c.ask = func(p packet) answer { return known(linkMatches(link, p.in)) }
		}
	case "-o", "--out-interface":
		c.text = "-o"
		if link, ok := s.link(arg()); ok {
			c.ask = leavesBy(link)
		}
	case "-p", "--protocol":
		c.ask = s.ofProtocol(arg())
	case "--dport", "--dports", "--destination-port", "--destination-ports":
		c.ask = s.toPorts(arg())
	case "--sport", "--sports":
		c.ask = anySourcePort(arg())
	case "--state", "--ctstate":
		c.ask = inState(strings.Split(arg(), ","))
	case "--ctdir":
		direction := arg()
		c.ask = func(packet) answer { return known(strings.EqualFold(direction, "ORIGINAL")) }
	case "--ctorigdst":
		c.ask = s.askedFor(arg())
	case "--match-set":
		c.ask = s.inSet(arg(), arg(), is6)
	case "--dst-type":
		c.ask = ofAddressType(strings.Split(arg(), ","))
	case "--icmp-type", "--icmpv6-type":
		c.ask = ofICMPType(arg())
	case "-f", "--fragment":
		c.ask = never
	case "--syn":
		c.ask = func(packet) answer { return yes } // the first packet of a connection is one
	case "--tcp-flags":
		c.ask = firstFlags(arg(), arg())
	case "--limit-burst", "--physdev-is-bridged":
		// Parts of other conditions, which are in doubt already.
		return doubtful(option)
	default:
		return doubtful(option)
	}
	if c.ask == nil {
		return doubtful(option)
	}
	return c
}

// prefixes reads what iptables prints as an address, with a mask in either
// form, or as a range. It gives nil for what it cannot read.
func prefixes(text string, is6 bool) []addrset.Range {
	addr, mask, ok := strings.Cut(text, "/")
	if ok && strings.Contains(mask, ".") && !is6 {
		m, err := netip.ParseAddr(mask)
		if err != nil || !m.Is4() {
			return nil
		}
		b := m.As4()
		ones, bits := net.IPv4Mask(b[0], b[1], b[2], b[3]).Size()
		if bits == 0 {
			return nil // 255.0.255.0 and its like
		}
		text = addr + "/" + strconv.Itoa(ones)
	}
	r, err := addrset.ParseRange(text)
	if err != nil || r.Is4() == is6 {
		return nil
	}
	return []addrset.Range{r}
}

// fromRange asks for the source.
func (s *source) fromRange(list []addrset.Range) func(packet) answer {
	if list == nil {
		return nil
	}
	s.ranges = append(s.ranges, list)
	return func(p packet) answer { return known(covers(list, p.src)) }
}

// notHere are destinations that are no address of a host or a container.
var notHere = []netip.Prefix{
	netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("224.0.0.0/4"),
	netip.MustParsePrefix("255.255.255.255/32"), netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("ff00::/8"),
}

// toRange asks for the destination, of which is known only where it is not.
func toRange(list []addrset.Range) func(packet) answer {
	if list == nil {
		return nil
	}
	r := list[0]
	elsewhere := slices.ContainsFunc(notHere, func(p netip.Prefix) bool {
		whole := addrset.RangeOf(p)
		return whole.Is4() == r.Is4() && whole.Contains(r.From) && whole.Contains(r.To)
	})
	return func(packet) answer {
		switch {
		case r == everyone(!r.Is4()):
			return yes
		case elsewhere:
			return no
		}
		return maybe
	}
}

// leavesBy asks for the link by which the packet leaves.
func leavesBy(link string) func(packet) answer {
	return func(p packet) answer {
		switch {
		case p.kind == toHost:
			return no
		case p.kind == fromContainer || p.out == "":
			return maybe
		}
		return known(linkMatches(link, p.out))
	}
}

// protocols are the names of iptables for protocols, beyond numbers.
var protocols = map[string]uint8{
	"icmp": 1, "igmp": 2, "ipencap": 4, "tcp": 6, "udp": 17, "dccp": 33, "gre": 47, "esp": 50, "ah": 51,
	"ipv6-icmp": 58, "icmpv6": 58, "eigrp": 88, "ospf": 89, "etherip": 97, "pim": 103, "vrrp": 112,
	"l2tp": 115, "sctp": 132, "udplite": 136,
}

func (s *source) ofProtocol(word string) func(packet) answer {
	if word == "all" || word == "0" {
		return func(packet) answer { return yes }
	}
	proto, ok := protocols[word]
	if !ok {
		n, err := strconv.ParseUint(word, 10, 8)
		if err != nil || n == anyProto {
			return nil
		}
		proto = uint8(n)
	}
	remember(&s.protos, proto)
	return func(p packet) answer { return known(p.proto == proto) }
}

// toPorts asks for the destination port: 80, 80:90, or a list of them.
func (s *source) toPorts(text string) func(packet) answer {
	list, ok := ports(text)
	if !ok {
		return nil
	}
	for _, r := range list {
		remember(&s.ports, r)
	}
	return func(p packet) answer {
		if p.port == 0 {
			return maybe
		}
		return known(slices.ContainsFunc(list, func(r portRange) bool { return r.low <= p.port && p.port <= r.high }))
	}
}

func ports(text string) ([]portRange, bool) {
	var list []portRange
	for item := range strings.SplitSeq(text, ",") {
		first, last, isRange := strings.Cut(item, ":")
		if !isRange {
			last = first
		}
		low, err := strconv.ParseUint(first, 10, 16)
		if first == "" && isRange {
			low, err = 0, nil
		}
		high, err2 := strconv.ParseUint(last, 10, 16)
		if last == "" && isRange {
			high, err2 = 1<<16-1, nil
		}
		if err != nil || err2 != nil || high < low || high == 0 {
			return nil, false
		}
		list = append(list, portRange{uint16(max(low, 1)), uint16(high)})
	}
	return list, true
}

func anySourcePort(text string) func(packet) answer {
	switch text {
	case "0:65535", "1:65535", ":":
		return func(packet) answer { return yes }
	}
	return nil
}

// inState asks for the state of the connection: the packets are the first of
// theirs. Those to containers are translated, as published ports are.
func inState(states []string) func(packet) answer {
	return func(p packet) answer {
		for _, state := range states {
			if state == "NEW" || state == "DNAT" && p.kind == toContainer && !p.untranslated {
				return yes
			}
		}
		if slices.Contains(states, "UNTRACKED") || slices.Contains(states, "SNAT") {
			return maybe
		}
		return no
	}
}

// askedFor asks for the address that the packet had before it was translated.
func (s *source) askedFor(text string) func(packet) answer {
	list := prefixes(text, strings.Contains(text, ":"))
	if list == nil || list[0].From != list[0].To {
		return nil
	}
	a := list[0].From
	remember(&s.hosts, a)
	return func(p packet) answer {
		if p.kind != toContainer {
			return maybe
		}
		return known(p.host == a)
	}
}

func ofAddressType(types []string) func(packet) answer {
	return func(p packet) answer {
		switch {
		case p.kind == fromContainer:
			return maybe
		case slices.Contains(types, "LOCAL") && p.untranslated:
			return maybe // the host's address, unless the network does no NAT
		case slices.Contains(types, "LOCAL"):
			return known(p.kind == toHost)
		case slices.Contains(types, "UNICAST"):
			return maybe
		}
		return no // MULTICAST, BROADCAST and what else no policy speaks of
	}
}

// firstFlags asks for the flags of TCP. The first packet of a connection has SYN,
// and none of the others that iptables knows.
func firstFlags(mask, set string) func(packet) answer {
	want := "NONE"
	if mask == "ALL" || slices.Contains(strings.Split(mask, ","), "SYN") {
		want = "SYN"
	}
	return func(packet) answer { return known(set == want) }
}

// ofICMPType asks for the type. Packets of ICMP stand for the echo request.
func ofICMPType(text string) func(packet) answer {
	switch text {
	case "8", "8/0", "128", "echo-request", "any":
		return func(packet) answer { return yes }
	}
	return func(packet) answer { return no }
}
