package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nftfw/nftfw/integration/lab"
)

// fault is a system call that strace(1) makes fail without doing anything.
type fault struct {
	call, errno string
	// every lets a test of all the places make do with each n-th of them, where
	// there are many alike.
	every int
}

// commandFaults are the steps of a change: what is said to the kernel and
// heard from it, and what is done to the disk.
var commandFaults = []fault{
	{"sendmsg", "EPERM", 3},
	{"sendmsg", "ENOBUFS", 5},
	{"sendmsg", "EINTR", 25},
	{"recvmsg", "ENOBUFS", 4},
	{"recvmsg", "EPERM", 12},
	{"socket", "EPERM", 1},
	{"bind", "ENOBUFS", 1},
	{"setsockopt", "EPERM", 1},
	{"openat", "EIO", 1},
	{"openat", "EMFILE", 2},
	{"fsync", "EIO", 1},
	{"fsync", "ENOSPC", 1},
	{"close", "EIO", 3},
	{"flock", "EIO", 1},
}

// injected is in strace's log where it made a call fail.
const injected = "(INJECTED)"

// Every step of a change fails once. A command that exits 0 is in force and on
// disk; one that does not has changed nothing, and says what went wrong.
func TestFaultAtEveryStepOfACommand(t *testing.T) {
	needRoot(t)
	t.Parallel()
	var all sync.WaitGroup
	// Two hosts, so that one waits while the other works.
	queue := make(chan fault)
	for range 2 {
		h := newFaultHost(t)
		all.Go(func() {
			for f := range queue {
				h.everyPlace(f)
			}
		})
	}
	for _, f := range commandFaults {
		queue <- f
	}
	close(queue)
	all.Wait()
}

// faultHost is a host without an engine on which a policy is in force, and no
// daemon runs.
type faultHost struct {
	t  *testing.T
	l  *lab.Lab
	fw *lab.Firewall
	// base is what the kernel holds without the change that is tried.
	base []string
}

func newFaultHost(t *testing.T) *faultHost {
	t.Helper()
	l, err := lab.New(t.Context(), newLogger())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	fw, err := l.Firewall(lab.FirewallOptions{Bin: built.nftfw})
	if err != nil {
		t.Fatal(err)
	}
	if err := fw.WritePolicy("version: 1\n"); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"apply"}, {"sets", "add", "trusted", "192.0.2.1"}, {"sets", "add", "trusted", "192.0.2.3"}} {
		if o := fw.Exec(t.Context(), args...); o.Status != 0 {
			t.Fatal(o)
		}
	}
	return &faultHost{t: t, l: l, fw: fw, base: listing(t, l.Host)}
}

// everyPlace has the n-th call of a command fail, for each n that there is.
func (h *faultHost) everyPlace(f fault) {
	places, failed := 0, 0
	for n := 1; h.t.Context().Err() == nil && !h.t.Failed(); n += f.every {
		hit, status := h.try(f, n)
		if !hit {
			break
		}
		places++
		if status != 0 {
			failed++
		}
	}
	h.t.Logf("%s %s: %d places tried, %d of them ended the command", f.call, f.errno, places, failed)
	if places == 0 {
		h.t.Errorf("%s %s was never injected: nothing was tested", f.call, f.errno)
	}
}

// try adds an entry with the n-th call failing, and looks at what became of
// it. hit is false when there are fewer calls.
func (h *faultHost) try(f fault, n int) (hit bool, status int) {
	const entry = "192.0.2.77"
	ctx, cancel := context.WithTimeout(h.t.Context(), 60*time.Second)
	defer cancel()
	log := filepath.Join(h.l.Dir(), fmt.Sprintf("strace-%s-%s-%d", f.call, f.errno, n))
	defer func() {
		if err := os.Remove(log); err != nil {
			h.t.Error(err)
		}
	}()
	o := h.fw.ExecUnder(ctx, straceArgs(log, f, fmt.Sprint(n)), "sets", "add", "trusted", entry)
	text, err := os.ReadFile(log)
	if err != nil {
		h.t.Error(err)
	}
	faults := strings.Count(string(text), injected)
	hit = faults > 0
	what := fmt.Sprintf("call %d of %s is %s", n, f.call, f.errno)
	disk, inKernel := h.fw.Exec(h.t.Context(), "sets", "test", "trusted", entry), h.kernelHas(entry)
	if faults > 1 && o.Status == 5 {
		// strace counts by thread: more than one call has failed, and the way back
		// may be one of them. The command says so, and the next puts it right.
		if again := h.fw.Exec(h.t.Context(), "apply"); again.Status != 0 {
			h.t.Errorf("%s, and then: %s", what, again)
		}
	} else if onDisk := disk.Status == 0; onDisk != (o.Status == 0) || inKernel != (o.Status == 0) || disk.Status > 1 {
		h.t.Errorf("%s: in the kernel %v, on disk %s, and %s", what, inKernel, disk, o)
	}
	if o.Status != 0 && (o.Status != 5 || !strings.HasPrefix(o.Stderr, "nftfw: ") && !strings.Contains(o.Stderr, "\nnftfw: ")) {
		h.t.Errorf("%s: it does not say what: %s", what, o)
	}
	if o.Status == 0 {
		if del := h.fw.Exec(h.t.Context(), "sets", "del", "trusted", entry); del.Status != 0 {
			h.t.Errorf("%s, and then: %s", what, del)
		}
	}
	now, err := tryListing(h.t.Context(), h.l.Host)
	if diff := cmp.Diff(h.base, now); diff != "" || err != nil {
		h.t.Errorf("%s: afterwards the table differs (%v, -before +after):\n%s", what, err, diff)
	}
	return hit, o.Status
}

