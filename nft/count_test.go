package nft

import (
	"context"
	"net"
	"net/netip"
	"os/exec"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	. "github.com/nftfw/nftfw/pkg/ruleset"
)

// counting is a table that counts what comes to two UDP ports, and lets one of
// the two in.
func counting() *Table {
	addr := netip.MustParseAddr
	key := []Field{IPDaddr, L4Proto, Dport}
	sources := []Field{IPSaddr, IPDaddr, L4Proto, Dport}
	at := func(port uint16) Key { return Key{Addr: addr("127.0.0.1"), Proto: 17, Port: port} }
	return &Table{
		Name: "nftfw",
		Sets: []*Set{
			{Name: "asked4", Key: key, Verdicts: true, Counter: true, Elements: map[Key]Element{
				at(5001): {Verdict: Verdict{Kind: Accept}, Comment: "a"},
				at(5002): {Verdict: Verdict{Kind: Goto, Chain: "refused"}, Comment: "b"},
			}},
			{Name: "quiet4", Key: key, Elements: map[Key]Element{at(1): {}}},
			{Name: "sources4", Key: sources, Counter: true, Dynamic: true, Size: 16, Timeout: time.Hour},
		},
		Chains: []*Chain{
			{Name: "output", Hook: Output, Policy: Accept, Rules: []Rule{{VMap: &VMap{Key: key, Map: "asked4"}}}},
			{Name: "refused", Rules: []Rule{
				{Update: &Update{Set: "sources4", Key: sources}},
				{Matches: []Match{Is(L4Proto, 6)}, Counter: true},
				{Counter: true, Verdict: Verdict{Kind: Drop}},
			}},
		},
	}
}

// sendUDP sends that many packets to the port of the host's own loopback.
func sendUDP(t *testing.T, port uint16, n int) {
	t.Helper()
	conn, err := net.ListenUDP("udp4", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	for range n {
		// What is dropped on the way out is an error, and counted.
		_, _ = conn.WriteToUDPAddrPort([]byte("count me"), netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port))
	}
}

// withElement returns t with another element in its first set.
func withElement(t *Table, k Key, e Element) *Table {
	out := with(t, k, e)
	out.Sets = append(out.Sets, t.Sets[1:]...)
	return out
}

func counts(t *testing.T, k *Kernel, table *Table) Counts {
	t.Helper()
	c, err := k.Counts(context.Background(), table, func(string) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func packetsOf[K comparable](m map[K]Count) map[K]uint64 {
	out := map[K]uint64{}
	for k, c := range m {
		out[k] = c.Packets
	}
	return out
}

func TestCounts(t *testing.T) {
	k := inNamespace(t)
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Fatalf("ip: %v\n%s", err, out)
	}
	table := counting()
	if err := table.Validate(); err != nil {
		t.Fatal(err)
	}
	put(t, k, table)
	addr := netip.MustParseAddr("127.0.0.1")
	at := func(port uint16) Key { return Key{Addr: addr, Proto: 17, Port: port} }
	from := FlowKey{Src: addr, Dst: addr, Proto: 17, Port: 5002}

	want := func(name string, table *Table, asked map[Key]uint64, refused uint64) {
		t.Helper()
		got := counts(t, k, table)
		if diff := cmp.Diff(map[string]map[Key]uint64{"asked4": asked}, map[string]map[Key]uint64{"asked4": packetsOf(got.Sets["asked4"])}); diff != "" {
			t.Errorf("%s: elements (-want +got):\n%s", name, diff)
		}
		if diff := cmp.Diff(map[string]uint64{"refused": refused}, packetsOf(got.Chains)); diff != "" {
			t.Errorf("%s: chains (-want +got):\n%s", name, diff)
		}
		flows := map[FlowKey]uint64{}
		if refused > 0 {
			flows[from] = refused
		}
		if diff := cmp.Diff(flows, packetsOf(got.Flows["sources4"])); diff != "" {
			t.Errorf("%s: sources (-want +got):\n%s", name, diff)
		}
		if _, there := got.Sets["quiet4"]; there {
			t.Errorf("%s: a set without counters is counted", name)
		}
	}
	want("before", table, map[Key]uint64{at(5001): 0, at(5002): 0}, 0)
	sendUDP(t, 5001, 2)
	sendUDP(t, 5002, 3)
	want("after", table, map[Key]uint64{at(5001): 2, at(5002): 3}, 3)
	if got := counts(t, k, table).Sets["asked4"][at(5001)].Bytes; got != 2*(20+8+8) {
		t.Errorf("%d bytes are counted of two packets of 36", got)
	}

	// What was counted is no difference, and what did not change counts on.
	wantSettled(t, k, table)
	more := withElement(table, at(5003), Element{Verdict: Verdict{Kind: Drop}, Comment: "c"})
	commit(t, k, Diff(StateOf(table), more, time.Now()))
	want("another port", more, map[Key]uint64{at(5001): 2, at(5002): 3, at(5003): 0}, 3)
	changed := withElement(more, at(5002), Element{Verdict: Verdict{Kind: Accept}, Comment: "b"})
	commit(t, k, Diff(StateOf(more), changed, time.Now()))
	want("another verdict", changed, map[Key]uint64{at(5001): 2, at(5002): 0, at(5003): 0}, 3)
	wantSettled(t, k, changed)

	got, err := k.Counts(context.Background(), changed, func(set string) bool { return set == "sources4" })
	if err != nil || len(got.Sets) > 0 || len(got.Flows["sources4"]) != 1 {
		t.Errorf("one set only: %+v, %v", got, err)
	}
	nft(t, k, "delete table inet nftfw", "-f", "-")
	if got, err := k.Counts(context.Background(), changed, func(string) bool { return true }); err != nil || len(got.Sets)+len(got.Chains)+len(got.Flows) > 0 {
		t.Errorf("without a table: %+v, %v", got, err)
	}
}

// What was counted while nobody was refused says nothing of what comes after.
func TestAnotherPolicyCountsAnew(t *testing.T) {
	k := inNamespace(t)
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Fatalf("ip: %v\n%s", err, out)
	}
	table := counting()
	put(t, k, table)
	sendUDP(t, 5001, 2)
	sendUDP(t, 5002, 3)
	strict := *table
	output := *table.Chains[0]
	output.Policy = Drop
	strict.Chains = append([]*Chain{&output}, table.Chains[1:]...)
	plan := Diff(StateOf(table), &strict, time.Now())
	if diff := cmp.Diff([]string{
		"- chain output { type filter hook output priority 0; policy accept; }",
		"+ chain output { type filter hook output priority 0; policy drop; }",
	}, plan.Lines()); diff != "" {
		t.Errorf("plan (-want +got):\n%s", diff)
	}
	commit(t, k, plan)
	for key, n := range packetsOf(counts(t, k, &strict).Sets["asked4"]) {
		if n != 0 {
			t.Errorf("%s counts %d from before", key.Format(table.Sets[0].Key), n)
		}
	}
	wantSettled(t, k, &strict)
}
