package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nftfw/nftfw/nft"
	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/inventory"
	"github.com/nftfw/nftfw/pkg/store"
)

// faultyKernel is the kernel of the test's namespace, which refuses on demand.
type faultyKernel struct {
	Kernel
	refuse  []error // of the next commits, in their order; nil lets one through
	blind   []error // of the next observations
	commits int     // that went through
}

func (k *faultyKernel) Commit(ctx context.Context, p nft.Plan) error {
	if err := take(&k.refuse); err != nil {
		return err
	}
	k.commits++
	return k.Kernel.Commit(ctx, p)
}

func (k *faultyKernel) Observe(ctx context.Context, table string) (*nft.State, error) {
	if err := take(&k.blind); err != nil {
		return nil, err
	}
	return k.Kernel.Observe(ctx, table)
}

func (k *faultyKernel) Survey(ctx context.Context, table string) (*nft.State, error) {
	if err := take(&k.blind); err != nil {
		return nil, err
	}
	return k.Kernel.Survey(ctx, table)
}

func take(queue *[]error) error {
	if len(*queue) == 0 {
		return nil
	}
	err := (*queue)[0]
	*queue = (*queue)[1:]
	return err
}

// errRefused is what the kernel says when it has no memory left.
var errRefused = &nft.CommitError{Op: "send batch", Table: "nftfw", Errno: unix.ENOMEM}

// world is a host of its own: a network namespace and a state directory.
type world struct {
	*testing.T
	ns     *os.File
	cfg    Config
	kernel *faultyKernel
	log    *logBuffer
	now    time.Time // of cores; zero is the real time
	proc   string    // of cores; "" is a host without sshd
}

// newWorld puts the calling test into a network namespace of its own. The
// thread is never unlocked, so that it dies with the test.
func newWorld(t *testing.T) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make a network namespace")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("unshare: %v", err)
	}
	ns, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	k, err := nft.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	dir := t.TempDir()
	w := &world{T: t, ns: ns, kernel: &faultyKernel{Kernel: k}, log: &logBuffer{}, proc: t.TempDir()}
	w.cfg = Config{
		PolicyPath: filepath.Join(dir, "policy.yaml"), StateDir: filepath.Join(dir, "state"),
		Socket: filepath.Join(dir, "sock"), NoDocker: true, Table: "nftfw", Version: "test",
		Log: slog.New(slog.NewTextHandler(w.log, nil)),
	}
	return w
}

// run runs a subtest in the namespace of w: it has a thread of its own.
func (w *world) run(name string, f func(w *world)) {
	w.T.Run(name, func(t *testing.T) {
		runtime.LockOSThread()
		if err := unix.Setns(int(w.ns.Fd()), unix.CLONE_NEWNET); err != nil {
			t.Fatalf("setns: %v", err)
		}
		inner := *w
		inner.T = t
		f(&inner)
	})
}

// inside tells whether the calling thread is in the namespace of w.
func (w *world) inside() bool {
	var ours, here unix.Stat_t
	return unix.Fstat(int(w.ns.Fd()), &ours) == nil && unix.Stat("/proc/thread-self/ns/net", &here) == nil && ours.Ino == here.Ino
}

// logBuffer may be written to and read by several goroutines.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// policy writes the policy file.
func (w *world) policy(text string) {
	w.Helper()
	w.write(w.cfg.PolicyPath, text)
}

func (w *world) write(path, text string) {
	w.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		w.Fatal(err)
	}
}

// fresh makes a core as a process that has just begun has it.
func (w *world) fresh() *core {
	w.Helper()
	w.must(os.MkdirAll(w.cfg.StateDir, 0o700)) // whoever locks it does
	st, err := store.Open(w.cfg.StateDir)
	if err != nil {
		w.Fatal(err)
	}
	c := newCore(w.cfg, st, w.kernel)
	c.host = fakeHost(w.proc)
	if !w.now.IsZero() {
		c.now = func() time.Time { return w.now }
	}
	return c
}

// start makes a core that enforces, as a daemon that was just started has it.
func (w *world) start() *core {
	w.Helper()
	c := w.fresh()
	if err := errors.Join(c.load(w.Context()), c.start(w.Context())); err != nil {
		w.Fatalf("start: %v", err)
	}
	return c
}

