package daemon

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nftfw/nftfw/nft"
	"github.com/nftfw/nftfw/pkg/api"
)

const (
	// withdrawWait is how long a command waits for connections to be cut. The
	// change that it made is in force already.
	withdrawWait = 10 * time.Second
	// withdrawAgain is how long after a failure it is tried again.
	withdrawAgain = 30 * time.Second
)

// withdrawals is where the daemon stands with live connections. It belongs to
// the loop.
type withdrawals struct {
	running sync.WaitGroup
	busy    bool
	notTill time.Time
	pause   time.Duration // after the last one that found the table altered
	err     error         // of the last one
	waiting []chan error  // commands that wait until none is due
}

// withdraw begins to look at live connections where that is due, beside the
// loop: only commits are made on it.
func (d *Daemon) withdraw(ctx context.Context) {
	ws := &d.withdrawals
	if ws.busy {
		return
	}
	if wait := time.Until(ws.notTill); wait > 0 {
		if wait > withdrawWait {
			ws.answer() // nobody waits so long
		}
		return
	}
	w := d.core.withdrawal()
	if w == nil {
		ws.answer()
		ws.err = nil
		return
	}
	ws.busy = true
	ws.running.Go(func() {
		err := d.core.withdraw(ctx, w, func(f func(context.Context) error) error {
			var err error
			stopped := d.do(ctx, func(ctx context.Context) { err = f(ctx) })
			return errors.Join(stopped, err)
		})
		// When the daemon stops nobody is left to hear of it.
		_ = d.do(ctx, func(context.Context) { d.withdrawn(w, err) })
	})
}

// answer tells those who wait how the last one ended.
func (ws *withdrawals) answer() {
	for _, done := range ws.waiting {
		done <- ws.err
	}
	ws.waiting = nil
}

// withdrawalDue gives the moment at which it is tried again after a failure.
func (d *Daemon) withdrawalDue() <-chan time.Time {
	wait := time.Until(d.withdrawals.notTill)
	if wait <= 0 {
		return nil
	}
	return time.After(wait)
}

// withdrawn takes note of how it ended.
func (d *Daemon) withdrawn(w *withdrawal, err error) {
	ws := &d.withdrawals
	ws.busy, ws.err = false, err
	if err == nil {
		ws.pause = 0
		return
	}
	d.core.revoked.look = d.core.revoked.look || w.look
	d.core.revoked.opened = d.core.revoked.opened || w.opened
	if w.early && d.core.revoked.early != nil {
		d.core.revoked.early = w.before
	}
	d.core.revoked.regard = true
	var failed *nft.CommitError
	if errors.As(err, &failed) && failed.Stale() {
		// Somebody has altered the table. First it is put right.
		ws.pause = min(max(2*ws.pause, retryFirst), withdrawAgain)
		ws.notTill = time.Now().Add(ws.pause)
		if d.backoff == 0 { // else it is tried again already
			d.retry.Reset(retryFirst)
		}
		return
	}
	d.log.Error("connections not cut", "err", err, "again_in", withdrawAgain)
	ws.notTill = time.Now().Add(withdrawAgain)
	ws.answer()
}

// awaitWithdrawal waits until what a change took away is cut.
func (d *Daemon) awaitWithdrawal(ctx context.Context) error {
	done := make(chan error, 1)
	stopped := d.do(ctx, func(context.Context) { d.withdrawals.waiting = append(d.withdrawals.waiting, done) })
	if stopped != nil {
		return nil // the next daemon looks at every connection when it starts
	}
	late := time.NewTimer(withdrawWait)
	defer late.Stop()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return nil
	case <-late.C:
		return fmt.Errorf("not done after %s, still at it", withdrawWait)
	}
}

// permissionEnds gives the moment at which the next permission runs out.
func (d *Daemon) permissionEnds() <-chan time.Time {
	at := d.core.nextExpiry()
	if at.IsZero() {
		return nil
	}
	return time.After(time.Until(at) + expiryMargin)
}

// answersDue gives the moment at which connections are looked at for lateAnswers.
func (d *Daemon) answersDue() <-chan time.Time {
	at := d.core.revoked.late.next
	if at.IsZero() {
		return nil
	}
	return time.After(time.Until(at))
}

// warn adds a failure to cut to the warnings of a change, which itself is in
// force.
func warn(out any, err error) {
	if change, ok := out.(*api.Change); ok && err != nil {
		change.Warnings = append(change.Warnings, fmt.Sprintf("in force, but connections that were open before may live on: %v", err))
	}
}
