package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/nftfw/nftfw/pkg/addrset"
)

// The words of FROM and of egress that are not names of sets. "trusted" is
// both: as FROM it adds nothing, for the set trusted is always let in.
const (
	wordAny  = "any"
	wordNone = "none"
)

const fromForms = "write " + fromExpected

// ParseFrom reads a comma-separated FROM as labels carry it. known says
// whether a set is declared; a nil known declares none but trusted.
func ParseFrom(s string, known func(set string) bool) (From, error) {
	var items []fromItem
	for text := range strings.SplitSeq(s, ",") {
		item, err := parseFromItem(strings.TrimSpace(text), known)
		if err != nil {
			return From{}, err
		}
		items = append(items, item)
	}
	return combineFrom(items)
}

// fromItem is one item of a FROM: a word, a set, or a range.
type fromItem struct {
	word string // any, none or trusted
	set  string
	addr addrset.Range
}

// unknownSetError is a name that no set has.
type unknownSetError struct{ name string }

func (e *unknownSetError) Error() string {
	return fmt.Sprintf("no set named %s is declared", quote(e.name))
}

func parseFromItem(s string, known func(set string) bool) (fromItem, error) {
	switch {
	case s == "":
		return fromItem{}, errors.New("an item of FROM is empty: " + fromForms)
	case s == wordAny || s == wordNone || s == SetTrusted:
		return fromItem{word: s}, nil
	case looksLikeAddress(s):
		r, err := addrset.ParseRange(s)
		return fromItem{addr: r}, addressError(s, err)
	case known == nil || !known(s):
		return fromItem{}, &unknownSetError{s}
	}
	return fromItem{set: s}, nil
}

// looksLikeAddress tells addresses from the names of sets, which begin with a
// letter and hold none of these characters.
func looksLikeAddress(s string) bool {
	return strings.ContainsAny(s, ".:/") || startsWithDigit(s)
}

// addressError is err with the text cut to a length that can be shown.
func addressError(text string, err error) error {
	var bad *addrset.ParseError
	if errors.As(err, &bad) && quote(text) != fmt.Sprintf("%q", text) {
		return fmt.Errorf("%s is not an address, CIDR or range", quote(text))
	}
	return err
}

// combineFrom makes a From in canonical form.
func combineFrom(items []fromItem) (From, error) {
	var f From
	var entries []addrset.Entry
	for _, item := range items {
		switch {
		case item.word == SetTrusted:
		case item.word == wordAny:
			f.Any = true
		case item.word == wordNone && len(items) > 1:
			return From{}, errors.New("none stands alone: it lets nobody in, so leave the rest out, or leave none out")
		case item.word == wordNone:
			return From{None: true}, nil
		case item.set != "":
			f.Sets = append(f.Sets, item.set)
		default:
			entries = append(entries, addrset.Entry{Range: item.addr, Source: addrset.Policy})
		}
	}
	if f.Any {
		return From{Any: true}, nil // whoever else is in the list
	}
	slices.Sort(f.Sets)
	f.Sets = slices.Compact(f.Sets)
	all := addrset.New(entries...)
	for _, segments := range []*addrset.Segments{all.Segments4(), all.Segments6()} {
		for _, s := range segments.All() {
			f.Ranges = append(f.Ranges, addrset.Range{From: s.From, To: s.To})
		}
	}
	return f, nil
}

// String returns f in canonical form, which ParseFrom reads: any, none,
// trusted, or the sets and then the ranges separated by commas.
func (f From) String() string {
	switch {
	case f.None:
		return wordNone
	case f.Any:
		return wordAny
	case len(f.Sets) == 0 && len(f.Ranges) == 0:
		return SetTrusted
	}
	items := slices.Clone(f.Sets)
	for _, r := range f.Ranges {
		items = append(items, r.String())
	}
	return strings.Join(items, ",")
}

// Grants reports whether a label of a container may ask for f: every set in
// it is named in containers.labels, and every address in it lies within
// addresses written there. What lies in a set that is named there does not
// count. A label may always ask for none, and for trusted where that is no
// more than the default gives.
func (c Containers) Grants(f From) bool {
	switch {
	case c.Labels.Any, f.None:
		return true
	case f.Any:
		return false
	case len(f.Sets) == 0 && len(f.Ranges) == 0:
		return c.LabelTrusted || !c.Default.None
	case c.Labels.None:
		return false
	}
	for _, set := range f.Sets {
		if !slices.Contains(c.Labels.Sets, set) {
			return false
		}
	}
	for _, r := range f.Ranges {
		if !addrset.Covers(c.Labels.Ranges, r) {
			return false
		}
	}
	return true
}
