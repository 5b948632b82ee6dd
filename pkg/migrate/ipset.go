package migrate

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/nftfw/nftfw/pkg/addrset"
)

// readIPSet reads what ipset save prints.
func (s *source) readIPSet(file, text string) error {
	netmask := map[string]int{}
	number := 0
	for line := range strings.Lines(text) {
		number++
		words, err := split(strings.TrimSpace(line))
		if err != nil {
			return fmt.Errorf("%s:%d: %w", file, number, err)
		}
		switch {
		case len(words) == 0 || strings.HasPrefix(words[0], "#"):
		case words[0] == "create" && len(words) >= 3:
			s.sets[words[1]] = &namedSet{kind: words[2]}
			if option(words, "bitmask") != "" {
				s.sets[words[1]].kind += " bitmask" // holds more addresses than it lists
			}
			if bits, err := strconv.Atoi(option(words, "netmask")); err == nil {
				netmask[words[1]] = bits
			}
		case words[0] == "add" && len(words) >= 3:
			set := s.sets[words[1]]
			if set == nil {
				return fmt.Errorf("%s:%d: the set %s was not created before", file, number, words[1])
			}
			if err := set.add(words, netmask[words[1]]); err != nil {
				return fmt.Errorf("%s:%d: %w", file, number, err)
			}
		default:
			return fmt.Errorf("%s:%d: this is not a line of ipset save: %.60q", file, number, line)
		}
	}
	for name, set := range s.sets {
		if len(set.timed) > 0 {
			s.note(Note{File: file, Rule: "set " + name, Why: fmt.Sprintf(
				"%d entries end by themselves: they let nobody in here; add them with nftfw sets add --timeout", len(set.timed))})
		}
	}
	return nil
}

// option is the word behind a word, "" if it is not there.
func option(words []string, name string) string {
	for i, w := range words[:len(words)-1] {
		if w == name {
			return words[i+1]
		}
	}
	return ""
}

// entryOptions are the options of an entry, each with the word behind it; nomatch
// alone has none.
func entryOptions(words []string) map[string]string {
	found := map[string]string{}
	for len(words) > 0 {
		n := min(2, len(words))
		if words[0] == "nomatch" {
			n = 1
		}
		found[words[0]] = words[n-1]
		words = words[n:]
	}
	return found
}

// ofAddresses reports whether a set holds addresses and nothing else.
func (n *namedSet) ofAddresses() bool {
	switch n.kind {
	case "hash:ip", "hash:net", "bitmap:ip":
		return true
	}
	return false
}

func (n *namedSet) add(words []string, bits int) error {
	options := entryOptions(words[3:])
	timed := options["timeout"] != "" && options["timeout"] != "0"
	if n.kind == "list:set" {
		n.lists = append(n.lists, words[2])
		n.listsEnd = n.listsEnd || timed
		return nil
	}
	if !n.ofAddresses() {
		return nil // holds more than addresses: what is in it stays in doubt
	}
	text := words[2]
	if bits > 0 && !strings.ContainsAny(text, "/-") {
		text += "/" + strconv.Itoa(bits)
	}
	r, err := addrset.ParseRange(text)
	if err != nil {
		return err
	}
	_, nomatch := options["nomatch"]
	switch {
	case nomatch:
		n.except = append(n.except, r)
	case timed:
		n.timed = append(n.timed, r)
	default:
		n.always = append(n.always, r)
	}
	return nil
}

// inSet asks whether the source is in a set.
func (s *source) inSet(name, direction string, is6 bool) func(packet) answer {
	if direction != "src" {
		return nil
	}
	members := s.members(name, 0)
	if members == nil {
		return nil
	}
	always, timed, except := flat(members.always, is6), flat(members.timed, is6), flat(members.except, is6)
	s.ranges = append(s.ranges, always, timed, except)
	return func(p packet) answer { return membership(always, timed, except, p.src) }
}

func membership(always, timed, except []addrset.Range, a netip.Addr) answer {
	switch {
	case covers(except, a) && (covers(always, a) || covers(timed, a)):
		return maybe // which of the two is longer decides
	case covers(always, a):
		return yes
	case covers(timed, a):
		return maybe
	}
	return no
}

// members gives all of a set, with what the sets in it hold, or nil where that
// is not known.
func (s *source) members(name string, depth int) *namedSet {
	set := s.sets[name]
	switch {
	case set == nil || depth > 1:
		return nil
	case set.ofAddresses():
		return set
	case set.kind != "list:set" || set.listsEnd:
		return nil
	}
	all := &namedSet{kind: "hash:net"}
	for _, member := range set.lists {
		m := s.members(member, depth+1)
		if m == nil {
			return nil
		}
		all.always = append(all.always, m.always...)
		all.timed = append(all.timed, m.timed...)
		all.except = append(all.except, m.except...)
	}
	return all
}
