package sockets

import (
	"cmp"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"
)

// enterNetwork moves the test into a network namespace of its own that has a
// loopback and nothing else.
func enterNetwork(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make a network namespace")
	}
	runtime.LockOSThread() // and never unlock: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("unshare: %v", err)
	}
	if out, err := exec.CommandContext(t.Context(), "ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Fatalf("ip link set lo up: %v: %s", err, out)
	}
}

// serve listens and gives the two ends of a connection to there.
func serve(t *testing.T, network, listen, dial string) (client, server net.Conn) {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), network, listen)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	var d net.Dialer
	if client, err = d.DialContext(t.Context(), "tcp", dial); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	return client, server
}

// TestBothWays compares what the kernel tells in its two ways with each other,
// and with what was made.
func TestBothWays(t *testing.T) {
	enterNetwork(t)
	serve(t, "tcp4", "127.0.0.1:2201", "127.0.0.1:2201")
	serve(t, "tcp6", "[::1]:2202", "[::1]:2202")
	serve(t, "tcp", ":2203", "127.0.0.1:2203") // an IPv6 socket, its peer mapped
	client, server := serve(t, "tcp4", "127.0.0.1:2204", "127.0.0.1:2204")
	_, _ = client.Close(), server.Close() // one of them stays in TIME_WAIT

	asked, err := diag()
	if err != nil {
		t.Fatal(err)
	}
	tables := Tables("/proc")
	sorted := cmpopts.SortSlices(func(a, b Socket) int {
		return cmp.Or(a.Local.Compare(b.Local), a.Remote.Compare(b.Remote), cmp.Compare(a.State, b.State))
	})
	if diff := gocmp.Diff(tables, asked, sorted, cmpopts.EquateComparable(Socket{})); diff != "" {
		t.Errorf("sock_diag differs from /proc/net/tcp (-table +asked):\n%s", diff)
	}
	count := map[string]int{}
	for _, s := range asked {
		ends := s.Local.String()
		if s.State == Established && s.Local.Port() > 2200 && s.Local.Port() < 2210 {
			count["session "+ends]++
		}
		if s.State == Listen {
			count["listener "+ends]++
		}
		if (s.State == Listen || s.State == Established) && s.Inode == 0 {
			t.Errorf("%+v has no inode", s)
		}
	}
	want := map[string]int{
		"listener 127.0.0.1:2201": 1, "session 127.0.0.1:2201": 1,
		"listener [::1]:2202": 1, "session [::1]:2202": 1,
		"listener [::]:2203": 1, "session 127.0.0.1:2203": 1,
		"listener 127.0.0.1:2204": 1,
	}
	if diff := gocmp.Diff(want, count); diff != "" {
		t.Errorf("sockets (-want +got):\n%s", diff)
	}
	all := TCP()
	if slices.ContainsFunc(tables, func(s Socket) bool { return !slices.Contains(all, s) }) {
		t.Errorf("TCP() = %v, want %v", all, tables)
	}
}

func TestDamagedTables(t *testing.T) {
	if got := Tables(t.TempDir()); got != nil {
		t.Errorf("sockets of an empty file system: %v", got)
	}
	for _, text := range []string{"", "x", "0100007F", "0100007F:", ":0016", "0100007F:10000", "0100007:0016", "01:0016", "zz00007F:0016"} {
		if ap, err := parseAddr(text); err == nil {
			t.Errorf("parseAddr(%q) = %s", text, ap)
		}
	}
	good := "0: 0100007F:0016 0100007F:1000 01 0:0 0:0 0 0 0 77 1"
	if s, err := parseLine(good); err != nil || s.Inode != 77 || s.State != Established {
		t.Errorf("parseLine(%q) = %+v, %v", good, s, err)
	}
	for _, text := range []string{
		"0: 0100007F:0016 0100007F:1000 xx 0:0 0:0 0 0 0 77 1",
		"0: 0100007F:0016 0100007F:1000 01 0:0 0:0 0 0 0 inode 1",
		"0: 0100007F:0016 0100007F:1000 01 0:0 0:0",
	} {
		if s, err := parseLine(text); err == nil {
			t.Errorf("parseLine(%q) = %+v", text, s)
		}
	}
}
