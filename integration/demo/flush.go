package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/nftfw/nftfw/integration/lab"
)

// tableWatch notes when nftfw's table went and came, as nft monitor tells it.
type tableWatch struct {
	cmd    *exec.Cmd
	cancel context.CancelFunc
	ended  sync.WaitGroup

	mu    sync.Mutex
	heard bool // the monitor is known to listen
	gone  time.Time
	back  time.Time
}

// watchTable starts to watch and returns once nothing can be missed.
func watchTable(ctx context.Context, host *lab.Node) (*tableWatch, error) {
	ctx, cancel := context.WithCancel(ctx)
	w := &tableWatch{cancel: cancel, cmd: host.Command(ctx, "nft", "monitor")}
	stdout, err := w.cmd.StdoutPipe()
	if err == nil {
		err = w.cmd.Start()
	}
	if err != nil {
		cancel()
		return nil, fmt.Errorf("start nft monitor: %w", err)
	}
	w.ended.Go(func() {
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			w.line(lines.Text(), time.Now())
		}
	})
	// A table of another name, made until the monitor speaks of it.
	ready, stop := context.WithTimeout(ctx, 10*time.Second)
	defer stop()
	err = lab.Poll(ready, 20*time.Millisecond, func() error {
		if err := host.NFT(ready, "add table inet demo_ready\ndelete table inet demo_ready\n"); err != nil {
			return err
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if !w.heard {
			return errors.New("nft monitor says nothing")
		}
		return nil
	})
	if err != nil {
		w.stop()
		return nil, err
	}
	return w, nil
}

func (w *tableWatch) line(text string, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	// The verb is add or create, or delete or destroy, as versions of nft
	// and flags of the message have it.
	verb, what, _ := strings.Cut(strings.TrimSpace(text), " ")
	goes := verb == "delete" || verb == "destroy"
	switch {
	case what == "table inet demo_ready":
		w.heard = true
	case what != "table inet nftfw":
	case goes && w.gone.IsZero():
		w.gone = now
	case !goes && !w.gone.IsZero() && w.back.IsZero():
		w.back = now
	}
}

// untilBack waits until the table has gone and come again, and returns how
// long it was away.
func (w *tableWatch) untilBack(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var away time.Duration
	err := lab.Poll(ctx, time.Millisecond, func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.back.IsZero() {
			return errors.New("the table has not come back")
		}
		away = w.back.Sub(w.gone)
		return nil
	})
	return away, err
}

func (w *tableWatch) stop() {
	w.cancel()
	w.ended.Wait()
	_ = w.cmd.Wait() // killed: it has nothing to say
}
