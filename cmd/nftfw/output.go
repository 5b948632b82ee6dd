package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/term"
)

// output is where answers go. It keeps the first error.
type output struct {
	io.Writer
	err error
}

func (o *output) Write(b []byte) (int, error) {
	n, err := o.Writer.Write(b)
	if o.err == nil {
		o.err = err
	}
	return n, err
}

// printJSON prints one object.
func (a *app) printJSON(v any) error {
	enc := json.NewEncoder(a.stdout)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

func (a *app) warn(message string) { fmt.Fprintln(a.stderr, "nftfw: warning: "+message) }

// colours says whether a stream may be coloured: only a terminal, and never
// with NO_COLOR (https://no-color.org).
func colours(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && os.Getenv("NO_COLOR") == "" && term.IsTerminal(int(f.Fd()))
}

// paint wraps text in an SGR sequence (ECMA-48) where colours are wanted.
func (a *app) paint(code, text string) string {
	if !colours(a.stdout.Writer) || text == "" || code == "" {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// SGR codes.
const (
	red    = "31"
	green  = "32"
	yellow = "33"
)

// SGR codes of a heading, and of what stands beside.
const (
	bold  = "1"
	faint = "2"
)

// cell is a field of a table, in a colour or, with a code of "", in none.
type cell struct{ text, code string }

// printTable prints rows aligned under a heading.
func (a *app) printTable(heading []string, rows [][]string) error {
	coloured := make([][]cell, len(rows))
	for i, row := range rows {
		for _, text := range row {
			coloured[i] = append(coloured[i], cell{text: text})
		}
	}
	return a.printCells(heading, coloured)
}

// printCells prints rows aligned under a heading. It counts characters, not
// bytes, and not those that colour. A column in which nothing stands is left
// out.
func (a *app) printCells(heading []string, rows [][]cell) error {
	widths := make([]int, len(heading))
	for _, row := range rows {
		for i, c := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(c.text))
		}
	}
	first := make([]cell, len(heading))
	for i, text := range heading {
		first[i] = cell{text, bold}
		if widths[i] > 0 || len(rows) == 0 {
			widths[i] = max(widths[i], utf8.RuneCountInString(text))
		}
	}
	var b strings.Builder
	for _, row := range append([][]cell{first}, rows...) {
		gap := 0
		for i, c := range row {
			if widths[i] == 0 {
				continue
			}
			if c.text != "" {
				b.WriteString(strings.Repeat(" ", gap))
				b.WriteString(a.paint(c.code, c.text))
				gap = 0
			}
			gap += widths[i] - utf8.RuneCountInString(c.text) + columnGap
		}
		b.WriteByte('\n')
	}
	_, err := io.WriteString(a.stdout, b.String())
	return err
}

// columnGap is what lies between two columns.
const columnGap = 2
