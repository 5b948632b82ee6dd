package store

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"strconv"
	"sync"

	"github.com/nftfw/nftfw/pkg/addrset"
)

// Change is what one command did to the runtime entries of a set.
type Change struct {
	Set    string
	Delete []addrset.Range
	Add    []addrset.Entry
}

// journal is where a log of changes stands. A log belongs to one sets file, by
// its checksum. That of the sets file before stays until the next one is begun; it is
// there for replayFormer, and with any other file something was altered.
//
// Its first line is a logHead, which is written with the first change in one piece. Each other one is the CRC-32 (Castagnoli) of a
// logChange in eight hexadecimal digits, a blank, and the logChange. A line is
// on the disk before anybody is told of its change; one that is cut short at the
// end of the file was never acknowledged.
type journal struct {
	of  string // the checksum of the sets file, "" for not known
	end int64  // of the last good line; 0: there is no log of that file yet
}

type logHead struct {
	Version int    `json:"version"`
	Of      string `json:"of"`
}

type logChange struct {
	Set    string      `json:"set"`
	Delete []string    `json:"delete,omitempty"`
	Add    []entryJSON `json:"add,omitempty"`
}

const (
	logVersion = 1
	// logMost is how many entries one change in the log has at most; a larger
	// one is saved whole.
	logMost = 1000
	// logLeast is up to which size a log grows in any case. Beyond that it is
	// worth a rewrite when it is a quarter of the sets file.
	logLeast = 256 << 10
	// maxLogLine is the longest line that is read back, in bytes.
	maxLogLine = 1 << 20
)

const logRemedy = "compare the sets with `nftfw sets show`; the next change writes the file anew"

var castagnoli = sync.OnceValue(func() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) })

// SaveChange saves what c did, sets being the runtime entries after it. It
// costs in proportion to the change, and now and then as much as SaveSets. It
// gives what SaveSets gives. The caller holds the lock.
func (s *Store) SaveChange(c Change, sets map[string]*addrset.Set) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.journal.of == "" || len(c.Add)+len(c.Delete) > logMost || s.journal.end > logLeast && s.journal.end > s.goodSets.Size()/4 {
		return s.saveSets(sets)
	}
	if _, err := os.Stat(s.path(setsPrevFile)); s.journal.end == 0 && err != nil {
		return s.saveSets(sets) // so that there is one to fall back to
	}
	line, err := logLine(c)
	if err != nil || len(line) > maxLogLine {
		return s.saveSets(sets)
	}
	if s.journal.end == 0 {
		head, err := json.Marshal(logHead{Version: logVersion, Of: s.journal.of})
		if err != nil {
			return fmt.Errorf("save %s: %w", s.path(logFile), err)
		}
		text := append(append(head, '\n'), line...)
		if err := s.replace(logFile, writeBytes(text), logPrevFile); err != nil {
			return err
		}
		s.journal.end = int64(len(text))
		return nil
	}
	if err := s.append(line); err != nil {
		// What the disk has of the line is cut off again: whoever is told that
		// saving went wrong must find what was there before.
		undone := os.Truncate(s.path(logFile), s.journal.end)
		s.journal = journal{} // the next save is a whole one
		return fmt.Errorf("save %s: %w", s.path(logFile), errors.Join(err, undone))
	}
	s.journal.end += int64(len(line))
	return nil
}

