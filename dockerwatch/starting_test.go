package dockerwatch

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/docker/docker/api/types/events"
	"github.com/google/go-cmp/cmp"

	"github.com/nftfw/nftfw/pkg/inventory"
)

// created is box n as the engine lists it while it does not run: what it says
// of networks and ports is nothing, or old.
func created(n int) object {
	c := box(n, netA)
	c["State"] = "created"
	return c
}

// attach has the networks list container n, with the address 172.18.0.n.
func (f *fakeEngine) attach(n int, nets ...string) {
	f.edit(func() {
		for _, net := range nets {
			f.attached[net][id(n)] = object{"Name": fmt.Sprintf("c%d", n), "IPv4Address": fmt.Sprintf("172.18.0.%d/16", n), "IPv6Address": ""}
		}
	})
}

func (f *fakeEngine) detach(n int, nets ...string) {
	f.edit(func() {
		for _, net := range nets {
			delete(f.attached[net], id(n))
		}
	})
}

// stages describes each container of s: its name with a ? while it is not
// identified, a + while it starts, and its networks with an ! where the address
// is known.
func stages(s inventory.Snapshot) []string {
	var out []string
	for _, c := range s.Containers {
		text := c.Name
		if c.Unidentified {
			text += "?"
		}
		if c.Starting {
			text += "+"
		}
		for _, e := range c.Endpoints {
			text += " " + e.NetworkID[:1]
			if e.Addr4.IsValid() {
				text += "!"
			}
		}
		out = append(out, text)
	}
	slices.Sort(out)
	return out
}

func at(want ...string) func(inventory.Snapshot) bool {
	return func(s inventory.Snapshot) bool { return slices.Equal(stages(s), want) }
}

// Each step is what the engine does next, and what is then to be emitted.
func TestRunStarting(t *testing.T) {
	type step struct {
		do   func(f *fakeEngine)
		want []string // nil: c1 alone
	}
	connect := func(nets ...string) func(*fakeEngine) {
		return func(f *fakeEngine) {
			f.attach(2, nets...)
			f.set(created(2))
			for _, net := range nets {
				f.network("connect", net, id(2))
			}
		}
	}
	runs := func(f *fakeEngine) {
		f.set(box(2, netA))
		f.container("start", id(2))
	}
	dies := func(f *fakeEngine) { // as 20.10 orders it
		f.set(created(2))
		f.container("die", id(2))
		f.detach(2, netA)
		f.network("disconnect", netA, id(2))
	}
	fails := func(f *fakeEngine) {
		f.detach(2, netA)
		f.network("disconnect", netA, id(2))
	}
	starting, running := []string{"c1 a!", "c2+ a!"}, []string{"c1 a!", "c2 a!"}
	tests := []struct {
		name  string
		steps []step
	}{
		{"start", []step{{connect(netA), starting}, {runs, running}}},
		{"failed start", []step{{connect(netA), starting}, {fails, nil}}},
		{"failed start, tried again", []step{{connect(netA), starting}, {fails, nil}, {connect(netA), starting}, {runs, running}}},
		{"destroyed", []step{{connect(netA), starting}, {func(f *fakeEngine) { f.container("destroy", id(2)) }, nil}}},
		{"dies before start is sent", []step{{connect(netA), starting}, {func(f *fakeEngine) { f.container("die", id(2)) }, nil}}},
		{"two networks", []step{{connect(netA, netB), []string{"c1 a!", "c2+ a! b!"}}}},
		{"one network of two is left", []step{
			{connect(netA, netB), []string{"c1 a!", "c2+ a! b!"}},
			{func(f *fakeEngine) { f.detach(2, netB); f.network("disconnect", netB, id(2)) }, starting},
			{fails, nil},
		}},
		{"restart", []step{{connect(netA), starting}, {runs, running}, {dies, nil}, {connect(netA), starting}, {runs, running}}},
		{"restart as from 24 on", []step{{connect(netA), starting}, {runs, running}, {func(f *fakeEngine) {
			f.detach(2, netA)
			f.network("disconnect", netA, id(2))
			f.set(created(2))
			f.container("die", id(2))
		}, nil}, {connect(netA), starting}, {runs, running}}},
		{"start is sent before the list knows", []step{
			{connect(netA), starting},
			{func(f *fakeEngine) {
				other := box(1, netA)
				other["Names"] = []string{"/later"}
				f.set(other)
				f.container("start", id(2))
				f.renamed(id(1), "later")
			}, []string{"c2+ a!", "later a!"}},
			{func(f *fakeEngine) { f.set(box(2, netA)) }, []string{"c2 a!", "later a!"}},
		}},
		{"its address comes later", []step{
			{func(f *fakeEngine) {
				f.set(created(2))
				f.network("connect", netA, id(2))
			}, []string{"c1 a!", "c2+ a"}},
			{func(f *fakeEngine) { f.attach(2, netA) }, starting},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFakeEngine(t)
			f.set(box(1, netA))
			r := start(t, f, nil)
			r.first()
			for i, s := range tt.steps {
				s.do(f)
				want := s.want
				if want == nil {
					want = []string{"c1 a!"}
				}
				got := r.until(fmt.Sprintf("step %d: %v", i+1, want), at(want...))
				for _, c := range got.Containers {
					if c.Starting && len(c.Ports) > 0 {
						t.Errorf("step %d: ports of a container that does not run: %v", i+1, c.Ports)
					}
				}
				if n := r.w.Status().Containers; n != got.Running() {
					t.Errorf("step %d: status counts %d", i+1, n)
				}
			}
		})
	}
}

