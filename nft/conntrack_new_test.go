package nft

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestNewFlows(t *testing.T) {
	k := inNamespace(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	flows := make(chan Flow, 100)
	ended := make(chan error, 1)
	go func() {
		ended <- k.NewFlows(ctx, func(f Flow) { flows <- f }, func() { t.Error("some are lost") })
	}()
	// Until it listens the kernel tells of none.
	first := false
	for port := 1; !first; port++ {
		if port > 500 {
			t.Fatal("no connection is told of")
		}
		addFlows(t, k, translated(17, fmt.Sprintf("10.0.0.9:%d", port), "198.18.0.1:53", "198.18.0.1:53"))
		select {
		case <-flows:
			first = true
		case err := <-ended:
			t.Fatal(err)
		case <-time.After(40 * time.Millisecond):
		}
	}
	for _, want := range []Flow{
		translated(6, "10.0.0.1:4000", "198.18.0.1:8080", "172.17.0.2:80"),
		translated(6, "[fd00::1]:4000", "[fd00::2]:80", "[fd00:1::2]:8080"),
	} {
		addFlows(t, k, want)
		if diff := cmp.Diff(want, <-flows, sameFlow); diff != "" {
			t.Errorf("flow (-want +got):\n%s", diff)
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("NewFlows ends with %v", err)
	}
}

func TestNewFlowsWithoutEvents(t *testing.T) {
	k := inNamespace(t)
	if err := os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_events", []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	err := k.NewFlows(context.Background(), func(Flow) {}, func() {})
	if !errors.Is(err, ErrNoConntrackEvents) {
		t.Errorf("without events: %v", err)
	}
}
