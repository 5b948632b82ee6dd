package nft

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Flow is one entry of connection tracking. A library for it exists,
// ti-mo/conntrack: with 200,000 entries it takes three times as long to list
// them, and a round trip to delete each one, which makes 20 seconds of what
// takes one here.
type Flow struct {
	Proto uint8
	// The first packet as it was sent, and the answer to it as it is sent:
	// with DNAT ReplySrc is not Dst, with SNAT ReplyDst is not Src. Ports are
	// zero for protocols that have none.
	Src, Dst           netip.AddrPort
	ReplySrc, ReplyDst netip.AddrPort
	ICMPType           uint8 // of the first packet

	id   uint32
	zone uint16
	orig string // CTA_TUPLE_ORIG as the kernel wrote it
}

// Attributes and messages of include/uapi/linux/netfilter/nfnetlink_conntrack.h.
const (
	ipctnlMsgGet    = 1
	ipctnlMsgDelete = 2

	ctaTupleOrig  = 1
	ctaTupleReply = 2
	ctaProtoinfo  = 4
	ctaID         = 12
	ctaZone       = 18

	ctaTupleIP    = 1
	ctaTupleProto = 2

	ctaIPv4Src = 1
	ctaIPv4Dst = 2
	ctaIPv6Src = 3
	ctaIPv6Dst = 4

	ctaProtoNum   = 1
	ctaSrcPort    = 2
	ctaDstPort    = 3
	ctaICMPType   = 5
	ctaICMPv6Type = 8

	ctaProtoinfoTCP      = 1
	ctaProtoinfoTCPState = 1
)

// flowsAtATime is how many entries Flows hands over at once: some ten datagrams
// of a dump.
const flowsAtATime = 2048

