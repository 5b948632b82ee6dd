package policy

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestExcerpt(t *testing.T) {
	for _, test := range []struct {
		name    string
		line    int
		column  int
		snippet string
		want    string
	}{
		{"plain", 3, 12, "  default: ofice", "  3 |   default: ofice\n    |            ^"},
		{"first column", 120, 1, "mod: x", "  120 | mod: x\n      | ^"},
		{"behind the end", 1, 9, "mode: \"x", "  1 | mode: \"x\n    |         ^"},
		{"tabs", 2, 4, "\ta\tb", "  2 | \ta\tb\n    | \t \t^"},
		{"characters, not bytes", 2, 4, "äöü: x", "  2 | äöü: x\n    |    ^"},
		{"nothing for the terminal", 2, 7, "mode: \x1b[31m", "  2 | mode: \ufffd[31m\n    |       ^"},
		{"too long to show", 2, 7, "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := &Error{File: "f", Line: test.line, Column: test.column, Message: "m", Snippet: test.snippet}
			if diff := cmp.Diff(test.want, e.Excerpt()); diff != "" {
				t.Errorf("excerpt (-want +got):\n%s", diff)
			}
		})
	}
}

func TestErrorsText(t *testing.T) {
	_, _, err := Parse("f.yaml", []byte("version: 1\nmode: sleep\nhots: {}\n"))
	var errs Errors
	if !errors.As(err, &errs) {
		t.Fatalf("error %T", err)
	}
	want := `f.yaml:2:7: expected enforce or observe, got "sleep"
  2 | mode: sleep
    |       ^
f.yaml:3:1: unknown key "hots", did you mean host? (known: containers, forward, host, interfaces, log, metrics, mode, on_revoke, sets, swarm, version)
  3 | hots: {}
    | ^`
	if diff := cmp.Diff(want, errs.Text()); diff != "" {
		t.Errorf("text (-want +got):\n%s", diff)
	}
}
