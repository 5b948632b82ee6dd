package dockerwatch

import (
	"context"
	"slices"
	"strings"

	"github.com/docker/docker/api/types/system"
)

// Info is what an engine says about itself that bears on a firewall.
//
// Be aware: no engine says whether it runs with `iptables: false`. That shows in
// the kernel alone, where its chains are then missing.
type Info struct {
	Version string
	// FirewallDriver is iptables or nftables, with +firewalld behind it where
	// that runs; "" from engines before 28.1, which know iptables only.
	FirewallDriver string
	// Rootless engines have a network namespace of their own, and hold
	// published ports on the host by a process.
	Rootless bool
}

// AskInfo asks the engine about itself.
func AskInfo(ctx context.Context, o Options) (Info, error) {
	e, err := dial(o.withDefaults())
	if err != nil {
		return Info{}, err
	}
	defer e.close()
	ctx, cancel := context.WithTimeout(ctx, e.timeout)
	defer cancel()
	i, err := e.cli.Info(ctx)
	if err != nil {
		return Info{}, e.fail("ask for information", err)
	}
	return decodeInfo(i), nil
}

func decodeInfo(i system.Info) Info {
	out := Info{
		Version: i.ServerVersion,
		// The option is a list of words such as "name=rootless".
		Rootless: slices.ContainsFunc(i.SecurityOptions, func(o string) bool {
			return slices.Contains(strings.Split(o, ","), "name=rootless")
		}),
	}
	if i.FirewallBackend != nil {
		out.FirewallDriver = i.FirewallBackend.Driver
	}
	return out
}
