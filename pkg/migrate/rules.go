package migrate

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/nftfw/nftfw/pkg/addrset"
)

// answer says whether a condition holds for a packet.
type answer int

// The answers, so ordered that the answer of several conditions together is
// the least of theirs.
const (
	no answer = iota
	maybe
	yes
)

func known(holds bool) answer {
	if holds {
		return yes
	}
	return no
}

func (a answer) not() answer { return yes - a }

// packet is the first packet of a connection, standing for every packet that
// no rule tells from it.
type packet struct {
	src   netip.Addr
	in    string     // the link by which it arrives
	out   string     // the link by which it leaves, "" if that is a bridge of Docker's
	proto uint8      // anyProto for those that no rule names
	port  uint16     // destination; the container's own where it goes to one
	host  netip.Addr // the address of the host that was asked for; zero: another than those named
	name  string     // the container that it goes to; "" for another than those named
	kind  kind

	untranslated bool // on its way to a container, and not addressed to it yet; port is 0
}

// kind says where a packet goes.
type kind int

// The kinds.
const (
	toHost      kind = iota
	toContainer      // through a published port
	fromContainer
	through // neither to nor from a container
)

// anyProto is the protocol of packets of which no rule names the protocol: one
// that IANA keeps for experiments (RFC 3692).
const anyProto = 253

// condition is one test of a rule.
type condition struct {
	text string // as written, for comments
	not  bool
	ask  func(packet) answer
}

// rule is one rule of a chain.
type rule struct {
	text    string // as written
	file    string
	line    int
	when    []condition
	target  string // ACCEPT, DROP, RETURN, a chain, or "" for none
	isGoto  bool
	comment string // of the rule, where ufw has one
}

// matches gives the answer of all conditions together, and the first that is
// in doubt.
func (r *rule) matches(p packet) (answer, string) {
	all, doubt := yes, ""
	for _, c := range r.when {
		a := c.ask(p)
		if c.not {
			a = a.not()
		}
		if a == maybe && doubt == "" {
			doubt = c.text
		}
		all = min(all, a)
	}
	return all, doubt
}

// chain is a list of rules. policy is "" for those that are no base chains.
type chain struct {
	rules  []*rule
	policy string
}

// table is a table of iptables, or what ufw says as one.
type table map[string]*chain

func (t table) chain(name string) *chain {
	c := t[name]
	if c == nil {
		c = &chain{}
		t[name] = c
	}
	return c
}

// family is everything that is known of one address family.
type family struct {
	is6    bool
	tables map[string]table // by name
}

// source is all that was read.
type source struct {
	v4, v6 *family // nil: no rules of that family were given
	sets   map[string]*namedSet

	origins map[chainID]origin
	bridges []string // those of Docker's that its rules name

	// What the conditions tell apart. They grow while rules are read.
	ranges [][]addrset.Range // each a list of sources that some rule names
	ports  []portRange
	protos []uint8
	links  []string // exact names, or a beginning followed by +
	hosts  []netip.Addr
	names  []string // containers

	notes []Note
	steps int // how many rules may still be looked at, see maxSteps
}

type portRange struct{ low, high uint16 }

// namedSet is a set of ipset.
type namedSet struct {
	kind   string
	always []addrset.Range // members without a timeout
	timed  []addrset.Range
	except []addrset.Range // nomatch
	lists  []string        // members of a list:set

	listsEnd bool // some of lists are members for some time only
}

// Note is about something that the policy does not say as the source did.
type Note struct {
	File string // "" for what is about everything
	Line int
	Rule string // as written, "" where it is about no rule
	Why  string
}

// note remembers n once, in characters that cannot end a comment.
func (s *source) note(n Note) {
	n.File, n.Rule, n.Why = strings.Map(printable, n.File), strings.Map(printable, n.Rule), strings.Map(printable, n.Why)
	if !slices.Contains(s.notes, n) {
		s.notes = append(s.notes, n)
	}
}

// dhcpAnswer are rules for answers to a DHCP client, which nftfw lets through
// whatever a policy says.
var dhcpAnswer = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`--sport (67 --dport 68|547 --dport 546)\b`) })

func (s *source) noteRule(r *rule, why string) {
	if dhcpAnswer().MatchString(r.text) {
		return
	}
	s.note(Note{File: r.file, Line: r.line, Rule: r.text, Why: why})
}

// remember adds v to list unless it is there.
func remember[T comparable](list *[]T, v T) {
	if !slices.Contains(*list, v) {
		*list = append(*list, v)
	}
}

// isBridge reports whether a link is one of Docker's: by its name, or by Docker's
// rules, for a bridge may have got any name.
func (s *source) isBridge(link string) bool {
	return dockerLink().MatchString(link) || slices.Contains(s.bridges, link)
}

// dockerLink are the links that Docker names by itself.
var dockerLink = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(docker0|docker_gwbridge|br-[0-9a-f]{12}|veth[0-9a-f]{7})$`)
})

// beginsBridge reports whether names of Docker's bridges may begin so.
func beginsBridge(prefix string) bool {
	for _, name := range []string{"docker0", "docker_gwbridge", "br-"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	rest, ok := strings.CutPrefix(prefix, "br-")
	return ok && len(rest) <= 12 && strings.Trim(rest, "0123456789abcdef") == ""
}

// linkMatches compares a packet's link with an argument of -i or -o.
func linkMatches(pattern, link string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "+"); ok {
		return strings.HasPrefix(link, prefix)
	}
	return pattern == link
}
