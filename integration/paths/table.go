package main

import (
	"errors"
	"fmt"
	"strings"
)

// The table stands between these lines of the document.
const (
	begin = "<!-- table: made by go run ./integration/paths -->"
	end   = "<!-- end of the table -->"
)

// way is one way that a packet can take.
type way struct {
	packet  string
	hook    string   // where it is decided on; "" where no hook of the host sees it
	by      []string // the chains, maps and sets of the table that decide, in that order
	outcome string
	tests   []string // that send such packets, or those that Eval is asked about
}

// group is a heading of the table with its ways.
type group struct {
	name string
	ways []way
}

// fill puts the table into a document.
func fill(text string, groups []group) (string, error) {
	before, rest, ok := strings.Cut(text, begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return "", errors.New("the marks of the table are missing")
	}
	var b strings.Builder
	b.WriteString(before + begin + "\n")
	for _, g := range groups {
		fmt.Fprintf(&b, "\n### %s\n\n| packet | hook | decided by | outcome | shown by |\n|---|---|---|---|---|\n", g.name)
		for _, w := range g.ways {
			hook := w.hook
			if hook == "" {
				hook = "none"
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", w.packet, hook, code(w.by, " › "), w.outcome, code(w.tests, ", "))
		}
	}
	b.WriteString("\n" + end + after)
	return b.String(), nil
}

// code quotes words as code and joins them.
func code(words []string, between string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = "`" + w + "`"
	}
	if len(quoted) == 0 {
		return "–"
	}
	return strings.Join(quoted, between)
}
