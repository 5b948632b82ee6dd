package sources

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/nftfw/nftfw/pkg/addrset"
)

// maxLine is the longest line of a list, in bytes. Entries are far shorter;
// comments may go on.
const maxLine = 64 << 10

// lineError is what is wrong with a list, and where.
type lineError struct {
	name string // of the file; "" for a list without one
	line int    // from 1
	err  error
}

func (e *lineError) Error() string {
	if e.name == "" {
		return fmt.Sprintf("line %d: %v", e.line, e.err)
	}
	return fmt.Sprintf("%s:%d: %v", e.name, e.line, e.err)
}

func (e *lineError) Unwrap() error { return e.err }

// readLines reads a list of one entry a line. What follows # or ; is a
// comment, a line without an entry is passed over, and a line with anything
// else is an error: a list is taken whole or not at all. name is the file for
// messages and for the origin of entries, "" for none.
func readLines(r io.Reader, name string, source addrset.Source) ([]addrset.Entry, error) {
	var out []addrset.Entry
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	n := 1
	for ; lines.Scan(); n++ {
		text := lines.Text()
		if n == 1 {
			text = strings.TrimPrefix(text, "\ufeff")
		}
		if i := strings.IndexAny(text, "#;"); i >= 0 {
			text = text[:i]
		}
		text = strings.TrimSpace(text)
		if text == "" {
			continue
		}
		rng, err := parseEntry(text)
		if err != nil {
			return nil, &lineError{name, n, err}
		}
		out = append(out, addrset.Entry{Range: rng, Source: source, Origin: name})
	}
	if err := lines.Err(); err != nil {
		if errors.Is(err, bufio.ErrTooLong) {
			return nil, &lineError{name, n, fmt.Errorf("longer than %d bytes: this is no list", maxLine)}
		}
		return nil, err
	}
	return out, nil
}

// parseEntry reads one entry, with an error that can be shown.
func parseEntry(text string) (addrset.Range, error) {
	const longest = 60 // a web page in place of a list has lines of any length
	rng, err := addrset.ParseRange(text)
	if err == nil {
		return rng, nil
	}
	if len(text) > longest || !utf8.ValidString(text) {
		return rng, fmt.Errorf("%.*q… is not an address, CIDR or range", longest, text)
	}
	return rng, err
}
