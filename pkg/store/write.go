package store

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// tempMark is in the name of every temporary file.
const tempMark = ".tmp-"

// replace writes a file whole and on to the disk: a temporary file beside it
// is written, synced and renamed over it, then the directory is synced. What
// stood there before stays as keep, if keep is not "". After an error the
// former file is in place and nothing else is left behind.
func (s *Store) replace(name string, write func(io.Writer) error, keep string) error {
	if err := s.replaceDurably(name, write, keep); err != nil {
		return fmt.Errorf("save %s: %w", s.path(name), err)
	}
	return nil
}

func (s *Store) replaceDurably(name string, write func(io.Writer) error, keep string) error {
	temp, err := s.writeTemp(name, write, s.sync)
	if err != nil {
		return err
	}
	old, err := s.setAside(name, temp+".old")
	if err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	if err := os.Rename(temp, s.path(name)); err != nil {
		return errors.Join(err, os.Remove(temp), old.drop())
	}
	if err := s.syncDir(); err != nil {
		// The new file may or may not survive a power cut. Whoever is told
		// that saving went wrong must find what was there before.
		return errors.Join(err, old.putBack())
	}
	// The new file is on the disk: what goes wrong from here on is no reason
	// to say otherwise. A second name that stays is swept at the next Lock.
	if keep == "" || old.link == "" {
		_ = old.drop()
	} else {
		_ = os.Rename(old.link, s.path(keep))
	}
	return nil
}

// writeTemp writes a temporary file beside name, mode 0600, and returns its
// path. A sync of nil leaves it to the kernel when it reaches the disk.
func (s *Store) writeTemp(name string, write func(io.Writer) error, sync func(*os.File) error) (path string, err error) {
	f, err := os.CreateTemp(s.dir, "."+name+tempMark+"*")
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	if err := fill(f, write, sync); err != nil {
		_ = f.Close() // nothing in it counts any more
		return "", err
	}
	return f.Name(), f.Close()
}

func fill(f *os.File, write func(io.Writer) error, sync func(*os.File) error) error {
	w := bufio.NewWriterSize(f, 1<<16)
	if err := write(w); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if sync == nil {
		return nil
	}
	if err := sync(f); err != nil {
		return &fs.PathError{Op: "fsync", Path: f.Name(), Err: err}
	}
	return nil
}

// former is a file that is about to be replaced.
type former struct {
	path    string
	missing bool   // there was none
	link    string // its second name, "" where it has none
}

// setAside gives a file a second name, under which it outlives being replaced.
func (s *Store) setAside(name, link string) (former, error) {
	f := former{path: s.path(name)}
	err := os.Link(f.path, link)
	switch {
	case err == nil:
		f.link = link
	case errors.Is(err, fs.ErrNotExist):
		f.missing = true
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EOPNOTSUPP):
		// A file system without hard links, link(2). Then there is no
		// generation before and no way back; that is no reason not to save.
	default:
		return f, err
	}
	return f, nil
}

func (f former) putBack() error {
	switch {
	case f.link != "":
		return os.Rename(f.link, f.path)
	case f.missing:
		return os.Remove(f.path)
	}
	return nil
}

func (f former) drop() error {
	if f.link == "" {
		return nil
	}
	return os.Remove(f.link)
}

// remove deletes a file, on the disk too. A missing one is no error. After an error
// the file is in place.
func (s *Store) remove(name string) error {
	if err := s.removeDurably(name); err != nil {
		return fmt.Errorf("remove %s: %w", s.path(name), err)
	}
	return nil
}

func (s *Store) removeDurably(name string) error {
	link := s.path("." + name + tempMark + "old")
	_ = os.Remove(link) // of a removal that was cut short
	old, err := s.setAside(name, link)
	if err != nil || old.missing {
		return err
	}
	if err := os.Remove(old.path); err != nil {
		return errors.Join(err, old.drop())
	}
	if err := s.syncDir(); err != nil {
		return errors.Join(err, old.putBack())
	}
	_ = old.drop() // as in replaceDurably
	return nil
}

func (s *Store) syncDir() error {
	d, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := s.sync(d); err != nil {
		return &fs.PathError{Op: "fsync", Path: s.dir, Err: err}
	}
	return nil
}

// sweepTemp removes the temporary files of processes that were killed. Only
// the holder of the lock may call it.
func (s *Store) sweepTemp() error {
	list, err := os.ReadDir(s.dir)
	for _, f := range list {
		if strings.HasPrefix(f.Name(), ".") && strings.Contains(f.Name(), tempMark) {
			err = errors.Join(err, os.Remove(s.path(f.Name())))
		}
	}
	return err
}
