package ruleset

import (
	"iter"
	"net/netip"
	"slices"
	"time"

	"github.com/nftfw/nftfw/pkg/addrset"
)

// Table is a whole nftables table of family inet. Two Tables made from the
// same inputs are equal, byte for byte when written as text. A Table is not
// changed once it is built.
type Table struct {
	Name   string
	Sets   []*Set   // sorted by Name; sets and verdict maps
	Chains []*Chain // in the order in which they are written
}

// Set returns the set or map called name, or nil.
func (t *Table) Set(name string) *Set {
	for _, s := range t.Sets {
		if s.Name == name {
			return s
		}
	}
	return nil
}

// Chain returns the chain called name, or nil.
func (t *Table) Chain(name string) *Chain {
	for _, c := range t.Chains {
		if c.Name == name {
			return c
		}
	}
	return nil
}

// Set is a named set, or a verdict map when Verdicts is true.
//
// A set whose Interval is true holds address ranges with optional expiry in
// Ranges ("flags interval,timeout"); every other one holds exact keys in
// Elements. Both contents are immutable and may be shared between Tables: an
// equal pointer (or an equal map header) means equal contents.
type Set struct {
	Name string
	// Key lists the packet fields that make up the key, in order. The
	// kernel type of each follows from the field (KeyType).
	Key      []Field
	Verdicts bool // a verdict map
	Interval bool
	// Part says which pieces of Ranges the set holds.
	Part Part
	// Counter has every element count the packets that find it ("counter"). What
	// was counted is no part of the Table. Not for interval sets.
	Counter bool

	// Dynamic sets are filled while the table is in force, by elements with a
	// timeout of their own and by rules with an Update ("flags
	// dynamic,timeout"). What they hold is no part of the Table: Ranges and
	// Elements stay empty, and Eval finds nothing in them.
	Dynamic bool
	Size    uint32        // of a Dynamic set, and of the part Lasting: how many elements fit; never 0
	Timeout time.Duration // of a Dynamic set: of elements without one, in whole seconds; 0 is none

	Ranges   *addrset.Segments // for sets that HoldsRanges; nil is empty
	Elements map[Key]Element   // for the others; nil is empty
}

// Part says which pieces of a set's Ranges are in it. In an interval set the
// kernel takes time in proportion to the set to find the place of a new
// element, and a lookup compares its way down a tree; in a hash it does neither.
// So the addresses of a set that is not small are in two sets of the kernel, which
// share their Ranges: pieces of few addresses (addrset.Few) one by one in the hash.
// A hash of one size takes the kernel a sixth of the time to fill
// that a hash takes which grows, and less to look up, but has no timeouts.
type Part uint8

// The parts.
const (
	Whole   Part = iota // all pieces
	Wide                // those of more than few addresses, beside Hosts
	Hosts               // those of few, in a hash with timeouts ("flags timeout")
	Rest                // those that are not in Lasting, beside it
	Lasting             // those of few that never expire, in a hash of one size ("size")
)

// single reports whether the part is a hash of single addresses.
func (p Part) single() bool { return p == Hosts || p == Lasting }

// Singles reports whether s holds single addresses, in a hash.
func (s *Set) Singles() bool { return s.Part.single() }

// HoldsRanges reports whether the contents of s are Ranges.
func (s *Set) HoldsRanges() bool { return s.Interval || s.Singles() }

// holds reports whether a piece is in the part.
func (p Part) holds(g addrset.Segment) bool {
	switch p {
	case Wide, Hosts:
		return g.Few() == (p == Hosts)
	case Rest, Lasting:
		return g.Lasting() == (p == Lasting)
	default:
		return true
	}
}

// Pieces yields what of Ranges is in s, in order and split.
func (s *Set) Pieces() iter.Seq[addrset.Segment] {
	return func(yield func(addrset.Segment) bool) {
		for g := range s.Ranges.Each() {
			if !s.Part.holds(g) {
				continue
			}
			for e := range s.Split(g) {
				if !yield(e) {
					return
				}
			}
		}
	}
}

// Split yields the elements that a piece of Ranges is in s: its single addresses in
// a hash, else the piece itself.
func (s *Set) Split(g addrset.Segment) iter.Seq[addrset.Segment] {
	if s.Singles() {
		return g.Addrs()
	}
	return func(yield func(addrset.Segment) bool) { yield(g) }
}

