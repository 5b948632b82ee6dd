package dockerwatch

import (
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/network"

	"github.com/nftfw/nftfw/pkg/inventory"
)

// grace is how long an event is believed over a list that contradicts it. The
// engine sends some events before it updates what it lists: die and network
// connect on 20.10, network connect still on 28.
const grace = 5 * time.Second

// warnedMost bounds the memory for problems that have been logged.
const warnedMost = 1024

// question is what is to be asked of the engine.
type question struct {
	full     bool     // all containers
	ids      []string // these containers, where not full
	networks bool
	attached bool // with full: also the containers that are being started, as far as networks know
	// starts are the containers among those asked for that are being started,
	// with the networks that they were connected to.
	starts map[string][]string
	// gateway is the network on which containers have endpoints that no list
	// shows, as known before; "" for none.
	gateway string
	// routed are the networks in gateway mode routed, as known before.
	routed map[string]bool
	// sandbox asks, with full, also where the network namespace of one of them is;
	// learned is called as soon as that is known, from any goroutine.
	sandbox bool
	learned func(path string)

	seq      uint64 // the last event that was taken in when it was asked
	asked    uint64 // the last call of Watcher.Ask before it
	periodic bool   // asked without a reason
}

func (q question) empty() bool { return !q.full && len(q.ids) == 0 && !q.networks }

// answer is what came back. With err set nothing else is.
type answer struct {
	question
	containers []inventory.Container
	nets       []inventory.Network
	problems   []problem
	retry      []string                                       // containers whose image could not be asked
	again      error                                          // why not
	endpoints  map[string]map[string]network.EndpointResource // of networks that were inspected, by network and container
	blind      map[string]error                               // networks that could not be inspected
	err        error
}

// state is what events and answers so far add up to. It does no I/O and belongs
// to one goroutine.
type state struct {
	grace  time.Duration
	log    *slog.Logger
	podman bool // the events are Podman's

	asked      uint64 // what the networks answer of Watcher.Ask
	release    int    // of the engine, see inventory.Snapshot
	listed     bool   // a complete list has been applied
	containers map[string]inventory.Container
	networks   []inventory.Network
	swarm      inventory.Swarm

	seq    uint64              // counts events
	recent map[string]recent   // by container: what events said lately
	starts map[string]*startup // by container
	// foreseen are the ports that containers had when they last ran, or will
	// have when they run for the first time.
	foreseen map[string][]inventory.Port
	warned   map[problem]bool

	// What to ask next.
	dirty       map[string]bool
	dirtyNets   bool
	dirtyAll    bool
	dirtySwarm  bool
	serviceGone uint64          // the last event that told of a service's end
	doubted     map[string]bool // answers contradicted events: ask again, a little later
	unannounced int             // containers that a periodic list found changed and no event spoke of
}

// recent is what events said of one container within the grace period.
type recent struct {
	seq      uint64    // the last event about it: an answer from before is stale
	at       time.Time // of that event
	alive    life
	networks map[string]bool // by network: connected or disconnected
	name     string          // that it was given; "" for none
}

type life int

const (
	unknown life = iota
	starting
	started
	died
)

func newState(grace time.Duration, log *slog.Logger) *state {
	return &state{
		grace:      grace,
		log:        log,
		containers: map[string]inventory.Container{},
		recent:     map[string]recent{},
		starts:     map[string]*startup{},
		foreseen:   map[string][]inventory.Port{},
		warned:     map[problem]bool{},
		dirty:      map[string]bool{},
		doubted:    map[string]bool{},
		swarm:      inventory.Swarm{Unknown: true},
		dirtyAll:   true,
		dirtyNets:  true,
		dirtySwarm: true,
	}
}

// event takes one event in and reports whether that alone changed the snapshot:
// what an event ends is withdrawn without asking, what it begins is asked for.
func (s *state) event(m events.Message, now time.Time) (changed bool) {
	s.seq++
	if m.Actor.ID == "" {
		s.odd("event without an ID", m)
		return false
	}
	switch m.Type {
	case events.ContainerEventType:
		return s.containerEvent(m, now)
	case events.NetworkEventType:
		return s.networkEvent(m, now)
	case events.NodeEventType, events.ServiceEventType:
		return s.swarmEvent(m)
	default:
		return false // not asked for
	}
}

