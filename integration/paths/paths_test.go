package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const root = "../.."

// The document and the picture are what the command makes.
func TestUpToDate(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "docs", document))
	if err != nil {
		t.Fatal(err)
	}
	filled, err := fill(string(text), ways)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(text), filled); diff != "" {
		t.Errorf("docs/%s is not what go run ./integration/paths makes (-is +made):\n%s", document, diff)
	}
	svg, err := os.ReadFile(filepath.Join(root, "docs", picture))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(svg), draw()); diff != "" {
		t.Errorf("docs/%s is not what go run ./integration/paths makes (-is +made):\n%s", picture, diff)
	}
}

// Every test that the document names is a test of this module, in the table and
// beside it.
func TestNamedTestsExist(t *testing.T) {
	there := testNames(t)
	text, err := os.ReadFile(filepath.Join(root, "docs", document))
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`(Test[A-Za-z0-9]+)`").FindAllStringSubmatch(string(text), -1)
	if len(named) == 0 {
		t.Fatal("no test is named")
	}
	for _, n := range named {
		if !there[n[1]] {
			t.Errorf("docs/%s names %s: there is no such test", document, n[1])
		}
	}
	for _, g := range ways {
		for _, w := range g.ways {
			if len(w.tests) == 0 {
				t.Errorf("%s: %s: no test shows it", g.name, w.packet)
			}
		}
	}
}

// testNames finds the tests of all packages of this module.
func testNames(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata"):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil {
				names[f.Name.Name] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// tables are those of policy's golden files, which are what Compile makes.
func tables(t *testing.T) map[string]string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(root, "policy", "testdata", "compile", "*", "table.nft"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no tables: %v", err)
	}
	out := map[string]string{}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		out[filepath.Base(filepath.Dir(path))] = string(text)
	}
	return out
}

// Every name of a chain, map or set in table and picture is one of the table's.
func TestNamedPartsExist(t *testing.T) {
	there := map[string]bool{}
	for _, text := range tables(t) {
		for _, m := range regexp.MustCompile(`(?m)^\t(?:chain|map|set) (\S+) \{`).FindAllStringSubmatch(text, -1) {
			there[m[1]] = true
		}
	}
	named := map[string]bool{}
	for _, g := range ways {
		for _, w := range g.ways {
			for _, name := range w.by {
				named[name] = true
			}
			if w.hook != "" {
				named[w.hook] = true
			}
		}
	}
	for _, steps := range [][]step{preroutingSteps, forwardSteps, inputSteps} {
		for _, s := range steps {
			named[s.by] = true
		}
	}
	delete(named, "")
	for name := range named {
		if !there[name] {
			t.Errorf("the table has no chain, map or set %s", name)
		}
	}
}

// The steps of a box come in the order of the chain's rules.
func TestStepsAreInOrder(t *testing.T) {
	all := tables(t)
	for _, box := range []struct {
		chain  string
		golden []string // tables that together have every step
		steps  []step
	}{
		{"prerouting", []string{"peers"}, preroutingSteps},
		{"forward", []string{"peers", "to-host", "host-ip"}, forwardSteps},
		{"input", []string{"peers", "to-host"}, inputSteps},
	} {
		seen := map[string]bool{}
		for _, golden := range box.golden {
			_, rest, ok := strings.Cut(all[golden], "\tchain "+box.chain+" {\n")
			rules, _, _ := strings.Cut(rest, "\n\t}\n")
			if !ok {
				t.Fatalf("%s has no chain %s", golden, box.chain)
			}
			_, rest, _ = strings.Cut(all[golden], "\tchain outbound {\n")
			outbound, _, _ := strings.Cut(rest, "\n\t}\n")
			rules = strings.Replace(rules, "goto outbound", "goto outbound\n"+outbound, 1)
			at := 0
			for _, s := range box.steps {
				if s.by == "" || !strings.Contains(rules, s.by) {
					continue
				}
				seen[s.by] = true
				// The last rule that names it: refuse is part of other names.
				i := strings.LastIndex(rules, s.by)
				if i < at {
					t.Errorf("%s: chain %s: %s comes before what is drawn ahead of it", golden, box.chain, s.by)
				}
				at = i
			}
		}
		for _, s := range box.steps {
			if s.by != "" && !seen[s.by] {
				t.Errorf("chain %s: no rule names %s", box.chain, s.by)
			}
		}
	}
}

func TestFillNeedsItsMarks(t *testing.T) {
	for _, text := range []string{"", begin, end, end + begin} {
		if _, err := fill(text, ways); err == nil {
			t.Errorf("fill(%q): no error", text)
		}
	}
}
