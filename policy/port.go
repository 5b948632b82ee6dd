package policy

import (
	"fmt"
	"strconv"
	"strings"
)

// IANA protocol numbers of the protocols that have ports.
// See https://www.iana.org/assignments/protocol-numbers.
const (
	protoDCCP    = 33
	protoSCTP    = 132
	protoUDPLite = 136
)

// portProtocols are the protocols whose ports can be named, and the word for
// each.
var portProtocols = map[string]uint8{
	"tcp":     protoTCP,
	"udp":     protoUDP,
	"dccp":    protoDCCP,
	"sctp":    protoSCTP,
	"udplite": protoUDPLite,
}

// portlessProtocols are the protocols without ports that have a word; the
// others are written NUMBER/proto. Where a protocol has two words String gives
// the one that portlessNames lists.
var portlessProtocols = map[string]uint8{
	"icmp":      1,
	"igmp":      2,
	"ipip":      4,
	"ipencap":   4,
	"gre":       47,
	"esp":       50,
	"ah":        51,
	"icmpv6":    58,
	"ipv6-icmp": 58,
	"eigrp":     88,
	"ospf":      89,
	"etherip":   97,
	"pim":       103,
	"vrrp":      112,
	"l2tp":      115,
}

var portlessNames = map[uint8]string{
	1: "icmp", 2: "igmp", 4: "ipip", 47: "gre", 50: "esp", 51: "ah", 58: "icmpv6",
	88: "eigrp", 89: "ospf", 97: "etherip", 103: "pim", 112: "vrrp", 115: "l2tp",
}

const portForms = "write a port such as 443/tcp, a range such as 8000-8010/udp, or a protocol such as esp or 47/proto"

// ParsePort reads PORT[/PROTO], PORT-PORT[/PROTO], "*", the name of a protocol
// without ports, or NUMBER/proto. A port without a protocol is tcp.
func ParsePort(s string) (PortSpec, error) {
	if s == "*" {
		return PortSpec{All: true}, nil
	}
	ports, proto, slash := strings.Cut(s, "/")
	switch {
	case s == "":
		return PortSpec{}, fmt.Errorf("the port is empty: %s", portForms)
	case slash && proto == "proto":
		return parseProtocol(s, ports)
	case !slash && !startsWithDigit(ports):
		return parsePortless(s)
	case !slash:
		proto = "tcp"
	}
	number, ok := portProtocols[strings.ToLower(proto)]
	if !ok {
		if _, portless := portlessProtocols[strings.ToLower(proto)]; portless {
			return PortSpec{}, fmt.Errorf("port %s: %s has no ports: write %[2]s alone", quote(s), strings.ToLower(proto))
		}
		return PortSpec{}, fmt.Errorf("port %s: unknown protocol %s: write tcp, udp, sctp, dccp or udplite%s",
			quote(s), quote(proto), didYouMean(proto, keysOf(portProtocols)))
	}
	low, high, err := parsePortRange(s, ports)
	return PortSpec{Proto: number, Low: low, High: high}, err
}

// parseProtocol reads the NUMBER of NUMBER/proto.
func parseProtocol(text, number string) (PortSpec, error) {
	n, err := strconv.ParseUint(number, 10, 8)
	if err != nil || !plainNumber(number) {
		return PortSpec{}, fmt.Errorf("protocol %s: write a number from 0 to 255, as in 47/proto", quote(text))
	}
	for name, p := range portProtocols {
		if p == uint8(n) {
			return PortSpec{}, fmt.Errorf("protocol %s is %s, which has ports: write 1-65535/%[2]s for all of them", quote(text), name)
		}
	}
	return PortSpec{Proto: uint8(n), Portless: true}, nil
}

// parsePortless reads the name of a protocol without ports.
func parsePortless(s string) (PortSpec, error) {
	word := strings.ToLower(s)
	if n, ok := portlessProtocols[word]; ok {
		return PortSpec{Proto: n, Portless: true}, nil
	}
	if _, ok := portProtocols[word]; ok {
		return PortSpec{}, fmt.Errorf("%s needs a port: write one such as 443/%s, or 1-65535/%[2]s for all of them", quote(s), word)
	}
	return PortSpec{}, fmt.Errorf("%s is not a port or protocol: %s%s", quote(s), portForms, didYouMean(s, keysOf(portlessProtocols)))
}

// parsePortRange reads PORT or PORT-PORT out of text.
func parsePortRange(text, ports string) (low, high uint16, err error) {
	first, last, isRange := strings.Cut(ports, "-")
	if low, err = parsePortNumber(text, first); err != nil {
		return 0, 0, err
	}
	if !isRange {
		return low, low, nil
	}
	if high, err = parsePortNumber(text, last); err != nil {
		return 0, 0, err
	}
	if high < low {
		return 0, 0, fmt.Errorf("port range %s ends before it begins: write %d-%d", quote(text), high, low)
	}
	return low, high, nil
}

func parsePortNumber(text, number string) (uint16, error) {
	if !plainNumber(number) {
		return 0, fmt.Errorf("port %s: %s is not a number: %s", quote(text), quote(number), portForms)
	}
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("port %s: %s is out of range: ports go from 1 to 65535", quote(text), quote(number))
	}
	return uint16(n), nil
}

// plainNumber reports whether s is made of decimal digits without a leading
// zero, so that nobody reads it as octal.
func plainNumber(s string) bool {
	if s == "" || len(s) > 1 && s[0] == '0' {
		return false
	}
	return strings.Trim(s, "0123456789") == ""
}

func startsWithDigit(s string) bool { return s != "" && s[0] >= '0' && s[0] <= '9' }

// String returns s in the form that ParsePort reads.
func (s PortSpec) String() string {
	switch {
	case s.All:
		return "*"
	case s.Portless:
		if name, ok := portlessNames[s.Proto]; ok {
			return name
		}
		return fmt.Sprintf("%d/proto", s.Proto)
	case s.Low == s.High:
		return fmt.Sprintf("%d/%s", s.Low, protocolName(s.Proto))
	default:
		return fmt.Sprintf("%d-%d/%s", s.Low, s.High, protocolName(s.Proto))
	}
}

// protocolName is the word for a protocol that has ports, and its number for
// any other.
func protocolName(proto uint8) string {
	for name, p := range portProtocols {
		if p == proto {
			return name
		}
	}
	return strconv.Itoa(int(proto))
}

// comparePorts orders by the number of ports covered, then by the first port,
// then by protocol.
func comparePorts(a, b PortSpec) int {
	for _, d := range [...]int{
		a.Width() - b.Width(),
		int(a.Low) - int(b.Low),
		int(a.Proto) - int(b.Proto),
		boolInt(a.All) - boolInt(b.All),
	} {
		if d != 0 {
			return d
		}
	}
	return 0
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}
