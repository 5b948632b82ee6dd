package dockerwatch

import (
	"context"
	"slices"
	"strings"

	"github.com/docker/docker/api/types/container"
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
	// SandboxDir is the folder of the containers' network namespaces, or a
	// pattern of their paths; "" where no container tells.
	SandboxDir string
	// Podman is set where the engine is Podman, with Docker's API.
	Podman bool
}

// AskInfo asks the engine about itself.
func AskInfo(ctx context.Context, o Options) (Info, error) {
	e, err := dial(o.withDefaults())
	if err != nil {
		return Info{}, err
	}
	defer e.close()
	if _, err := e.greet(ctx); err != nil {
		return Info{}, err
	}
	i, err := e.info(ctx)
	if err != nil {
		return Info{}, err
	}
	out := decodeInfo(i)
	out.SandboxDir = e.sandboxDir(ctx)
	out.Podman = e.podman != nil
	return out, nil
}

// info is what the engine says about itself. It takes engines some
// milliseconds, and seconds when the machine is busy.
func (e *engine) info(ctx context.Context) (system.Info, error) {
	ctx, cancel := context.WithTimeout(ctx, e.timeout)
	defer cancel()
	i, err := e.cli.Info(ctx)
	if tolerable(err) != nil {
		err = nil
	}
	return i, e.fail("ask for information", err)
}

// sandboxDir asks running containers until one tells where its network
// namespace is.
func (e *engine) sandboxDir(ctx context.Context) string {
	const few = 3 // one that is just starting or stopping does not answer
	list, _, err := e.containers(ctx, nil)
	if err != nil {
		return ""
	}
	list = slices.DeleteFunc(list, func(c container.Summary) bool {
		return c.HostConfig.NetworkMode == "host" || strings.HasPrefix(c.HostConfig.NetworkMode, "container:")
	})
	for _, c := range list[:min(len(list), few)] {
		if path, err := e.sandbox(ctx, c.ID); err == nil {
			return sandboxDirs(path)[0]
		}
	}
	return ""
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
