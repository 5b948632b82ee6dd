package links

import (
	"context"
	"errors"
	"log/slog"

	_ "github.com/vishvananda/netlink"

	"github.com/nftfw/nftfw/pkg/inventory"
)

// Watcher follows the links of its network namespace.
type Watcher struct{ log *slog.Logger }

// New returns a Watcher.
func New(log *slog.Logger) *Watcher { return &Watcher{log: log} }

// SandboxDirs names the folders whose files are container network namespaces.
func (w *Watcher) SandboxDirs(dirs []string) {}

// Run follows the links until ctx is done.
func (w *Watcher) Run(ctx context.Context, emit func([]inventory.Link)) error {
	return errors.ErrUnsupported
}

// Read lists the links once.
func Read(sandboxDirs []string) ([]inventory.Link, error) { return nil, errors.ErrUnsupported }
