// Package remote turns a stream of bytes into commands that run on its other
// end. It never interprets what they do.
package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/rpc"
	"os/exec"
	"strings"
	"time"
)

// Command is what is to be run.
type Command struct {
	Argv    []string
	Stdin   []byte
	Timeout time.Duration // after which it is killed; zero: five minutes
}

// Output is what a command left.
type Output struct {
	Stdout, Stderr string
	Status         int // the exit status, -1 if it was killed
}

// Err is nil for a command that exited 0, and says what it was and what it
// complained about otherwise.
func (o Output) Err(argv ...string) error {
	if o.Status == 0 {
		return nil
	}
	return fmt.Errorf("%s: exit status %d: %s", strings.Join(argv, " "), o.Status, strings.TrimSpace(o.Stderr))
}

const defaultTimeout = 5 * time.Minute

// Shell is the end at which commands run. Its methods are called by Serve.
type Shell struct{}

// Run runs a command and waits for its end. The error is that it could not be
// started.
func (Shell) Run(c Command, out *Output) error {
	if len(c.Argv) == 0 {
		return errors.New("no command")
	}
	if c.Timeout == 0 {
		c.Timeout = defaultTimeout
	}
	ctx, cancel := context.WithTimeout(context.Background(), c.Timeout)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, c.Argv[0], c.Argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(c.Stdin), &stdout, &stderr
	// A grandchild that keeps the pipes open must not hold the answer up.
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	*out = Output{Stdout: stdout.String(), Stderr: stderr.String(), Status: cmd.ProcessState.ExitCode()}
	var exit *exec.ExitError
	if err == nil || errors.As(err, &exit) || errors.Is(err, exec.ErrWaitDelay) {
		return nil
	}
	return fmt.Errorf("run %s: %w", c.Argv[0], err)
}

// Serve runs the commands that arrive on the stream, several at a time, until
// the stream ends.
func Serve(stream io.ReadWriteCloser) error {
	s := rpc.NewServer()
	if err := s.Register(Shell{}); err != nil {
		return err
	}
	s.ServeConn(stream)
	return nil
}

// Client is the end that asks. Its methods may be used concurrently.
type Client struct {
	rpc *rpc.Client
}

// NewClient asks over a stream. Commands may be sent before anybody serves at
// its other end; they wait.
func NewClient(stream io.ReadWriteCloser) *Client {
	return &Client{rpc: rpc.NewClient(stream)}
}

// Run runs a command at the other end. The error is that it did not start, that
// the stream broke, or that ctx was done: then the command may still run, until
// its own timeout.
func (c *Client) Run(ctx context.Context, cmd Command) (Output, error) {
	var out Output
	call := c.rpc.Go("Shell.Run", cmd, &out, make(chan *rpc.Call, 1))
	select {
	case <-call.Done:
		return out, call.Error
	case <-ctx.Done():
		return Output{}, fmt.Errorf("run %s: %w", strings.Join(cmd.Argv, " "), context.Cause(ctx))
	}
}

// Close ends the stream. Commands that wait for an answer fail.
func (c *Client) Close() error { return c.rpc.Close() }
