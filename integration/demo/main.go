package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/term"
)

// limit ends a show that hangs; an undisturbed one takes half a minute.
const limit = 3 * time.Minute

func main() {
	// SIGPIPE too: whoever looks through `head` shall find nothing left behind.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	out := &page{w: os.Stdout, colours: os.Getenv("NO_COLOR") == "" && term.IsTerminal(int(os.Stdout.Fd()))}
	err := run(ctx, out)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out *page) error {
	if os.Geteuid() != 0 {
		return errors.New("network namespaces and a Docker engine need root: sudo make demo")
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not done after %s", limit))
	defer cancel()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	s, err := newStage(ctx, log)
	if err != nil {
		return err
	}
	err = play(ctx, s, out)
	if ctx.Err() != nil {
		// What broke off in the middle is no news.
		err = fmt.Errorf("stopped: %w", context.Cause(ctx))
	}
	out.note("Cleaning up.")
	return errors.Join(err, s.close())
}
