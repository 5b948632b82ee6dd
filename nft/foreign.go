package nft

import (
	"context"
	"fmt"
	"slices"
	"strings"

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

// ForeignChain is a chain of a ForeignTable.
type ForeignChain struct {
	Name string
	// Hook is "" for a chain that is only jumped to, and for one at a hook that
	// family inet does not have.
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
	Refuses     bool // drops or rejects
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

// familyName names the family of a table (enum of linux/netfilter.h).
func familyName(n byte) string {
	switch n {
	case unix.NFPROTO_INET:
		return "inet"
	case unix.NFPROTO_IPV4:
		return "ip"
	case unix.NFPROTO_IPV6:
		return "ip6"
	case unix.NFPROTO_ARP:
		return "arp"
	case unix.NFPROTO_BRIDGE:
		return "bridge"
	case unix.NFPROTO_NETDEV:
		return "netdev"
	default:
		return fmt.Sprintf("family %d", n)
	}
}

// foreignKey names a table.
type foreignKey struct{ family, table string }

// everyFamily sends a request for the things of all tables.
func (s *session) everyFamily(kind int, what string, f func(family string, attrs []byte)) error {
	m := message{kind: kind, flags: netlink.Dump, what: what}.netlink()
	m.Data[0] = unix.NFPROTO_UNSPEC
	if _, err := s.send(m); err != nil {
		return refused(what, "", err)
	}
	for reply, err := range s.conn.ReceiveIter() {
		if err != nil {
			return refused(what, "", err)
		}
		if len(reply.Data) > 0 {
			f(familyName(reply.Data[0]), payload(reply))
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
	err = s.everyFamily(unix.NFT_MSG_GETRULE, "list rules", func(family string, attrs []byte) {
		r, table, chain := parseForeignRule(family, attrs)
		i, ok := index[foreignKey{family, table}]
		if !ok {
			return
		}
		j := slices.IndexFunc(tables[i].Chains, func(c ForeignChain) bool { return c.Name == chain })
		if j >= 0 {
			tables[i].Chains[j].Rules = append(tables[i].Chains[j].Rules, r)
		}
	})
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
					if !strings.HasPrefix(family, "i") {
						break // others number theirs otherwise
					}
					c.Hook = hookOf(uint32(number(v)))
				case unix.NFTA_HOOK_PRIORITY:
					c.Priority = int(int32(number(v)))
				}
			}
		}
	}
	return c, table
}

func parseForeignRule(family string, attrs []byte) (r ForeignRule, table, chain string) {
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
			r.Text = d.text()
		}
	}
	return r, table, chain
}
