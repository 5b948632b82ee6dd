package dockerwatch

import (
	"cmp"
	"context"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nftfw/nftfw/pkg/inventory"
)

// DefaultSandboxDir is where an engine with its default settings keeps the
// network namespaces of its containers.
const DefaultSandboxDir = "/var/run/docker/netns"

// Options says which engine to follow and how. The zero value follows the local
// engine.
type Options struct {
	// Host is the engine's address as docker's -H takes it; "" means
	// unix:///var/run/docker.sock.
	Host string
	// Log receives what could not be understood; nil discards it.
	Log *slog.Logger
	// Relist is how often the engine is asked again without a reason: for the
	// networks, and for the containers the first time after an event spoke of
	// something and every fifth time from then on. 0 means 60 seconds.
	Relist time.Duration
	// Timeout limits every single request; 0 means 10 seconds.
	Timeout time.Duration
	// SandboxDirs, where not nil, is called with the folders that hold the
	// network namespaces of containers, each time they are learned. What has
	// a * in it is a pattern of paths, where a folder holds others' too. It is
	// called from a goroutine of Run's and may take its time.
	SandboxDirs func(dirs []string)
}

func (o Options) withDefaults() Options {
	o.Host = cmp.Or(o.Host, "unix:///var/run/docker.sock")
	o.Relist = cmp.Or(o.Relist, 60*time.Second)
	o.Timeout = cmp.Or(o.Timeout, 10*time.Second)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// Status is how the connection to the engine stands.
type Status struct {
	Connected   bool      // events flow and the last list succeeded
	AwaySince   time.Time // since when not; zero while Connected
	Version     string    // the engine's version, "" before the first connection
	Err         string    // why not connected: one line, with the remedy where there is one
	Containers  int       // running containers in the last snapshot
	SandboxDirs []string  // folders of container network namespaces, or patterns of their paths
}

// Watcher follows one engine through its restarts.
type Watcher struct {
	o      Options
	images *imageCache
	// The pause before connecting again starts at backoffMin and doubles up
	// to backoffMax. These are fields so that tests need not wait.
	backoffMin, backoffMax time.Duration
	grace                  time.Duration
	confirm                time.Duration
	imageRetry             time.Duration
	swarmPoll              time.Duration

	asked atomic.Uint64 // calls of Ask
	wake  chan struct{} // holds one token after Ask

	mu     sync.Mutex
	status Status
}

// New returns a Watcher for the engine that o names, and an error if o.Host is
// no address. It does not connect.
func New(o Options) (*Watcher, error) {
	o = o.withDefaults()
	e, err := dial(o)
	if err != nil {
		return nil, err
	}
	e.close()
	return &Watcher{
		o:          o,
		images:     newImageCache(),
		backoffMin: 100 * time.Millisecond,
		backoffMax: time.Second,
		grace:      grace,
		confirm:    confirm,
		imageRetry: imageRetryMin,
		wake:       make(chan struct{}, 1),
		swarmPoll:  swarmPoll,
		status:     Status{SandboxDirs: []string{DefaultSandboxDir}, AwaySince: time.Now()},
	}, nil
}

// Run follows the engine until ctx is done; while the engine is away it waits for
// it. It calls emit, from its own goroutine, with the first complete list after
// each connection and then with every change. A container that is being started is
// among its containers as soon as the engine says that it connected it to a
// network, which comes before its process runs; which one it is, and its address,
// the next snapshot has.
//
// Between connections the last snapshot stands. Snapshots have no Links and
// Engine is EngineListed; the first ones may come before the engine has told of
// its swarm, which is then Unknown.
func (w *Watcher) Run(ctx context.Context, emit func(inventory.Snapshot)) {
	backoff := w.backoffMin
	for {
		listed, err := w.connect(ctx, emit)
		if ctx.Err() != nil {
			return
		}
		if w.disconnected(err) {
			w.o.Log.Warn("engine is away", "host", w.o.Host, "err", w.Status().Err)
		}
		if listed {
			backoff = w.backoffMin
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(backoff/2 + rand.N(backoff/2+1)):
		}
		backoff = min(2*backoff, w.backoffMax)
	}
}

// connect follows one connection to its end and says whether it got as far as
// a complete list.
func (w *Watcher) connect(ctx context.Context, emit func(inventory.Snapshot)) (listed bool, err error) {
	e, err := dial(w.o)
	if err != nil {
		return false, err
	}
	defer e.close()
	version, err := e.greet(ctx)
	if err != nil {
		return false, err
	}
	s := newSession(w, e, emit)
	err = s.run(ctx, func() { w.connected(version) })
	return s.state.listed, err
}

// Ask has the engine's networks listed anew, and gives the number that a
// snapshot has as its Asked, or a greater one, if its networks were listed after
// this call. Such a snapshot comes as soon as the engine answers. It may be
// called at any time and by anyone.
func (w *Watcher) Ask() uint64 {
	n := w.asked.Add(1)
	select {
	case w.wake <- struct{}{}:
	default:
	}
	return n
}

// Status returns how the connection stands now. It may be called at any time.
func (w *Watcher) Status() Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.status
	s.SandboxDirs = slices.Clone(s.SandboxDirs)
	return s
}

