package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nftfw/nftfw/pkg/addrset"
)

// saves are the ways to write, each with a check that what was there before
// still is.
var saves = []struct {
	name    string
	durable bool
	save    func(t *testing.T, s *Store, what string) error
	load    func(s *Store) (string, error)
}{
	{
		"sets", true,
		func(t *testing.T, s *Store, what string) error {
			e := entry(t, "192.0.2.1")
			e.Comment = what
			return s.SaveSets(map[string]*addrset.Set{"trusted": addrset.New(e)})
		},
		func(s *Store) (string, error) {
			sets, err := s.LoadSets()
			for _, e := range sets["trusted"].Entries() {
				return e.Comment, err
			}
			return "", err
		},
	},
	{
		"policy", true,
		func(_ *testing.T, s *Store, what string) error { return s.SavePolicy("name", []byte(what)) },
		func(s *Store) (string, error) {
			src, _, err := s.LoadPolicy()
			return string(src), err
		},
	},
	{
		"pending", true,
		func(_ *testing.T, s *Store, what string) error { return s.SavePending([]byte(`"` + what + `"`)) },
		func(s *Store) (string, error) {
			doc, err := s.LoadPending()
			return unquote(doc), err
		},
	},
	{
		"snapshot", false,
		func(_ *testing.T, s *Store, what string) error { return s.SaveSnapshot([]byte(`"` + what + `"`)) },
		func(s *Store) (string, error) {
			doc, err := s.LoadSnapshot()
			return unquote(doc), err
		},
	},
}

func unquote(doc []byte) string {
	if len(doc) < 2 {
		return ""
	}
	return string(doc[1 : len(doc)-1])
}

// TestSyncFails has fsync fail on the file, then on the directory: each time
// over a former file and without one.
func TestSyncFails(t *testing.T) {
	for _, tt := range saves {
		if !tt.durable {
			continue
		}
		for _, target := range []string{"file", "directory"} {
			for _, former := range []string{"", "former"} {
				t.Run(fmt.Sprintf("%s/%s/former=%q", tt.name, target, former), func(t *testing.T) {
					s := open(t)
					if former != "" {
						if err := tt.save(t, s, former); err != nil {
							t.Fatal(err)
						}
					}
					had := files(t, s)
					s.sync = func(f *os.File) error {
						info, err := f.Stat()
						if err != nil {
							return err
						}
						if info.IsDir() == (target == "directory") {
							return unix.EIO
						}
						return f.Sync()
					}
					err := tt.save(t, s, "new")
					var pathErr *fs.PathError
					if !errors.Is(err, unix.EIO) || !errors.As(err, &pathErr) || pathErr.Op != "fsync" {
						t.Errorf("save = %v, want EIO of fsync", err)
					}
					checkFormer(t, tt.load, s, former, had)
				})
			}
		}
	}
}

// TestRemoveIsSynced has fsync of the directory fail after a removal: what was removed
// is there again, and nothing else.
func TestRemoveIsSynced(t *testing.T) {
	removals := map[string]func(*Store) error{
		"pending": func(s *Store) error { return s.SavePending(nil) },
		"policy":  (*Store).RemovePolicy,
		"down":    func(s *Store) error { return s.SetDown(false) },
	}
	for name, remove := range removals {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			if err := errors.Join(s.SavePending([]byte("{}")), s.SavePolicy("p", nil), s.SetDown(true)); err != nil {
				t.Fatal(err)
			}
			had := files(t, s)
			s.sync = func(*os.File) error { return unix.EIO }
			if err := remove(s); !errors.Is(err, unix.EIO) {
				t.Errorf("remove = %v, want EIO", err)
			}
			if diff := cmp.Diff(had, files(t, s)); diff != "" {
				t.Errorf("files (-before +after):\n%s", diff)
			}
			s.sync = (*os.File).Sync
			if err := remove(s); err != nil {
				t.Error(err)
			}
			if got := files(t, s); len(got) != len(had)-1 {
				t.Errorf("files %q after one of %q was removed", got, had)
			}
		})
	}
}

func checkFormer(t *testing.T, load func(*Store) (string, error), s *Store, former string, had []string) {
	t.Helper()
	got, err := load(s)
	if former == "" && errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil || got != former {
		t.Errorf("load afterwards = %q, %v, want %q", got, err, former)
	}
	if diff := cmp.Diff(had, files(t, s)); diff != "" {
		t.Errorf("files (-before +after):\n%s", diff)
	}
}

