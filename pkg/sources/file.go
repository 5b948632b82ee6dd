package sources

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/sources/spec"
)

const (
	// settle is how long a file must be left alone before it is read: an
	// editor or a copy writes in several steps.
	settle = 50 * time.Millisecond
	// settleMost is how long it is waited for that.
	settleMost = time.Second
	// lookAgain is how often files are read without having been told of a
	// change: network file systems and mounts tell nothing. A file that has
	// the same size and time is not read again.
	lookAgain = 10 * time.Second
	// maxFile is the size of the largest file that is read, in bytes: a
	// million entries have 16 MB.
	maxFile = 256 << 20
)

// followFile tells of the entries of a file or of the files of a folder.
func followFile(ctx context.Context, s spec.File, source addrset.Source, emit func(Update)) {
	f := fileFollower{path: s.Path, source: source, emit: emit, watched: map[string]bool{}}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		f.note = fmt.Sprintf("changes are found every %s only, for they cannot be watched: %v", lookAgain, err)
	} else {
		defer w.Close()
		f.watcher, f.events, f.errors = w, w.Events, w.Errors
	}
	ticker := time.NewTicker(lookAgain)
	defer ticker.Stop()
	for changed := true; ; {
		f.watch() // before the look: what changes in between is told of
		f.look(changed)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			changed = false
		case <-f.errors:
			changed = true // events were lost
		case <-f.events:
			changed = true
			f.rest(ctx)
		}
	}
}

type fileFollower struct {
	path   string
	source addrset.Source
	emit   func(Update)
	note   string

	watcher *fsnotify.Watcher // nil: nothing can be watched
	events  <-chan fsnotify.Event
	errors  <-chan error
	watched map[string]bool // folders

	seen string // fingerprint of the files that were last read; "" after an error
}

// look reads the files where they changed or may have.
func (f *fileFollower) look(changed bool) {
	now := fingerprint(f.path)
	if !changed && now == f.seen {
		f.emit(Update{Note: f.note})
		return
	}
	entries, err := readFiles(f.path, f.source)
	if err != nil {
		f.seen = ""
		f.emit(Update{Err: err})
		return
	}
	f.seen = now
	f.emit(Update{Whole: true, Add: entries, Note: f.note})
}

// rest waits until nothing happens for a moment.
func (f *fileFollower) rest(ctx context.Context) {
	quiet, late := time.NewTimer(settle), time.NewTimer(settleMost)
	defer quiet.Stop()
	defer late.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-quiet.C:
			return
		case <-late.C:
			return
		case <-f.errors:
		case <-f.events:
			quiet.Reset(settle)
		}
	}
}

// watch watches every folder in which a change can change what path means: the
// one it lies in, itself if it is one, and where links lead. Where a folder is
// missing, the next one above shows its coming.
func (f *fileFollower) watch() {
	if f.watcher == nil {
		return
	}
	want := map[string]bool{}
	add := func(path string) {
		for dir := path; ; dir = filepath.Dir(dir) {
			if info, err := os.Stat(dir); err == nil && info.IsDir() {
				want[dir] = true
				return
			}
			if dir == filepath.Dir(dir) {
				return
			}
		}
	}
	add(filepath.Dir(f.path))
	add(f.path)
	for _, name := range append(linksIn(f.path), f.path) {
		if target, err := filepath.EvalSymlinks(name); err == nil && target != name {
			add(filepath.Dir(target))
			add(target)
		}
	}
	for dir := range want {
		// Also where it is watched: it may be another folder by now.
		if f.watcher.Add(dir) == nil {
			f.watched[dir] = true
		}
	}
	for dir := range f.watched {
		if !want[dir] {
			_ = f.watcher.Remove(dir) // it may have gone
			delete(f.watched, dir)
		}
	}
}

// linksIn gives the symbolic links in a folder; none for what is no folder.
func linksIn(path string) []string {
	list, err := os.ReadDir(path)
	if err != nil {
		return nil
	}
	var out []string
	for _, f := range list {
		if f.Type()&fs.ModeSymlink != 0 {
			out = append(out, filepath.Join(path, f.Name()))
		}
	}
	return out
}

// listed gives the files that path stands for: itself, or those of the folder.
// Names that begin with . or # or end with ~ are those of editors and packages.
func listed(path string) ([]string, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case !info.IsDir():
		return []string{path}, nil
	}
	list, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, f := range list {
		name := f.Name()
		if strings.HasPrefix(name, ".") || strings.HasPrefix(name, "#") || strings.HasSuffix(name, "~") {
			continue
		}
		full := filepath.Join(path, name)
		if info, err := os.Stat(full); err == nil && info.IsDir() {
			continue
		}
		out = append(out, full)
	}
	return out, nil
}

// fingerprint changes whenever the files may read differently.
func fingerprint(path string) string {
	files, err := listed(path)
	if err != nil {
		return "error: " + err.Error()
	}
	var b strings.Builder
	for _, file := range files {
		info, err := os.Stat(file)
		if err != nil {
			fmt.Fprintf(&b, "%s: %v\n", file, err)
			continue
		}
		fmt.Fprintf(&b, "%s %d %d %v %v\n", file, info.Size(), info.ModTime().UnixNano(), info.Mode(), inode(info))
	}
	return b.String()
}

// readFiles reads all files that path stands for.
func readFiles(path string, source addrset.Source) ([]addrset.Entry, error) {
	files, err := listed(path)
	if err != nil {
		return nil, shorten(err)
	}
	var out []addrset.Entry
	for _, file := range files {
		entries, err := readFile(file, source)
		if err != nil {
			return nil, err
		}
		out = slices.Concat(out, entries)
	}
	return out, nil
}

func readFile(path string, source addrset.Source) ([]addrset.Entry, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|openNonblock, 0)
	if err != nil {
		return nil, shorten(err)
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, shorten(err)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is no file of lines", path)
	case info.Mode().Perm()&0o002 != 0:
		return nil, fmt.Errorf("%s may be written to by everybody: chmod o-w it", path)
	case info.Size() > maxFile:
		return nil, fmt.Errorf("%s has %d bytes, and %d are the most", path, info.Size(), maxFile)
	}
	return readLines(io.LimitReader(f, maxFile), path, source)
}

// shorten takes the name of the system call out of an error about a file.
func shorten(err error) error {
	var p *fs.PathError
	if !errors.As(err, &p) {
		return err
	}
	if errors.Is(p.Err, fs.ErrNotExist) {
		return fmt.Errorf("%s does not exist: %w", p.Path, fs.ErrNotExist)
	}
	return fmt.Errorf("%s: %w", p.Path, p.Err)
}
