package links

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/nftfw/nftfw/pkg/inventory"
)

// DefaultSandboxDir is where Docker keeps the network namespaces of its
// containers. Podman and engines with an --exec-root of their own differ.
const DefaultSandboxDir = "/var/run/docker/netns"

const (
	// settleLimit ends the patience with a port that never gets a carrier.
	// Docker leaves the container's end in the host's namespace for as long as
	// runc takes: 0.4 s on an idle machine, seconds on a loaded one. It is
	// generous because such a port carries nothing meanwhile.
	settleLimit = time.Minute
	// relistEvery bounds how long a lost message could mislead.
	relistEvery = time.Minute
	// retryAfter spaces attempts to list or subscribe again.
	retryAfter = 200 * time.Millisecond
)

// Watcher follows the links of one network namespace: that of the thread which
// calls Run.
type Watcher struct {
	log    *slog.Logger
	settle time.Duration

	mu      sync.Mutex
	dirs    []string
	waiting []chan struct{} // until dirs have been looked through
	wake    chan struct{}   // holds one token after dirs changed
}

// New returns a Watcher that looks for sandboxes in DefaultSandboxDir until
// SandboxDirs names others. log may be nil.
func New(log *slog.Logger) *Watcher {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Watcher{
		log:    log,
		settle: settleLimit,
		dirs:   []string{DefaultSandboxDir},
		wake:   make(chan struct{}, 1),
	}
}

// SandboxDirs replaces the folders whose files are container network
// namespaces, or patterns of the paths of such files, and has all ports that lead
// nowhere known looked at again. What it gives is closed when Run has called emit
// with what came of that, if it differs from the list before. It may be called at
// any time and by anyone.
func (w *Watcher) SandboxDirs(dirs []string) (seen <-chan struct{}) {
	looked := make(chan struct{})
	w.mu.Lock()
	defer w.mu.Unlock()
	if slices.Equal(w.dirs, dirs) {
		close(looked)
		return looked
	}
	w.dirs = slices.Clone(dirs)
	w.waiting = append(w.waiting, looked)
	select {
	case w.wake <- struct{}{}:
	default:
	}
	return looked
}

// look gives the folders, and those who wait until they have been looked through.
func (w *Watcher) look() (dirs []string, waiting []chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	waiting, w.waiting = w.waiting, nil
	return w.dirs, waiting
}

// Run calls emit with the complete list of links, sorted by index, at once and
// then each time the list differs from the one before. It subscribes before it
// lists, so no change falls between. emit is called from Run's goroutine and
// owns the slice it is given.
//
// Run returns nil when ctx is done, and an error only when the first list
// cannot be had; what fails later is logged and tried again, and the last list
// stands meanwhile.
func (w *Watcher) Run(ctx context.Context, emit func([]inventory.Link)) error {
	var last []inventory.Link
	listed := false
	keep := func(list []inventory.Link) {
		if listed && slices.Equal(last, list) {
			return
		}
		last, listed = list, true
		emit(slices.Clone(list))
	}
	for {
		err := w.follow(ctx, keep)
		if ctx.Err() != nil {
			return nil
		}
		if !listed {
			return err
		}
		w.log.Warn("lost the link messages, subscribing again", "err", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retryAfter):
		}
	}
}

// follow subscribes, lists and then hands on each state, until ctx is done or
// the subscription breaks.
func (w *Watcher) follow(ctx context.Context, emit func([]inventory.Link)) error {
	in, err := subscribe()
	if err != nil {
		return err
	}
	defer in.close()
	q, err := openQuery()
	if err != nil {
		return err
	}
	defer q.close()

	t := newTable(q, w.settle)
	if err := t.relist(); err != nil {
		return err
	}
	timer := time.NewTimer(relistEvery)
	defer timer.Stop()
	relistAt := time.Now().Add(relistEvery)
	for {
		now := time.Now()
		dirs, waiting := w.look()
		list, wait := t.list(dirs, now)
		emit(list)
		for _, looked := range waiting {
			close(looked)
		}
		if until := relistAt.Sub(now); wait == 0 || until < wait {
			wait = max(until, 0)
		}
		timer.Reset(wait)

		var got batch
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-in.wake:
			got = in.take()
		case <-w.wake:
			t.forgetMisses()
		case <-timer.C:
			got.lost = !time.Now().Before(relistAt)
		}
		if got.err != nil {
			return fmt.Errorf("receive link messages: %w", got.err)
		}
		if !got.lost {
			t.apply(got.changes)
			continue
		}
		relistAt = time.Now().Add(relistEvery)
		if err := t.relist(); err != nil {
			w.log.Warn("links not listed, trying again", "err", err)
			relistAt = time.Now().Add(retryAfter)
		}
	}
}

// Read lists the links of the calling thread's network namespace once, sorted
// by index.
func Read(sandboxDirs []string) ([]inventory.Link, error) {
	q, err := openQuery()
	if err != nil {
		return nil, err
	}
	defer q.close()
	t := newTable(q, settleLimit)
	if err := t.relist(); err != nil {
		return nil, err
	}
	list, _ := t.list(sandboxDirs, time.Now())
	return list, nil
}
