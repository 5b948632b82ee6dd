package dockerwatch

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/events"
	"github.com/google/go-cmp/cmp"

	"github.com/nftfw/nftfw/pkg/inventory"
)

func TestRunSubscribesThenLists(t *testing.T) {
	f := newFakeEngine(t)
	f.set(box(1, netA))
	r := start(t, f, nil)
	if diff := cmp.Diff([]string{"c1 a"}, names(r.first())); diff != "" {
		t.Errorf("containers (-want +got):\n%s", diff)
	}
	if r.last.Engine != inventory.EngineListed || len(r.last.Networks) != 1 {
		t.Errorf("snapshot %+v", r.last)
	}
	var order []string
	for _, c := range f.got("") {
		order = append(order, c.what)
	}
	if slices.Index(order, "events") > slices.Index(order, "containers") {
		t.Errorf("listed before subscribing: %v", order)
	}
	st := r.w.Status()
	if !st.Connected || st.Version != "20.10.24" || st.Containers != 1 || st.Err != "" {
		t.Errorf("status %+v", st)
	}
}

func TestRunFollowsEvents(t *testing.T) {
	tests := []struct {
		name string
		do   func(f *fakeEngine)
		want []string
	}{
		{"start", func(f *fakeEngine) {
			f.set(box(2, netA))
			f.container("start", id(2))
		}, []string{"c1 a", "c2 a"}},
		{"die", func(f *fakeEngine) { // though the list still has it
			f.container("die", id(1))
		}, nil},
		{"destroy", func(f *fakeEngine) {
			f.container("destroy", id(1))
		}, nil},
		{"rename", func(f *fakeEngine) {
			c := box(1, netA)
			c["Names"] = []string{"/new"}
			f.set(c)
			f.renamed(id(1), "new")
		}, []string{"new a"}},
		{"rename, while the list has both names", func(f *fakeEngine) {
			c := box(1, netA)
			c["Names"] = []string{"/c1", "/new"}
			f.set(c)
			f.renamed(id(1), "new")
		}, []string{"new a"}},
		{"rename, while the list has the old name", func(f *fakeEngine) { f.renamed(id(1), "new") }, []string{"new a"}},
		{"network connect", func(f *fakeEngine) {
			f.set(box(1, netA, netB))
			f.network("connect", netB, id(1))
		}, []string{"c1 a b"}},
		{"network disconnect", func(f *fakeEngine) { // though the list still has it
			f.network("disconnect", netA, id(1))
		}, []string{"c1"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFakeEngine(t)
			f.set(box(1, netA))
			r := start(t, f, nil)
			r.first()
			tt.do(f)
			r.until(tt.name, runs(tt.want...))
		})
	}
}

func TestRunIgnoresWhatChangesNothing(t *testing.T) {
	f := newFakeEngine(t)
	f.set(box(1, netA))
	r := start(t, f, nil)
	r.first()
	for _, action := range []string{"exec_create: sh", "exec_start: sh", "exec_die", "health_status: healthy", "kill", "top", "attach", "pause"} {
		f.container(action, id(1))
	}
	f.container("update", id(1)) // asked, and nothing is new
	eventually(t, "a refresh", func() bool { return len(f.got("containers")) == 2 })
	f.set(box(2))
	f.container("start", id(2))
	if diff := cmp.Diff([]string{"c1 a", "c2"}, names(r.first())); diff != "" {
		t.Errorf("next snapshot (-want +got):\n%s", diff)
	}
}

func TestRunFollowsNetworks(t *testing.T) {
	f := newFakeEngine(t)
	r := start(t, f, nil)
	r.first()
	f.edit(func() { f.networks = append(f.networks, object{"Id": netB, "Name": "b", "Driver": "bridge"}) })
	f.network("create", netB, "")
	r.until("the network", func(s inventory.Snapshot) bool { return len(s.Networks) == 2 })
	f.edit(func() { f.networks = f.networks[1:] })
	f.network("destroy", netA, "")
	r.until("the network's end", func(s inventory.Snapshot) bool { return len(s.Networks) == 1 })
}

// An answer made up before a container died must not bring it back, however
// late it comes, and its death is not held up by the question under way.
func TestRunStaleAnswer(t *testing.T) {
	tests := []struct {
		name string
		end  func(f *fakeEngine)
		want []string
	}{
		{"die", func(f *fakeEngine) { f.container("die", id(1)) }, []string{"c2 a"}},
		{"network disconnect", func(f *fakeEngine) { f.network("disconnect", netA, id(1)) }, []string{"c1", "c2 a"}},
		{"disconnect before die", func(f *fakeEngine) {
			f.network("disconnect", netA, id(1))
			f.container("die", id(1))
		}, []string{"c2 a"}},
		{"die before disconnect", func(f *fakeEngine) {
			f.container("die", id(1))
			f.network("disconnect", netA, id(1))
		}, []string{"c2 a"}},
		{"start again meanwhile", func(f *fakeEngine) {
			f.set(box(1, netB)) // under another address
			f.container("die", id(1))
			f.container("start", id(1))
		}, []string{"c2 a"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFakeEngine(t)
			f.set(box(1, netA))
			f.set(box(2, netA))
			r := start(t, f, func(w *Watcher) { w.grace = 0 }) // only the order of things protects
			r.first()
			gate := make(chan gated)
			f.edit(func() { f.gate = gate })
			f.renamed(id(1), "c1")
			asked := <-gate // the answer has c1 on network a
			tt.end(f)
			r.until("the end, with the question still open", runs(tt.want...))
			if !strings.HasPrefix(tt.name, "start") {
				if strings.Contains(tt.name, "die") {
					f.unset(id(1))
				} else {
					f.set(box(1))
				}
			}
			f.edit(func() { f.gate = nil })
			close(asked.done)

			f.set(box(3))
			f.container("start", id(3))
			bad := false
			r.until("a later change", func(s inventory.Snapshot) bool {
				n := names(s)
				bad = bad || slices.Contains(n, "c1 a")
				return slices.Contains(n, "c3")
			})
			if bad {
				t.Error("what had ended came back")
			}
		})
	}
}

