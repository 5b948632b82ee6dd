package nft

import (
	"bytes"
	"encoding/binary"
	"iter"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/nftfw/nftfw/pkg/ruleset"
)

// Attributes of include/uapi/linux/netfilter/nf_tables.h that the unix package
// does not name.
const (
	nftaChainFlags         = 10
	nftaRuleUserdata       = 7
	nftaSetExpr            = 17
	nftaSetExpressions     = 18
	nftaSetElemKeyEnd      = 10
	nftaSetElemExpressions = 11
)

// Kinds of user data as libnftnl numbers them (include/libnftnl/udata.h).
const (
	udataSetKeyByteOrder = 0
	udataElemComment     = 0
	udataElemFlags       = 1 // nft notes here that a range has no end
)

// nfgenmsgLen is the size of struct nfgenmsg, which begins every payload.
const nfgenmsgLen = 4

// message is one message of a batch or a request, with what it does in words.
type message struct {
	kind  int // NFT_MSG_...
	flags netlink.HeaderFlags
	data  []byte       // attributes
	what  string       // "add chain input", for errors
	set   *ruleset.Set // whose elements data holds, for errors
}

// netlink returns m in the library's form. The payload starts with struct
// nfgenmsg: family, version, resource ID.
func (m message) netlink() netlink.Message {
	return netlink.Message{
		Header: netlink.Header{
			Type:  netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | m.kind),
			Flags: netlink.Request | m.flags,
		},
		Data: append([]byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0}, m.data...),
	}
}

// appendAttr appends one attribute, padded to four bytes.
func appendAttr(b []byte, typ uint16, data ...byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.NLA_HDRLEN+len(data)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, data...)
	return pad(b)
}

func appendString(b []byte, typ uint16, s string) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.NLA_HDRLEN+len(s)+1))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(append(b, s...), 0)
	return pad(b)
}

func appendU32(b []byte, typ uint16, v uint32) []byte {
	return appendAttr(b, typ, byte(v>>24), byte(v>>16), byte(v>>8), byte(v))
}

func appendU64(b []byte, typ uint16, v uint64) []byte {
	return appendAttr(b, typ, binary.BigEndian.AppendUint64(nil, v)...)
}

// appendNested appends an attribute whose payload is what fill appends.
func appendNested(b []byte, typ uint16, fill func([]byte) []byte) []byte {
	start := len(b)
	b = binary.NativeEndian.AppendUint16(b, 0)
	b = binary.NativeEndian.AppendUint16(b, typ|unix.NLA_F_NESTED)
	b = fill(b)
	binary.NativeEndian.PutUint16(b[start:], uint16(len(b)-start))
	return b
}

func pad(b []byte) []byte {
	for len(b)%unix.NLA_ALIGNTO != 0 {
		b = append(b, 0)
	}
	return b
}

// attributes yields the type (without flags) and the payload of each attribute
// in b. It ends where b is no attribute any more. The payloads are parts of b.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.NLA_HDRLEN {
			n := int(binary.NativeEndian.Uint16(b))
			typ := binary.NativeEndian.Uint16(b[2:])
			if n < unix.NLA_HDRLEN || n > len(b) {
				return
			}
			if !yield(typ&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[unix.NLA_HDRLEN:n]) {
				return
			}
			b = b[min((n+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1), len(b)):]
		}
	}
}

// payload returns the attributes of an nf_tables message.
func payload(m netlink.Message) []byte {
	if len(m.Data) < nfgenmsgLen {
		return nil
	}
	return m.Data[nfgenmsgLen:]
}

// text reads a string attribute.
func text(b []byte) string {
	s, _, _ := bytes.Cut(b, []byte{0})
	return string(s)
}

// number reads a big-endian attribute of up to eight bytes.
func number(b []byte) uint64 {
	var n uint64
	for _, c := range b {
		n = n<<8 | uint64(c)
	}
	return n
}

// newUdata gives one entry of libnftnl's user data: type, length, value.
func newUdata(typ byte, value []byte) []byte {
	return append([]byte{typ, byte(len(value))}, value...)
}

// udata yields type and value of the entries of user data.
func udata(b []byte) iter.Seq2[byte, []byte] {
	return func(yield func(byte, []byte) bool) {
		for len(b) >= 2 {
			n := 2 + int(b[1])
			if n > len(b) || !yield(b[0], b[2:n]) {
				return
			}
			b = b[n:]
		}
	}
}

// nativeIsLittle says how netlink headers are written on this machine.
var nativeIsLittle = binary.NativeEndian.Uint16([]byte{1, 0}) == 1
