package links

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
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
	t.Cleanup(func() { ns.Close() })
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
	h.w.SandboxDirs([]string{"/nonexistent", dir})
	port.Sandbox = path
	h.until("a port into a sandbox", has(port))
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

func TestDecodeChange(t *testing.T) {
	message := func(kind uint16, family uint8, attrs ...*nl.RtAttr) syscall.NetlinkMessage {
		info := nl.NewIfInfomsg(int(family))
		info.Index = 7
		info.Flags = unix.IFF_UP | unix.IFF_LOWER_UP
		data := slices.Clone(info.Serialize())
		for _, a := range attrs {
			data = append(data, a.Serialize()...)
		}
		return syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: kind}, Data: data}
	}
	name := nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated("v0"))
	nsid := nl.NewRtAttr(unix.IFLA_LINK_NETNSID, nl.Uint32Attr(3))
	master := nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(5))
	peer := nl.NewRtAttr(unix.IFLA_LINK, nl.Uint32Attr(6))
	kind := nl.NewRtAttr(unix.IFLA_LINKINFO|unix.NLA_F_NESTED, nil)
	kind.AddRtAttr(unix.IFLA_INFO_KIND, nl.ZeroTerminated("veth"))
	full := link{index: 7, name: "v0", kind: "veth", master: 5, peer: 6, netnsid: 3, carrier: true}
	bare := link{index: 7, name: "v0", netnsid: noNetNS, carrier: true}
	tests := []struct {
		name string
		msg  syscall.NetlinkMessage
		want change
		ok   bool
	}{
		{"new", message(unix.RTM_NEWLINK, unix.AF_UNSPEC, name, nsid, master, peer, kind), change{link: full}, true},
		{"gone", message(unix.RTM_DELLINK, unix.AF_UNSPEC, name), change{link: bare, gone: true}, true},
		{"the bridge's word", message(unix.RTM_DELLINK, unix.AF_BRIDGE, name), change{gone: true}, false},
		{"wireless event", message(unix.RTM_NEWLINK, unix.AF_UNSPEC), change{}, false},
		{"another message", message(unix.RTM_NEWADDR, unix.AF_UNSPEC, name), change{}, false},
		{"cut short", syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: unix.RTM_NEWLINK}, Data: []byte{0}}, change{}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := decodeChange(tt.msg)
			if ok != tt.ok || ok && got != tt.want {
				t.Errorf("got %+v %v, want %+v %v", got, ok, tt.want, tt.ok)
			}
		})
	}
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
