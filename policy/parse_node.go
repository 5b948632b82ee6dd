package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

const (
	// maxAliased is how many list items and mapping entries one file may
	// reach through aliases, so that a small file cannot stand for an
	// enormous one.
	maxAliased = 1 << 17
	// maxMerge is how deep merge keys (<<) may lead into one another. An
	// anchor may contain itself.
	maxMerge = 8
	// maxSnippet is the longest line that is shown, in bytes.
	maxSnippet = 240
)

func isEOF(err error) bool { return errors.Is(err, io.EOF) }

// fail reports a mistake at a node.
func (r *reader) fail(n *yaml.Node, format string, args ...any) {
	r.failAt(n.Line, n.Column, format, args...)
}

// failAt reports a mistake. A place outside the file, which the library gives
// for what ends with the file, is moved to the nearest inside.
func (r *reader) failAt(line, column int, format string, args ...any) {
	line, column, snippet := r.place(line, column)
	r.errs = append(r.errs, &Error{
		File: r.file, Line: line, Column: column,
		Message: fmt.Sprintf(format, args...), Snippet: snippet,
	})
}

func (r *reader) place(line, column int) (int, int, string) {
	if r.lines == nil {
		r.lines = bytes.Split(r.src, []byte("\n"))
	}
	line = max(1, min(line, len(r.lines)))
	text := bytes.TrimSuffix(r.lines[line-1], []byte("\r"))
	if len(text) > maxSnippet {
		return line, max(1, min(column, len(text)+1)), ""
	}
	return line, max(1, min(column, utf8.RuneCount(text)+1)), string(text)
}

// indentation is the column at which the text of a line begins.
func (r *reader) indentation(line int) int {
	_, _, text := r.place(line, 1)
	return len(text) - len(strings.TrimLeft(text, " \t")) + 1
}

// find is the place at which text first stands in the file.
func (r *reader) find(text string) (line, column int) {
	before, _, ok := bytes.Cut(r.src, []byte(text))
	if !ok {
		return 1, 1
	}
	start := bytes.LastIndexByte(before, '\n') + 1
	return bytes.Count(before, []byte("\n")) + 1, utf8.RuneCount(before[start:]) + 1
}

// warn reports what is legal and yet worth a word.
func (r *reader) warn(n *yaml.Node, format string, args ...any) {
	line, column, _ := r.place(n.Line, n.Column)
	r.warnings = append(r.warnings, Diagnostic{
		Severity: SeverityWarning,
		Pos:      Pos{File: r.file, Line: line, Column: column},
		Message:  fmt.Sprintf(format, args...),
	})
}

func (r *reader) pos(n *yaml.Node) Pos {
	return Pos{File: r.file, Line: n.Line, Column: n.Column}
}

// resolve follows an alias to what it stands for, and charges for it.
func (r *reader) resolve(n *yaml.Node) *yaml.Node {
	if n.Kind != yaml.AliasNode {
		return n
	}
	target := n.Alias
	if r.aliasBudget < 0 {
		return &yaml.Node{Kind: target.Kind, Tag: target.Tag, Line: n.Line, Column: n.Column}
	}
	if r.aliasBudget -= len(target.Content) + 1; r.aliasBudget < 0 {
		r.fail(n, "aliases repeat more than %d entries: write fewer", maxAliased)
	}
	return target
}

// isNothing reports whether n is null: no value, or one of YAML's words for
// that.
func isNothing(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null"
}

// wrongType reports that n is not what should stand there.
func (r *reader) wrongType(n *yaml.Node, want string) {
	switch {
	case isNothing(n):
		r.fail(n, "expected %s, got nothing: give a value or remove the key", want)
	case n.Kind == yaml.SequenceNode:
		r.fail(n, "expected %s, got a list", want)
	case n.Kind == yaml.MappingNode:
		r.fail(n, "expected %s, got a mapping", want)
	default:
		r.fail(n, "expected %s, got %s", want, describeScalar(n))
	}
}

func describeScalar(n *yaml.Node) string {
	switch n.ShortTag() {
	case "!!str":
		return "the text " + quote(n.Value)
	case "!!int", "!!float":
		return "the number " + quote(n.Value)
	case "!!bool":
		return n.Value
	default:
		return quote(n.Value) + " of type " + quote(n.ShortTag())
	}
}

// text reads a text. A number or a date in its place is most often a text
// that was not quoted.
func (r *reader) text(n *yaml.Node, want string) (string, bool) {
	n = r.resolve(n)
	switch {
	case n.Kind == yaml.ScalarNode && n.ShortTag() == "!!str":
		return n.Value, true
	case n.Kind == yaml.ScalarNode && n.Style&yaml.TaggedStyle == 0 && !isNothing(n):
		r.fail(n, "expected %s, got %s: put it in quotes if it is meant as text", want, describeScalar(n))
	default:
		r.wrongType(n, want)
	}
	return "", false
}

