package nft

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ruleReader turns the expressions of one rule into a ForeignRule. It knows
// what people and iptables write most; a rule that it cannot read is still one
// with a handle and a verdict.
type ruleReader struct {
	rule   *ForeignRule
	family string
	loaded map[uint64]loadedField // by register
	byMap  verdictMap             // where rule.ByMap is set
	words  []string
}

// loadedField is what was loaded into a register.
type loadedField struct {
	name string
	mask []byte // of a bitwise expression, nil for none
}

func (d *ruleReader) text() string { return strings.Join(d.words, " ") }

func (d *ruleReader) say(format string, args ...any) {
	d.words = append(d.words, fmt.Sprintf(format, args...))
}

// when says a condition.
func (d *ruleReader) when(format string, args ...any) {
	d.rule.Conditional = true
	d.say(format, args...)
}

// parts are the attributes of an expression by type. All that matters here
// are numbers below 16.
type parts [16][]byte

func partsOf(b []byte) (f parts) {
	for typ, v := range attributes(b) {
		if int(typ) < len(f) {
			f[typ] = v
		}
	}
	return f
}

// expression reads one element of the list of expressions.
func (d *ruleReader) expression(e []byte) {
	whole := partsOf(e)
	name, f := text(whole[unix.NFTA_EXPR_NAME]), partsOf(whole[unix.NFTA_EXPR_DATA])
	switch name {
	case "meta":
		if f[unix.NFTA_META_DREG] == nil {
			d.say("<set meta>")
			return
		}
		d.load(f[unix.NFTA_META_DREG], metaName(number(f[unix.NFTA_META_KEY])))
	case "ct":
		if f[unix.NFTA_CT_DREG] == nil {
			d.say("<set ct>")
			return
		}
		d.load(f[unix.NFTA_CT_DREG], ctName(number(f[unix.NFTA_CT_KEY])))
	case "payload":
		d.load(f[unix.NFTA_PAYLOAD_DREG], d.payloadName(number(f[unix.NFTA_PAYLOAD_BASE]),
			number(f[unix.NFTA_PAYLOAD_OFFSET]), number(f[unix.NFTA_PAYLOAD_LEN])))
	case "fib":
		name := "fib daddr"
		if number(f[unix.NFTA_FIB_FLAGS])&unix.NFTA_FIB_F_SADDR != 0 {
			name = "fib saddr"
		}
		d.load(f[unix.NFTA_FIB_DREG], name)
	case "bitwise":
		from := d.loaded[number(f[unix.NFTA_BITWISE_SREG])]
		from.mask = partsOf(f[unix.NFTA_BITWISE_MASK])[unix.NFTA_DATA_VALUE]
		d.loaded[number(f[unix.NFTA_BITWISE_DREG])] = from
	case "cmp":
		d.compare(d.loaded[number(f[unix.NFTA_CMP_SREG])], number(f[unix.NFTA_CMP_OP]),
			partsOf(f[unix.NFTA_CMP_DATA])[unix.NFTA_DATA_VALUE])
	case "lookup":
		d.lookup(f)
	case "immediate":
		d.verdict(partsOf(f[unix.NFTA_IMMEDIATE_DATA])[unix.NFTA_DATA_VERDICT])
	case "reject":
		d.rule.Refuses = true
		d.say("reject")
	case "notrack":
		d.rule.Notrack = true
		d.say("notrack")
	case "counter":
	case "log":
		d.say("log")
	case "limit":
		d.when("<limit>")
	case "match":
		d.match(text(f[unix.NFTA_MATCH_NAME]), f[unix.NFTA_MATCH_INFO])
	case "target":
		d.target(text(f[unix.NFTA_TARGET_NAME]), f[unix.NFTA_TARGET_INFO])
	default:
		d.when("<%s>", name)
	}
}

func (d *ruleReader) load(register []byte, name string) {
	d.loaded[number(register)] = loadedField{name: name}
}

// metaName names a key of enum nft_meta_keys.
func metaName(key uint64) string {
	switch key {
	case unix.NFT_META_IIFNAME:
		return "iifname"
	case unix.NFT_META_OIFNAME:
		return "oifname"
	case unix.NFT_META_IIF:
		return "iif"
	case unix.NFT_META_OIF:
		return "oif"
	case unix.NFT_META_MARK:
		return "meta mark"
	case unix.NFT_META_NFPROTO:
		return "meta nfproto"
	case unix.NFT_META_L4PROTO:
		return "meta l4proto"
	case unix.NFT_META_PKTTYPE:
		return "meta pkttype"
	default:
		return fmt.Sprintf("<meta %d>", key)
	}
}

