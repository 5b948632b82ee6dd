package remote

import (
	"context"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// pair gives a client and the end that it asks.
func pair(t *testing.T) *Client {
	t.Helper()
	here, there := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- Serve(there) }()
	c := NewClient(here)
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return c
}

func TestRun(t *testing.T) {
	c := pair(t)
	tests := []struct {
		name string
		cmd  Command
		want Output
		err  string // part of the error
	}{
		{
			name: "both outputs and the status",
			cmd:  Command{Argv: []string{"sh", "-c", "cat; echo complaint >&2; exit 3"}, Stdin: []byte("input")},
			want: Output{Stdout: "input", Stderr: "complaint\n", Status: 3},
		},
		{name: "takes too long", cmd: Command{Argv: []string{"sleep", "60"}, Timeout: 20 * time.Millisecond}, want: Output{Status: -1}},
		{name: "no such program", cmd: Command{Argv: []string{"/nonexistent"}}, err: "run /nonexistent"},
		{name: "nothing to run", err: "no command"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := c.Run(t.Context(), tt.cmd)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error %v, want one with %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("output (-want +got):\n%s", diff)
			}
		})
	}
}

// A command that takes its time holds no other up, and who gives up waiting for
// it can go on asking.
func TestRunAtOnce(t *testing.T) {
	c := pair(t)
	ctx, cancel := context.WithCancel(t.Context())
	var slow sync.WaitGroup
	slow.Go(func() {
		if _, err := c.Run(ctx, Command{Argv: []string{"sleep", "60"}, Timeout: 2 * time.Second}); err == nil {
			t.Error("a command that was given up has an output")
		}
	})
	out, err := c.Run(t.Context(), Command{Argv: []string{"echo", "quick"}})
	cancel()
	slow.Wait()
	if err != nil || out.Stdout != "quick\n" {
		t.Errorf("output %+v, error %v", out, err)
	}
}
