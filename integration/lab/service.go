package lab

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
)

// Service is an echo server that runs as a process of a node, not in a
// container.
type Service struct {
	cmd   *exec.Cmd
	ended chan struct{}
}

// Service starts the echo server binary on a node. It does not wait until the
// server listens.
func (l *Lab) Service(ctx context.Context, n *Node, echo, name string, args ...string) (*Service, error) {
	cmd := n.Command(context.WithoutCancel(ctx), echo, append([]string{"-name", name}, args...)...)
	cmd.Env = l.env()
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start service %s: %w", name, err)
	}
	s := &Service{cmd: cmd, ended: make(chan struct{})}
	go func() {
		// A service always ends by being killed.
		_ = cmd.Wait()
		close(s.ended)
	}()
	return s, nil
}

// Stop kills the service and waits for its end.
func (s *Service) Stop() {
	// It may have ended by itself, which the test has noticed.
	_ = s.cmd.Process.Kill()
	<-s.ended
}

// Behind makes a node that is not on the wire but behind a client, which
// becomes its router: 198.19.0.2 and fd00:19::2. The host gets routes to it.
// The link between them carries packets up to mtu bytes towards the node.
func (l *Lab) Behind(ctx context.Context, router *Node, name string, mtu int) (*Node, error) {
	nsName := l.name + "-" + name
	ns, err := newNamespace(ctx, nsName)
	if err != nil {
		return nil, err
	}
	n := &Node{
		Namespace: ns, Name: name,
		V4: netip.MustParseAddr("198.19.0.2"), V6: netip.MustParseAddr("fd00:19::2"),
	}
	if err := router.IP(ctx,
		fmt.Sprintf("link add eth1 mtu %d type veth peer name eth0 netns %s", mtu, nsName),
		"addr add 198.19.0.1/24 dev eth1", "addr add fd00:19::1/64 dev eth1 nodad",
		"link set eth1 up",
	); err != nil {
		return nil, err
	}
	if err := n.IP(ctx,
		"addr add 198.19.0.2/24 dev eth0", "addr add fd00:19::2/64 dev eth0 nodad",
		"link set eth0 up",
		"route add default via 198.19.0.1", "route add default via fd00:19::1",
	); err != nil {
		return nil, err
	}
	for _, key := range []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"} {
		if err := router.Sysctl(key, "1"); err != nil {
			return nil, err
		}
	}
	return n, l.Host.IP(ctx,
		fmt.Sprintf("route replace 198.19.0.0/24 via %s", router.V4),
		fmt.Sprintf("route replace fd00:19::/64 via %s", router.V6))
}

// Detach removes a node, and with it the links that led to it.
func (l *Lab) Detach(ctx context.Context, n *Node) error {
	_, err := run(exec.CommandContext(ctx, "ip", "netns", "del", l.name+"-"+n.Name))
	return err
}

// Aside makes a node that is attached to the host by a link of its own rather
// than to the wire. On the host the link's name is given by link, and both its
// ends are down and without addresses.
func (l *Lab) Aside(ctx context.Context, name, link string) (*Node, error) {
	nsName := l.name + "-" + name
	ns, err := newNamespace(ctx, nsName)
	if err != nil {
		return nil, err
	}
	return &Node{Namespace: ns, Name: name}, l.Host.IP(ctx,
		fmt.Sprintf("link add %s type veth peer name eth0 netns %s", link, nsName))
}
