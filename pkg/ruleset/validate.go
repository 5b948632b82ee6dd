package ruleset

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf8"
)

// Limits of the kernel and of nft on what a Table may hold.
const (
	// maxName keeps names under 128 bytes, NFT_NAME_MAXLEN of nft's own
	// buffers; the kernel takes 255 (NFT_NAME_MAXLEN, nf_tables.h).
	maxName = 127
	// maxComment is NFTNL_UDATA_COMMENT_MAXLEN, libnftnl udata.h.
	maxComment = 128
	// maxLogPrefix is NF_LOG_PREFIXLEN less its NUL, linux/netfilter/nf_log.h.
	maxLogPrefix = 127
)

// InvalidError says what keeps a Table from being loaded, or from being listed
// as it was written.
type InvalidError struct {
	Where  string // `chain "forward" rule 2`, `set "inside"`
	Reason string
}

func (e *InvalidError) Error() string { return e.Where + ": " + e.Reason }

// Validate checks that nft and the kernel would take t and that its text means
// the same as t: names, the sets and chains that are named, the operands of
// matches, keys that fit their sets, verdicts, and how deep chains call each
// other. It reports every mistake; each is an *InvalidError.
func (t *Table) Validate() error {
	v := validator{table: t}
	v.name("table", t.Name)
	for i, s := range t.Sets {
		if i > 0 && t.Sets[i-1].Name >= s.Name {
			v.failf("set %q does not sort after the set before it, %q", s.Name, t.Sets[i-1].Name)
		}
		v.set(s)
	}
	seen := make(map[string]bool, len(t.Chains))
	for _, c := range t.Chains {
		v.chain(c)
		if seen[c.Name] {
			v.failf("there is another chain of this name")
		}
		seen[c.Name] = true
	}
	if len(v.errs) == 0 {
		v.depth()
	}
	return errors.Join(v.errs...)
}

type validator struct {
	table *Table
	where string
	errs  []error
}

func (v *validator) failf(format string, args ...any) {
	v.errs = append(v.errs, &InvalidError{v.where, fmt.Sprintf(format, args...)})
}

// name starts the object of that kind and name, and checks the name.
func (v *validator) name(kind, name string) {
	v.where = fmt.Sprintf("%s %q", kind, name)
	switch {
	case name == "":
		v.failf("no name")
	case len(name) > maxName:
		v.failf("the name is longer than %d bytes", maxName)
	case !isIdentifier(name):
		v.failf("not a name that nft reads: a letter or _, then letters, digits, _ - .")
	case IsKeyword(name):
		v.failf("the name is a keyword of nft")
	}
}

// isIdentifier tells whether name is a {string} of nftables src/scanner.l,
// less those with a slash or a leading dot.
func isIdentifier(name string) bool {
	for i, r := range []byte(name) {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r == '_'
		inner := r >= '0' && r <= '9' || r == '-' || r == '.'
		if !letter && (i == 0 || !inner) {
			return false
		}
	}
	return name != ""
}

func (v *validator) set(s *Set) {
	v.name("set", s.Name)
	before := len(v.errs)
	if len(s.Key) == 0 {
		v.failf("no key")
		return
	}
	if s.Dynamic {
		v.dynamic(s)
		return
	}
	if s.Size != 0 && s.Part != Lasting || s.Timeout != 0 {
		v.failf("only a dynamic set has a size and a timeout")
	}
	used := make(map[string]Field, len(s.Key))
	for _, f := range s.Key {
		member := keyMember(f)
		switch {
		case member == "":
			v.failf("%q cannot be part of a key", f)
		case used[member] != 0:
			v.failf("%q and %q are kept in the same member of Key", used[member], f)
		}
		used[member] = f
	}
	if s.HoldsRanges() {
		v.interval(s)
		return
	}
	if s.Ranges.Len() > 0 {
		v.failf("ranges in a set that holds none")
	}
	if len(v.errs) > before {
		return
	}
	for _, k := range s.SortedKeys() {
		v.element(s, k, s.Elements[k])
	}
}

// keyMember names the member of Key that holds f.
func keyMember(f Field) string {
	switch f {
	case IPSaddr, IPDaddr, IP6Saddr, IP6Daddr:
		return "Addr"
	case CtOrigIPDaddr, CtOrigIP6Daddr:
		return "Orig"
	case L4Proto:
		return "Proto"
	case Sport, Dport:
		return "Port"
	case ICMPType, ICMPv6Type:
		return "Type"
	case IIfName:
		return "IIf"
	case OIfName:
		return "OIf"
	default:
		return ""
	}
}