// PieceCount is the number of Pieces.
func (s *Set) PieceCount() int {
	switch s.Part {
	case Wide:
		return s.Ranges.Len() - s.Ranges.Few().Pieces
	case Hosts:
		return s.Ranges.Few().Addrs
	case Rest:
		return s.Ranges.Len() - s.Ranges.Lasting().Pieces
	case Lasting:
		return s.Ranges.Lasting().Addrs
	default:
		return s.Ranges.Len()
	}
}

// PieceChanges yields in order where what s holds differs from what it held with
// other Ranges and the same Part. Pieces are not split: an address may be in one that
// went and in one that came.
func (s *Set) PieceChanges(old *addrset.Segments) iter.Seq[addrset.Change] {
	none := addrset.Segment{}
	return func(yield func(addrset.Change) bool) {
		for c := range s.Ranges.Changes(old) {
			if c.Old != none && !s.Part.holds(c.Old) {
				c.Old = none
			}
			if c.New != none && !s.Part.holds(c.New) {
				c.New = none
			}
			if c.Old != c.New && !yield(c) {
				return
			}
		}
	}
}

// Key is the key of one element. Only the members that the Set's Key fields
// name are used; the others are zero.
type Key struct {
	Orig  netip.Addr // ct original daddr
	Addr  netip.Addr // ip or ip6 saddr or daddr
	Proto uint8      // meta l4proto
	Port  uint16     // th sport or dport
	Type  uint8      // icmp or icmpv6 type
	IIf   string     // iifname, or the only interface of a one-field key
	OIf   string     // oifname
}

// Element is what a key of a set carries.
type Element struct {
	Verdict Verdict // for verdict maps only
	// Comment is stored in the kernel with the element (NFTNL_UDATA_SET_ELEM_COMMENT,
	// at most 128 bytes). Elements made for a container carry its ID.
	Comment string
	// Origin says who asked for the element: a policy line or a label. It is
	// not stored in the kernel and does not count when elements are compared.
	Origin string
}

// Hook is a netfilter hook of family inet.
type Hook string

// The hooks that a base chain may stand at.
const (
	Prerouting  Hook = "prerouting"
	Input       Hook = "input"
	Forward     Hook = "forward"
	Output      Hook = "output"
	Postrouting Hook = "postrouting"
)

// Priorities of nf_ip_hook_priorities, include/uapi/linux/netfilter_ipv4.h.
const (
	PriorityRaw    = -300
	PriorityFilter = 0
)

// Chain is a base chain when Hook is set, else a regular chain.
type Chain struct {
	Name     string
	Hook     Hook // "" for a regular chain
	Priority int
	Policy   VerdictKind // Accept or Drop; base chains only
	Rules    []Rule
}

// Rule applies its verdict when every match holds. Statements are written in
// the order Matches, Update, Limit, Counter, Log, Verdict or VMap.
type Rule struct {
	Matches []Match
	Update  *Update // not together with VMap
	Limit   *Limit
	Counter bool
	Log     *Log
	Verdict Verdict // the zero Verdict: none, evaluation goes on
	VMap    *VMap   // instead of Verdict
	// Origin says which line of which policy asked for the rule, for
	// explain. It is not stored in the kernel.
	Origin string
}

// Update is "update @SET { KEY timeout T }": it puts the concatenation of Key
// into a Dynamic set, or lets what is there begin its time anew.
type Update struct {
	Set     string
	Key     []Field
	Timeout time.Duration // in whole seconds; 0 is the set's
}

// VMap looks the concatenation of Key up in the verdict map Map.
type VMap struct {
	Key []Field
	Map string
}

// Limit is "limit rate N/UNIT burst B packets".
type Limit struct {
	Rate  uint64
	Unit  string // second, minute, hour, day
	Burst uint32
}

// Log is "log prefix P group G": packets go to an NFLOG group.
type Log struct {
	Prefix string
	Group  uint16
}

// VerdictKind names an nftables verdict.
type VerdictKind string

// The verdicts. The empty kind is no verdict at all.
const (
	NoVerdict VerdictKind = ""
	Accept    VerdictKind = "accept"
	Drop      VerdictKind = "drop"
	Return    VerdictKind = "return"
	Jump      VerdictKind = "jump"
	Goto      VerdictKind = "goto"
)

// Verdict is a verdict with the chain that jump and goto name.
type Verdict struct {
	Kind  VerdictKind
	Chain string
}

