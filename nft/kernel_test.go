package nft

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nftfw/nftfw/pkg/ruleset"
)

// inNamespace gives the calling test a network namespace of its own and a
// Kernel in it. The thread is never unlocked, so that it dies with the test.
func inNamespace(t testing.TB) *Kernel {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make a network namespace")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("unshare: %v", err)
	}
	k, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	return k
}

// nft runs the nft command in the namespace of k, with input on its stdin. The
// command runs where the calling thread is, which is another one in a subtest.
func nft(t testing.TB, k *Kernel, input string, args ...string) string {
	t.Helper()
	out, err := tryNft(t, k, input, args...)
	if err != nil {
		t.Fatalf("nft %s: %v\n%s%s", strings.Join(args, " "), err, out, input)
	}
	return out
}

func tryNft(t testing.TB, k *Kernel, input string, args ...string) (string, error) {
	t.Helper()
	if !k.inside() {
		t.Fatal("nft would run outside the namespace of the test")
	}
	cmd := exec.Command("nft", args...)
	cmd.Stdin = strings.NewReader(input)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// observe reads the table, and fails the test when it cannot.
func observe(t testing.TB, k *Kernel, table string) *State {
	t.Helper()
	s, err := k.Observe(context.Background(), table)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func commit(t testing.TB, k *Kernel, p Plan) {
	t.Helper()
	if err := k.Commit(context.Background(), p); err != nil {
		t.Fatalf("%v\n%s", err, strings.Join(p.Lines(), "\n"))
	}
}

// put makes the kernel's table equal to want, whatever it was.
func put(t testing.TB, k *Kernel, want *ruleset.Table) {
	t.Helper()
	commit(t, k, Diff(observe(t, k, want.Name), want, time.Now()))
}

// wantSettled fails unless the kernel's table is want.
func wantSettled(t testing.TB, k *Kernel, want *ruleset.Table) {
	t.Helper()
	// The kernel tells how long an element lives yet: who is kept from reading
	// that for seconds takes it for a later end. So look again.
	for deadline := time.Now().Add(30 * time.Second); ; {
		p := Diff(observe(t, k, want.Name), want, time.Now())
		if p.Empty() {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the table differs from the one that was committed:\n%s", strings.Join(p.Lines(), "\n"))
		}
	}
}

// blocks splits the listing of a table into its sets and chains, sorted: the
// kernel lists them in the order in which they were made.
func blocks(listing string) []string {
	listing = expiry.ReplaceAllString(counters.ReplaceAllString(listing, "counter packets 0 bytes 0"), "timeout T expires T")
	lines := strings.Split(strings.TrimSpace(listing), "\n")
	var out []string
	var block []string
	for _, l := range lines[1 : len(lines)-1] {
		if l == "" {
			continue
		}
		block = append(block, l)
		if l == "\t}" {
			out = append(out, strings.Join(block, "\n"))
			block = nil
		}
	}
	slices.Sort(out)
	return out
}
