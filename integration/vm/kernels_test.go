package vm

import (
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nftfw/nftfw/integration/vm/remote"
)

// kernelTests are the tests that ask the kernel, by package: their answers must
// not depend on its version.
var kernelTests = map[string]string{
	"nft":         ".",
	"pkg/ruleset": "Kernel|Listing|Listed",
	"pkg/daemon":  "Revoke|Cut|Connections|Permission|CheckPutsRight",
	"pkg/links":   ".",
}

// kernelLacks are the tests that a release's kernel cannot run, of what nftfw
// does without: 6.1 has no tables that outlive their owner, which came with 6.9.
var kernelLacks = map[string]string{"bookworm": "^TestOwnedTables$"}

// TestKernels runs unit tests on the kernels of Debian 12 and 13, in network
// namespaces of the machine's, with smaller sizes where there is a choice.
func TestKernels(t *testing.T) {
	if !wanted() {
		t.Skip("needs root and NFTFW_VM: make test-vm")
	}
	files := slices.Concat(programs.Base(), kernelTestFiles(t), nftFiles(t))
	for _, suite := range Suites {
		t.Run(suite, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, suite)
			s.must(s.Boot(s.ctx(), files...))
			for pkg, run := range kernelTests {
				t.Run(pkg, func(t *testing.T) {
					out, err := s.run(t.Context(), remote.Command{
						Argv:    []string{"sh", "-c", "PATH=/tests/bin:$PATH; cd /tests/" + pkg + " && exec ./tests -test.v -test.short -test.timeout 10m -test.run '" + run + "' -test.skip '" + kernelLacks[suite] + "'"},
						Timeout: 10 * time.Minute,
					})
					if err != nil {
						t.Fatal(err)
					}
					passed := strings.Count(out.Stdout, "\n--- PASS: ")
					if out.Status != 0 || passed == 0 || strings.Contains(out.Stdout, "--- SKIP: ") {
						t.Errorf("exit status %d\n%s%s", out.Status, out.Stdout, out.Stderr)
					}
					t.Logf("%d tests passed", passed)
				})
			}
		})
	}
}

// kernelTestFiles builds the tests of kernelTests, as files of a machine.
func kernelTestFiles(t *testing.T) []File {
	t.Helper()
	var files []File
	dir := t.TempDir()
	for pkg := range kernelTests {
		bin := filepath.Join(dir, filepath.Base(pkg))
		cmd := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", bin, "github.com/nftfw/nftfw/"+pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build the tests of %s: %v\n%s", pkg, err, out)
		}
		files = append(files, File{Path: path.Join("/tests", pkg, "tests"), Mode: 0o755, From: bin})
		files = append(files, testdata(t, pkg)...)
	}
	return files
}

// nftFiles are this machine's nft, with its libraries and a command of that name
// in /tests/bin: what the tests expect of its listings depends on its version,
// and the kernel is what is tried.
func nftFiles(t *testing.T) []File {
	t.Helper()
	const lib = "/tests/lib"
	bin, err := exec.LookPath("nft")
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "ldd", bin).Output()
	if err != nil {
		t.Fatalf("libraries of %s: %v", bin, err)
	}
	files := []File{{Path: path.Join(lib, "nft"), Mode: 0o755, From: bin}}
	for _, word := range strings.Fields(string(out)) {
		// The machine has a C library of its own, which is no older.
		if name := path.Base(word); path.IsAbs(word) && !strings.HasPrefix(name, "ld-linux") && !strings.HasPrefix(name, "libc.") {
			files = append(files, File{Path: path.Join(lib, name), Mode: 0o755, From: word})
		}
	}
	return append(files, File{
		Path: "/tests/bin/nft", Mode: 0o755,
		Text: "#!/bin/sh\nLD_LIBRARY_PATH=" + lib + " exec " + lib + "/nft \"$@\"\n",
	})
}

// testdata are the files that a package's tests read.
func testdata(t *testing.T, pkg string) []File {
	t.Helper()
	folder := filepath.Join("..", "..", pkg)
	found, err := filepath.Glob(filepath.Join(folder, "testdata", "*.*"))
	if err != nil {
		t.Fatal(err)
	}
	var files []File
	for _, from := range found {
		files = append(files, File{Path: path.Join("/tests", pkg, "testdata", filepath.Base(from)), From: from})
	}
	return files
}
