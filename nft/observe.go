package nft

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/nftfw/nftfw/pkg/ruleset"
)

// observeTries is how often Observe starts again when the ruleset changes
// meanwhile.
const observeTries = 10

// ErrUnsettled is what Observe returns when the ruleset changed during every try.
var ErrUnsettled = errors.New("the ruleset changes faster than it can be read")

// Observe reads the table of family inet called table. It reads it again when
// any table of the namespace changed meanwhile, because a dump that takes several
// messages may then hold some of either; when that goes on for too long the error
// is ErrUnsettled.
func (k *Kernel) Observe(ctx context.Context, table string) (*State, error) {
	return k.observe(ctx, table, true)
}

// Survey is Observe without the contents of sets of hosts (ruleset.Hosts). To
// read a hash the kernel begins at its start for every message: a million
// addresses take it a minute, and to write them anew takes seconds. That is what
// Diff plans for a State whose sets of hosts were not read.
func (k *Kernel) Survey(ctx context.Context, table string) (*State, error) {
	return k.observe(ctx, table, false)
}

func (k *Kernel) observe(ctx context.Context, table string, hosts bool) (*State, error) {
	s, err := k.session(ctx)
	if err != nil {
		return nil, fmt.Errorf("observe table %q: %w", table, err)
	}
	defer s.close()
	for try := range observeTries {
		state, err := s.observeOnce(table, hosts)
		switch {
		case ctx.Err() != nil:
			return nil, fmt.Errorf("observe table %q: %w", table, ctx.Err())
		case err == nil:
			return state, nil
		case !errors.Is(err, ErrUnsettled):
			return nil, fmt.Errorf("observe table %q: %w", table, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(try) * 5 * time.Millisecond):
		}
	}
	return nil, fmt.Errorf("observe table %q: %w", table, ErrUnsettled)
}

func (s *session) observeOnce(table string, hosts bool) (*State, error) {
	before, err := s.generation()
	if err != nil {
		return nil, err
	}
	if err := s.barrier(); err != nil {
		return nil, err
	}
	state, err := s.read(table, hosts)
	after, generr := s.generation()
	if generr != nil {
		return nil, generr
	}
	if before != after {
		// An error may come from the change as well, a set that is gone for one.
		return nil, ErrUnsettled
	}
	return state, err
}

// barrier waits for the transaction that the kernel may be at. It raises the
// generation a little before the change can be seen, so the same number before
// and after a dump proves nothing while one is under way. A batch has to wait for
// the one before it, and an empty one changes nothing and raises nothing.
func (s *session) barrier() error {
	s.patience()
	if err := write(s.conn, marshal(nil, 1)); err != nil {
		return refused("wait for transactions", "", err)
	}
	return nil
}

func (s *session) read(table string, hosts bool) (*State, error) {
	state := &State{name: table}
	use, err := s.readTable(state)
	if err != nil || !state.exists {
		return state, err
	}
	if err := s.readChains(state); err != nil {
		return nil, err
	}
	if err := s.readRules(state); err != nil {
		return nil, err
	}
	count, err := s.readSets(state, hosts)
	if err != nil {
		return nil, err
	}
	// What is counted besides chains and sets are objects and flowtables.
	if use != count {
		state.odd = true
	}
	return state, nil
}

// readTable returns how many things the table holds.
func (s *session) readTable(state *State) (use int, err error) {
	err = s.each(message{
		kind: unix.NFT_MSG_GETTABLE,
		data: appendString(nil, unix.NFTA_TABLE_NAME, state.name),
		what: "read table",
	}, func(m netlink.Message) {
		state.exists = true
		for typ, v := range attributes(payload(m)) {
			switch typ {
			case unix.NFTA_TABLE_FLAGS: // dormant, owner, persist
				state.odd = number(v) != 0
			case unix.NFTA_TABLE_USE:
				use = int(number(v))
			}
		}
	})
	if errors.Is(err, unix.ENOENT) {
		return 0, nil
	}
	return use, err
}

