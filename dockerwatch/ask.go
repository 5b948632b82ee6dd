package dockerwatch

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/network"
	"golang.org/x/sync/errgroup"

	"github.com/nftfw/nftfw/pkg/inventory"
)

// ask answers q. The engine has been greeted before.
func (e *engine) ask(ctx context.Context, images *imageCache, q question) answer {
	if e.podman != nil {
		// It does not tell of a start before the process runs.
		q.attached, q.starts = false, nil
	}
	a := answer{question: q, endpoints: map[string]map[string]network.EndpointResource{}, blind: map[string]error{}}
	containers := q.full || len(q.ids) > 0
	newest := func() string { return "" }
	if q.sandbox && e.podman == nil {
		seeking, stop := context.WithCancel(ctx)
		newest = e.seekSandbox(seeking, e.newest, q.learned)
		defer func() { stop(); newest() }()
	}
	list, err := a.lists(ctx, e, containers)
	if err != nil {
		return answer{question: q, err: err}
	}
	gateway, routed := q.gateway, q.routed
	if q.networks {
		gateway, routed = gatewayNetwork(a.nets), routedNetworks(a.nets)
	}
	if containers {
		if e.podman != nil {
			var failed map[string]error
			list, failed = e.asDocker(ctx, list)
			a.uninspected(failed)
		}
		seen := func() string { return "" }
		if q.sandbox && newest() == "" {
			seen = e.seekSandbox(ctx, func(context.Context) (string, bool) { return anySandboxed(list) }, q.learned)
		}
		a.addContainers(ctx, e, images, list, a.attachedTo(ctx, e, list))
		if e.podman == nil && (e.release == 0 || e.release >= routedUnlisted) {
			a.addRoutedPorts(ctx, e, routed)
		}
		err := a.addGateways(ctx, e, gateway, list)
		seen() // waited for, whatever became of the rest
		if err != nil {
			return answer{question: q, err: err}
		}
	}
	return a
}

// seekSandbox begins to ask the container that choose gives where its network
// namespace is, calls learned when it knows, and returns what waits for that: ""
// where there is no such container, or no answer in a while.
func (e *engine) seekSandbox(ctx context.Context, choose func(context.Context) (id string, ok bool), learned func(path string)) (wait func() string) {
	ctx, cancel := context.WithTimeout(ctx, firstSandboxWait)
	found := make(chan string, 1)
	go func() {
		defer cancel()
		path := ""
		if id, ok := choose(ctx); ok {
			path, _ = e.sandbox(ctx, id) // or it is asked again: see learnSandbox
		}
		if path != "" {
			learned(path)
		}
		found <- path
	}()
	return sync.OnceValue(func() string { return <-found })
}

// newest gives the container that was created last of those that run, which is
// known long before all are listed; ok is false where it has no network namespace
// of its own.
func (e *engine) newest(ctx context.Context) (id string, ok bool) {
	list, err := e.cli.ContainerList(ctx, container.ListOptions{
		Limit: 1, Filters: filters.NewArgs(filters.Arg("status", string(container.StateRunning))),
	})
	if err != nil {
		return "", false
	}
	return anySandboxed(list)
}

// anySandboxed gives the last container of a list that has a network namespace of
// its own: the engine lists the oldest last, which is hardly being started or
// stopped.
func anySandboxed(list []container.Summary) (id string, ok bool) {
	for _, s := range slices.Backward(list) {
		if d, ok := decodeContainer(s); ok && sandboxed(&d.Container) {
			return s.ID, true
		}
	}
	return "", false
}

// lists takes in the engine's networks, and where the question says so what is
// attached to them, and gives its containers. Neither waits for the other, but
// with Podman, whose containers are told of in terms of its networks.
func (a *answer) lists(ctx context.Context, e *engine, wantContainers bool) (containers []container.Summary, err error) {
	group, ctx := errgroup.WithContext(ctx)
	if e.podman != nil {
		group.SetLimit(1)
	}
	if a.networks {
		group.Go(func() error {
			list, skipped, err := e.networks(ctx)
			if err != nil {
				return err
			}
			a.skipped("network", skipped)
			a.addNetworks(e, list)
			if a.attached {
				a.inspectBridges(ctx, e)
			}
			return nil
		})
	}
	var skipped error
	if wantContainers {
		group.Go(func() (err error) {
			containers, skipped, err = e.containersOf(ctx, a.ids, a.attached || len(a.starts) > 0)
			return err
		})
	}
	err = group.Wait()
	a.skipped("container", skipped)
	return containers, err
}

func (a *answer) addNetworks(e *engine, list []network.Summary) {
	for _, s := range list {
		n, problems, ok := decodeNetwork(s)
		a.problems = append(a.problems, problems...)
		if ok {
			a.nets = append(a.nets, n)
		}
	}
	if e.noNAT6 {
		routeIPv6(a.nets)
	}
	sortNetworks(a.nets)
}

