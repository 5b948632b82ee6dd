package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/nftfw/nftfw/pkg/ruleset"
)

// counterName is the kernel's name of the expression that counts.
const counterName = "counter"

// Count is what a counter of the kernel has counted since it was made.
type Count struct {
	Packets, Bytes uint64
}

// Counts are the counters of a table at about one moment.
type Counts struct {
	// Chains has the counters of all rules of a chain together, for chains that
	// have any.
	Chains map[string]Count
	// Sets has the counters of the elements, for sets that have them. What the
	// table says that was asked about decides what the parts of a key are.
	Sets map[string]map[ruleset.Key]Count
	// Flows has the counters of the dynamic sets whose key is a source, a
	// destination, a protocol and the destination's port. Of other dynamic sets
	// nothing is read.
	Flows map[string]map[FlowKey]Count
}

// FlowKey is an element of a dynamic set that counts by source.
type FlowKey struct {
	Src, Dst netip.Addr
	Proto    uint8
	Port     uint16 // of the destination
}

// Counts reads what the kernel has counted in t: of its chains all, and of its
// sets those for which wanted is true, in their order. It takes time in
// proportion to the elements. Sets that are not there, or not as t has them,
// are left out.
func (k *Kernel) Counts(ctx context.Context, t *ruleset.Table, wanted func(set string) bool) (Counts, error) {
	out := Counts{Chains: map[string]Count{}, Sets: map[string]map[ruleset.Key]Count{}, Flows: map[string]map[FlowKey]Count{}}
	s, err := k.session(ctx)
	if err != nil {
		return out, fmt.Errorf("read counters of table %q: %w", t.Name, err)
	}
	defer s.close()
	if err := s.countChains(t.Name, out.Chains); err != nil && !errors.Is(err, unix.ENOENT) {
		return out, fmt.Errorf("read counters of table %q: %w", t.Name, err)
	}
	for _, set := range t.Sets {
		if !set.Counter || !wanted(set.Name) || set.Dynamic && !bySource(set) {
			continue
		}
		raw, err := s.listElements(t.Name, set)
		switch {
		case errors.Is(err, unix.ENOENT):
		case err != nil:
			return out, fmt.Errorf("read counters of table %q: %w", t.Name, err)
		case set.Dynamic:
			out.Flows[set.Name] = flowCounts(raw)
		default:
			out.Sets[set.Name] = keyCounts(raw, set)
		}
	}
	return out, nil
}

// listTries is how often a set is read again whose elements moved meanwhile.
const listTries = 5

// listElements reads the elements of a set. After some tries it gives what it
// has, without those that moved: of a few the count is missing until the next time.
func (s *session) listElements(table string, set *ruleset.Set) ([]rawElement, error) {
	for try := 1; ; try++ {
		raw, err := s.dumpElements(table, set.Name)
		if err != nil || try == listTries || !repeated(raw) {
			return raw, err
		}
	}
}

func keyCounts(raw []rawElement, set *ruleset.Set) map[ruleset.Key]Count {
	out := make(map[ruleset.Key]Count, len(raw))
	want := int(definitionOf(set).keyLen)
	for _, e := range raw {
		if e.counted && len(e.key) == want {
			out[decodeKey(set.Key, e.key)] = e.count
		}
	}
	return out
}

// bySource reports whether the set is one that Counts.Flows speaks of.
func bySource(s *ruleset.Set) bool {
	d := definitionOf(s)
	return slices.ContainsFunc([][]ruleset.Field{
		{ruleset.IPSaddr, ruleset.IPDaddr, ruleset.L4Proto, ruleset.Dport},
		{ruleset.IP6Saddr, ruleset.IP6Daddr, ruleset.L4Proto, ruleset.Dport},
	}, func(key []ruleset.Field) bool { return d.keyType == definitionOf(&ruleset.Set{Key: key}).keyType })
}

// flowCounts reads keys of two addresses, a protocol and a port, which come
// one after the other, each padded to whole registers.
func flowCounts(raw []rawElement) map[FlowKey]Count {
	out := make(map[FlowKey]Count, len(raw))
	for _, e := range raw {
		n := (len(e.key) - 2*register) / 2
		if !e.counted || n != net.IPv4len && n != net.IPv6len {
			continue
		}
		var key FlowKey
		key.Src, _ = netip.AddrFromSlice(e.key[:n])
		key.Dst, _ = netip.AddrFromSlice(e.key[n : 2*n])
		key.Proto = e.key[2*n]
		key.Port = binary.BigEndian.Uint16(e.key[2*n+register:])
		out[key] = e.count
	}
	return out
}

// countChains adds up the counters of the rules of every chain.
func (s *session) countChains(table string, into map[string]Count) error {
	return s.each(message{
		kind: unix.NFT_MSG_GETRULE, flags: netlink.Dump,
		data: appendString(nil, unix.NFTA_RULE_TABLE, table), what: "read rules",
	}, func(m netlink.Message) {
		var of, chain string
		var sum Count
		counted := false
		for typ, v := range attributes(payload(m)) {
			switch typ {
			case unix.NFTA_RULE_TABLE:
				of = text(v)
			case unix.NFTA_RULE_CHAIN:
				chain = text(v)
			case unix.NFTA_RULE_EXPRESSIONS:
				for _, x := range attributes(v) {
					if c, ok := parseCounter(x); ok {
						sum, counted = sum.plus(c), true
					}
				}
			}
		}
		if counted && of == table {
			into[chain] = into[chain].plus(sum)
		}
	})
}

func (c Count) plus(other Count) Count {
	return Count{Packets: c.Packets + other.Packets, Bytes: c.Bytes + other.Bytes}
}

// parseCounter reads an expression; ok is false for any but a counter.
func parseCounter(b []byte) (c Count, ok bool) {
	for typ, v := range attributes(b) {
		switch typ {
		case unix.NFTA_EXPR_NAME:
			ok = text(v) == counterName
		case unix.NFTA_EXPR_DATA:
			for typ, v := range attributes(v) {
				switch typ {
				case unix.NFTA_COUNTER_PACKETS:
					c.Packets = number(v)
				case unix.NFTA_COUNTER_BYTES:
					c.Bytes = number(v)
				}
			}
		}
	}
	if !ok {
		return Count{}, false
	}
	return c, true
}
