package nflog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// Packet is what is known of a packet that was logged.
type Packet struct {
	Time   time.Time
	Prefix string // of the rule that logged it
	// In and Out are the indexes of the links, 0 for none: a packet that is
	// forwarded has both.
	In, Out int

	Src, Dst     netip.Addr
	Proto        uint8  // IANA protocol number, behind extension headers
	SPort, DPort uint16 // 0 for protocols without ports, and for later fragments
}

var errShort = errors.New("the packet is cut off")

// parse reads the headers of an IP packet, of which the end may be cut off.
func (p *Packet) parse(b []byte) error {
	if len(b) == 0 {
		return errShort
	}
	var rest []byte
	var err error
	switch version := b[0] >> 4; version {
	case ipv4.Version:
		rest, err = p.parse4(b)
	case ipv6.Version:
		rest, err = p.parse6(b)
	default:
		return fmt.Errorf("IP version %d is not known", version)
	}
	if err != nil {
		return err
	}
	if hasPorts(p.Proto) && len(rest) >= 4 {
		p.SPort, p.DPort = binary.BigEndian.Uint16(rest), binary.BigEndian.Uint16(rest[2:])
	}
	return nil
}

// parse4 gives what follows the header, nothing in a later fragment.
func (p *Packet) parse4(b []byte) ([]byte, error) {
	h, err := ipv4.ParseHeader(b)
	if err != nil {
		return nil, fmt.Errorf("read IPv4 header: %w", err)
	}
	p.Src, _ = netip.AddrFromSlice(h.Src.To4())
	p.Dst, _ = netip.AddrFromSlice(h.Dst.To4())
	p.Proto = uint8(h.Protocol)
	if h.FragOff != 0 || h.Len > len(b) {
		return nil, nil
	}
	return b[h.Len:], nil
}

// parse6 gives what follows the extension headers.
func (p *Packet) parse6(b []byte) ([]byte, error) {
	h, err := ipv6.ParseHeader(b)
	if err != nil {
		return nil, fmt.Errorf("read IPv6 header: %w", err)
	}
	p.Src, _ = netip.AddrFromSlice(h.Src)
	p.Dst, _ = netip.AddrFromSlice(h.Dst)
	p.Proto = uint8(h.NextHeader)
	rest := b[ipv6.HeaderLen:]
	for {
		size := 0
		switch p.Proto {
		case unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_DSTOPTS:
			if len(rest) < 2 {
				return nil, nil
			}
			size = 8 + 8*int(rest[1]) // RFC 8200, section 4
		case unix.IPPROTO_FRAGMENT:
			size = 8
		default:
			return rest, nil
		}
		if len(rest) < size {
			return nil, nil
		}
		later := p.Proto == unix.IPPROTO_FRAGMENT && binary.BigEndian.Uint16(rest[2:])>>3 != 0
		p.Proto = rest[0]
		if later {
			return nil, nil
		}
		rest = rest[size:]
	}
}

// hasPorts reports whether the protocol begins with a source and a destination
// port.
func hasPorts(proto uint8) bool {
	switch proto {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_UDPLITE, unix.IPPROTO_SCTP, unix.IPPROTO_DCCP:
		return true
	}
	return false
}