func (w *Watcher) connected(version string) {
	w.mu.Lock()
	news := !w.status.Connected
	w.status.Connected, w.status.Version, w.status.Err = true, version, ""
	w.status.AwaySince = time.Time{}
	w.mu.Unlock()
	if !news {
		return
	}
	w.o.Log.Info("engine is listed and followed", "host", w.o.Host, "version", version)
}

// disconnected notes err and reports whether that is news.
func (w *Watcher) disconnected(err error) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	news := w.status.Connected || w.status.Err != err.Error()
	if w.status.Connected {
		w.status.AwaySince = time.Now()
	}
	w.status.Connected, w.status.Err = false, err.Error()
	return news
}

func (w *Watcher) counted(containers int) {
	w.mu.Lock()
	w.status.Containers = containers
	w.mu.Unlock()
}

// learned takes in the path of one container's network namespace.
func (w *Watcher) learned(sandbox string) {
	dirs := []string{DefaultSandboxDir}
	if dir := filepath.Dir(sandbox); dir != DefaultSandboxDir {
		dirs = append(dirs, sandboxDirs(sandbox)...)
	}
	w.mu.Lock()
	same := slices.Equal(w.status.SandboxDirs, dirs)
	w.status.SandboxDirs = dirs
	w.mu.Unlock()
	if !same && w.o.SandboxDirs != nil {
		w.o.SandboxDirs(slices.Clone(dirs))
	}
}

// sandboxDirs gives where network namespaces beside a container's are
// containers' too.
func sandboxDirs(sandbox string) []string {
	dir, name := filepath.Split(sandbox)
	for _, pattern := range podmanSandboxes {
		if ok, err := filepath.Match(pattern, name); err == nil && ok {
			return []string{dir + pattern}
		}
	}
	return []string{filepath.Clean(dir)}
}

// List asks the engine once and returns what it runs.
func List(ctx context.Context, o Options) (inventory.Snapshot, error) {
	o = o.withDefaults()
	e, err := dial(o)
	if err != nil {
		return inventory.Snapshot{}, err
	}
	defer e.close()
	if _, err := e.greet(ctx); err != nil {
		return inventory.Snapshot{}, err
	}
	a := e.ask(ctx, newImageCache(), question{full: true, networks: true})
	if a.err != nil {
		return inventory.Snapshot{}, a.err
	}
	s := newState(0, o.Log)
	s.release = e.release
	s.apply(a, time.Now())
	s.applySwarm(e.askSwarm(ctx))
	return s.snapshot(), nil
}
