package ruleset_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// netns is a network namespace of its own, held by one thread. Commands and
// sockets made inside do belong to it. It goes with its thread when the test
// ends.
type netns struct {
	tid  int
	jobs chan func()
}

// newNetns makes a fresh network namespace, and skips the test where that is
// not allowed.
func newNetns(t testing.TB) *netns {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes a network namespace")
	}
	ns := &netns{jobs: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := syscall.Unshare(syscall.CLONE_NEWNET)
		ns.tid = syscall.Gettid()
		ready <- err
		if err != nil {
			return
		}
		for job := range ns.jobs {
			job()
		}
	}()
	if err := <-ready; err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	t.Cleanup(func() { close(ns.jobs) })
	return ns
}

// do runs f on the thread of the namespace and waits for it.
func (ns *netns) do(f func()) {
	done := make(chan struct{})
	ns.jobs <- func() {
		defer close(done)
		f()
	}
	<-done
}

// try runs a command in the namespace.
func (ns *netns) try(stdin, name string, args ...string) (stdout, stderr string, err error) {
	var out, diag bytes.Buffer
	ns.do(func() {
		cmd := exec.Command(name, args...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &diag
		err = cmd.Run()
	})
	return out.String(), diag.String(), err
}

// run is try for a command that has to succeed.
func (ns *netns) run(t testing.TB, stdin, name string, args ...string) string {
	t.Helper()
	out, diag, err := ns.try(stdin, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s\n%s", name, strings.Join(args, " "), err, diag, numbered(stdin))
	}
	return out
}

// numbered gives the first lines of a text with their numbers, for nft's complaints.
func numbered(text string) string {
	var b strings.Builder
	for i, line := range strings.Split(text, "\n") {
		if i == 60 {
			b.WriteString("...\n")
			break
		}
		fmt.Fprintf(&b, "%3d %s\n", i+1, line)
	}
	return b.String()
}

var (
	counterNumbers = regexp.MustCompile(`packets \d+ bytes \d+`)
	expiryTimes    = regexp.MustCompile(`expires \S+`)
)

// normalize takes the numbers of counters and the expiry times out of a listing.
func normalize(listing string) string {
	listing = counterNumbers.ReplaceAllString(listing, "packets 0 bytes 0")
	return expiryTimes.ReplaceAllString(listing, "expires LATER")
}