// Flows lists the entries of connection tracking of both families and calls take
// with some of them at a time, which take may keep. Entries that come or go
// meanwhile may be in it or not; one may come twice. take may delete entries and
// commit.
func (k *Kernel) Flows(ctx context.Context, take func([]Flow)) error {
	const what = "list connections"
	s, err := k.session(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer s.close()
	if _, err := s.send(conntrackMessage(ipctnlMsgGet, netlink.Dump, unix.AF_UNSPEC, nil)); err != nil {
		return conntrackRefused(ctx, what, err)
	}
	var some []Flow
	err = s.rawMessages(func(data []byte) {
		f, ok := parseFlow(data[min(len(data), nfgenmsgSize):])
		if !ok {
			return
		}
		if some == nil {
			some = make([]Flow, 0, flowsAtATime)
		}
		if some = append(some, f); len(some) == flowsAtATime {
			take(some)
			some = nil
		}
	})
	if err != nil {
		return conntrackRefused(ctx, what, err)
	}
	if len(some) > 0 {
		take(some)
	}
	return nil
}

const (
	nfgenmsgSize = 4
	// dumpBuffer is more than the kernel puts into one datagram of a dump,
	// 32 KiB (netlink_recvmsg, net/netlink/af_netlink.c): the larger the
	// buffer, the more it puts in, up to that.
	dumpBuffer = 64 << 10
)

// rawMessages reads the answer to a dump and calls f with the payload of each
// message, which f must not keep. It takes half of the time that the library
// takes, which asks the kernel for the size of each datagram first.
func (s *session) rawMessages(f func([]byte)) error {
	raw, err := s.conn.SyscallConn()
	if err != nil {
		return err
	}
	buf := make([]byte, dumpBuffer)
	for {
		var n int
		var failure error
		s.patience() // whoever takes the messages may have taken long
		err := raw.Read(func(fd uintptr) bool {
			n, _, failure = unix.Recvfrom(int(fd), buf, 0)
			return !errors.Is(failure, unix.EAGAIN)
		})
		if err = cmp.Or(err, failure); err != nil {
			return err
		}
		for b := buf[:n]; len(b) >= unix.NLMSG_HDRLEN; {
			size := int(binary.NativeEndian.Uint32(b))
			if size < unix.NLMSG_HDRLEN || size > len(b) {
				return unix.EBADMSG
			}
			data := b[unix.NLMSG_HDRLEN:size]
			switch binary.NativeEndian.Uint16(b[4:]) {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				return dumpError(data)
			default:
				f(data)
			}
			b = b[min((size+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1), len(b)):]
		}
	}
}

// dumpError reads how a dump ended: a negative errno, or zero.
func dumpError(data []byte) error {
	if len(data) < 4 {
		return unix.EBADMSG
	}
	if code := int32(binary.NativeEndian.Uint32(data)); code != 0 {
		return unix.Errno(-code)
	}
	return nil
}

// flowBatch is how many entries one datagram makes or deletes: their messages stay
// below what a socket may send by default (net.core.wmem_default, 208 KiB).
const flowBatch = 512

// DeleteFlows removes entries of connection tracking that Flows gave. Those
// that are gone, or are other connections by now, are passed over, and so are
// flows that Flows did not give.
func (k *Kernel) DeleteFlows(ctx context.Context, flows []Flow) error {
	flows = slices.DeleteFunc(slices.Clone(flows), func(f Flow) bool { return f.orig == "" })
	return k.changeFlows(ctx, "delete connections", flows, unix.ENOENT, func(f Flow) netlink.Message {
		data := appendAttr(nil, ctaTupleOrig|unix.NLA_F_NESTED, []byte(f.orig)...)
		if f.zone != 0 {
			data = appendAttr(data, ctaZone, byte(f.zone>>8), byte(f.zone))
		}
		// With the number a younger connection between the same ends is safe.
		data = appendU32(data, ctaID, f.id)
		return conntrackMessage(ipctnlMsgDelete, 0, f.family(), data)
	})
}

// changeFlows sends a message for each flow, many in one datagram. What fails with
// harmless is passed over.
func (k *Kernel) changeFlows(ctx context.Context, what string, flows []Flow, harmless unix.Errno, message func(Flow) netlink.Message) error {
	if len(flows) == 0 {
		return nil
	}
	s, err := k.session(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer s.close()
	_ = s.conn.SetReadBuffer(readBuffer)
	for some := range slices.Chunk(flows, flowBatch) {
		msgs := make([]netlink.Message, len(some))
		for i, f := range some {
			msgs[i] = message(f)
		}
		if err := s.workOff(msgs, harmless); err != nil {
			return conntrackRefused(ctx, what, err)
		}
	}
	return nil
}

func (f Flow) family() uint8 {
	if f.Src.Addr().Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// workOff sends messages in one datagram and waits until they are worked off. The
// kernel speaks of those that fail, and of the last one. One that fails with harmless
// is passed over.
func (s *session) workOff(msgs []netlink.Message, harmless unix.Errno) error {
	msgs[len(msgs)-1].Header.Flags |= netlink.Acknowledge
	sent, err := s.sendAll(msgs)
	if err != nil {
		return err
	}
	last := sent[len(sent)-1].Header.Sequence
	var failure error
	for {
		replies, err := s.conn.Receive()
		var op *netlink.OpError
		switch {
		case err == nil:
			for _, m := range replies {
				if m.Header.Sequence == last {
					return failure
				}
			}
		case !errors.As(err, &op) || op.Sequence == 0:
			return err
		default:
			if !errors.Is(err, harmless) && failure == nil {
				failure = err
			}
			if op.Sequence == last {
				return failure
			}
		}
	}
}

func conntrackMessage(kind int, flags netlink.HeaderFlags, family uint8, data []byte) netlink.Message {
	return netlink.Message{
		Header: netlink.Header{
			Type:  netlink.HeaderType(unix.NFNL_SUBSYS_CTNETLINK<<8 | kind),
			Flags: netlink.Request | flags,
		},
		Data: append([]byte{family, unix.NFNETLINK_V0, 0, 0}, data...),
	}
}

func conntrackRefused(ctx context.Context, what string, err error) error {
	var errno unix.Errno
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", what, ctx.Err())
	case !errors.As(err, &errno):
		return fmt.Errorf("%s: %w", what, err)
	case errno == unix.EPERM:
		return fmt.Errorf("%s: %w (needs CAP_NET_ADMIN: run as root or under the unit)", what, errno)
	case errno == unix.EINVAL, errno == unix.EOPNOTSUPP:
		// What nfnetlink says when it has no such subsystem.
		return fmt.Errorf("%s: %w (the kernel has no connection-tracking netlink: modprobe nf_conntrack_netlink)", what, errno)
	}
	return fmt.Errorf("%s: %w", what, errno)
}

func parseFlow(b []byte) (Flow, bool) {
	var f Flow
	for typ, v := range attributes(b) {
		switch typ {
		case ctaTupleOrig:
			f.orig = string(v)
			f.Proto, f.ICMPType, f.Src, f.Dst = parseTuple(v)
		case ctaTupleReply:
			_, _, f.ReplySrc, f.ReplyDst = parseTuple(v)
		case ctaID:
			f.id = uint32(number(v))
		case ctaZone:
			f.zone = uint16(number(v))
		}
	}
	return f, f.Src.IsValid() && f.Dst.IsValid() && f.ReplySrc.IsValid() && f.ReplyDst.IsValid()
}

func parseTuple(b []byte) (proto, icmpType uint8, src, dst netip.AddrPort) {
	var from, to netip.Addr
	var sport, dport uint16
	for typ, part := range attributes(b) {
		switch typ {
		case ctaTupleIP:
			for typ, v := range attributes(part) {
				switch typ {
				case ctaIPv4Src, ctaIPv6Src:
					from, _ = netip.AddrFromSlice(v)
				case ctaIPv4Dst, ctaIPv6Dst:
					to, _ = netip.AddrFromSlice(v)
				}
			}
		case ctaTupleProto:
			for typ, v := range attributes(part) {
				switch typ {
				case ctaProtoNum:
					proto = uint8(number(v))
				case ctaSrcPort:
					sport = uint16(number(v))
				case ctaDstPort:
					dport = uint16(number(v))
				case ctaICMPType, ctaICMPv6Type:
					icmpType = uint8(number(v))
				}
			}
		}
	}
	return proto, icmpType, netip.AddrPortFrom(from, sport), netip.AddrPortFrom(to, dport)
}

// hasPorts reports whether packets of the protocol begin with two ports.
func hasPorts(proto uint8) bool {
	switch proto {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_DCCP, unix.IPPROTO_SCTP, unix.IPPROTO_UDPLITE:
		return true
	}
	return false
}

// Reversed returns f as if the other side had begun it: what connection
// tracking takes for an answer was the question, where it saw the answer first.
func (f Flow) Reversed() Flow {
	f.Src, f.Dst, f.ReplySrc, f.ReplyDst = f.ReplySrc, f.ReplyDst, f.Src, f.Dst
	return f
}

// Cut returns the pair of ends between which f runs, as the hooks of input,
// forward and output see them: after DNAT and before SNAT. ok is false where
// packets do not show it, because the protocol has no ports.
func (f Flow) Cut(expires time.Time) (c Cut, ok bool) {
	return Cut{Proto: f.Proto, Client: f.Src, Asked: f.Dst, Server: f.ReplySrc, Expires: expires}, hasPorts(f.Proto)
}