// ctName names a key of enum nft_ct_keys.
func ctName(key uint64) string {
	switch key {
	case unix.NFT_CT_STATE:
		return "ct state"
	case unix.NFT_CT_STATUS:
		return "ct status"
	case unix.NFT_CT_MARK:
		return "ct mark"
	default:
		return fmt.Sprintf("<ct %d>", key)
	}
}

// payloadName names a field of the IPv4 or IPv6 header, or the ports, which
// TCP, UDP, SCTP and DCCP have in the same places.
func (d *ruleReader) payloadName(base, offset, length uint64) string {
	v6 := d.family == "ip6" || (d.family == "inet" || d.family == "netdev") && (length > 4 || offset == 24)
	switch {
	case base == unix.NFT_PAYLOAD_NETWORK_HEADER && v6 && offset == 8:
		return "ip6 saddr"
	case base == unix.NFT_PAYLOAD_NETWORK_HEADER && v6 && offset == 24:
		return "ip6 daddr"
	case base == unix.NFT_PAYLOAD_NETWORK_HEADER && !v6 && offset == 12:
		return "ip saddr"
	case base == unix.NFT_PAYLOAD_NETWORK_HEADER && !v6 && offset == 16:
		return "ip daddr"
	case base == unix.NFT_PAYLOAD_NETWORK_HEADER && !v6 && offset == 9:
		return "ip protocol"
	case base == unix.NFT_PAYLOAD_TRANSPORT_HEADER && offset == 0 && length == 2:
		return "th sport"
	case base == unix.NFT_PAYLOAD_TRANSPORT_HEADER && offset == 2 && length == 2:
		return "th dport"
	default:
		return fmt.Sprintf("<@%d,%d,%d>", base, offset*8, length*8)
	}
}

// compare says a comparison of a field with a value.
func (d *ruleReader) compare(f loadedField, op uint64, value []byte) {
	operators := [...]string{"", "!= ", "< ", "<= ", "> ", ">= "} // enum nft_cmp_ops
	operator := "<op> "
	if op < uint64(len(operators)) {
		operator = operators[op]
	}
	if f.mask != nil && number(value) == 0 && op == unix.NFT_CMP_NEQ {
		d.flags(f) // "has one of these", as in ct state invalid
		return
	}
	if op == unix.NFT_CMP_EQ && f.mask == nil && f.name == "ct state" && nativeNumber(value) != 0 {
		d.flags(loadedField{f.name, value}) // only these
		return
	}
	d.when("%s %s%s", f.name, operator, formatValue(f, value))
}

// flags says that one of the bits of the mask is set.
func (d *ruleReader) flags(f loadedField) {
	var names []string
	for bit, name := range flagNames(f.name) {
		if name != "" && nativeNumber(f.mask)>>bit&1 != 0 {
			names = append(names, name)
		}
	}
	if len(names) != bits.OnesCount32(nativeNumber(f.mask)) || len(names) == 0 {
		names = []string{fmt.Sprintf("& 0x%x", nativeNumber(f.mask))}
	}
	if f.name == "ct state" && nativeNumber(f.mask) == ctInvalid {
		d.rule.OnlyInvalid = true
	}
	d.when("%s %s", f.name, strings.Join(names, ","))
}

// ctInvalid is NF_CT_STATE_INVALID_BIT of linux/netfilter/nf_conntrack_common.h.
const ctInvalid = 1

// flagNames gives the names of bits from the lowest on: those of ct state as
// NF_CT_STATE_BIT of linux/netfilter/nf_conntrack_common.h builds them, those of
// ct status from enum ip_conntrack_status.
func flagNames(field string) []string {
	switch field {
	case "ct state":
		return []string{"invalid", "established", "related", "new", "", "", "untracked"}
	case "ct status":
		return []string{"", "", "", "", "snat", "dnat"}
	default:
		return nil
	}
}

func nativeNumber(b []byte) uint32 {
	if len(b) != 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}

