package nft

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/ruleset"
)

// Cut is a flow that is refused in both directions, although it was
// established, until Expires or for longer where its ends keep trying.
type Cut struct {
	Proto          uint8
	Client, Server netip.AddrPort // after DNAT
	Asked          netip.AddrPort // where the client connected to, before DNAT
	Expires        time.Time
}

// Flow returns the flow that was cut, as far as a verdict depends on it.
func (c Cut) Flow() Flow {
	return Flow{Proto: c.Proto, Src: c.Client, Dst: c.Asked, ReplySrc: c.Server, ReplyDst: c.Client}
}

// flowFields is the key of a set that holds cut flows: a packet's source,
// protocol and destination.
func flowFields(is4 bool) []ruleset.Field {
	if is4 {
		return []ruleset.Field{ruleset.IPSaddr, ruleset.L4Proto, ruleset.Sport, ruleset.IPDaddr, ruleset.Dport}
	}
	return []ruleset.Field{ruleset.IP6Saddr, ruleset.L4Proto, ruleset.Sport, ruleset.IP6Daddr, ruleset.Dport}
}

// cutSet returns t's dynamic set for cut flows of the family, or nil.
func cutSet(t *ruleset.Table, is4 bool) *ruleset.Set {
	if t == nil {
		return nil
	}
	for _, s := range t.Sets {
		if s.Dynamic && slices.Equal(s.Key, flowFields(is4)) {
			return s
		}
	}
	return nil
}

// WithCuts returns p with elements that cut the flows, in both directions, in
// the same batch. They go to the dynamic sets of want whose key is source,
// protocol and destination; without such sets p is returned as it is.
func (p Plan) WithCuts(want *ruleset.Table, cuts []Cut) Plan {
	return p.withElements(want, cuts, false)
}

// WithoutCuts returns p with the elements of the cuts removed, in the same
// batch. It does no harm where they have expired.
func (p Plan) WithoutCuts(want *ruleset.Table, cuts []Cut) Plan {
	return p.withElements(want, cuts, true)
}

func (p Plan) withElements(want *ruleset.Table, cuts []Cut, remove bool) Plan {
	for _, is4 := range []bool{true, false} {
		set := cutSet(want, is4)
		if set == nil {
			continue
		}
		var list []element
		for _, c := range cuts {
			if c.Client.Addr().Is4() == is4 {
				if list == nil {
					list = make([]element, 0, 2*len(cuts))
				}
				list = append(list, c.elements()...)
			}
		}
		if len(list) == 0 {
			continue
		}
		// Deleting what has expired would fail, and with it the batch, so that
		// everything is there first. What is there already stays as it is.
		p.table = want.Name
		p.elements = append(slices.Clip(p.elements), elementChange{set: set, add: list})
		if remove {
			p.elements = append(p.elements, elementChange{set: set, delete: list})
		}
	}
	return p
}

// askedPrefix begins the comment of a cut's element from client to server.
// Who asked whom for what cannot be told from the ends alone.
const askedPrefix = "asked "

func (c Cut) elements() []element {
	return []element{
		{key: flowKey(c.Client, c.Proto, c.Server), expires: c.Expires, comment: askedPrefix + c.Asked.String()},
		{key: flowKey(c.Server, c.Proto, c.Client), expires: c.Expires},
	}
}

// flowKey writes a key of flowFields.
func flowKey(src netip.AddrPort, proto uint8, dst netip.AddrPort) []byte {
	b := make([]byte, 0, 44)
	port := func(n uint16) { b = append(binary.BigEndian.AppendUint16(b, n), 0, 0) }
	b = append(b, src.Addr().AsSlice()...)
	b = append(b, proto, 0, 0, 0)
	port(src.Port())
	b = append(b, dst.Addr().AsSlice()...)
	port(dst.Port())
	return b
}

// Cuts lists the flows that the table in the kernel refuses, in the sets that
// t has for them. It is slow with a hundred thousand of them. Sets that are not
// there hold none.
func (k *Kernel) Cuts(ctx context.Context, t *ruleset.Table) ([]Cut, error) {
	s, err := k.session(ctx)
	if err != nil {
		return nil, fmt.Errorf("list cut connections: %w", err)
	}
	defer s.close()
	var out []Cut
	for _, is4 := range []bool{true, false} {
		set := cutSet(t, is4)
		if set == nil {
			continue
		}
		raw, err := s.listElements(t.Name, set)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return nil, fmt.Errorf("list cut connections: %w", err)
		}
		for _, e := range raw {
			if c, ok := cutOf(e.element, is4); ok {
				out = append(out, c)
			}
		}
	}
	return out, nil
}

