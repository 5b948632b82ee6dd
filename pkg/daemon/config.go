package daemon

import (
	"context"
	"log/slog"

	"github.com/nftfw/nftfw/nft"
)

// Config says where a daemon or a one-shot operation finds its world.
type Config struct {
	PolicyPath string // policy.yaml; where it is missing the embedded default holds
	StateDir   string
	Socket     string // control socket
	DockerHost string // URL of the engine
	NoDocker   bool   // the host has no engine
	Table      string // name of the nftables table
	Version    string
	Log        *slog.Logger
	Sources    Sources // nil: what the sources of sets last said stays
}

// Kernel is what is needed of nf_tables. *nft.Kernel is the real one; tests
// put one in its place that refuses commits.
type Kernel interface {
	Observe(ctx context.Context, table string) (*nft.State, error)
	Survey(ctx context.Context, table string) (*nft.State, error)
	Commit(ctx context.Context, p nft.Plan) error
	Monitor(ctx context.Context, table string, notify func(nft.Event)) error
	NewFlows(ctx context.Context, notify func(nft.Flow), lost func()) error
	Conntrack
	Counters
}
