package integration

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/nftfw/nftfw/integration/lab"
)

// binaries are what the tests run, made once by TestMain.
type binaries struct {
	nftfw string
	echo  string
}

var (
	built  binaries
	stages = &pool{}
)

func TestMain(m *testing.M) {
	os.Exit(testMain(m))
}

func testMain(m *testing.M) (code int) {
	flag.Parse()
	if os.Geteuid() != 0 {
		fmt.Println("NOT RUN: the integration tests need root for network namespaces and a Docker engine")
		return m.Run() // each test skips itself
	}
	// The tests mostly wait: for engines, and for packets that do not come.
	if !isSet("test.parallel") {
		if err := flag.Set("test.parallel", "4"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	dir, err := lab.TempDir()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if built, err = build(context.Background(), dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() {
		if err := stages.close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}()
	return m.Run()
}

func isSet(name string) (set bool) {
	flag.Visit(func(f *flag.Flag) { set = set || f.Name == name })
	return set
}

// build makes what the tests run. That nftfw does not build fails the tests
// that need it, not those of the lab.
func build(ctx context.Context, dir string) (b binaries, err error) {
	if b.echo, err = lab.BuildEcho(ctx, dir); err != nil {
		return b, err
	}
	if b.nftfw = os.Getenv("NFTFW_BIN"); b.nftfw != "" {
		if _, err := os.Stat(b.nftfw); err != nil {
			return b, fmt.Errorf("NFTFW_BIN: %w", err)
		}
		return b, nil
	}
	b.nftfw = filepath.Join(dir, "nftfw")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", b.nftfw, "github.com/nftfw/nftfw/cmd/nftfw")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build nftfw: %v\n%s", err, out)
		b.nftfw = ""
	}
	return b, nil
}

// newLogger logs warnings of the lab.
func newLogger() *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// needRoot skips a test that cannot run without root.
func needRoot(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("needs root for network namespaces")
	}
}

// noEngine ends a test for which there is no engine.
func noEngine(tb testing.TB, err error) {
	tb.Helper()
	if errors.Is(err, lab.ErrNoEngine) && os.Getenv("CI") == "" {
		tb.Skip(err)
	}
	tb.Fatal(err)
}
