package nft

import (
	"bytes"
	"encoding/binary"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/nftfw/nftfw/pkg/ruleset"
)

// vocabulary lists the expressions that encodeRule uses.
var vocabulary = map[string]struct {
	last   uint16   // the highest attribute of linux 6.18; what newer kernels add is not looked at
	nested []uint16 // attributes that hold attributes
	state  []uint16 // what the kernel counts, or numbers that hold within a batch
}{
	"bitwise":   {last: 8, nested: []uint16{unix.NFTA_BITWISE_MASK, unix.NFTA_BITWISE_XOR}},
	"cmp":       {last: 3, nested: []uint16{unix.NFTA_CMP_DATA}},
	"counter":   {last: 3, state: []uint16{unix.NFTA_COUNTER_BYTES, unix.NFTA_COUNTER_PACKETS}},
	"ct":        {last: 4},
	"dynset":    {last: 10, state: []uint16{unix.NFTA_DYNSET_SET_ID}},
	"immediate": {last: 2, nested: []uint16{unix.NFTA_IMMEDIATE_DATA}},
	"limit":     {last: 5},
	"log":       {last: 6},
	"lookup":    {last: 5, state: []uint16{unix.NFTA_LOOKUP_SET_ID}},
	"meta":      {last: 3},
	"payload":   {last: 8},
	"range":     {last: 4, nested: []uint16{unix.NFTA_RANGE_FROM_DATA, unix.NFTA_RANGE_TO_DATA}},
}

// marshalRule returns the expressions of r as the payload of
// NFTA_RULE_EXPRESSIONS.
func marshalRule(r ruleset.Rule) ([]byte, error) {
	list, err := encodeRule(r)
	if err != nil {
		return nil, err
	}
	var b []byte
	for _, x := range list {
		data, err := expr.Marshal(unix.NFPROTO_INET, x)
		if err != nil {
			return nil, err
		}
		b = appendAttr(b, unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, data...)
	}
	return b, nil
}

// canonical writes expressions in the one form in which those that were sent
// and those that the kernel gives back are equal when they mean the same: the
// kernel sorts attributes its own way, leaves flags of nesting out, and adds
// zeros for what was not given. An expression that encodeRule never makes
// stands in the result as it is, so that it equals none of ours.
func canonical(expressions []byte) string {
	var out []byte
	for _, elem := range attributes(expressions) {
		var name string
		var data []byte
		for typ, v := range attributes(elem) {
			switch typ {
			case unix.NFTA_EXPR_NAME:
				name = text(v)
			case unix.NFTA_EXPR_DATA:
				data = v
			}
		}
		out = appendPart(out, 0, []byte(name))
		known, ok := vocabulary[name]
		if !ok {
			out = appendPart(out, 0, data)
			continue
		}
		var parts [][]byte
		for typ, v := range attributes(data) {
			switch {
			case typ > known.last, slices.Contains(known.state, typ):
			case slices.Contains(known.nested, typ):
				parts = append(parts, appendPart(nil, typ, canonicalData(v)))
			case len(bytes.Trim(v, "\x00")) > 0:
				parts = append(parts, appendPart(nil, typ, v))
			}
		}
		slices.SortFunc(parts, bytes.Compare)
		out = append(out, bytes.Join(parts, nil)...)
	}
	return string(out)
}

// canonicalData does the same for NFTA_DATA_VALUE and NFTA_DATA_VERDICT. The
// length of a value counts even when it is zero.
func canonicalData(b []byte) []byte {
	var out []byte
	for typ, v := range attributes(b) {
		if typ == unix.NFTA_DATA_VERDICT {
			// What lies in it has the same numbers, and holds no attributes.
			var verdict []byte
			for typ, v := range attributes(v) {
				verdict = appendPart(verdict, typ, v)
			}
			v = verdict
		}
		out = appendPart(out, typ, v)
	}
	return out
}

func appendPart(b []byte, typ uint16, v []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, typ)
	b = binary.BigEndian.AppendUint32(b, uint32(len(v)))
	return append(b, v...)
}
