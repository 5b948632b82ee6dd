package store

import (
	"bufio"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/nftfw/nftfw/pkg/addrset"
)

// setsVersion is the version of the format of sets.json.
const setsVersion = 1

// sets.json is {"version": 1, "save": ID, "after": CHECKSUM, "sets": {NAME: [entryJSON, …]}}.
// Changes that came after it was written are in sets.log. CHECKSUM is that of the sets
// file before, whose log may stand still; none where that one could not be read.

// savedSets is what a sets file holds.
type savedSets struct {
	sets       map[string]*addrset.Set
	info       os.FileInfo
	sum, after string // its own checksum, and that of the one before or ""
}

type entryJSON struct {
	Entry     string     `json:"entry"`
	ExpiresAt *time.Time `json:"expires_at,omitempty"` // RFC 3339 with nanoseconds
	Comment   string     `json:"comment,omitempty"`
}

// errNewer is the one reason for which the generation before is no way out:
// saving over a newer format would lose what it holds.
var errNewer = errors.New("a newer nftfw wrote it")

const newerRemedy = "install that version, or move the file away"

const setsRemedy = "correct the file, or remove it and sets.json.prev to begin with empty sets"

// LoadSets returns the saved runtime entries by set. Sets without any are
// left out; with nothing saved yet the map is empty.
//
// When the file is damaged, empty, missing or unreadable, LoadSets returns
// the sets of the save before together with a *DamagedError whose Fallback
// names the file they are from: the caller may go on, and should say so. When
// there is none to fall back to, it returns a *DamagedError and no sets.
func (s *Store) LoadSets() (map[string]*addrset.Set, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	saved, err := readSets(s.path(setsFile))
	for try := 1; err == nil; try++ {
		s.goodSets = saved.info
		replayed, damage := s.replay(saved)
		// Whoever reads without the lock may have a file and the log of the one after
		// it, in which nothing is for this one.
		if s.current(saved.info) || try == readAttempts {
			return replayed, damage
		}
		saved, err = readSets(s.path(setsFile))
	}
	s.journal = journal{}
	if errors.Is(err, errNewer) {
		return nil, damaged(s.path(setsFile), err, newerRemedy)
	}
	prev, prevErr := readSets(s.path(setsPrevFile))
	_, logErr := os.Lstat(s.path(logFile))
	if errors.Is(err, fs.ErrNotExist) && errors.Is(prevErr, fs.ErrNotExist) && errors.Is(logErr, fs.ErrNotExist) {
		return map[string]*addrset.Set{}, nil
	}
	d := damaged(s.path(setsFile), err, setsRemedy)
	if prevErr != nil {
		return nil, d
	}
	d.Fallback = s.path(setsPrevFile)
	return s.replayFormer(prev.sets, prev.sum), d
}

// readAttempts bounds how often sets are read again because they were written anew
// meanwhile.
const readAttempts = 10

// current tells whether the sets file is the one of which info is.
func (s *Store) current(info os.FileInfo) bool {
	now, err := os.Stat(s.path(setsFile))
	return err == nil && os.SameFile(info, now) && info.Size() == now.Size() && info.ModTime().Equal(now.ModTime())
}

// SaveSets saves the entries of Source Runtime; others are left out. When it
// returns nil they are on the disk. After an error the former file stands.
// The caller holds the lock.
func (s *Store) SaveSets(sets map[string]*addrset.Set) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.saveSets(sets)
}

func (s *Store) saveSets(sets map[string]*addrset.Set) error {
	hash := sha256.New()
	write := func(w io.Writer) error { return writeSets(io.MultiWriter(w, hash), sets, s.journal.of) }
	keep := s.generation()
	known := s.journal.of != ""
	if known && s.journal.end == 0 {
		s.dropLog() // of the file before the current one, and soon of neither
	}
	if err := s.replace(setsFile, write, keep); err != nil {
		return err
	}
	// The next save may let this file stand in for the one after it.
	s.goodSets, _ = os.Stat(s.path(setsFile))
	if !known {
		s.dropLog()
	}
	s.journal = journal{of: hex.EncodeToString(hash.Sum(nil))}
	return nil
}

// generation returns the name under which the current sets file is to be
// kept. A damaged one must not push out the good one before it.
func (s *Store) generation() string {
	if _, err := os.Stat(s.path(setsFile)); err != nil || s.goodSets != nil && s.current(s.goodSets) {
		return setsPrevFile
	}
	if _, err := readSets(s.path(setsFile)); err != nil {
		return setsBadFile
	}
	return setsPrevFile
}

