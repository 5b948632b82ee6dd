package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func open(t testing.TB) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.makeDir(); err != nil {
		t.Fatal(err)
	}
	return s
}

// files lists the state directory.
func files(t testing.TB, s *Store) []string {
	t.Helper()
	list, err := os.ReadDir(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range list {
		names = append(names, f.Name())
	}
	slices.Sort(names)
	return names
}

func read(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Whoever only reads leaves no directory behind.
func TestOpenMakesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if sets, err := s.LoadSets(); err != nil || len(sets) > 0 {
		t.Errorf("LoadSets = %v, %v", sets, err)
	}
	if lists, err := s.LoadLists(); err != nil || len(lists) > 0 {
		t.Errorf("LoadLists = %v, %v", lists, err)
	}
	_, _, noPolicy := s.LoadPolicy()
	_, noSnapshot := s.LoadSnapshot()
	if !errors.Is(noPolicy, fs.ErrNotExist) || !errors.Is(noSnapshot, fs.ErrNotExist) || s.Down() {
		t.Errorf("LoadPolicy = %v, LoadSnapshot = %v, Down = %v", noPolicy, noSnapshot, s.Down())
	}
	if _, err := os.Stat(filepath.Dir(dir)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory was made: %v", err)
	}
}

func TestLockMakesTheDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time it is there
		unlock, err := s.Lock(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		unlock()
		info, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != fs.ModeDir|0o700 {
			t.Errorf("mode %v, want drwx------", info.Mode())
		}
	}
	// One that appeared meanwhile is looked at as well.
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Lock(t.Context()); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("Lock = %v, want an error that names %s", err, dir)
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Run("a file", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "state")
		write(t, path, "")
		if _, err := Open(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("Open = %v, want an error that names %s", err, path)
		}
	})
	t.Run("a directory for everybody", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("Open = %v, want an error that names %s", err, dir)
		}
	})
}

func TestFilesAreForTheirOwnerOnly(t *testing.T) {
	s := open(t)
	unlock, err := s.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	err = errors.Join(
		s.SaveSets(sets(t, "192.0.2.1")), s.SaveSets(sets(t, "192.0.2.2")), s.SavePolicy("p", []byte("x")),
		s.SaveSnapshot([]byte("{}")), s.SavePending([]byte("{}")), s.SetDown(true))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"down", "lock", "pending.json", "policy.yaml", "sets.json", "sets.json.prev", "snapshot.json"}
	if diff := cmp.Diff(want, files(t, s)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	for _, name := range files(t, s) {
		info, err := os.Stat(s.path(name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != 0o600 {
			t.Errorf("%s has mode %v", name, info.Mode())
		}
	}
}

func TestDown(t *testing.T) {
	s := open(t)
	for _, want := range []bool{false, true, true, false, false} {
		if err := s.SetDown(want); err != nil {
			t.Fatal(err)
		}
		again, err := Open(s.dir)
		if err != nil {
			t.Fatal(err)
		}
		if again.Down() != want {
			t.Errorf("Down() = %v, want %v", again.Down(), want)
		}
	}
}

func TestPolicy(t *testing.T) {
	for name, src := range map[string]string{
		"/etc/nftfw/policy.yaml":      "version: 1\nmode: enforce\n",
		"empty.yaml":                  "",
		"no end of line":              "version: 1",
		"with \"quotes\" and \n ends": "\n\n# nftfw: last good policy\n",
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			if _, _, err := s.LoadPolicy(); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("LoadPolicy before any save: %v", err)
			}
			for _, text := range []string{"former\n", src} {
				if err := s.SavePolicy(name, []byte(text)); err != nil {
					t.Fatal(err)
				}
			}
			got, gotName, err := s.LoadPolicy()
			if err != nil || string(got) != src || gotName != name {
				t.Errorf("LoadPolicy = %q, %q, %v", got, gotName, err)
			}
			if diff := cmp.Diff([]string{"policy.yaml"}, files(t, s)); diff != "" {
				t.Errorf("files (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDamagedPolicy(t *testing.T) {
	tests := []struct {
		name   string
		damage func(text string) string
	}{
		{"empty", func(string) string { return "" }},
		{"cut short", func(s string) string { return s[:len(s)-1] }},
		{"cut in the header", func(s string) string { return s[:40] }},
		{"cut after the header", func(s string) string { return s[:strings.Index(s, "version")] }},
		{"one letter changed", func(s string) string { return strings.Replace(s, "drop", "drap", 1) }},
		{"name changed", func(s string) string { return strings.Replace(s, "policy.yaml", "palicy.yaml", 1) }},
		{"something added", func(s string) string { return s + "x" }},
		{"another file", func(string) string { return "version: 1\n" }},
		{"zeroes", func(s string) string { return strings.Repeat("\x00", len(s)) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t)
			if err := s.SavePolicy("/etc/nftfw/policy.yaml", []byte("version: 1\nhost: {default: drop}\n")); err != nil {
				t.Fatal(err)
			}
			path := s.path("policy.yaml")
			write(t, path, tt.damage(read(t, path)))
			src, _, err := s.LoadPolicy()
			checkDamaged(t, err, path, "")
			if src != nil {
				t.Errorf("LoadPolicy gave %q all the same", src)
			}
		})
	}
}

// checkDamaged looks for a *DamagedError about file that names it, its
// fallback and a remedy.
func checkDamaged(t *testing.T, err error, file, fallback string) {
	t.Helper()
	var d *DamagedError
	if !errors.As(err, &d) {
		t.Fatalf("error %v, want a *DamagedError", err)
	}
	if d.File != file || d.Fallback != fallback || d.Remedy == "" || d.Err == nil {
		t.Errorf("error %+v, want file %q and fallback %q", d, file, fallback)
	}
	for _, part := range []string{d.File, d.Fallback, d.Remedy} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not say %q", err, part)
		}
	}
}

func TestJSONDocuments(t *testing.T) {
	tests := []struct {
		name, file string
		save       func(*Store, []byte) error
		load       func(*Store) ([]byte, error)
	}{
		{"snapshot", "snapshot.json", (*Store).SaveSnapshot, (*Store).LoadSnapshot},
		{"pending", "pending.json", (*Store).SavePending, (*Store).LoadPending},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t)
			if _, err := tt.load(s); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("load before any save: %v", err)
			}
			for _, doc := range []string{`{"a":1}`, `[]`} {
				if err := tt.save(s, []byte(doc)); err != nil {
					t.Fatal(err)
				}
				if got, err := tt.load(s); err != nil || string(got) != doc {
					t.Errorf("load = %q, %v, want %q", got, err, doc)
				}
			}
			if diff := cmp.Diff([]string{tt.file}, files(t, s)); diff != "" {
				t.Errorf("files (-want +got):\n%s", diff)
			}
			for _, text := range []string{"", `{"a":`, "\x00\x00"} {
				write(t, s.path(tt.file), text)
				doc, err := tt.load(s)
				checkDamaged(t, err, s.path(tt.file), "")
				if doc != nil {
					t.Errorf("load gave %q all the same", doc)
				}
			}
		})
	}
}

func TestPendingIsRemoved(t *testing.T) {
	s := open(t)
	for _, doc := range [][]byte{nil, []byte("{}"), nil} {
		if err := s.SavePending(doc); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.LoadPending(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("LoadPending = %v", err)
	}
}