// dump sends a request whose answer is a list of the table's things. nameAttr
// is the attribute that names the table.
func (s *session) dump(kind int, state *State, nameAttr uint16, what string, f func(netlink.Message)) error {
	return s.each(message{
		kind:  kind,
		flags: netlink.Dump,
		data:  appendString(nil, nameAttr, state.name),
		what:  what,
	}, f)
}

func (s *session) readChains(state *State) error {
	return s.dump(unix.NFT_MSG_GETCHAIN, state, unix.NFTA_CHAIN_TABLE, "read chains", func(m netlink.Message) {
		// Kernels do not filter chains by table.
		if c, table := parseChain(m); table == state.name {
			state.chains = append(state.chains, c)
		}
	})
}

const (
	chainFlagBase    = 1 // NFT_CHAIN_BASE: the chain has a hook
	chainFlagBinding = 4 // NFT_CHAIN_BINDING: the chain is part of a rule
	nfDrop           = 0 // NF_DROP and NF_ACCEPT, linux/netfilter.h
	nfAccept         = 1
)

func parseChain(m netlink.Message) (c chainState, table string) {
	c = chainState{def: &ruleset.Chain{}, read: true}
	for typ, v := range attributes(payload(m)) {
		switch typ {
		case unix.NFTA_CHAIN_TABLE:
			table = text(v)
		case unix.NFTA_CHAIN_NAME:
			c.def.Name = text(v)
		case unix.NFTA_CHAIN_HOOK:
			for typ, v := range attributes(v) {
				switch typ {
				case unix.NFTA_HOOK_HOOKNUM:
					c.def.Hook = hookOf(uint32(number(v)))
					c.odd = c.odd || c.def.Hook == ""
				case unix.NFTA_HOOK_PRIORITY:
					c.def.Priority = int(int32(number(v)))
				default: // devices
					c.odd = true
				}
			}
		case unix.NFTA_CHAIN_POLICY:
			c.def.Policy = ruleset.Drop
			if number(v) == nfAccept {
				c.def.Policy = ruleset.Accept
			}
		case unix.NFTA_CHAIN_TYPE:
			c.odd = c.odd || text(v) != "filter"
		case nftaChainFlags:
			flags := number(v)
			c.anonymous = flags&chainFlagBinding != 0
			c.odd = c.odd || flags&^chainFlagBase != 0
		}
	}
	return c, table
}

// hooks are the hooks of family inet by number.
var hooks = [...]ruleset.Hook{
	unix.NF_INET_PRE_ROUTING:  ruleset.Prerouting,
	unix.NF_INET_LOCAL_IN:     ruleset.Input,
	unix.NF_INET_FORWARD:      ruleset.Forward,
	unix.NF_INET_LOCAL_OUT:    ruleset.Output,
	unix.NF_INET_POST_ROUTING: ruleset.Postrouting,
}

func hookOf(n uint32) ruleset.Hook {
	if int(n) < len(hooks) {
		return hooks[n]
	}
	return ""
}

func (s *session) readRules(state *State) error {
	at := map[string]int{}
	for i, c := range state.chains {
		at[c.def.Name] = i
	}
	return s.dump(unix.NFT_MSG_GETRULE, state, unix.NFTA_RULE_TABLE, "read rules", func(m netlink.Message) {
		var table, chain, rule, extra string
		for typ, v := range attributes(payload(m)) {
			switch typ {
			case unix.NFTA_RULE_TABLE:
				table = text(v)
			case unix.NFTA_RULE_CHAIN:
				chain = text(v)
			case unix.NFTA_RULE_EXPRESSIONS:
				rule = canonical(v)
			case nftaRuleUserdata, unix.NFTA_RULE_COMPAT: // comments, iptables: not ours
				extra = "\x00foreign"
			}
		}
		if i, ok := at[chain]; ok && table == state.name {
			state.chains[i].rules = append(state.chains[i].rules, rule+extra)
		}
	})
}