func (h *faultHost) kernelHas(entry string) bool {
	_, err := h.l.Host.Run(h.t.Context(), "nft", "get", "element", "inet", "nftfw", "trusted4", "{ "+entry+" }")
	return err == nil
}

// straceArgs has calls fail, when as strace has it: "3" is the third, "5+7" the
// fifth and each seventh after it, counted by thread.
func straceArgs(log string, f fault, when string) []string {
	return []string{
		"strace", "-D", "-f", "-qq", "--seccomp-bpf", "-s", "0", "-o", log,
		"-e", "trace=" + f.call, "-e", fmt.Sprintf("inject=%s:error=%s:when=%s", f.call, f.errno, when),
	}
}

// daemonFaults are those of a daemon, again and again. The first calls are
// those of its start, which fails then: the unit tries again, and the table
// that stands is left alone.
var daemonFaults = []struct {
	fault
	when string
}{
	{fault{call: "sendmsg", errno: "ENOBUFS"}, "60+13"},
	{fault{call: "sendmsg", errno: "EPERM"}, "60+13"},
	{fault{call: "recvmsg", errno: "ENOBUFS"}, "150+149"},
	{fault{call: "fsync", errno: "EIO"}, "4+3"},
	{fault{call: "fsync", errno: "ENOSPC"}, "4+3"},
}

// A daemon whose calls fail every now and then refuses a change or makes it,
// and after an outcome that it does not know it looks at the kernel again.
func TestFaultsOfADaemon(t *testing.T) {
	for _, f := range daemonFaults {
		t.Run(f.call+" "+f.errno, func(t *testing.T) {
			needRoot(t)
			t.Parallel()
			h := newFaultHost(t)
			log := filepath.Join(h.l.Dir(), "strace")
			h.fw.Wrap(straceArgs(log, f.fault, f.when)...)
			if err := h.start(); err != nil {
				t.Fatalf("%v\n%s", err, h.fw.Log())
			}
			t.Cleanup(func() {
				if err := h.fw.Kill(context.Background()); err != nil {
					t.Error(err)
				}
				if t.Failed() {
					t.Logf("log of nftfw:\n%s", tail(h.fw.Log(), 100))
				}
			})
			h.changes(func() bool {
				text, err := os.ReadFile(log)
				return err == nil && strings.Contains(string(text), injected)
			})
		})
	}
}

// start starts the daemon, and again when a fault ends it, as its unit would.
func (h *faultHost) start() error {
	var err error
	for range 5 {
		if err = errors.Join(h.fw.Launch(h.t.Context()), h.fw.WaitReady(h.t.Context(), false)); err == nil {
			return nil
		}
		if err := h.fw.Kill(h.t.Context()); err != nil {
			return err
		}
	}
	return err
}

// changes adds and deletes through the daemon, with somebody flushing the
// ruleset in between, and compares. It goes on until a fault was injected.
func (h *faultHost) changes(met func() bool) {
	const few, most = 60, 600
	want := map[string]bool{"192.0.2.1": true, "192.0.2.3": true}
	refused, i := 0, 0
	for ; i < few || i < most && !met(); i++ {
		entry := fmt.Sprintf("198.51.100.%d", 2*(i%10))
		verb := []string{"add", "del"}[i/10%2]
		o := h.fw.Exec(h.t.Context(), "sets", verb, "trusted", entry)
		switch {
		case o.Status == 0:
			delete(want, entry)
			if verb == "add" {
				want[entry] = true
			}
		case o.Status == 5:
			refused++ // or there was nothing to delete
		default:
			h.t.Fatal(o)
		}
		if i%20 == 10 {
			if err := h.l.Host.NFT(h.t.Context(), "flush ruleset"); err != nil {
				h.t.Fatal(err)
			}
		}
	}
	h.t.Logf("%d of %d changes refused", refused, i)
	if !met() {
		h.t.Error("no fault was injected: nothing was tested")
	}
	s := &set{stage: &stage{Lab: h.l}, t: h.t, fw: h.fw}
	s.eventually(30*time.Second, func() error {
		out, err := h.l.Host.Run(h.t.Context(), "nft", "list", "set", "inet", "nftfw", "trusted4")
		if err != nil {
			return err
		}
		if diff := cmp.Diff(want, elementsOf(out)); diff != "" {
			return fmt.Errorf("acknowledged, and what the kernel has (-acknowledged +kernel):\n%s", diff)
		}
		return nil
	})
	if diff := cmp.Diff(want, s.runtimeEntries("trusted")); diff != "" {
		h.t.Errorf("acknowledged, and what the daemon says (-acknowledged +said):\n%s", diff)
	}
	if err := h.fw.Kill(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	if diff := cmp.Diff(want, s.runtimeEntries("trusted")); diff != "" {
		h.t.Errorf("acknowledged, and what is on disk (-acknowledged +disk):\n%s", diff)
	}
}
