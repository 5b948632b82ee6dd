package nft

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/ruleset"
)

// split makes a table with the two sets of what list holds.
func split(list ...addrset.Segment) *ruleset.Table {
	s := addrset.SegmentsOf(list...)
	key := []ruleset.Field{ruleset.IPSaddr}
	return &ruleset.Table{Name: "nftfw", Sets: []*ruleset.Set{
		{Name: "blocked4", Key: key, Interval: true, Part: ruleset.Wide, Ranges: s},
		{Name: "blocked4_hosts", Key: key, Part: ruleset.Hosts, Ranges: s},
	}}
}

// lasting is split with the addresses that never expire in a hash of one size.
func lasting(size uint32, list ...addrset.Segment) *ruleset.Table {
	t := split(list...)
	t.Sets[0].Part, t.Sets[1].Part, t.Sets[1].Size = ruleset.Rest, ruleset.Lasting, size
	t.Sets[1].Name += fmt.Sprintf(".%d", size)
	return t
}

// spaced gives n addresses, none beside another.
func spaced(n int) []addrset.Segment {
	list := make([]addrset.Segment, n)
	for i := range list {
		a := netip.AddrFrom4([4]byte{20, byte(i >> 15), byte(i >> 7), byte(i << 1)})
		list[i] = addrset.Segment{From: a, To: a}
	}
	return list
}

func segment(from, to string, expires time.Time) addrset.Segment {
	return addrset.Segment{From: netip.MustParseAddr(from), To: netip.MustParseAddr(to), Expires: expires}
}

func TestHostsAndRangesOfOneSet(t *testing.T) {
	k := inNamespace(t)
	later := time.Now().Add(time.Hour)
	have := split(segment("192.0.2.1", "192.0.2.1", later), segment("192.0.2.8", "192.0.2.15", time.Time{}), segment("198.51.100.7", "198.51.100.7", time.Time{}))
	put(t, k, have)
	wantSettled(t, k, have)
	listing := nft(t, k, "", "list", "table", "inet", "nftfw")
	for _, want := range []string{"elements = { 192.0.2.8/29 }", "flags timeout", "198.51.100.7", "192.0.2.1 timeout"} {
		if !strings.Contains(listing, want) {
			t.Errorf("no %q in\n%s", want, listing)
		}
	}
	// Many neighbours make a range of an address: it moves to the other set.
	want := split(segment("192.0.2.1", "192.0.2.1", later.Add(time.Hour)), segment("192.0.2.9", "192.0.2.9", time.Time{}), segment("198.51.100.5", "198.51.100.9", time.Time{}))
	plan := Diff(StateOf(have), want, time.Now())
	if plan.Size() != 6 {
		t.Errorf("plan %q, want an address renewed, two moved", plan.Lines())
	}
	commit(t, k, plan)
	wantSettled(t, k, want)
	// Until it was read nobody knows what is in the hash: it is written anew.
	nft(t, k, "", "add", "element", "inet", "nftfw", "blocked4_hosts", "{ 203.0.113.9 }")
	seen, err := k.Survey(context.Background(), "nftfw")
	if err != nil {
		t.Fatal(err)
	}
	plan = Diff(seen, want, time.Now())
	if !plan.Refreshes() {
		t.Errorf("plan %q, want the hosts written anew", plan.Lines())
	}
	commit(t, k, plan)
	wantSettled(t, k, want)
	if Diff(seen, split(), time.Now()).Refreshes() {
		t.Error("a plan that also deletes a range only refreshes")
	}
}