// What is known of it is all that its egress depends on.
func TestRunStartingIsComplete(t *testing.T) {
	f := newFakeEngine(t)
	r := start(t, f, nil)
	r.first()
	c := created(2)
	c["Labels"] = object{"nftfw.egress": "none", "baked": "in"}
	f.set(c)
	f.attach(2, netA)
	f.network("connect", netA, id(2))
	want := []inventory.Container{{
		ID: id(2), Name: "c2", Image: "web:1", ImageID: "sha256:img", NetworkMode: "bridge", Starting: true,
		Labels:      map[string]string{"nftfw.egress": "none", "baked": "in"},
		ImageLabels: map[string]string{"baked": "in"},
		Endpoints:   []inventory.Endpoint{{NetworkID: netA, Addr4: addr("172.18.0.2")}},
	}}
	r.until("which one", func(s inventory.Snapshot) bool { return !s.Containers[0].Unidentified })
	if diff := cmp.Diff(want, r.last.Containers, cmp.Comparer(func(a, b inventory.Endpoint) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := f.got("container"); len(got) > 0 {
		t.Errorf("inspected %v, which blocks until it runs", got)
	}
}

// An engine that is slow to say which container it starts must not keep us from
// knowing that it starts one.
func TestRunSlowToIdentify(t *testing.T) {
	for _, what := range []string{"containers", "network", "networks"} {
		t.Run(what, func(t *testing.T) {
			f := newFakeEngine(t)
			f.set(box(1, netA))
			r := start(t, f, nil)
			r.first()
			f.attach(2, netA, netB)
			f.set(created(2))
			ctx, release := context.WithCancel(context.Background())
			t.Cleanup(release)
			f.edit(func() {
				f.answer = func(_ http.ResponseWriter, _ *http.Request, c call) bool {
					if c.what == what {
						<-ctx.Done()
					}
					return false
				}
			})
			f.network("connect", netA, id(2))
			r.until("that there is one", at("?+ a", "c1 a!"))
			f.network("connect", netB, id(2))
			r.until("its other network", at("?+ a b", "c1 a!"))
			release()
			r.until("which one", at("c1 a!", "c2+ a! b!"))
		})
	}
}

// A start is in the snapshot with its first event, and out of it with its end.
func TestStateOfStarts(t *testing.T) {
	event := func(kind events.Type, action events.Action, net string) events.Message {
		m := events.Message{Type: kind, Action: action, Actor: events.Actor{ID: "1"}}
		if kind == events.NetworkEventType {
			m.Actor = events.Actor{ID: net, Attributes: map[string]string{"container": "1"}}
		}
		return m
	}
	tests := []struct {
		name string
		ends []events.Message
	}{
		{"die", []events.Message{event("container", "die", "")}},
		{"destroy", []events.Message{event("container", "destroy", "")}},
		{"disconnect", []events.Message{event("network", "disconnect", netB), event("network", "disconnect", netA)}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newState(time.Second, slog.New(slog.DiscardHandler))
			now := time.Now()
			for i, net := range []string{netA, netB} {
				if !s.event(event("network", "connect", net), now) {
					t.Errorf("network connect %d changes nothing", i+1)
				}
			}
			if s.event(event("network", "connect", netB), now) {
				t.Error("the same again changes something")
			}
			if diff := cmp.Diff([]string{"?+ a b"}, stages(s.snapshot())); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			for i, m := range tt.ends {
				if !s.event(m, now) {
					t.Errorf("end %d changes nothing", i+1)
				}
			}
			if len(s.snapshot().Containers) > 0 || len(s.starts) > 0 {
				t.Errorf("it is still there: %+v", s.snapshot().Containers)
			}
		})
	}
}

// A network that cannot be inspected leaves an address unknown, and nothing else.
func TestRunStartingOnANetworkThatFails(t *testing.T) {
	f := newFakeEngine(t)
	f.set(box(1, netA))
	r := start(t, f, func(w *Watcher) { w.grace = 50 * time.Millisecond })
	r.first()
	f.refuse("network")
	f.set(created(2))
	f.attach(2, netA)
	f.network("connect", netA, id(2))
	r.until("it is there", at("c1 a!", "c2+ a"))
	before := len(f.got("network"))
	eventually(t, "asked again, past the grace", func() bool { return len(f.got("network")) >= before+4 })
	r.quiet()
	f.edit(func() { f.answer = nil })
	r.until("its address", at("c1 a!", "c2+ a!"))
}

// Past the grace a network counts as left that does not have the container, and not
// one that did not say.
func TestStateOfStartsWithoutAnAnswer(t *testing.T) {
	now := time.Now()
	c := inventory.Container{ID: "1", Starting: true, Endpoints: []inventory.Endpoint{{NetworkID: netA}}}
	for name, tt := range map[string]struct {
		since time.Time
		blind map[string]error
		there bool
	}{
		"within the grace":       {now, nil, true},
		"past it":                {now.Add(-time.Minute), nil, false},
		"past it, and no answer": {now.Add(-time.Minute), map[string]error{netA: context.DeadlineExceeded}, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newState(time.Second, slog.New(slog.DiscardHandler))
			s.starts["1"] = &startup{since: tt.since, networks: map[string]bool{}}
			got, there, incomplete := s.begin(c, tt.blind, now)
			if there != tt.there || incomplete != tt.there || len(got.Endpoints) > 0 != tt.there {
				t.Errorf("there %v, to be asked again %v: %+v", there, incomplete, got)
			}
		})
	}
}