// Field is a property of a packet or of its connection-tracking entry that a
// rule can look at.
type Field uint8

// The fields. The comment gives the nft spelling.
const (
	_              Field = iota
	IPSaddr              // ip saddr
	IPDaddr              // ip daddr
	IP6Saddr             // ip6 saddr
	IP6Daddr             // ip6 daddr
	NFProto              // meta nfproto
	L4Proto              // meta l4proto
	Sport                // th sport
	Dport                // th dport
	IIfName              // iifname
	OIfName              // oifname
	CtState              // ct state
	CtStatus             // ct status
	CtOrigIPDaddr        // ct original ip daddr
	CtOrigIP6Daddr       // ct original ip6 daddr
	ICMPType             // icmp type
	ICMPv6Type           // icmpv6 type
	IPsec                // meta ipsec: 1 for a packet that came out of IPsec, else 0; not at output and postrouting
	VNI                  // @th,96,24: where VXLAN in UDP has its network identifier
)

// Bits of ct state, enum ip_conntrack_info as nft numbers them
// (NF_CT_STATE_BIT, include/uapi/linux/netfilter/nf_conntrack_common.h).
const (
	StateInvalid     = 1 << 0
	StateEstablished = 1 << 1
	StateRelated     = 1 << 2
	StateNew         = 1 << 3
	StateUntracked   = 1 << 6
)

// StatusDNAT is IPS_DST_NAT, include/uapi/linux/netfilter/nf_conntrack_common.h.
const StatusDNAT = 1 << 5

// Values of meta nfproto (NFPROTO_IPV4, NFPROTO_IPV6, linux/netfilter.h).
const (
	NFProtoIPv4 = 2
	NFProtoIPv6 = 10
)

// Match is one condition of a rule: a field, or for a lookup in a set a
// concatenation of fields, against exactly one of the operands below. Build
// it with the functions In, Is, Between, Within, Named and HasBits.
type Match struct {
	Fields []Field
	Not    bool // !=; for the operands Num, Prefix, Name and Set

	Op     Op
	Set    string       // OpSet
	Num    uint32       // OpNum; the low end for OpRange; the mask for OpBits
	High   uint32       // OpRange, inclusive
	Prefix netip.Prefix // OpPrefix; a whole-address prefix is an exact match
	Name   string       // OpName; a trailing * matches any rest
}

// Op tells which operand of a Match counts.
type Op uint8

// The operators of Match.
const (
	_        Op = iota
	OpSet       // fields in a named set
	OpNum       // field equals a number
	OpRange     // field lies in an inclusive range of numbers
	OpPrefix    // address lies in a prefix
	OpName      // interface name equals, or has the prefix before *
	OpBits      // any of the bits of the mask is set
)

// In matches packets whose fields, concatenated, are a key of the named set.
func In(set string, fields ...Field) Match {
	return Match{Fields: fields, Op: OpSet, Set: set}
}

// Is matches packets whose field equals n.
func Is(f Field, n uint32) Match { return Match{Fields: []Field{f}, Op: OpNum, Num: n} }

// Between matches packets whose field lies between low and high, both included.
func Between(f Field, low, high uint32) Match {
	return Match{Fields: []Field{f}, Op: OpRange, Num: low, High: high}
}

// Within matches packets whose address field lies in p.
func Within(f Field, p netip.Prefix) Match {
	return Match{Fields: []Field{f}, Op: OpPrefix, Prefix: p}
}

// Named matches packets whose interface field is name; "tun*" matches every
// name that begins with tun.
func Named(f Field, name string) Match {
	return Match{Fields: []Field{f}, Op: OpName, Name: name}
}

// HasBits matches packets whose ct state or ct status has any bit of mask.
func HasBits(f Field, mask uint32) Match {
	return Match{Fields: []Field{f}, Op: OpBits, Num: mask}
}

// Negate returns m with its comparison inverted.
func (m Match) Negate() Match {
	m.Not = !m.Not
	return m
}

// WithRanges returns a copy of t in which the sets for which others gives some hold
// other ranges. Everything else is shared with t.
func (t *Table) WithRanges(others func(*Set) (ranges *addrset.Segments, ok bool)) *Table {
	out := *t
	out.Sets = slices.Clone(t.Sets)
	for i, s := range out.Sets {
		if r, ok := others(s); ok {
			changed := *s
			changed.Ranges = r
			out.Sets[i] = &changed
		}
	}
	return &out
}
