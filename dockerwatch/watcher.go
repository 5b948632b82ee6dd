package dockerwatch

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/docker/docker/client"

	"github.com/nftfw/nftfw/pkg/inventory"
)

// Options says which engine to follow and how.
type Options struct {
	// Host is the engine's address, e.g. unix:///var/run/docker.sock, the
	// default.
	Host string
	// Log receives what cannot be understood; nil discards it.
	Log *slog.Logger
	// Relist is how often everything is listed again without a reason.
	// 0 means 60 seconds.
	Relist time.Duration
	// Timeout limits every single request. 0 means 10 seconds.
	Timeout time.Duration
	// SandboxDirs, where not nil, is called with the folders that hold the
	// network namespaces of containers, each time they change.
	SandboxDirs func(dirs []string)
}

// Watcher follows one engine.
type Watcher struct {
	cli *client.Client
	o   Options
}

// Status is how the connection to the engine stands.
type Status struct {
	Connected   bool     // the last list succeeded and the event stream is open
	Version     string   // the engine's version, "" before the first connection
	Err         string   // why it is not connected: one line, with the remedy where there is one
	Containers  int      // running containers in the last snapshot
	SandboxDirs []string // folders of container network namespaces
}

// New returns a Watcher for the engine that o names. It does not connect.
func New(o Options) (*Watcher, error) {
	cli, err := client.NewClientWithOpts(client.WithHost(o.Host), client.WithAPIVersionNegotiation())
	if err != nil {
		return nil, err
	}
	return &Watcher{cli: cli, o: o}, nil
}

// Run follows the engine until ctx is done.
func (w *Watcher) Run(ctx context.Context, emit func(inventory.Snapshot)) error {
	return errors.ErrUnsupported
}

// List asks the engine once.
func List(ctx context.Context, o Options) (inventory.Snapshot, error) {
	return inventory.Snapshot{}, errors.ErrUnsupported
}

// Status returns how the connection stands now.
func (w *Watcher) Status() Status { return Status{} }