func (w *world) nft(args ...string) string {
	w.Helper()
	if !w.inside() {
		w.Fatal("nft would run outside the namespace of the test")
	}
	out, err := exec.CommandContext(w.Context(), "nft", args...).CombinedOutput()
	if err != nil {
		w.Fatalf("nft %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

var counters = regexp.MustCompile(`packets \d+ bytes \d+`)

// listing is all that the namespace's kernel holds, counters aside.
func (w *world) listing() string {
	w.Helper()
	return counters.ReplaceAllString(w.nft("list", "ruleset"), "")
}

// saved gives the entries of a set that are on disk.
func (w *world) saved(set string) []string {
	w.Helper()
	st, err := store.Open(w.cfg.StateDir)
	if err != nil {
		w.Fatal(err)
	}
	sets, err := st.LoadSets()
	if err != nil {
		w.Fatal(err)
	}
	return texts(sets[set])
}

// savedPolicy gives the last good policy that is on disk, "none" for none.
func (w *world) savedPolicy() string {
	w.Helper()
	st, err := store.Open(w.cfg.StateDir)
	if err != nil {
		w.Fatal(err)
	}
	text, _, err := st.LoadPolicy()
	if errors.Is(err, os.ErrNotExist) {
		return "none"
	}
	if err != nil {
		w.Fatal(err)
	}
	return string(text)
}

func texts(s *addrset.Set) []string {
	out := []string{}
	for _, e := range s.Entries() {
		out = append(out, e.Range.String())
	}
	return out
}

// inKernel tells whether the kernel's set holds an address.
func (w *world) inKernel(set, addr string) bool {
	w.Helper()
	if !w.inside() {
		w.Fatal("nft would run outside the namespace of the test")
	}
	cmd := exec.CommandContext(w.Context(), "nft", "get", "element", "inet", "nftfw", set, fmt.Sprintf("{ %s }", addr))
	out, err := cmd.CombinedOutput()
	if err != nil && !strings.Contains(string(out), "No such file") && !strings.Contains(string(out), "not exist") {
		w.Fatalf("%v: %s", err, out)
	}
	return err == nil
}

// mustFail checks that an error came that speaks of want.
func (w *world) mustFail(err error, want ...string) {
	w.Helper()
	if err == nil {
		w.Fatalf("no error, want one with %q", want)
	}
	for _, text := range want {
		if !strings.Contains(err.Error(), text) {
			w.Errorf("error %q does not speak of %q", err, text)
		}
	}
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// docker is an engine's answer: containers on docker0, each with port 80
// published as 8080 and up, open to any.
func docker(names ...string) inventory.Snapshot {
	inv := inventory.Snapshot{
		Engine:   inventory.EngineListed,
		Networks: []inventory.Network{{ID: "n", Name: "bridge", Driver: "bridge", Bridge: "docker0"}},
	}
	for i, name := range names {
		inv.Containers = append(inv.Containers, inventory.Container{
			ID: strings.Repeat(name, 64)[:64], Name: name, Image: name, NetworkMode: "bridge",
			Labels:    map[string]string{"nftfw.expose": "any"},
			Endpoints: []inventory.Endpoint{{NetworkID: "n", Addr4: netip.AddrFrom4([4]byte{172, 17, 0, byte(2 + i)})}},
			Ports: []inventory.Port{{
				HostIP: netip.IPv4Unspecified(), HostPort: uint16(8080 + i), ContainerPort: 80, Proto: protoTCP,
			}},
		})
	}
	return inv
}

// dockerLinks are the links beside docker0 with one container in it.
func dockerLinks() []inventory.Link {
	return []inventory.Link{
		{Index: 1, Name: "lo"},
		{Index: 2, Name: "eth0"},
		{Index: 3, Name: "docker0", Kind: "bridge"},
		{Index: 4, Name: "veth1", Kind: "veth", Master: 3, Sandbox: "/run/docker/netns/1"},
	}
}

var discard = slog.New(slog.DiscardHandler)
