package ruleset

import (
	"net/netip"
	"strconv"
	"strings"
)

// Format gives k as nft prints it in a set whose key is fields,
// "172.17.0.2 . tcp . 80".
func (k Key) Format(fields []Field) string {
	return string(k.appendText(nil, fields))
}

func (k Key) appendText(b []byte, fields []Field) []byte {
	for i, f := range fields {
		if i > 0 {
			b = append(b, " . "...)
		}
		switch f {
		case IPSaddr, IPDaddr, IP6Saddr, IP6Daddr:
			b = appendAddr(b, k.Addr)
		case CtOrigIPDaddr, CtOrigIP6Daddr:
			b = appendAddr(b, k.Orig)
		case L4Proto:
			b = append(b, ProtocolName(k.Proto)...)
		case Sport, Dport:
			b = strconv.AppendUint(b, uint64(k.Port), 10)
		case ICMPType:
			b = append(b, icmpTypeName(k.Type)...)
		case ICMPv6Type:
			b = append(b, icmp6TypeName(k.Type)...)
		case IIfName, OIfName:
			b = append(b, '"')
			b = append(b, k.iface(fields, f)...)
			b = append(b, '"')
		case NFProto, CtState, CtStatus, IPsec, VNI:
			// No member of Key holds these; Validate refuses them.
		}
	}
	return b
}

// iface gives the interface that k holds for the field f, one of fields.
func (k Key) iface(fields []Field, f Field) string {
	if f == IIfName || len(fields) == 1 {
		return k.IIf
	}
	return k.OIf
}

// sortKey gives bytes whose order is the one in which nft lists the elements
// of a set with these key fields. nft compares numbers: an address or a port
// by its value, a name as a little-endian number of 16 bytes, and a
// concatenation, whatever it is made of, as one little-endian number of all
// its bytes (concat_expr_msort_value, nftables src/mergesort.c). On big-endian
// machines nft sorts otherwise.
func (k Key) sortKey(fields []Field) string {
	var b []byte
	for _, f := range fields {
		switch f {
		case IPSaddr, IPDaddr, IP6Saddr, IP6Daddr:
			b = append(b, k.Addr.AsSlice()...)
		case CtOrigIPDaddr, CtOrigIP6Daddr:
			b = append(b, k.Orig.AsSlice()...)
		case L4Proto:
			b = append(b, k.Proto)
		case Sport, Dport:
			b = append(b, byte(k.Port>>8), byte(k.Port))
		case ICMPType, ICMPv6Type:
			b = append(b, k.Type)
		case IIfName, OIfName:
			var name [ifNameSize]byte
			copy(name[:], k.iface(fields, f))
			b = append(b, name[:]...)
		case NFProto, CtState, CtStatus, IPsec, VNI:
		}
	}
	if len(fields) > 1 || fields[0].info().kind == kindIface {
		for i, j := 0, len(b)-1; i < j; i, j = i+1, j-1 {
			b[i], b[j] = b[j], b[i]
		}
	}
	return string(b)
}

// appendAddr writes a as inet_ntop of glibc does. It differs from netip in
// one thing: ::a.b.c.d for the IPv4-compatible addresses, ::/96 without ::/112.
func appendAddr(b []byte, a netip.Addr) []byte {
	if a.Is6() && !a.Is4In6() {
		raw := a.As16()
		compatible := raw[12] != 0 || raw[13] != 0
		for _, x := range raw[:12] {
			compatible = compatible && x == 0
		}
		if compatible {
			b = append(b, "::"...)
			return netip.AddrFrom4([4]byte(raw[12:])).AppendTo(b)
		}
	}
	return a.AppendTo(b)
}

// appendRange writes the range as nft does: an address, a prefix where the
// range is one, or from-to.
func appendRange(b []byte, from, to netip.Addr) []byte {
	b = appendAddr(b, from)
	if from == to {
		return b
	}
	if bits, ok := prefixLen(from, to); ok {
		b = append(b, '/')
		return strconv.AppendInt(b, int64(bits), 10)
	}
	b = append(b, '-')
	return appendAddr(b, to)
}

// prefixLen gives the length of the prefix that from-to is.
func prefixLen(from, to netip.Addr) (int, bool) {
	lo, hi := from.AsSlice(), to.AsSlice()
	if len(lo) != len(hi) {
		return 0, false
	}
	bits := 0
	for i := 0; i < len(lo)*8; i++ {
		if bit(lo, i) != bit(hi, i) {
			break
		}
		bits++
	}
	for i := bits; i < len(lo)*8; i++ {
		if bit(lo, i) != 0 || bit(hi, i) != 1 {
			return 0, false
		}
	}
	return bits, true
}

func bit(b []byte, i int) byte { return b[i/8] >> (7 - i%8) & 1 }

// appendMask joins the names of the bits of mask, lowest first.
func appendMask(b *strings.Builder, mask uint32, name func(uint32) string, sep string) {
	if mask == 0 {
		b.WriteString("0x0")
		return
	}
	first := true
	for i := 0; i < 32; i++ {
		if mask&(1<<i) == 0 {
			continue
		}
		if !first {
			b.WriteString(sep)
		}
		first = false
		b.WriteString(name(1 << i))
	}
}
