package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// enterHost puts the thread of the test into a network namespace of its own,
// which goes with the thread.
func enterHost(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make a network namespace")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	run(t, "ip", "link", "set", "lo", "up")
}

// space is another network namespace, held by a thread. Sockets that are made
// in it belong to it, wherever they are used.
type space struct {
	tid  int
	jobs chan func()
}

func newSpace(t testing.TB) *space {
	t.Helper()
	s := &space{jobs: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		s.tid = unix.Gettid()
		ready <- err
		for job := range s.jobs {
			job()
		}
	}()
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(s.jobs) })
	s.do(func() { run(t, "ip", "link", "set", "lo", "up") })
	return s
}

func (s *space) do(f func()) {
	done := make(chan struct{})
	s.jobs <- func() {
		defer close(done)
		f()
	}
	<-done
}

func (s *space) pid() string  { return strconv.Itoa(s.tid) }
func (s *space) path() string { return fmt.Sprintf("/proc/%d/ns/net", s.tid) }

// run runs a command where the thread is.
func run(t testing.TB, args ...string) { t.Helper(); runWith(t, "", args...) }

func runWith(t testing.TB, stdin string, args ...string) {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Errorf("%s: %v\n%s", strings.Join(args, " "), err, out.String())
	}
}

func sysctl(t testing.TB, file, value string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/net/"+file, []byte(value), 0o644); err != nil {
		t.Fatal(err)
	}
}

// address gives a link its addresses, usable at once.
func address(t testing.TB, link string, addrs ...string) {
	t.Helper()
	run(t, "ip", "link", "set", link, "up")
	for _, a := range addrs {
		run(t, "ip", "address", "add", a, "dev", link, "nodad")
	}
}

func route(t testing.TB, gateway4, gateway6 string) {
	t.Helper()
	run(t, "ip", "route", "add", "default", "via", gateway4)
	run(t, "ip", "-6", "route", "add", "default", "via", gateway6)
}

// awaitNeighbour waits until somebody answers at the address, if only to
// refuse: a bridge takes a moment before it forwards.
func awaitNeighbour(t testing.TB, addr string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		c, err := net.DialTimeout("tcp", addr, 200*time.Millisecond)
		if err == nil {
			_ = c.Close()
			return
		}
		if errors.Is(err, unix.ECONNREFUSED) {
			return
		}
	}
	t.Fatalf("%s cannot be reached", addr)
}

// server waits for one connection.
type server struct {
	listener net.Listener
	packets  *net.UDPConn
	owned    bool // by the connection that came of it
}

func serve(network string, six bool, port uint16) (server, error) {
	config := net.ListenConfig{Control: reuse}
	addr := fmt.Sprintf("0.0.0.0:%d", port)
	if six {
		network, addr = network+"6", fmt.Sprintf("[::]:%d", port)
	} else {
		network += "4"
	}
	if strings.HasPrefix(network, "tcp") {
		l, err := config.Listen(context.Background(), network, addr)
		return server{listener: l}, err
	}
	p, err := config.ListenPacket(context.Background(), network, addr)
	if err != nil {
		return server{}, err
	}
	return server{packets: p.(*net.UDPConn)}, nil
}

// reuse lets one server follow another at once.
func reuse(_, _ string, c syscall.RawConn) error {
	var err error
	return errors.Join(c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		err = errors.Join(err, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
	}), err)
}

// accept gives the server's end of the connection. A UDP socket is connected
// to who sent first, so that it hears of nobody else.
func (s *server) accept() (net.Conn, error) {
	deadline := time.Now().Add(300 * time.Millisecond)
	if s.listener != nil {
		_ = s.listener.(*net.TCPListener).SetDeadline(deadline)
		return s.listener.Accept()
	}
	_ = s.packets.SetReadDeadline(deadline)
	_, peer, err := s.packets.ReadFromUDPAddrPort(make([]byte, 1500))
	if err != nil {
		return nil, err
	}
	raw, err := s.packets.SyscallConn()
	if err != nil {
		return nil, err
	}
	err = errors.Join(raw.Control(func(fd uintptr) { err = unix.Connect(int(fd), sockaddr(peer)) }), err)
	s.owned = true
	return udpEnd{s.packets, peer}, err
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// udpEnd is a UDP socket with one peer.
type udpEnd struct {
	*net.UDPConn
	peer netip.AddrPort
}

func (u udpEnd) Write(b []byte) (int, error) { return u.WriteToUDPAddrPort(b, u.peer) }

func (s *server) done() {
	if s.listener != nil {
		_ = s.listener.Close()
	}
	if s.packets != nil && !s.owned {
		_ = s.packets.Close()
	}
}
