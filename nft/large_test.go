package nft

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/ruleset"
)

// trusted makes a table with an interval set of n separate ranges.
func trusted(n int, expires time.Time) *ruleset.Table {
	list := make([]addrset.Segment, n)
	for i := range list {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 14), byte(i >> 6), byte(i << 2)})
		list[i] = addrset.Segment{From: a, To: a.Next(), Expires: expires}
	}
	return &ruleset.Table{Name: "nftfw", Sets: []*ruleset.Set{{
		Name: "trusted4", Key: []ruleset.Field{ruleset.IPSaddr}, Interval: true, Ranges: addrset.SegmentsOf(list...),
	}}}
}

func TestLargeTables(t *testing.T) {
	k := inNamespace(t)
	size := 10_000
	if testing.Short() {
		size /= 4
	}
	for _, c := range []struct {
		name string
		want *ruleset.Table
	}{
		{"map", published(size)},
		{"ranges", trusted(3*size, time.Now().Add(time.Hour))},
	} {
		// On a busy machine a batch may take longer than two expiries may differ.
		for begun, tries := time.Now(), 0; tries == 0 || time.Since(begun) > expiryTolerance/2 && tries < 10; tries++ {
			begun = time.Now()
			put(t, k, c.want)
		}
		wantSettled(t, k, c.want)
		if got := observe(t, k, "nftfw").Table().Sets[0]; len(got.Elements) != len(c.want.Sets[0].Elements) || got.Ranges.Len() != c.want.Sets[0].Ranges.Len() {
			t.Errorf("%s: %d elements and %d ranges are there", c.name, len(got.Elements), got.Ranges.Len())
		}
	}
}

func TestElementThatExpiresBetweenDiffAndCommit(t *testing.T) {
	k := inNamespace(t)
	soon := time.Now().Add(300 * time.Millisecond)
	have := trusted(3, soon)
	put(t, k, have)
	want := trusted(2, time.Now().Add(time.Hour)) // two are renewed, one goes
	p := Diff(StateOf(have), want, time.Now())
	if p.Size() != 5 {
		t.Fatalf("plan %v, want three deletions and two additions", p.Lines())
	}
	deadline := time.Now().Add(10 * time.Second)
	for len(observe(t, k, "nftfw").sets[0].elements) > 0 {
		if time.Now().After(deadline) {
			t.Fatal("elements do not expire")
		}
		<-time.After(10 * time.Millisecond)
	}
	var refusal *CommitError
	if err := k.Commit(context.Background(), p); !errors.As(err, &refusal) || !refusal.Stale() {
		t.Fatalf("%v, want a stale plan", err)
	}
	put(t, k, want)
	wantSettled(t, k, want)
}

func TestExpiredElementsAreNotSent(t *testing.T) {
	k := inNamespace(t)
	put(t, k, trusted(3, time.Now().Add(-time.Second)))
	if got := observe(t, k, "nftfw").sets[0].elements; len(got) > 0 {
		t.Errorf("%d expired elements are there", len(got))
	}
}

func BenchmarkCommitOneElement(b *testing.B) {
	for _, n := range []int{10, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			k := inNamespace(b)
			without := published(n)
			with := with(without, publishedKey(n), ruleset.Element{Verdict: ruleset.Verdict{Kind: ruleset.Drop}})
			put(b, k, without)
			key := publishedKey(n)
			add := Plan{table: "nftfw", elements: []elementChange{{set: with.Sets[0], add: []element{keyElement(with.Sets[0].Key, key, with.Sets[0].Elements[key])}}}}
			del := Plan{table: "nftfw", elements: []elementChange{{set: with.Sets[0], delete: add.elements[0].add}}}
			for b.Loop() {
				commit(b, k, add)
				commit(b, k, del)
			}
		})
	}
}

func BenchmarkDiffOneElement(b *testing.B) {
	for _, n := range []int{10, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			before := published(n)
			after := with(before, publishedKey(n), ruleset.Element{Verdict: ruleset.Verdict{Kind: ruleset.Drop}})
			have := StateOf(before)
			for b.Loop() {
				if Diff(have, after, time.Now()).Size() != 1 {
					b.Fatal("not one element")
				}
			}
		})
	}
}

func BenchmarkObserve(b *testing.B) {
	k := inNamespace(b)
	put(b, k, published(10_000))
	for b.Loop() {
		observe(b, k, "nftfw")
	}
}

func BenchmarkCreate(b *testing.B) {
	k := inNamespace(b)
	want := published(60_000)
	for b.Loop() {
		commit(b, k, Diff(StateOf(nil), want, time.Now()))
		b.StopTimer()
		commit(b, k, Diff(StateOf(want), nil, time.Now()))
		b.StartTimer()
	}
}
