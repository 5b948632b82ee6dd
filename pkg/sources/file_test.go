package sources

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/sources/spec"
)

// follower collects what a source tells.
type follower struct {
	*testing.T
	mu      sync.Mutex
	entries *addrset.Set
	last    Update
	told    int // updates
	wholes  int // updates with all entries
	errs    int // updates with an error
	resume  json.RawMessage
	// revision is the newest that was told of.
	revision int64
	stop     func()
}

// follow follows a source until the test ends or stop is called.
func follow(t *testing.T, r Reader, s spec.Source, last Last) *follower {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	f := &follower{T: t, entries: last.Entries}
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.Follow(ctx, s, last, f.take)
	}()
	f.stop = func() {
		cancel()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			t.Error("Follow does not end")
		}
	}
	t.Cleanup(f.stop)
	return f
}

func (f *follower) take(u Update) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last = u
	f.told++
	if u.Err != nil {
		f.errs++
		return
	}
	f.revision = max(f.revision, u.Revision)
	if u.Resume != nil {
		f.resume = u.Resume
	}
	if u.Whole {
		f.wholes++
		f.entries = addrset.New(u.Add...)
		return
	}
	for _, e := range f.entries.Entries() {
		if slices.Contains(u.Del, e.Range) {
			f.entries = f.entries.Delete(e.Source, e.Range)
		}
	}
	f.entries = f.entries.Add(u.Add...)
}

func (f *follower) texts() []string {
	out := []string{}
	for _, e := range f.entries.Entries() {
		out = append(out, e.Range.String())
	}
	return out
}

// until waits until the entries are want and the last error speaks of failure
// ("" for none).
func (f *follower) until(failure string, want ...string) {
	f.Helper()
	f.wait(func() bool {
		ok := f.told > 0 && slices.Equal(f.texts(), append([]string{}, want...))
		if failure == "" {
			return ok && f.last.Err == nil
		}
		return ok && f.last.Err != nil && strings.Contains(f.last.Err.Error(), failure)
	}, func() string {
		return strings.Join(want, " ") + ", and error " + failure
	})
}

// wait waits until ok, which is asked under the lock.
func (f *follower) wait(ok func() bool, what func() string) {
	f.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		f.mu.Lock()
		done, have, err := ok(), f.texts(), f.last.Err
		f.mu.Unlock()
		if done {
			return
		}
		if time.Now().After(deadline) {
			f.Fatalf("entries %q, error %v; want %s", have, err, what())
		}
		<-time.After(5 * time.Millisecond)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func fileSource(path string) spec.Source { return spec.Source{File: &spec.File{Path: path}} }

func TestFileIsFollowed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "list")
	f := follow(t, Reader{}, fileSource(path), Last{})
	f.until("does not exist")

	write(t, path, "\ufeff# mine\n192.0.2.1 # one\n\n 198.51.100.0/24 ; two\r\n2001:db8::1-2001:db8::9")
	f.until("", "192.0.2.1", "198.51.100.0/24", "2001:db8::1-2001:db8::9")
	for _, e := range f.entries.Entries() {
		if e.Origin != path || e.Source != addrset.Source("file:"+path) || e.Comment != "" || !e.Expires.IsZero() {
			t.Errorf("entry %+v, want it from %s", e, path)
		}
	}

	// As an editor does it: a new file takes the place of the old one.
	write(t, path+".new", "192.0.2.2\n")
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	f.until("", "192.0.2.2")

	write(t, path, "192.0.2.3\n192.0.2.300\n")
	f.until(path+":2:", "192.0.2.2")
	write(t, path, "192.0.2.3\n")
	f.until("", "192.0.2.3")

	// As vim does it: the old file moves away first.
	if err := os.Rename(path, path+"~"); err != nil {
		t.Fatal(err)
	}
	f.until("does not exist", "192.0.2.3")
	write(t, path, "192.0.2.4\n")
	f.until("", "192.0.2.4")
	write(t, path, "# nobody\n")
	f.until("")
}

func TestFolderIsFollowed(t *testing.T) {
	t.Parallel()
	top := t.TempDir()
	dir := filepath.Join(top, "a", "blocked.d")
	f := follow(t, Reader{}, fileSource(dir), Last{})
	f.until("does not exist")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	f.until("")
	write(t, filepath.Join(dir, "one"), "192.0.2.1\n")
	f.until("", "192.0.2.1")
	write(t, filepath.Join(dir, "two.txt"), "192.0.2.2\n192.0.2.1\n")
	f.until("", "192.0.2.1", "192.0.2.2")
	for _, name := range []string{".two.swp", "two~", "#two#"} {
		write(t, filepath.Join(dir, name), "192.0.2.9\n")
	}
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "one")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "two.txt"), "192.0.2.2\n")
	f.until("", "192.0.2.2")

	t.Log("a folder that is replaced")
	if err := os.Rename(dir, dir+".old"); err != nil {
		t.Fatal(err)
	}
	f.until("does not exist", "192.0.2.2")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "three"), "192.0.2.3\n")
	f.until("", "192.0.2.3")
	write(t, filepath.Join(dir, "three"), "192.0.2.4\n")
	f.until("", "192.0.2.4")
}

