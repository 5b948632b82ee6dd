package nft

import (
	"bytes"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/ruleset"
)

// rangeElement returns the element of a range. The kernel's end is the first
// address that is not in it any more; behind the last address there is none.
func rangeElement(g addrset.Segment) element {
	e := element{key: g.From.AsSlice(), expires: g.Expires}
	if next := g.To.Next(); next.IsValid() {
		e.end = next.AsSlice()
	}
	return e
}

// pieceElement returns the element of a piece of s.
func pieceElement(s *ruleset.Set, g addrset.Segment) element {
	if s.Singles() {
		return element{key: g.From.AsSlice(), expires: g.Expires}
	}
	return rangeElement(g)
}

// pieceOf is the inverse of pieceElement.
func pieceOf(s *ruleset.Set, e element) addrset.Segment {
	if s.Singles() {
		a, _ := netip.AddrFromSlice(e.key)
		return addrset.Segment{From: a, To: a, Expires: e.expires}
	}
	return segmentOf(e)
}

// segmentOf is the inverse of rangeElement.
func segmentOf(e element) addrset.Segment {
	g := addrset.Segment{Expires: e.expires}
	g.From, _ = netip.AddrFromSlice(e.key)
	if end, ok := netip.AddrFromSlice(e.end); ok {
		g.To = end.Prev()
		return g
	}
	last := bytes.Repeat([]byte{0xff}, len(e.key))
	g.To, _ = netip.AddrFromSlice(last)
	return g
}

// keyElement returns the element of an exact key.
func keyElement(fields []ruleset.Field, k ruleset.Key, v ruleset.Element) element {
	return element{key: encodeKey(fields, k), verdict: v.Verdict, comment: v.Comment, origin: v.Origin}
}

// appendElement appends what identifies e to a list of elements. All of a list
// may have one type number: the kernel does not look at it.
func appendElement(b []byte, e element) []byte {
	b = appendNested(b, unix.NFTA_LIST_ELEM, func(b []byte) []byte { return appendKey(b, e.key) })
	return appendEnd(b, e)
}

// appendNewElement appends all of e. left is the time that it has, zero for
// ever; of a range only the start has one.
func appendNewElement(b []byte, e element, verdicts bool, left time.Duration) []byte {
	b = appendNested(b, unix.NFTA_LIST_ELEM, func(b []byte) []byte {
		b = appendKey(b, e.key)
		if left > 0 {
			b = appendU64(b, unix.NFTA_SET_ELEM_TIMEOUT, uint64(max(left.Milliseconds(), 1)))
		}
		if verdicts {
			b = appendVerdict(b, e.verdict)
		}
		if e.comment != "" {
			b = appendAttr(b, unix.NFTA_SET_ELEM_USERDATA, newUdata(udataElemComment, append([]byte(e.comment), 0))...)
		}
		return b
	})
	return appendEnd(b, e)
}

func appendEnd(b []byte, e element) []byte {
	if e.end == nil {
		return b
	}
	return appendNested(b, unix.NFTA_LIST_ELEM, func(b []byte) []byte {
		b = appendU32(b, unix.NFTA_SET_ELEM_FLAGS, unix.NFT_SET_ELEM_INTERVAL_END)
		return appendKey(b, e.end)
	})
}

func appendKey(b, key []byte) []byte {
	return appendNested(b, unix.NFTA_SET_ELEM_KEY, func(b []byte) []byte {
		return appendAttr(b, unix.NFTA_DATA_VALUE, key...)
	})
}

func appendVerdict(b []byte, v ruleset.Verdict) []byte {
	code, _ := verdictCode(v) // changeElements has looked at it
	return appendNested(b, unix.NFTA_SET_ELEM_DATA, func(b []byte) []byte {
		return appendNested(b, unix.NFTA_DATA_VERDICT, func(b []byte) []byte {
			b = appendU32(b, unix.NFTA_VERDICT_CODE, uint32(code))
			if v.Chain != "" {
				b = appendString(b, unix.NFTA_VERDICT_CHAIN, v.Chain)
			}
			return b
		})
	})
}

