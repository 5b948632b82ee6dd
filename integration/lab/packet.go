package lab

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Protocols of IP (IANA).
const (
	ProtoTCP     = 6
	ProtoUDP     = 17
	ProtoSCTP    = 132
	ProtoUDPLite = 136
	ProtoICMP    = 1
	ProtoICMPv6  = 58
)

// IPPacket describes a packet as no ordinary socket sends it. What is wrong with
// it is the point; its checksums are right.
type IPPacket struct {
	Src, Dst netip.Addr
	Proto    uint8
	Payload  []byte // with the transport header; see TCP, UDP, SCTP, ICMP

	Options []byte // of IPv4, a multiple of four bytes
	// Offset and More make it a fragment: the offset in units of eight bytes.
	Offset uint16
	More   bool
	// Extensions are IPv6 extension headers in front of the payload. The first
	// byte of each is filled in.
	Extensions []Extension
}

// Extension is an IPv6 extension header by the number that announces it.
type Extension struct {
	Number uint8
	Bytes  []byte
}

// fragmentID marks the fragments of one datagram.
const fragmentID = 0x4242

// Bytes gives the packet as it is on the wire, without the link's header.
func (p IPPacket) Bytes() []byte {
	if p.Dst.Is4() {
		b := make([]byte, 20, 20+len(p.Options)+len(p.Payload))
		b[0] = 4<<4 | uint8(5+len(p.Options)/4)
		binary.BigEndian.PutUint16(b[2:], uint16(20+len(p.Options)+len(p.Payload)))
		binary.BigEndian.PutUint16(b[4:], fragmentID)
		fragment := p.Offset
		if p.More {
			fragment |= 1 << 13
		}
		binary.BigEndian.PutUint16(b[6:], fragment)
		b[8], b[9] = 64, p.Proto
		copy(b[12:], p.Src.AsSlice())
		copy(b[16:], p.Dst.AsSlice())
		b = append(b, p.Options...)
		binary.BigEndian.PutUint16(b[10:], checksum(b))
		return append(b, p.Payload...)
	}
	b := make([]byte, 40)
	b[0], b[6], b[7] = 6<<4, p.Proto, 64
	copy(b[8:], p.Src.AsSlice())
	copy(b[24:], p.Dst.AsSlice())
	announce := 6
	for _, x := range p.Extensions {
		b[announce] = x.Number
		announce = len(b)
		b = append(b, x.Bytes...)
		b[announce] = p.Proto
	}
	b = append(b, p.Payload...)
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
	return b
}

// Fragment is the extension header of an IPv6 fragment.
func Fragment(offset uint16, more bool) Extension {
	b := make([]byte, 8)
	v := offset << 3
	if more {
		v |= 1
	}
	binary.BigEndian.PutUint16(b[2:], v)
	binary.BigEndian.PutUint32(b[4:], fragmentID)
	return Extension{44, b}
}

// checksum is the Internet checksum (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// sealed puts the checksum of a transport header and its addresses at a place.
func sealed(src, dst netip.Addr, proto uint8, b []byte, at int) []byte {
	pseudo := append(append([]byte{}, src.AsSlice()...), dst.AsSlice()...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(b)))
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(proto))
	binary.BigEndian.PutUint16(b[at:], checksum(append(pseudo, b...)))
	return b
}

func ports(b []byte, from, to uint16) []byte {
	binary.BigEndian.PutUint16(b, from)
	binary.BigEndian.PutUint16(b[2:], to)
	return b
}

// TCP is a segment without data. flags are those of byte 13 of its header.
func TCP(from, to netip.AddrPort, flags uint8) []byte {
	b := ports(make([]byte, 20), from.Port(), to.Port())
	binary.BigEndian.PutUint32(b[4:], 1)
	b[12], b[13] = 5<<4, flags
	binary.BigEndian.PutUint16(b[14:], 65535)
	return sealed(from.Addr(), to.Addr(), ProtoTCP, b, 16)
}

// UDP is a datagram of some bytes, enough for several fragments.
func UDP(from, to netip.AddrPort) []byte {
	b := ports(make([]byte, 8+32), from.Port(), to.Port())
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)))
	return sealed(from.Addr(), to.Addr(), ProtoUDP, b, 6)
}

// VXLAN is a datagram that carries an Ethernet frame over a network of that
// identifier (RFC 7348).
func VXLAN(from, to netip.AddrPort, vni uint32, frame []byte) []byte {
	b := ports(make([]byte, 16, 16+len(frame)), from.Port(), to.Port())
	b[8] = 1 << 3 // the identifier is valid
	binary.BigEndian.PutUint32(b[12:], vni<<8)
	b = append(b, frame...)
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)))
	return sealed(from.Addr(), to.Addr(), ProtoUDP, b, 6)
}

// Ethernet is a frame with an IP packet in it.
func Ethernet(from, to net.HardwareAddr, packet []byte) []byte {
	proto := uint16(unix.ETH_P_IP)
	if packet[0]>>4 == 6 {
		proto = unix.ETH_P_IPV6
	}
	return append(binary.BigEndian.AppendUint16(slices.Concat(to, from), proto), packet...)
}

// UDPLite is the same of UDP-Lite, all of it covered by the checksum.
func UDPLite(from, to netip.AddrPort) []byte {
	return sealed(from.Addr(), to.Addr(), ProtoUDPLite, ports(make([]byte, 8+32), from.Port(), to.Port()), 6)
}

// SCTP is a packet with an INIT chunk (RFC 9260).
func SCTP(from, to uint16) []byte {
	b := ports(make([]byte, 12+20), from, to)
	b[12], b[15] = 1, 20
	binary.BigEndian.PutUint32(b[16:], 0x01020304)
	binary.BigEndian.PutUint32(b[20:], 65536)
	binary.BigEndian.PutUint16(b[24:], 1)
	binary.BigEndian.PutUint16(b[26:], 1)
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// ICMP is a message of the family of its addresses, with a body of at least four
// bytes.
func ICMP(src, dst netip.Addr, kind, code uint8, body []byte) []byte {
	b := append([]byte{kind, code, 0, 0}, body...)
	if dst.Is4() {
		binary.BigEndian.PutUint16(b[2:], checksum(b))
		return b
	}
	return sealed(src, dst, ProtoICMPv6, b, 2)
}

// MAC is the hardware address of the node's link.
func (n Namespace) MAC(ctx context.Context, link string) (net.HardwareAddr, error) {
	out, err := n.Run(ctx, "ip", "-json", "link", "show", link)
	if err != nil {
		return nil, err
	}
	var list []struct{ Address string }
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list) != 1 {
		return nil, fmt.Errorf("link %s: %q: %w", link, out, err)
	}
	return net.ParseMAC(list[0].Address)
}

// SendFrames puts IP packets onto a link of the namespace, to a hardware
// address, whatever the kernel thinks of them.
func (n Namespace) SendFrames(link string, to net.HardwareAddr, packets ...[]byte) error {
	return n.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open packet socket: %w", err)
		}
		defer unix.Close(fd)
		dev, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		for _, p := range packets {
			proto := uint16(unix.ETH_P_IP)
			if p[0]>>4 == 6 {
				proto = unix.ETH_P_IPV6
			}
			at := unix.SockaddrLinklayer{Protocol: proto>>8 | proto<<8, Ifindex: dev.Index, Halen: 6}
			copy(at.Addr[:], to)
			if err := unix.Sendto(fd, p, 0, &at); err != nil {
				return fmt.Errorf("send on %s: %w", link, err)
			}
		}
		return nil
	})
}
