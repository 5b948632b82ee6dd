package dockerwatch

import (
	"cmp"
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"

	"github.com/nftfw/nftfw/pkg/inventory"
)

// startup is the start of a container, from the first network connect until it
// is seen to run.
type startup struct {
	since    time.Time
	networks map[string]bool
}

// connecting puts a container that was connected to a network before it runs
// into the snapshot, and reports whether that changed it. Nothing is asked for
// that: engines of version 28 leave only 20 ms until the process runs.
func (s *state) connecting(id, net string, now time.Time) (changed bool) {
	st := s.starts[id]
	if st == nil {
		st = &startup{since: now, networks: map[string]bool{}}
		s.starts[id] = st
	}
	st.networks[net] = true
	c, known := s.containers[id]
	if !known {
		c = inventory.Container{ID: id, Starting: true, Unidentified: true, ImageUnknown: true}
	}
	if slices.ContainsFunc(c.Endpoints, func(e inventory.Endpoint) bool { return e.NetworkID == net }) {
		return false
	}
	c.Endpoints = append(slices.Clone(c.Endpoints), inventory.Endpoint{NetworkID: net})
	sortEndpoints(c.Endpoints)
	s.containers[id] = c
	return true
}

// disconnecting notes that a container was disconnected from a network before
// it ran: with the last one its start has failed.
func (s *state) disconnecting(id, net string) {
	st := s.starts[id]
	if st == nil {
		return
	}
	delete(st.networks, net)
	if gateway := gatewayNetwork(s.networks); len(st.networks) == 1 && st.networks[gateway] {
		delete(st.networks, gateway) // made for the one that it has left
	}
	if len(st.networks) > 0 {
		return
	}
	delete(s.starts, id)
	if s.containers[id].Starting {
		delete(s.containers, id)
		delete(s.dirty, id)
	}
}

// startsOf returns the networks of the starts that q asks about.
func (s *state) startsOf(q question) map[string][]string {
	starts := map[string][]string{}
	for id, st := range s.starts {
		if q.full || slices.Contains(q.ids, id) {
			starts[id] = slices.Sorted(maps.Keys(st.networks))
		}
	}
	return starts
}

// begin takes in that an answer has c as being started. Addresses may be missing
// for a while, and are asked for again; after that an endpoint without one does
// not count, so that no start lingers which the networks do not know of. What
// could not be asked of the networks in blind is no answer.
func (s *state) begin(c inventory.Container, blind map[string]error, now time.Time) (_ inventory.Container, there, incomplete bool) {
	st := s.starts[c.ID]
	if st == nil {
		st = &startup{since: now, networks: map[string]bool{}}
		s.starts[c.ID] = st
	}
	var left []inventory.Endpoint
	for _, e := range c.Endpoints {
		if !e.Addr4.IsValid() && !e.Addr6.IsValid() {
			incomplete = true
			if now.Sub(st.since) > s.grace && blind[e.NetworkID] == nil {
				continue
			}
		}
		st.networks[e.NetworkID] = true
		left = append(left, e)
	}
	c.Endpoints, c.Foreseen = left, s.foreseen[c.ID]
	return c, len(left) > 0, incomplete && len(left) > 0
}

// attachedTo asks for the endpoints of the containers that are being started:
// those of the question that do not run by list, and where it says so all that
// there are. A network on which the engine does not list a container of the
// question is among its endpoints, and has no address.
func (a *answer) attachedTo(ctx context.Context, e *engine, list []container.Summary) map[string][]inventory.Endpoint {
	waiting := map[string]bool{}
	for _, s := range list {
		waiting[s.ID] = !isRunning(s)
	}
	networks := map[string]bool{}
	for id, nets := range a.starts {
		for _, net := range nets {
			_, asked := a.endpoints[net]
			networks[net] = networks[net] || waiting[id] && !asked
		}
	}
	a.inspect(ctx, e, networks)
	out := map[string][]inventory.Endpoint{}
	for net, byContainer := range a.endpoints {
		for id, r := range byContainer {
			if _, asked := a.starts[id]; !asked && !a.attached {
				continue
			}
			end, err := decodeAttached(net, r)
			if err != nil {
				a.problems = append(a.problems, problem{kind: "container", name: r.Name, id: id, text: err.Error()})
			}
			out[id] = append(out[id], end)
		}
	}
	for id, nets := range a.starts {
		if !waiting[id] {
			continue
		}
		for _, net := range nets {
			if _, there := a.endpoints[net][id]; !there {
				out[id] = append(out[id], inventory.Endpoint{NetworkID: net})
			}
		}
		sortEndpoints(out[id])
	}
	return out
}

// inspectBridges asks for what is attached to the networks that are bridges of
// the host.
func (a *answer) inspectBridges(ctx context.Context, e *engine) {
	bridges := map[string]bool{}
	for _, n := range a.nets {
		bridges[n.ID] = n.Bridge != ""
	}
	a.inspect(ctx, e, bridges)
}

// inspect asks for what is attached to each of the networks that are true.
func (a *answer) inspect(ctx context.Context, e *engine, networks map[string]bool) {
	found, failed := e.endpointsOf(ctx, networks)
	maps.Copy(a.endpoints, found)
	maps.Copy(a.blind, failed)
	for net, err := range failed {
		a.problems = append(a.problems, problem{kind: "network", id: net, text: err.Error()})
	}
}

// endpointsOf asks for what is attached to each of the networks that are true.
func (e *engine) endpointsOf(ctx context.Context, networks map[string]bool) (found map[string]map[string]network.EndpointResource, failed map[string]error) {
	found, failed = map[string]map[string]network.EndpointResource{}, map[string]error{}
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		slots = make(chan struct{}, parallelInspects)
	)
	for id, ask := range networks {
		if !ask {
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			endpoints, err := e.attached(ctx, id)
			mu.Lock()
			defer mu.Unlock()
			found[id] = endpoints
			if err != nil {
				failed[id] = err
			}
		})
	}
	wg.Wait()
	return found, failed
}

// parseSubnetAddr reads an address with the length of its network's prefix
// behind it. It returns the zero Addr for "".
func parseSubnetAddr(s string, family func(netip.Addr) bool) (netip.Addr, error) {
	if s == "" {
		return netip.Addr{}, nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Addr{}, err
	}
	return parseAddr(p.Addr().String(), family)
}

// decodeStarting makes of s what is certain of a container that is being
// started. ok is false if it is not: it is attached to nothing, or in a state
// from which nothing starts. What the list says of its endpoints and ports is
// from when it last ran.
func decodeStarting(s container.Summary, attached []inventory.Endpoint) (d decoded, ok bool) {
	switch s.State {
	case container.StateCreated, container.StateExited, container.StateRestarting:
		d = decoded{Container: identify(s)}
		d.Starting, d.Endpoints = true, attached
		return d, s.ID != "" && len(attached) > 0
	}
	return decoded{}, false
}

func sortEndpoints(list []inventory.Endpoint) {
	slices.SortFunc(list, func(a, b inventory.Endpoint) int { return cmp.Compare(a.NetworkID, b.NetworkID) })
}
