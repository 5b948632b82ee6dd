package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/nftfw/nftfw/pkg/ruleset"
)

// Offsets in the network header: struct iphdr and struct ipv6hdr.
const (
	ipSaddrOffset  = 12
	ipDaddrOffset  = 16
	ip6SaddrOffset = 8
	ip6DaddrOffset = 24
	sportOffset    = 0 // the same for tcp, udp, udplite, dccp and sctp
	dportOffset    = 2
	icmpTypeOffset = 0
	vniOffset      = 8 + 4 // behind the header of UDP, in that of VXLAN (RFC 7348)
)

// metaSecpath is NFT_META_SECPATH of linux/netfilter/nf_tables.h, which
// golang.org/x/sys lacks.
const metaSecpath = 25

// firstRegister is NFT_REG_1 of the 16-byte registers, where nft puts every
// value that is compared.
const firstRegister = unix.NFT_REG_1

// encoder makes the expressions of one rule. It makes the same ones as nft does
// of the rule's text, because nft recognises the text in the expressions when it
// lists them.
type encoder struct {
	out     []expr.Any
	nfproto uint32 // what the rule has already made sure of; 0 nothing
	l4proto uint32
}

// encodeRule returns the expressions of r, and an error where r says something
// that has no expression.
func encodeRule(r ruleset.Rule) ([]expr.Any, error) {
	e := &encoder{}
	for i := 0; i < len(r.Matches); i++ {
		if i+1 < len(r.Matches) && e.ports(r.Matches[i], r.Matches[i+1]) {
			i++
			continue
		}
		if err := e.match(r.Matches[i]); err != nil {
			return nil, err
		}
	}
	if r.Update != nil {
		if err := e.load(r.Update.Key); err != nil {
			return nil, err
		}
		e.add(&expr.Dynset{SrcRegKey: firstRegister, SetName: r.Update.Set, Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: r.Update.Timeout})
	}
	if r.Limit != nil {
		unit, ok := limitUnits[r.Limit.Unit]
		if !ok {
			return nil, fmt.Errorf("limit unit %q is not known", r.Limit.Unit)
		}
		e.add(&expr.Limit{Type: expr.LimitTypePkts, Rate: r.Limit.Rate, Unit: unit, Burst: r.Limit.Burst})
	}
	if r.Counter {
		e.add(&expr.Counter{})
	}
	if r.Log != nil {
		e.add(&expr.Log{
			Key:   1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_PREFIX,
			Group: r.Log.Group,
			Data:  []byte(r.Log.Prefix),
		})
	}
	if r.VMap != nil {
		if err := e.load(r.VMap.Key); err != nil {
			return nil, err
		}
		e.add(&expr.Lookup{SourceRegister: firstRegister, SetName: r.VMap.Map, IsDestRegSet: true, DestRegister: unix.NFT_REG_VERDICT})
		return e.out, nil
	}
	if r.Verdict.Kind == ruleset.NoVerdict {
		return e.out, nil
	}
	kind, err := verdictCode(r.Verdict)
	if err != nil {
		return nil, err
	}
	e.add(&expr.Verdict{Kind: kind, Chain: r.Verdict.Chain})
	return e.out, nil
}

var limitUnits = map[string]expr.LimitTime{
	"second": expr.LimitTimeSecond,
	"minute": expr.LimitTimeMinute,
	"hour":   expr.LimitTimeHour,
	"day":    expr.LimitTimeDay,
}

// verdictCode returns the kernel's number of v.
func verdictCode(v ruleset.Verdict) (expr.VerdictKind, error) {
	switch v.Kind {
	case ruleset.Accept:
		return expr.VerdictAccept, nil
	case ruleset.Drop:
		return expr.VerdictDrop, nil
	case ruleset.Return:
		return expr.VerdictReturn, nil
	case ruleset.Jump:
		return expr.VerdictJump, nil
	case ruleset.Goto:
		return expr.VerdictGoto, nil
	case ruleset.NoVerdict:
	}
	return 0, fmt.Errorf("verdict %q is not known", v.Kind)
}

// verdictOf is the inverse of verdictCode; ok is false for other verdicts.
func verdictOf(code expr.VerdictKind, chain string) (ruleset.Verdict, bool) {
	for _, k := range []ruleset.VerdictKind{ruleset.Accept, ruleset.Drop, ruleset.Return, ruleset.Jump, ruleset.Goto} {
		if c, _ := verdictCode(ruleset.Verdict{Kind: k}); c == code {
			return ruleset.Verdict{Kind: k, Chain: chain}, true
		}
	}
	return ruleset.Verdict{}, false
}

func (e *encoder) add(x expr.Any) { e.out = append(e.out, x) }

