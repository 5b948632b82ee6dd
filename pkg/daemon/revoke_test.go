package daemon

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nftfw/nftfw/nft"
	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/api"
	"github.com/nftfw/nftfw/pkg/inventory"
	"github.com/nftfw/nftfw/pkg/ruleset"
	"github.com/nftfw/nftfw/pkg/store"
)

// Addresses of the trio. The client has two of each family, so that one can
// lose what the other keeps.
const (
	host4, host6           = "198.18.0.1", "fd00:1::1"
	client4, client6       = "198.18.0.2", "fd00:1::2"
	other4, other6         = "198.18.0.3", "fd00:1::3"
	container4, container6 = "172.17.0.2", "fd00:2::2"
)

// trio is a client, a Docker host and a container with links between them.
// The host is where the test runs.
type trio struct {
	client, container *space
	core              *core
}

// published lists the ports that reach the container, equal ones and others,
// and one of the host itself.
var reached = []struct {
	name     string
	asked    uint16
	server   uint16
	onHost   bool
	network  string
	askedOn6 bool
}{
	{name: "tcp to another port", asked: 8080, server: 80, network: "tcp"},
	{name: "tcp to an equal port", asked: 8081, server: 8081, network: "tcp"},
	{name: "tcp to the host", asked: 9000, server: 9000, network: "tcp", onHost: true},
	{name: "udp to another port", asked: 8080, server: 80, network: "udp"},
	{name: "udp to an equal port", asked: 8081, server: 8081, network: "udp"},
	{name: "udp to the host", asked: 9000, server: 9000, network: "udp", onHost: true},
}

const revokePolicy = `version: 1
sets:
  friends: []
host:
  allow: [{ports: [9000/tcp, 9000/udp], from: friends}]
containers:
  default: none
  rules: [{match: {name: "shop*"}, expose: {"*": friends}}]
`

func newTrio(t *testing.T, policyText string) *trio {
	t.Helper()
	enterHost(t)
	tr := &trio{client: newSpace(t), container: newSpace(t)}
	sandbox := tr.container.path()
	run(t, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", tr.client.pid())
	run(t, "ip", "link", "add", "docker0", "type", "bridge")
	run(t, "ip", "link", "add", "veth0", "type", "veth", "peer", "name", "eth0", "netns", tr.container.pid())
	run(t, "ip", "link", "set", "veth0", "master", "docker0", "up")
	address(t, "eth0", host4+"/24", host6+"/64")
	address(t, "docker0", "172.17.0.1/16", "fd00:2::1/64")
	for _, file := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		sysctl(t, file, "1")
	}
	tr.client.do(func() { address(t, "eth0", client4+"/24", client6+"/64", other4+"/24", other6+"/64") })
	tr.client.do(func() { route(t, host4, host6) })
	tr.container.do(func() { address(t, "eth0", container4+"/16", container6+"/64") })
	tr.container.do(func() { route(t, "172.17.0.1", "fd00:2::1") })
	runWith(t, natRules(), "nft", "-f", "-")
	awaitNeighbour(t, "["+container6+"]:1")

	st, err := store.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	k, err := nft.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	tr.core = newCore(Config{Table: "nftfw", Log: slog.New(slog.DiscardHandler)}, st, k)
	if err := tr.core.loadSets(); err != nil {
		t.Fatal(err)
	}
	p, err := parsePolicy("policy.yaml", []byte(policyText))
	if err != nil {
		t.Fatal(err)
	}
	tr.core.setPolicy(p)
	tr.core.engine = trioEngine()
	tr.core.links = []inventory.Link{
		{Index: 1, Name: "lo"},
		{Index: 2, Name: "eth0", Kind: "veth"},
		{Index: 3, Name: "docker0", Kind: "bridge"},
		{Index: 4, Name: "veth0", Kind: "veth", Master: 3, Sandbox: sandbox},
	}
	return tr
}

