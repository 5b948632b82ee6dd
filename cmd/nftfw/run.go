package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/nftfw/nftfw/pkg/daemon"
)

func newRun(a *app) *cobra.Command {
	var noDocker bool
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the daemon in the foreground",
		Long: `Run the daemon in the foreground.

It puts the policy in force first and connects to Docker then; while Docker is
away it enforces and tries again. A table that stands is adopted: its
containers keep what they have until Docker's first complete answer.

SIGHUP reads the policy file again. SIGTERM stops the daemon and leaves the
rules in force.`,
		Example: `  nftfw run
  nftfw run --no-docker --policy ./policy.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config := a.config()
			config.NoDocker = noDocker
			d, err := daemon.New(cmd.Context(), config)
			if err != nil {
				return err
			}
			reloadOnHangup(cmd.Context(), d)
			return d.Run(cmd.Context())
		},
	}
	cmd.Flags().BoolVar(&noDocker, "no-docker", false, "this host has no Docker engine")
	return cmd
}

// reloadOnHangup reloads the policy at each SIGHUP; the daemon logs what comes
// of it.
func reloadOnHangup(ctx context.Context, d *daemon.Daemon) {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	go func() {
		defer signal.Stop(hangup)
		for {
			select {
			case <-ctx.Done():
				return
			case <-hangup:
				_, _ = d.Reload(ctx)
			}
		}
	}()
}
