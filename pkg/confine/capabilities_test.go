package confine

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// childEnv marks the process that the test starts to confine itself.
const childEnv = "NFTFW_TEST_CONFINE"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		if err := child(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// child confines itself and says what it may do still.
func child() error {
	// Threads that were there before, one of them not the runtime's to reuse.
	hold := make(chan struct{})
	defer close(hold)
	for range 4 {
		started := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(started)
			<-hold
		}()
		<-started
	}
	if err := Capabilities(unix.CAP_NET_ADMIN, unix.CAP_SYS_PTRACE); err != nil {
		return err
	}
	tasks, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil || len(tasks) < 5 {
		return fmt.Errorf("threads %v: %w", tasks, err)
	}
	for _, path := range tasks {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		fmt.Println(strings.Join(lines(string(text), "CapInh", "CapPrm", "CapEff", "CapAmb", "NoNewPrivs"), " "))
	}
	out, err := exec.Command("grep", "CapEff", "/proc/self/status").CombinedOutput()
	fmt.Printf("executed: %s", out)
	return err
}

func lines(status string, keys ...string) []string {
	var out []string
	for line := range strings.Lines(status) {
		for _, k := range keys {
			if v, ok := strings.CutPrefix(line, k+":"); ok {
				out = append(out, k+"="+strings.TrimSpace(v))
			}
		}
	}
	return out
}

func TestCapabilities(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to have capabilities")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), childEnv+"=1")
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	kept := uint64(1)<<unix.CAP_NET_ADMIN | uint64(1)<<unix.CAP_SYS_PTRACE
	want := fmt.Sprintf("CapInh=%016x CapPrm=%016x CapEff=%016x CapAmb=%016x NoNewPrivs=1", 0, kept, kept, 0)
	threads := 0
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(line)
		if after, ok := strings.CutPrefix(line, "executed: "); ok {
			if after != fmt.Sprintf("CapEff:\t%016x", kept) && after != fmt.Sprintf("CapEff:\t%016x", 0) {
				t.Errorf("a program that it executed has %s", after)
			}
			continue
		}
		threads++
		if line != want {
			t.Errorf("a thread has\n%s, want\n%s", line, want)
		}
	}
	if threads < 5 {
		t.Errorf("only %d threads looked at:\n%s", threads, out)
	}
}