// ports appends the expressions of a source's port and the destination's behind
// it, if that is what the two conditions are. They are side by side in the packet, and
// nft makes one comparison of them (payload_try_merge, src/rule.c): a table that it
// loads is to be the same as one of ours.
func (e *encoder) ports(from, to ruleset.Match) bool {
	is := func(m ruleset.Match, f ruleset.Field) bool {
		return m.Op == ruleset.OpNum && !m.Not && len(m.Fields) == 1 && m.Fields[0] == f
	}
	if !is(from, ruleset.Sport) || !is(to, ruleset.Dport) {
		return false
	}
	e.add(&expr.Payload{DestRegister: firstRegister, Base: expr.PayloadBaseTransportHeader, Offset: sportOffset, Len: 4})
	e.compare(false, append(value(ruleset.Sport, from.Num), value(ruleset.Dport, to.Num)...))
	return true
}

// match appends the expressions of one condition.
func (e *encoder) match(m ruleset.Match) error {
	if m.Op == ruleset.OpSet {
		if err := e.load(m.Fields); err != nil {
			return err
		}
		e.add(&expr.Lookup{SourceRegister: firstRegister, SetName: m.Set, Invert: m.Not})
		return nil
	}
	if len(m.Fields) != 1 {
		return fmt.Errorf("%d fields are compared with one value", len(m.Fields))
	}
	f := m.Fields[0]
	if m.Op == ruleset.OpPrefix {
		return e.prefix(f, m.Prefix, m.Not)
	}
	if err := e.load(m.Fields); err != nil {
		return err
	}
	switch m.Op {
	case ruleset.OpNum:
		e.compare(m.Not, value(f, m.Num))
		e.learn(f, m)
	case ruleset.OpRange:
		low, high := value(f, m.Num), value(f, m.High)
		if m.Not {
			e.add(&expr.Range{Op: expr.CmpOpNeq, Register: firstRegister, FromData: low, ToData: high})
			break
		}
		e.add(&expr.Cmp{Op: expr.CmpOpGte, Register: firstRegister, Data: low})
		e.add(&expr.Cmp{Op: expr.CmpOpLte, Register: firstRegister, Data: high})
	case ruleset.OpName:
		name, wild := strings.CutSuffix(m.Name, "*")
		if name == "" || len(name) >= ifnameSize {
			return fmt.Errorf("interface name %q matches nothing", m.Name)
		}
		b := []byte(name)
		for !wild && len(b) < ifnameSize {
			b = append(b, 0)
		}
		e.compare(m.Not, b)
	case ruleset.OpBits:
		mask := value(f, m.Num)
		zero := make([]byte, len(mask))
		e.mask(mask)
		e.compare(!m.Not, zero)
	default:
		return fmt.Errorf("operator %d is not known", m.Op)
	}
	return nil
}