// trioEngine is what Docker would say of the trio.
func trioEngine() inventory.Snapshot {
	return inventory.Snapshot{
		Engine:   inventory.EngineListed,
		Networks: []inventory.Network{{ID: "n1", Name: "bridge", Driver: "bridge", Bridge: "docker0"}},
		Containers: []inventory.Container{{
			ID: strings.Repeat("a", 64), Name: "shop", NetworkMode: "bridge",
			Endpoints: []inventory.Endpoint{{NetworkID: "n1", Addr4: netip.MustParseAddr(container4), Addr6: netip.MustParseAddr(container6)}},
			Ports:     publishedPorts(),
		}},
	}
}

func publishedPorts() []inventory.Port {
	var out []inventory.Port
	for _, r := range reached {
		proto := uint8(6)
		if r.network == "udp" {
			proto = 17
		}
		if r.onHost {
			continue
		}
		for _, any := range []string{"0.0.0.0", "::"} {
			out = append(out, inventory.Port{HostIP: netip.MustParseAddr(any), HostPort: r.asked, ContainerPort: r.server, Proto: proto})
		}
	}
	return out
}

// natRules do what Docker does for published ports.
func natRules() string {
	var b strings.Builder
	b.WriteString("table inet docker {\n chain pre {\n type nat hook prerouting priority dstnat;\n")
	for _, r := range reached {
		if r.onHost {
			continue
		}
		fmt.Fprintf(&b, "ip daddr %s %s dport %d dnat ip to %s:%d\n", host4, r.network, r.asked, container4, r.server)
		fmt.Fprintf(&b, "ip6 daddr %s %s dport %d dnat ip6 to [%s]:%d\n", host6, r.network, r.asked, container6, r.server)
	}
	// Masquerading is what gives the container's own connections the host's address.
	b.WriteString("}\n chain post {\n type nat hook postrouting priority srcnat;\n oifname eth0 iifname docker0 masquerade\n}\n}\n")
	return b.String()
}

// enforce puts what the core knows in force, and cuts.
func (tr *trio) enforce(t *testing.T) {
	t.Helper()
	if err := tr.core.reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	tr.cut(t)
}

func (tr *trio) cut(t *testing.T) {
	t.Helper()
	if err := tr.core.withdrawNow(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (tr *trio) add(t *testing.T, entries ...string) {
	t.Helper()
	if _, err := tr.core.addToSet(t.Context(), "friends", api.SetChange{Entries: entries, Force: true}); err != nil {
		t.Fatal(err)
	}
	tr.cut(t)
}

func (tr *trio) del(t *testing.T, entries ...string) {
	t.Helper()
	if _, err := tr.core.deleteFromSet(t.Context(), "friends", api.SetChange{Entries: entries, Force: true}); err != nil {
		t.Fatal(err)
	}
	tr.cut(t)
}

// conn is both ends of one connection.
type conn struct {
	name           string
	client, server net.Conn
}

// dial makes a connection from src for every way in, and says which failed.
func (tr *trio) dial(t *testing.T, src4, src6 string) (made []*conn, failed []string) {
	t.Helper()
	for _, r := range reached {
		for _, src := range []string{src4, src6} {
			local, asked := netip.AddrPortFrom(netip.MustParseAddr(src), 0), host4
			if local.Addr().Is6() {
				asked = host6
			}
			name := r.name + " from " + src
			c, err := tr.connect(t, r.network, r.onHost, r.server, local, netip.AddrPortFrom(netip.MustParseAddr(asked), r.asked))
			if err != nil {
				failed = append(failed, name)
				continue
			}
			c.name = name
			made = append(made, c)
		}
	}
	return made, failed
}

// connect makes one connection: TCP is accepted, UDP is answered, by a server
// that is made for it. The client waits a third of a second.
func (tr *trio) connect(t *testing.T, network string, onHost bool, port uint16, local, asked netip.AddrPort) (*conn, error) {
	t.Helper()
	at := tr.container.do
	if onHost {
		at = func(f func()) { f() }
	}
	var (
		s   server
		err error
	)
	at(func() { s, err = serve(network, local.Addr().Is6(), port) })
	if err != nil {
		t.Fatal(err)
	}
	defer s.done()
	var c net.Conn
	tr.client.do(func() {
		dialer := net.Dialer{Timeout: 300 * time.Millisecond, LocalAddr: net.TCPAddrFromAddrPort(local), Control: reuse}
		if network == "udp" {
			dialer.LocalAddr = net.UDPAddrFromAddrPort(local)
		}
		c, err = dialer.Dial(network, asked.String())
	})
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = c.Close() })
	if _, err := c.Write([]byte("hello")); err != nil {
		return nil, err
	}
	peer, err := s.accept()
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = peer.Close() })
	out := &conn{client: c, server: peer}
	if !out.talks() {
		return nil, io.ErrUnexpectedEOF
	}
	return out, nil
}

