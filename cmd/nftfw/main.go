// Command nftfw keeps a Docker host closed until opened. It parses flags,
// prints and sets the exit status; the packages below it do the work.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/nftfw/nftfw/pkg/api"
	"github.com/nftfw/nftfw/policy"
)

// version is set by the linker.
var version = "0.1.0-dev"

// Exit statuses; see the manual.
const (
	exitNo      = 1 // the answer is no
	exitUsage   = 2 // wrong usage or invalid input
	exitDaemon  = 3 // the daemon is needed and cannot be reached
	exitChanges = 4 // plan found changes
	exitFailed  = 5 // the operation failed
)

// exitError ends the program with a status. A nil err prints nothing more.
type exitError struct {
	status int
	err    error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.status)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// answerNo ends the program with "the answer is no" without another word.
func answerNo() error { return &exitError{status: exitNo} }

func usageError(format string, args ...any) error {
	return &exitError{status: exitUsage, err: fmt.Errorf(format, args...)}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(execute(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// execute runs the program with the given arguments and gives its exit status.
func execute(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{stdin: stdin, stdout: &output{Writer: stdout}, stderr: stderr}
	root := newRoot(a)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	status, message := 0, ""
	if err != nil {
		status, message = classify(err)
	}
	if err := a.stdout.err; err != nil { // whatever the answer is, nobody has it
		status, message = exitFailed, fmt.Sprintf("nftfw: write output: %v", err)
	}
	if message != "" {
		fmt.Fprintln(stderr, message)
	}
	return status
}

// classify gives the exit status and the message of an error.
func classify(err error) (status int, message string) {
	var (
		exit     *exitError
		mistakes policy.Errors
		failure  *api.Error
	)
	switch {
	case errors.As(err, &exit):
		if exit.err == nil {
			return exit.status, ""
		}
		return exit.status, "nftfw: " + err.Error()
	case errors.As(err, &mistakes):
		return exitUsage, mistakes.Text()
	case errors.As(err, &failure) && failure.Kind == api.KindPolicy:
		return exitUsage, failure.Message
	case errors.As(err, &failure) && failure.Kind == api.KindInvalid:
		return exitUsage, "nftfw: " + failure.Message
	case errors.Is(err, api.ErrNoDaemon):
		return exitDaemon, "nftfw: " + err.Error()
	default:
		return exitFailed, "nftfw: " + strings.ReplaceAll(err.Error(), "\n", "; ")
	}
}
