package ruleset

import "strconv"

// Protocol numbers that the text of rules depends on, assigned by IANA.
const (
	protoICMP    = 1
	protoTCP     = 6
	protoUDP     = 17
	protoDCCP    = 33
	protoICMPv6  = 58
	protoSCTP    = 132
	protoUDPLite = 136
)

// ProtocolName gives the name that nft prints for an IP protocol, or the
// number where it has none. nft asks /etc/protocols; the names here are those
// of Debian's netbase, whatever the machine at hand says, so that the same
// Table is the same text everywhere.
func ProtocolName(proto uint8) string {
	if name := protocolName(proto); name != "" {
		return name
	}
	return strconv.Itoa(int(proto))
}

// A table; a switch needs no mutable package state.
func protocolName(proto uint8) string {
	switch proto {
	case 0:
		return "ip"
	case protoICMP:
		return "icmp"
	case 2:
		return "igmp"
	case 3:
		return "ggp"
	case 4:
		return "ipencap"
	case 5:
		return "st"
	case protoTCP:
		return "tcp"
	case 8:
		return "egp"
	case 9:
		return "igp"
	case 12:
		return "pup"
	case protoUDP:
		return "udp"
	case 20:
		return "hmp"
	case 22:
		return "xns-idp"
	case 27:
		return "rdp"
	case 29:
		return "iso-tp4"
	case protoDCCP:
		return "dccp"
	case 36:
		return "xtp"
	case 37:
		return "ddp"
	case 38:
		return "idpr-cmtp"
	case 41:
		return "ipv6"
	case 43:
		return "ipv6-route"
	case 44:
		return "ipv6-frag"
	case 45:
		return "idrp"
	case 46:
		return "rsvp"
	case 47:
		return "gre"
	case 50:
		return "esp"
	case 51:
		return "ah"
	case 57:
		return "skip"
	case protoICMPv6:
		return "ipv6-icmp"
	case 59:
		return "ipv6-nonxt"
	case 60:
		return "ipv6-opts"
	case 73:
		return "rspf"
	case 81:
		return "vmtp"
	case 88:
		return "eigrp"
	case 89:
		return "ospf"
	case 93:
		return "ax.25"
	case 94:
		return "ipip"
	case 97:
		return "etherip"
	case 98:
		return "encap"
	case 103:
		return "pim"
	case 108:
		return "ipcomp"
	case 112:
		return "vrrp"
	case 115:
		return "l2tp"
	case 124:
		return "isis"
	case protoSCTP:
		return "sctp"
	case 133:
		return "fc"
	case 135:
		return "mobility-header"
	case protoUDPLite:
		return "udplite"
	case 137:
		return "mpls-in-ip"
	case 138:
		return "manet"
	case 139:
		return "hip"
	case 140:
		return "shim6"
	case 141:
		return "wesp"
	case 142:
		return "rohc"
	case 143:
		return "ethernet"
	}
	return ""
}

// hasPorts tells whether nft knows th sport and th dport under the protocol's
// own name.
func hasPorts(proto uint8) bool {
	switch proto {
	case protoTCP, protoUDP, protoDCCP, protoSCTP, protoUDPLite:
		return true
	}
	return false
}

// icmpTypeName is icmp_type_tbl of nftables, src/proto.c.
func icmpTypeName(t uint8) string {
	switch t {
	case 0:
		return "echo-reply"
	case 3:
		return "destination-unreachable"
	case 4:
		return "source-quench"
	case 5:
		return "redirect"
	case 8:
		return "echo-request"
	case 9:
		return "router-advertisement"
	case 10:
		return "router-solicitation"
	case 11:
		return "time-exceeded"
	case 12:
		return "parameter-problem"
	case 13:
		return "timestamp-request"
	case 14:
		return "timestamp-reply"
	case 15:
		return "info-request"
	case 16:
		return "info-reply"
	case 17:
		return "address-mask-request"
	case 18:
		return "address-mask-reply"
	}
	return strconv.Itoa(int(t))
}

// icmp6TypeName is icmp6_type_tbl of nftables, src/proto.c. Type 132 has two
// names there, and nft prints the first.
func icmp6TypeName(t uint8) string {
	switch t {
	case 1:
		return "destination-unreachable"
	case 2:
		return "packet-too-big"
	case 3:
		return "time-exceeded"
	case 4:
		return "parameter-problem"
	case 128:
		return "echo-request"
	case 129:
		return "echo-reply"
	case 130:
		return "mld-listener-query"
	case 131:
		return "mld-listener-report"
	case 132:
		return "mld-listener-done"
	case 133:
		return "nd-router-solicit"
	case 134:
		return "nd-router-advert"
	case 135:
		return "nd-neighbor-solicit"
	case 136:
		return "nd-neighbor-advert"
	case 137:
		return "nd-redirect"
	case 138:
		return "router-renumbering"
	case 141:
		return "ind-neighbor-solicit"
	case 142:
		return "ind-neighbor-advert"
	case 143:
		return "mld2-listener-report"
	}
	return strconv.Itoa(int(t))
}

func nfprotoName(n uint32) string {
	switch n {
	case NFProtoIPv4:
		return "ipv4"
	case NFProtoIPv6:
		return "ipv6"
	}
	return strconv.FormatUint(uint64(n), 10)
}

// stateName names one bit of ct state, ct_state_tbl of nftables, src/ct.c.
func stateName(bit uint32) string {
	switch bit {
	case StateInvalid:
		return "invalid"
	case StateEstablished:
		return "established"
	case StateRelated:
		return "related"
	case StateNew:
		return "new"
	case StateUntracked:
		return "untracked"
	}
	return hexBit(bit)
}

// statusName names one bit of ct status, ct_status_tbl of nftables, src/ct.c.
func statusName(bit uint32) string {
	switch bit {
	case 1 << 0:
		return "expected"
	case 1 << 1:
		return "seen-reply"
	case 1 << 2:
		return "assured"
	case 1 << 3:
		return "confirmed"
	case 1 << 4:
		return "snat"
	case StatusDNAT:
		return "dnat"
	case 1 << 9:
		return "dying"
	}
	return hexBit(bit)
}

func hexBit(bit uint32) string { return "0x" + strconv.FormatUint(uint64(bit), 16) }
