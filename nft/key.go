package nft

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/nftfw/nftfw/pkg/ruleset"
)

// datatype is how nft knows the values of a field: the number of its type
// (include/datatype.h of nftables), which only nft looks at, the length in
// bytes, and the byte order that nft notes with a set for listing it.
type datatype struct {
	id    uint32
	len   int
	order uint32 // enum byteorder of nft: 0 none, 1 host, 2 big endian
}

const (
	orderHost = 1
	orderBig  = 2

	typeIPv4Addr    = 7
	typeIPv6Addr    = 8
	typeInetProto   = 12
	typeInetService = 13
	typeICMPType    = 14
	typeICMPv6Type  = 29
	typeIfname      = 41

	typeBits   = 6 // of each type in the type of a concatenation
	typeMask   = 1<<typeBits - 1
	ifnameSize = unix.IFNAMSIZ
	register   = 4 // bytes; each field of a concatenation fills whole ones
)

func typeOf(f ruleset.Field) datatype {
	switch f {
	case ruleset.IPSaddr, ruleset.IPDaddr, ruleset.CtOrigIPDaddr:
		return datatype{typeIPv4Addr, 4, orderBig}
	case ruleset.IP6Saddr, ruleset.IP6Daddr, ruleset.CtOrigIP6Daddr:
		return datatype{typeIPv6Addr, 16, orderBig}
	case ruleset.NFProto:
		return datatype{2, 1, 0}
	case ruleset.L4Proto:
		return datatype{typeInetProto, 1, 0}
	case ruleset.Sport, ruleset.Dport:
		return datatype{typeInetService, 2, orderBig}
	case ruleset.IIfName, ruleset.OIfName:
		return datatype{typeIfname, ifnameSize, orderHost}
	case ruleset.CtState:
		return datatype{26, 4, orderHost}
	case ruleset.CtStatus:
		return datatype{28, 4, orderHost}
	case ruleset.ICMPType:
		return datatype{typeICMPType, 1, orderBig}
	case ruleset.ICMPv6Type:
		return datatype{typeICMPv6Type, 1, orderBig}
	case ruleset.IPsec:
		return datatype{0, 1, 0} // no set is keyed by it
	case ruleset.VNI:
		return datatype{0, 3, orderBig} // nor by this
	}
	return datatype{}
}

// definition is what the kernel keeps of a set besides its elements.
type definition struct {
	flags    uint32
	keyType  uint32
	keyLen   uint32
	verdicts bool
	size     uint32 // how many elements fit; 0 is no limit
	timeout  uint64 // of elements without one, in milliseconds
	counter  bool   // each element has one
}

func definitionOf(s *ruleset.Set) definition {
	d := definition{verdicts: s.Verdicts, counter: s.Counter}
	if s.Verdicts {
		d.flags |= unix.NFT_SET_MAP
	}
	if s.Interval {
		d.flags |= unix.NFT_SET_INTERVAL | unix.NFT_SET_TIMEOUT
	}
	if s.Part == ruleset.Hosts {
		d.flags |= unix.NFT_SET_TIMEOUT
	}
	if s.Part == ruleset.Lasting {
		d.size = s.Size // which has the kernel make it of one size, nft_hash_estimate
	}
	if s.Dynamic {
		d.flags |= unix.NFT_SET_EVAL | unix.NFT_SET_TIMEOUT
		d.size, d.timeout = s.Size, uint64(s.Timeout.Milliseconds())
	}
	for _, f := range s.Key {
		t := typeOf(f)
		d.keyType = d.keyType<<typeBits | t.id
		if len(s.Key) > 1 {
			d.keyLen += uint32(padded(t.len))
		} else {
			d.keyLen = uint32(t.len)
		}
	}
	return d
}

// hosts gives the part of single addresses that the set is; ok is false for one
// that is no such set.
func (d definition) hosts() (part ruleset.Part, ok bool) {
	switch {
	case d.verdicts:
	case d.flags == unix.NFT_SET_TIMEOUT:
		return ruleset.Hosts, true
	case d.flags == 0 && d.size > 0:
		return ruleset.Lasting, true
	}
	return 0, false
}

func padded(n int) int { return (n + register - 1) &^ (register - 1) }