func (v *validator) interval(s *Set) {
	info := s.Key[0].info()
	if len(s.Key) != 1 || info.kind != kindAddr {
		v.failf("an interval set has one address as its key")
		return
	}
	if s.Verdicts || s.Counter || len(s.Elements) > 0 {
		v.failf("an interval set holds ranges only")
	}
	if s.Interval == s.Singles() {
		v.failf("a set of hosts is no interval set")
	}
	if s.Part == Lasting && s.PieceCount() > int(s.Size) {
		v.failf("%d addresses in a hash of size %d", s.PieceCount(), s.Size)
	}
	for seg := range s.Ranges.Each() {
		if !inFamily(seg.From, info.family) || !inFamily(seg.To, info.family) || seg.To.Less(seg.From) {
			v.failf("%s-%s is no range of %s", seg.From, seg.To, info.keyType)
		}
	}
}

func inFamily(a netip.Addr, family uint32) bool {
	if family == NFProtoIPv4 {
		return a.Is4()
	}
	return a.Is6() && a.Zone() == ""
}

func (v *validator) element(s *Set, k Key, e Element) {
	text := k.Format(s.Key)
	rest := k
	for _, f := range s.Key {
		switch keyMember(f) {
		case "Addr":
			v.keyAddr(text, f, k.Addr)
			rest.Addr = netip.Addr{}
		case "Orig":
			v.keyAddr(text, f, k.Orig)
			rest.Orig = netip.Addr{}
		case "Proto":
			rest.Proto = 0
		case "Port":
			rest.Port = 0
		case "Type":
			rest.Type = 0
		default:
			name := k.iface(s.Key, f)
			if strings.HasSuffix(name, "*") || !isIface(name) {
				v.failf("element %s: %q is no interface name", text, name)
			}
			if f == IIfName || len(s.Key) == 1 {
				rest.IIf = ""
			} else {
				rest.OIf = ""
			}
		}
	}
	if rest != (Key{}) {
		v.failf("element %s: the key has more than the fields of the set", text)
	}
	if len(e.Comment) > maxComment {
		v.failf("element %s: the comment is longer than %d bytes", text, maxComment)
	}
	if !isQuotable(e.Comment) {
		v.failf("element %s: nft cannot quote the comment %q", text, e.Comment)
	}
	switch {
	case s.Verdicts && e.Verdict.Kind == NoVerdict:
		v.failf("element %s: no verdict", text)
	case !s.Verdicts && e.Verdict != (Verdict{}):
		v.failf("element %s: a verdict in a set that is no map", text)
	default:
		v.verdict(e.Verdict)
	}
}

func (v *validator) keyAddr(text string, f Field, a netip.Addr) {
	if !inFamily(a, f.info().family) {
		v.failf("element %s: %q is no %s", text, a, f.KeyType())
	}
}

// isQuotable tells whether s can stand between quotes in nft, which knows no
// escapes.
func isQuotable(s string) bool {
	for _, r := range s {
		if r < ' ' || r == '"' || r == 0x7f {
			return false
		}
	}
	return utf8.ValidString(s)
}

// isIface tells whether name is a name that a link can have (dev_valid_name,
// net/core/dev.c) and that nft can quote; a * at the end is a wildcard.
func isIface(name string) bool {
	stem := strings.TrimSuffix(name, "*")
	return stem != "" && stem != "." && stem != ".." && len(name) < ifNameSize &&
		isQuotable(stem) && !strings.ContainsAny(stem, `*\/: `)
}

func (v *validator) verdict(verdict Verdict) {
	switch verdict.Kind {
	case NoVerdict, Accept, Drop, Return:
		if verdict.Chain != "" {
			v.failf("verdict %q names a chain", verdict)
		}
	case Jump, Goto:
		switch target := v.table.Chain(verdict.Chain); {
		case target == nil:
			v.failf("%s: no such chain", verdict)
		case target.Hook != "":
			v.failf("%s: a base chain", verdict)
		}
	default:
		v.failf("no verdict: %q", verdict.Kind)
	}
}