// boolean reads true or false.
func (r *reader) boolean(n *yaml.Node, into *bool) {
	n = r.resolve(n)
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!bool" {
		r.wrongType(n, "true or false")
		return
	}
	*into = strings.EqualFold(n.Value, "true")
}

// choose reads one of a few words.
func choose[T ~string](r *reader, n *yaml.Node, into *T, options ...T) {
	words := make([]string, len(options))
	for i, o := range options {
		words[i] = string(o)
	}
	want := strings.Join(words, " or ")
	s, ok := r.text(n, want)
	if !ok {
		return
	}
	for _, o := range options {
		if s == string(o) {
			*into = o
			return
		}
	}
	r.fail(r.resolve(n), "expected %s, got %s%s", want, quote(s), didYouMean(s, words))
}

// list calls each for the items of a list and reports whether n is one.
func (r *reader) list(n *yaml.Node, want string, each func(*yaml.Node)) bool {
	n = r.resolve(n)
	if n.Kind != yaml.SequenceNode {
		r.wrongType(n, want)
		return false
	}
	for _, item := range n.Content {
		each(r.resolve(item))
	}
	return true
}

// pair is one entry of a mapping.
type pair struct {
	name  string
	key   *yaml.Node
	value *yaml.Node
}

// schema says what to do with the value of each key that a mapping may have.
type schema map[string]func(*yaml.Node)

// pairs reads the entries of a mapping, those of merge keys among them.
func (r *reader) pairs(n *yaml.Node, want string) ([]pair, bool) {
	n = r.resolve(n)
	if n.Kind != yaml.MappingNode {
		r.wrongType(n, "a mapping: "+want)
		return nil, false
	}
	var list []pair
	r.collect(n, map[string]*yaml.Node{}, &list, 0)
	return list, true
}

// collect appends the entries of n that are not in seen yet. What stands in
// the mapping itself goes before what it merges in.
func (r *reader) collect(n *yaml.Node, seen map[string]*yaml.Node, list *[]pair, depth int) {
	var merged []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := r.resolve(n.Content[i]), n.Content[i+1]
		if key.Kind != yaml.ScalarNode {
			r.wrongType(key, "a key")
			continue
		}
		if key.ShortTag() == "!!merge" {
			merged = append(merged, value)
			continue
		}
		if first, twice := seen[key.Value]; twice {
			if depth == 0 {
				r.fail(key, "key %s is given twice, first on line %d: keep one of them", quote(key.Value), first.Line)
			}
			continue
		}
		seen[key.Value] = key
		if isNothing(value) && value.Value == "" {
			// The library places an absent value somewhere after the key.
			value = &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null", Line: key.Line, Column: key.Column}
		}
		*list = append(*list, pair{key.Value, key, value})
	}
	for _, m := range merged {
		r.merge(m, seen, list, depth+1)
	}
}

func (r *reader) merge(n *yaml.Node, seen map[string]*yaml.Node, list *[]pair, depth int) {
	target := r.resolve(n)
	switch {
	case depth > maxMerge:
		r.fail(n, "merge keys lead into one another more than %d deep", maxMerge)
	case target.Kind == yaml.MappingNode:
		r.collect(target, seen, list, depth)
	case target.Kind == yaml.SequenceNode:
		for _, item := range target.Content {
			r.merge(item, seen, list, depth+1)
		}
	default:
		r.wrongType(target, "a mapping to merge in")
	}
}

// fields hands the value of each pair to the schema, and reports keys that it
// does not have and keys that have no effect. path is the place of the
// mapping in the file, "" for the top. It returns the names that were given.
func (r *reader) fields(pairs []pair, path string, s schema) map[string]bool {
	given := make(map[string]bool, len(pairs))
	for _, p := range pairs {
		read, ok := s[p.name]
		if !ok {
			where := ""
			if path != "" {
				where = " in " + path
			}
			known := keysOf(s)
			r.fail(p.key, "unknown key %s%s%s (known: %s)", quote(p.name), where, didYouMean(p.name, known), strings.Join(known, ", "))
			continue
		}
		given[p.name] = true
		read(p.value)
	}
	return given
}

// object reads a mapping with known keys. ok reports whether n is one without
// unknown keys: only then is it worth saying that a key is missing, which
// otherwise is most often the unknown one.
func (r *reader) object(n *yaml.Node, path, want string, s schema) (given map[string]bool, ok bool) {
	pairs, ok := r.pairs(n, want)
	if !ok {
		return nil, false
	}
	given = r.fields(pairs, path, s)
	return given, len(given) == len(pairs)
}