// encodeKey returns the key as the kernel holds it: values one after the
// other, each padded with zeros to whole registers where there is more than one.
func encodeKey(fields []ruleset.Field, k ruleset.Key) []byte {
	b := make([]byte, 0, 16)
	for _, f := range fields {
		t := typeOf(f)
		start := len(b)
		switch f {
		case ruleset.CtOrigIPDaddr, ruleset.CtOrigIP6Daddr:
			b = append(b, k.Orig.AsSlice()...)
		case ruleset.IPSaddr, ruleset.IPDaddr, ruleset.IP6Saddr, ruleset.IP6Daddr:
			b = append(b, k.Addr.AsSlice()...)
		case ruleset.L4Proto:
			b = append(b, k.Proto)
		case ruleset.Sport, ruleset.Dport:
			b = binary.BigEndian.AppendUint16(b, k.Port)
		case ruleset.ICMPType, ruleset.ICMPv6Type:
			b = append(b, k.Type)
		case ruleset.IIfName:
			b = append(b, k.IIf...)
		case ruleset.OIfName:
			if len(fields) == 1 {
				b = append(b, k.IIf...)
			} else {
				b = append(b, k.OIf...)
			}
		default: // no set is keyed by it
		}
		want := t.len
		if len(fields) > 1 {
			want = padded(want)
		}
		for len(b) < start+want {
			b = append(b, 0)
		}
	}
	return b
}

// decodeKey is the inverse of encodeKey. b must be as long as the fields say.
func decodeKey(fields []ruleset.Field, b []byte) ruleset.Key {
	var k ruleset.Key
	for _, f := range fields {
		n := typeOf(f).len
		v := b[:n]
		switch f {
		case ruleset.CtOrigIPDaddr, ruleset.CtOrigIP6Daddr:
			k.Orig, _ = netip.AddrFromSlice(v)
		case ruleset.IPSaddr, ruleset.IPDaddr, ruleset.IP6Saddr, ruleset.IP6Daddr:
			k.Addr, _ = netip.AddrFromSlice(v)
		case ruleset.L4Proto:
			k.Proto = v[0]
		case ruleset.Sport, ruleset.Dport:
			k.Port = binary.BigEndian.Uint16(v)
		case ruleset.ICMPType, ruleset.ICMPv6Type:
			k.Type = v[0]
		case ruleset.IIfName:
			k.IIf = text(v)
		case ruleset.OIfName:
			if len(fields) == 1 {
				k.IIf = text(v)
			} else {
				k.OIf = text(v)
			}
		default: // no set is keyed by it
		}
		if len(fields) > 1 {
			n = padded(n)
		}
		b = b[n:]
	}
	return k
}

// fieldsOf guesses the fields of a key from its kernel type: the type says
// "an address", not which one. The last address is the packet's destination, one
// before it the original destination; a port is the destination's. ok is false
// for types that no Field has.
func fieldsOf(d definition) (fields []ruleset.Field, ok bool) {
	var ids []uint32
	for t := d.keyType; t != 0; t >>= typeBits {
		ids = append(ids, t&typeMask) // the last field first
	}
	seen := map[ruleset.Field]bool{}
	for _, id := range ids {
		f := ruleset.Field(0)
		switch id {
		case typeIPv4Addr:
			f = ruleset.IPDaddr
			if seen[f] {
				f = ruleset.CtOrigIPDaddr
			}
		case typeIPv6Addr:
			f = ruleset.IP6Daddr
			if seen[f] {
				f = ruleset.CtOrigIP6Daddr
			}
		case typeInetProto:
			f = ruleset.L4Proto
		case typeInetService:
			f = ruleset.Dport
		case typeICMPType:
			f = ruleset.ICMPType
		case typeICMPv6Type:
			f = ruleset.ICMPv6Type
		case typeIfname:
			f = ruleset.OIfName
			if seen[f] || len(ids) == 1 {
				f = ruleset.IIfName
			}
		}
		if f == 0 || seen[f] {
			return nil, false
		}
		seen[f] = true
		fields = append([]ruleset.Field{f}, fields...)
	}
	s := &ruleset.Set{Key: fields}
	return fields, definitionOf(s).keyLen == d.keyLen
}
