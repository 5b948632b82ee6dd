package nft

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/nftfw/nftfw/pkg/ruleset"
)

// ForeignTable is the outline of a table, whosever it is: enough to say what it
// does to packets and where, not enough to make it again.
type ForeignTable struct {
	Family string // ip, ip6, inet, arp, bridge, netdev
	Name   string
	Chains []ForeignChain
}

// Ingress is the hook of what a device receives, before all those of ruleset.
const Ingress ruleset.Hook = "ingress"

// ForeignChain is a chain of a ForeignTable.
type ForeignChain struct {
	Name string
	// Hook is "" for a chain that is only jumped to, and for one of another family
	// than ip, ip6, inet and netdev.
	Hook     ruleset.Hook
	Type     string // filter, nat, route; "" without a hook
	Priority int
	Drops    bool // its policy is drop
	Rules    []ForeignRule
}

// ForeignRule is a rule of a ForeignTable.
type ForeignRule struct {
	Handle uint64
	// Text is the rule much as nft writes it. What is not understood stands
	// in angle brackets.
	Text string
	// Conditional is unset for a rule that every packet matches.
	Conditional bool
	Refuses     bool // drops or rejects; with ByMap, an element drops
	// OnlyInvalid is set where all that it refuses is in the state invalid of
	// connection tracking.
	OnlyInvalid bool
	Notrack     bool // keeps packets from connection tracking
	// To is the chain to which it jumps or goes.
	To string
	// ByMap is set where a map gives the verdict, which may be any.
	ByMap bool
}

