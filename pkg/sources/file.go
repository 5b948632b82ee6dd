package sources

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
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
	// rested is how long a file must be left alone before it is believed that
	// entries have gone, or that what stands in its last line without a line end
	// is all of it: `command > file` empties the file first.
	rested = 2 * time.Second
	// lookAgain is how often files are looked at without having been told of a
	// change: network file systems and mounts tell nothing.
	lookAgain = 10 * time.Second
	// maxFile is the size of the largest file that is read, in bytes: a
	// million entries have 16 MB.
	maxFile = 256 << 20
)

// followFile tells of the entries of a file or of the files of a folder.
func followFile(ctx context.Context, s spec.File, source addrset.Source, last Last, emit func(Update)) {
	f := fileFollower{
		path: s.Path, source: source, emit: emit, have: last.Entries, seen: "nothing yet",
		watched: map[string]bool{}, arrived: map[string]bool{},
	}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		f.note = fmt.Sprintf("changes are found every %s only, for they cannot be watched: %v", lookAgain, err)
	} else {
		defer w.Close()
		f.watcher, f.events, f.errors = w, w.Events, w.Errors
	}
	ticker := time.NewTicker(lookAgain)
	defer ticker.Stop()
	for tick := false; ; {
		f.watch() // before the look: what changes in between is told of
		var again <-chan time.Time
		if wait := f.look(tick); wait > 0 {
			again = time.After(wait)
		}
		tick = false
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			tick = true
		case <-again:
		case <-f.errors: // events were lost
		case e := <-f.events:
			f.hear(e)
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
	arrived map[string]bool // files that came to their place and were not written to there, since the last look

	have   *addrset.Set // the last good list
	seen   string       // fingerprint of the files that were last read
	failed bool         // they could not be used
}

// look reads the files where they changed. What may be half written is not
// told of: then it gives the time until the next look. tick asks for an answer
// whether anything changed or not.
func (f *fileFollower) look(tick bool) (wait time.Duration) {
	now := fingerprint(f.path)
	if now == f.seen && !(tick && f.failed) {
		clear(f.arrived)
		if tick {
			f.emit(Update{Note: f.note})
		}
		return 0
	}
	entries, files, err := readFiles(f.path, f.source)
	list := addrset.New(entries...)
	if file, wait := f.unrested(files, err == nil && lacks(list, f.have)); wait > 0 {
		if tick {
			f.emit(Update{Err: fmt.Errorf("%s is being written to", file)})
		}
		return wait
	}
	f.seen, f.failed = now, err != nil
	clear(f.arrived)
	if err != nil {
		f.emit(Update{Err: err})
		return 0
	}
	f.have = list
	f.emit(Update{Whole: true, Add: entries, Note: f.note})
	return 0
}

// lacks tells whether entries of old are not in list.
func lacks(list, old *addrset.Set) bool {
	for e := range old.Each() {
		if _, ok := list.Lookup(e.Range, e.Source); !ok {
			return true
		}
	}
	return false
}

// unrested names a file that may be half written, with the time until it may
// be believed; 0 where all may be. What only adds entries is believed as it is,
// and so is what was written elsewhere and then moved here.
func (f *fileFollower) unrested(files []listFile, lacks bool) (path string, wait time.Duration) {
	for _, file := range files {
		target, _ := filepath.EvalSymlinks(file.path)
		if file.ended && !lacks || file.info.Size() > 0 && (f.arrived[file.path] || f.arrived[target]) {
			continue
		}
		left := rested - time.Since(file.info.ModTime())
		if left <= 0 && beingWritten(file.path) {
			left = rested
		}
		// A time in the future is no time of a write: somebody set it.
		if left > wait && left <= rested {
			path, wait = file.path, left
		}
	}
	return path, wait
}

// hear notes what an event says of how a file came to be.
func (f *fileFollower) hear(e fsnotify.Event) {
	switch {
	case e.Has(fsnotify.Create):
		f.arrived[e.Name] = true
	case e.Has(fsnotify.Write):
		delete(f.arrived, e.Name)
	}
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
		case e := <-f.events:
			f.hear(e)
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
		fmt.Fprintf(&b, "%s %d %d %v %v\n", file, info.Size(), info.ModTime().UnixNano(), info.Mode(), identity(info))
	}
	return b.String()
}

// listFile is a file as it was when it was read.
type listFile struct {
	path  string
	info  fs.FileInfo
	ended bool // its last line has a line end
}

// readFiles reads all files that path stands for, up to the first that cannot be
// used.
func readFiles(path string, source addrset.Source) ([]addrset.Entry, []listFile, error) {
	names, err := listed(path)
	if err != nil {
		return nil, nil, shorten(err)
	}
	var out []addrset.Entry
	var files []listFile
	for _, name := range names {
		entries, file, err := readFile(name, source)
		files = append(files, file)
		if err != nil {
			return nil, files, err
		}
		out = append(out, entries...)
	}
	return out, files, nil
}

func readFile(path string, source addrset.Source) ([]addrset.Entry, listFile, error) {
	file := listFile{path: path, ended: true}
	f, err := os.OpenFile(path, os.O_RDONLY|openNonblock, 0)
	if err != nil {
		return nil, file, shorten(err)
	}
	defer f.Close()
	file.info, err = f.Stat()
	switch info := file.info; {
	case err != nil:
		return nil, file, shorten(err)
	case !info.Mode().IsRegular():
		return nil, file, fmt.Errorf("%s is no file of lines", path)
	case info.Mode().Perm()&0o002 != 0:
		return nil, file, fmt.Errorf("%s may be written to by everybody: chmod o-w it", path)
	case info.Size() > maxFile:
		return nil, file, fmt.Errorf("%s has %d bytes, and %d are the most", path, info.Size(), maxFile)
	case info.Size() > 0:
		end := []byte{0}
		_, err = f.ReadAt(end, info.Size()-1)
		file.ended = err == nil && end[0] == '\n'
	}
	entries, err := readLines(io.LimitReader(f, maxFile), path, source)
	return entries, file, err
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
