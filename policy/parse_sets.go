package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/nftfw/nftfw/pkg/addrset"
)

// maxSetName is the longest name of a set, in bytes. nft takes longer ones;
// tables and messages do not get better by them.
const maxSetName = 32

// reservedSets are names that a set cannot have: words of FROM, names of the
// table's own sets and maps, and names that are keywords of nft once 4 or 6
// stands behind them (ip6 and icmpv6 in nft 1.0.6).
var reservedSets = []string{
	wordAny, wordNone,
	mapPublished, mapPublishedAt, mapRouted, mapHostPorts, mapHostAny,
	setInside, setBridges, setICMPAllowed, setDiscovery, setICMPv6Allowed, setICMPProtocols,
	SetForeignLinks, setPublishedHost, setCut,
	mapEgress, mapEgressBridge, mapProject, setProxied,
	setRefused, setRefusedAt, setRefusedAny, setObserved,
	"ip", "icmpv",
}

// CheckSetName says what is wrong with name as the name of a set.
func CheckSetName(name string) error {
	switch {
	case slices.Contains(reservedSets, name):
		return fmt.Errorf("a set cannot be called %s, which is a word of nftfw's own: choose another name", quote(name))
	case name == "" || len(name) > maxSetName || name[0] < 'a' || name[0] > 'z' ||
		strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_-") != "":
		return fmt.Errorf("a set cannot be called %s: write a lower-case letter and then up to %d letters, digits, - or _", quote(name), maxSetName-1)
	}
	return nil
}

const setForms = "a list of addresses, CIDRs and ranges, or {comment: TEXT, entries: LIST, sources: LIST}"

// sets reads the sets. Every name is known before any entry is read.
func (r *reader) sets(n *yaml.Node) {
	pairs, ok := r.pairs(n, "names of sets, each with its list of addresses")
	if !ok {
		return
	}
	for _, p := range pairs {
		if err := CheckSetName(p.name); err != nil {
			r.fail(p.key, "%v", err)
		}
		// A bad name counts as declared, so that one mistake is one message.
		r.p.Sets[p.name] = NamedSet{Pos: r.pos(p.key)}
	}
	for _, p := range pairs {
		r.p.Sets[p.name] = r.set(p)
	}
}

func (r *reader) set(p pair) NamedSet {
	set := NamedSet{Pos: r.pos(p.key)}
	entries := func(n *yaml.Node) { set.Entries = r.entries(n) }
	n := r.resolve(p.value)
	switch n.Kind {
	case yaml.SequenceNode:
		entries(n)
	case yaml.MappingNode:
		r.object(n, "sets."+p.name, setForms, schema{
			"comment": func(n *yaml.Node) { set.Comment, _ = r.text(n, "a text") },
			"entries": entries,
			"sources": func(n *yaml.Node) { set.Sources = r.sources(n) },
		})
	default:
		r.wrongType(n, setForms+" ([] for an empty set)")
	}
	return set
}

// entries reads the entries of one set.
func (r *reader) entries(n *yaml.Node) []addrset.Entry {
	var list []addrset.Entry
	seen := map[addrset.Range]bool{}
	var again []*yaml.Node
	r.list(n, "a list of addresses, CIDRs and ranges", func(item *yaml.Node) {
		s, ok := r.text(item, "an address, a CIDR or a range")
		if !ok {
			return
		}
		a, err := r.address(item, s)
		if err != nil {
			r.fail(item, "%v", err)
			return
		}
		if seen[a] {
			again = append(again, item)
			return
		}
		seen[a] = true
		list = append(list, addrset.Entry{Range: a, Source: addrset.Policy, Origin: r.pos(item).String()})
	})
	if len(again) > 0 {
		more := ""
		if len(again) > 1 {
			more = fmt.Sprintf(", and so are %d more entries", len(again)-1)
		}
		r.warn(again[0], "%s is in the set twice%s", quote(again[0].Value), more)
	}
	return list
}