// Tables outlines every table of the namespace, sorted by family and name but
// for the order of chains and rules, which is the kernel's. Tables that are
// switched off (dormant) are left out. When somebody changes rules meanwhile
// the answer may hold some of either state.
func (k *Kernel) Tables(ctx context.Context) ([]ForeignTable, error) {
	s, err := k.session(ctx)
	if err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	defer s.close()
	var tables []ForeignTable
	for range observeTries {
		var before, after uint32
		if before, err = s.generation(); err != nil {
			break
		}
		if tables, err = s.tables(); ctx.Err() != nil {
			err = ctx.Err()
			break
		}
		var generr error
		if after, generr = s.generation(); generr != nil {
			err = generr
			break
		}
		if before == after {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	return tables, nil
}

// families names the families of tables (enum of linux/netfilter.h).
var families = map[byte]string{
	unix.NFPROTO_INET:   "inet",
	unix.NFPROTO_IPV4:   "ip",
	unix.NFPROTO_IPV6:   "ip6",
	unix.NFPROTO_ARP:    "arp",
	unix.NFPROTO_BRIDGE: "bridge",
	unix.NFPROTO_NETDEV: "netdev",
}

// foreignKey names a table.
type foreignKey struct{ family, table string }

// everyFamily sends a request for the things of all tables.
func (s *session) everyFamily(kind int, what string, f func(family string, attrs []byte)) error {
	return s.dumpFamily(unix.NFPROTO_UNSPEC, kind, nil, what, func(reply netlink.Message) {
		f(families[reply.Data[0]], payload(reply))
	})
}

// dumpFamily sends a request for things of one family.
func (s *session) dumpFamily(family byte, kind int, attrs []byte, what string, f func(netlink.Message)) error {
	m := message{kind: kind, flags: netlink.Dump, data: attrs, what: what}.netlink()
	m.Data[0] = family
	if _, err := s.send(m); err != nil {
		return refused(what, "", err)
	}
	for reply, err := range s.conn.ReceiveIter() {
		if err != nil {
			return refused(what, "", err)
		}
		if len(reply.Data) > 0 {
			f(reply)
		}
	}
	return nil
}

func (s *session) tables() ([]ForeignTable, error) {
	var tables []ForeignTable
	index := map[foreignKey]int{}
	err := s.everyFamily(unix.NFT_MSG_GETTABLE, "list tables", func(family string, attrs []byte) {
		t, dormant := ForeignTable{Family: family}, false
		for typ, v := range attributes(attrs) {
			switch typ {
			case unix.NFTA_TABLE_NAME:
				t.Name = text(v)
			case unix.NFTA_TABLE_FLAGS:
				dormant = number(v)&unix.NFT_TABLE_F_DORMANT != 0
			}
		}
		if !dormant {
			index[foreignKey{family, t.Name}] = len(tables)
			tables = append(tables, t)
		}
	})
	if err != nil {
		return nil, err
	}
	err = s.everyFamily(unix.NFT_MSG_GETCHAIN, "list chains", func(family string, attrs []byte) {
		c, table := parseForeignChain(family, attrs)
		if i, ok := index[foreignKey{family, table}]; ok {
			tables[i].Chains = append(tables[i].Chains, c)
		}
	})
	if err != nil {
		return nil, err
	}
	var maps []verdictMap
	err = s.dumpFamily(unix.NFPROTO_UNSPEC, unix.NFT_MSG_GETRULE, nil, "list rules", func(reply netlink.Message) {
		family := families[reply.Data[0]]
		r, byMap, table, chain := parseForeignRule(family, payload(reply))
		i, ok := index[foreignKey{family, table}]
		if !ok {
			return
		}
		j := slices.IndexFunc(tables[i].Chains, func(c ForeignChain) bool { return c.Name == chain })
		if j < 0 {
			return
		}
		c := &tables[i].Chains[j]
		if r.ByMap {
			byMap.family, byMap.table, byMap.chain, byMap.rule = reply.Data[0], table, c, len(c.Rules)
			maps = append(maps, byMap)
		}
		c.Rules = append(c.Rules, r)
	})
	for _, m := range maps {
		if err == nil {
			err = s.readVerdicts(m)
		}
	}
	slices.SortFunc(tables, func(a, b ForeignTable) int {
		return slices.Compare([]string{a.Family, a.Name}, []string{b.Family, b.Name})
	})
	return tables, err
}

func parseForeignChain(family string, attrs []byte) (c ForeignChain, table string) {
	for typ, v := range attributes(attrs) {
		switch typ {
		case unix.NFTA_CHAIN_TABLE:
			table = text(v)
		case unix.NFTA_CHAIN_NAME:
			c.Name = text(v)
		case unix.NFTA_CHAIN_TYPE:
			c.Type = text(v)
		case unix.NFTA_CHAIN_POLICY:
			c.Drops = number(v) == nfDrop
		case unix.NFTA_CHAIN_HOOK:
			for typ, v := range attributes(v) {
				switch typ {
				case unix.NFTA_HOOK_HOOKNUM:
					c.Hook = foreignHook(family, uint32(number(v)))
				case unix.NFTA_HOOK_PRIORITY:
					c.Priority = int(int32(number(v)))
				}
			}
		}
	}
	return c, table
}

// The hook ingress in families inet and netdev (linux/netfilter.h).
const (
	nfInetIngress   = 5
	nfNetdevIngress = 0
)

// foreignHook names a hook by its number.
func foreignHook(family string, n uint32) ruleset.Hook {
	switch {
	case family == "inet" && n == nfInetIngress, family == "netdev" && n == nfNetdevIngress:
		return Ingress
	case strings.HasPrefix(family, "i"):
		return hookOf(n)
	default:
		return "" // others number theirs otherwise
	}
}

func parseForeignRule(family string, attrs []byte) (r ForeignRule, m verdictMap, table, chain string) {
	for typ, v := range attributes(attrs) {
		switch typ {
		case unix.NFTA_RULE_TABLE:
			table = text(v)
		case unix.NFTA_RULE_CHAIN:
			chain = text(v)
		case unix.NFTA_RULE_HANDLE:
			r.Handle = number(v)
		case unix.NFTA_RULE_EXPRESSIONS:
			d := ruleReader{rule: &r, family: family, loaded: map[uint64]loadedField{}}
			for _, e := range attributes(v) {
				d.expression(e)
			}
			r.Text, m = d.text(), d.byMap
		}
	}
	return r, m, table, chain
}

// verdictMap is a map that gives the verdict of a rule.
type verdictMap struct {
	family byte
	table  string
	name   string
	field  string // what is looked up in it, the first thing of several
	chain  *ForeignChain
	rule   int // in chain
}

// readVerdicts says of the rule whether an element of its map drops.
func (s *session) readVerdicts(m verdictMap) error {
	attrs := appendString(nil, unix.NFTA_SET_ELEM_LIST_TABLE, m.table)
	attrs = appendString(attrs, unix.NFTA_SET_ELEM_LIST_SET, m.name)
	drops, invalid := 0, 0
	err := s.dumpFamily(m.family, unix.NFT_MSG_GETSETELEM, attrs, "list elements of "+m.name, func(reply netlink.Message) {
		for _, e := range elementsIn(reply, time.Time{}) {
			if e.verdict.Kind != ruleset.Drop {
				continue
			}
			drops++
			if m.field == "ct state" && nativeNumber(e.key) == ctInvalid {
				invalid++
			}
		}
	})
	if drops > 0 {
		r := &m.chain.Rules[m.rule]
		r.Refuses, r.OnlyInvalid = true, drops == invalid
		r.Text = strings.TrimSuffix(r.Text, " { … }") + " { … : drop }"
	}
	return err
}