// cutOf reads the element of a cut that goes from client to server.
func cutOf(e element, is4 bool) (Cut, bool) {
	n := 16
	if is4 {
		n = 4
	}
	asked, ok := strings.CutPrefix(e.comment, askedPrefix)
	if !ok || len(e.key) != 2*n+3*register {
		return Cut{}, false
	}
	c := Cut{Proto: e.key[n], Expires: e.expires}
	end := func(at, port int) netip.AddrPort {
		a, _ := netip.AddrFromSlice(e.key[at : at+n])
		return netip.AddrPortFrom(a, binary.BigEndian.Uint16(e.key[port:]))
	}
	c.Client = end(0, n+register)
	c.Server = end(n+2*register, 2*n+2*register)
	var err error
	c.Asked, err = netip.ParseAddrPort(asked)
	return c, err == nil
}

// Closes reports whether p makes a table where there was none, so that before
// it everything was open and perhaps nothing tracked.
func (p Plan) Closes() bool { return p.begin == createTable }

// EmptiesCuts reports whether p makes the sets for cut flows of want, so that
// they hold nothing after it but what WithCuts adds.
func (p Plan) EmptiesCuts(want *ruleset.Table) bool {
	for _, s := range p.newSets {
		if s == cutSet(want, true) || s == cutSet(want, false) {
			return true
		}
	}
	return false
}

// Narrows reports whether p may take access away from somebody, so that live
// connections have to be looked at. It is true in doubt. What it is false for
// are elements alone: new keys of maps, which opens what had no verdict of its
// own, and ranges that are added to sets or cover those that they replace. Of
// the sets that refusing is true for additions take access away, and so do new keys of
// maps that closing is true for: rules behind the map let somebody in. moot says of
// which elements the removal takes nothing away because nothing can match them any
// more.
func (p Plan) Narrows(
	refusing func(set string) bool,
	closing func(set string, k ruleset.Key, v ruleset.Verdict) bool,
	moot func(set string, k ruleset.Key) bool,
) bool {
	if p.begin != keepTable || len(p.policies)+len(p.flush)+len(p.goneSets)+len(p.goneChains) > 0 {
		return true
	}
	for _, c := range p.newChains {
		if c.Hook != "" {
			return true
		}
	}
	return slices.ContainsFunc(p.elements, func(c elementChange) bool {
		switch {
		case c.set.Dynamic:
			return false
		case refusing(c.set.Name):
			return true
		case c.set.HoldsRanges():
			return c.flush || c.uncovers()
		case c.set.Verdicts:
			for e := range c.added() {
				if closing(c.set.Name, decodeKey(c.set.Key, e.key), e.verdict) {
					return true
				}
			}
		}
		return slices.ContainsFunc(c.delete, func(gone element) bool {
			return !c.replaced(gone) && !moot(c.set.Name, decodeKey(c.set.Key, gone.key))
		})
	})
}

// Adds reports whether p puts an element into a verdict map that f is true for.
func (p Plan) Adds(f func(set string, k ruleset.Key) bool) bool {
	return slices.ContainsFunc(p.elements, func(c elementChange) bool {
		if !c.set.Verdicts {
			return false
		}
		for e := range c.added() {
			if f(c.set.Name, decodeKey(c.set.Key, e.key)) {
				return true
			}
		}
		return false
	})
}

// uncovers reports whether an address of a range that is deleted is in none
// that is added.
func (c elementChange) uncovers() bool {
	if len(c.delete) == 0 {
		return false
	}
	added := make([]addrset.Segment, 0, len(c.add))
	for _, e := range c.add {
		g := pieceOf(c.set, e)
		g.Expires = time.Time{}
		added = append(added, g)
	}
	union := addrset.SegmentsOf(added...)
	return slices.ContainsFunc(c.delete, func(gone element) bool {
		g := pieceOf(c.set, gone)
		cover, ok := union.Lookup(g.From)
		return !ok || cover.To.Less(g.To)
	})
}

// replaced reports whether a key that is deleted is added again with a verdict
// that lets as many in. The lists are sorted by key.
func (c elementChange) replaced(gone element) bool {
	i, ok := slices.BinarySearchFunc(c.add, gone.key, func(e element, key []byte) int { return bytes.Compare(e.key, key) })
	return ok && (c.add[i].verdict == gone.verdict || c.add[i].verdict.Kind == ruleset.Accept)
}