func (s *state) odd(what string, m events.Message) {
	s.log.Warn("engine sent something odd, listing again", "what", what, "type", m.Type, "action", m.Action)
	s.dirtyAll, s.dirtyNets = true, true
}

func (s *state) containerEvent(m events.Message, now time.Time) (changed bool) {
	id := m.Actor.ID
	switch m.Action {
	case events.ActionDie, events.ActionDestroy:
		if m.Action == events.ActionDestroy {
			delete(s.foreseen, id)
		}
		_, changed = s.containers[id]
		delete(s.containers, id)
		delete(s.starts, id)
		delete(s.dirty, id)
		s.heard(id, now, func(r *recent) { r.alive, r.networks = died, nil })
	case events.ActionStart:
		s.heard(id, now, func(r *recent) { r.alive = started })
		s.dirty[id] = true
		s.dirtyNets = s.dirtyNets || s.podman // no event tells of its new networks
	case events.ActionRename:
		s.heard(id, now, func(r *recent) { r.name = m.Actor.Attributes["name"] })
		s.dirty[id] = true
	case events.ActionUnPause, events.ActionUpdate:
		s.heard(id, now, nil)
		s.dirty[id] = true
	default:
		// What is left (create, exec, health_status, kill, stop, attach …)
		// changes nothing here, or comes with one of the above.
	}
	return changed
}

func (s *state) networkEvent(m events.Message, now time.Time) (changed bool) {
	net, id := m.Actor.ID, m.Actor.Attributes["container"]
	if s.podman {
		// It gives the container in the network's place, and not the network.
		s.heard(net, now, nil)
		s.dirty[net], s.dirtyNets = true, true
		return false
	}
	switch m.Action {
	case events.ActionConnect, events.ActionDisconnect:
		if id == "" {
			s.odd("network event without a container", m)
			return false
		}
	default:
		s.dirtyNets = true
		// The first that a host hears of its joining a swarm.
		s.dirtySwarm = s.dirtySwarm || m.Actor.Attributes["type"] == "overlay"
		return false
	}
	connected := m.Action == events.ActionConnect
	s.dirtyNets = s.dirtyNets || connected
	c, known := s.containers[id]
	runs := known && !c.Starting
	s.heard(id, now, func(r *recent) {
		if r.networks == nil {
			r.networks = map[string]bool{}
		}
		r.networks[net] = connected
		runs = runs || r.alive == started
		if connected && !runs {
			r.alive = starting
		}
	})
	if known || connected {
		s.dirty[id] = true
	}
	if connected {
		if runs {
			return false
		}
		changed = s.connecting(id, net, now)
		if gateway := gatewayNetwork(s.networks); gateway != "" && m.Actor.Attributes["type"] == "overlay" {
			// The way out of an overlay network, of which no event tells.
			changed = s.connecting(id, gateway, now) || changed
		}
		return changed
	}
	if !known {
		s.disconnecting(id, net)
		return false
	}
	left := without(c.Endpoints, net)
	changed = len(left) != len(c.Endpoints)
	c.Endpoints = left
	s.containers[id] = c
	s.disconnecting(id, net)
	return changed
}

// without returns a new slice: the old one has been handed out.
func without(endpoints []inventory.Endpoint, network string) []inventory.Endpoint {
	var left []inventory.Endpoint
	for _, e := range endpoints {
		if e.NetworkID != network {
			left = append(left, e)
		}
	}
	return left
}

// heard notes that an event spoke of a container.
func (s *state) heard(id string, now time.Time, change func(*recent)) {
	r := s.recent[id]
	if now.Sub(r.at) > s.grace {
		r = recent{}
	}
	r.seq, r.at = s.seq, now
	if change != nil {
		change(&r)
	}
	s.recent[id] = r
}

// next returns what to ask now and forgets that it was to be asked. Up to few
// containers are asked for by their IDs.
func (s *state) next(few int) question {
	q := question{networks: s.dirtyNets, gateway: gatewayNetwork(s.networks), routed: routedNetworks(s.networks), seq: s.seq}
	if s.dirtyAll || len(s.dirty) > few {
		q.full = true
	} else {
		q.ids = slices.Sorted(maps.Keys(s.dirty))
	}
	s.dirtyAll, s.dirtyNets = false, false
	clear(s.dirty)
	return q
}

// stale reports whether there is something about containers to ask.
func (s *state) stale() bool { return s.dirtyAll || s.dirtyNets || len(s.dirty) > 0 }