// Engine 20.10 sends die, and those up to 28 at least network disconnect, before
// what they list says so.
func TestRunEndBeforeTheListKnows(t *testing.T) {
	tests := []struct {
		name string
		end  func(f *fakeEngine)
		want []string
	}{
		{"die", func(f *fakeEngine) { f.container("die", id(1)) }, []string{"c2"}},
		{"network disconnect", func(f *fakeEngine) { f.network("disconnect", netA, id(1)) }, []string{"c1", "c2"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFakeEngine(t)
			f.set(box(1, netA))
			f.set(box(2))
			r := start(t, f, func(w *Watcher) { w.grace = 300 * time.Millisecond })
			r.first()
			tt.end(f) // and the list keeps it
			r.until("its end", runs(tt.want...))
			f.send(`{}`)
			eventually(t, "asked again", func() bool { return len(f.got("containers")) >= 4 })
			r.quiet()
			r.until("the list is believed in the end", runs("c1 a", "c2"))
		})
	}
}

// Engines up to 28 at least send network connect before what they list says so.
func TestRunConnectBeforeTheListKnows(t *testing.T) {
	f := newFakeEngine(t)
	f.set(box(1, netA))
	r := start(t, f, nil)
	r.first()
	f.network("connect", netB, id(1))
	eventually(t, "asked again", func() bool { return len(f.got("containers")) >= 4 })
	f.set(box(1, netA, netB))
	r.until("the second network", runs("c1 a b"))
}

// An address is withdrawn from the container that lost it, not from the one
// that has it now.
func TestRunAddressIsTakenOver(t *testing.T) {
	f := newFakeEngine(t)
	f.set(box(1, netA))
	r := start(t, f, nil)
	r.first()
	heir := box(2, netA)
	heir["NetworkSettings"] = box(1, netA)["NetworkSettings"]
	f.unset(id(1))
	f.set(heir)
	f.container("start", id(2))
	r.until("both", runs("c1 a", "c2 a"))
	f.container("die", id(1))
	f.network("disconnect", netA, id(1))
	r.until("the heir", runs("c2 a"))
	if got := r.last.Containers[0].Endpoints[0].Addr4; got != addr("172.17.0.1") {
		t.Errorf("heir's address %v", got)
	}
}

// The first of many events is asked about at once; those that come while the
// question is under way make one more question together.
func TestRunBurst(t *testing.T) {
	f := newFakeEngine(t)
	f.set(box(999))
	r := start(t, f, nil)
	r.first()
	gate := make(chan gated)
	f.edit(func() { f.gate = gate })
	f.set(box(1, netA))
	f.container("start", id(1))
	first := <-gate // nothing else has happened yet
	if diff := cmp.Diff([]string{id(1)}, first.ids); diff != "" {
		t.Errorf("the first question (-want +got):\n%s", diff)
	}
	for n := range 5000 {
		f.set(box(n%250+1, netA))
		f.container("start", id(n%250+1))
	}
	f.container("die", id(999))
	r.until("all events were read with the question still open", runs())
	f.unset(id(999))
	f.edit(func() { f.gate = nil })
	close(first.done)
	r.until("all", func(s inventory.Snapshot) bool { return len(s.Containers) == 250 })

	lists := f.got("containers")
	if len(lists) != 3 || len(lists[2].ids) != 0 {
		t.Errorf("%d lists, want the first one, one container and everything once", len(lists))
	}
}

func TestRunEmptyEngine(t *testing.T) {
	f := newFakeEngine(t)
	f.networks = []object{}
	r := start(t, f, nil)
	if s := r.first(); s.Engine != inventory.EngineListed {
		t.Errorf("snapshot %+v", s)
	}
}

// Events that were read before an answer are taken in before it.
func TestEventsGoBeforeTheAnswer(t *testing.T) {
	w, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	var got []inventory.Snapshot
	l := loop{
		session: newSession(w, &engine{}, func(s inventory.Snapshot) { got = append(got, s) }),
		in:      newInbox(),
		answers: make(chan answer, 1),
		later:   time.NewTimer(time.Hour),
		poll:    time.NewTimer(time.Hour),
		relist:  time.NewTimer(time.Hour),
		listed:  func() {},
	}
	l.sandbox.Store(true)
	l.answers <- answer{
		question:   question{full: true, networks: true},
		containers: []inventory.Container{{ID: "1", Name: "c1"}, {ID: "2", Name: "c2"}},
	}
	l.in.add(events.Message{Type: "container", Action: "die", Actor: events.Actor{ID: "1"}})
	<-l.in.wake // so that only the answer is there to be chosen
	if err := l.step(context.Background()); err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || !runs("c2")(got[0]) {
		t.Errorf("emitted %+v", got)
	}
}
