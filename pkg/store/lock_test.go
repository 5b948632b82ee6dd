package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nftfw/nftfw/pkg/addrset"
)

// childEnv names the state directory for a test that runs as a process of its
// own, see child.
const childEnv = "NFTFW_STORE_TEST_DIR"

// child starts the named test of this binary as another process and waits
// until it has printed a line.
func child(t *testing.T, test string, s *Store) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run=^"+test+"$")
	cmd.Env = append(os.Environ(), childEnv+"="+s.dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cmd.StdinPipe(); err != nil { // stays open until Wait
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the other process said %q, %v", line, err)
	}
	return cmd
}

// inChild returns the Store of a test that child started; otherwise it skips.
func inChild(t *testing.T) *Store {
	t.Helper()
	dir := os.Getenv(childEnv)
	if dir == "" {
		t.Skip("runs as another process of the tests beside it")
	}
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestChildHoldsTheLock(t *testing.T) {
	s := inChild(t)
	unlock, err := s.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	fmt.Fprintln(os.Stdout, "ready")
	_, _ = io.Copy(io.Discard, os.Stdin) // until killed, or the parent is gone
}

// soon is a context for what must not happen: long enough to be tried more
// than once.
func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

func TestLockEndsWithItsProcess(t *testing.T) {
	s := open(t)
	cmd := child(t, "TestChildHoldsTheLock", s)
	if _, err := s.Lock(soon(t)); !errors.Is(err, ErrLocked) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Lock while another process holds it = %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	unlock, err := s.Lock(ctx)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

func TestLockWithinOneProcess(t *testing.T) {
	a := open(t)
	b, err := Open(a.dir)
	if err != nil {
		t.Fatal(err)
	}
	unlock, err := a.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]*Store{"the same Store": a, "another Store": b} {
		if _, err := s.Lock(soon(t)); !errors.Is(err, ErrLocked) {
			t.Errorf("%s: Lock = %v, want ErrLocked", name, err)
		}
	}
	unlock()
	unlock() // allowed, and must not free somebody else's
	unlock, err = b.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if _, err := a.Lock(soon(t)); !errors.Is(err, ErrLocked) {
		t.Errorf("Lock = %v, want ErrLocked", err)
	}
}

// TestLockOutlivesItsUnlock holds the lock as a daemon does, for life, without
// a thought for unlock: the garbage collector must not free it.
func TestLockOutlivesItsUnlock(t *testing.T) {
	s := open(t)
	if _, err := s.Lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		runtime.GC()
		if _, err := s.Lock(soon(t)); !errors.Is(err, ErrLocked) {
			t.Fatalf("Lock = %v, want ErrLocked", err)
		}
	}
	runtime.KeepAlive(s)
}

func TestLockIsInterrupted(t *testing.T) {
	s := open(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("the user pressed ^C")
	cancel(why)
	unlock, err := s.Lock(ctx)
	if err != nil {
		t.Fatalf("one attempt with a context that is done: %v", err)
	}
	defer unlock()
	if _, err := s.Lock(ctx); !errors.Is(err, ErrLocked) || !errors.Is(err, why) {
		t.Errorf("Lock = %v, want ErrLocked and the cause", err)
	}
}

func TestLockFileRemovedWhileOpen(t *testing.T) {
	s := open(t)
	path := s.path(lockFile)
	f, err := tryLock(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := stillAt(f, path); err != nil {
		t.Errorf("stillAt = %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := stillAt(f, path); err == nil {
		t.Error("stillAt sees nothing wrong with a removed file")
	}
	write(t, path, "")
	if err := stillAt(f, path); err == nil {
		t.Error("stillAt sees nothing wrong with another file")
	}
}

func TestLockNeedsItsFile(t *testing.T) {
	s := open(t)
	if err := os.Mkdir(s.path(lockFile), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Lock(t.Context()); err == nil || errors.Is(err, ErrLocked) {
		t.Errorf("Lock = %v, want an error at once, and not ErrLocked", err)
	}
}

func TestLockSweepsWhatKilledProcessesLeft(t *testing.T) {
	s := open(t)
	for _, name := range []string{".sets.json.tmp-123", ".policy.yaml.tmp-9.old", "notes.tmp-1"} {
		write(t, s.path(name), "x")
	}
	unlock, err := s.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if diff := cmp.Diff([]string{"lock", "notes.tmp-1"}, files(t, s)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

func TestFiftyChangesAtOnce(t *testing.T) {
	dir := open(t).dir
	add := func(i int) error {
		s, err := Open(dir)
		if err != nil {
			return err
		}
		unlock, err := s.Lock(t.Context())
		if err != nil {
			return err
		}
		defer unlock()
		sets, err := s.LoadSets()
		if err != nil {
			return err
		}
		sets["trusted"] = sets["trusted"].Add(entry(t, fmt.Sprintf("192.0.2.%d", i)))
		return s.SaveSets(sets)
	}
	var wg sync.WaitGroup
	want := addrset.New()
	for i := range 50 {
		want = want.Add(entry(t, fmt.Sprintf("192.0.2.%d", i)))
		wg.Go(func() {
			if err := add(i); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.LoadSets()
	if err != nil {
		t.Fatal(err)
	}
	checkSets(t, map[string]*addrset.Set{"trusted": want}, got)
}

// TestChildSaves saves sets of 1, 2, 3 … entries until it is killed.
func TestChildSaves(t *testing.T) {
	s := inChild(t)
	unlock, err := s.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	var set *addrset.Set
	for i := range 256 * 256 {
		set = set.Add(entry(t, fmt.Sprintf("10.0.%d.%d", i/256, i%256)))
		if err := s.SaveSets(map[string]*addrset.Set{"trusted": set}); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			fmt.Fprintln(os.Stdout, "ready")
		}
	}
}

func TestKilledWhileSaving(t *testing.T) {
	for i := range 5 {
		s := open(t)
		cmd := child(t, "TestChildSaves", s)
		// Reading goes on all the while, and must never see half a file.
		var before map[string]*addrset.Set
		for deadline := time.Now().Add(10 * time.Second); before["trusted"].Len() <= 5*i; {
			var err error
			if before, err = s.LoadSets(); err != nil {
				t.Fatalf("while another process saves: %v", err)
			}
			if time.Now().After(deadline) {
				t.Fatal("the other process does not come on")
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		unlock, err := s.Lock(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		after, err := s.LoadSets()
		if err != nil {
			t.Fatal(err)
		}
		if n := after["trusted"].Len(); n < before["trusted"].Len() {
			t.Errorf("%d entries, there were %d before", n, before["trusted"].Len())
		}
		for _, name := range files(t, s) {
			if name != "lock" && name != "sets.json" && name != "sets.json.prev" {
				t.Errorf("%s was left behind", name)
			}
		}
		unlock()
	}
}
