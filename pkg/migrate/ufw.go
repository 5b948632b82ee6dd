package migrate

import (
	"fmt"
	"regexp"
	"strings"
	"sync"

	"github.com/nftfw/nftfw/pkg/addrset"
)

// ufwRow cuts a line of ufw status into To, Action and From. Columns are apart
// by two blanks at least, but a long To leaves one. Whether the rule logs, and in
// numbered lists (out), stands behind From.
var ufwRow = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(?:\[ *\d+\] )?(.*?)\s+(ALLOW|DENY|REJECT|LIMIT)(?: (IN|OUT|FWD))?\s+(.*?)(?:\s+\((?:log|log-all|out)(?:, out)?\))?(?:\s+# (.*))?$`)
})

// readUFW reads what ufw status prints, verbose or numbered or neither.
func (s *source) readUFW(file, text string) error {
	s.family(false).table("filter")
	s.family(true).table("filter")
	incoming, routed := "DROP", "DROP"
	number := 0
	for line := range strings.Lines(text) {
		number++
		line = strings.TrimSpace(line)
		switch {
		case line == "" || strings.HasPrefix(line, "--") || strings.HasPrefix(line, "To  "),
			strings.HasPrefix(line, "Logging:"), strings.HasPrefix(line, "New profiles:"), line == "Status: active":
		case line == "Status: inactive":
			return fmt.Errorf("%s:%d: ufw is not active: start it, or give what iptables-save prints", file, number)
		case strings.HasPrefix(line, "Default:"):
			if strings.Contains(line, "allow (incoming)") {
				incoming = "ACCEPT"
			}
			if strings.Contains(line, "allow (routed)") {
				routed = "ACCEPT"
			}
			if !strings.Contains(line, "allow (outgoing)") {
				s.note(Note{File: file, Line: number, Rule: line, Why: "nftfw does not filter what the host itself sends"})
			}
		default:
			m := ufwRow().FindStringSubmatch(line)
			if m == nil {
				return fmt.Errorf("%s:%d: this is not a line of ufw status: %.60q", file, number, line)
			}
			s.readUFWRow(&rule{text: line, file: file, line: number, comment: m[5]}, m[1], m[2], m[3], m[4])
		}
	}
	for _, f := range []*family{s.v4, s.v6} {
		f.tables["filter"].chain("INPUT").policy = incoming
		forward := f.tables["filter"].chain("FORWARD")
		forward.policy = routed
		// Docker's own rules for what containers send come before ufw's end.
		forward.rules = append(forward.rules, &rule{target: "ACCEPT", when: []condition{{
			text: "Docker", ask: func(p packet) answer { return known(p.kind == fromContainer) },
		}}})
	}
	return nil
}

// readUFWRow adds one rule to the family that it is of.
func (s *source) readUFWRow(r *rule, to, action, direction, from string) {
	is6 := strings.Contains(to, "(v6)") || strings.Contains(from, "(v6)") || hasColonAddress(to) || hasColonAddress(from)
	hook := "INPUT"
	switch direction {
	case "OUT":
		s.noteRule(r, "nftfw does not filter what the host itself sends")
		return
	case "FWD":
		hook = "FORWARD"
	}
	switch action {
	case "ALLOW":
		r.target = "ACCEPT"
	case "LIMIT":
		r.target = "ACCEPT"
		r.when = append(r.when, doubtful("LIMIT"))
	default:
		r.target = "DROP"
	}
	s.ufwTo(r, to, hook, is6)
	s.ufwFrom(r, from, is6)
	c := s.family(is6).tables["filter"].chain(hook)
	c.rules = append(c.rules, r)
}

func hasColonAddress(text string) bool {
	for word := range strings.FieldsSeq(text) {
		if r, err := addrset.ParseRange(word); err == nil && !r.Is4() {
			return true
		}
	}
	return false
}

