package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrLocked is what Lock gives when somebody else held the lock for too long.
var ErrLocked = errors.New("another nftfw holds the state directory")

// How often Lock tries: at first as often as one short change takes.
const (
	firstRetry = 2 * time.Millisecond
	lastRetry  = 20 * time.Millisecond
)

// Lock waits until nobody else holds the lock, in this process or in another,
// and takes it. It makes the directory where that is missing. It gives up when ctx is done, with an error that wraps both
// ErrLocked and the cause; a ctx that is done from the start still makes one
// attempt. The lock is held until unlock is called, which may be done more than
// once, or the process dies, however it dies. It can be had on a file system that has
// become read-only, too: what is read there can be enforced.
func (s *Store) Lock(ctx context.Context) (unlock func(), err error) {
	if err := s.makeDir(); err != nil {
		return nil, err
	}
	path := s.path(lockFile)
	wait := firstRetry
	for {
		f, err := tryLock(path)
		if err == nil {
			if err := s.sweepTemp(); err != nil && !errors.Is(err, unix.EROFS) {
				_ = f.Close()
				return nil, fmt.Errorf("lock %s: %w", path, err)
			}
			return s.hold(f), nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("lock %s: %w: %w", path, ErrLocked, context.Cause(ctx))
		case <-time.After(wait):
		}
		wait = min(2*wait, lastRetry)
	}
}

// hold keeps f open until unlock is called: a caller that holds the lock for
// life may drop unlock, and the garbage collector closes what nobody refers to.
func (s *Store) hold(f *os.File) (unlock func()) {
	s.mu.Lock()
	s.held = f
	s.mu.Unlock()
	return sync.OnceFunc(func() {
		s.mu.Lock()
		s.held = nil
		s.mu.Unlock()
		_ = f.Close() // this frees the lock; nothing was written
	})
}

// tryLock returns the locked file; closing it frees the lock. The descriptor
// is close-on-exec, as all of package os are, so that no child keeps it.
func tryLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, unix.EROFS) {
		f, err = os.Open(path) // flock(2) asks for no more
	}
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err == nil {
		err = stillAt(f, path)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// stillAt makes sure that the file which was locked is the one that others
// will open: it may have been removed in between. If not, the answer is to
// try again.
func stillAt(f *os.File, path string) error {
	mine, err := f.Stat()
	if err != nil {
		return err
	}
	theirs, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) || err == nil && !os.SameFile(mine, theirs) {
		return unix.EWOULDBLOCK
	}
	return err
}
