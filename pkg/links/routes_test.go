package links

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ownNamespace puts the calling test into a network namespace of its own.
func ownNamespace(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for a network namespace")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with its namespace
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("unshare: %v", err)
	}
}

// Links come and go while containers start: that interrupts the kernel's lists.
func TestRoutesWhileLinksChange(t *testing.T) {
	ownNamespace(t)
	// Lists that take several messages.
	var many, change strings.Builder
	for i := range 100 {
		fmt.Fprintf(&many, "link add b%d type bridge\n", i)
	}
	for range 2000 {
		change.WriteString("link add c type bridge\nlink del c\n")
	}
	batch := func(lines string) *exec.Cmd {
		ip := exec.CommandContext(t.Context(), "ip", "-batch", "-")
		ip.Stdin = strings.NewReader(lines)
		return ip
	}
	if out, err := batch(many.String()).CombinedOutput(); err != nil {
		t.Fatalf("ip: %v: %s", err, out)
	}
	ip := batch(change.String())
	if err := ip.Start(); err != nil {
		t.Fatal(err)
	}
	for range 50 {
		if _, err := ReadRoutes(); err != nil {
			t.Error(err)
			break
		}
	}
	_ = ip.Process.Kill()
	_ = ip.Wait()
}

func TestRoutes(t *testing.T) {
	ownNamespace(t)
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		{"link", "add", "ext0", "type", "bridge"},
		{"link", "add", "docker0", "type", "bridge"},
		{"addr", "add", "198.18.0.1/24", "dev", "ext0"},
		{"addr", "add", "172.17.0.1/16", "dev", "docker0"},
		{"addr", "add", "fd00:18::1/64", "dev", "ext0", "nodad"},
		{"link", "set", "ext0", "up"},
		{"link", "set", "docker0", "up"},
		{"route", "add", "default", "via", "198.18.0.254"},
	} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	// The kernel adds the route of an IPv6 address when it gets round to it.
	var routes *Routes
	for end := time.Now().Add(5 * time.Second); ; {
		var err error
		if routes, err = ReadRoutes(); err != nil {
			t.Fatal(err)
		}
		if routes.Local(netip.MustParseAddr("fd00:18::1")) || time.Now().After(end) {
			break
		}
	}
	for _, c := range []struct {
		addr, link string
		local      bool
	}{
		{"127.0.0.1", "lo", true},
		{"127.9.9.9", "lo", true},
		{"198.18.0.1", "lo", true},
		{"198.18.0.7", "ext0", false},
		{"172.17.0.2", "docker0", false},
		{"192.0.2.1", "ext0", false},
		{"::1", "lo", true},
		{"fd00:18::1", "lo", true},
		{"fd00:18::9", "ext0", false},
		{"2001:db8::1", "", false},
	} {
		a := netip.MustParseAddr(c.addr)
		if got := routes.Link(a); got != c.link {
			t.Errorf("Link(%s) = %q, want %q", a, got, c.link)
		}
		if got := routes.Local(a); got != c.local {
			t.Errorf("Local(%s) = %t, want %t", a, got, c.local)
		}
	}
}
