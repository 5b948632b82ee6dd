package dockerwatch

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/api/types/system"

	"github.com/nftfw/nftfw/pkg/inventory"
)

// swarmPoll is how often a node of a swarm asks how its swarm stands. Managers are
// told of nodes and services by events; a worker is told of nothing, and no host of
// its own leaving. Of its joining one hears by the network that is made for it, so
// that a host in none asks noSwarmPoll times as rarely, and only to be sure. Until
// the answer is complete it is asked sooner.
const (
	swarmPoll    = 5 * time.Second
	noSwarmPoll  = 6
	swarmPollMin = 250 * time.Millisecond
)

// meshSandbox is behind the ingress network's name in the one under which the
// engine lists the routing mesh's sandbox among the containers of a network
// (lbSandboxName in moby's libnetwork/network.go).
const meshSandbox = "-sbox"

// swarmAnswer is what came back of a question about the swarm.
type swarmAnswer struct {
	swarm    inventory.Swarm
	problems []problem
	// blind is set where a manager could not list nodes and services: those
	// that are known stay.
	blind bool
	err   error  // the engine did not answer at all
	seq   uint64 // the last event that was taken in when it was asked
}

// askSwarm asks whether this host is a node of a swarm, who the other nodes are
// and what is published in the routing mesh.
func (e *engine) askSwarm(ctx context.Context) (a swarmAnswer) {
	if e.podman != nil {
		return swarmAnswer{} // it has no such thing
	}
	if e.inNoSwarm(ctx) {
		return swarmAnswer{}
	}
	info, err := e.info(ctx)
	if err != nil {
		return swarmAnswer{err: err}
	}
	if info.Swarm.LocalNodeState == "" || info.Swarm.LocalNodeState == swarm.LocalNodeStateInactive {
		return swarmAnswer{}
	}
	found := newNodes(info)
	a.swarm = found.swarm
	nets, _, err := e.networks(ctx)
	if err != nil {
		return swarmAnswer{err: err}
	}
	if i := slices.IndexFunc(nets, func(n network.Summary) bool { return n.Ingress }); i >= 0 {
		if err := e.peers(ctx, nets[i].ID, &found); err != nil {
			return swarmAnswer{err: err}
		}
		if a.swarm.Ingress, err = e.ingressAddr(ctx, nets, nets[i].Name); err != nil {
			return swarmAnswer{err: err}
		}
	}
	if a.swarm.Role == inventory.SwarmManager {
		if err := e.askManager(ctx, &a, &found); err != nil {
			a.blind = true
			a.swarm.Problem = "nodes and services cannot be listed: " + err.Error()
		}
	}
	a.swarm.Nodes = found.sorted()
	return a
}

// inNoSwarm reports whether the engine says so in answer to a ping, as those
// from 23 on do: they need to gather nothing for it.
func (e *engine) inNoSwarm(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, e.timeout)
	defer cancel()
	p, err := e.cli.Ping(ctx)
	return err == nil && p.SwarmStatus != nil && p.SwarmStatus.NodeState == swarm.LocalNodeStateInactive
}

// nodes gathers the addresses of the other nodes.
type nodes struct {
	swarm inventory.Swarm
	id    string // of this node
	own   netip.Addr
	addrs map[netip.Addr]bool
}

// newNodes begins with what every node knows: its own part and the managers.
func newNodes(i system.Info) nodes {
	n := nodes{id: i.Swarm.NodeID, addrs: map[netip.Addr]bool{}}
	n.own, _ = nodeAddr(i.Swarm.NodeAddr)
	n.swarm.Role = inventory.SwarmWorker
	if i.Swarm.ControlAvailable {
		n.swarm.Role = inventory.SwarmManager
	}
	if state := i.Swarm.LocalNodeState; state != swarm.LocalNodeStateActive {
		n.swarm.Problem = fmt.Sprintf("the engine calls this node %s: who the other nodes are may not be known", state)
		if i.Swarm.Error != "" {
			n.swarm.Problem += " (" + strings.ReplaceAll(i.Swarm.Error, "\n", " ") + ")"
		}
	}
	if i.Swarm.Cluster != nil && i.Swarm.Cluster.DataPathPort <= 1<<16-1 {
		n.swarm.DataPort = uint16(i.Swarm.Cluster.DataPathPort)
	}
	for _, m := range i.Swarm.RemoteManagers {
		if m.NodeID != n.id {
			n.add(m.Addr)
			continue
		}
		if _, port, err := net.SplitHostPort(m.Addr); err == nil {
			number, _ := strconv.ParseUint(port, 10, 16)
			n.swarm.ControlPort = uint16(number)
		}
	}
	return n
}

