package nft

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/nftfw/nftfw/pkg/ruleset"
)

// events runs Monitor for the test and gathers what it says.
type events struct {
	mu   sync.Mutex
	list []Event
	more chan struct{}
}

func monitor(t testing.TB, k *Kernel, table string) *events {
	t.Helper()
	ev := &events{more: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- k.Monitor(ctx, table, func(e Event) {
			ev.mu.Lock()
			ev.list = append(ev.list, e)
			ev.mu.Unlock()
			select {
			case ev.more <- struct{}{}:
			default:
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Monitor returned %v, want that its context is done", err)
		}
	})
	if got := ev.take(t, 1); !got[0].Overflow {
		t.Fatalf("first event is %+v, want one that says that nothing is known", got[0])
	}
	return ev
}

// take waits for n events and removes them.
func (ev *events) take(t testing.TB, n int) []Event {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		ev.mu.Lock()
		if len(ev.list) >= n {
			out := ev.list[:n:n]
			ev.list = ev.list[n:]
			ev.mu.Unlock()
			return out
		}
		have := fmt.Sprint(ev.list)
		ev.mu.Unlock()
		select {
		case <-ev.more:
		case <-deadline:
			t.Fatalf("%d events wanted, have only %s", n, have)
		}
	}
}

// none fails when an event came that was not taken. A foreign change made after
// everything else tells when all events are in.
func (ev *events) none(t testing.TB, k *Kernel) {
	t.Helper()
	nft(t, k, "add table inet nftfw\nadd chain inet nftfw mark_end", "-f", "-")
	got := ev.take(t, 1)[0]
	gen, err := k.Generation(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if got.Generation != gen {
		t.Fatalf("event %+v came before the one of generation %d", got, gen)
	}
}

func TestMonitorTellsForeignChangesFromOurs(t *testing.T) {
	k := inNamespace(t)
	for _, filter := range []bool{true, false} {
		nft(t, k, "", "flush", "ruleset")
		base := published(10)
		put(t, k, base)
		ev := monitor(t, k, "nftfw")
		if !filter {
			// A connection whose port the filter does not know: the check of each
			// message must do as well.
			k.commit.Lock()
			err := k.reopen()
			k.commit.Unlock()
			if err != nil {
				t.Fatal(err)
			}
		}
		have := base
		for i := range 30 {
			next := with(have, publishedKey(100+i), ruleset.Element{Verdict: ruleset.Verdict{Kind: ruleset.Accept}})
			commit(t, k, Diff(StateOf(have), next, time.Now()))
			have = next
			cmd := exec.Command("nft", "add", "element", "inet", "nftfw", "published4", fmt.Sprintf("{ 10.0.0.%d . tcp . 80 : drop }", i))
			if !k.inside() {
				t.Fatal("left the namespace")
			}
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			want := Event{PID: uint32(cmd.Process.Pid), Process: "nft", Elements: true}
			got := ev.take(t, 1)[0]
			want.Generation = got.Generation
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("filter %v, change %d (-want +got):\n%s", filter, i, diff)
			}
		}
		commit(t, k, Diff(StateOf(have), nil, time.Now()))
		commit(t, k, Diff(StateOf(nil), base, time.Now()))
		ev.none(t, k)
	}
}

func TestMonitorTellsOurTableFromOthers(t *testing.T) {
	k := inNamespace(t)
	put(t, k, published(10))
	ev := monitor(t, k, "nftfw")
	nft(t, k, "table ip nftfw { set s { type ipv4_addr; elements = { 1.2.3.4 }; }; }\ntable inet nftfw2 { chain c { accept; }; }", "-f", "-")
	nft(t, k, "", "delete", "table", "ip", "nftfw")
	ev.none(t, k)
	for _, c := range []struct {
		commands string
		gone     bool
	}{
		{"add rule inet nftfw from_any accept", false},
		{"add element inet nftfw published4 { 1.2.3.4 . tcp . 1 : drop }", false},
		{"add set inet nftfw foreign { type ipv4_addr; }", false},
		{"add table inet nftfw { flags dormant; }", false},
		{"add counter inet nftfw foreign", false},
		{"delete table inet nftfw", true},
		{"add table inet nftfw", false},
		{"delete table inet nftfw\nadd table inet nftfw", false},
		{"flush ruleset", true},
	} {
		nft(t, k, c.commands+"\n", "-f", "-")
		if got := ev.take(t, 1)[0]; got.TableGone != c.gone || got.Process != "nft" || got.Overflow {
			t.Errorf("%s: event %+v, want the table gone: %v", c.commands, got, c.gone)
		}
	}
	ev.none(t, k)
}