// Addresses of a hash of one size, which knows no timeouts, and those beside it.
func TestHostsThatLast(t *testing.T) {
	k := inNamespace(t)
	later := time.Now().Add(time.Hour)
	first := lasting(1024, segment("192.0.2.1", "192.0.2.1", later), segment("192.0.2.8", "192.0.2.15", time.Time{}), segment("198.51.100.7", "198.51.100.7", time.Time{}))
	put(t, k, first)
	wantSettled(t, k, first)
	listing := nft(t, k, "", "list", "set", "inet", "nftfw", "blocked4_hosts.1024")
	if !strings.Contains(listing, "size 1024") || strings.Contains(listing, "flags") || !strings.Contains(listing, "{ 198.51.100.7 }") {
		t.Errorf("not a hash of one size:\n%s", listing)
	}
	steps := []struct {
		name string
		want *ruleset.Table
		size int // of the plan
	}{
		{"one lasts that did not, one the other way round", lasting(1024, segment("192.0.2.1", "192.0.2.1", time.Time{}), segment("192.0.2.8", "192.0.2.15", time.Time{}), segment("198.51.100.7", "198.51.100.7", later)), 4},
		{"a range becomes an address", lasting(1024, segment("192.0.2.1", "192.0.2.1", time.Time{}), segment("192.0.2.8", "192.0.2.8", time.Time{}), segment("198.51.100.7", "198.51.100.7", later)), 2},
		{"a larger hash", lasting(2048, segment("192.0.2.1", "192.0.2.1", time.Time{}), segment("192.0.2.8", "192.0.2.8", time.Time{}), segment("198.51.100.7", "198.51.100.7", later)), 4},
		{"one that takes timeouts", split(segment("192.0.2.1", "192.0.2.1", time.Time{}), segment("192.0.2.8", "192.0.2.8", time.Time{}), segment("198.51.100.7", "198.51.100.7", later)), 6},
		{"back", first, 5},
		{"neighbours are an address each while they are few", lasting(1024, segment("192.0.2.1", "192.0.2.1", later), segment("192.0.2.8", "192.0.2.15", time.Time{}), segment("198.51.100.5", "198.51.100.8", time.Time{})), 3},
		{"and move with their range", lasting(1024, segment("192.0.2.1", "192.0.2.1", later), segment("192.0.2.8", "192.0.2.11", time.Time{}), segment("198.51.100.6", "198.51.100.10", time.Time{})), 10},
		{"part of what was one", lasting(1024, segment("192.0.2.1", "192.0.2.1", later), segment("192.0.2.9", "192.0.2.10", time.Time{}), segment("198.51.100.8", "198.51.100.11", time.Time{})), 7},
	}
	have := first
	for _, step := range steps {
		plan := Diff(StateOf(have), step.want, time.Now())
		if plan.Size() != step.size {
			t.Errorf("%s: plan %q of size %d, want %d", step.name, plan.Lines(), plan.Size(), step.size)
		}
		commit(t, k, plan)
		wantSettled(t, k, step.want)
		have = step.want
	}
	// What fits no more is refused, and nothing is changed.
	full := lasting(1024, spaced(1024)...)
	commit(t, k, Diff(StateOf(have), full, time.Now()))
	err := k.Commit(context.Background(), Diff(StateOf(full), lasting(1024, spaced(1025)...), time.Now()))
	if err == nil {
		t.Error("more went into a hash than fits")
	}
	wantSettled(t, k, full)
	// All of them are replaced in one transaction.
	other := lasting(1024, spaced(2048)[1024:]...)
	commit(t, k, Diff(StateOf(full), other, time.Now()))
	wantSettled(t, k, other)
}

func TestManyHostsAtOnce(t *testing.T) {
	for name, table := range map[string]func(...addrset.Segment) *ruleset.Table{
		"timeouts": split,
		"one size": func(list ...addrset.Segment) *ruleset.Table { return lasting(1<<15, list...) },
	} {
		t.Run(name, func(t *testing.T) { manyAtOnce(t, table) })
	}
}

func manyAtOnce(t *testing.T, table func(...addrset.Segment) *ruleset.Table) {
	k := inNamespace(t)
	none, some, many, others := table(), table(spaced(3)...), table(spaced(30_000)...), table(spaced(60_000)[30_000:]...)
	put(t, k, none)
	for i, step := range [][2]*ruleset.Table{{none, many}, {many, some}, {some, others}, {others, none}, {none, some}} {
		plan := Diff(StateOf(step[0]), step[1], time.Now())
		commit(t, k, plan)
		wantSettled(t, k, step[1])
		for _, c := range plan.elements {
			if i == 2 && !c.flush || len(c.add) > manyChanges {
				t.Errorf("step %d: %d elements listed", i, len(c.add))
			}
		}
	}
}

func TestLargeBatchesAreHiddenFromTheMonitor(t *testing.T) {
	k := inNamespace(t)
	other, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	none, many := split(), split(spaced(60_000)...)
	put(t, k, none)
	ev := monitor(t, k, "nftfw")
	// Without a loss: nobody else did anything.
	commit(t, k, Diff(StateOf(none), many, time.Now()))
	ev.none(t, k)
	// What somebody else does is told again afterwards.
	nft(t, k, "", "delete", "element", "inet", "nftfw", "blocked4_hosts", "{ 20.0.0.0 }")
	if got := ev.take(t, 1)[0]; got.Process != "nft" || !got.Elements {
		t.Fatalf("event %+v", got)
	}
	// And what somebody else does in the time is at least suspected.
	k.commit.Lock()
	resume := k.quiet()
	for i := range 2 {
		nft(t, k, "", "add", "element", "inet", "nftfw", "blocked4_hosts", fmt.Sprintf("{ 203.0.113.%d }", i))
	}
	resume()
	k.commit.Unlock()
	if got := ev.take(t, 1)[0]; !got.Overflow || !got.Elements {
		t.Fatalf("event %+v, want a loss", got)
	}
	nft(t, k, "", "flush", "ruleset")
	if got := ev.take(t, 1)[0]; !got.TableGone {
		t.Fatalf("event %+v after a loss", got)
	}
}
