package migrate

import (
	"fmt"
	"strings"
)

// readIPTables reads what iptables-save, ip6tables-save or iptables -S print.
func (s *source) readIPTables(file, text string) error {
	is6 := is6Rules(text)
	f := s.family(is6)
	current := f.table("filter")
	number := 0
	for line := range strings.Lines(text) {
		number++
		line = strings.TrimSpace(line)
		words, err := split(line)
		if err != nil {
			return fmt.Errorf("%s:%d: %w", file, number, err)
		}
		if len(words) > 0 && strings.HasPrefix(words[0], "[") {
			words = words[1:] // counters
		}
		switch {
		case len(words) == 0 || strings.HasPrefix(line, "#") || words[0] == "COMMIT":
		case strings.HasPrefix(words[0], "*"):
			current = f.table(words[0][1:])
		case strings.HasPrefix(words[0], ":") && len(words) >= 2:
			current.chain(words[0][1:]).policy = basePolicy(words[1])
		case words[0] == "-P" && len(words) == 3:
			current.chain(words[1]).policy = basePolicy(words[2])
		case words[0] == "-N" && len(words) == 2:
			current.chain(words[1])
		case (words[0] == "-A" || words[0] == "-I") && len(words) >= 2:
			if words[0] == "-I" {
				return fmt.Errorf("%s:%d: -I is a command: give what iptables-save prints", file, number)
			}
			r := &rule{text: line, file: file, line: number}
			s.readRule(r, words[2:], is6)
			c := current.chain(words[1])
			c.rules = append(c.rules, r)
		default:
			return fmt.Errorf("%s:%d: this is not a line of iptables-save: %.60q", file, number, line)
		}
	}
	return nil
}

// basePolicy is "" for chains of users, which have none.
func basePolicy(word string) string {
	if word == "-" {
		return ""
	}
	return word
}

// is6Rules tells rules of ip6tables from those of iptables.
func is6Rules(text string) bool {
	first, _, _ := strings.Cut(text, "\n")
	switch {
	case strings.Contains(first, "ip6tables"):
		return true
	case strings.Contains(first, "iptables"):
		return false
	}
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		for i, w := range words[:max(0, len(words)-1)] {
			if (w == "-s" || w == "-d") && strings.Contains(words[i+1], ":") || w == "-p" && words[i+1] == "ipv6-icmp" {
				return true
			}
		}
	}
	return false
}

func (s *source) family(is6 bool) *family {
	f := &s.v4
	if is6 {
		f = &s.v6
	}
	if *f == nil {
		*f = &family{is6: is6, tables: map[string]table{}}
	}
	return *f
}

func (f *family) table(name string) table {
	if f.tables[name] == nil {
		f.tables[name] = table{}
	}
	return f.tables[name]
}

// split cuts a line at blanks; quoted words may hold some.
func split(line string) ([]string, error) {
	var words []string
	for rest := strings.TrimSpace(line); rest != ""; rest = strings.TrimSpace(rest) {
		if rest[0] != '"' {
			word, after, _ := strings.Cut(rest, " ")
			words, rest = append(words, word), after
			continue
		}
		var b strings.Builder
		i := 1
		for ; i < len(rest) && rest[i] != '"'; i++ {
			if rest[i] == '\\' && i+1 < len(rest) {
				i++
			}
			b.WriteByte(rest[i])
		}
		if i >= len(rest) {
			return nil, fmt.Errorf("a quotation mark is missing: %.60q", line)
		}
		words, rest = append(words, b.String()), rest[i+1:]
	}
	return words, nil
}

// readRule reads the conditions and the target of a rule.
func (s *source) readRule(r *rule, words []string, is6 bool) {
	not := false
	for i := 0; i < len(words); i++ {
		word := words[i]
		arg := func() string {
			if i+1 >= len(words) {
				return ""
			}
			i++
			return words[i]
		}
		switch word {
		case "!":
			not = true
			continue
		case "-j", "--jump", "-g", "--goto":
			r.target, r.isGoto = arg(), word == "-g" || word == "--goto"
			return // the rest are options of the target
		case "--comment":
			r.comment = arg()
		case "-m", "--match":
			if module := arg(); !quietModule(module) {
				r.when = append(r.when, doubtful("-m "+module))
			}
		default:
			c := s.readCondition(word, arg, is6)
			c.not = not
			r.when = append(r.when, c)
		}
		not = false
	}
}

// quietModule reports whether a module asks nothing but what its options say,
// each of which is looked at.
func quietModule(name string) bool {
	switch name {
	case "tcp", "udp", "sctp", "icmp", "icmp6", "conntrack", "state", "multiport", "comment", "set", "addrtype", "iprange", "limit", "hashlimit", "recent", "mark", "connmark", "mac", "physdev", "hl", "ttl", "rt", "frag", "eui64", "pkttype", "string", "u32", "bpf", "owner", "connlimit", "statistic", "time", "length", "tcpmss", "tos", "dscp":
		return true
	}
	return false
}