// add notes an address of another node, with a port behind it or without. What
// is no address of one is left out: an engine says 0.0.0.0 of a node that has
// not called in, and "unknown" of a peer that it has lost.
func (n *nodes) add(text string) {
	if a, ok := nodeAddr(text); ok && a != n.own {
		n.addrs[a] = true
	}
}

func (n *nodes) sorted() []netip.Addr {
	return slices.SortedFunc(maps.Keys(n.addrs), netip.Addr.Compare)
}

func nodeAddr(text string) (netip.Addr, bool) {
	if host, _, err := net.SplitHostPort(text); err == nil {
		text = host
	}
	a, err := netip.ParseAddr(text)
	a = a.Unmap().WithZone("")
	return a, err == nil && !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast()
}

// ingressAddr gives the address that the sandbox of the ingress network has on
// the gateway network, one of nets; the zero Addr where there is none.
func (e *engine) ingressAddr(ctx context.Context, nets []network.Summary, ingress string) (netip.Addr, error) {
	i := slices.IndexFunc(nets, func(n network.Summary) bool { return n.Name == inventory.GatewayNetwork && n.Driver == "bridge" })
	if i < 0 {
		return netip.Addr{}, nil
	}
	attached, err := e.attached(ctx, nets[i].ID)
	if err != nil {
		return netip.Addr{}, err
	}
	a, err := parseSubnetAddr(attached[ingress+meshSandbox].IPv4Address, netip.Addr.Is4)
	return a, e.fail("find the routing mesh's address", err)
}

// peers notes the nodes on the ingress network, which are all nodes that are
// up. This is how a worker knows of other workers.
func (e *engine) peers(ctx context.Context, ingress string, found *nodes) error {
	n, err := e.inspectNetwork(ctx, ingress)
	for _, p := range n.Peers {
		found.add(p.IP)
	}
	return err
}

// askManager asks what managers alone know.
func (e *engine) askManager(ctx context.Context, a *swarmAnswer, found *nodes) error {
	ctx, cancel := context.WithTimeout(ctx, e.timeout)
	defer cancel()
	list, err := e.cli.NodeList(ctx, swarm.NodeListOptions{})
	if err != nil {
		return e.fail("list nodes", err)
	}
	for _, n := range list {
		if n.ID == found.id {
			continue
		}
		found.add(n.Status.Addr)
		if n.ManagerStatus != nil {
			found.add(n.ManagerStatus.Addr)
		}
	}
	services, err := e.cli.ServiceList(ctx, swarm.ServiceListOptions{})
	if err != nil {
		return e.fail("list services", err)
	}
	for _, s := range services {
		decoded, problems, ok := decodeService(s)
		a.problems = append(a.problems, problems...)
		if ok {
			a.swarm.Services = append(a.swarm.Services, decoded)
		}
	}
	slices.SortFunc(a.swarm.Services, func(a, b inventory.Service) int { return cmp.Compare(a.ID, b.ID) })
	return nil
}

