package policy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/invopop/jsonschema"
	validator "github.com/santhosh-tekuri/jsonschema/v6"
	"gopkg.in/yaml.v3"
)

const schemaFile = "../docs/policy.schema.json"

// reflectSchema makes a schema of one of the types of schema_types_test.go.
func reflectSchema(v any) *jsonschema.Schema {
	r := jsonschema.Reflector{
		Anonymous: true, DoNotReference: true, ExpandedStruct: true, RequiredFromJSONSchemaTags: true,
	}
	if err := r.AddGoComments("github.com/nftfw/nftfw/policy", "schema_types_test.go"); err != nil {
		panic(err)
	}
	// The comments of fields are the descriptions; those of types are for
	// readers of the code.
	for name := range r.CommentMap {
		if strings.Count(strings.TrimPrefix(name, "github.com/nftfw/nftfw/policy"), ".") == 1 {
			delete(r.CommentMap, name)
		}
	}
	s := r.Reflect(v)
	s.Version = ""
	setDefaults(reflect.TypeOf(v), s)
	return s
}

// setDefaults puts in the defaults that the library leaves out: those of types
// that give their schema themselves.
func setDefaults(t reflect.Type, s *jsonschema.Schema) {
	if t.Kind() == reflect.Slice {
		t, s = t.Elem(), s.Items
	}
	if t.Kind() != reflect.Struct || s == nil || s.Properties == nil {
		return
	}
	for i := range t.NumField() {
		field := t.Field(i)
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		p, ok := s.Properties.Get(name)
		if !ok {
			continue
		}
		for word := range strings.SplitSeq(field.Tag.Get("jsonschema"), ",") {
			if value, ok := strings.CutPrefix(word, "default="); ok && p.Default == nil {
				p.Default = value
			}
		}
		setDefaults(field.Type, p)
	}
}

func policySchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	s := reflectSchema(FilePolicy{})
	s.Version = jsonschema.Version
	s.Title = "nftfw policy"
	sets, ok := s.Properties.Get("sets")
	if !ok {
		t.Fatal("no property sets")
	}
	sets.PropertyNames = &jsonschema.Schema{
		Pattern: "^" + patternName + "$",
		Not:     &jsonschema.Schema{Enum: anys(reservedSets)},
	}
	return s
}

func anys(list []string) []any {
	out := make([]any, len(list))
	for i, s := range list {
		out[i] = s
	}
	return out
}

func TestSchemaIsCurrent(t *testing.T) {
	got, err := json.MarshalIndent(policySchema(t), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, schemaFile, string(got)+"\n")
}

// The parser lists the keys that it knows when it meets one that it does not.
// At every mapping of the schema they must be those of the schema.
func TestSchemaKnowsTheKeysOfTheParser(t *testing.T) {
	mappings := 0
	var walk func(t *testing.T, s *jsonschema.Schema, path []string)
	walk = func(t *testing.T, s *jsonschema.Schema, path []string) {
		for _, form := range s.AnyOf {
			walk(t, form, path)
		}
		if s.Items != nil {
			walk(t, s.Items, append(slices.Clip(path), "[]"))
		}
		if s.AdditionalProperties != nil && s.AdditionalProperties != jsonschema.FalseSchema {
			walk(t, s.AdditionalProperties, append(slices.Clip(path), "x"))
		}
		if s.Properties == nil {
			return
		}
		mappings++
		var names []string
		for p := s.Properties.Oldest(); p != nil; p = p.Next() {
			names = append(names, p.Key)
			walk(t, p.Value, append(slices.Clip(path), p.Key))
		}
		slices.Sort(names)
		src := unknownKeyAt(path)
		_, _, err := Parse("f", []byte(src))
		if err == nil {
			t.Errorf("%s: no error", src)
			return
		}
		_, known, _ := strings.Cut(err.Error(), "(known: ")
		known, _, _ = strings.Cut(known, ")")
		if diff := cmp.Diff(names, strings.Split(known, ", ")); diff != "" {
			t.Errorf("at %q the schema (-) and the parser (+) know different keys: change schema_types_test.go and run with -update\n%s", strings.Join(path, "."), diff)
		}
	}
	walk(t, policySchema(t), nil)
	if mappings < 12 {
		t.Errorf("the schema has only %d mappings", mappings)
	}
}

