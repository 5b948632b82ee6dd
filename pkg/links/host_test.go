package links

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/nftfw/nftfw/pkg/inventory"
)

// host is a fresh network namespace in which a Watcher runs.
type host struct {
	t     *testing.T
	h     *netlink.Handle
	ns    netns.NsHandle
	w     *Watcher
	lists chan []inventory.Link
}

// newNamespace makes a network namespace without entering it.
func newNamespace(t *testing.T) netns.NsHandle {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	made := make(chan netns.NsHandle, 1)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		ns, err := netns.New()
		if err != nil {
			ns = netns.None()
		}
		made <- ns
	}()
	ns := <-made
	if !ns.IsOpen() {
		t.Fatal("no network namespace")
	}
	t.Cleanup(func() {
		if err := ns.Close(); err != nil {
			t.Error(err)
		}
	})
	return ns
}

// inside runs f on a thread of its own in ns.
func inside(ns netns.NsHandle, f func() error) <-chan error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(ns); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return done
}

func newHost(t *testing.T) *host {
	ns := newNamespace(t)
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return &host{t: t, h: h, ns: ns, w: New(nil), lists: make(chan []inventory.Link, 1000)}
}

// run starts the watcher with dir as its only sandbox folder.
func (h *host) run(dir string) {
	h.t.Helper()
	h.w.SandboxDirs([]string{dir})
	ctx, cancel := context.WithCancel(context.Background())
	done := inside(h.ns, func() error {
		return h.w.Run(ctx, func(l []inventory.Link) { h.lists <- l })
	})
	h.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			h.t.Errorf("Run: %v", err)
		}
	})
}

// next returns the next list that was emitted.
func (h *host) next() []inventory.Link {
	h.t.Helper()
	select {
	case l := <-h.lists:
		return l
	case <-time.After(5 * time.Second):
		h.t.Fatal("no list was emitted")
		return nil
	}
}

// until returns the first list that satisfies ok, and those before it.
func (h *host) until(what string, ok func([]inventory.Link) bool) (list []inventory.Link, before [][]inventory.Link) {
	h.t.Helper()
	deadline := time.After(5 * time.Second)
	for {
		select {
		case list = <-h.lists:
			if ok(list) {
				return list, before
			}
			before = append(before, list)
		case <-deadline:
			h.t.Fatalf("never emitted: %s; last list: %+v", what, list)
		}
	}
}

func (h *host) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) bridge(name string) *netlink.Bridge {
	h.t.Helper()
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}
	h.must(h.h.LinkAdd(br))
	h.must(h.h.LinkSetUp(br))
	return br
}

// veth makes a pair with both ends here, as Docker does.
func (h *host) veth(name, peer string) (outer, inner netlink.Link) {
	h.t.Helper()
	h.must(h.h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: peer}))
	outer, err := h.h.LinkByName(name)
	h.must(err)
	inner, err = h.h.LinkByName(peer)
	h.must(err)
	return outer, inner
}

// sandbox binds a fresh network namespace to a file, as Docker does.
func (h *host) sandbox(dir, name string) (path string, ns netns.NsHandle) {
	h.t.Helper()
	ns = newNamespace(h.t)
	path = filepath.Join(dir, name)
	h.bind(path, ns)
	return path, ns
}

// bind makes the file path stand for ns.
func (h *host) bind(path string, ns netns.NsHandle) {
	h.t.Helper()
	f, err := os.Create(path)
	h.must(err)
	f.Close()
	h.must(unix.Mount(fmt.Sprintf("/proc/self/fd/%d", ns), path, "", unix.MS_BIND, ""))
	h.t.Cleanup(func() {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			h.t.Error(err)
		}
	})
}

// moveUp moves l into ns and sets it up there.
func (h *host) moveUp(l netlink.Link, ns netns.NsHandle) {
	h.t.Helper()
	h.must(h.h.LinkSetNsFd(l, int(ns)))
	h.setUpIn(l.Attrs().Name, ns)
}

func (h *host) setUpIn(name string, ns netns.NsHandle) {
	h.t.Helper()
	in, err := netlink.NewHandleAt(ns)
	h.must(err)
	defer in.Close()
	l, err := in.LinkByName(name)
	h.must(err)
	h.must(in.LinkSetUp(l))
}

func named(list []inventory.Link, name string) (inventory.Link, bool) {
	i := slices.IndexFunc(list, func(l inventory.Link) bool { return l.Name == name })
	if i < 0 {
		return inventory.Link{}, false
	}
	return list[i], true
}

func has(want inventory.Link) func([]inventory.Link) bool {
	return func(list []inventory.Link) bool { return slices.Contains(list, want) }
}
