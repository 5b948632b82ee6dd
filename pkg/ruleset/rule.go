package ruleset

import (
	"fmt"
	"strconv"
	"strings"
)

// defaultBurst is the burst of a limit that does not name one, and the one
// that nft does not print (NFT_LIMIT_PKT_BURST_DEFAULT, net/netfilter/nft_limit.c).
const defaultBurst = 5

// String gives the rule as nft lists it, but for the numbers of its counter:
// "tcp dport 22 counter accept".
func (r Rule) String() string { return r.text("counter") }

// text writes the rule with counter as its counter statement. Matches that nft
// hides in its listing, because a later one implies them, are left out.
func (r Rule) text(counter string) string {
	var b strings.Builder
	hidden := r.hidden()
	proto := l4Context{}
	for i, m := range r.Matches {
		if !hidden[i] {
			separate(&b)
			m.write(&b, proto)
		}
		proto = proto.after(m)
	}
	if r.Update != nil {
		separate(&b)
		r.Update.write(&b, proto)
	}
	if r.Limit != nil {
		separate(&b)
		r.Limit.write(&b)
	}
	if r.Counter {
		separate(&b)
		b.WriteString(counter)
	}
	if r.Log != nil {
		separate(&b)
		r.Log.write(&b)
	}
	switch {
	case r.VMap != nil:
		separate(&b)
		writeFields(&b, r.VMap.Key, proto)
		b.WriteString(" vmap @")
		b.WriteString(r.VMap.Map)
	case r.Verdict.Kind != NoVerdict:
		separate(&b)
		b.WriteString(r.Verdict.String())
	}
	return b.String()
}

func separate(b *strings.Builder) {
	if b.Len() > 0 {
		b.WriteByte(' ')
	}
}

// hidden marks the matches of the family and of the L4 protocol that nft
// leaves out of its listing and puts back when it loads the text. nft removes
// "meta nfproto" once it meets a field of an IP header, and "meta l4proto"
// once it meets a port or an ICMP type; a limit, counter or log statement in
// between makes it forget that it could (payload_dependency_kill and
// ct_meta_common_postprocess, nftables 1.0.6).
func (r Rule) hidden() []bool {
	hidden := make([]bool, len(r.Matches))
	family, proto := -1, -1 // matches that may still be hidden
	drop := func(i *int) {
		if *i >= 0 {
			hidden[*i] = true
			*i = -1
		}
	}
	visit := func(fields []Field) {
		for _, f := range fields {
			info := f.info()
			switch {
			case info.kind == kindPort:
				drop(&proto)
			case info.kind == kindICMP:
				drop(&proto)
				if family >= 0 && r.Matches[family].Num == info.family {
					drop(&family)
				}
			case info.kind == kindAddr && f != CtOrigIPDaddr && f != CtOrigIP6Daddr:
				drop(&family)
			}
		}
	}
	for i, m := range r.Matches {
		visit(m.Fields)
		if m.Op != OpNum || m.Not {
			continue
		}
		switch m.Fields[0] {
		case NFProto:
			family = i
		case L4Proto:
			// The ICMPs belong to one family each.
			if family >= 0 && r.Matches[family].Num == icmpFamily(m.Num) {
				drop(&family)
			}
			proto = i
		default: // no other match can be left out
		}
	}
	if r.Update != nil {
		visit(r.Update.Key)
	}
	if r.VMap != nil && r.Limit == nil && !r.Counter && r.Log == nil {
		visit(r.VMap.Key)
	}
	return hidden
}

// icmpFamily gives the family that an ICMP protocol number belongs to, or 0.
func icmpFamily(proto uint32) uint32 {
	switch proto {
	case protoICMP:
		return NFProtoIPv4
	case protoICMPv6:
		return NFProtoIPv6
	}
	return 0
}

// l4Context is the L4 protocol that the matches so far have pinned down.
type l4Context struct {
	proto uint8
	known bool
}