// unknownKeyAt is a policy with a key that does not exist in the mapping at
// path; "[]" is an item of a list.
func unknownKeyAt(path []string) string {
	src := "{zzz: 1}"
	for _, key := range slices.Backward(path) {
		if key == "[]" {
			src = "[" + src + "]"
		} else {
			src = "{" + key + ": " + src + "}"
		}
	}
	return "{version: 1, " + src[1:]
}

func compileSchema(t *testing.T) *validator.Schema {
	t.Helper()
	text, err := os.ReadFile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	document, err := validator.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	c := validator.NewCompiler()
	if err := c.AddResource("policy.schema.json", document); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("policy.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// asJSON reads YAML the way editors do: keys are texts.
func asJSON(src []byte) (any, error) {
	var v any
	if err := yaml.Unmarshal(src, &v); err != nil {
		return nil, err
	}
	return textKeys(v), nil
}

func textKeys(v any) any {
	switch v := v.(type) {
	case map[any]any:
		m := make(map[string]any, len(v))
		for k, value := range v {
			m[fmt.Sprint(k)] = textKeys(value)
		}
		return m
	case map[string]any:
		for k, value := range v {
			v[k] = textKeys(value)
		}
		return v
	case []any:
		for i, value := range v {
			v[i] = textKeys(value)
		}
		return v
	default:
		return v
	}
}

// goodPolicies are the policies that this repository shows or ships.
func goodPolicies(t *testing.T) []string {
	t.Helper()
	var list []string
	for _, pattern := range []string{
		"testdata/good/*.yaml", "testdata/compile/*/policy.yaml", "../docs/*.yaml",
		"../examples/*.yaml", "../packaging/*/policy.yaml",
	} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, files...)
	}
	if len(list) < 10 {
		t.Fatalf("only %d policies found", len(list))
	}
	return list
}

func TestSchemaAcceptsGoodPolicies(t *testing.T) {
	schema := compileSchema(t)
	for _, file := range goodPolicies(t) {
		src, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := Parse(file, src); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		document, err := asJSON(src)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		if err := schema.Validate(document); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// beyondSchema are the mistakes that a schema cannot see, each with why. What
// is not valid YAML never comes to it.
var beyondSchema = map[string]string{
	"alias_mistake_once":  "which sets are declared",
	"documents":           "one document is looked at",
	"duplicate_port":      "80 and 80/tcp are one port",
	"log_rate_large":      "compares numbers",
	"port_range_inverted": "compares numbers",
	"tag":                 "the tag is gone where JSON begins",
	"unknown_set":         "which sets are declared",
}

func TestSchemaRefusesMistakes(t *testing.T) {
	schema := compileSchema(t)
	files, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		src, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		document, err := asJSON(src)
		if err != nil {
			continue
		}
		err = schema.Validate(document)
		if _, beyond := beyondSchema[name]; beyond != (err == nil) {
			t.Errorf("%s: the schema says %v", name, err)
		}
	}
}

// The defaults that the schema states are those that hold.
func TestSchemaDefaults(t *testing.T) {
	var defaults func(s *jsonschema.Schema) map[string]any
	defaults = func(s *jsonschema.Schema) map[string]any {
		m := map[string]any{}
		if s.Properties == nil {
			return m
		}
		for p := s.Properties.Oldest(); p != nil; p = p.Next() {
			if p.Value.Default != nil {
				m[p.Key] = p.Value.Default
			} else if inner := defaults(p.Value); len(inner) > 0 {
				m[p.Key] = inner
			}
		}
		return m
	}
	m := defaults(policySchema(t))
	if len(m) < 5 {
		t.Fatalf("defaults of %d sections only: %v", len(m), m)
	}
	m["version"] = 1
	src, err := yaml.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	got, _ := mustParse(t, string(src))
	if diff := cmp.Diff(blank("policy.yaml"), got, compareValues); diff != "" {
		t.Errorf("policy made of the defaults (-want +got):\n%s\n%s", diff, src)
	}
}
