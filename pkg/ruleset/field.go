package ruleset

// fieldInfo is what nft knows about a Field.
type fieldInfo struct {
	spelling string
	keyType  string // nft data type
	family   uint32 // NFProtoIPv4, NFProtoIPv6, or 0 for either
	needs    uint8  // the only L4 protocol that has the field, or 0
	kind     fieldKind
}

// fieldKind groups the fields that take the same operands.
type fieldKind uint8

const (
	_ fieldKind = iota
	kindAddr
	kindProto // nfproto and l4proto
	kindPort
	kindIface
	kindBits
	kindICMP
	kindFlag // there or not
	kindRaw  // a number that nft has no name for
)

func (f Field) info() fieldInfo {
	switch f {
	case IPSaddr:
		return fieldInfo{"ip saddr", "ipv4_addr", NFProtoIPv4, 0, kindAddr}
	case IPDaddr:
		return fieldInfo{"ip daddr", "ipv4_addr", NFProtoIPv4, 0, kindAddr}
	case IP6Saddr:
		return fieldInfo{"ip6 saddr", "ipv6_addr", NFProtoIPv6, 0, kindAddr}
	case IP6Daddr:
		return fieldInfo{"ip6 daddr", "ipv6_addr", NFProtoIPv6, 0, kindAddr}
	case CtOrigIPDaddr:
		return fieldInfo{"ct original ip daddr", "ipv4_addr", NFProtoIPv4, 0, kindAddr}
	case CtOrigIP6Daddr:
		return fieldInfo{"ct original ip6 daddr", "ipv6_addr", NFProtoIPv6, 0, kindAddr}
	case NFProto:
		return fieldInfo{"meta nfproto", "nf_proto", 0, 0, kindProto}
	case L4Proto:
		return fieldInfo{"meta l4proto", "inet_proto", 0, 0, kindProto}
	case Sport:
		return fieldInfo{"th sport", "inet_service", 0, 0, kindPort}
	case Dport:
		return fieldInfo{"th dport", "inet_service", 0, 0, kindPort}
	case IIfName:
		return fieldInfo{"iifname", "ifname", 0, 0, kindIface}
	case OIfName:
		return fieldInfo{"oifname", "ifname", 0, 0, kindIface}
	case CtState:
		return fieldInfo{"ct state", "ct_state", 0, 0, kindBits}
	case CtStatus:
		return fieldInfo{"ct status", "ct_status", 0, 0, kindBits}
	case ICMPType:
		return fieldInfo{"icmp type", "icmp_type", NFProtoIPv4, protoICMP, kindICMP}
	case ICMPv6Type:
		return fieldInfo{"icmpv6 type", "icmpv6_type", NFProtoIPv6, protoICMPv6, kindICMP}
	case IPsec:
		return fieldInfo{"meta ipsec", "boolean", 0, 0, kindFlag}
	case VNI:
		return fieldInfo{"@th,96,24", "integer", 0, protoUDP, kindRaw}
	}
	return fieldInfo{}
}

// String gives the nft spelling, "ip saddr"; "" for no field.
func (f Field) String() string { return f.info().spelling }

// KeyType gives the nft data type of the field, "ipv4_addr": the type of a set
// whose key is the field.
func (f Field) KeyType() string { return f.info().keyType }
