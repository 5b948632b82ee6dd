package main

import (
	"context"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/nftfw/nftfw/pkg/confine"
	"github.com/nftfw/nftfw/pkg/daemon"
)

func newRun(a *app) *cobra.Command {
	var noDocker bool
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the daemon in the foreground",
		Long: `Run the daemon in the foreground.

It puts the policy in force without waiting for Docker; while Docker is away it
enforces and tries again. A table that stands is adopted: its
containers keep what they have until Docker's first complete answer.

SIGHUP reads the policy file again. SIGTERM stops the daemon and leaves the
rules in force.`,
		Example: `  nftfw run
  nftfw run --no-docker --policy ./policy.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config := a.config()
			config.NoDocker = noDocker
			// From here on, so that a hang-up while it starts does not end it.
			hangups := make(chan os.Signal, 1)
			signal.Notify(hangups, syscall.SIGHUP)
			defer signal.Stop(hangups)
			d, err := daemon.New(cmd.Context(), config)
			if err != nil {
				return err
			}
			if err := confine.Capabilities(needed()...); err != nil {
				config.Log.Warn("the daemon keeps capabilities that it does not need", "err", err)
			}
			return runReloading(cmd.Context(), d, hangups)
		},
	}
	cmd.Flags().BoolVar(&noDocker, "no-docker", false, "this host has no Docker engine")
	return cmd
}

// needed are the capabilities of a daemon that has begun.
func needed() []uint {
	return []uint{
		unix.CAP_NET_ADMIN,        // nf_tables, connection tracking, what rules log
		unix.CAP_SYS_PTRACE,       // sshd's sockets in /proc/PID/fd, for the guard
		unix.CAP_DAC_OVERRIDE,     // an engine's socket or a source that is another user's
		unix.CAP_NET_BIND_SERVICE, // metrics.listen below port 1024
	}
}

// runReloading runs the daemon, and reloads the policy at each hang-up. The
// daemon logs what comes of that.
func runReloading(ctx context.Context, d *daemon.Daemon, hangups <-chan os.Signal) error {
	ctx, cancel := context.WithCancel(ctx)
	var reloads sync.WaitGroup
	defer reloads.Wait()
	defer cancel()
	reloads.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-hangups:
				_, _ = d.Reload(ctx)
			}
		}
	})
	return d.Run(ctx)
}
