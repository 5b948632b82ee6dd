package links

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/nftfw/nftfw/pkg/inventory"
)

func TestRunFirstListIsComplete(t *testing.T) {
	h := newHost(t)
	dir := t.TempDir()
	br := h.bridge("br0")
	outer, inner := h.veth("v0", "c0")
	path, ns := h.sandbox(dir, "0123456789ab")
	h.must(h.h.LinkSetMaster(outer, br))
	h.must(h.h.LinkSetUp(outer))
	h.moveUp(inner, ns)

	h.run(dir)
	want := []inventory.Link{
		{Index: 1, Name: "lo"},
		{Index: br.Index, Name: "br0", Kind: "bridge"},
		{Index: outer.Attrs().Index, Name: "v0", Kind: "veth", Master: br.Index, Sandbox: path},
	}
	if diff := cmp.Diff(want, h.next()); diff != "" {
		t.Errorf("first list (-want +got):\n%s", diff)
	}
}

func TestRunFollowsLinks(t *testing.T) {
	h := newHost(t)
	h.run(t.TempDir())
	if diff := cmp.Diff([]inventory.Link{{Index: 1, Name: "lo"}}, h.next()); diff != "" {
		t.Errorf("empty namespace (-want +got):\n%s", diff)
	}

	br := h.bridge("br0")
	h.until("the bridge", has(inventory.Link{Index: br.Index, Name: "br0", Kind: "bridge"}))

	h.must(h.h.LinkSetDown(br))
	h.must(h.h.LinkSetName(br, "other"))
	h.until("the new name", has(inventory.Link{Index: br.Index, Name: "other", Kind: "bridge"}))

	h.must(h.h.LinkDel(br))
	h.until("the bridge's end", func(l []inventory.Link) bool { return len(l) == 1 })
}

func TestRunContainerComesAndGoes(t *testing.T) {
	h := newHost(t)
	dir := t.TempDir()
	h.run(dir)
	br := h.bridge("br0")

	// As Docker 20.10 starts a container.
	outer, inner := h.veth("v0", "c0")
	h.must(h.h.LinkSetMaster(outer, br))
	h.must(h.h.LinkSetUp(outer))
	port := inventory.Link{Index: outer.Attrs().Index, Name: "v0", Kind: "veth", Master: br.Index}
	settling := port
	settling.Settling = true
	h.until("a settling port", has(settling))

	path, ns := h.sandbox(dir, "0123456789ab")
	h.must(h.h.LinkSetNsFd(inner, int(ns)))
	settled := port
	settled.Sandbox = path
	// The other end is still down: it is its move that tells.
	_, before := h.until("a port into a sandbox", has(settled))
	h.setUpIn("c0", ns)

	// As Docker stops it: the other end comes back, then the pair is deleted.
	in, err := netlink.NewHandleAt(ns)
	h.must(err)
	defer in.Close()
	back, err := in.LinkByName("c0")
	h.must(err)
	h.must(in.LinkSetDown(back))
	h.must(in.LinkSetNsFd(back, int(h.ns)))
	h.must(h.h.LinkDel(outer))
	_, more := h.until("the port's end", func(l []inventory.Link) bool { _, ok := named(l, "v0"); return !ok })

	// At no moment was it a stranger.
	for _, list := range append(before, more...) {
		if l, ok := named(list, "v0"); ok && l.Master != 0 && l.Sandbox == "" && !l.Settling {
			t.Errorf("the port was emitted as leading elsewhere: %+v", l)
		}
	}
}

