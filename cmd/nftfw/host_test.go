package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nftfw/nftfw/pkg/api"
)

// asProgram makes the test binary be the program itself.
const asProgram = "NFTFW_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// host is a network namespace with a state directory, in which the program is
// run as a process of its own.
type host struct {
	*testing.T
	dir, policy, state, socket string
	ns                         string // path of the namespace
	program                    string // what is run; everybody may
	user                       *syscall.Credential
	env                        []string
}

func newHost(t *testing.T) *host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make a network namespace")
	}
	// Not t.TempDir, into which nobody but root may look, and whose path may
	// be too long for a socket.
	dir, err := os.MkdirTemp("", "nftfw")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	h := &host{
		T: t, dir: dir, ns: newNamespace(t), program: os.Args[0],
		policy: filepath.Join(dir, "policy.yaml"), state: filepath.Join(dir, "state"), socket: filepath.Join(dir, "sock"),
	}
	h.env = []string{
		asProgram + "=1", "PATH=" + os.Getenv("PATH"),
		"NFTFW_POLICY=" + h.policy, "NFTFW_STATE_DIR=" + h.state, "NFTFW_SOCKET=" + h.socket,
		"NFTFW_DOCKER_HOST=unix://" + filepath.Join(dir, "docker.sock"), // nobody is there
	}
	return h
}

// newNamespace makes a network namespace that lasts as long as the test, and
// gives its path.
func newNamespace(t *testing.T) string {
	t.Helper()
	type made struct {
		tid int
		err error
	}
	ready, done := make(chan made), make(chan struct{})
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := syscall.Unshare(syscall.CLONE_NEWNET)
		ready <- made{syscall.Gettid(), err}
		<-done
	}()
	t.Cleanup(func() { close(done) })
	m := <-ready
	if m.err != nil {
		t.Fatalf("unshare: %v", m.err)
	}
	return fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), m.tid)
}

// command makes a process in the namespace of h.
func (h *host) command(name string, args ...string) *exec.Cmd {
	full := []string{"--net=" + h.ns}
	if h.user != nil {
		full = append(full, fmt.Sprintf("--setuid=%d", h.user.Uid), fmt.Sprintf("--setgid=%d", h.user.Gid))
	}
	cmd := exec.CommandContext(h.Context(), "nsenter", append(append(full, "--", name), args...)...)
	cmd.Env = h.env
	return cmd
}

func runCommand(t *testing.T, cmd *exec.Cmd, stdin string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatalf("run %s: %v", cmd, err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// run runs the program.
func (h *host) run(args ...string) result {
	h.Helper()
	return h.feed("", args...)
}

func (h *host) feed(stdin string, args ...string) result {
	h.Helper()
	return runCommand(h.T, h.command(h.program, args...), stdin)
}

// ok runs the program, which has to succeed, and gives its output.
func (h *host) ok(args ...string) string {
	h.Helper()
	r := h.run(args...)
	if r.status != 0 {
		h.Fatalf("nftfw %s: status %d\n%s", strings.Join(args, " "), r.status, r.stderr)
	}
	return r.stdout
}

// expect runs the program and checks how it ends.
func (h *host) expect(args string, status int, stdout, stderr string) result {
	h.Helper()
	r := h.run(strings.Fields(args)...)
	r.expect(h.T, args, status, stdout, stderr)
	return r
}

func (h *host) nft(args ...string) string {
	h.Helper()
	r := runCommand(h.T, h.command("nft", args...), "")
	if r.status != 0 {
		h.Fatalf("nft %s: %s", strings.Join(args, " "), r.stderr)
	}
	return r.stdout
}

// inKernel tells whether the kernel's set holds an address.
func (h *host) inKernel(set, addr string) bool {
	h.Helper()
	return runCommand(h.T, h.command("nft", "get", "element", "inet", "nftfw", set, "{ "+addr+" }"), "").status == 0
}

func (h *host) writePolicy(text string) {
	h.Helper()
	writeFile(h.T, h.policy, text)
}

// jsonOf runs a command with --json and decodes what it prints, whatever its
// exit status.
func jsonOf[T any](h *host, args ...string) T {
	h.Helper()
	var out T
	r := h.run(append(args, "--json")...)
	if err := json.Unmarshal([]byte(r.stdout), &out); err != nil {
		h.Fatalf("nftfw %s --json: status %d, %v\n%s%s", strings.Join(args, " "), r.status, err, r.stdout, r.stderr)
	}
	return out
}

// entries gives the entries of a set as `sets show` does.
func (h *host) entries(set string) map[string]api.Entry {
	h.Helper()
	out := map[string]api.Entry{}
	for _, e := range jsonOf[api.Set](h, "sets", "show", set).Entries {
		out[e.Entry] = e
	}
	return out
}

// running is a daemon.
type running struct {
	cmd  *exec.Cmd
	log  *lockedBuffer
	done chan struct{}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// daemon starts a daemon without Docker and waits until it answers.
func (h *host) daemon(args ...string) *running {
	h.Helper()
	d := &running{log: &lockedBuffer{}, done: make(chan struct{})}
	// nsenter is replaced by the program: it has the same process ID.
	d.cmd = h.command(h.program, append([]string{"run", "--no-docker"}, args...)...)
	d.cmd.Stderr = d.log
	if err := d.cmd.Start(); err != nil {
		h.Fatal(err)
	}
	go func() { defer close(d.done); _ = d.cmd.Wait() }()
	h.Cleanup(func() { d.stop(syscall.SIGKILL) })
	h.await("the daemon to answer", func() bool {
		select {
		case <-d.done:
			h.Fatalf("the daemon ended:\n%s", d.log)
		default:
		}
		ctx, cancel := context.WithTimeout(h.Context(), time.Second)
		defer cancel()
		s, err := api.NewClient(h.socket).Status(ctx)
		return err == nil && s.Daemon.PID == d.cmd.Process.Pid
	})
	return d
}

// stop ends the daemon and gives its exit status.
func (d *running) stop(sig syscall.Signal) int {
	_ = d.cmd.Process.Signal(sig) // it may have ended
	<-d.done
	return d.cmd.ProcessState.ExitCode()
}

// await polls until something is the case.
func (h *host) await(what string, is func() bool) {
	h.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); !is(); <-tick.C {
		if time.Now().After(deadline) {
			h.Fatalf("waited in vain for %s", what)
		}
	}
}
