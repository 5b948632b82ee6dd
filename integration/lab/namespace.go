package lab

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// netnsDir is where ip-netns(8) keeps its named namespaces.
const netnsDir = "/run/netns"

// Namespace is a network namespace, by the path of a file that stands for it.
type Namespace struct {
	path string
}

// PathNamespace is the namespace behind a path such as /proc/PID/ns/net.
func PathNamespace(path string) Namespace { return Namespace{path: path} }

// newNamespace makes a named network namespace with its loopback up.
func newNamespace(ctx context.Context, name string) (Namespace, error) {
	if _, err := run(exec.CommandContext(ctx, "ip", "netns", "add", name)); err != nil {
		return Namespace{}, err
	}
	n := Namespace{path: filepath.Join(netnsDir, name)}
	// No address is tentative, not even a link-local one.
	if err := n.Sysctl("net.ipv6.conf.default.accept_dad", "0"); err != nil {
		return Namespace{}, err
	}
	return n, n.IP(ctx, "link set lo up")
}

// Path is the file that stands for the namespace.
func (n Namespace) Path() string { return n.path }

// Do calls fn on a thread that is in the namespace. Sockets that fn opens
// belong to the namespace for good; goroutines that it starts do not run there.
func (n Namespace) Do(fn func() error) error {
	f, err := os.Open(n.path)
	if err != nil {
		return fmt.Errorf("open namespace: %w", err)
	}
	defer f.Close()
	done := make(chan error, 1)
	go func() {
		// Never unlocked, so that the thread ends with the goroutine and
		// nothing else ever runs on it.
		runtime.LockOSThread()
		if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter namespace %s: %w", n.path, err)
			return
		}
		done <- fn()
	}()
	return <-done
}

// Command prepares a command that runs in the namespace. Its process is the
// command itself, so that signals reach it.
func (n Namespace) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	// Not ip-netns-exec: that mounts a new /sys, in which dockerd misses the
	// cgroups.
	return exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + n.path, "--", name}, args...)...)
}

// Run runs a command in the namespace and returns what it printed on stdout.
// The error of a command that fails carries what it said on stderr.
func (n Namespace) Run(ctx context.Context, name string, args ...string) (string, error) {
	return run(n.Command(ctx, name, args...))
}

// IP runs lines of ip(8) commands in the namespace, all or up to the first
// that fails.
func (n Namespace) IP(ctx context.Context, lines ...string) error {
	cmd := n.Command(ctx, "ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	_, err := run(cmd)
	return err
}

// NFT loads an nft script in the namespace.
func (n Namespace) NFT(ctx context.Context, script string) error {
	cmd := n.Command(ctx, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	_, err := run(cmd)
	return err
}

// Sysctl sets a key such as net.ipv4.ip_forward in the namespace.
func (n Namespace) Sysctl(key, value string) error {
	path := filepath.Join("/proc/sys", strings.ReplaceAll(key, ".", "/"))
	return n.Do(func() error {
		if err := os.WriteFile(path, []byte(value), 0); err != nil {
			return fmt.Errorf("set %s: %w", key, err)
		}
		return nil
	})
}

// Dial connects from the namespace, from a given source address unless it is
// the zero Addr. The connection may be used anywhere.
func (n Namespace) Dial(ctx context.Context, network string, to netip.AddrPort, from netip.Addr) (net.Conn, error) {
	d := net.Dialer{KeepAlive: -1}
	if from.IsValid() {
		d.LocalAddr = localAddr(network, from)
	}
	var c net.Conn
	err := n.Do(func() error {
		var err error
		c, err = d.DialContext(ctx, network, to.String())
		return err
	})
	return c, err
}

// Listen listens for TCP in the namespace. The listener may be used anywhere.
func (n Namespace) Listen(ctx context.Context, addr string) (net.Listener, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	var l net.Listener
	err := n.Do(func() error {
		var err error
		l, err = lc.Listen(ctx, "tcp", addr)
		return err
	})
	return l, err
}

// ListenPacket listens for UDP, or for raw packets of a protocol as
// net.ListenPacket has them, in the namespace.
func (n Namespace) ListenPacket(ctx context.Context, network, addr string) (net.PacketConn, error) {
	var lc net.ListenConfig
	var c net.PacketConn
	err := n.Do(func() error {
		var err error
		c, err = lc.ListenPacket(ctx, network, addr)
		return err
	})
	return c, err
}

func localAddr(network string, a netip.Addr) net.Addr {
	if strings.HasPrefix(network, "udp") {
		return net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0))
	}
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(a, 0))
}

// run runs a command and returns its stdout; its stderr goes into the error.
func run(cmd *exec.Cmd) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// A grandchild that keeps the pipes open must not hold us up.
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}