func readSets(path string) (savedSets, error) {
	f, err := os.Open(path)
	if err != nil {
		return savedSets{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return savedSets{}, err
	}
	hash := sha256.New()
	saved, err := decodeSets(io.TeeReader(f, hash))
	if err != nil {
		return savedSets{}, err
	}
	saved.info, saved.sum = info, hex.EncodeToString(hash.Sum(nil))
	return saved, nil
}

// decodeSets reads a sets file's text, without its info and sum.
func decodeSets(r io.Reader) (savedSets, error) {
	d := setsDecoder{dec: json.NewDecoder(bufio.NewReaderSize(r, 1<<16))}
	err := d.document()
	switch {
	case errors.Is(err, io.EOF) && !d.begun:
		return savedSets{}, errors.New("it is empty")
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return savedSets{}, errors.New("it is cut short")
	case d.version > setsVersion:
		return savedSets{}, fmt.Errorf("%w, in version %d of the format", errNewer, d.version)
	case err != nil:
		return savedSets{}, err
	case d.version < 1 || d.sets == nil:
		return savedSets{}, errors.New("it holds no sets")
	}
	if _, err := d.dec.Token(); !errors.Is(err, io.EOF) {
		return savedSets{}, errors.New("something follows after its end")
	}
	return savedSets{sets: d.sets, after: d.after}, nil
}

// setsDecoder reads a document one entry after the
// other, so that a million of them are never there as text.
type setsDecoder struct {
	dec     *json.Decoder
	begun   bool
	version int
	after   string
	sets    map[string]*addrset.Set
}

func (d *setsDecoder) document() error {
	return d.object(func(key string) error {
		switch key {
		case "version":
			return d.dec.Decode(&d.version)
		case "after":
			return d.dec.Decode(&d.after)
		case "sets":
			d.sets = map[string]*addrset.Set{}
			return d.object(d.set)
		}
		var other json.RawMessage
		return d.dec.Decode(&other)
	})
}

// object calls f at the value of each key of the object that comes next.
func (d *setsDecoder) object(f func(key string) error) error {
	if err := d.delim('{'); err != nil {
		return err
	}
	for d.dec.More() {
		token, err := d.dec.Token()
		if err != nil {
			return err
		}
		key, _ := token.(string)
		if err := f(key); err != nil {
			return err
		}
	}
	return d.delim('}')
}

func (d *setsDecoder) delim(want json.Delim) error {
	token, err := d.dec.Token()
	if err != nil {
		return err
	}
	d.begun = true
	if token == nil {
		return errors.New("it holds no sets")
	}
	if token != want {
		return fmt.Errorf("%v where a %v should be", token, want)
	}
	return nil
}

func (d *setsDecoder) set(name string) error {
	if err := d.delim('['); err != nil {
		return err
	}
	var b addrset.Builder
	for d.dec.More() {
		var e entryJSON
		if err := d.dec.Decode(&e); err != nil {
			return err
		}
		entry, err := e.entry()
		if err != nil {
			return fmt.Errorf("set %q: %w", name, err)
		}
		b.Add(entry)
	}
	if s := b.Set(); s.Len() > 0 {
		d.sets[name] = s
	}
	return d.delim(']')
}

func (e *entryJSON) entry() (addrset.Entry, error) {
	r, err := addrset.ParseRange(e.Entry)
	out := addrset.Entry{Range: r, Comment: e.Comment, Source: addrset.Runtime}
	if e.ExpiresAt != nil {
		out.Expires = *e.ExpiresAt
	}
	return out, err
}

// writeSets writes sets.json, one entry a line. It does without
// encoding/json's reflection and its copy of the whole, which for a million
// entries take longer than the disk. after is the checksum of the sets file before.
func writeSets(w io.Writer, sets map[string]*addrset.Set, after string) error {
	// No two saves are alike, so that each has a checksum of its own.
	line := fmt.Appendf(nil, `{"version":%d,"save":"%s",`, setsVersion, rand.Text())
	if after != "" {
		line = fmt.Appendf(line, `"after":"%s",`, after)
	}
	line = append(line, `"sets":{`...)
	first := true
	for _, name := range slices.Sorted(maps.Keys(sets)) {
		sep := "\n"
		if !first {
			sep = ",\n"
		}
		n := 0
		for e := range sets[name].Each() {
			if e.Source != addrset.Runtime {
				continue
			}
			if n++; n == 1 {
				line = append(line, sep...)
				line = append(appendJSON(line, name), ":["...)
				first = false
			} else {
				line = append(line, ',')
			}
			var err error
			if line, err = appendEntry(append(line, '\n'), e); err != nil {
				return fmt.Errorf("set %s: %w", name, err)
			}
			if _, err := w.Write(line); err != nil {
				return err
			}
			line = line[:0]
		}
		if n > 0 {
			line = append(line, ']')
		}
	}
	_, err := w.Write(append(line, "}}\n"...))
	return err
}

func appendEntry(b []byte, e addrset.Entry) ([]byte, error) {
	b = append(b, `{"entry":"`...)
	b = append(append(b, e.Range.String()...), '"')
	if !e.Expires.IsZero() {
		b = append(b, `,"expires_at":"`...)
		var err error
		if b, err = e.Expires.AppendText(b); err != nil { // RFC 3339 has years to 9999
			return nil, fmt.Errorf("entry %s: expiry: %w", e.Range, err)
		}
		b = append(b, '"')
	}
	if e.Comment != "" {
		b = appendJSON(append(b, `,"comment":`...), e.Comment)
	}
	return append(b, '}'), nil
}

// appendJSON appends s as a JSON string. Bytes that are not UTF-8 come out as
// U+FFFD.
func appendJSON(b []byte, s string) []byte {
	quoted, err := json.Marshal(s)
	if err != nil {
		return append(b, `""`...) // not reached: every string has a JSON form
	}
	return append(b, quoted...)
}
