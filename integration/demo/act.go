package main

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/nftfw/nftfw/integration/lab"
)

// dockerRun starts a container, with a label unless it is empty.
func (sh *show) dockerRun(ctx context.Context, c container, label string) error {
	options := []string{"--restart", "always", "-p", fmt.Sprintf("%d:80", c.port)}
	if label != "" {
		options = append(options, "--label", label)
	}
	// The lab adds a host name, for the greeting, and a mark to clean up by.
	sh.out.command(append(append([]string{"docker", "run", "-d", "--name", c.name}, options...), lab.Image)...)
	if _, err := sh.engine.Run(ctx, lab.Spec{Name: c.name, Options: options}); err != nil {
		return err
	}
	sh.grid.containers = append(sh.grid.containers, c)
	return nil
}

// nftfw runs a command of nftfw and shows what it prints.
func (sh *show) nftfw(ctx context.Context, args ...string) error {
	sh.out.command(append([]string{"nftfw"}, args...)...)
	begun := time.Now()
	o := sh.firewall.Exec(ctx, args...)
	took := time.Since(begun)
	if o.Status != 0 {
		return fmt.Errorf("%s", o)
	}
	sh.out.block(o.Stdout + o.Stderr)
	if o.Stdout == "" {
		sh.out.measured(milliseconds(took), "until the command returned, with the change in force and on disk")
	}
	return nil
}

// letIn says who must get into a container from now on.
func (sh *show) letIn(c container, clients ...string) { sh.grid.letIn[c.name] = clients }

// table measures all ways and prints them.
func (sh *show) table(ctx context.Context) { sh.out.grid(sh.grid.measure(ctx)) }

// noneGotIn stops a hammer that must not have connected. err is what went
// wrong in the meantime, and is returned before all else.
func (sh *show) noneGotIn(h *lab.Hammer, err error, what string) error {
	tally, stopped := h.Stop()
	if err := cmp.Or(err, stopped); err != nil {
		return err
	}
	sh.out.measured(fmt.Sprint(tally.Reached()), fmt.Sprintf("%s (of %d tries)", what, tally.Attempts))
	sh.out.check(tally.Attempts > 0, "there was not one try")
	sh.out.check(tally.Reached() == 0, "none must get in, and there were %v", tally.Connected)
	return nil
}

// wait lets some time pass.
func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