func TestRenameFails(t *testing.T) {
	for _, tt := range saves {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t)
			if err := tt.save(t, s, "former"); err != nil {
				t.Fatal(err)
			}
			// A directory in its place: nothing can be renamed over that.
			had := files(t, s)
			path := s.path(had[0])
			if err := errors.Join(os.Remove(path), os.MkdirAll(filepath.Join(path, "x"), 0o700)); err != nil {
				t.Fatal(err)
			}
			if err := tt.save(t, s, "new"); !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.EISDIR) {
				t.Errorf("save = %v, want an error about the directory", err)
			}
			if diff := cmp.Diff(had, files(t, s)); diff != "" {
				t.Errorf("files (-before +after):\n%s", diff)
			}
		})
	}
}

// TestSyncIsAsked makes sure that a save that says nothing has been synced,
// the file before the directory.
func TestSyncIsAsked(t *testing.T) {
	for _, tt := range saves {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t)
			var got []string
			s.sync = func(f *os.File) error {
				info, err := f.Stat()
				if err != nil {
					return err
				}
				got = append(got, map[bool]string{true: "directory", false: "file"}[info.IsDir()])
				return f.Sync()
			}
			if err := tt.save(t, s, "new"); err != nil {
				t.Fatal(err)
			}
			var want []string
			if tt.durable {
				want = []string{"file", "directory"}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("synced (-want +got):\n%s", diff)
			}
		})
	}
}

// smallDisk mounts a file system of 64 KiB, in a mount namespace of the test's
// own. The thread is never unlocked, so that it ends with the test and the
// namespace with it.
func smallDisk(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount a file system")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k,mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // before TempDir's own
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestDiskFull(t *testing.T) {
	for _, tt := range saves {
		t.Run(tt.name, func(t *testing.T) {
			dir := smallDisk(t)
			s, err := Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			if err := tt.save(t, s, "former"); err != nil {
				t.Fatal(err)
			}
			fillDisk(t, s.path("filler"))
			had := files(t, s)
			if err := tt.save(t, s, "new"); !errors.Is(err, unix.ENOSPC) {
				t.Errorf("save = %v, want ENOSPC", err)
			}
			checkFormer(t, tt.load, s, "former", had)

			// With room again it works, without a new start.
			if err := os.Remove(s.path("filler")); err != nil {
				t.Fatal(err)
			}
			if err := tt.save(t, s, "new"); err != nil {
				t.Fatal(err)
			}
			if got, err := tt.load(s); err != nil || got != "new" {
				t.Errorf("load = %q, %v", got, err)
			}
		})
	}
}

func fillDisk(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
}

func TestReadOnlyFileSystem(t *testing.T) {
	dir := smallDisk(t)
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	unlock, err := s.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(s.SaveSets(sets(t, "192.0.2.1")), s.SetDown(true), os.WriteFile(s.path(".policy"+tempMark+"1"), nil, 0o600))
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(dir); err != nil {
		t.Fatalf("Open for reading: %v", err)
	}
	// A host that starts so enforces what it finds.
	if unlock, err = s.Lock(t.Context()); err != nil {
		t.Fatalf("Lock = %v", err)
	}
	defer unlock()
	if again, err := Open(dir); err != nil {
		t.Error(err)
	} else if _, err := again.Lock(soon(t)); !errors.Is(err, ErrLocked) {
		t.Errorf("a second Lock = %v", err)
	}
	for name, err := range map[string]error{
		"SaveSets": s.SaveSets(nil), "SavePolicy": s.SavePolicy("p", nil),
		"SaveSnapshot": s.SaveSnapshot([]byte("{}")), "SetDown": s.SetDown(false),
	} {
		if !errors.Is(err, unix.EROFS) {
			t.Errorf("%s = %v, want EROFS", name, err)
		}
	}
	got, err := s.LoadSets()
	if err != nil {
		t.Fatal(err)
	}
	checkSets(t, sets(t, "192.0.2.1"), got)
	if !s.Down() {
		t.Error("Down() = false, though the marker could not be removed")
	}
}

func TestNotAllowedToRead(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to become somebody else")
	}
	s := open(t)
	err := errors.Join(s.SaveSets(sets(t, "192.0.2.1")), s.SaveSets(sets(t, "192.0.2.2")), s.SavePolicy("p", nil))
	if err != nil {
		t.Fatal(err)
	}
	for dir := s.dir; len(dir) > len(os.TempDir()); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// For this thread only, which ends with the test.
	runtime.LockOSThread()
	const nobody = 65534
	if _, err := unix.SetfsuidRetUid(nobody); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = unix.SetfsuidRetUid(0) }) // for TempDir's own
	_, err = s.LoadSets()
	checkDamaged(t, err, s.path("sets.json"), "")
	_, _, policyErr := s.LoadPolicy()
	checkDamaged(t, policyErr, s.path("policy.yaml"), "")
	for _, err := range []error{err, policyErr} {
		var d *DamagedError
		if !errors.Is(err, fs.ErrPermission) || !errors.As(err, &d) || d.Remedy != "run as root, or correct the owner and the mode of the file" {
			t.Errorf("error %v, want one about permission", err)
		}
	}
}
