package daemon

import (
	"net/netip"
	"os"
	"slices"

	"github.com/nftfw/nftfw/pkg/api"
	"github.com/nftfw/nftfw/pkg/inventory"
	"github.com/nftfw/nftfw/policy"
)

// status says how things stand, as far as the core knows; the daemon adds
// what it knows of Docker and of restores.
func (c *core) status() api.Status {
	out := api.Status{
		Enforced: c.enforced(),
		Down:     c.down,
		Mode:     string(c.policy.Mode),
		Table:    c.cfg.Table,
		Policy:   api.PolicyStatus{Path: c.policy.path, Hash: c.policy.hash(), Source: c.policy.source},
		Docker:   api.DockerStatus{Containers: c.engine.Running()},
		Swarm:    swarmStatus(c.engine.Swarm),
		Sets:     map[string]api.SetStatus{},
		Sources:  c.sourceStates(),
		Problems: problems(slices.Concat(c.diags, c.unseen)),
	}
	if c.policy.err != nil {
		out.Policy.Error = c.policy.err.Error()
	}
	if c.trial.open() {
		by := c.trial.Deadline.UTC()
		out.Policy.ConfirmBy = &by
	}
	for name := range c.sets {
		out.Sets[name] = api.SetStatus{Entries: c.sets[name].Prune(c.now()).Len()}
	}
	if !c.lastChange.IsZero() {
		at := c.lastChange.UTC()
		out.LastChange = &at
	}
	return out
}

func (c *core) daemonStatus() api.DaemonStatus {
	return api.DaemonStatus{Running: true, PID: os.Getpid(), Version: c.cfg.Version}
}

func problems(diags []policy.Diagnostic) []api.Problem {
	out := make([]api.Problem, 0, len(diags))
	for _, d := range diags {
		out = append(out, api.Problem{
			Severity: string(d.Severity), Container: d.Container, Label: d.Label, Port: d.Port, Message: d.String(),
		})
	}
	return out
}

func portView(p *policy.Policy, d policy.Decision) api.Port {
	project, service := policy.Compose(p, d.Container)
	port := api.Port{
		Container: d.Container.Name, ContainerID: d.Container.ID, Project: project, Service: service,
		HostPort: d.Port.HostPort, ContainerPort: d.Port.ContainerPort,
		Proto: policy.ProtocolName(d.Port.Proto),
		From:  d.From.Names(), DecidedBy: string(d.By), Origin: d.Origin, Error: d.Err,
	}
	switch {
	case d.AtHostIP.IsValid():
		port.HostIP = d.AtHostIP.String()
	case d.Port.HostIP.IsValid():
		port.HostIP = d.Port.HostIP.String()
	}
	if d.HostOnly() {
		// Bound to loopback: the host itself reaches it, nobody else.
		port.From = []string{"none"}
	}
	port.Ingress = d.Ingress
	if d.Ingress && d.Mesh.IsValid() {
		port.ContainerIP = d.Mesh.String()
	}
	if a := containerAddr(*d.Container, d.Port.HostIP); a.IsValid() {
		port.ContainerIP = a.String()
	}
	return port
}

// containerAddr gives the container's first address of the family of the
// host's, or of the other one where it has none.
func containerAddr(c inventory.Container, host netip.Addr) netip.Addr {
	var other netip.Addr
	for _, e := range c.Endpoints {
		for _, a := range []netip.Addr{e.Addr4, e.Addr6} {
			switch {
			case !a.IsValid():
			case !host.IsValid() || a.Is4() == host.Is4():
				return a
			case !other.IsValid():
				other = a
			}
		}
	}
	return other
}
