package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"golang.org/x/term"
)

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
	if !colours(a.stdout) || text == "" {
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

// printTable prints rows aligned under a heading.
func (a *app) printTable(heading []string, rows [][]string) error {
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, strings.Join(heading, "\t"))
	for _, row := range rows {
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	return w.Flush()
}
