package ruleset_test

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"syscall"
	"testing"

	. "github.com/nftfw/nftfw/pkg/ruleset"
)

// probeTTL marks the packets that a test sends on purpose.
const probeTTL = 77

// send puts p on the wire, from the namespace whose routes it takes. Its
// checksums are right, since connection tracking calls others invalid.
func (ns *netns) send(t *testing.T, p Packet) {
	t.Helper()
	var err error
	ns.do(func() { err = sendRaw(wire(p), p.Dst) })
	if err != nil {
		t.Fatalf("send %+v: %v", p, err)
	}
}

func sendRaw(packet []byte, dst netip.Addr) error {
	family, to := syscall.AF_INET, syscall.Sockaddr(nil)
	if dst.Is4() {
		to = &syscall.SockaddrInet4{Addr: dst.As4()}
	} else {
		family, to = syscall.AF_INET6, &syscall.SockaddrInet6{Addr: dst.As16()}
	}
	fd, err := syscall.Socket(family, syscall.SOCK_RAW, syscall.IPPROTO_RAW)
	if err != nil {
		return err
	}
	return errors.Join(syscall.Sendto(fd, packet, 0, to), syscall.Close(fd))
}

// wire gives the bytes of p: a tcp SYN, a udp datagram, an ICMP message, or
// four bytes of another protocol.
func wire(p Packet) []byte {
	payload := transport(p)
	src, dst := p.Src.AsSlice(), p.Dst.AsSlice()
	if sum := checksumAt(p.Proto); sum >= 0 {
		var pseudo []byte
		if p.Proto != 1 {
			pseudo = append(append(pseudo, src...), dst...)
			pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(payload)))
			pseudo = append(pseudo, 0, 0, 0, p.Proto)
		}
		binary.BigEndian.PutUint16(payload[sum:], checksum(append(pseudo, payload...)))
	}
	if p.Dst.Is4() {
		header := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, probeTTL, p.Proto, 0, 0}
		binary.BigEndian.PutUint16(header[2:], uint16(20+len(payload)))
		header = append(append(header, src...), dst...)
		return append(header, payload...)
	}
	header := []byte{0x60, 0, 0, 0, 0, 0, p.Proto, probeTTL}
	binary.BigEndian.PutUint16(header[4:], uint16(len(payload)))
	header = append(append(header, src...), dst...)
	return append(header, payload...)
}

func transport(p Packet) []byte {
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b, p.SPort)
	binary.BigEndian.PutUint16(b[2:], p.DPort)
	switch p.Proto {
	case 6:
		b[12], b[13] = 5<<4, 2 // no options, SYN
		return b
	case 17:
		b[5] = 8
		if p.VNI != 0 {
			b[5] = 16
			binary.BigEndian.PutUint32(b[12:], p.VNI<<8)
		}
		return b[:b[5]]
	case 1, 58:
		clear(b)
		b[0] = p.ICMPType
		binary.BigEndian.PutUint16(b[4:], p.SPort) // the identifier keeps flows apart
		return b[:8]
	}
	return b[:4]
}

// checksumAt is where the checksum stands in the header of the protocol.
func checksumAt(proto uint8) int {
	switch proto {
	case 6:
		return 16
	case 17:
		return 6
	case 1, 58:
		return 2
	}
	return -1
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
