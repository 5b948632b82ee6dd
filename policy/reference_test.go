package policy

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/invopop/jsonschema"
)

// forms says in words what stands behind a key, by the type of its field.
var forms = map[string]string{
	"FileFrom":      "FROM",
	"FileEgress":    "destinations",
	"FileToHost":    "`any`, `none`, or a list of PORT",
	"FileSet":       "a list of addresses, or the keys below",
	"FileAddress":   "address",
	"FilePort":      "PORT",
	"FileDuration":  "a duration such as `90s`, `1h` or `7d`",
	"FilePaths":     "a path, or a list of paths",
	"FileColumn":    "a number or a name",
	"FileInterface": "the name of an interface, or its beginning and `*`",
	"FilePattern":   "a text in which `*` and `?` stand for others",
	"FileExpose":    "PORT: FROM, …",
	"FileIngress":   "PORT: FROM, …",
	"bool":          "`true` or `false`",
	"int":           "a number",
	"string":        "a text",
}

// form says what a field takes.
func form(t reflect.Type, s *jsonschema.Schema) string {
	if len(s.Enum) > 0 {
		words := make([]string, len(s.Enum))
		for i, v := range s.Enum {
			words[i] = fmt.Sprintf("`%v`", v)
		}
		return strings.Join(words, " or ")
	}
	switch t.Kind() {
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Struct {
			return "a list of mappings, see below"
		}
		return "a list of: " + form(t.Elem(), &jsonschema.Schema{})
	case reflect.Map:
		return "NAME: " + form(t.Elem(), &jsonschema.Schema{})
	case reflect.Struct:
		return "a mapping, see below"
	}
	return forms[t.Name()]
}

// writeKeys writes a table of the keys of t, and then those of the mappings
// below them.
func writeKeys(b *strings.Builder, t reflect.Type, s *jsonschema.Schema, path string) {
	title := "The top of the file"
	if path != "" {
		title = "`" + path + "`"
	}
	fmt.Fprintf(b, "\n## %s\n\n| key | value | without it | meaning |\n|---|---|---|---|\n", title)
	type below struct {
		t    reflect.Type
		s    *jsonschema.Schema
		path string
	}
	var rest []below
	for i := range t.NumField() {
		field := t.Field(i)
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		p, ok := s.Properties.Get(name)
		if !ok {
			continue
		}
		standard := ""
		if p.Default != nil {
			standard = fmt.Sprintf("`%v`", p.Default)
		}
		for _, required := range s.Required {
			if required == name {
				standard = "must be there"
			}
		}
		fmt.Fprintf(b, "| `%s` | %s | %s | %s |\n", name, strings.ReplaceAll(form(field.Type, p), "|", `\|`), standard,
			strings.ReplaceAll(strings.ReplaceAll(p.Description, "\n", " "), "|", `\|`))
		inner, schema, where := field.Type, p, strings.TrimPrefix(path+"."+name, ".")
		if inner.Kind() == reflect.Slice {
			inner, schema, where = inner.Elem(), p.Items, where+"[]"
		}
		if inner.Kind() == reflect.Map && inner.Elem().Name() == "FileSet" {
			inner, schema, where = reflect.TypeFor[FileSetObject](), reflectSchema(FileSetObject{}), where+".NAME"
		}
		if inner.Kind() == reflect.Struct {
			rest = append(rest, below{inner, schema, where})
		}
	}
	for _, r := range rest {
		writeKeys(b, r.t, r.s, r.path)
	}
}

// docs/policy.md is made of the same types as the schema.
func TestPolicyReference(t *testing.T) {
	var b strings.Builder
	b.WriteString(`# The policy file

/etc/nftfw/policy.yaml. Made from the code by ` + "`make docs`" + `; FROM, PORT and which word
counts are explained in [reference.md](reference.md). An unknown key, a wrong
type or a value out of range is an error with line and column, and the policy in
force stays. Editors that speak JSON Schema take [policy.schema.json](policy.schema.json).
`)
	writeKeys(&b, reflect.TypeFor[FilePolicy](), policySchema(t), "")
	for _, line := range strings.Split(b.String(), "\n") {
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		if cells := strings.Split(line, " | "); len(cells) != 4 || cells[1] == "" || strings.Trim(cells[3], " |") == "" {
			t.Errorf("a key has no comment in schema_types_test.go, or its type no words in forms: %s", line)
		}
	}
	golden(t, "../docs/policy.md", b.String())
}