// address reads an entry of a set.
func (r *reader) address(n *yaml.Node, s string) (addrset.Range, error) {
	if !looksLikeAddress(s) {
		if r.p.declared(s) {
			return addrset.Range{}, fmt.Errorf("%s is a set, and sets hold addresses only: write its addresses here, or name both sets where they are used", quote(s))
		}
		return addrset.Range{}, fmt.Errorf("%s is not an address, CIDR or range: write one such as 192.0.2.1, 192.0.2.0/24 or 192.0.2.1-192.0.2.9", quote(s))
	}
	a, err := addrset.ParseRange(s)
	if err != nil {
		return a, addressError(s, err)
	}
	r.checkHostBits(n, s, a)
	return a, nil
}

// checkHostBits warns about 192.0.2.1/24, which reads as if it were one
// address and is 192.0.2.0/24.
func (r *reader) checkHostBits(n *yaml.Node, s string, a addrset.Range) {
	if p, err := netip.ParsePrefix(s); err == nil && p != p.Masked() {
		r.warn(n, "%s means %s, all of it: write it so, or leave out the / for the one address", s, a)
	}
}

// setError completes an error about a set that is not declared.
func (r *reader) setError(err error) string {
	var unknown *unknownSetError
	if errors.As(err, &unknown) {
		return unknownSet(unknown, keysOf(r.p.Sets))
	}
	return err.Error()
}

// items reads a scalar with commas or a list of scalars, and calls each with
// every item. An empty list is an error.
func (r *reader) items(n *yaml.Node, forms string, each func(n *yaml.Node, s string)) (*yaml.Node, bool) {
	n = r.resolve(n)
	if n.Kind != yaml.SequenceNode {
		s, ok := r.text(n, forms)
		if ok {
			for item := range strings.SplitSeq(s, ",") {
				each(n, strings.TrimSpace(item))
			}
		}
		return n, ok
	}
	if len(n.Content) == 0 {
		r.fail(n, "the list is empty: write none for nobody")
		return n, false
	}
	return n, r.list(n, forms, func(item *yaml.Node) {
		s, ok := r.text(item, "one of the items of a list")
		switch {
		case ok && strings.Contains(s, ","):
			r.fail(item, "%s is more than one item: write each as an item of the list", quote(s))
		case ok:
			each(item, s)
		}
	})
}

// from reads a FROM. trusted reports whether it names the set trusted.
func (r *reader) from(n *yaml.Node) (f From, trusted bool) {
	before := len(r.errs)
	var list []fromItem
	n, ok := r.items(n, fromExpected, func(n *yaml.Node, s string) {
		item, err := parseFromItem(s, r.p.declared)
		if err != nil {
			r.fail(n, "%s", r.setError(err))
			return
		}
		if item.addr.IsValid() {
			r.checkHostBits(n, s, item.addr)
		}
		trusted = trusted || item.word == SetTrusted
		list = append(list, item)
	})
	if !ok || len(r.errs) > before {
		return From{}, false
	}
	f, err := combineFrom(list)
	if err != nil {
		r.fail(n, "%v", err)
	}
	return f, trusted
}

const fromExpected = "any, trusted, none, a set's name, an address, a CIDR, a range, or a list of them"

// egress reads an egress.
func (r *reader) egress(n *yaml.Node) Egress {
	before := len(r.errs)
	var list []egressWord
	n, ok := r.items(n, egressExpected, func(n *yaml.Node, s string) {
		word, err := parseEgressItem(s, r.p.declared)
		if err != nil {
			r.fail(n, "%s", r.setError(err))
			return
		}
		list = append(list, word)
	})
	if !ok || len(r.errs) > before {
		return Egress{}
	}
	e, err := combineEgress(list)
	if err != nil {
		r.fail(n, "%v", err)
	}
	return e
}

const egressExpected = "any, none, or a list of sets, addresses, address:port/proto and :port/proto"
