// Package nftfw_test holds the walls between the rooms of this module, so that
// they stand where no linter runs.
package nftfw_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/nftfw/nftfw"

// rooms says which packages of this module each folder may import. A folder
// speaks for those below it that have no entry of their own.
var rooms = map[string][]string{
	".":             nil,
	"policy":        {"pkg/ruleset", "pkg/inventory", "pkg/addrset", "pkg/sources/spec"},
	"nft":           {"pkg/ruleset", "pkg/addrset"},
	"dockerwatch":   {"pkg/inventory", "pkg/sockets"},
	"pkg/links":     {"pkg/inventory"},
	"pkg/ruleset":   {"pkg/addrset"},
	"pkg/store":     {"pkg/addrset"},
	"pkg/api":       {"pkg/addrset"},
	"pkg/inventory": nil,
	"pkg/addrset":   nil,
	"pkg/confine":   nil, // alone gives up what the process may do
	"pkg/nflog":     nil, // alone hears what rules log, and reads headers of packets
	"pkg/sockets":   nil, // alone lists the host's sockets, and who holds them
	// Where lists of addresses are kept. What a policy says of those places is
	// plain values in a room of their own: policy speaks to nobody.
	"pkg/sources":      {"pkg/addrset", "pkg/sources/spec"},
	"pkg/sources/spec": nil,
	"pkg/daemon": {
		"policy", "nft", "dockerwatch", "pkg/links", "pkg/ruleset", "pkg/store",
		"pkg/api", "pkg/inventory", "pkg/addrset", "pkg/sources", "pkg/nflog", "pkg/sockets",
	},
	"cmd/nftfw": {
		"policy", "nft", "dockerwatch", "pkg/links", "pkg/ruleset", "pkg/store",
		"pkg/api", "pkg/inventory", "pkg/addrset", "pkg/daemon", "pkg/doctor",
		"pkg/sources", "pkg/migrate", "pkg/confine",
	},
	"pkg/migrate": {"policy", "pkg/addrset"},
	"pkg/doctor": {
		"policy", "nft", "dockerwatch", "pkg/links", "pkg/ruleset", "pkg/store",
		"pkg/api", "pkg/inventory",
	},
	"integration": {"integration/lab", "integration/vm/remote"},
}

// owners says which folders alone may import a foreign module (or what lies
// below that path).
var owners = map[string][]string{
	"github.com/google/nftables": {"nft"},
	"github.com/mdlayher":        {"nft"},
	"github.com/docker":          {"dockerwatch"},
	"github.com/vishvananda":     {"pkg/links", "pkg/sockets", "integration"},
	"github.com/prometheus":      {"pkg/daemon"},
	"github.com/spf13":           {"cmd/nftfw"},
	"github.com/florianl":        {"pkg/nflog"},
	"github.com/fsnotify":        {"pkg/sources"},
	"github.com/miekg":           {"pkg/sources"},
	"connectrpc.com":             {"pkg/sources"},
	"google.golang.org/protobuf": {"pkg/sources"},
	"kernel.org":                 {"pkg/confine"},
	"gonum.org":                  {"integration/bench"},
	// 7 MB in every binary, and a third of the start of every command.
	"go.etcd.io":             nil,
	"google.golang.org/grpc": nil,
}

// testOwners adds to owners what test files alone may import.
var testOwners = map[string][]string{
	// To make links and namespaces to test on.
	"github.com/vishvananda": {"nft", "pkg/daemon", "cmd/nftfw"},
}

// goPackage is what the files of one folder import.
type goPackage struct {
	imports, testImports []string
}

// readPackages reads the import lines of all Go files, by folder. It reads
// them itself rather than ask the go command, so that a cached result is
// forgotten when they change.
func readPackages(t *testing.T) map[string]*goPackage {
	t.Helper()
	pkgs := map[string]*goPackage{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata"):
			return filepath.SkipDir
		case d.IsDir() || filepath.Ext(path) != ".go":
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		folder := filepath.ToSlash(filepath.Dir(path))
		p := pkgs[folder]
		if p == nil {
			p = &goPackage{}
			pkgs[folder] = p
		}
		into := &p.imports
		if strings.HasSuffix(path, "_test.go") {
			into = &p.testImports
		}
		for _, spec := range f.Imports {
			name, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if !slices.Contains(*into, name) {
				*into = append(*into, name)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatalf("read the imports: %v", err)
	}
	return pkgs
}

// below reports whether path is dir or lies under it.
func below(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, dir+"/")
}

// roomOf returns the room that speaks for a folder, "" if none does.
func roomOf(folder string) string {
	best := ""
	for room := range rooms {
		if below(folder, room) && len(room) > len(best) {
			best = room
		}
	}
	return best
}

func folderOf(importPath string) string {
	if importPath == module {
		return "."
	}
	return strings.TrimPrefix(importPath, module+"/")
}

func mayImport(folder, imp string, inTest bool) bool {
	room := roomOf(folder)
	if below(imp, module) {
		to := folderOf(imp)
		return roomOf(to) == room && below(to, folder) || // its own parts and test kits
			slices.ContainsFunc(rooms[room], func(ok string) bool { return below(to, ok) }) ||
			inTest && to == folder
	}
	for path, owner := range owners {
		if !below(imp, path) {
			continue
		}
		if inTest {
			owner = append(slices.Clone(owner), testOwners[path]...)
		}
		return slices.ContainsFunc(owner, func(o string) bool { return below(folder, o) })
	}
	return true
}

func TestWalls(t *testing.T) {
	pkgs := readPackages(t)
	if len(pkgs) < len(rooms)/2 {
		t.Fatalf("found only %d packages", len(pkgs))
	}
	for folder, p := range pkgs {
		if roomOf(folder) == "" {
			t.Errorf("%s is in no room: give it a row in the table of rooms and here", folder)
			continue
		}
		for _, imp := range p.imports {
			if !mayImport(folder, imp, false) {
				t.Errorf("%s must not import %s", folder, imp)
			}
		}
		for _, imp := range p.testImports {
			if !mayImport(folder, imp, true) {
				t.Errorf("the tests of %s must not import %s", folder, imp)
			}
		}
	}
}

func TestMayImport(t *testing.T) {
	tests := []struct {
		folder, imp string
		inTest      bool
		want        bool
	}{
		{"policy", module + "/pkg/ruleset", false, true},
		{"policy", module + "/nft", false, false},
		{"policy", module + "/dockerwatch", true, false},
		{"nft", module + "/policy", true, false},
		{"nft", "github.com/google/nftables", false, true},
		{"pkg/daemon", "github.com/google/nftables/expr", false, false},
		{"pkg/daemon", module + "/cmd/nftfw", false, false},
		{"pkg/links", "github.com/vishvananda/netlink", false, true},
		{"pkg/daemon", "github.com/vishvananda/netns", false, false},
		{"pkg/daemon", "github.com/vishvananda/netns", true, true},
		{"integration/demo", module + "/integration/lab", false, true},
		{"integration", module + "/pkg/api", true, false},
		{"integration", "github.com/docker/docker/client", true, false},
		{"pkg/addrset", "net/netip", false, true},
		{"pkg/addrset", module + "/pkg/addrset", true, true},
	}
	for _, tt := range tests {
		if got := mayImport(tt.folder, tt.imp, tt.inTest); got != tt.want {
			t.Errorf("mayImport(%q, %q, test %v) = %v, want %v", tt.folder, tt.imp, tt.inTest, got, tt.want)
		}
	}
}