func (c l4Context) after(m Match) l4Context {
	if m.Op == OpNum && !m.Not && m.Fields[0] == L4Proto {
		return l4Context{uint8(m.Num), true}
	}
	for _, f := range m.Fields {
		if p := f.info().needs; p != 0 {
			return l4Context{p, true}
		}
	}
	return c
}

func writeFields(b *strings.Builder, fields []Field, proto l4Context) {
	for i, f := range fields {
		if i > 0 {
			b.WriteString(" . ")
		}
		if f.info().kind == kindPort && proto.known && hasPorts(proto.proto) {
			b.WriteString(ProtocolName(proto.proto))
			b.WriteString(strings.TrimPrefix(f.String(), "th"))
			continue
		}
		b.WriteString(f.String())
	}
}

// String gives the match as nft prints it by itself: "th dport 22" even where
// another match of the rule makes it "tcp dport 22".
func (m Match) String() string {
	var b strings.Builder
	m.write(&b, l4Context{})
	return b.String()
}

func (m Match) write(b *strings.Builder, proto l4Context) {
	writeFields(b, m.Fields, proto)
	b.WriteByte(' ')
	if m.Not {
		b.WriteString("!= ")
	}
	switch m.Op {
	case OpSet:
		b.WriteByte('@')
		b.WriteString(m.Set)
	case OpNum:
		m.writeNum(b)
	case OpRange:
		b.WriteString(strconv.FormatUint(uint64(m.Num), 10))
		b.WriteByte('-')
		b.WriteString(strconv.FormatUint(uint64(m.High), 10))
	case OpPrefix:
		b.Write(appendAddr(nil, m.Prefix.Masked().Addr()))
		if m.Prefix.Bits() != m.Prefix.Addr().BitLen() {
			b.WriteByte('/')
			b.WriteString(strconv.Itoa(m.Prefix.Bits()))
		}
	case OpName:
		b.WriteByte('"')
		b.WriteString(m.Name)
		b.WriteByte('"')
	case OpBits:
		if m.Fields[0] == CtState {
			appendMask(b, m.Num, stateName, ",")
		} else {
			appendMask(b, m.Num, statusName, ",")
		}
	}
}

// writeNum writes the operand of OpNum. A bit field compared as a whole takes
// "==", since nft reads a bare value as any of its bits.
func (m Match) writeNum(b *strings.Builder) {
	name := stateName
	switch m.Fields[0] {
	case NFProto:
		b.WriteString(nfprotoName(m.Num))
		return
	case L4Proto:
		b.WriteString(ProtocolName(uint8(m.Num)))
		return
	case ICMPType:
		b.WriteString(icmpTypeName(uint8(m.Num)))
		return
	case ICMPv6Type:
		b.WriteString(icmp6TypeName(uint8(m.Num)))
		return
	case IPsec:
		b.WriteString([...]string{"missing", "exists"}[m.Num&1])
		return
	case VNI:
		fmt.Fprintf(b, "0x%x", m.Num)
		return
	case CtStatus:
		name = statusName
	case CtState:
	default:
		b.WriteString(strconv.FormatUint(uint64(m.Num), 10))
		return
	}
	if !m.Not {
		b.WriteString("== ")
	}
	appendMask(b, m.Num, name, " | ")
}

// String gives the verdict as nft prints it, "goto refuse"; "" for none.
func (v Verdict) String() string {
	if v.Chain == "" {
		return string(v.Kind)
	}
	return string(v.Kind) + " " + v.Chain
}

func (l *Limit) write(b *strings.Builder) {
	fmt.Fprintf(b, "limit rate %d/%s", l.Rate, l.Unit)
	if l.Burst != 0 && l.Burst != defaultBurst {
		fmt.Fprintf(b, " burst %d packets", l.Burst)
	}
}

func (l *Log) write(b *strings.Builder) {
	b.WriteString("log ")
	if l.Prefix != "" {
		fmt.Fprintf(b, `prefix "%s" `, l.Prefix)
	}
	fmt.Fprintf(b, "group %d", l.Group)
}