// rawElement is an element as a dump gives it.
type rawElement struct {
	element
	isEnd   bool
	counted bool // has a counter
	count   Count
}

// elementsIn reads the elements of one message of a dump. Remaining times are
// counted from now.
func elementsIn(m netlink.Message, now time.Time) []rawElement {
	var out []rawElement
	for typ, list := range attributes(payload(m)) {
		if typ != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			continue
		}
		for _, b := range attributes(list) {
			out = append(out, parseElement(b, now))
		}
	}
	return out
}

func parseElement(b []byte, now time.Time) rawElement {
	var e rawElement
	for typ, v := range attributes(b) {
		switch typ {
		case unix.NFTA_SET_ELEM_KEY:
			e.key = slices.Clone(dataValue(v))
		case unix.NFTA_SET_ELEM_DATA:
			var ok bool
			e.verdict, ok = parseVerdict(v)
			e.odd = e.odd || !ok
		case unix.NFTA_SET_ELEM_FLAGS:
			flags := number(v)
			e.isEnd = flags&unix.NFT_SET_ELEM_INTERVAL_END != 0
			e.odd = e.odd || flags&^unix.NFT_SET_ELEM_INTERVAL_END != 0
		case unix.NFTA_SET_ELEM_EXPIRATION:
			e.expires = now.Add(time.Duration(number(v)) * time.Millisecond)
		case unix.NFTA_SET_ELEM_USERDATA:
			for typ, v := range udata(v) {
				if typ == udataElemComment {
					e.comment = text(v)
				}
				e.odd = e.odd || typ > udataElemFlags
			}
		case unix.NFTA_SET_ELEM_EXPR:
			e.count, e.counted = parseCounter(v)
			e.odd = e.odd || !e.counted
		case nftaSetElemExpressions, unix.NFTA_SET_ELEM_OBJREF, nftaSetElemKeyEnd:
			e.odd = true
		}
	}
	return e
}

func dataValue(b []byte) []byte {
	for typ, v := range attributes(b) {
		if typ == unix.NFTA_DATA_VALUE {
			return v
		}
	}
	return nil
}

// parseVerdict reads NFTA_SET_ELEM_DATA of a verdict map.
func parseVerdict(b []byte) (ruleset.Verdict, bool) {
	for typ, v := range attributes(b) {
		if typ != unix.NFTA_DATA_VERDICT {
			continue
		}
		var code expr.VerdictKind
		var chain string
		for typ, v := range attributes(v) {
			switch typ {
			case unix.NFTA_VERDICT_CODE:
				code = expr.VerdictKind(int32(number(v)))
			case unix.NFTA_VERDICT_CHAIN:
				chain = text(v)
			}
		}
		return verdictOf(code, chain)
	}
	return ruleset.Verdict{}, false
}

// pairRanges joins starts and ends to ranges.
func pairRanges(raw []rawElement) []element {
	slices.SortFunc(raw, func(a, b rawElement) int {
		if c := bytes.Compare(a.key, b.key); c != 0 {
			return c
		}
		switch { // where two ranges touch, one ends before the other starts
		case a.isEnd == b.isEnd:
			return 0
		case a.isEnd:
			return -1
		}
		return 1
	})
	var out []element
	open := false // the last of out has no end yet
	for _, r := range raw {
		switch {
		case !r.isEnd:
			if open {
				// Two starts in a row: nobody's ends, and none of ours.
				out[len(out)-1].odd = true
			}
			// A comment is nothing that our ranges have.
			r.odd = r.odd || r.comment != ""
			out = append(out, r.element)
			open = true
		case open:
			out[len(out)-1].end = r.key
			open = false
			// An end without a start matches nothing. nft opens a set with one, and the
			// kernel leaves one behind for a while where a start expired.
		}
	}
	return out
}
