package policy

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
)

// Error is one mistake in a policy file.
type Error struct {
	File    string
	Line    int // from 1
	Column  int // from 1, in characters
	Message string
	Snippet string // the line of the file as written, "" where it is too long to show
}

// Error returns FILE:LINE:COL: message.
func (e *Error) Error() string {
	return fmt.Sprintf("%s:%d:%d: %s", e.File, e.Line, e.Column, e.Message)
}

// Excerpt returns the line of the file and a caret below the column, as
// compilers print them, or "" where the line is too long to show. Tabs stay
// tabs in both lines, so that the caret stands right at any width of a tab;
// characters that a terminal would act on are shown as U+FFFD.
func (e *Error) Excerpt() string {
	if e.Snippet == "" {
		return ""
	}
	var line, below strings.Builder
	column := 1
	for _, c := range e.Snippet {
		if c != '\t' && !unicode.IsPrint(c) {
			c = unicode.ReplacementChar
		}
		line.WriteRune(c)
		if column < e.Column {
			if c != '\t' {
				c = ' '
			}
			below.WriteRune(c)
		}
		column++
	}
	number := strconv.Itoa(e.Line)
	return fmt.Sprintf("  %s | %s\n  %*s | %s^", number, line.String(), len(number), "", below.String())
}

// Errors are all the mistakes of one file in the order in which they stand in
// it. It is never empty.
type Errors []*Error

// Error returns one line for each mistake.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, one := range e {
		lines[i] = one.Error()
	}
	return strings.Join(lines, "\n")
}

// Text returns every mistake as compilers print them: the line of Error, and
// below it the Excerpt where there is one.
func (e Errors) Text() string {
	var b strings.Builder
	for i, one := range e {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(one.Error())
		if excerpt := one.Excerpt(); excerpt != "" {
			b.WriteString("\n" + excerpt)
		}
	}
	return b.String()
}

// Unwrap lets errors.As find each *Error.
func (e Errors) Unwrap() []error {
	list := make([]error, len(e))
	for i, one := range e {
		list[i] = one
	}
	return list
}
