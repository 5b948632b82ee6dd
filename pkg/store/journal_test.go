package store

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nftfw/nftfw/pkg/addrset"
)

// changed applies small changes, each of which must be on the disk at once for
// whoever loads, and gives what there is in the end.
func changed(t *testing.T, s *Store, n int) map[string]*addrset.Set {
	t.Helper()
	now := sets(t, "192.0.2.1", "192.0.2.2")
	for range 2 { // the second has one to fall back to
		if err := s.SaveSets(now); err != nil {
			t.Fatal(err)
		}
	}
	for i := range n {
		e := entry(t, fmt.Sprintf("198.51.100.%d", i))
		e.Comment = "a \"quoted\"\nline"
		e.Expires = epoch.Add(time.Duration(i) * time.Minute)
		c := Change{Set: "trusted", Add: []addrset.Entry{e}}
		if i%3 == 2 {
			c.Delete = []addrset.Range{entry(t, fmt.Sprintf("198.51.100.%d", i-1)).Range}
		}
		now = map[string]*addrset.Set{"trusted": now["trusted"].Delete(addrset.Runtime, c.Delete...).Add(c.Add...)}
		if err := s.SaveChange(c, now); err != nil {
			t.Fatal(err)
		}
		load(t, s.dir, now)
	}
	return now
}

// load reads the directory as another process does.
func load(t *testing.T, dir string, want map[string]*addrset.Set) *Store {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.LoadSets()
	if err != nil {
		t.Fatal(err)
	}
	checkSets(t, want, got)
	return s
}