// carries tells whether what is written at one end arrives at the other.
func carries(from, to net.Conn, text string, wait time.Duration) bool {
	if _, err := from.Write([]byte(text)); err != nil {
		return false
	}
	deadline := time.Now().Add(wait)
	buf := make([]byte, 1500)
	got := ""
	for !strings.Contains(got, text) {
		_ = to.SetReadDeadline(deadline)
		n, err := to.Read(buf)
		if err != nil {
			return false
		}
		got += string(buf[:n])
	}
	return true
}

const patience = 2 * time.Second

func (c *conn) talks() bool {
	return carries(c.client, c.server, "request", patience) && carries(c.server, c.client, "answer", patience)
}

// wantDead fails where anything passes, whichever side sends. The connections
// are tried at the same time.
func wantDead(t *testing.T, conns []*conn) {
	t.Helper()
	const quiet = 500 * time.Millisecond // TCP tries again after 200 ms, twice by then
	type result struct {
		name string
		pass string
	}
	results := make(chan result)
	for i, c := range conns {
		go func() {
			// Either side is the first to send after the cut.
			ways := []struct {
				name     string
				from, to net.Conn
			}{{"what the server pushes arrives", c.server, c.client}, {"what the client sends arrives", c.client, c.server}}
			if i%2 == 1 {
				ways[0], ways[1] = ways[1], ways[0]
			}
			for _, w := range append(ways, ways...) {
				// What was written before may have been sent again while no table stood.
				if carries(w.from, w.to, fmt.Sprintf("late %d", time.Now().UnixNano()), quiet) {
					results <- result{c.name, w.name}
					return
				}
			}
			results <- result{}
		}()
	}
	for range conns {
		if r := <-results; r.name != "" {
			t.Errorf("%s: %s", r.name, r.pass)
		}
	}
}

func wantAlive(t *testing.T, conns []*conn) {
	t.Helper()
	for _, c := range conns {
		if !c.talks() {
			t.Errorf("%s: dead, though it is allowed", c.name)
		}
	}
}

func TestRevokedConnectionsDie(t *testing.T) {
	t.Parallel()
	tr := newTrio(t, revokePolicy)
	tr.enforce(t)
	if made, _ := tr.dial(t, client4, client6); len(made) > 0 {
		t.Fatalf("%s: open to nobody, and can be reached", made[0].name)
	}
	tr.add(t, client4, client6, other4, other6)
	mine, failed := tr.dial(t, client4, client6)
	others, failedToo := tr.dial(t, other4, other6)
	if failed = append(failed, failedToo...); len(failed) > 0 {
		t.Fatalf("not reached, though allowed: %s", failed)
	}
	wantAlive(t, mine)

	tr.del(t, client4, client6)
	wantDead(t, mine)
	wantAlive(t, others)
	if err := tr.core.kernel.Flows(t.Context(), func(flows []nft.Flow) {
		for _, f := range flows {
			if a := f.Src.Addr().String(); a == client4 || a == client6 {
				t.Errorf("the entry of a cut connection is still there: %v", f)
			}
		}
	}); err != nil {
		t.Fatal(err)
	}

	// Granted again it works at once, from a new port and from the same.
	tr.add(t, client4, client6)
	if _, failed := tr.dial(t, client4, client6); len(failed) > 0 {
		t.Errorf("not reached, though allowed again: %s", failed)
	}
	for _, c := range mine {
		if strings.HasPrefix(c.name, "udp") && !c.talks() {
			t.Errorf("%s: dead from the same port, though allowed again", c.name)
		}
	}
	wantAlive(t, others)
	if have := observed(t, tr); have.Chain("cut_forward") != nil {
		t.Error("the chains for cut flows are there without any")
	}
	if diff := nft.Diff(mustObserve(t, tr), tr.core.table, time.Now()).Lines(); len(diff) > 0 {
		t.Errorf("the table is not what the core takes it for:\n%s", strings.Join(diff, "\n"))
	}
}