func (a *answer) skipped(kind string, err error) {
	if err != nil {
		a.problems = append(a.problems, problem{kind: kind, text: err.Error()})
	}
}

// uninspected has containers asked for once more. Until then what was to be learned
// of them is not known.
func (a *answer) uninspected(failed map[string]error) {
	for id, err := range failed {
		a.again = err
		a.retry = append(a.retry, id)
	}
}

func (a *answer) addContainers(ctx context.Context, e *engine, images *imageCache, list []container.Summary, attached map[string][]inventory.Endpoint) {
	var imageIDs []string
	for _, s := range list {
		d, ok := decodeContainer(s)
		if !ok {
			d, ok = decodeStarting(s, attached[s.ID])
		}
		a.problems = append(a.problems, d.problems...)
		if !ok {
			continue
		}
		a.containers = append(a.containers, d.Container)
		imageIDs = append(imageIDs, d.ImageID)
	}
	a.uninspected(images.putNames(ctx, e, a.containers))
	labels, failed := images.lookup(ctx, e, imageIDs)
	for i := range a.containers {
		c := &a.containers[i]
		found, ok := labels[c.ImageID]
		c.ImageLabels, c.ImageUnknown = found, !ok
		if err := failed[c.ImageID]; err != nil {
			a.again = err
			a.retry = append(a.retry, c.ID)
		}
	}
}

// routedNetworks gives the networks on which containers are reached at their own
// addresses.
func routedNetworks(nets []inventory.Network) map[string]bool {
	out := map[string]bool{}
	for _, n := range nets {
		if n.Gateway4 == inventory.GatewayRouted || n.Gateway6 == inventory.GatewayRouted {
			out[n.ID] = true
		}
	}
	return out
}

// addRoutedPorts asks for the ports of containers on routed networks that the list
// lacks: see routedUnlisted.
func (a *answer) addRoutedPorts(ctx context.Context, e *engine, routed map[string]bool) {
	on := map[string]bool{}
	for _, c := range a.containers {
		if !c.Starting && slices.ContainsFunc(c.Endpoints, func(e inventory.Endpoint) bool { return routed[e.NetworkID] }) {
			on[c.ID] = true
		}
	}
	found, failed := askEach(on, func(id string) ([]inventory.Port, error) { return e.routedPorts(ctx, id) })
	a.uninspected(failed)
	for i := range a.containers {
		c := &a.containers[i]
		if more := found[c.ID]; len(more) > 0 {
			c.Ports = append(c.Ports, more...)
			slices.SortFunc(c.Ports, comparePorts)
			c.Ports = slices.Compact(c.Ports)
		}
	}
}

// gatewayNetwork gives the ID of the network over which containers on overlay
// networks reach the host and the outside, "" where there is none.
func gatewayNetwork(nets []inventory.Network) string {
	for _, n := range nets {
		if n.Name == inventory.GatewayNetwork && n.Bridge != "" {
			return n.ID
		}
	}
	return ""
}

// addGateways adds the endpoints on the gateway network, which no list of
// containers shows: the engine makes them for containers that no other network
// gives a gateway.
func (a *answer) addGateways(ctx context.Context, e *engine, gateway string, list []container.Summary) error {
	if gateway == "" || !slices.ContainsFunc(list, lacksGateway) {
		return nil
	}
	attached, err := e.attached(ctx, gateway)
	if err != nil {
		return err
	}
	for i := range a.containers {
		c := &a.containers[i]
		r, ok := attached[c.ID]
		if !ok || slices.ContainsFunc(c.Endpoints, func(e inventory.Endpoint) bool { return e.NetworkID == gateway }) {
			continue
		}
		end, err := decodeAttached(gateway, r)
		if err != nil {
			a.problems = append(a.problems, problem{kind: "container", name: c.Name, id: c.ID, text: err.Error()})
		}
		c.Endpoints = append(c.Endpoints, end)
		sortEndpoints(c.Endpoints)
	}
	return nil
}

// lacksGateway reports whether one of the container's networks gives it no
// gateway, as overlay networks do not.
func lacksGateway(s container.Summary) bool {
	if s.NetworkSettings == nil {
		return false
	}
	for _, n := range s.NetworkSettings.Networks {
		if n != nil && n.NetworkID != "" && n.Gateway == "" {
			return true
		}
	}
	return false
}

// decodeAttached makes of r, an endpoint on the network net, what is certain.
func decodeAttached(net string, r network.EndpointResource) (inventory.Endpoint, error) {
	end := inventory.Endpoint{NetworkID: net}
	var err4, err6 error
	end.Addr4, err4 = parseSubnetAddr(r.IPv4Address, netip.Addr.Is4)
	end.Addr6, err6 = parseSubnetAddr(r.IPv6Address, netip.Addr.Is6)
	if err := cmp.Or(err4, err6); err != nil {
		return end, fmt.Errorf("address on network %s: %w", net, err)
	}
	return end, nil
}
