package ruleset

import (
	"net/netip"
	"time"
)

// Packet is a packet as the base chains of a hook see it.
type Packet struct {
	Hook     Hook
	IIf, OIf string     // OIf "" at prerouting and input, IIf "" at output
	Src, Dst netip.Addr // after DNAT at input and forward
	Proto    uint8
	// The ports of tcp, udp, sctp, dccp and udplite. For other protocols the
	// kernel reads whatever stands where ports would be; here they are what
	// they are set to.
	SPort, DPort uint16
	ICMPType     uint8  // for ICMP and ICMPv6
	IPsec        bool   // it came out of IPsec
	VNI          uint32 // of VXLAN, the 24 bits that UDP packets have in its place; 0 for a packet too short
	// State is one StateXxx bit, ct state; 0 counts as StateNew. A packet
	// that is invalid or untracked has no connection-tracking entry, so that
	// neither ct status nor ct original match it, negated or not.
	State   uint32
	Status  uint32     // ct status: StatusDNAT or 0
	OrigDst netip.Addr // ct original daddr; the zero Addr stands for Dst
	// Time decides which elements have expired. At the zero Time none has.
	Time time.Time
}

// priorityConntrack is NF_IP_PRI_CONNTRACK, linux/netfilter_ipv4.h: where
// connection tracking looks at packets that come in or that the host sends.
const priorityConntrack = -200

// seenBy gives p as a chain at that hook and priority sees it: ahead of
// connection tracking no packet has an entry, but for those on lo, which
// brought theirs along from output.
func (p Packet) seenBy(c *Chain) Packet {
	p.Src, p.Dst, p.OrigDst = p.Src.Unmap(), p.Dst.Unmap(), p.OrigDst.Unmap()
	if p.State == 0 {
		p.State = StateNew
	}
	if !p.OrigDst.IsValid() {
		p.OrigDst = p.Dst
	}
	early := c.Priority < priorityConntrack && (c.Hook == Prerouting && p.IIf != "lo" || c.Hook == Output)
	if early && p.State != StateUntracked {
		p.State = StateInvalid
	}
	return p
}

func (p *Packet) tracked() bool {
	return p.State&(StateNew|StateEstablished|StateRelated) != 0
}

func (p *Packet) family() uint32 {
	if p.Dst.Is4() {
		return NFProtoIPv4
	}
	return NFProtoIPv6
}

// has tells whether the packet has the field at all. A rule that asks for a
// field that is not there does not match, whatever the comparison.
func (p *Packet) has(f Field) bool {
	info := f.info()
	if info.family != 0 && info.family != p.family() {
		return false
	}
	if info.needs != 0 && info.needs != p.Proto {
		return false
	}
	switch f {
	case CtStatus, CtOrigIPDaddr, CtOrigIP6Daddr:
		return p.tracked()
	case VNI:
		return p.VNI != 0
	default:
		return true
	}
}

// addr gives the value of an address field.
func (p *Packet) addr(f Field) netip.Addr {
	switch f {
	case IPSaddr, IP6Saddr:
		return p.Src
	case CtOrigIPDaddr, CtOrigIP6Daddr:
		return p.OrigDst
	default:
		return p.Dst
	}
}

// num gives the value of a field that is a number.
func (p *Packet) num(f Field) uint32 {
	switch f {
	case NFProto:
		return p.family()
	case L4Proto:
		return uint32(p.Proto)
	case Sport:
		return uint32(p.SPort)
	case Dport:
		return uint32(p.DPort)
	case ICMPType, ICMPv6Type:
		return uint32(p.ICMPType)
	case CtState:
		return p.State
	case CtStatus:
		return p.Status
	case VNI:
		return p.VNI
	case IPsec:
		if p.IPsec {
			return 1
		}
		return 0
	default:
		return 0
	}
}

// name gives the value of an interface field. A packet without that interface
// has the empty name, as in the kernel.
func (p *Packet) name(f Field) string {
	if f == IIfName {
		return p.IIf
	}
	return p.OIf
}
