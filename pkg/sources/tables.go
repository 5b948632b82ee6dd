package sources

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/nftfw/nftfw/pkg/addrset"
)

// readJSON reads the entries to which paths lead in a JSON document, each to one
// at least. A path is keys with dots between them. Lists are gone through wherever they stand, and
// an object without the key has no entry: the documents of the large clouds
// hold one key in some of their objects and another in the rest.
func readJSON(body []byte, paths []string, source addrset.Source) ([]addrset.Entry, error) {
	var document any
	if err := json.Unmarshal(body, &document); err != nil {
		return nil, fmt.Errorf("the answer is no JSON document: %w", err)
	}
	var out []addrset.Entry
	for _, path := range paths {
		w := jsonWalk{path: path, source: source}
		if err := w.walk(document, strings.Split(path, ".")); err != nil {
			return nil, err
		}
		if len(w.found) == 0 {
			return nil, fmt.Errorf("the JSON document has no entries at %s", path)
		}
		out = append(out, w.found...)
	}
	return out, nil
}

type jsonWalk struct {
	path   string
	source addrset.Source
	found  []addrset.Entry
}

func (w *jsonWalk) walk(v any, keys []string) error {
	switch v := v.(type) {
	case nil:
		return nil
	case []any:
		for _, item := range v {
			if err := w.walk(item, keys); err != nil {
				return err
			}
		}
		return nil
	case map[string]any:
		if len(keys) == 0 {
			return fmt.Errorf("the JSON document has an object at %s: name one of its keys", w.path)
		}
		return w.walk(v[keys[0]], keys[1:])
	case string:
		if len(keys) > 0 {
			return fmt.Errorf("the JSON document has a text above %s, where %q was looked for", w.path, keys[0])
		}
		rng, err := parseEntry(strings.TrimSpace(v))
		if err != nil {
			return fmt.Errorf("at %s of the JSON document: %w", w.path, err)
		}
		w.found = append(w.found, addrset.Entry{Range: rng, Source: w.source})
		return nil
	default:
		return fmt.Errorf("the JSON document has %v at %s, which is no text", v, w.path)
	}
}

// readCSV reads one column of a CSV document (RFC 4180; lines that begin with
// # are passed over). column is the number of the column, from 1, or its name
// in the first line. Cells without anything in them are passed over.
func readCSV(body []byte, column string, source addrset.Source) ([]addrset.Entry, error) {
	records := csv.NewReader(bytes.NewReader(bytes.TrimPrefix(body, []byte("\ufeff"))))
	records.Comment, records.FieldsPerRecord, records.TrimLeadingSpace, records.ReuseRecord = '#', -1, true, true
	number, err := strconv.Atoi(column)
	named := err != nil
	var out []addrset.Entry
	for first := true; ; first = false {
		record, err := records.Read()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("the answer is no CSV document: %w", err)
		}
		if first && named {
			if number, err = columnOf(record, column); err != nil {
				return nil, err
			}
			continue
		}
		line, _ := records.FieldPos(0)
		if number > len(record) {
			return nil, &lineError{line: line, err: fmt.Errorf("no column %s, the line has %d", column, len(record))}
		}
		cell := strings.TrimSpace(record[number-1])
		if cell == "" {
			continue
		}
		rng, err := parseEntry(cell)
		if err != nil {
			if first {
				continue // the names of the columns
			}
			return nil, &lineError{line: line, err: err}
		}
		out = append(out, addrset.Entry{Range: rng, Source: source})
	}
}

// columnOf gives the number of the column of that name, from 1.
func columnOf(names []string, name string) (int, error) {
	i := slices.IndexFunc(names, func(n string) bool { return strings.EqualFold(strings.TrimSpace(n), name) })
	if i < 0 {
		return 0, fmt.Errorf("no column %q in the first line (%.200q)", name, names)
	}
	return i + 1, nil
}