func formatValue(f loadedField, value []byte) string {
	switch f.name {
	case "iifname", "oifname":
		if n := strings.IndexByte(string(value), 0); n < 0 {
			return strconv.Quote(string(value) + "*") // compared without its end
		}
		return strconv.Quote(text(value))
	case "ip saddr", "ip daddr":
		return formatPrefix(value, f.mask, 4)
	case "ip6 saddr", "ip6 daddr":
		return formatPrefix(value, f.mask, 16)
	case "iif", "oif":
		return strconv.FormatUint(uint64(nativeNumber(value)), 10)
	case "th sport", "th dport":
		return strconv.FormatUint(number(value), 10)
	case "meta l4proto", "ip protocol":
		switch n := number(value); n {
		case unix.IPPROTO_TCP:
			return "tcp"
		case unix.IPPROTO_UDP:
			return "udp"
		case unix.IPPROTO_ICMP:
			return "icmp"
		default:
			return strconv.FormatUint(n, 10)
		}
	default:
		return fmt.Sprintf("0x%x", value)
	}
}

// formatPrefix writes an address. A prefix of whole bytes is compared by these
// alone.
func formatPrefix(value, mask []byte, size int) string {
	length := len(value) * 8
	if mask != nil {
		length = 0
		for _, b := range mask {
			length += bits.LeadingZeros8(^b)
		}
	}
	whole := make([]byte, size)
	copy(whole, value)
	a, _ := netip.AddrFromSlice(whole) // of four or sixteen bytes
	if length == size*8 {
		return a.String()
	}
	return netip.PrefixFrom(a, length).String()
}

func (d *ruleReader) lookup(f parts) {
	field, name := d.loaded[number(f[unix.NFTA_LOOKUP_SREG])].name, text(f[unix.NFTA_LOOKUP_SET])
	set, not := "@"+name, ""
	if strings.HasPrefix(set, "@__") {
		set = "{ … }"
	}
	if number(f[unix.NFTA_LOOKUP_FLAGS])&unix.NFT_LOOKUP_F_INV != 0 {
		not = "!= "
	}
	if f[unix.NFTA_LOOKUP_DREG] == nil {
		d.when("%s %s%s", field, not, set)
		return
	}
	if number(f[unix.NFTA_LOOKUP_DREG]) == unix.NFT_REG_VERDICT {
		d.rule.ByMap, d.byMap = true, verdictMap{name: name, field: field}
		d.when("%s vmap %s", field, set)
	}
}

// jump and its relatives are negative in enum nft_verdicts.
func (d *ruleReader) verdict(v []byte) {
	if v == nil {
		return // a value for a statement
	}
	f := partsOf(v)
	to := text(f[unix.NFTA_VERDICT_CHAIN])
	switch code := int32(number(f[unix.NFTA_VERDICT_CODE])); code {
	case nfDrop:
		d.rule.Refuses = true
		d.say("drop")
	case nfAccept:
		d.say("accept")
	case unix.NFT_RETURN:
		d.say("return")
	case unix.NFT_JUMP:
		d.rule.To = to
		d.say("jump %s", to)
	case unix.NFT_GOTO:
		d.rule.To = to
		d.say("goto %s", to)
	default:
		d.say("<verdict %d>", code)
	}
}

// Of struct xt_conntrack_mtinfo2 and 3 (linux/netfilter/xt_conntrack.h).
const (
	xtConntrackFlags  = 146 // match_flags, invert_flags and state_mask, 16 bits each
	xtConntrackState  = 1   // XT_CONNTRACK_STATE
	xtConntrackBroken = 1   // XT_CONNTRACK_STATE_INVALID
)

// match reads a match of iptables.
func (d *ruleReader) match(name string, info []byte) {
	if name == "conntrack" && len(info) >= xtConntrackFlags+6 {
		flags := info[xtConntrackFlags:]
		if binary.NativeEndian.Uint16(flags) == xtConntrackState && binary.NativeEndian.Uint16(flags[2:]) == 0 &&
			binary.NativeEndian.Uint16(flags[4:]) == xtConntrackBroken {
			d.rule.OnlyInvalid = true
			d.when("ct state invalid")
			return
		}
	}
	if name == "comment" {
		return
	}
	d.when("<match %s>", name)
}

// xtCTNotrack is XT_CT_NOTRACK, a flag in the first 16 bits of every revision
// of struct xt_ct_target_info.
const xtCTNotrack = 1

// target reads a target of iptables.
func (d *ruleReader) target(name string, info []byte) {
	switch {
	case name == "REJECT", name == "DROP":
		d.rule.Refuses = true
	case name == "NOTRACK", name == "CT" && len(info) >= 2 && binary.NativeEndian.Uint16(info)&xtCTNotrack != 0:
		d.rule.Notrack = true
		name = "NOTRACK"
	}
	d.say("<target %s>", name)
}
