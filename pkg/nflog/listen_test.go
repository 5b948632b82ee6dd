package nflog

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	gonflog "github.com/florianl/go-nflog/v2"
	"golang.org/x/sys/unix"
)

const testGroup = 77

// inNamespace puts the test into a network namespace of its own, in which
// packets to two ports of the loopback are logged. The thread is never unlocked,
// so that it dies with the test.
func inNamespace(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make a network namespace")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("unshare: %v", err)
	}
	run := func(stdin, name string, args ...string) {
		cmd := exec.Command(name, args...)
		cmd.Stdin = strings.NewReader(stdin)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
	}
	run("", "ip", "link", "set", "lo", "up")
	run(`table inet t {
		chain c {
			type filter hook input priority 0;
			udp dport 5001 log prefix "one" group 77
			udp dport 5002 log prefix "two" group 77 drop
		}
	}`, "nft", "-f", "-")
}

// sender sends packets to the loopback, from the namespace in which it was made.
func sender(t *testing.T, network string) func(to string) {
	t.Helper()
	conn, err := net.ListenUDP(network, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return func(to string) {
		if _, err := conn.WriteToUDPAddrPort([]byte("hello"), netip.MustParseAddrPort(to)); err != nil {
			t.Error(err)
		}
	}
}

func TestRun(t *testing.T) {
	inNamespace(t)
	l, err := Open(testGroup)
	if err != nil {
		t.Fatal(err)
	}
	second, err := Open(testGroup)
	if err != nil {
		t.Fatal(err)
	}
	send4, send6 := sender(t, "udp4"), sender(t, "udp6")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	packets := make(chan Packet, 100)
	ended := make(chan error, 1)
	go func() {
		ended <- l.Run(ctx, func(p Packet) { packets <- p }, func(n uint32) { t.Errorf("%d lost", n) })
	}()
	// Until it listens nothing is logged.
	deadline := time.After(20 * time.Second)
	for begun := false; !begun; {
		send4("127.0.0.1:5001")
		select {
		case <-packets:
			begun = true
		case err := <-ended:
			t.Fatal(err)
		case <-deadline:
			t.Fatal("nothing is logged")
		case <-time.After(100 * time.Millisecond):
		}
	}
	send4("127.0.0.1:5002")
	send6("[::1]:5002")
	for _, src := range []string{"127.0.0.1", "::1"} {
		p := <-packets
		for p.Prefix == "one" { // sent before
			p = <-packets
		}
		if p.Prefix != "two" || p.Src.String() != src || p.Dst.String() != src || p.Proto != 17 || p.DPort != 5002 || p.SPort == 0 || p.In != 1 || p.Out != 0 {
			t.Errorf("packet from %s: %+v", src, p)
		}
		if age := time.Since(p.Time); age < -time.Minute || age > time.Minute {
			t.Errorf("packet of %s", p.Time)
		}
	}
	// The group has one listener.
	if err := second.Run(ctx, func(Packet) {}, func(uint32) {}); !errors.Is(err, ErrTaken) {
		t.Errorf("a second listener: %v", err)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Run ends with %v", err)
	}
}

// A gap in the sequence is told as so many packets lost.
func TestGap(t *testing.T) {
	var lost []uint32
	r := receiver{packet: func(Packet) {}, lost: func(n uint32) { lost = append(lost, n) }}
	for _, n := range []uint32{7, 8, 12, 13, 1<<32 - 1, 0, 2} {
		r.message(attributeWithSeq(n))
	}
	if len(lost) != 2 || lost[0] != 3 || lost[1] != 1 {
		t.Errorf("lost %v, want 3 and 1", lost)
	}
}

func attributeWithSeq(n uint32) gonflog.Attribute { return gonflog.Attribute{Seq: &n} }
