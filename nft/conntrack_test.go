package nft

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/nftfw/nftfw/pkg/ruleset"
)

// addFlows makes entries of connection tracking, as established as they get.
func addFlows(t testing.TB, k *Kernel, flows ...Flow) {
	t.Helper()
	if err := k.TrackFlows(context.Background(), flows); err != nil {
		t.Fatal(err)
	}
}

// translated is a flow from client to asked, which DNAT sends to server.
func translated(proto uint8, client, asked, server string) Flow {
	end := netip.MustParseAddrPort
	return Flow{Proto: proto, Src: end(client), Dst: end(asked), ReplySrc: end(server), ReplyDst: end(client)}
}

func allFlows(ctx context.Context, k *Kernel) ([]Flow, error) {
	var out []Flow
	err := k.Flows(ctx, func(some []Flow) { out = append(out, some...) })
	return out, err
}

func flowsOf(t testing.TB, k *Kernel) []Flow {
	t.Helper()
	flows, err := allFlows(context.Background(), k)
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(flows, func(a, b Flow) int { return a.Src.Compare(b.Src) })
	return flows
}

var sameFlow = cmp.Options{cmpopts.IgnoreUnexported(Flow{}), cmpopts.EquateComparable(netip.AddrPort{})}

func TestFlows(t *testing.T) {
	k := inNamespace(t)
	want := []Flow{
		translated(6, "10.0.0.1:4000", "198.18.0.1:8080", "172.17.0.2:80"),
		translated(17, "10.0.0.2:53", "198.18.0.1:53", "198.18.0.1:53"),
		translated(6, "[fd00::1]:4000", "[fd00::2]:80", "[fd00:1::2]:8080"),
	}
	addFlows(t, k, want...)
	flows := flowsOf(t, k)
	if diff := cmp.Diff(want, flows, sameFlow); diff != "" {
		t.Fatalf("flows (-want +got):\n%s", diff)
	}

	// One that is gone, and one that is another connection by now, are passed over.
	younger := flows[2]
	younger.id++
	if err := k.DeleteFlows(context.Background(), []Flow{flows[0], flows[0], younger}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want[1:], flowsOf(t, k), sameFlow); diff != "" {
		t.Errorf("flows that are left (-want +got):\n%s", diff)
	}
}

// What has an entry in either direction keeps it.
func TestTrackFlowsPassesOverWhatIsTracked(t *testing.T) {
	k := inNamespace(t)
	first := Flow{
		Proto: 6, Src: netip.MustParseAddrPort("198.18.0.1:40000"), Dst: netip.MustParseAddrPort("198.18.0.9:443"),
		ReplySrc: netip.MustParseAddrPort("198.18.0.9:443"), ReplyDst: netip.MustParseAddrPort("198.18.0.1:40000"),
	}
	second := first
	second.Src, second.ReplyDst = netip.MustParseAddrPort("198.18.0.1:40001"), netip.MustParseAddrPort("198.18.0.1:40001")
	addFlows(t, k, first)
	addFlows(t, k, first.Reversed(), first, second)
	if diff := cmp.Diff([]Flow{first, second}, flowsOf(t, k), sameFlow); diff != "" {
		t.Errorf("tracked (-want +got):\n%s", diff)
	}
}

func TestFlowsOfAnotherZone(t *testing.T) {
	k := inNamespace(t)
	f := translated(6, "10.0.0.1:4000", "198.18.0.1:8080", "172.17.0.2:80")
	other := f
	other.zone = 300
	addFlows(t, k, f, other)
	for _, f := range flowsOf(t, k) {
		if f.zone == 300 {
			if err := k.DeleteFlows(context.Background(), []Flow{f}); err != nil {
				t.Fatal(err)
			}
		}
	}
	left := flowsOf(t, k)
	if len(left) != 1 || left[0].zone != 0 {
		t.Errorf("left are %v, want the flow of zone 0", left)
	}
}

func TestFlowsStopWithTheirContext(t *testing.T) {
	k := inNamespace(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := allFlows(ctx, k); err == nil {
		t.Error("flows are listed for nobody")
	}
}

// processorTime is what the process has had of the processors, in the kernel
// too: on a busy machine the only figure that means anything.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkFlows lists, cuts and deletes entries at the size that the daemon is
// made for.
func BenchmarkFlows(b *testing.B) {
	const n = 200_000
	k := inNamespace(b)
	table := withCutSets(published(1))
	put(b, k, table)
	flows := make([]Flow, n)
	for i := range flows {
		client := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 4000)
		flows[i] = translated(6, client.String(), "198.18.0.1:8080", "172.17.0.2:80")
	}
	for b.Loop() {
		addFlows(b, k, flows...)
		start, processor := time.Now(), processorTime(b)
		got, err := elsewhere(func() ([]Flow, error) { return allFlows(context.Background(), k) })
		if err != nil || len(got) != n {
			b.Fatalf("%d flows, %v", len(got), err)
		}
		listed := time.Since(start)
		start = time.Now()
		if _, err := elsewhere(func() (any, error) { return nil, cutAll(k, table, got) }); err != nil {
			b.Fatal(err)
		}
		cut := time.Since(start)
		start = time.Now()
		if _, err := elsewhere(func() (any, error) { return nil, k.DeleteFlows(context.Background(), got) }); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(listed.Seconds(), "s/list")
		b.ReportMetric(cut.Seconds(), "s/cut")
		b.ReportMetric(time.Since(start).Seconds(), "s/delete")
		b.ReportMetric((processorTime(b) - processor).Seconds(), "cpu-s/all")
	}
}

func cutAll(k *Kernel, table *ruleset.Table, flows []Flow) error {
	const batch = 16384 // as the daemon does
	for part := range slices.Chunk(flows, batch) {
		var cuts []Cut
		for _, f := range part {
			c, _ := f.Cut(time.Now().Add(time.Hour))
			cuts = append(cuts, c)
		}
		if err := k.Commit(context.Background(), Plan{}.WithCuts(table, cuts)); err != nil {
			return err
		}
	}
	return nil
}

// elsewhere runs f on a goroutine that is not tied to a thread: one that is
// pays for every switch, and no daemon is.
func elsewhere[T any](f func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result)
	go func() {
		v, err := f()
		done <- result{v, err}
	}()
	r := <-done
	return r.value, r.err
}