func TestRunStrangers(t *testing.T) {
	tests := []struct {
		name string
		make func(h *host, br *netlink.Bridge) netlink.Link
	}{{
		"other end in an unknown namespace",
		func(h *host, br *netlink.Bridge) netlink.Link {
			outer, inner := h.veth("v0", "c0")
			h.must(h.h.LinkSetUp(outer))
			h.moveUp(inner, newNamespace(h.t))
			h.must(h.h.LinkSetMaster(outer, br))
			return outer
		},
	}, {
		"other end here",
		func(h *host, br *netlink.Bridge) netlink.Link {
			outer, inner := h.veth("v0", "c0")
			h.must(h.h.LinkSetUp(outer))
			h.must(h.h.LinkSetMaster(outer, br))
			h.must(h.h.LinkSetUp(inner))
			return outer
		},
	}, {
		"not a veth",
		func(h *host, br *netlink.Bridge) netlink.Link {
			l := &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "v0"}, VxlanId: 5, Port: 4789}
			h.must(h.h.LinkAdd(l))
			h.must(h.h.LinkSetMaster(l, br))
			return l
		},
	}}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t)
			dir := t.TempDir()
			h.sandbox(dir, "0123456789ab")
			if err := os.WriteFile(filepath.Join(dir, "no-namespace"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
				t.Fatal(err)
			}
			h.run(dir)
			br := h.bridge("br0")
			l := tt.make(h, br)
			h.until("a stranger", has(inventory.Link{Index: l.Attrs().Index, Name: "v0", Kind: l.Type(), Master: br.Index}))
		})
	}
}

func TestRunSettlingEnds(t *testing.T) {
	h := newHost(t)
	h.w.settle = 50 * time.Millisecond
	h.run(t.TempDir())
	br := h.bridge("br0")
	outer, _ := h.veth("v0", "c0")
	h.must(h.h.LinkSetMaster(outer, br))
	port := inventory.Link{Index: outer.Attrs().Index, Name: "v0", Kind: "veth", Master: br.Index}
	settling := port
	settling.Settling = true
	h.until("a settling port", has(settling))
	h.until("a port that never settled", has(port))
}

func TestSandboxDirsAreLearnedLater(t *testing.T) {
	h := newHost(t)
	dir := t.TempDir()
	br := h.bridge("br0")
	outer, inner := h.veth("v0", "c0")
	path, ns := h.sandbox(dir, "netns-1")
	h.must(h.h.LinkSetMaster(outer, br))
	h.must(h.h.LinkSetUp(outer))
	h.moveUp(inner, ns)
	port := inventory.Link{Index: outer.Attrs().Index, Name: "v0", Kind: "veth", Master: br.Index}

	h.run(t.TempDir())
	h.until("a port into an unknown namespace", has(port))
	dirs := []string{"/nonexistent", dir}
	seen := h.w.SandboxDirs(dirs)
	port.Sandbox = path
	h.until("a port into a sandbox", has(port))
	for what, seen := range map[string]<-chan struct{}{"new folders": seen, "the same folders": h.w.SandboxDirs(dirs)} {
		select {
		case <-seen:
		case <-time.After(10 * time.Second):
			t.Errorf("%s: nobody says that they were looked through", what)
		}
	}
}

// Podman's namespaces lie beside those of ip-netns(8): the pattern of their
// names tells the two apart.
func TestSandboxPattern(t *testing.T) {
	h := newHost(t)
	dir := t.TempDir()
	br := h.bridge("br0")
	port := func(name, file string) inventory.Link {
		outer, inner := h.veth(name, "c"+name)
		path, ns := h.sandbox(dir, file)
		h.must(h.h.LinkSetMaster(outer, br))
		h.must(h.h.LinkSetUp(outer))
		h.moveUp(inner, ns)
		return inventory.Link{Index: outer.Attrs().Index, Name: name, Kind: "veth", Master: br.Index, Sandbox: path}
	}
	container, stranger := port("v0", "netns-1"), port("v1", "lab-host")
	stranger.Sandbox = ""
	h.run(filepath.Join(dir, "netns-*"))
	h.until("a container and a stranger", func(l []inventory.Link) bool { return has(container)(l) && has(stranger)(l) })
}

func TestRunEmitsChangesOnly(t *testing.T) {
	h := newHost(t)
	br := h.bridge("br0")
	h.run(t.TempDir())
	h.next()
	for mtu := range 20 {
		h.must(h.h.LinkSetMTU(br, 1400+mtu)) // messages that change nothing here
	}
	h.must(h.h.LinkSetDown(br))
	h.must(h.h.LinkSetName(br, "last"))
	if _, ok := named(h.next(), "last"); !ok {
		t.Error("a list was emitted that did not differ")
	}
}

