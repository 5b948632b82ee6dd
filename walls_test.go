// Package nftfw_test holds the walls between the rooms of this module, so that
// they stand where no linter runs.
package nftfw_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/nftfw/nftfw"

// rooms says which packages of this module each folder may import. A folder
// speaks for those below it that have no entry of their own.
var rooms = map[string][]string{
	".":             nil,
	"policy":        {"pkg/ruleset", "pkg/inventory", "pkg/addrset"},
	"nft":           {"pkg/ruleset", "pkg/addrset"},
	"dockerwatch":   {"pkg/inventory"},
	"pkg/links":     {"pkg/inventory"},
	"pkg/ruleset":   {"pkg/addrset"},
	"pkg/store":     {"pkg/addrset"},
	"pkg/api":       {"pkg/addrset"},
	"pkg/inventory": nil,
	"pkg/addrset":   nil,
	"pkg/daemon": {
		"policy", "nft", "dockerwatch", "pkg/links", "pkg/ruleset", "pkg/store",
		"pkg/api", "pkg/inventory", "pkg/addrset",
	},
	"cmd/nftfw": {
		"policy", "nft", "dockerwatch", "pkg/links", "pkg/ruleset", "pkg/store",
		"pkg/api", "pkg/inventory", "pkg/addrset", "pkg/daemon",
	},
	"integration": {"integration/lab"},
}

// owners says which folders alone may import a foreign module (or what lies
// below that path).
var owners = map[string][]string{
	"github.com/google/nftables": {"nft"},
	"github.com/mdlayher":        {"nft"},
	"github.com/ti-mo":           {"nft"},
	"github.com/docker":          {"dockerwatch"},
	"github.com/vishvananda":     {"pkg/links", "integration"},
	"github.com/spf13":           {"cmd/nftfw"},
}

// testOwners adds to owners what test files alone may import.
var testOwners = map[string][]string{
	// To make links and namespaces to test on.
	"github.com/vishvananda": {"nft", "pkg/daemon", "cmd/nftfw"},
}

type goPackage struct {
	ImportPath                         string
	Imports, TestImports, XTestImports []string
}

func listPackages(t *testing.T) []goPackage {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-e", "-json=ImportPath,Imports,TestImports,XTestImports", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []goPackage
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatalf("decode go list's answer: %v", err)
		}
		pkgs = append(pkgs, p)
	}
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
	pkgs := listPackages(t)
	if len(pkgs) == 0 {
		t.Fatal("go list names no package")
	}
	for _, p := range pkgs {
		folder := folderOf(p.ImportPath)
		if roomOf(folder) == "" {
			t.Errorf("%s is in no room: give it a row in the table of rooms and here", folder)
			continue
		}
		for _, imp := range p.Imports {
			if !mayImport(folder, imp, false) {
				t.Errorf("%s must not import %s", folder, imp)
			}
		}
		for _, imp := range append(p.TestImports, p.XTestImports...) {
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
