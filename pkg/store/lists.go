package store

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nftfw/nftfw/pkg/addrset"
)

// List is the last good list of one source of a set.
type List struct {
	Set    string
	Source string          // the name of the source, and the Source of the entries
	GoodAt time.Time       // when the source last said so
	Resume json.RawMessage // what the source wants to find again, nil for nothing
	// Entries are those of the list, all of Source.
	Entries *addrset.Set
}

// A file of a list holds its head as one line of JSON and then a line for each
// entry, with its expiry, origin and comment where it has them. Every list has
// a file of its own: a refresh writes what it changes and no more. The head ends
// with listSum, the SHA-256 of the file without that and "}; files of earlier
// releases have none.
const (
	listPrefix = "list-"
	listSuffix = ".txt"
	// listVersion is the version of that format.
	listVersion = 1
	listSum     = `,"sha256":"`
	// maxListLine is the longest line that is read back, in bytes.
	maxListLine = 1 << 20
)

const listRemedy = "remove it; it is written anew when its source answers"

type listHead struct {
	Version int             `json:"version"`
	Set     string          `json:"set"`
	Source  string          `json:"source"`
	GoodAt  time.Time       `json:"good_at"`
	Entries int             `json:"entries"`
	Resume  json.RawMessage `json:"resume,omitempty"`
}

// listFile names the file of a list. Names of sets and sources hold characters
// that names of files cannot.
func listFile(set, source string) string {
	sum := sha256.Sum256([]byte(set + "\x00" + source))
	return listPrefix + hex.EncodeToString(sum[:16]) + listSuffix
}

// SaveList keeps a list in place of the one before of that set and source. It
// is on the disk when SaveList returns nil; after an error the former one
// stands. The caller holds the lock.
func (s *Store) SaveList(l List) error {
	head, err := json.Marshal(listHead{
		Version: listVersion, Set: l.Set, Source: l.Source, GoodAt: l.GoodAt.UTC(), Entries: l.Entries.Len(), Resume: l.Resume,
	})
	if err != nil {
		return fmt.Errorf("save list of %s: %w", l.Source, err)
	}
	head = head[:len(head)-1] // without its }
	sum := sha256.New()
	if err := writeList(sum, head, "\n", l.Entries); err != nil {
		return fmt.Errorf("save list of %s: %w", l.Source, err)
	}
	end := fmt.Sprintf("%s%x\"}\n", listSum, sum.Sum(nil))
	return s.replace(listFile(l.Set, l.Source), func(w io.Writer) error { return writeList(w, head, end, l.Entries) }, "")
}

func writeList(w io.Writer, head []byte, end string, entries *addrset.Set) error {
	line := append(slices.Clone(head), end...)
	for e := range entries.Each() {
		if _, err := w.Write(line); err != nil {
			return err
		}
		var err error
		if line, err = appendListEntry(line[:0], e); err != nil {
			return err
		}
	}
	_, err := w.Write(line)
	return err
}

// appendListEntry appends ENTRY [EXPIRES|-] ["ORIGIN" "COMMENT"] as a line.
func appendListEntry(b []byte, e addrset.Entry) ([]byte, error) {
	b = append(b, e.Range.String()...)
	words := e.Origin != "" || e.Comment != ""
	switch {
	case !e.Expires.IsZero():
		var err error
		if b, err = e.Expires.AppendText(append(b, ' ')); err != nil { // RFC 3339 has years to 9999
			return nil, fmt.Errorf("entry %s: expiry: %w", e.Range, err)
		}
	case words:
		b = append(b, " -"...)
	}
	if words {
		b = strconv.AppendQuote(append(b, ' '), e.Origin)
		b = strconv.AppendQuote(append(b, ' '), e.Comment)
	}
	return append(b, '\n'), nil
}

// RemoveList forgets a list. A missing one is no error. The caller holds the
// lock.
func (s *Store) RemoveList(set, source string) error { return s.remove(listFile(set, source)) }

// LoadLists returns all saved lists, in no order. The error joins a
// *DamagedError for each that cannot be used; the others are returned with it.
func (s *Store) LoadLists() ([]List, error) {
	files, err := filepath.Glob(filepath.Join(s.dir, listPrefix+"*"+listSuffix))
	if err != nil {
		return nil, fmt.Errorf("look for saved lists: %w", err)
	}
	var (
		out    []List
		failed []error
	)
	for _, path := range files {
		l, err := readList(path)
		if err != nil {
			failed = append(failed, damaged(path, err, listRemedy))
			continue
		}
		out = append(out, l)
	}
	return out, errors.Join(failed...)
}

func readList(path string) (List, error) {
	f, err := os.Open(path)
	if err != nil {
		return List{}, err
	}
	defer f.Close()
	file := bufio.NewReader(f)
	text, err := file.ReadBytes('\n')
	switch {
	case len(text) == 0 && errors.Is(err, io.EOF):
		return List{}, errors.New("it is empty")
	case err != nil && !errors.Is(err, io.EOF):
		return List{}, err
	}
	var head listHead
	if err := json.Unmarshal(text, &head); err != nil {
		return List{}, err
	}
	if head.Version != listVersion {
		return List{}, fmt.Errorf("it is in version %d of the format, and this nftfw reads %d", head.Version, listVersion)
	}
	sum := sha256.New()
	summed, want, hasSum := bytes.Cut(text, []byte(listSum))
	sum.Write(summed)
	sum.Write([]byte{'\n'})
	lines := bufio.NewScanner(io.TeeReader(file, sum))
	lines.Buffer(nil, maxListLine)
	var entries []addrset.Entry
	words := map[string]string{} // comments repeat: each is kept once
	for lines.Scan() {
		e, err := parseListEntry(lines.Text(), words)
		if err != nil {
			return List{}, fmt.Errorf("line %d: %w", len(entries)+2, err)
		}
		e.Source = addrset.Source(head.Source)
		entries = append(entries, e)
	}
	switch err := lines.Err(); {
	case err != nil:
		return List{}, err
	case len(entries) != head.Entries:
		return List{}, fmt.Errorf("it is cut short or altered: %d entries of %d", len(entries), head.Entries)
	case hasSum && fmt.Sprintf("%x\"}\n", sum.Sum(nil)) != string(want):
		return List{}, errors.New("it was altered: the checksum differs")
	}
	return List{
		Set: head.Set, Source: head.Source, GoodAt: head.GoodAt, Resume: head.Resume, Entries: addrset.New(entries...),
	}, nil
}

func parseListEntry(line string, words map[string]string) (addrset.Entry, error) {
	text, rest, _ := strings.Cut(line, " ")
	r, err := addrset.ParseRange(text)
	if err != nil {
		return addrset.Entry{}, err
	}
	e := addrset.Entry{Range: r}
	expires, rest, _ := strings.Cut(rest, " ")
	if expires != "" && expires != "-" {
		if e.Expires, err = time.Parse(time.RFC3339Nano, expires); err != nil {
			return addrset.Entry{}, err
		}
	}
	for _, into := range []*string{&e.Origin, &e.Comment} {
		if rest == "" {
			break
		}
		quoted, err := strconv.QuotedPrefix(rest)
		if err != nil {
			return addrset.Entry{}, fmt.Errorf("%q is not in quotes: %w", rest, err)
		}
		if _, known := words[quoted]; !known {
			if words[quoted], err = strconv.Unquote(quoted); err != nil {
				return addrset.Entry{}, err
			}
		}
		*into = words[quoted]
		rest = strings.TrimPrefix(rest[len(quoted):], " ")
	}
	return e, nil
}