// Resolving costs a look through the folders: a link that has nothing to do
// with ports must not cause one.
func TestResolveAsksOnce(t *testing.T) {
	h := newHost(t)
	dir := t.TempDir()
	br := h.bridge("br0")
	outer, inner := h.veth("v0", "c0")
	path, ns := h.sandbox(dir, "0123456789ab")
	h.must(h.h.LinkSetMaster(outer, br))
	h.moveUp(inner, ns)
	h.must(<-inside(h.ns, func() error {
		q, err := openQuery()
		if err != nil {
			return err
		}
		defer q.close()
		tab := newTable(q, settleLimit)
		if err := tab.relist(); err != nil {
			return err
		}
		now := time.Now()
		first, _ := tab.list([]string{dir}, now)
		if l, _ := named(first, "v0"); l.Sandbox != path {
			t.Errorf("sandbox %q, want %q", l.Sandbox, path)
		}
		tab.apply([]change{{link: link{index: 900, name: "dummy0", netnsid: noNetNS}}})
		again, _ := tab.list(nil, now) // no folder left to look through
		if l, _ := named(again, "v0"); l.Sandbox != path {
			t.Error("an unrelated link had the port looked up again")
		}
		return nil
	}))
}

// A sandbox whose file appears after its link is found at the link's next word.
func TestRunSandboxFileComesLater(t *testing.T) {
	h := newHost(t)
	dir := t.TempDir()
	br := h.bridge("br0")
	outer, inner := h.veth("v0", "c0")
	ns := newNamespace(t)
	h.must(h.h.LinkSetMaster(outer, br))
	h.must(h.h.LinkSetUp(outer))
	h.moveUp(inner, ns)
	port := inventory.Link{Index: outer.Attrs().Index, Name: "v0", Kind: "veth", Master: br.Index}
	h.run(dir)
	h.until("a stranger", has(port))
	path := filepath.Join(dir, "late")
	h.bind(path, ns)
	h.must(h.h.LinkSetMTU(outer, 1400))
	port.Sandbox = path
	h.until("a port into a sandbox", has(port))
}

func TestInboxNoticesLostMessages(t *testing.T) {
	h := newHost(t)
	br := h.bridge("br0")
	h.must(<-inside(h.ns, func() error {
		sock, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK)
		if err != nil {
			return err
		}
		if err := sock.SetReceiveBufferSize(1, false); err != nil {
			return err
		}
		for i := range 100 {
			if err := h.h.LinkSetMTU(br, 1000+i); err != nil {
				return err
			}
		}
		in := &inbox{sock: sock, wake: make(chan struct{}, 1), done: make(chan struct{})}
		go in.read()
		defer in.close()
		for {
			select {
			case <-in.wake:
				if in.take().lost {
					return nil
				}
			case <-time.After(5 * time.Second):
				return errors.New("the loss was not noticed")
			}
		}
	}))
}

// However long the consumer takes, the last state reaches it.
func TestRunSlowConsumer(t *testing.T) {
	h := newHost(t)
	block := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	first := true
	done := inside(h.ns, func() error {
		return h.w.Run(ctx, func(l []inventory.Link) {
			if first {
				first = false
				<-block
			}
			h.lists <- l
		})
	})
	br := h.bridge("br0")
	for i := range 500 {
		h.must(h.h.LinkSetMTU(br, 1000+i))
	}
	h.must(h.h.LinkSetDown(br))
	h.must(h.h.LinkSetName(br, "last"))
	close(block)
	h.until("the last name", func(l []inventory.Link) bool { _, ok := named(l, "last"); return ok })
	cancel()
	h.must(<-done)
}

func TestRead(t *testing.T) {
	h := newHost(t)
	br := h.bridge("br0")
	h.must(<-inside(h.ns, func() error {
		got, err := Read(nil)
		want := []inventory.Link{{Index: 1, Name: "lo"}, {Index: br.Index, Name: "br0", Kind: "bridge"}}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("Read (-want +got):\n%s", diff)
		}
		return err
	}))
}
