package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nftfw/nftfw/pkg/api"
	"github.com/nftfw/nftfw/pkg/daemon"
)

// control is what can be asked of a daemon, or done without one.
type control interface {
	Status(ctx context.Context) (api.Status, error)
	Ports(ctx context.Context) (api.Ports, error)
	Reach(ctx context.Context, from api.Source) (api.Reach, error)
	Sets(ctx context.Context) (api.Sets, error)
	Set(ctx context.Context, name string) (api.Set, error)
	TestSet(ctx context.Context, name, addr string) (api.Membership, error)
	AddToSet(ctx context.Context, name string, change api.SetChange) (api.Change, error)
	DeleteFromSet(ctx context.Context, name string, change api.SetChange) (api.Change, error)
	AddToFleet(ctx context.Context, name string, change api.SetChange) (api.Change, error)
	DeleteFromFleet(ctx context.Context, name string, change api.SetChange) (api.Change, error)
	FlushSet(ctx context.Context, name string, flush api.Flush) (api.Change, error)
	Explain(ctx context.Context, q api.Question) (api.Explanation, error)
	Apply(ctx context.Context, a api.Apply) (api.Change, error)
	Down(ctx context.Context) (api.Change, error)
}

const (
	// busyWait is how long a command waits for others that change the state, one
	// after the other, or for a daemon that is starting.
	busyWait = 2 * time.Minute
	// busyQuiet is how long it does so without saying that it waits.
	busyQuiet = time.Second
	// answerQuiet is how long a daemon may take for its answer before that is said.
	answerQuiet = 3 * time.Second
)

// do asks the daemon, or where none runs does the same directly. While the
// state is in use by something that does not answer yet, it tries both again.
func do[Out any](ctx context.Context, a *app, f func(control) (Out, error)) (Out, error) {
	said, begun := false, time.Now()
	for {
		late := a.warnLater(answerQuiet, "the daemon has not answered yet")
		out, err := f(a.client())
		late()
		if !errors.Is(err, api.ErrNoDaemon) {
			return out, err
		}
		out, err = f(a.direct())
		waited := time.Since(begun)
		if !errors.Is(err, daemon.ErrBusy) || ctx.Err() != nil || waited > busyWait {
			return out, err
		}
		if waited > busyQuiet && !said {
			said = true
			a.warn("waiting for another nftfw, which holds the state directory")
		}
	}
}

// warnLater warns after a while, unless the function that it gives is called before. That
// waits for a warning under way.
func (a *app) warnLater(after time.Duration, text string) (cancel func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-time.After(after):
			a.warn(text)
		case <-done:
		}
	}()
	return func() { close(done); <-ended }
}

// report prints what a change did, and what its maker should know.
func (a *app) report(change api.Change, err error, done string) error {
	for _, w := range change.Warnings {
		a.warn(w)
	}
	switch {
	case err != nil:
		return err
	case a.json:
		_ = a.printJSON(change)
	case done != "":
		fmt.Fprintln(a.stdout, done)
	}
	a.stdout.err = nil // what was asked for is done, whoever hears of it
	return nil
}
