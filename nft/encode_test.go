package nft

import (
	"testing"
	"time"

	"github.com/nftfw/nftfw/pkg/ruleset"
)

func TestCanonicalFormIsEqualForEqualRulesOnly(t *testing.T) {
	var rules []ruleset.Rule
	for _, c := range rich(t).Chains {
		rules = append(rules, c.Rules...)
	}
	forms := make([]string, len(rules))
	for i, r := range rules {
		b, err := marshalRule(r)
		if err != nil {
			t.Fatalf("%s: %v", r, err)
		}
		forms[i] = canonical(b)
	}
	for i, a := range rules {
		for j, b := range rules {
			if got, want := forms[i] == forms[j], sameRule(a, b); got != want {
				t.Errorf("%q and %q are the same: %v, want %v", a, b, got, want)
			}
		}
	}
}

func TestElementsThatNobodyOfUsMade(t *testing.T) {
	key := appendKey(nil, []byte{0, 80})
	for _, c := range []struct {
		name string
		data []byte
		odd  bool
	}{
		{"plain", nil, false},
		{"with a comment", appendAttr(nil, 6, newUdata(udataElemComment, []byte("x\x00"))...), false},
		{"without an end, as nft notes it", appendAttr(nil, 6, newUdata(udataElemFlags, []byte{1, 0, 0, 0})...), false},
		{"with other user data", appendAttr(nil, 6, newUdata(2, []byte{1})...), true},
		{"with an expression", appendAttr(nil, nftaSetElemExpressions, 0, 0, 0, 0), true},
		{"with the end of a range", appendAttr(nil, nftaSetElemKeyEnd, 0, 0, 0, 0), true},
		{"for everything else", appendU32(nil, 3, 2), true},
		{"with data that are no verdict", appendNested(nil, 2, func(b []byte) []byte { return appendAttr(b, 1, 0, 0, 0, 1) }), true},
	} {
		e := parseElement(append(append([]byte{}, key...), c.data...), time.Now())
		if e.odd != c.odd || string(e.key) != "\x00\x50" {
			t.Errorf("%s: odd %v, want %v; key %x", c.name, e.odd, c.odd, e.key)
		}
	}
}

func FuzzAttributes(f *testing.F) {
	f.Add(appendNested(nil, 1, func(b []byte) []byte { return appendString(b, 2, "nftfw") }))
	f.Fuzz(func(_ *testing.T, b []byte) {
		// Nothing that a kernel says may bring the daemon down.
		canonical(b)
		parseElement(b, time.Now())
		for _, v := range attributes(b) {
			for range udata(v) {
			}
			number(v)
			text(v)
		}
	})
}
