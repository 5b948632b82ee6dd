package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nftfw/nftfw/pkg/inventory"
	rs "github.com/nftfw/nftfw/pkg/ruleset"
)

// TestCompileGolden compiles testdata/compile/CASE/policy.yaml, or the default
// policy where there is none, with the inventory beside it.
func TestCompileGolden(t *testing.T) {
	dirs, err := filepath.Glob("testdata/compile/*")
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, dir := range dirs {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			p, inv := readCase(t, dir)
			table, diags := Compile(p, withNodes(setsOf(p), inv), inv)
			if err := table.Validate(); err != nil {
				t.Errorf("Compile made an invalid table: %v", err)
			}
			golden(t, filepath.Join(dir, "table.nft"), textOf(table))
			golden(t, filepath.Join(dir, "diagnostics.txt"), strings.Join(append(describeDiagnostics(diags), ""), "\n"))
		})
	}
}

func readCase(t *testing.T, dir string) (*Policy, inventory.Snapshot) {
	t.Helper()
	p := Default(nil)
	src, err := os.ReadFile(filepath.Join(dir, "policy.yaml"))
	if err == nil {
		p, _, err = Parse("policy.yaml", src)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "inventory.json"))
	if err != nil {
		t.Fatal(err)
	}
	var inv inventory.Snapshot
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&inv); err != nil {
		t.Fatalf("inventory.json: %v", err)
	}
	return p, inv
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got), -update accepts it:\n%s", path, diff)
	}
}

// textOf is the table as nft reads it; nothing in these tests expires.
func textOf(table *rs.Table) string { return table.Text(time.Time{}) }

// TestGoldenTablesLoad has nft and the kernel check every table.nft.
func TestGoldenTablesLoad(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes a network namespace")
	}
	tables, err := filepath.Glob("testdata/compile/*/table.nft")
	if err != nil || len(tables) == 0 {
		t.Fatalf("no tables: %v", err)
	}
	type result struct {
		path, output string
		err          error
	}
	results := make(chan result, len(tables)+1)
	go func() {
		defer close(results)
		runtime.LockOSThread() // never unlocked: the namespace goes with the thread
		if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
			results <- result{"network namespace", "", err}
			return
		}
		for _, path := range tables {
			output, err := exec.Command("nft", "-c", "-f", path).CombinedOutput()
			results <- result{path, string(output), err}
		}
	}()
	for r := range results {
		if r.err != nil {
			t.Errorf("%s: %v\n%s", r.path, r.err, r.output)
		}
	}
}