// prefix compares an address. Where the prefix ends at a byte, nft loads only
// the bytes that count and needs no mask.
func (e *encoder) prefix(f ruleset.Field, p netip.Prefix, not bool) error {
	b := p.Masked().Addr().AsSlice()
	if len(b) != typeOf(f).len {
		return fmt.Errorf("prefix %v is of another family than its field", p)
	}
	bits := p.Bits()
	if bits > 0 && bits%8 == 0 {
		b = b[:bits/8]
		e.depend(f)
		if err := e.loadField(f, len(b), 0); err != nil {
			return err
		}
		e.compare(not, b)
		return nil
	}
	if err := e.load([]ruleset.Field{f}); err != nil {
		return err
	}
	mask := make([]byte, len(b))
	for i := range bits {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	e.mask(mask)
	e.compare(not, b)
	return nil
}

func (e *encoder) compare(not bool, data []byte) {
	op := expr.CmpOpEq
	if not {
		op = expr.CmpOpNeq
	}
	e.add(&expr.Cmp{Op: op, Register: firstRegister, Data: data})
}

func (e *encoder) mask(mask []byte) {
	e.add(&expr.Bitwise{
		SourceRegister: firstRegister,
		DestRegister:   firstRegister,
		Len:            uint32(len(mask)),
		Mask:           mask,
		Xor:            make([]byte, len(mask)),
	})
}

// value writes n as the field holds it.
func value(f ruleset.Field, n uint32) []byte {
	switch t := typeOf(f); t.len {
	case 1:
		return []byte{byte(n)}
	case 2:
		return binary.BigEndian.AppendUint16(nil, uint16(n))
	case 3:
		return []byte{byte(n >> 16), byte(n >> 8), byte(n)}
	default:
		if t.order == orderHost {
			return binary.NativeEndian.AppendUint32(nil, n)
		}
		return binary.BigEndian.AppendUint32(nil, n)
	}
}

// learn notes what the comparison has made sure of for the rest of the rule.
func (e *encoder) learn(f ruleset.Field, m ruleset.Match) {
	switch {
	case m.Not:
	case f == ruleset.NFProto:
		e.nfproto = m.Num
	case f == ruleset.L4Proto:
		e.l4proto = m.Num
	}
}

// depend appends the comparisons without which the bytes of f would mean
// something else: the table sees both families, and every protocol.
func (e *encoder) depend(f ruleset.Field) {
	switch f {
	case ruleset.IPSaddr, ruleset.IPDaddr:
		e.require(ruleset.NFProto, ruleset.NFProtoIPv4, &e.nfproto)
	case ruleset.IP6Saddr, ruleset.IP6Daddr:
		e.require(ruleset.NFProto, ruleset.NFProtoIPv6, &e.nfproto)
	case ruleset.ICMPType:
		e.requireICMP(ruleset.NFProtoIPv4, unix.IPPROTO_ICMP)
	case ruleset.ICMPv6Type:
		e.requireICMP(ruleset.NFProtoIPv6, unix.IPPROTO_ICMPV6)
	default: // means the same in every packet
	}
}

func (e *encoder) requireICMP(nfproto, l4proto uint32) {
	if e.l4proto == l4proto {
		return // nft takes that as proof of the family too
	}
	e.require(ruleset.NFProto, nfproto, &e.nfproto)
	e.require(ruleset.L4Proto, l4proto, &e.l4proto)
}

func (e *encoder) require(f ruleset.Field, n uint32, known *uint32) {
	if *known == n {
		return
	}
	*known = n
	// Both are meta keys, which cannot fail to load.
	_ = e.loadField(f, typeOf(f).len, 0)
	e.compare(false, value(f, n))
}

// load puts the fields into registers, one after the other from the first one
// on, each at the next whole 32-bit register.
func (e *encoder) load(fields []ruleset.Field) error {
	if len(fields) == 0 {
		return fmt.Errorf("no field is named")
	}
	for _, f := range fields {
		e.depend(f)
	}
	word := 0
	for _, f := range fields {
		n := typeOf(f).len
		if err := e.loadField(f, n, word); err != nil {
			return err
		}
		word += padded(n) / register
	}
	return nil
}

// registerAt numbers the register that starts at the given 32-bit word. Four
// words are one NFT_REG_n; the kernel prefers that name where it fits.
func registerAt(word int) uint32 {
	if word%4 == 0 {
		return uint32(unix.NFT_REG_1 + word/4)
	}
	return uint32(unix.NFT_REG32_00 + word)
}

// loadField loads the first n bytes of f.
func (e *encoder) loadField(f ruleset.Field, n, word int) error {
	reg := registerAt(word)
	meta := func(k expr.MetaKey) { e.add(&expr.Meta{Key: k, Register: reg}) }
	ct := func(k expr.CtKey) { e.add(&expr.Ct{Key: k, Register: reg}) }
	bytes := func(base expr.PayloadBase, offset uint32) {
		e.add(&expr.Payload{DestRegister: reg, Base: base, Offset: offset, Len: uint32(n)})
	}
	switch f {
	case ruleset.IPSaddr:
		bytes(expr.PayloadBaseNetworkHeader, ipSaddrOffset)
	case ruleset.IPDaddr:
		bytes(expr.PayloadBaseNetworkHeader, ipDaddrOffset)
	case ruleset.IP6Saddr:
		bytes(expr.PayloadBaseNetworkHeader, ip6SaddrOffset)
	case ruleset.IP6Daddr:
		bytes(expr.PayloadBaseNetworkHeader, ip6DaddrOffset)
	case ruleset.Sport:
		bytes(expr.PayloadBaseTransportHeader, sportOffset)
	case ruleset.Dport:
		bytes(expr.PayloadBaseTransportHeader, dportOffset)
	case ruleset.ICMPType, ruleset.ICMPv6Type:
		bytes(expr.PayloadBaseTransportHeader, icmpTypeOffset)
	case ruleset.VNI:
		bytes(expr.PayloadBaseTransportHeader, vniOffset)
	case ruleset.IPsec:
		meta(metaSecpath)
	case ruleset.NFProto:
		meta(expr.MetaKeyNFPROTO)
	case ruleset.L4Proto:
		meta(expr.MetaKeyL4PROTO)
	case ruleset.IIfName:
		meta(expr.MetaKeyIIFNAME)
	case ruleset.OIfName:
		meta(expr.MetaKeyOIFNAME)
	case ruleset.CtState:
		ct(expr.CtKeySTATE)
	case ruleset.CtStatus:
		ct(expr.CtKeySTATUS)
	case ruleset.CtOrigIPDaddr: // direction 0 is the original one
		ct(expr.CtKeyDSTIP)
	case ruleset.CtOrigIP6Daddr:
		ct(expr.CtKeyDSTIP6)
	default:
		return fmt.Errorf("field %d is not known", f)
	}
	return nil
}
