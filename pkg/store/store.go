package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// Names of the files in the state directory.
const (
	lockFile     = "lock"
	setsFile     = "sets.json"
	setsPrevFile = "sets.json.prev"
	setsBadFile  = "sets.json.damaged"
	logFile      = "sets.log"
	logPrevFile  = "sets.log.prev"
	logBadFile   = "sets.log.damaged"
	policyFile   = "policy.yaml"
	snapshotFile = "snapshot.json"
	pendingFile  = "pending.json"
	downFile     = "down"
)

// Store is a state directory. It is safe for concurrent use; between
// processes, Lock keeps writers apart.
type Store struct {
	dir  string
	sync func(*os.File) error // fsync, of files and of the directory

	mu       sync.Mutex  // keeps LoadSets and SaveSets apart, guards what follows
	held     *os.File    // the locked file; nil while not locked
	goodSets os.FileInfo // the sets file that was last read or written whole; nil for none
	journal  journal     // of that file; without a name where that is not known
}

// Open returns dir as a Store. Where it is missing, nothing is saved in it yet: the
// first Lock makes it, mode 0700. Open takes no lock. A directory that
// everybody may write to is refused.
func Open(dir string) (*Store, error) {
	if err := usable(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open state directory: %w", err)
	}
	return &Store{dir: dir, sync: (*os.File).Sync}, nil
}

// makeDir makes the directory where it is missing.
func (s *Store) makeDir() error {
	err := os.MkdirAll(s.dir, 0o700)
	if err == nil {
		err = usable(s.dir)
	}
	if err != nil {
		return fmt.Errorf("make state directory: %w", err)
	}
	return nil
}

// usable says what is wrong with dir. The error wraps fs.ErrNotExist where it is
// missing.
func usable(dir string) error {
	info, err := os.Stat(dir)
	switch {
	case err != nil:
		return err
	case !info.IsDir():
		return &fs.PathError{Op: "open", Path: dir, Err: unix.ENOTDIR}
	case info.Mode().Perm()&0o002 != 0:
		return fmt.Errorf("%s may be written to by everybody: chmod o-w it", dir)
	}
	return nil
}

func (s *Store) path(name string) string { return filepath.Join(s.dir, name) }

// DamagedError reports a state file that is there and cannot be used: cut
// short, empty, altered, or not readable.
type DamagedError struct {
	File string
	// Fallback is the file whose contents were returned in its place, "" if
	// there was none: then nothing was returned.
	Fallback string
	Remedy   string // what to do
	Err      error
}

// Error names the file, what is wrong with it, what was done and what to do.
func (e *DamagedError) Error() string {
	used := ""
	if e.Fallback != "" {
		used = "; went on with " + e.Fallback
	}
	return fmt.Sprintf("state file %s cannot be used: %v%s; %s", e.File, e.Err, used, e.Remedy)
}

// Newer reports whether the file is sound, but of a later version of nftfw.
func (e *DamagedError) Newer() bool { return errors.Is(e.Err, errNewer) }

// Unread reports whether the file is there and the system did not let it be
// read, so that nothing is known of its contents.
func (e *DamagedError) Unread() bool {
	var errno unix.Errno
	return errors.As(e.Err, &errno) && !errors.Is(e.Err, fs.ErrNotExist)
}

// Unwrap returns the cause.
func (e *DamagedError) Unwrap() error { return e.Err }

// damaged makes a DamagedError, the remedy being for contents that are wrong.
// Contents that could not be read have remedies of their own.
func damaged(path string, err error, remedy string) *DamagedError {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		err = pathErr.Err // the path is named already
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case errors.Is(err, fs.ErrPermission):
			remedy = "run as root, or correct the owner and the mode of the file"
		default:
			remedy = "check the disk and the file system"
		}
	}
	return &DamagedError{File: path, Err: err, Remedy: remedy}
}

// SetDown writes down that enforcing was stopped on purpose, or with false
// that it no longer is. It is on disk when SetDown returns.
func (s *Store) SetDown(down bool) error {
	if down {
		return s.replace(downFile, writeBytes([]byte("stopped by nftfw down\n")), "")
	}
	return s.remove(downFile)
}

// Down reports whether enforcing was stopped on purpose. Where that cannot be
// found out, it was not.
func (s *Store) Down() bool {
	_, err := os.Stat(s.path(downFile))
	return err == nil
}
