package nft

import (
	"cmp"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/ruleset"
)

// State is a table as it was read from the kernel, or as it must be after a
// commit. It is not changed once made.
type State struct {
	name   string
	exists bool
	odd    bool // has something that only replacing the table puts right
	chains []chainState
	sets   []setState
}

type chainState struct {
	def       *ruleset.Chain // without rules when the chain was read
	read      bool           // from the kernel
	odd       bool           // not a chain that ruleset.Chain can describe
	anonymous bool           // part of a rule, which is none of ours, and goes with it
	rules     []string       // canonical, when the chain was read
}

type setState struct {
	name     string
	set      *ruleset.Set // nil when the set was read
	def      definition
	odd      bool
	elements []element // when the set was read
	unread   bool      // the set was read, and its elements were not
}

// element is one element, or one range with its two, as the kernel holds it.
type element struct {
	key     []byte
	end     []byte // of a range: the key of the element after its last address, nil for none
	expires time.Time
	verdict ruleset.Verdict
	comment string
	odd     bool // has something that ruleset.Element cannot describe
	origin  string
}

// StateOf returns the state of the kernel after t was committed; nil is no
// table. The contents of t's sets are shared with it.
func StateOf(t *ruleset.Table) *State {
	if t == nil {
		return &State{}
	}
	s := &State{name: t.Name, exists: true}
	for _, c := range t.Chains {
		s.chains = append(s.chains, chainState{def: c})
	}
	for _, set := range t.Sets {
		s.sets = append(s.sets, setState{name: set.Name, set: set, def: definitionOf(set)})
	}
	return s
}

// Unread reports whether there are sets whose contents were not read: see Survey.
func (s *State) Unread() bool {
	return slices.ContainsFunc(s.sets, func(set setState) bool { return set.unread })
}

// Exists reports whether there is a table.
func (s *State) Exists() bool { return s != nil && s.exists }

// Table returns the table: chains, sets and elements. Of a table that was read
// from the kernel chains have no rules, sets whose keys no Key can hold are left
// out, and what an address or a port belongs to is a guess: the
// destination, the first of two addresses being that before DNAT. It is nil when
// there is no table.
func (s *State) Table() *ruleset.Table {
	if !s.Exists() {
		return nil
	}
	t := &ruleset.Table{Name: s.name}
	for _, c := range s.chains {
		if !c.odd {
			t.Chains = append(t.Chains, c.def)
		}
	}
	for _, set := range s.sets {
		if set.set != nil {
			t.Sets = append(t.Sets, set.set)
		} else if decoded := set.decode(); decoded != nil {
			t.Sets = append(t.Sets, decoded)
		}
	}
	slices.SortFunc(t.Sets, func(a, b *ruleset.Set) int { return cmp.Compare(a.Name, b.Name) })
	return t
}

func (s *setState) decode() *ruleset.Set {
	fields, ok := fieldsOf(s.def)
	if !ok || s.odd {
		return nil
	}
	set := &ruleset.Set{Name: s.name, Key: fields, Verdicts: s.def.verdicts, Counter: s.def.counter}
	if s.def.flags&unix.NFT_SET_EVAL != 0 {
		set.Dynamic, set.Size, set.Timeout = true, s.def.size, time.Duration(s.def.timeout)*time.Millisecond
	}
	set.Interval = s.def.flags&unix.NFT_SET_INTERVAL != 0
	if part, ok := s.def.hosts(); ok {
		set.Part = part
	}
	if set.Part == ruleset.Lasting {
		set.Size = s.def.size
	}
	if definitionOf(set) != s.def {
		return nil
	}
	if set.Dynamic {
		return set
	}
	if set.HoldsRanges() {
		var list []addrset.Segment
		for _, e := range s.elements {
			list = append(list, pieceOf(set, e))
		}
		set.Ranges = addrset.SegmentsOf(list...)
		return set
	}
	set.Elements = make(map[ruleset.Key]ruleset.Element, len(s.elements))
	for _, e := range s.elements {
		set.Elements[decodeKey(fields, e.key)] = ruleset.Element{Verdict: e.verdict, Comment: e.comment}
	}
	return set
}