// failed has everything asked for, after a question about a part got no answer.
func (s *state) failed() { s.dirtyAll, s.dirtyNets = true, true }

// apply takes an answer in and reports whether it changed the snapshot.
func (s *state) apply(a answer, now time.Time) (changed bool) {
	s.warn(a.problems)
	answered := make(map[string]inventory.Container, len(a.containers))
	for _, c := range a.containers {
		answered[c.ID] = c
	}
	ids := a.ids
	if len(s.containers) == 0 {
		s.containers = make(map[string]inventory.Container, len(a.containers))
	}
	if a.full {
		all := maps.Clone(s.containers)
		maps.Copy(all, answered)
		ids = slices.Collect(maps.Keys(all))
		for id := range s.recent {
			if _, ok := all[id]; !ok {
				ids = append(ids, id)
			}
		}
	}
	for _, id := range ids {
		c, running := answered[id]
		if s.applyOne(a, id, c, running, now) {
			changed = true
		}
	}
	if a.networks && (a.asked != s.asked || !reflect.DeepEqual(s.networks, a.nets)) {
		s.networks, s.asked = a.nets, a.asked
		changed = true
	}
	if a.full && a.networks {
		s.listed = true
	}
	for id, r := range s.recent {
		// No answer from before it is under way any more.
		if r.seq <= a.seq && now.Sub(r.at) > s.grace {
			delete(s.recent, id)
		}
	}
	return changed
}

// applyOne takes in what an answer says of one container: c, if it is there.
func (s *state) applyOne(a answer, id string, c inventory.Container, there bool, now time.Time) (changed bool) {
	old, had := s.containers[id]
	r, heard := s.recent[id]
	if heard && r.seq > a.seq {
		return false // stale: an event came after the question, and asked anew if need be
	}
	var doubt bool
	if heard && now.Sub(r.at) <= s.grace {
		c, there, doubt = r.correct(c, there)
	}
	if there && c.Starting {
		var incomplete bool
		c, there, incomplete = s.begin(c, a.blind, now)
		doubt = doubt || incomplete
	}
	if doubt {
		s.doubted[id] = true
	}
	if !there {
		delete(s.containers, id)
		changed = had
	} else if changed = !had || !reflect.DeepEqual(old, c); changed {
		s.containers[id] = c // else the old one stays, by which others tell that it is the same
	}
	runs := there && !c.Starting
	if runs {
		s.remember(id, c.Ports)
	}
	if runs || !there {
		delete(s.starts, id)
	}
	if a.periodic && (had && !old.Starting) != runs && !heard {
		s.unannounced++
	}
	return changed
}

// correct returns what is certain when a list says c and events lately said r,
// and whether the two contradict each other. What ended stays ended.
func (r recent) correct(c inventory.Container, listed bool) (_ inventory.Container, there, doubt bool) {
	switch {
	case r.alive == died:
		return inventory.Container{}, false, listed
	case !listed:
		return inventory.Container{}, false, r.alive == started
	}
	doubt = c.Starting && r.alive == started
	// The engine gives up the old name after it has told of the new one: a list may
	// have both.
	if r.name != "" && c.Name != r.name {
		c.Name, doubt = r.name, true
	}
	for network, connected := range r.networks {
		listed := slices.ContainsFunc(c.Endpoints, func(e inventory.Endpoint) bool { return e.NetworkID == network })
		if listed == connected {
			continue
		}
		doubt = true
		if listed {
			c.Endpoints = without(c.Endpoints, network)
		}
	}
	return c, true, doubt
}

// warn logs each problem once for as long as the state lives; of very many some
// more often.
func (s *state) warn(problems []problem) {
	for _, p := range problems {
		if s.warned[p] {
			continue
		}
		keep(s.warned, warnedMost, p, true)
		s.log.Warn("not understood, left out", p.kind, p.name, "id", p.id, "what", p.text)
	}
}

// snapshot returns the state as a value that nobody changes any more.
func (s *state) snapshot() inventory.Snapshot {
	ids := slices.Sorted(maps.Keys(s.containers))
	containers := make([]inventory.Container, len(ids))
	for i, id := range ids {
		containers[i] = s.containers[id]
	}
	return inventory.Snapshot{
		Containers: containers,
		Networks:   s.networks, // never written to, but replaced
		Swarm:      s.swarm,
		Engine:     inventory.EngineListed,
		Release:    s.release,
		Asked:      s.asked,
	}
}
