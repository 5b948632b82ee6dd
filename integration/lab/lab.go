package lab

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// The addresses of a lab. Every lab has the same ones: they never meet.
// 198.18.0.0/15 is for benchmarks between networks (RFC 2544), fd00::/8 for
// local use (RFC 4193).
var (
	Net4 = netip.MustParsePrefix("198.18.0.0/16")
	Net6 = netip.MustParsePrefix("fd00:18::/64")

	HostV4 = netip.MustParseAddr("198.18.0.1")
	HostV6 = netip.MustParseAddr("fd00:18::1")

	// DockerNet6 is where networks of containers take their IPv6 prefixes.
	DockerNet6 = netip.MustParsePrefix("fd00:d0c::/32")
)

// dockerNets4 are the address pools from which an engine takes its networks; the
// last is Podman's.
var dockerNets4 = []string{"172.16.0.0/12", "192.168.0.0/16", "10.88.0.0/15"}

// Lab is a wire with a Docker host and clients on it. Its methods may be used
// concurrently, except Close.
type Lab struct {
	Host *Node // with the addresses HostV4 and HostV6 on eth0

	log  *slog.Logger
	name string
	dir  string
	wire Namespace
}

// Node is a namespace on the wire, attached by its eth0.
type Node struct {
	Namespace
	Name string
	V4   netip.Addr
	V6   netip.Addr
}