// Containers that were being started when we connected are found.
func TestRunFindsStartingAtFirst(t *testing.T) {
	f := newFakeEngine(t)
	f.set(box(1, netA))
	f.set(created(2))
	f.set(created(3)) // attached to nothing
	f.attach(1, netA)
	f.attach(2, netA)
	r := start(t, f, nil)
	if diff := cmp.Diff([]string{"c1 a!", "c2+ a!"}, stages(r.first())); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	f.set(box(2, netA))
	f.container("start", id(2))
	r.until("it runs", at("c1 a!", "c2 a!"))
}

// A start of whose end no event speaks goes with a list that does not have it.
func TestRunStartingDoesNotLinger(t *testing.T) {
	tests := []struct {
		name string
		gone func(f *fakeEngine)
	}{
		{"not attached any more", func(f *fakeEngine) { f.detach(2, netA) }},
		{"removed", func(f *fakeEngine) { f.detach(2, netA); f.unset(id(2)) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFakeEngine(t)
			f.set(box(1, netA))
			r := start(t, f, func(w *Watcher) {
				w.grace, w.o.Relist = 50*time.Millisecond, 100*time.Millisecond
			})
			r.first()
			f.set(created(2))
			f.attach(2, netA)
			f.network("connect", netA, id(2))
			r.until("it starts", at("c1 a!", "c2+ a!"))
			tt.gone(f)
			r.until("its end", at("c1 a!"))
		})
	}
}