// A client that lets connection tracking see a reset which dies on its way to the
// server has an entry that looks ended, and a connection that goes on: it is cut like
// others.
func TestConnectionThatSeemsOverDies(t *testing.T) {
	tr := newTrio(t, revokePolicy)
	tr.enforce(t)
	tr.add(t, client6)
	local, asked := netip.MustParseAddrPort("["+client6+"]:40123"), netip.MustParseAddrPort("["+host6+"]:8080")
	c, err := tr.connect(t, "tcp", false, 80, local, asked)
	if err != nil {
		t.Fatal(err)
	}
	c.name = "after a reset"
	next := nextSequence(t, c.client.(*net.TCPConn))
	tr.client.do(func() { resetToFirstRouter(t, local, asked, next) })
	if !c.talks() {
		t.Fatal("the reset has reached the server")
	}
	tracked, err := os.ReadFile("/proc/thread-self/net/nf_conntrack")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(tracked), " CLOSE ") {
		t.Fatalf("connection tracking has not seen the reset:\n%s", tracked)
	}
	tr.del(t, client6)
	wantDead(t, []*conn{c})
}

// nextSequence gives the number of the byte that c sends next; see TCP_REPAIR in
// Documentation/networking of the kernel and include/uapi/linux/tcp.h.
func nextSequence(t *testing.T, c *net.TCPConn) uint32 {
	t.Helper()
	const sendQueue, off = 2, -1 // TCP_SEND_QUEUE, TCP_REPAIR_OFF_NO_WP
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var next int
	var failed error
	err = raw.Control(func(fd uintptr) {
		set := func(option, value int) error { return unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, option, value) }
		failed = errors.Join(set(unix.TCP_REPAIR, 1), set(unix.TCP_REPAIR_QUEUE, sendQueue))
		if failed == nil {
			next, failed = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ)
		}
		failed = errors.Join(failed, set(unix.TCP_REPAIR, off))
	})
	if err := errors.Join(err, failed); err != nil {
		t.Fatal(err)
	}
	return uint32(next)
}

// resetToFirstRouter sends a RST of a connection that is not forwarded any more.
func resetToFirstRouter(t *testing.T, from, to netip.AddrPort, sequence uint32) {
	t.Helper()
	const header, flagRST, checksumAt = 20, 0x04, 16 // struct tcphdr, include/uapi/linux/tcp.h
	segment := make([]byte, header)
	binary.BigEndian.PutUint16(segment, from.Port())
	binary.BigEndian.PutUint16(segment[2:], to.Port())
	binary.BigEndian.PutUint32(segment[4:], sequence)
	segment[12], segment[13] = header/4<<4, flagRST
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_TCP)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_CHECKSUM, checksumAt),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, 1),
		unix.Bind(fd, &unix.SockaddrInet6{Addr: from.Addr().As16()}),
		unix.Sendto(fd, segment, 0, &unix.SockaddrInet6{Addr: to.Addr().As16()}),
	); err != nil {
		t.Fatal(err)
	}
}

func TestConnectionsOlderThanFirstEnforcementDie(t *testing.T) {
	t.Parallel()
	tr := newTrio(t, revokePolicy)
	mine, failed := tr.dial(t, client4, client6)
	if len(failed) > 0 {
		t.Fatalf("not reached without rules: %s", failed)
	}
	tr.enforce(t)
	wantDead(t, mine)
}