// New makes a lab with a host and no clients, after removing what killed
// processes have left behind.
func New(ctx context.Context, log *slog.Logger) (*Lab, error) {
	l, err := NewWire(ctx, log)
	if err != nil {
		return nil, err
	}
	if err := l.addHost(ctx); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// NewWire makes a lab with nothing on its wire, after removing what killed
// processes have left behind. Its Host is nil.
func NewWire(ctx context.Context, log *slog.Logger) (*Lab, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("a lab of network namespaces needs root")
	}
	if err := removeStale(ctx); err != nil {
		// Another process may be removing the same ones.
		log.Warn("remove abandoned labs", "err", err)
	}
	dir, err := TempDir()
	if err != nil {
		return nil, err
	}
	l := &Lab{log: log, name: filepath.Base(dir), dir: dir}
	if l.wire, err = newNamespace(ctx, l.name+"-wire"); err == nil {
		err = l.wire.IP(ctx, "link add wire0 type bridge", "link set wire0 up")
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (l *Lab) addHost(ctx context.Context) error {
	var err error
	if l.Host, err = l.attach(ctx, "host", HostV4, HostV6); err != nil {
		return err
	}
	return l.forwarding()
}

// forwarding makes the host one that forwards before Docker comes: engines
// older than 28 then leave the FORWARD policy at accept, and a neighbour with a
// route reaches every port of every container.
func (l *Lab) forwarding() error {
	return errors.Join(
		l.Host.Sysctl("net.ipv4.ip_forward", "1"),
		l.Host.Sysctl("net.ipv6.conf.all.forwarding", "1"),
		// As on a host where br_netfilter is not loaded.
		l.Host.Sysctl("net.bridge.bridge-nf-call-iptables", "0"),
		l.Host.Sysctl("net.bridge.bridge-nf-call-ip6tables", "0"),
	)
}

// TempDir makes a folder that a later New removes if this process is killed
// before it has done so itself.
func TempDir() (string, error) {
	return os.MkdirTemp("", fmt.Sprintf("%s%d-*", prefix, os.Getpid()))
}

// Dir is a folder of the lab's own, removed with it.
func (l *Lab) Dir() string { return l.dir }

// Client attaches a client to the wire, with the addresses 198.18.0.ID and
// fd00:18::ID (in decimal digits, so that they read alike).
func (l *Lab) Client(ctx context.Context, name string, id uint8) (*Node, error) {
	v4, err := netip.ParseAddr(fmt.Sprintf("198.18.0.%d", id))
	if err != nil {
		return nil, err
	}
	v6, err := netip.ParseAddr(fmt.Sprintf("fd00:18::%d", id))
	if err != nil {
		return nil, err
	}
	return l.attach(ctx, name, v4, v6)
}

// Neighbour attaches another Docker host to the wire, with the addresses that a
// client of that id has. What it gives is a lab of which Host is that host; it
// ends with l, and not by itself.
func (l *Lab) Neighbour(ctx context.Context, name string, id uint8) (*Lab, error) {
	host, err := l.Client(ctx, name, id)
	if err != nil {
		return nil, err
	}
	other := &Lab{Host: host, log: l.log, name: l.name, dir: filepath.Join(l.dir, name), wire: l.wire}
	if err := os.Mkdir(other.dir, 0o711); err != nil {
		return nil, err
	}
	return other, other.forwarding()
}

func (l *Lab) attach(ctx context.Context, name string, v4, v6 netip.Addr) (*Node, error) {
	nsName := l.name + "-" + name
	ns, err := newNamespace(ctx, nsName)
	if err != nil {
		return nil, err
	}
	n := &Node{Namespace: ns, Name: name, V4: v4, V6: v6}
	if err := l.wire.IP(ctx,
		fmt.Sprintf("link add %s type veth peer name eth0 netns %s", name, nsName),
		fmt.Sprintf("link set %s master wire0 up", name),
	); err != nil {
		return nil, err
	}
	if err := n.AddAddr(ctx, v4); err != nil {
		return nil, err
	}
	if err := n.AddAddr(ctx, v6); err != nil {
		return nil, err
	}
	if err := n.IP(ctx, "link set eth0 up"); err != nil {
		return nil, err
	}
	return n, nil
}

// Tap attaches a tap to the wire, for a process started by OnWire to open.
func (l *Lab) Tap(ctx context.Context, name string) error {
	return l.wire.IP(ctx,
		"tuntap add mode tap name "+name,
		fmt.Sprintf("link set %s master wire0 up", name))
}

// OnWire prepares a command beside the wire, where its taps are. It is killed
// with the lab at the latest.
func (l *Lab) OnWire(name string, args ...string) *exec.Cmd {
	cmd := l.wire.Command(context.Background(), name, args...)
	cmd.Env = l.env()
	return cmd
}

// AddAddr gives the node another address of the wire.
func (n *Node) AddAddr(ctx context.Context, a netip.Addr) error {
	return n.IP(ctx, "addr add "+onWire(a))
}

// DelAddr takes an address away again.
func (n *Node) DelAddr(ctx context.Context, a netip.Addr) error {
	return n.IP(ctx, "addr del "+onWire(a))
}

func onWire(a netip.Addr) string {
	if a.Is4() {
		return fmt.Sprintf("%s/%d dev eth0", a, Net4.Bits())
	}
	// The wire has no duplicates to wait for.
	return fmt.Sprintf("%s/%d dev eth0 nodad", a, Net6.Bits())
}

// RouteContainers gives the node routes through the host to all addresses that
// containers may have.
func (n *Node) RouteContainers(ctx context.Context) error {
	lines := []string{fmt.Sprintf("route add %s via %s", DockerNet6, HostV6)}
	for _, p := range dockerNets4 {
		lines = append(lines, fmt.Sprintf("route add %s via %s", p, HostV4))
	}
	return n.IP(ctx, lines...)
}

// RouteLoopback sends a client's packets for 127.0.0.0/8 to the host instead of
// to itself, and lets the host know for good where the client is: it would ask
// for it on behalf of 127.0.0.1, the address that its answers come from, and
// hear nothing.
func (l *Lab) RouteLoopback(ctx context.Context, n *Node) error {
	var mac net.HardwareAddr
	err := n.Do(func() error {
		link, err := net.InterfaceByName("eth0")
		if err == nil {
			mac = link.HardwareAddr
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("look up eth0 of %s: %w", n.Name, err)
	}
	if err := l.Host.IP(ctx, fmt.Sprintf("neigh replace %s lladdr %s dev eth0 nud permanent", n.V4, mac)); err != nil {
		return err
	}
	if err := n.Sysctl("net.ipv4.conf.all.route_localnet", "1"); err != nil {
		return err
	}
	return n.IP(ctx,
		// An answer from an address of its own it would drop.
		"addr del 127.0.0.1/8 dev lo",
		fmt.Sprintf("route add 127.0.0.0/8 via %s", HostV4),
	)
}

// Close removes everything of the lab. Engines and firewalls that still run in
// it are killed.
func (l *Lab) Close() error {
	return remove(context.Background(), l.name)
}

// Poll calls check every interval, beginning at once, until it returns nil or
// ctx is done; the error is then check's last.
func Poll(ctx context.Context, interval time.Duration, check func() error) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%w: last: %w", ctx.Err(), err)
		}
	}
}
