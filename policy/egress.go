package policy

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/nftfw/nftfw/pkg/addrset"
)

const egressForms = "write " + egressExpected

// ParseEgress reads a comma-separated egress as labels carry it: any, none,
// or destinations. A destination is a set, an address, a CIDR or a range,
// each with :PORT[/PROTO] after it or not, or :PORT[/PROTO] alone. IPv6
// addresses with a port stand in brackets. known is as in ParseFrom, and
// trusted is here a set like any other.
func ParseEgress(s string, known func(string) bool) (Egress, error) {
	var items []egressWord
	for text := range strings.SplitSeq(s, ",") {
		item, err := parseEgressItem(strings.TrimSpace(text), known)
		if err != nil {
			return Egress{}, err
		}
		items = append(items, item)
	}
	return combineEgress(items)
}

// egressWord is any, none, or a destination.
type egressWord struct {
	word string
	item EgressItem
}

func parseEgressItem(s string, known func(string) bool) (egressWord, error) {
	switch {
	case s == "":
		return egressWord{}, errors.New("an item of egress is empty: " + egressForms)
	case s == wordAny || s == wordNone:
		return egressWord{word: s}, nil
	}
	host, port, err := splitEgress(s)
	if err != nil {
		return egressWord{}, err
	}
	var item EgressItem
	if port != "" {
		spec, err := parseEgressPort(s, port)
		if err != nil {
			return egressWord{}, err
		}
		item.Ports = &spec
	}
	switch {
	case host == "":
	case looksLikeAddress(host):
		if item.Range, err = addrset.ParseRange(host); err != nil {
			return egressWord{}, addressError(host, err)
		}
	case host == SetTrusted || known != nil && known(host):
		item.Set = host
	default:
		return egressWord{}, &unknownSetError{host}
	}
	return egressWord{item: item}, nil
}

// splitEgress cuts s into its destination and its port; either may be empty,
// but not both.
func splitEgress(s string) (host, port string, err error) {
	if rest, ok := strings.CutPrefix(s, "["); ok {
		host, rest, ok = strings.Cut(rest, "]")
		port, colon := strings.CutPrefix(rest, ":")
		if !ok || rest != "" && !colon || colon && port == "" {
			return "", "", fmt.Errorf("egress %s: write [address]:port/proto, as in [2001:db8::1]:443/tcp", quote(s))
		}
		if !strings.Contains(host, ":") {
			return "", "", fmt.Errorf("egress %s: only IPv6 addresses stand in brackets", quote(s))
		}
		return host, port, nil
	}
	i := strings.IndexByte(s, ':')
	if i < 0 {
		return s, "", nil
	}
	if _, err := addrset.ParseRange(s); err == nil {
		return s, "", nil
	}
	host, port = s[:i], s[i+1:]
	switch {
	case strings.Contains(port, ":") && strings.Contains(port, "/") && startsWithDigit(afterColon(s)):
		return "", "", fmt.Errorf("egress %s: an IPv6 address with a port stands in brackets, as in [2001:db8::1]:443/tcp", quote(s))
	case strings.Contains(port, ":"):
		return s, "", nil // a broken IPv6 address: let its own parser say what is wrong
	case port == "":
		return "", "", fmt.Errorf("egress %s: the port after the colon is missing, as in 192.0.2.1:443/tcp", quote(s))
	}
	return host, port, nil
}

func afterColon(s string) string { return s[strings.LastIndexByte(s, ':')+1:] }

func parseEgressPort(text, port string) (PortSpec, error) {
	spec, err := ParsePort(port)
	if err == nil && (spec.All || spec.Portless) {
		err = errors.New("write a port such as 443/tcp, or leave the colon out for every port")
	}
	if err != nil {
		return PortSpec{}, fmt.Errorf("egress %s: %w", quote(text), err)
	}
	return spec, nil
}

// combineEgress makes an Egress in canonical form: items sorted, each once.
func combineEgress(words []egressWord) (Egress, error) {
	var e Egress
	for _, w := range words {
		switch {
		case w.word != "" && len(words) > 1:
			return Egress{}, fmt.Errorf("%s stands alone: leave the rest out, or leave %[1]s out", w.word)
		case w.word != "":
			return Egress{Any: w.word == wordAny}, nil
		}
		e.Items = append(e.Items, w.item)
	}
	slices.SortFunc(e.Items, compareEgressItems)
	e.Items = slices.CompactFunc(e.Items, func(a, b EgressItem) bool { return compareEgressItems(a, b) == 0 })
	return e, nil
}

func compareEgressItems(a, b EgressItem) int {
	if c := cmp.Or(cmp.Compare(a.Set, b.Set), a.Range.Compare(b.Range)); c != 0 {
		return c
	}
	switch {
	case a.Ports == nil && b.Ports == nil:
		return 0
	case a.Ports == nil:
		return -1
	case b.Ports == nil:
		return 1
	}
	return comparePorts(*a.Ports, *b.Ports)
}

// String returns e in canonical form, which ParseEgress reads.
func (e Egress) String() string {
	switch {
	case e.Any:
		return wordAny
	case len(e.Items) == 0:
		return wordNone
	}
	items := make([]string, len(e.Items))
	for i, item := range e.Items {
		items[i] = item.String()
	}
	return strings.Join(items, ",")
}

// same reports whether both let through the same.
func (e Egress) same(other Egress) bool {
	if e.Any || other.Any || len(e.Items)+len(other.Items) == 0 {
		return e.Any == other.Any
	}
	return e.String() == other.String()
}

// String returns the destination in the form that ParseEgress reads.
func (i EgressItem) String() string {
	host := i.Set
	if i.Range.IsValid() {
		host = i.Range.String()
		if i.Ports != nil && !i.Range.Is4() {
			host = "[" + host + "]"
		}
	}
	if i.Ports == nil {
		return host
	}
	return host + ":" + i.Ports.String()
}
