package dockerwatch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
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
			f.container("rename", id(1))
		}, []string{"new a"}},
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
			f.container("rename", id(1))
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

func TestRunFailedListChangesNothing(t *testing.T) {
	tests := []struct {
		name  string
		serve func(w http.ResponseWriter)
	}{
		{"error", func(w http.ResponseWriter) { http.Error(w, `{"message":"no"}`, http.StatusInternalServerError) }},
		{"garbage", func(w http.ResponseWriter) { fmt.Fprint(w, "<html>") }},
		{"nothing", func(http.ResponseWriter) {}},
		{"null", func(w http.ResponseWriter) { fmt.Fprint(w, "null") }},
		{"no list", func(w http.ResponseWriter) { fmt.Fprint(w, `{"message":"wait"}`) }},
		{"numbers", func(w http.ResponseWriter) { fmt.Fprint(w, `[1, 2]`) }},
		{"cut off", func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", "1000")
			fmt.Fprintf(w, `[{"Id": %q`, id(1))
		}},
		{"cut off after a container", func(w http.ResponseWriter) { fmt.Fprintf(w, `[{"Id": %q},`, id(1)) }},
	}
	for _, tt := range tests {
		for _, what := range []string{"containers", "networks"} {
			t.Run(tt.name+" for "+what, func(t *testing.T) {
				f := newFakeEngine(t)
				f.set(box(1, netA))
				f.set(box(2, netA))
				r := start(t, f, nil)
				r.first()
				f.edit(func() {
					f.answer = func(w http.ResponseWriter, _ *http.Request, c call) bool {
						if c.what != what {
							return false
						}
						tt.serve(w)
						return true
					}
				})
				before := len(f.got(what))
				f.send(`{"Type":"container","Action":"odd","Actor":{}}`)
				eventually(t, "three attempts", func() bool { return len(f.got(what)) >= before+3 })
				r.quiet()
				if st := r.w.Status(); st.Connected || st.Err == "" || strings.Contains(st.Err, "\n") || st.Containers != 2 {
					t.Errorf("status %+v", st)
				}
				f.unset(id(2))
				f.edit(func() { f.answer = nil })
				if diff := cmp.Diff([]string{"c1 a"}, names(r.first())); diff != "" {
					t.Errorf("after recovery (-want +got):\n%s", diff)
				}
			})
		}
	}
}