func size(t *testing.T, s *Store, name string) int64 {
	t.Helper()
	info, err := os.Stat(s.path(name))
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

func TestSmallChangesAreAppended(t *testing.T) {
	s := open(t)
	before := changed(t, s, 0)
	whole := size(t, s, setsFile)
	want := changed(t, s, 10)
	if got := size(t, s, setsFile); got != whole {
		t.Errorf("the sets file has %d bytes after small changes, %d before", got, whole)
	}
	// A process that loads goes on where the log ends.
	next := load(t, s.dir, want)
	c := Change{Set: "blocked", Add: []addrset.Entry{entry(t, "2001:db8::/32")}}
	want["blocked"] = addrset.New(c.Add...)
	if err := next.SaveChange(c, want); err != nil {
		t.Fatal(err)
	}
	load(t, s.dir, want)
	// One that has not loaded does not know it, and writes all.
	blind, err := Open(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := blind.SaveChange(Change{Set: "trusted"}, before); err != nil {
		t.Fatal(err)
	}
	load(t, s.dir, before)
	// So is a change of many entries, and the log of before has no say any more.
	if err := blind.SaveChange(Change{Set: "trusted", Add: make([]addrset.Entry, logMost+1)}, want); err != nil {
		t.Fatal(err)
	}
	load(t, s.dir, want)
}

func TestLogDoesNotGrowForEver(t *testing.T) {
	s := open(t)
	now := sets(t, "192.0.2.1")
	if err := s.SaveSets(now); err != nil {
		t.Fatal(err)
	}
	e := entry(t, "192.0.2.2")
	e.Comment = strings.Repeat("x", 4000)
	now["trusted"] = now["trusted"].Add(e)
	s.sync = func(*os.File) error { return nil }
	for range 3 * logLeast / 4000 {
		if err := s.SaveChange(Change{Set: "trusted", Add: []addrset.Entry{e}}, now); err != nil {
			t.Fatal(err)
		}
	}
	if got := size(t, s, logFile); got > logLeast+5000 {
		t.Errorf("the log has %d bytes", got)
	}
	load(t, s.dir, now)
}

func TestLogCutShortOrDamaged(t *testing.T) {
	s := open(t)
	want := changed(t, s, 4)
	path := s.path(logFile)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(text, []byte("\n"))
	last := len(text) - len(lines[len(lines)-2])
	former := map[string]*addrset.Set{"trusted": want["trusted"].Delete(addrset.Runtime, entry(t, "198.51.100.3").Range)}
	for cut := last; cut < len(text); cut++ { // wherever a crash cuts the last line
		if err := os.WriteFile(path, text[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		load(t, s.dir, former)
	}
	// What is appended next does not stand behind the rest of that line.
	next := load(t, s.dir, former)
	e := entry(t, "198.51.100.3")
	e.Comment, e.Expires = "a \"quoted\"\nline", epoch.Add(3*time.Minute)
	if err := next.SaveChange(Change{Set: "trusted", Add: []addrset.Entry{e}}, want); err != nil {
		t.Fatal(err)
	}
	load(t, s.dir, want)

	bad := bytes.Clone(text)
	bad[len(lines[0])+len(lines[1])+20] ^= 1 // in the second change
	if err := os.WriteFile(path, bad, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err = Open(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.LoadSets()
	var damage *DamagedError
	if !errors.As(err, &damage) || damage.File != path || damage.Fallback == "" || got["trusted"].Len() != 3 {
		t.Fatalf("LoadSets = %d entries, %v", got["trusted"].Len(), err)
	}
	if err := s.SaveChange(Change{Set: "trusted", Add: []addrset.Entry{e}}, want); err != nil {
		t.Fatal(err)
	}
	load(t, s.dir, want)
}

// What damages the head of a log, or what it belongs to, is told: the changes in it
// were acknowledged.
func TestLogThatDoesNotFit(t *testing.T) {
	alter := func(name, from, to string) func(*Store) error {
		return func(s *Store) error {
			text, err := os.ReadFile(s.path(name))
			if err != nil {
				return err
			}
			other := bytes.Replace(text, []byte(from), []byte(to), 1)
			if bytes.Equal(other, text) {
				return fmt.Errorf("no %q in %s", from, text)
			}
			return os.WriteFile(s.path(name), other, 0o600)
		}
	}
	for _, tt := range []struct {
		name   string
		damage func(*Store) error
		file   string // that is named
	}{
		{"an empty log", func(s *Store) error { return os.Truncate(s.path(logFile), 0) }, logFile},
		{"half of the first line", func(s *Store) error { return os.Truncate(s.path(logFile), 20) }, logFile},
		{"a first line without a checksum", alter(logFile, `"of"`, `"on"`), logFile},
		{"a folder in place of the log", func(s *Store) error {
			return errors.Join(os.Remove(s.path(logFile)), os.Mkdir(s.path(logFile), 0o700))
		}, logFile},
		{"sets that were altered", alter(setsFile, "203.0.113.1", "203.0.113.3"), logFile},
		{"a log alone", func(s *Store) error {
			return errors.Join(os.Remove(s.path(setsFile)), os.Remove(s.path(setsPrevFile)))
		}, setsFile},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t)
			for range 2 { // so that there is one before it
				if err := s.SaveSets(sets(t, "203.0.113.1")); err != nil {
					t.Fatal(err)
				}
			}
			added := Change{Set: "trusted", Add: []addrset.Entry{entry(t, "203.0.113.2")}}
			if err := s.SaveChange(added, sets(t, "203.0.113.1", "203.0.113.2")); err != nil {
				t.Fatal(err)
			}
			if err := tt.damage(s); err != nil {
				t.Fatal(err)
			}
			other, err := Open(s.dir)
			if err != nil {
				t.Fatal(err)
			}
			_, err = other.LoadSets()
			var damage *DamagedError
			if !errors.As(err, &damage) || damage.File != s.path(tt.file) {
				t.Fatalf("LoadSets = %v, want damage of %s", err, tt.file)
			}
		})
	}
}

func TestFormerSaveHasItsLog(t *testing.T) {
	s := open(t)
	want := changed(t, s, 5)
	if err := s.SaveSets(sets(t, "203.0.113.1")); err != nil {
		t.Fatal(err)
	}
	for _, later := range []func() error{
		func() error { return nil },
		func() error {
			e := entry(t, "203.0.113.2")
			want["trusted"] = want["trusted"].Add(e) // the change since is known
			return s.SaveChange(Change{Set: "trusted", Add: []addrset.Entry{e}}, sets(t, "203.0.113.1", "203.0.113.2"))
		},
	} {
		if err := later(); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(s.path(setsFile))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(s.path(setsFile), text[:len(text)/2], 0o600); err != nil {
			t.Fatal(err)
		}
		other, err := Open(s.dir)
		if err != nil {
			t.Fatal(err)
		}
		got, err := other.LoadSets()
		var damage *DamagedError
		if !errors.As(err, &damage) || damage.Fallback == "" {
			t.Fatalf("LoadSets = %v", err)
		}
		checkSets(t, want, got)
		if err := os.WriteFile(s.path(setsFile), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAppendFails(t *testing.T) {
	s := open(t)
	want := changed(t, s, 2)
	e := entry(t, "203.0.113.7")
	full := map[string]*addrset.Set{"trusted": want["trusted"].Add(e)}
	s.sync = func(*os.File) error { return errors.New("no") }
	if err := s.SaveChange(Change{Set: "trusted", Add: []addrset.Entry{e}}, full); err == nil {
		t.Fatal("saved without a disk")
	}
	load(t, s.dir, want)
	s.sync = (*os.File).Sync
	if err := s.SaveChange(Change{Set: "trusted", Add: []addrset.Entry{e}}, full); err != nil {
		t.Fatal(err)
	}
	load(t, s.dir, full)
	// What the disk made of the log is not known, so that all was written anew.
	if !strings.Contains(read(t, s.path(setsFile)), "203.0.113.7") {
		t.Error("appended to a log that could not be written")
	}
}

// Of a longer line that a crash cut short nothing stays behind the next one.
func TestAppendOverWhatACrashLeft(t *testing.T) {
	s := open(t)
	want := changed(t, s, 2)
	path := s.path(logFile)
	text := read(t, path)
	write(t, path, text+strings.Repeat("left", 1000))
	next := load(t, s.dir, want)
	e := entry(t, "203.0.113.7")
	want = map[string]*addrset.Set{"trusted": want["trusted"].Add(e)}
	if err := next.SaveChange(Change{Set: "trusted", Add: []addrset.Entry{e}}, want); err != nil {
		t.Fatal(err)
	}
	if got := read(t, path); !strings.HasPrefix(got, text) || strings.Contains(got, "left") {
		t.Errorf("log:\n%s", got)
	}
	load(t, s.dir, want)
}

// Whoever reads without the lock finds all that was acknowledged before.
func TestReadersNeedNoLock(t *testing.T) {
	s := open(t)
	s.sync = func(*os.File) error { return nil } // more saves in less time
	var acknowledged atomic.Int64
	written := make(chan error)
	go func() {
		var now *addrset.Set
		for i := range 2000 {
			a := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
			e := addrset.Entry{Range: addrset.Range{From: a, To: a}, Source: addrset.Runtime}
			now = now.Add(e)
			save := func(all map[string]*addrset.Set) error {
				return s.SaveChange(Change{Set: "a", Add: []addrset.Entry{e}}, all)
			}
			if i%10 == 0 {
				save = s.SaveSets // as where the log has grown
			}
			if err := save(map[string]*addrset.Set{"a": now}); err != nil {
				written <- err
				return
			}
			acknowledged.Store(int64(i + 1))
		}
		written <- nil
	}()
	for {
		select {
		case err := <-written:
			if err != nil {
				t.Error(err)
			}
			return
		default:
		}
		before := acknowledged.Load()
		reader, err := Open(s.dir)
		if err != nil {
			t.Fatal(err)
		}
		got, err := reader.LoadSets()
		if err != nil || int64(got["a"].Len()) < before {
			t.Fatalf("%d entries and %v, where %d were acknowledged", got["a"].Len(), err, before)
		}
	}
}

// A log that only a newer version can read is not thrown away.
func TestLogOfANewerVersion(t *testing.T) {
	s := open(t)
	now := changed(t, s, 3)
	log := s.path(logFile)
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	newer := bytes.Replace(text, []byte(`"version":1`), []byte(`"version":2`), 1)
	if err := os.WriteFile(log, newer, 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := s.LoadSets()
	var damage *DamagedError
	if !errors.As(err, &damage) || !damage.Newer() || damage.Fallback != "" || got != nil {
		t.Fatalf("LoadSets = %v, %v", got, err)
	}
	if err := s.SaveSets(now); err != nil {
		t.Fatal(err)
	}
	if kept, err := os.ReadFile(s.path(logBadFile)); err != nil || !bytes.Equal(kept, newer) {
		t.Errorf("kept %q, %v", kept, err)
	}
}