// append adds a line to the log, on the disk too.
func (s *Store) append(line []byte) error {
	f, err := os.OpenFile(s.path(logFile), os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	// Behind the last good line, over what a crash may have left there.
	if err := f.Truncate(s.journal.end); err != nil {
		return err
	}
	if _, err := f.WriteAt(line, s.journal.end); err != nil {
		return err
	}
	if err := s.sync(f); err != nil {
		return &fs.PathError{Op: "fsync", Path: f.Name(), Err: err}
	}
	return nil
}

func logLine(c Change) ([]byte, error) {
	out := logChange{Set: c.Set}
	for _, r := range c.Delete {
		out.Delete = append(out.Delete, r.String())
	}
	for _, e := range c.Add {
		entry := entryJSON{Entry: e.Range.String(), Comment: e.Comment}
		if !e.Expires.IsZero() {
			at := e.Expires.Round(0).UTC()
			entry.ExpiresAt = &at
		}
		out.Add = append(out.Add, entry)
	}
	text, err := json.Marshal(out)
	if err != nil {
		return nil, err
	}
	line := fmt.Appendf(nil, "%08x ", crc32.Checksum(text, castagnoli()))
	return append(append(line, text...), '\n'), nil
}

// replay does the changes of the log to what its sets file holds, and notes where
// the log ends. With a log that is damaged it gives the sets up to there and a
// *DamagedError.
func (s *Store) replay(saved savedSets) (map[string]*addrset.Set, error) {
	s.journal = journal{of: saved.sum}
	end, err := replayLog(s.path(logFile), saved.sum, saved.sets)
	if other := new(otherSetsError); errors.As(err, &other) && (other.of == saved.after || saved.after == "") {
		end, err = 0, nil // of the save before
	}
	if err == nil {
		s.journal.end = end
		return saved.sets, nil
	}
	s.journal = journal{} // the next save is a whole one
	if errors.Is(err, errNewer) {
		return nil, damaged(s.path(logFile), err, newerRemedy)
	}
	d := damaged(s.path(logFile), err, logRemedy)
	d.Fallback = s.path(setsFile)
	return saved.sets, d
}

// dropLog removes the log, and keeps aside one that only a newer version can read.
func (s *Store) dropLog() {
	if f, err := os.Open(s.path(logFile)); err == nil {
		head, _, err := readLogHead(bufio.NewReader(f))
		_ = f.Close()
		if err == nil && head.Version != logVersion {
			_ = os.Rename(s.path(logFile), s.path(logBadFile))
			return
		}
	}
	_ = os.Remove(s.path(logFile))
}

// readLogHead reads the first line of a log, of so many bytes.
func readLogHead(r *bufio.Reader) (head logHead, size int64, err error) {
	line, err := r.ReadBytes('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return logHead{}, 0, err
	}
	if json.Unmarshal(line, &head) != nil || head.Of == "" {
		return logHead{}, 0, errors.New("its first line is not as it was written")
	}
	return head, int64(len(line)), nil
}

// replayFormer does to the sets of the save before what was changed after it, in
// its own log and in that of the file that is damaged: what then is missing is
// the one change with which that was written.
func (s *Store) replayFormer(sets map[string]*addrset.Set, sum string) map[string]*addrset.Set {
	// As far as they can be read: this is the way out already.
	_, _ = replayLog(s.path(logPrevFile), sum, sets)
	_, _ = replayLog(s.path(logFile), anyFile, sets)
	return sets
}

// anyFile stands for the checksum of a file that cannot be read. The log is of
// it or of the one before: saveSets sees to that.
const anyFile = ""

// otherSetsError is what replayLog says of the log of another sets file.
type otherSetsError struct{ of string } // that file's checksum

func (*otherSetsError) Error() string {
	return "it is of another sets.json than the one that is there"
}

// replayLog does the changes of a log to sets, if it belongs to the file with
// that checksum, and gives an *otherSetsError if it does not. It gives the end of the
// last good line, 0 where there is no log.
func replayLog(path, sum string, sets map[string]*addrset.Set) (end int64, err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, 1<<16)
	head, end, err := readLogHead(r)
	switch {
	case err != nil:
		return 0, err
	case sum != anyFile && head.Of != sum:
		return 0, &otherSetsError{head.Of}
	case head.Version != logVersion:
		return 0, fmt.Errorf("%w, in version %d of the format", errNewer, head.Version)
	}
	for {
		line, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return end, nil // what is there of a line was never acknowledged
		}
		if err != nil {
			return end, err
		}
		c, err := readLogLine(bytes.TrimSuffix(line, []byte("\n")))
		if err != nil {
			if _, more := r.Peek(1); errors.Is(more, io.EOF) {
				return end, nil // a crash may write the end of a line and not its middle
			}
			return end, fmt.Errorf("at byte %d: %w", end, err)
		}
		s := sets[c.Set].Delete(addrset.Runtime, c.Delete...).Add(c.Add...)
		if s.Len() > 0 {
			sets[c.Set] = s
		} else {
			delete(sets, c.Set)
		}
		end += int64(len(line))
	}
}

func readLogLine(line []byte) (Change, error) {
	sum, text, ok := bytes.Cut(line, []byte(" "))
	want, err := strconv.ParseUint(string(sum), 16, 32)
	if !ok || err != nil || crc32.Checksum(text, castagnoli()) != uint32(want) {
		return Change{}, errors.New("a line is not as it was written")
	}
	var in logChange
	if err := json.Unmarshal(text, &in); err != nil {
		return Change{}, err
	}
	c := Change{Set: in.Set}
	for _, r := range in.Delete {
		gone, err := addrset.ParseRange(r)
		if err != nil {
			return Change{}, err
		}
		c.Delete = append(c.Delete, gone)
	}
	for _, e := range in.Add {
		entry, err := e.entry()
		if err != nil {
			return Change{}, err
		}
		c.Add = append(c.Add, entry)
	}
	return c, nil
}
