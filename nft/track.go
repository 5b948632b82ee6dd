package nft

import (
	"context"
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Attributes and values of include/uapi/linux/netfilter/nfnetlink_conntrack.h,
// nf_conntrack_common.h and nf_conntrack_tcp.h.
const (
	ipctnlMsgNew = 0

	ctaStatus  = 3
	ctaTimeout = 7

	ctaProtoinfoTCPFlagsOriginal = 4
	ctaProtoinfoTCPFlagsReply    = 5

	ipsSeenReply = 1 << 1
	ipsAssured   = 1 << 2
	ipsConfirmed = 1 << 3

	tcpEstablished    = 3
	tcpFlagsBeLiberal = 0x08
)

// trackFor is how long an entry lives without a packet:
// nf_conntrack_tcp_timeout_established, as it is by default
// (Documentation/networking/nf_conntrack-sysctl.rst).
const trackFor = 5 * 24 * time.Hour

// TrackFlows makes entries of connection tracking for established connections that
// nothing tracked until now. Of each Src, Dst, ReplySrc and ReplyDst are read. Those that
// have an entry, in either direction, are passed over. Of TCP the kernel does not
// compare sequence numbers, of which nobody knows where they are.
func (k *Kernel) TrackFlows(ctx context.Context, flows []Flow) error {
	return k.changeFlows(ctx, "track connections", flows, unix.EEXIST, func(f Flow) netlink.Message {
		return conntrackMessage(ipctnlMsgNew, netlink.Create|netlink.Excl, f.family(), newEntry(f))
	})
}

// newEntry gives the attributes of an entry for f.
func newEntry(f Flow) []byte {
	b := appendTuple(nil, ctaTupleOrig, f.Proto, f.Src, f.Dst)
	b = appendTuple(b, ctaTupleReply, f.Proto, f.ReplySrc, f.ReplyDst)
	b = appendU32(b, ctaStatus, ipsSeenReply|ipsAssured|ipsConfirmed)
	b = appendU32(b, ctaTimeout, uint32(trackFor/time.Second))
	if f.zone != 0 {
		b = appendAttr(b, ctaZone, byte(f.zone>>8), byte(f.zone))
	}
	if f.Proto != unix.IPPROTO_TCP {
		return b
	}
	return appendNested(b, ctaProtoinfo, func(b []byte) []byte {
		return appendNested(b, ctaProtoinfoTCP, func(b []byte) []byte {
			b = appendAttr(b, ctaProtoinfoTCPState, tcpEstablished)
			// struct nf_ct_tcp_flags: flags, mask
			b = appendAttr(b, ctaProtoinfoTCPFlagsOriginal, tcpFlagsBeLiberal, tcpFlagsBeLiberal)
			return appendAttr(b, ctaProtoinfoTCPFlagsReply, tcpFlagsBeLiberal, tcpFlagsBeLiberal)
		})
	})
}

func appendTuple(b []byte, typ uint16, proto uint8, src, dst netip.AddrPort) []byte {
	srcType, dstType := uint16(ctaIPv4Src), uint16(ctaIPv4Dst)
	if src.Addr().Is6() {
		srcType, dstType = ctaIPv6Src, ctaIPv6Dst
	}
	return appendNested(b, typ, func(b []byte) []byte {
		b = appendNested(b, ctaTupleIP, func(b []byte) []byte {
			b = appendAttr(b, srcType, src.Addr().AsSlice()...)
			return appendAttr(b, dstType, dst.Addr().AsSlice()...)
		})
		return appendNested(b, ctaTupleProto, func(b []byte) []byte {
			b = appendAttr(b, ctaProtoNum, proto)
			b = appendAttr(b, ctaSrcPort, binary.BigEndian.AppendUint16(nil, src.Port())...)
			return appendAttr(b, ctaDstPort, binary.BigEndian.AppendUint16(nil, dst.Port())...)
		})
	})
}
