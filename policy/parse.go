package policy

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// MaxFile is the size of the largest policy file that is read, in bytes.
const MaxFile = 16 << 20

// Parse reads a policy file. name is what messages call it. The error is an
// Errors with every mistake of the file; the policy is nil then. The
// diagnostics are warnings about what is legal and does not do what it seems
// to do; they come with an error too.
func Parse(name string, src []byte) (*Policy, []Diagnostic, error) {
	r := &reader{file: name, src: src, p: blank(name), aliasBudget: maxAliased}
	if root := r.tree(); root != nil {
		r.policy(root)
	}
	slices.SortStableFunc(r.warnings, func(a, b Diagnostic) int {
		return cmp.Or(a.Pos.Line-b.Pos.Line, a.Pos.Column-b.Pos.Column)
	})
	r.warnings = slices.Compact(r.warnings)
	if len(r.errs) > 0 {
		return nil, r.warnings, sortErrors(r.errs)
	}
	return r.p, r.warnings, nil
}

// sortErrors puts errors into the order of the file and drops repetitions,
// which come from a mistake under an anchor that is used more than once.
func sortErrors(errs Errors) Errors {
	slices.SortStableFunc(errs, func(a, b *Error) int {
		return cmp.Or(a.Line-b.Line, a.Column-b.Column)
	})
	return slices.CompactFunc(errs, func(a, b *Error) bool { return *a == *b })
}

// reader walks the nodes of one file and builds the policy. What is wrong
// goes into errs and the walk goes on.
type reader struct {
	file     string
	src      []byte
	p        *Policy
	errs     Errors
	warnings []Diagnostic

	lines       [][]byte // of src, split when the first error asks
	aliasBudget int      // children that may still be reached through aliases
}

// policy reads the whole file.
func (r *reader) policy(root *yaml.Node) {
	pairs, ok := r.pairs(root, "a policy, which begins with version: 1")
	if !ok {
		return
	}
	// Sets first, for the rest of the file names them.
	for _, pair := range pairs {
		if pair.name == "sets" {
			r.sets(pair.value)
		}
	}
	given := r.fields(pairs, "", schema{
		"version":    r.version,
		"mode":       func(n *yaml.Node) { choose(r, n, &r.p.Mode, Enforce, Observe) },
		"interfaces": r.interfaces,
		"sets":       func(*yaml.Node) {},
		"host":       r.host,
		"containers": r.containers,
		"swarm":      r.swarm,
		"forward":    r.forward,
		"log":        r.log,
		"on_revoke":  func(n *yaml.Node) { choose(r, n, &r.p.OnRevoke, Cut, Keep) },
		"metrics":    r.metrics,
	})
	if !given["version"] {
		r.failAt(1, 1, "version is missing: write version: 1")
	}
}

func (r *reader) version(n *yaml.Node) {
	n = r.resolve(n)
	switch {
	case n.Kind != yaml.ScalarNode:
		r.wrongType(n, "the number 1")
	case n.ShortTag() == "!!str":
		r.fail(n, "version is the text %s: write version: 1, without quotes", quote(n.Value))
	case n.ShortTag() != "!!int" || n.Value != "1":
		r.fail(n, "version %s is not known to this release: write version: 1", quote(n.Value))
	}
}

// tree turns the source into the root node of its only document, or reports
// why it cannot and returns nil.
func (r *reader) tree() *yaml.Node {
	if len(r.src) > MaxFile {
		r.failAt(1, 1, "the file is %d bytes long, and %d are the most: put long lists of addresses into sets with nftfw sets add --file", len(r.src), MaxFile)
		return nil
	}
	if !r.legible() {
		return nil
	}
	documents, err := readDocuments(r.src)
	switch {
	case err != nil:
		r.syntaxError(err)
		return nil
	case len(documents) > 1:
		second := documents[1]
		r.fail(second, "a second document begins here: a policy is one document, so remove the line ---")
		return nil
	case len(documents) == 0 || isNothing(documents[0].Content[0]):
		r.failAt(1, 1, "the file is empty: a policy needs at least version: 1")
		return nil
	}
	return documents[0].Content[0]
}

// legible reports whether src is text that YAML allows: UTF-8 without control
// characters. The library says so too, but not where.
func (r *reader) legible() bool {
	line, column := 1, 1
	for i := 0; i < len(r.src); {
		c, size := utf8.DecodeRune(r.src[i:])
		switch {
		case c == utf8.RuneError && size == 1:
			r.failAt(line, column, "byte 0x%02x is not UTF-8 text: save the file as UTF-8", r.src[i])
			return false
		case c < 0x20 && c != '\t' && c != '\n' && c != '\r', c > 0x7e && c < 0xa0 && c != 0x85, c == 0xfffe || c == 0xffff:
			r.failAt(line, column, "control character %U is not allowed: remove it", c)
			return false
		}
		i += size
		column++
		if c == '\n' {
			line, column = line+1, 1
		}
	}
	return true
}