// Where nothing tracked a connection that the host has made, what only its far side
// says gets through all the same.
func TestDialledConnectionsOlderThanFirstEnforcementLive(t *testing.T) {
	t.Parallel()
	tr := newTrio(t, revokePolicy)
	run(t, "nft", "delete", "table", "inet", "docker") // a host without Docker
	for _, to := range []string{client4, client6} {
		var l net.Listener
		tr.client.do(func() {
			var err error
			if l, err = net.Listen("tcp", netip.AddrPortFrom(netip.MustParseAddr(to), 7000).String()); err != nil {
				t.Error(err)
			}
		})
		defer l.Close()
		go func() {
			c, err := l.Accept()
			for err == nil { // until the other end is closed
				_, err = c.Write([]byte("tick"))
				<-time.After(50 * time.Millisecond)
			}
		}()
	}
	var conns []net.Conn
	for _, to := range []string{client4, client6} {
		c, err := net.Dial("tcp", netip.AddrPortFrom(netip.MustParseAddr(to), 7000).String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	hears := func(c net.Conn, until time.Time) error {
		_ = c.SetReadDeadline(until)
		_, err := io.ReadFull(c, make([]byte, 4*20))
		return err
	}
	for _, c := range conns {
		if err := hears(c, time.Now().Add(10*time.Second)); err != nil {
			t.Fatalf("from %s without rules: %v", c.RemoteAddr(), err)
		}
	}
	tr.enforce(t)
	for _, c := range conns {
		if err := hears(c, time.Now().Add(10*time.Second)); err != nil {
			t.Errorf("from %s: %v", c.RemoteAddr(), err)
		}
	}
}

func TestConnectionsMadeWhileTheTableWasGoneDie(t *testing.T) {
	t.Parallel()
	tr := newTrio(t, revokePolicy)
	tr.enforce(t)
	tr.add(t, other4, other6)
	others, failed := tr.dial(t, other4, other6)
	if len(failed) > 0 {
		t.Fatalf("not reached, though allowed: %s", failed)
	}
	run(t, "nft", "delete", "table", "inet", "nftfw")
	mine, failed := tr.dial(t, client4, client6)
	if len(failed) > 0 {
		t.Fatalf("not reached without rules: %s", failed)
	}
	restore := func() {
		if _, err := tr.core.check(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		tr.cut(t)
	}
	restore()
	wantDead(t, mine)
	wantAlive(t, others)

	// Those that are cut already stay so when the table goes once more.
	run(t, "nft", "delete", "table", "inet", "nftfw")
	restore()
	wantDead(t, mine)
	wantAlive(t, others)
}

func TestCutsOutliveTheDaemon(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change []string // of the table that stands while there is no daemon
	}{
		{"where its table is as it left it", nil},
		{"where its table has to be made anew", []string{"nft", "add", "counter", "inet", "nftfw", "somebodys"}},
	} {
		t.Run(tt.name, func(t *testing.T) { cutsOutliveTheDaemon(t, tt.change) })
	}
}

func cutsOutliveTheDaemon(t *testing.T, change []string) {
	t.Parallel()
	tr := newTrio(t, revokePolicy)
	tr.enforce(t)
	tr.add(t, client4, client6)
	mine, failed := tr.dial(t, client4, client6)
	if len(failed) > 0 {
		t.Fatalf("not reached, though allowed: %s", failed)
	}
	tr.del(t, client4, client6)

	old := tr.core
	if change != nil {
		run(t, change...)
	}
	tr.core = newCore(old.cfg, old.store, old.kernel)
	tr.core.runtime = old.runtime
	tr.core.setPolicy(old.policy)
	tr.core.engine, tr.core.links = old.engine, old.links
	have := mustObserve(t, tr)
	tr.core.have = have
	tr.core.adoptCuts(have)
	tr.enforce(t)
	wantDead(t, mine)
	if len(tr.core.revoked.cuts) != len(old.revoked.cuts) || len(old.revoked.cuts) == 0 {
		t.Errorf("%d cuts are known after a restart, want %d", len(tr.core.revoked.cuts), len(old.revoked.cuts))
	}
	tr.add(t, client4, client6)
	if _, failed := tr.dial(t, client4, client6); len(failed) > 0 {
		t.Errorf("not reached, though allowed again: %s", failed)
	}
	if len(tr.core.revoked.cuts) > 0 {
		t.Errorf("%d cuts are left of those that are allowed again", len(tr.core.revoked.cuts))
	}
}

// Whoever empties the sets of cut flows lets nobody in again.
func TestCutsThatSomebodyFlushedComeBack(t *testing.T) {
	t.Parallel()
	tr := newTrio(t, revokePolicy)
	tr.enforce(t)
	tr.add(t, client4, client6)
	mine, failed := tr.dial(t, client4, client6)
	if len(failed) > 0 {
		t.Fatalf("not reached, though allowed: %s", failed)
	}
	tr.del(t, client4, client6)
	for _, set := range []string{"cut4", "cut6"} {
		run(t, "nft", "flush", "set", "inet", "nftfw", set)
	}
	if _, err := tr.core.check(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	wantDead(t, mine)
}

// keeper is a kernel that deletes no connections.
type keeper struct{ Kernel }

func (keeper) DeleteFlows(context.Context, []nft.Flow) error { return nil }

// Between the commit and the end of an entry a flow is established, and must
// not get through.
func TestCutsHoldWhileTheEntryIsThere(t *testing.T) {
	t.Parallel()
	tr := newTrio(t, revokePolicy)
	tr.core.kernel = keeper{tr.core.kernel}
	tr.enforce(t)
	tr.add(t, client4, client6)
	mine, failed := tr.dial(t, client4, client6)
	if len(failed) > 0 {
		t.Fatalf("not reached, though allowed: %s", failed)
	}
	tr.del(t, client4, client6)
	wantDead(t, mine)
}

// counter is a kernel that counts how often connections are listed.
type counter struct {
	Kernel
	lists int
}

func (c *counter) Flows(ctx context.Context, take func([]nft.Flow)) error {
	c.lists++
	return c.Kernel.Flows(ctx, take)
}

func TestOnlyNarrowingListsConnections(t *testing.T) {
	t.Parallel()
	tr := newTrio(t, revokePolicy)
	kernel := &counter{Kernel: tr.core.kernel}
	tr.core.kernel = kernel
	tr.enforce(t)
	full := tr.core.engine
	extra := full.Containers[0]
	extra.ID, extra.Name = strings.Repeat("b", 64), "shop-2"
	extra.Endpoints = []inventory.Endpoint{{NetworkID: "n1", Addr4: netip.MustParseAddr("172.17.0.3")}}
	extra.Ports = []inventory.Port{{HostIP: netip.MustParseAddr("0.0.0.0"), HostPort: 7000, ContainerPort: 70, Proto: 6}}
	veth := inventory.Link{Index: 9, Name: "veth9", Kind: "veth"}
	for _, step := range []struct {
		name   string
		change func()
		lists  bool
	}{
		{"nothing", func() {}, false},
		{"a veth comes", func() { tr.core.links = append(slices.Clone(tr.core.links), veth) }, false},
		{"it becomes a port of a bridge", func() {
			port := veth
			port.Master, port.Sandbox = 3, tr.container.path()
			tr.core.links = append(slices.Clone(tr.core.links[:4]), port)
		}, false},
		{"a container starts", func() { tr.core.engine.Containers = append(slices.Clone(full.Containers), extra) }, false},
		{"an address is added", func() { tr.add(t, other4) }, false},
		{"an address is added again for a time", func() {
			if _, err := tr.core.addToSet(t.Context(), "friends", api.SetChange{Entries: []string{other4}, Timeout: time.Hour, Force: true}); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"an address is deleted", func() { tr.del(t, other4) }, true},
		{"the container dies", func() { tr.core.engine = full }, true},
	} {
		kernel.lists = 0
		step.change()
		tr.enforce(t)
		if got := kernel.lists > 0; got != step.lists {
			t.Errorf("%s: connections listed: %v, want %v", step.name, got, step.lists)
		}
	}
}

// Nobody was there to see what ran out before the start.
func TestStartListsConnections(t *testing.T) {
	w := newWorld(t)
	w.policy(openPolicy)
	w.start()
	if c := w.start(); !c.revoked.look {
		t.Error("a start over a table that stands lists no connections")
	}
}

func TestExpiredPermissionCuts(t *testing.T) {
	t.Parallel()
	tr := newTrio(t, revokePolicy)
	tr.enforce(t)
	if !tr.core.nextExpiry().IsZero() {
		t.Error("something expires where nothing is")
	}
	tr.add(t, other4, other6)
	const life = 4 * time.Second
	if _, err := tr.core.addToSet(t.Context(), "friends", api.SetChange{Entries: []string{client4, client6}, Timeout: life, Force: true}); err != nil {
		t.Fatal(err)
	}
	end := tr.core.nextExpiry()
	if left := time.Until(end); left <= 0 || left > life {
		t.Fatalf("the next permission ends in %s, want %s", left, life)
	}
	mine, failed := tr.dial(t, client4, client6)
	others, failedToo := tr.dial(t, other4, other6)
	if failed = append(failed, failedToo...); len(failed) > 0 {
		t.Fatalf("not reached, though allowed: %s", failed)
	}
	// Another entry comes just then.
	<-time.After(time.Until(end) + expiryMargin/4)
	if _, err := tr.core.addToSet(t.Context(), "friends", add("192.0.2.77")); err != nil {
		t.Fatal(err)
	}
	if now := tr.core.nextExpiry(); !now.Equal(end) {
		t.Errorf("the permission that has ended is forgotten: next is %s", now)
	}
	<-time.After(time.Until(end) + expiryMargin)
	tr.core.expire()
	tr.cut(t)
	wantDead(t, mine)
	wantAlive(t, others)
	if !tr.core.nextExpiry().IsZero() {
		t.Error("what has expired expires again")
	}
}

func TestPoliciesThatCutNothing(t *testing.T) {
	for name, line := range map[string]string{"keep": "on_revoke: keep\n", "observe": "mode: observe\n"} {
		t.Run(name, func(t *testing.T) {
			tr := newTrio(t, revokePolicy+line)
			mine, failed := tr.dial(t, client4, client6)
			if len(failed) > 0 {
				t.Fatalf("not reached without rules: %s", failed)
			}
			tr.enforce(t)
			wantAlive(t, mine)
		})
	}
}

// friendsOf makes the contents of a set.
func friendsOf(t testing.TB, addrs ...string) *addrset.Set {
	t.Helper()
	ranges, err := parseEntries(addrs)
	if err != nil {
		t.Fatal(err)
	}
	var entries []addrset.Entry
	for _, r := range ranges {
		entries = append(entries, addrset.Entry{Range: r, Source: addrset.Runtime})
	}
	return addrset.New(entries...)
}

func observed(t *testing.T, tr *trio) *ruleset.Table {
	t.Helper()
	return mustObserve(t, tr).Table()
}

func mustObserve(t *testing.T, tr *trio) *nft.State {
	t.Helper()
	have, err := tr.core.kernel.Observe(context.Background(), "nftfw")
	if err != nil {
		t.Fatal(err)
	}
	return have
}

// After a failure to cut, nobody waits for what is tried again later than anybody waits.
func TestCommandsAfterAFailedCut(t *testing.T) {
	tests := []struct {
		name    string
		again   time.Duration
		warning string
	}{
		{"in a while", withdrawAgain, "list connections: too many open files"},
		{"soon", 300 * time.Millisecond, ""}, // the loop wakes for it by itself
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.policy(openPolicy)
			d := &Daemon{core: w.start(), log: discard}
			d.withdrawals.notTill = time.Now().Add(tt.again)
			d.withdrawals.err = errors.New("list connections: too many open files")
			d.core.revoked.look = true
			client := serving(t, d, w.cfg.Socket)
			began := time.Now()
			out, err := client.AddToSet(t.Context(), "trusted", add("203.0.113.1"))
			w.must(err)
			if took := time.Since(began); took > withdrawWait/2 {
				t.Errorf("answered after %s", took)
			}
			if got := strings.Join(out.Warnings, "\n"); tt.warning == "" != (got == "") || !strings.Contains(got, tt.warning) {
				t.Errorf("warnings %q, want %q", got, tt.warning)
			}
		})
	}
}