// A list that is being written in its place takes nobody out before it is done:
// `command > list` empties it first.
func TestFileIsHalfWritten(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "list")
	write(t, path, "192.0.2.1\n192.0.2.2\n192.0.2.3\n")
	f := follow(t, Reader{}, fileSource(path), Last{})
	f.until("", "192.0.2.1", "192.0.2.2", "192.0.2.3")
	stays := func(d time.Duration) {
		t.Helper()
		<-time.After(d)
		f.until("", "192.0.2.1", "192.0.2.2", "192.0.2.3")
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.wholes != 1 {
			t.Errorf("%d lists were taken", f.wholes)
		}
	}
	begun := time.Now()
	write(t, path, "")
	stays(rested / 2)
	write(t, path, "192.0.2.1\n192.0.2.2\n192.0.2.4\n192.0.2.")
	stays(rested / 4)
	write(t, path, "192.0.2.1\n192.0.2.2\n192.0.2.3\n192.0.2.4")
	stays(rested / 2)
	if time.Since(begun) < rested {
		t.Fatal("the test is too quick")
	}
	t.Log("what only comes is taken at once")
	begun = time.Now()
	write(t, path, "192.0.2.1\n192.0.2.2\n192.0.2.3\n192.0.2.44\n")
	f.until("", "192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.44")
	at := func(what string, ok bool) {
		t.Helper()
		if !ok {
			t.Errorf("%s after %s", what, time.Since(begun))
		}
	}
	at("more entries", time.Since(begun) < rested)

	t.Log("and a file that takes the place of another")
	write(t, path+".new", "192.0.2.4\n192.0.2.5")
	begun = time.Now()
	must(t, os.Rename(path+".new", path))
	f.until("", "192.0.2.4", "192.0.2.5")
	at("replaced", time.Since(begun) < rested)

	t.Log("an empty one is believed once it rests and is closed")
	writer, err := os.Create(path)
	must(t, err)
	begun = time.Now()
	f.until("is being written to", "192.0.2.4", "192.0.2.5")
	must(t, writer.Close())
	f.until("")
	at("closed", time.Since(begun) > rested)
}

// What happens beside a file is no reason to read it.
func TestFilesBesideAreNotRead(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "list")
	write(t, path, "192.0.2.1\n")
	f := follow(t, Reader{}, fileSource(path), Last{})
	f.until("", "192.0.2.1")
	for range 5 {
		write(t, path+".beside", "192.0.2.2\n")
		<-time.After(2 * settle)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.told != 1 {
		t.Errorf("told %d times", f.told)
	}
}

// Docker configs and Kubernetes' volumes are links that are moved over.
func TestLinksAreFollowed(t *testing.T) {
	t.Parallel()
	top := t.TempDir()
	target, link := filepath.Join(top, "there", "real"), filepath.Join(top, "link")
	if err := os.Mkdir(filepath.Dir(target), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, target, "192.0.2.1\n")
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	f := follow(t, Reader{}, fileSource(link), Last{})
	f.until("", "192.0.2.1")
	write(t, target, "192.0.2.2\n")
	f.until("", "192.0.2.2")
	write(t, filepath.Join(top, "other"), "192.0.2.3\n")
	if err := os.Symlink(filepath.Join(top, "other"), link+".new"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(link+".new", link); err != nil {
		t.Fatal(err)
	}
	f.until("", "192.0.2.3")
}

func TestFilesThatAreRefused(t *testing.T) {
	for _, test := range []struct {
		name string
		make func(path string) error
		want string
	}{
		{"written by everybody", func(path string) error {
			if err := os.WriteFile(path, []byte("192.0.2.1\n"), 0o600); err != nil {
				return err
			}
			return os.Chmod(path, 0o606)
		}, "chmod o-w"},
		{"no text", func(path string) error { return os.WriteFile(path, make([]byte, maxLine+1), 0o600) }, "no list"},
		{"no addresses", func(path string) error { return os.WriteFile(path, []byte("<html>\n"), 0o600) }, ":1:"},
		{"a link that leads nowhere", func(path string) error { return os.Symlink("nowhere", path) }, "does not exist"},
		{"a pipe", func(path string) error { return mkfifo(path) }, "no file of lines"},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "list")
			if err := test.make(path); err != nil {
				t.Fatal(err)
			}
			follow(t, Reader{}, fileSource(path), Last{}).until(test.want)
		})
	}
}

func mkfifo(path string) error { return syscall.Mkfifo(path, 0o600) }