// One field of the wrong type spoils its own container's entry only.
func TestRunWrongType(t *testing.T) {
	f := newFakeEngine(t)
	bad := box(1, netA)
	bad["Ports"] = []object{{"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 70000, "Type": "tcp"}}
	f.set(bad)
	f.set(box(2, netA))
	var log lockedBuffer
	r := start(t, f, func(w *Watcher) { w.o.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	r.until("both", runs("c1 a", "c2 a"))
	for _, c := range r.last.Containers {
		if published := c.Ports[0].Published(); published != (c.Name == "c2") {
			t.Errorf("%s is published: %v", c.Name, published)
		}
	}
	if !strings.Contains(log.String(), "PublicPort") {
		t.Errorf("log does not name the field:\n%s", log.String())
	}
}

func TestRunLogsTheContainer(t *testing.T) {
	f := newFakeEngine(t)
	bad := box(1, netA)
	bad["Ports"] = []object{{"PrivatePort": 80, "Type": "quic"}}
	f.set(bad)
	var log lockedBuffer
	r := start(t, f, func(w *Watcher) { w.o.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	r.first()
	f.container("update", id(1))
	f.set(box(2))
	f.container("start", id(2))
	r.until("another list", runs("c1 a", "c2"))
	if n := strings.Count(log.String(), "container=c1"); n != 1 {
		t.Errorf("logged %d times:\n%s", n, log.String())
	}
}

func TestRunHangingEngine(t *testing.T) {
	for _, what := range []string{"version", "events", "networks", "containers", "image"} {
		t.Run(what, func(t *testing.T) {
			f := newFakeEngine(t)
			f.set(box(1, netA))
			var released sync.Once
			release := make(chan struct{})
			t.Cleanup(func() { released.Do(func() { close(release) }) })
			f.answer = func(_ http.ResponseWriter, r *http.Request, c call) bool {
				if c.what != what {
					return false
				}
				select {
				case <-release:
				case <-r.Context().Done():
				}
				return false
			}
			r := start(t, f, func(w *Watcher) {
				w.o.Timeout = 50 * time.Millisecond
				w.imageRetry = 10 * time.Millisecond
			})
			eventually(t, "a second attempt", func() bool { return len(f.got(what)) >= 2 })
			if st := r.w.Status(); what != "image" && (st.Connected || !strings.Contains(st.Err, "does not answer")) {
				t.Errorf("status %+v", st)
			}
			released.Do(func() { close(release) })
			r.until("everything", func(s inventory.Snapshot) bool {
				return runs("c1 a")(s) && !s.Containers[0].ImageUnknown
			})
		})
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

func TestRunReconnects(t *testing.T) {
	f := newFakeEngine(t)
	f.set(box(1, netA))
	f.set(box(2, netA))
	r := start(t, f, nil)
	r.first()

	f.stop()
	eventually(t, "disconnected", func() bool { return !r.w.Status().Connected })
	r.quiet()
	eventually(t, "a status that says what to do", func() bool { return strings.Contains(r.w.Status().Err, "start docker") })
	if st := r.w.Status(); st.Containers != 2 || st.Version != "20.10.24" {
		t.Errorf("status %+v", st)
	}

	f.unset(id(1)) // and no event will ever tell
	f.edit(func() { f.calls = nil })
	f.listen()
	if diff := cmp.Diff([]string{"c2 a"}, names(r.first())); diff != "" {
		t.Errorf("after reconnecting (-want +got):\n%s", diff)
	}
	if c := f.got(""); c[0].what != "version" || c[1].what != "events" {
		t.Errorf("requests %v", c)
	}
	f.container("die", id(2))
	r.until("an event of the new stream", runs())
}

func TestRunStreamEnds(t *testing.T) {
	for name, end := range map[string]func(f *fakeEngine){
		"closed":  func(f *fakeEngine) { f.endStreams() },
		"garbage": func(f *fakeEngine) { f.send("<html>") },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeEngine(t)
			f.set(box(1, netA))
			r := start(t, f, nil)
			r.first()
			f.unset(id(1))
			end(f)
			r.until("the list after", runs())
		})
	}
}

func TestRunOddEventListsAgain(t *testing.T) {
	for _, line := range []string{
		`{}`,
		`{"Type":"container","Action":"die"}`,
		`{"Type":"network","Action":"disconnect","Actor":{"ID":"x"}}`,
	} {
		t.Run(line, func(t *testing.T) {
			f := newFakeEngine(t)
			f.set(box(1, netA))
			r := start(t, f, nil)
			r.first()
			f.unset(id(1))
			f.send(line)
			r.until("the list", runs())
		})
	}
}

// A periodic list that finds what no event spoke of means that events are lost.
func TestRunPeriodicList(t *testing.T) {
	f := newFakeEngine(t)
	f.set(box(1, netA))
	r := start(t, f, func(w *Watcher) { w.o.Relist, w.confirm = 20*time.Millisecond, time.Millisecond })
	r.first()
	eventually(t, "listed some times", func() bool { return len(f.got("containers")) > 3 })
	r.quiet()
	if n := len(f.got("events")); n != 1 {
		t.Errorf("subscribed %d times", n)
	}
	f.unset(id(1))
	r.until("its end", runs())
	eventually(t, "subscribed again", func() bool { return len(f.got("events")) == 2 })
}

func TestRunConfirmsTheFirstList(t *testing.T) {
	f := newFakeEngine(t)
	f.set(box(1, netA))
	r := start(t, f, func(w *Watcher) { w.confirm = 50 * time.Millisecond })
	r.until("the first list", runs("c1 a"))
	f.unset(id(1))
	r.until("its end", runs())
	if n := len(f.got("events")); n != 1 {
		t.Errorf("subscribed %d times", n)
	}
}

func TestRunImages(t *testing.T) {
	f := newFakeEngine(t)
	for n := range 300 {
		f.set(box(n+1, netA))
	}
	for n, image := range []string{"sha256:gone", "sha256:broken", ""} {
		c := box(1000+n, netA)
		c["ImageID"] = image
		f.set(c)
	}
	f.images["sha256:gone"] = http.StatusNotFound
	f.images["sha256:broken"] = http.StatusInternalServerError
	r := start(t, f, func(w *Watcher) { w.imageRetry = time.Millisecond })
	r.first()
	for _, c := range r.last.Containers {
		unknown := c.ImageID != "sha256:img"
		if c.ImageUnknown != unknown {
			t.Fatalf("container %s of image %q: unknown %v", c.Name, c.ImageID, c.ImageUnknown)
		}
		if !unknown && c.ImageLabels["baked"] != "in" {
			t.Fatalf("container %s: image labels %v", c.Name, c.ImageLabels)
		}
	}

	f.edit(func() { f.images["sha256:broken"] = object{"x": "y"} })
	r.until("the image that was broken", func(s inventory.Snapshot) bool {
		return !s.Containers[slices.IndexFunc(s.Containers, func(c inventory.Container) bool { return c.ImageID == "sha256:broken" })].ImageUnknown
	})
	asked := map[string]int{}
	for _, c := range f.got("image") {
		asked[c.name]++
	}
	if asked["sha256:img"] != 1 || asked["sha256:gone"] != 1 {
		t.Errorf("images asked for: %v", asked)
	}

	f.edit(func() { f.images["sha256:gone"] = object{} }) // pulled again
	f.send(`{}`)
	r.until("the image that was gone", func(s inventory.Snapshot) bool {
		return !s.Containers[slices.IndexFunc(s.Containers, func(c inventory.Container) bool { return c.ImageID == "sha256:gone" })].ImageUnknown
	})
}

func TestImageCacheIsBounded(t *testing.T) {
	c := newImageCache()
	for n := range cachedImages + 10 {
		c.keep(fmt.Sprint(n), nil)
	}
	if len(c.labels) != cachedImages {
		t.Errorf("%d images are kept", len(c.labels))
	}
	if _, ok := c.labels[fmt.Sprint(cachedImages+9)]; !ok {
		t.Error("the newest was not kept")
	}
}

func TestRunLearnsSandboxDirs(t *testing.T) {
	f := newFakeEngine(t)
	shares := box(1)
	shares["HostConfig"] = object{"NetworkMode": "container:x"}
	host := box(2, netB)
	host["HostConfig"] = object{"NetworkMode": "host"}
	f.set(shares)
	f.set(host)
	dirs := make(chan []string, 10)
	r := start(t, f, func(w *Watcher) { w.o.SandboxDirs = func(d []string) { dirs <- d } })
	r.first()
	for n := 3; n < 6; n++ {
		f.set(box(n, netA))
		f.container("start", id(n))
		r.until("a container", func(s inventory.Snapshot) bool { return len(s.Containers) == n })
	}
	want := []string{DefaultSandboxDir, "/run/engine/netns"}
	select {
	case got := <-dirs:
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("folders (-want +got):\n%s", diff)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("no folder was learned")
	}
	if diff := cmp.Diff(want, r.w.Status().SandboxDirs); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	if c := f.got("container"); len(c) != 1 || c[0].name != id(3) {
		t.Errorf("inspected %v", c)
	}
}

func TestErrors(t *testing.T) {
	_, err := List(context.Background(), Options{Host: "unix:///nonexistent/docker.sock"})
	var e *Error
	if !errors.As(err, &e) || !errors.Is(err, fs.ErrNotExist) || !strings.Contains(e.Remedy, "--no-docker") {
		t.Errorf("no socket: %v", err)
	}
	refused := &engine{host: "unix:///run/docker.sock", dialErr: new(atomic.Pointer[error])}
	err = refused.fail("list containers", fmt.Errorf("dial: %w", fs.ErrPermission))
	if want := "list containers of unix:///run/docker.sock: dial: permission denied (run as root, or as a member of the socket's group)"; err.Error() != want {
		t.Errorf("got  %v\nwant %v", err, want)
	}
	if _, err := New(Options{Host: "nonsense"}); err == nil {
		t.Error("New took an address that is none")
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