func TestMonitorOfAnotherKernel(t *testing.T) {
	k := inNamespace(t)
	other, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	ev := monitor(t, k, "nftfw")
	put(t, other, published(10))
	if got := ev.take(t, 1)[0]; got.PID == 0 || got.Overflow || got.TableGone {
		t.Errorf("event %+v, want one of a thread of ours", got)
	}
	ev.none(t, k)
}

// A connection that a session has left behind still has its deadline.
func TestMonitorHasAConnectionOfItsOwn(t *testing.T) {
	k := inNamespace(t)
	put(t, k, published(1))
	if _, err := k.Generation(context.Background()); err != nil {
		t.Fatal(err)
	}
	if len(k.idle) == 0 {
		t.Fatal("no connection waits for the next session")
	}
	for _, conn := range k.idle {
		if err := conn.SetDeadline(time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	ev := monitor(t, k, "nftfw")
	nft(t, k, "", "flush", "ruleset")
	if got := ev.take(t, 1)[0]; !got.TableGone {
		t.Fatalf("event %+v", got)
	}
	if _, err := k.Generation(context.Background()); err != nil {
		t.Errorf("the next session: %v", err)
	}
}

func TestOurOwnBatchesTakeNoRoomInTheBuffer(t *testing.T) {
	k := inNamespace(t)
	s, err := k.subscription(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer s.end()
	if err := s.conn.SetBPF(ignorePort(k.port())); err != nil {
		t.Fatal(err)
	}
	if err := s.conn.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
		t.Fatal(err)
	}
	put(t, k, published(1000))
	nft(t, k, "", "add", "table", "ip", "foreign")
	msgs, err := s.conn.Receive()
	if err != nil {
		t.Fatal(err)
	}
	if k.own(msgs[0].Header.PID) {
		t.Errorf("the first message that is seen is one of our own: %+v", msgs[0].Header)
	}
}

func TestOverflowIsToldAndSurvived(t *testing.T) {
	k := inNamespace(t)
	k.buffer = 1 // the least that the kernel gives
	other, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	ev := monitor(t, k, "nftfw")
	// A reader that is quick enough loses nothing: then it is tried again.
	for tries := 1; ; tries++ {
		put(t, other, published(10_000*(1+tries%2)))
		if got := ev.take(t, 1)[0]; got.Overflow {
			break
		} else if tries == 20 {
			t.Fatalf("event %+v, want an overflow", got)
		}
	}
	nft(t, k, "", "add", "rule", "inet", "nftfw", "from_any", "drop")
	for {
		if got := ev.take(t, 1)[0]; got.Process == "nft" {
			break
		}
	}
}

func TestWatchGoesOnAfterLoss(t *testing.T) {
	// A change whose end was lost must not be laid to the next transaction.
	var got []Event
	w := watch{table: "nftfw", own: func(port uint32) bool { return port == 7 }, notify: func(e Event) { got = append(got, e) }}
	touch := message{kind: unix.NFT_MSG_NEWSETELEM, data: appendString(nil, unix.NFTA_SET_ELEM_LIST_TABLE, "nftfw")}.netlink()
	gen := func(n uint32) netlink.Message {
		return message{kind: unix.NFT_MSG_NEWGEN, data: appendU32(nil, unix.NFTA_GEN_ID, n)}.netlink()
	}
	w.message(touch)
	w.lost()
	w.message(gen(1))
	w.message(touch)
	w.message(gen(2))
	touch.Header.PID = 7
	w.message(touch)
	w.message(gen(3))
	if diff := cmp.Diff([]Event{{Overflow: true, Elements: true}, {Generation: 2, Elements: true}}, got); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}
