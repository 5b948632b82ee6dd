package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"regexp"
	"syscall"
	"time"

	"github.com/nftfw/nftfw/integration/lab"
)

// limit ends a run that hangs.
const limit = 40 * time.Minute

// bench is one run: how large it is, and what came of it.
type bench struct {
	bin   string
	log   *slog.Logger
	smoke bool
	out   string // where the table is written, "" for nowhere
	only  *regexp.Regexp

	rows []row
}

// group is a part of the table that shares a stage.
type group struct {
	name string
	run  func(context.Context, *bench) error
}

var groups = []group{
	{"connections", connections},
	{"throughput", throughput},
	{"start", starts},
	{"cold", coldFake},
	{"million", million},
	{"shell", shell},
	{"rest", rest},
	{"reload", reload},
	{"restore", restore},
	{"revocation", revocation},
	{"fleet", fleet},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	b := &bench{log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))}
	flags.BoolVar(&b.smoke, "smoke", false, "run everything once with small sizes; the figures mean nothing")
	flags.StringVar(&b.out, "out", "", "write bench.json and bench.svg into `DIR`")
	only := flags.String("only", "", "run the groups whose name matches `REGEXP` and keep the others' figures of DIR")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("network namespaces and a Docker engine need root: sudo make bench")
	}
	var err error
	if b.only, err = regexp.Compile(*only); err != nil {
		return err
	}
	if b.bin, err = lab.FindBinary(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not done after %s", limit))
	defer cancel()
	var failed error
	for _, g := range groups {
		if !b.only.MatchString(g.name) || ctx.Err() != nil {
			continue
		}
		began, have := time.Now(), len(b.rows)
		if err := g.run(ctx, b); err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", g.name, err))
		}
		for i := have; i < len(b.rows); i++ {
			b.rows[i].Group = g.name
		}
		fmt.Fprintf(os.Stderr, "%s: %s\n", g.name, time.Since(began).Round(time.Second))
	}
	printTable(os.Stdout, b.rows)
	if b.out != "" {
		failed = errors.Join(failed, b.write())
	}
	return failed
}

// pick is small in a smoke run and full in one that counts.
func pick[T any](b *bench, small, full T) T {
	if b.smoke {
		return small
	}
	return full
}
