package addrset

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strings"
)

// Range is an inclusive range of addresses of one family. The zero Range is
// invalid. Ranges from ParseRange and RangeOf are comparable with ==.
type Range struct{ From, To netip.Addr }

// ParseError says why a text is not a range of addresses.
type ParseError struct {
	Text   string // all of what was given to ParseRange
	Reason string
}

// Error names the text and the reason.
func (e *ParseError) Error() string {
	return fmt.Sprintf("%q is not an address, CIDR or range: %s", e.Text, e.Reason)
}

// ParseRange reads an address, a CIDR or "a-b", IPv4 or IPv6. An IPv4-mapped
// address (::ffff:a.b.c.d) is read as IPv4, also in a range and in a CIDR of
// /96 or longer. Host bits of a CIDR are masked off, as nft does. Spaces,
// zones, mixed families, inverted ranges and octets with leading zeros are
// errors, of type *ParseError.
func ParseRange(s string) (Range, error) {
	if from, to, ok := strings.Cut(s, "-"); ok {
		return parseSpan(s, from, to)
	}
	if strings.Contains(s, "/") {
		return parsePrefix(s)
	}
	a, err := parseAddr(s, s)
	if err != nil {
		return Range{}, err
	}
	return Range{a, a}, nil
}

func parseSpan(text, from, to string) (Range, error) {
	a, err := parseAddr(text, from)
	if err != nil {
		return Range{}, err
	}
	b, err := parseAddr(text, to)
	if err != nil {
		return Range{}, err
	}
	switch {
	case a.Is4() != b.Is4():
		return Range{}, &ParseError{text, "one end is IPv4, the other IPv6"}
	case b.Less(a):
		return Range{}, &ParseError{text, "it ends before it begins"}
	}
	return Range{a, b}, nil
}

func parsePrefix(text string) (Range, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return Range{}, &ParseError{text, reason(err)}
	}
	if p.Addr().Is4In6() && p.Bits() < 96 {
		return Range{}, &ParseError{text, "an IPv4-mapped address needs a prefix of /96 to /128"}
	}
	return RangeOf(p), nil
}

func parseAddr(text, part string) (netip.Addr, error) {
	a, err := netip.ParseAddr(part)
	if err != nil {
		return netip.Addr{}, &ParseError{text, reason(err)}
	}
	if a.Zone() != "" {
		return netip.Addr{}, &ParseError{text, "a zone has no place here"}
	}
	return a.Unmap(), nil
}

// reason takes what netip has to say without the name of its function and
// the text, which ParseError repeats. It is for people to read only.
func reason(err error) string {
	msg := err.Error()
	if i := strings.LastIndex(msg, "): "); i >= 0 {
		return msg[i+len("): "):]
	}
	return msg
}

// RangeOf returns the addresses of p, host bits masked off. An IPv4-mapped
// prefix of /96 or longer gives IPv4 addresses. An invalid p gives the zero
// Range.
func RangeOf(p netip.Prefix) Range {
	if !p.IsValid() {
		return Range{}
	}
	if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	p = p.Masked()
	b := p.Addr().As16()
	first := p.Bits()
	if p.Addr().Is4() {
		first += 96
	}
	for i := first; i < 128; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	to := netip.AddrFrom16(b)
	if p.Addr().Is4() {
		to = to.Unmap()
	}
	return Range{p.Addr(), to}
}

// IsValid reports whether r has two ends of one family, in order, without
// zones. A Range of IPv4-mapped IPv6 addresses is not valid.
func (r Range) IsValid() bool {
	return r.From.IsValid() && r.From.BitLen() == r.To.BitLen() && !r.From.Is4In6() &&
		r.From.Zone() == "" && r.To.Zone() == "" && !r.To.Less(r.From)
}

// String returns r in the shortest form that ParseRange reads back: the
// address when it is one, the CIDR when it is exactly one, else a-b.
func (r Range) String() string {
	if !r.IsValid() {
		return "invalid Range"
	}
	if r.From == r.To {
		return r.From.String()
	}
	if n, ok := r.prefixLen(); ok {
		return netip.PrefixFrom(r.From, n).String()
	}
	return r.From.String() + "-" + r.To.String()
}

// prefixLen returns the length of the prefix that r is, if it is one.
func (r Range) prefixLen() (int, bool) {
	fromHi, fromLo := words(r.From)
	toHi, toLo := words(r.To)
	hi, lo := fromHi^toHi, fromLo^toLo
	// The ends of a prefix differ in its host bits and in nothing else: 0 in
	// the first address, 1 in the last.
	host := bits.Len64(lo)
	if hi != 0 {
		host = 64 + bits.Len64(hi)
	}
	maskHi, maskLo := lowBits(host-64), lowBits(host)
	if hi != maskHi || lo != maskLo || fromHi&maskHi != 0 || fromLo&maskLo != 0 {
		return 0, false
	}
	return r.From.BitLen() - host, true
}

// lowBits is a word with the n lowest bits set, n cut to 0..64.
func lowBits(n int) uint64 {
	return 1<<uint(max(n, 0)) - 1
}

// words returns the number that a is, high word first.
func words(a netip.Addr) (hi, lo uint64) {
	if a.Is4() {
		b := a.As4()
		return 0, uint64(binary.BigEndian.Uint32(b[:]))
	}
	b := a.As16()
	return binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
}

// Contains reports whether a lies in r. IPv4-mapped addresses are taken as
// IPv4, zones are not looked at.
func (r Range) Contains(a netip.Addr) bool {
	a = plain(a)
	return r.IsValid() && a.BitLen() == r.From.BitLen() && !a.Less(r.From) && !r.To.Less(a)
}

// plain is the address that packets carry for a.
func plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

// Is4 reports whether r is a range of IPv4 addresses.
func (r Range) Is4() bool { return r.From.Is4() }

// Compare orders ranges: IPv4 first, then by From, then by To.
func (r Range) Compare(o Range) int {
	if c := r.From.Compare(o.From); c != 0 {
		return c
	}
	return r.To.Compare(o.To)
}

// Covers reports whether every address of inner lies in the union of outer.
// An invalid inner is not covered; invalid ones in outer cover nothing.
func Covers(outer []Range, inner Range) bool {
	if !inner.IsValid() {
		return false
	}
	sorted := slices.Clone(outer)
	slices.SortFunc(sorted, Range.Compare)
	need := inner.From // the lowest address not yet seen to be covered
	for _, r := range sorted {
		if !r.Contains(need) {
			continue
		}
		if !r.To.Less(inner.To) {
			return true
		}
		need = r.To.Next()
	}
	return false
}