// decodeService makes of s what is certain; ok is false for one without an ID.
// Its ports are those that the swarm has given it, which may be a moment behind
// those that were asked for.
func decodeService(s swarm.Service) (d inventory.Service, problems []problem, ok bool) {
	d = inventory.Service{ID: s.ID, Name: s.Spec.Name, Labels: s.Spec.Labels}
	if c := s.Spec.TaskTemplate.ContainerSpec; c != nil {
		d.Image, d.ContainerLabels = c.Image, c.Labels
	}
	for _, p := range s.Endpoint.Ports {
		if p.PublishMode == swarm.PortConfigPublishModeHost || p.PublishedPort == 0 {
			continue
		}
		proto, known := protocols[string(p.Protocol)]
		if !known || p.PublishedPort > 1<<16-1 || p.TargetPort == 0 || p.TargetPort > 1<<16-1 {
			problems = append(problems, problem{
				kind: "service", name: d.Name, id: d.ID,
				text: fmt.Sprintf("published port %d:%d/%s", p.PublishedPort, p.TargetPort, p.Protocol),
			})
			continue
		}
		d.Ports = append(d.Ports, inventory.ServicePort{Published: uint16(p.PublishedPort), Target: uint16(p.TargetPort), Proto: proto})
	}
	slices.SortFunc(d.Ports, func(a, b inventory.ServicePort) int {
		return cmp.Or(cmp.Compare(a.Published, b.Published), cmp.Compare(a.Proto, b.Proto))
	})
	return d, problems, d.ID != ""
}

// decodeOverlay adds to n what sets one overlay network apart from another.
func decodeOverlay(s network.Summary, n *inventory.Network) error {
	n.Ingress = s.Ingress
	// The engine asks whether the key is there, whatever its value.
	_, n.Encrypted = s.Options["encrypted"]
	for text := range strings.SplitSeq(s.Options["com.docker.network.driver.overlay.vxlanid_list"], ",") {
		if text == "" {
			continue
		}
		vni, err := strconv.ParseUint(text, 10, 24)
		if err != nil {
			return fmt.Errorf("VXLAN network identifier: %w", err)
		}
		n.VNIs = append(n.VNIs, uint32(vni))
	}
	slices.Sort(n.VNIs)
	return nil
}

// applySwarm takes in an answer about the swarm and reports whether it changed
// the snapshot.
func (s *state) applySwarm(a swarmAnswer) (changed bool) {
	if a.err != nil {
		// What is known stays, and with it the permission of the nodes: an
		// engine that is busy has not left its swarm.
		s.warn([]problem{{kind: "swarm", text: a.err.Error()}})
		return false
	}
	s.warn(a.problems)
	if s.serviceGone > a.seq {
		return false // it may have a service that has been removed since; it is asked anew
	}
	next := a.swarm
	if a.blind {
		next.Services = s.swarm.Services
		next.Nodes = union(next.Nodes, s.swarm.Nodes)
	}
	changed = !reflect.DeepEqual(s.swarm, next)
	s.swarm = next
	return changed
}

func union(a, b []netip.Addr) []netip.Addr {
	all := slices.Concat(a, b)
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

// swarmEvent takes in that nodes or services have changed, of which only
// managers are told.
func (s *state) swarmEvent(m events.Message) (changed bool) {
	s.dirtySwarm = true
	if m.Type != events.ServiceEventType || m.Action != events.ActionRemove {
		return false
	}
	s.serviceGone = s.seq
	left := slices.DeleteFunc(slices.Clone(s.swarm.Services), func(v inventory.Service) bool { return v.ID == m.Actor.ID })
	changed = len(left) != len(s.swarm.Services)
	s.swarm.Services = left
	return changed
}

// askSwarm asks how the swarm stands, unless that is being asked.
func (l *loop) askSwarm(ctx context.Context) {
	if l.askingSwarm || !l.state.dirtySwarm || !l.first {
		return // what runs is told first: for this answer an engine runs other programs
	}
	l.state.dirtySwarm, l.askingSwarm = false, true
	seq := l.state.seq
	l.wg.Go(func() {
		a := l.e.askSwarm(ctx)
		a.seq = seq
		l.swarms <- a
	})
}

// takeSwarm takes an answer in, and plans the next question.
func (l *loop) takeSwarm(a swarmAnswer) {
	if l.state.applySwarm(a) {
		l.send()
	}
	switch {
	case a.err != nil, a.swarm.Problem != "", a.swarm.Role != "" && !a.swarm.Ingress.IsValid():
		l.pollAfter = min(max(2*l.pollAfter, swarmPollMin), l.w.swarmPoll)
		l.poll.Reset(l.pollAfter)
		return
	case a.swarm.Role != "":
		l.poll.Reset(l.w.swarmPoll)
	default:
		l.poll.Reset(noSwarmPoll * l.w.swarmPoll)
	}
	l.pollAfter = 0
}