// readDocuments parses at most two documents: one is right, and two are
// enough to know that there are too many.
func readDocuments(src []byte) (list []*yaml.Node, err error) {
	// Some malformed comments make the library panic ("please report").
	defer func() {
		if p := recover(); p != nil {
			list, err = nil, fmt.Errorf("yaml: %v", p)
		}
	}()
	decoder := yaml.NewDecoder(bytes.NewReader(src))
	for len(list) < 2 {
		var document yaml.Node
		if err := decoder.Decode(&document); err != nil {
			if isEOF(err) {
				break
			}
			return nil, err
		}
		if len(document.Content) > 0 {
			list = append(list, &document)
		}
	}
	return list, nil
}

// syntaxError reports an error of the YAML library at its place.
func (r *reader) syntaxError(err error) {
	line, message := splitYAMLError(err)
	if name, ok := strings.CutPrefix(message, "unknown anchor '"); ok {
		name, _, _ = strings.Cut(name, "'")
		line, column := r.find("*" + name)
		r.failAt(line, column, "*%s refers to an anchor that is not there: define &%[1]s before it, or quote the text if it begins with *", name)
		return
	}
	if message == notExpectedKey || message == notExpectedDash {
		line = r.lineOf(message, line)
	}
	if hint, ok := syntaxHints[message]; ok {
		message += ": " + hint
	}
	r.failAt(line, r.indentation(line), "not valid YAML: %s", message)
}

const (
	notExpectedKey       = "did not find expected key"
	notExpectedDash      = "did not find expected '-' indicator"
	notExpectedInList    = "did not find expected ',' or ']'"
	notExpectedInMapping = "did not find expected ',' or '}'"
	notExpectedDocument  = "did not find expected <document start>"
)

// syntaxHints say what to do about messages of the YAML library that leave
// people guessing.
var syntaxHints = map[string]string{
	notExpectedKey:  "check the indentation, and that each line reads key: value",
	notExpectedDash: "check the indentation of the list, and that each item begins with -",
	"did not find expected alphabetic or numeric character": `quote text that begins with * or &, as in "*": any`,
	"found character that cannot start any token":           "indent with spaces, not tabs, and quote text that begins with %, @ or `",
	"mapping values are not allowed in this context":        "check the indentation, and quote text that holds a colon and a space",
	notExpectedInList:                                        "close the list with ]",
	notExpectedInMapping:                                     "close the mapping with }",
	"could not find expected ':'":                            "each key needs a colon and a space after it",
	"found unexpected end of stream":                         "close the quotes",
	"found a tab character that violates indentation":        "indent with spaces",
	"block sequence entries are not allowed in this context": "put the list on lines of its own",
	notExpectedDocument:                                      "a policy is one mapping that begins with version: 1",
	"found unknown escape character":                         "write \\\\ for a backslash, or use single quotes",
}

// splitYAMLError cuts "yaml: line N: message". The line is 1 where there is
// none. The library counts lines from 0 in errors of its parser and from 1 in
// those of its scanner, without saying which it is; the parser's are told by
// their words.
func splitYAMLError(err error) (line int, message string) {
	message = strings.TrimPrefix(err.Error(), "yaml: ")
	rest, ok := strings.CutPrefix(message, "line ")
	if !ok {
		return 1, message
	}
	number, text, ok := strings.Cut(rest, ": ")
	n, convErr := strconv.Atoi(number)
	if !ok || convErr != nil {
		return 1, message
	}
	if slices.Contains(parserMessages, text) {
		n++
	}
	return n, text
}

// parserMessages are the errors that the library's parser gives, as opposed
// to its scanner (parserc.go of gopkg.in/yaml.v3 v3.0.1).
var parserMessages = []string{
	notExpectedKey,
	notExpectedDash,
	notExpectedInList,
	notExpectedInMapping,
	notExpectedDocument,
	"did not find expected node content",
	"found undefined tag handle",
	"found duplicate %YAML directive",
	"found duplicate %TAG directive",
	"found incompatible YAML document",
}

// lineOf finds the line that message is about. The library gives that on
// which the list or mapping around the mistake begins; the mistake itself is
// on the last line of the shortest beginning of the file that is refused in
// the same words.
func (r *reader) lineOf(message string, begin int) int {
	const affordable = 1 << 20 // bytes: the file is parsed about twenty times
	if len(r.src) > affordable {
		return begin
	}
	ends := []int{0}
	for i, c := range r.src {
		if c == '\n' {
			ends = append(ends, i+1)
		}
	}
	ends = append(ends, len(r.src))
	line, _ := slices.BinarySearchFunc(ends, message, func(end int, message string) int {
		_, err := readDocuments(r.src[:end])
		if err != nil {
			if _, got := splitYAMLError(err); got == message {
				return 0
			}
		}
		return -1
	})
	return max(line, begin)
}
