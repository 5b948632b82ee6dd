package addrset

import (
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// entries reads "RANGE" or "RANGE +MINUTES" texts.
func entries(t testing.TB, texts ...string) []Entry {
	t.Helper()
	var list []Entry
	for _, s := range texts {
		r, rest, timed := strings.Cut(s, " +")
		e := Entry{Range: mustRange(t, r), Source: Runtime}
		if timed {
			d, err := time.ParseDuration(rest + "m")
			if err != nil {
				t.Fatal(err)
			}
			e.Expires = epoch.Add(d)
		}
		list = append(list, e)
	}
	return list
}

// texts is the reverse of entries.
func texts(segs ...*Segments) []string {
	var list []string
	for _, s := range segs {
		for _, g := range s.All() {
			text := Range{g.From, g.To}.String()
			if !g.Expires.IsZero() {
				text += " +" + strings.TrimSuffix(g.Expires.Sub(epoch).String(), "m0s")
			}
			list = append(list, text)
		}
	}
	return list
}

func TestSegments(t *testing.T) {
	tests := []struct {
		name     string
		in, want []string
	}{
		{"nothing", nil, nil},
		{"one", []string{"192.0.2.1"}, []string{"192.0.2.1"}},
		{"an address inside a network", []string{"10.0.0.0/8", "10.1.1.1"}, []string{"10.0.0.0/8"}},
		{
			"an address that outlives its network",
			[]string{"10.0.0.0/8 +5", "10.0.0.4"},
			[]string{"10.0.0.0/30 +5", "10.0.0.4", "10.0.0.5-10.255.255.255 +5"},
		},
		{"an address that its network outlives", []string{"10.0.0.0/8", "10.0.0.4 +5"}, []string{"10.0.0.0/8"}},
		{"ranges that touch", []string{"10.0.0.0-10.0.0.4", "10.0.0.5-10.0.0.7"}, []string{"10.0.0.0/29"}},
		{
			"ranges that touch, unequal",
			[]string{"10.0.0.0-10.0.0.4 +1", "10.0.0.5-10.0.0.7 +2"},
			[]string{"10.0.0.0-10.0.0.4 +1", "10.0.0.5-10.0.0.7 +2"},
		},
		{
			"ranges with a hole of one",
			[]string{"10.0.0.0-10.0.0.4", "10.0.0.6-10.0.0.7"},
			[]string{"10.0.0.0-10.0.0.4", "10.0.0.6/31"},
		},
		{
			"overlap, the first lasts longer",
			[]string{"10.0.0.0-10.0.0.5 +2", "10.0.0.3-10.0.0.9 +1"},
			[]string{"10.0.0.0-10.0.0.5 +2", "10.0.0.6-10.0.0.9 +1"},
		},
		{
			"overlap, the second lasts longer",
			[]string{"10.0.0.0-10.0.0.5 +1", "10.0.0.3-10.0.0.9 +2"},
			[]string{"10.0.0.0-10.0.0.2 +1", "10.0.0.3-10.0.0.9 +2"},
		},
		{
			"three deep, back to the outermost",
			[]string{"10.0.0.0/24 +1", "10.0.0.16/28 +2", "10.0.0.20-10.0.0.40 +3"},
			[]string{"10.0.0.0/28 +1", "10.0.0.16/30 +2", "10.0.0.20-10.0.0.40 +3", "10.0.0.41-10.0.0.255 +1"},
		},
		{"all of IPv4", []string{"0.0.0.0/0", "255.255.255.255 +1", "0.0.0.0 +1"}, []string{"0.0.0.0/0"}},
		{
			"all of IPv4 with its ends outliving it",
			[]string{"0.0.0.0/0 +1", "255.255.255.255", "0.0.0.0"},
			[]string{"0.0.0.0", "0.0.0.1-255.255.255.254 +1", "255.255.255.255"},
		},
		{"both families whole", []string{"::/0", "0.0.0.0/0"}, []string{"0.0.0.0/0", "::/0"}},
		{
			"all of IPv6 with its ends outliving it",
			[]string{"::/0 +1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "::"},
			[]string{"::", "::1-ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe +1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"},
		},
		{"224.0.0.0/4 reaches the end", []string{"224.0.0.0/4 +1", "240.0.0.0/4 +2"}, []string{"224.0.0.0/4 +1", "240.0.0.0/4 +2"}},
		{"the same range later", []string{"192.0.2.1 +5", "192.0.2.1 +1"}, []string{"192.0.2.1 +1"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := New(entries(t, tt.in...)...)
			if diff := cmp.Diff(tt.want, texts(s.Segments4(), s.Segments6())); diff != "" {
				t.Errorf("segments (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDeleteBringsBackWhatWasCovered(t *testing.T) {
	s := New(entries(t, "10.0.0.0/8 +60", "10.1.0.0/16", "10.1.2.3 +90", "192.0.2.0/24")...)
	s = s.Delete(Runtime, mustRange(t, "10.1.0.0/16"))
	want := []string{"10.0.0.0-10.1.2.2 +1h0", "10.1.2.3 +1h30", "10.1.2.4-10.255.255.255 +1h0", "192.0.2.0/24"}
	if diff := cmp.Diff(want, texts(s.Segments4())); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	s = s.Delete(Runtime, mustRange(t, "10.0.0.0/8"))
	if diff := cmp.Diff([]string{"10.1.2.3 +1h30", "192.0.2.0/24"}, texts(s.Segments4())); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestSourcesAreSeparate(t *testing.T) {
	r := mustRange(t, "192.0.2.1")
	policy := Entry{Range: r, Source: Policy, Origin: "policy.yaml:3"}
	runtime := Entry{Range: r, Source: Runtime, Expires: epoch, Comment: "me"}
	s := New(runtime, policy)
	if diff := cmp.Diff([]Entry{policy, runtime}, s.Entries(), equalEntries); diff != "" {
		t.Fatalf("(-want +got):\n%s", diff)
	}
	for _, want := range []Entry{policy, runtime} {
		if got, ok := s.Lookup(r, want.Source); !ok || got != want {
			t.Errorf("Lookup(%s) = %v, %v", want.Source, got, ok)
		}
	}
	left := s.Delete(Runtime, r)
	if _, ok := left.Lookup(r, Runtime); ok || left.Len() != 1 {
		t.Errorf("left: %v", left.Entries())
	}
	if _, ok := left.Lookup(r, Policy); !ok {
		t.Error("the policy's entry went with the runtime's")
	}
	if s.Len() != 2 {
		t.Error("Delete changed the set it was called on")
	}
}

var equalEntries = cmp.Comparer(func(a, b Entry) bool { return a == b })

func TestNilAndZeroSet(t *testing.T) {
	r := mustRange(t, "192.0.2.1")
	for name, s := range map[string]*Set{"nil": nil, "zero": {}, "New()": New()} {
		t.Run(name, func(t *testing.T) {
			if s.Len() != 0 || len(s.Entries()) != 0 || s.Segments4() != nil || s.Segments6() != nil {
				t.Error("not empty")
			}
			if s.Add() != s || s.Delete(Runtime, r) != s || s.Prune(epoch) != s {
				t.Error("a change that changes nothing gives another set")
			}
			if _, ok := s.Lookup(r, Runtime); ok {
				t.Error("Lookup found something")
			}
			if _, ok := s.NextExpiry(); ok {
				t.Error("NextExpiry found something")
			}
			if got := s.Covering(r.From, epoch); got != nil {
				t.Errorf("Covering found %v", got)
			}
			if got := s.Add(Entry{Range: r}); got.Len() != 1 || got.Segments4().Len() != 1 {
				t.Errorf("Add gave %v", got.Entries())
			}
		})
	}
	var none *Segments
	if _, ok := none.Lookup(r.From); ok || none.Len() != 0 || !none.Equal(SegmentsOf()) {
		t.Error("nil Segments are not empty")
	}
}

func TestAddRenews(t *testing.T) {
	s := New(entries(t, "192.0.2.1 +5")...)
	renewed := s.Add(entries(t, "192.0.2.1 +9")...)
	if diff := cmp.Diff([]string{"192.0.2.1 +9"}, texts(renewed.Segments4())); diff != "" || renewed.Len() != 1 {
		t.Errorf("(-want +got):\n%s", diff)
	}
	shortened := renewed.Add(entries(t, "192.0.2.1 +1")...)
	if diff := cmp.Diff([]string{"192.0.2.1 +1"}, texts(shortened.Segments4())); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if s.Add(entries(t, "192.0.2.1 +7", "192.0.2.1 +5")...) != s {
		t.Error("adding what is there in the end gives another set")
	}
}

func TestExpiriesOfOneInstantAreEqual(t *testing.T) {
	now := time.Now() // with a monotonic reading, local
	e := Entry{Range: mustRange(t, "192.0.2.0/25"), Expires: now, Source: Runtime}
	s := New(e, Entry{Range: mustRange(t, "192.0.2.128/25"), Expires: now.Round(0).In(time.FixedZone("x", 3600)), Source: Runtime})
	if s.Segments4().Len() != 1 {
		t.Errorf("segments: %v, want one", s.Segments4().All())
	}
	e.Expires = now.UTC()
	if s.Add(e) != s {
		t.Error("the same instant in another zone counts as a change")
	}
	g := Segment{netip.MustParseAddr("192.0.2.0"), netip.MustParseAddr("192.0.2.255"), now}
	if !SegmentsOf(g).Equal(s.Segments4()) {
		t.Error("SegmentsOf does not bring the expiry into the common form")
	}
}

func TestPruneAndNextExpiry(t *testing.T) {
	s := New(entries(t, "192.0.2.1 +1", "192.0.2.2 +2", "192.0.2.3", "::1 +3")...)
	next, ok := s.NextExpiry()
	if !ok || !next.Equal(epoch.Add(time.Minute)) {
		t.Errorf("NextExpiry = %v, %v", next, ok)
	}
	if s.Prune(next.Add(-1)) != s {
		t.Error("pruned before its time")
	}
	for range 3 {
		left := s.Prune(next)
		if left.Len() != s.Len()-1 {
			t.Fatalf("at %v: %d left of %d", next, left.Len(), s.Len())
		}
		s = left
		next, ok = s.NextExpiry()
	}
	if ok || s.Len() != 1 {
		t.Errorf("in the end: %v, next expiry %v", s.Entries(), next)
	}
}

func TestUntouchedFamilyKeepsItsPointer(t *testing.T) {
	s := New(entries(t, "192.0.2.1", "2001:db8::1", "192.0.2.9 +1")...)
	// Made before the segments of either are known.
	other := s.Add(entries(t, "2001:db8::2")...)
	if s.Segments4() == nil || s.Segments4() != other.Segments4() {
		t.Error("Add of an IPv6 entry changed the IPv4 pointer")
	}
	if s.Segments6() == other.Segments6() {
		t.Error("Add of an IPv6 entry kept the IPv6 pointer")
	}
	if got := s.Delete(Runtime, mustRange(t, "192.0.2.1")); got.Segments6() != s.Segments6() {
		t.Error("Delete of an IPv4 entry changed the IPv6 pointer")
	}
	if got := s.Prune(epoch.Add(time.Hour)); got == s || got.Segments6() != s.Segments6() {
		t.Error("Prune of an IPv4 entry changed the IPv6 pointer")
	}
	commented := entries(t, "192.0.2.1")[0]
	commented.Comment = "new"
	if got := s.Add(commented); got == s || got.Segments4() != s.Segments4() {
		t.Error("a comment changed the pointer, or nothing")
	}
}

func TestChangeWithoutEffectKeepsThePointer(t *testing.T) {
	s := New(entries(t, "10.0.0.0/8", "192.0.2.0/25 +5", "192.0.2.128/25 +6")...)
	want := s.Segments4()
	covered := s.Add(entries(t, "10.1.2.3 +5", "192.0.2.200 +2")...)
	if covered.Segments4() != want {
		t.Error("adding what was covered changed the pointer")
	}
	if covered.Prune(epoch.Add(2*time.Minute)).Segments4() != want {
		t.Error("pruning what is covered changed the pointer")
	}
	if covered.Delete(Runtime, mustRange(t, "10.1.2.3")).Segments4() != want {
		t.Error("deleting what is covered changed the pointer")
	}
}

func TestOrderOfEntriesDoesNotMatter(t *testing.T) {
	list := entries(t, "10.0.0.0/8 +5", "10.0.0.0/9", "10.0.0.4", "::/0 +3", "fd00::/8", "0.0.0.0/0 +9", "255.255.255.255 +1")
	want := New(list...)
	rng := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		rng.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		got := New(list...)
		if diff := cmp.Diff(want.Entries(), got.Entries(), equalEntries); diff != "" {
			t.Fatalf("entries (-want +got):\n%s", diff)
		}
		if !got.Segments4().Equal(want.Segments4()) || !got.Segments6().Equal(want.Segments6()) {
			t.Fatalf("segments %v, want %v", texts(got.Segments4(), got.Segments6()), texts(want.Segments4(), want.Segments6()))
		}
	}
}

func TestSegmentsLookup(t *testing.T) {
	s := New(entries(t, "10.0.0.0/8", "192.0.2.1 +5")...)
	for a, want := range map[string]bool{
		"10.0.0.0": true, "10.255.255.255": true, "11.0.0.0": false, "9.255.255.255": false,
		"192.0.2.1": true, "192.0.2.2": false, "::ffff:192.0.2.1": true, "::1": false, "::": false,
	} {
		if g, ok := s.Segments4().Lookup(netip.MustParseAddr(a)); ok != want {
			t.Errorf("Lookup(%s) = %v, %v, want %v", a, g, ok, want)
		}
	}
	if _, ok := s.Segments4().Lookup(netip.Addr{}); ok {
		t.Error("the zero Addr is in the set")
	}
}

func TestConcurrentUse(t *testing.T) {
	s := New(entries(t, "10.0.0.0/8", "192.0.2.1 +5", "fd00::/8")...)
	var wg sync.WaitGroup
	got := make([]*Segments, 8)
	for i := range got {
		wg.Go(func() {
			got[i] = s.Segments4()
			s.Add(Entry{Range: mustRange(t, "fd00::1")}).Segments4()
			s.Delete(Runtime, mustRange(t, "192.0.2.1")).Segments6()
		})
	}
	wg.Wait()
	for _, g := range got {
		if g == nil || g != got[0] {
			t.Fatal("different pointers for one set")
		}
	}
}