// ufwDocker is the comment that ufw-docker leaves at its rules: allow NAME, and
// perhaps the port and the network.
var ufwDocker = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^allow ([A-Za-z0-9][A-Za-z0-9_.-]*)(?: .*)?$`) })

// ufwPorts is 22, 22/tcp, 80,443/tcp or 6000:6007/udp.
var ufwPorts = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^([0-9]+(?::[0-9]+)?(?:,[0-9]+(?::[0-9]+)?)*)(?:/(tcp|udp))?$`)
})

// ufwTo reads the column To: [ADDRESS] [PORTS[/PROTO]] [on LINK] [(profile)]. The
// link is the one by which a packet leaves where it passes through, and else the
// one by which it arrives.
func (s *source) ufwTo(r *rule, text, hook string, is6 bool) {
	text = strings.ReplaceAll(text, "(v6)", "")
	text, link, hasLink := strings.Cut(text, " on ")
	if hasLink && hook == "FORWARD" {
		s.addCondition(r, "-o", strings.TrimSpace(link), is6)
	} else if hasLink {
		s.addCondition(r, "-i", strings.TrimSpace(link), is6)
	}
	if i := strings.Index(text, "("); i > 0 { // the profile that the ports come from
		text = text[:i]
	}
	for word := range strings.FieldsSeq(text) {
		if word == "Anywhere" {
			continue
		}
		if m := ufwPorts().FindStringSubmatch(word); m != nil {
			s.addCondition(r, "--dports", m[1], is6)
			if m[2] != "" {
				s.addCondition(r, "-p", m[2], is6)
			} else {
				s.tcpOrUDP(r)
			}
			continue
		}
		if proto, ok := strings.CutPrefix(word, "Anywhere/"); ok {
			s.addCondition(r, "-p", proto, is6)
			continue
		}
		address, proto, hasProto := strings.Cut(word, "/")
		if _, err := addrset.ParseRange(address); err == nil && hasProto && protocols[proto] != 0 {
			word = address
			s.addCondition(r, "-p", proto, is6)
		}
		if _, err := addrset.ParseRange(word); err != nil {
			r.when = append(r.when, doubtful("the profile "+word+" (ufw status verbose shows its ports)"))
			continue
		}
		if m := ufwDocker().FindStringSubmatch(r.comment); m != nil && hook == "FORWARD" {
			s.addName(r, m[1])
			continue
		}
		s.addCondition(r, "-d", word, is6)
	}
}

// ufwFrom reads the column From: ADDRESS [PORTS] [on LINK].
func (s *source) ufwFrom(r *rule, text string, is6 bool) {
	text = strings.TrimSpace(strings.ReplaceAll(text, "(v6)", ""))
	text, link, hasLink := strings.Cut(text, " on ")
	if hasLink {
		s.addCondition(r, "-i", strings.TrimSpace(link), is6)
	}
	for word := range strings.FieldsSeq(text) {
		if word == "Anywhere" {
			continue
		}
		address, proto, _ := strings.Cut(word, "/")
		if protocols[proto] != 0 {
			s.addCondition(r, "-p", proto, is6)
			if word = address; word == "Anywhere" {
				continue
			}
		}
		if _, err := addrset.ParseRange(word); err != nil {
			r.when = append(r.when, doubtful("a source port"))
			continue
		}
		s.addCondition(r, "-s", word, is6)
	}
}

func (s *source) addCondition(r *rule, option, arg string, is6 bool) {
	r.when = append(r.when, s.readCondition(option, func() string { return arg }, is6))
}

// tcpOrUDP is what ufw means by a port without a protocol.
func (s *source) tcpOrUDP(r *rule) {
	tcp, udp := protocols["tcp"], protocols["udp"]
	remember(&s.protos, tcp)
	remember(&s.protos, udp)
	r.when = append(r.when, condition{text: "tcp or udp", ask: func(p packet) answer {
		return known(p.proto == tcp || p.proto == udp)
	}})
}

// addName has the rule speak of one container.
func (s *source) addName(r *rule, name string) {
	remember(&s.names, name)
	r.when = append(r.when, condition{text: "-d", ask: func(p packet) answer {
		if p.kind != toContainer {
			return maybe
		}
		return known(p.name == name)
	}})
}
