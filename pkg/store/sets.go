package store

import (
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

// setsJSON is sets.json.
type setsJSON struct {
	Version int                    `json:"version"`
	Sets    map[string][]entryJSON `json:"sets"`
}

type entryJSON struct {
	Entry     string     `json:"entry"`
	ExpiresAt *time.Time `json:"expires_at,omitempty"` // RFC 3339 with nanoseconds
	Comment   string     `json:"comment,omitempty"`
}

// errNewer is the one reason for which the generation before is no way out:
// saving over a newer format would lose what it holds.
var errNewer = errors.New("a newer nftfw wrote it")

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
	sets, info, err := readSets(s.path(setsFile))
	if err == nil {
		s.goodSets = info
		return sets, nil
	}
	if errors.Is(err, errNewer) {
		return nil, damaged(s.path(setsFile), err, "install that version, or move the file away")
	}
	prev, _, prevErr := readSets(s.path(setsPrevFile))
	bothMissing := errors.Is(err, fs.ErrNotExist) && errors.Is(prevErr, fs.ErrNotExist)
	if bothMissing {
		return map[string]*addrset.Set{}, nil
	}
	d := damaged(s.path(setsFile), err, setsRemedy)
	if prevErr != nil {
		return nil, d
	}
	d.Fallback = s.path(setsPrevFile)
	return prev, d
}

// SaveSets saves the entries of Source Runtime; others are left out. When it
// returns nil they are on the disk. After an error the former file stands.
// The caller holds the lock.
func (s *Store) SaveSets(sets map[string]*addrset.Set) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	write := func(w io.Writer) error { return writeSets(w, sets) }
	if err := s.replace(setsFile, write, s.generation()); err != nil {
		return err
	}
	// The next save may let this file stand in for the one after it.
	s.goodSets, _ = os.Stat(s.path(setsFile))
	return nil
}

// generation returns the name under which the current sets file is to be
// kept. A damaged one must not push out the good one before it.
func (s *Store) generation() string {
	now, err := os.Stat(s.path(setsFile))
	if err != nil {
		return setsPrevFile
	}
	known := s.goodSets
	if known != nil && os.SameFile(known, now) && known.Size() == now.Size() && known.ModTime().Equal(now.ModTime()) {
		return setsPrevFile
	}
	if _, _, err := readSets(s.path(setsFile)); err != nil {
		return setsBadFile
	}
	return setsPrevFile
}

func readSets(path string) (map[string]*addrset.Set, os.FileInfo, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	doc, err := decodeSets(f)
	if err != nil {
		return nil, nil, err
	}
	sets := make(map[string]*addrset.Set, len(doc.Sets))
	for name, list := range doc.Sets {
		entries := make([]addrset.Entry, len(list))
		for i, e := range list {
			r, err := addrset.ParseRange(e.Entry)
			if err != nil {
				return nil, nil, fmt.Errorf("set %q: %w", name, err)
			}
			entries[i] = addrset.Entry{Range: r, Comment: e.Comment, Source: addrset.Runtime}
			if e.ExpiresAt != nil {
				entries[i].Expires = *e.ExpiresAt
			}
		}
		if len(entries) > 0 {
			sets[name] = addrset.New(entries...)
		}
	}
	return sets, info, nil
}

func decodeSets(r io.Reader) (*setsJSON, error) {
	dec := json.NewDecoder(r)
	var doc setsJSON
	err := dec.Decode(&doc)
	switch {
	case errors.Is(err, io.EOF):
		return nil, errors.New("it is empty")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return nil, errors.New("it is cut short")
	case err != nil:
		return nil, err
	case doc.Version > setsVersion:
		return nil, fmt.Errorf("%w, in version %d of the format", errNewer, doc.Version)
	case doc.Version < 1 || doc.Sets == nil:
		return nil, errors.New("it holds no sets")
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows after its end")
	}
	return &doc, nil
}

// writeSets writes what setsJSON describes, one entry a line. It does without
// encoding/json's reflection and its copy of the whole, which for a million
// entries take longer than the disk.
func writeSets(w io.Writer, sets map[string]*addrset.Set) error {
	line := fmt.Appendf(nil, `{"version":%d,"sets":{`, setsVersion)
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