// readSets returns how many things the table holds as far as we see.
func (s *session) readSets(state *State, hosts bool) (int, error) {
	err := s.dump(unix.NFT_MSG_GETSET, state, unix.NFTA_SET_TABLE, "read sets", func(m netlink.Message) {
		set, table := parseSet(m)
		// An anonymous set is part of a rule, which is none of ours, and goes with it.
		if table == state.name && set.def.flags&unix.NFT_SET_ANONYMOUS == 0 {
			state.sets = append(state.sets, set)
		}
	})
	for i := range state.sets {
		// What rules fill is no part of a Table.
		if _, many := state.sets[i].def.hosts(); many && !hosts {
			state.sets[i].unread = true
			continue
		}
		if err == nil && !state.sets[i].odd && state.sets[i].def.flags&unix.NFT_SET_EVAL == 0 {
			err = s.readElements(state.name, &state.sets[i])
		}
	}
	return len(state.chains) + len(state.sets), err
}

func parseSet(m netlink.Message) (s setState, table string) {
	for typ, v := range attributes(payload(m)) {
		switch typ {
		case unix.NFTA_SET_TABLE:
			table = text(v)
		case unix.NFTA_SET_NAME:
			s.name = text(v)
		case unix.NFTA_SET_FLAGS:
			s.def.flags = uint32(number(v))
		case unix.NFTA_SET_KEY_TYPE:
			s.def.keyType = uint32(number(v))
		case unix.NFTA_SET_KEY_LEN:
			s.def.keyLen = uint32(number(v))
		case unix.NFTA_SET_DATA_TYPE:
			s.def.verdicts = uint32(number(v)) == unix.NFT_DATA_VERDICT
		case unix.NFTA_SET_TIMEOUT:
			s.def.timeout = number(v)
		case nftaSetExpr: // each new element gets a copy
			_, s.def.counter = parseCounter(v)
			s.odd = s.odd || !s.def.counter
		case nftaSetExpressions, unix.NFTA_SET_OBJ_TYPE:
			// Something else that happens to each new element.
			s.odd = s.odd || number(v) != 0
		case unix.NFTA_SET_DESC:
			for typ, v := range attributes(v) {
				if typ == unix.NFTA_SET_DESC_SIZE {
					s.def.size = uint32(number(v))
				}
			}
		}
	}
	return s, table
}

// dumpElements reads the elements of a set once; see repeated.
func (s *session) dumpElements(table, set string) (raw []rawElement, err error) {
	data := appendString(nil, unix.NFTA_SET_ELEM_LIST_TABLE, table)
	data = appendString(data, unix.NFTA_SET_ELEM_LIST_SET, set)
	err = s.each(message{
		kind: unix.NFT_MSG_GETSETELEM, flags: netlink.Dump, data: data, what: "read elements of " + set,
	}, func(m netlink.Message) {
		// The kernel says how long each has to go while it writes the message.
		raw = append(raw, elementsIn(m, time.Now().Round(0))...)
	})
	return raw, err
}

func (s *session) readElements(table string, set *setState) error {
	raw, err := s.dumpElements(table, set.name)
	if err != nil {
		return err
	}
	if repeated(raw) {
		return ErrUnsettled
	}
	for i := range raw {
		raw[i].odd = raw[i].odd || raw[i].counted != set.def.counter
	}
	if set.def.flags&unix.NFT_SET_INTERVAL != 0 {
		set.elements = pairRanges(raw)
		return nil
	}
	for _, r := range raw {
		r.odd = r.odd || r.isEnd
		set.elements = append(set.elements, r.element)
	}
	if _, many := set.def.hosts(); many {
		sortElements(set.elements)
	}
	return nil
}

// repeated reports whether an element is there twice. Between two messages of a
// dump the kernel keeps only how many elements it has written. When it gives
// a hash table another size meanwhile, which it does after a change and in its
// own time, as many elements are missing as are there twice.
func repeated(raw []rawElement) bool {
	seen := make(map[string]bool, len(raw))
	for _, r := range raw {
		key := string(r.key)
		if r.isEnd {
			key += "end"
		}
		if seen[key] {
			return true
		}
		seen[key] = true
	}
	return false
}
