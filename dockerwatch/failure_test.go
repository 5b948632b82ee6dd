package dockerwatch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/docker/docker/api/types/events"
	"github.com/google/go-cmp/cmp"

	"github.com/nftfw/nftfw/pkg/inventory"
)

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

// However many problems there were, the next one is logged, and one that lasts is
// not logged each time.
func TestManyProblemsAreLogged(t *testing.T) {
	var log lockedBuffer
	s := newState(time.Second, slog.New(slog.NewTextHandler(&log, nil)))
	const many = 3 * warnedMost
	for n := range many {
		s.warn([]problem{{kind: "container", text: fmt.Sprint(n)}})
	}
	last := []problem{{kind: "container", text: "last"}}
	s.warn(last)
	s.warn(last)
	if n := strings.Count(log.String(), "\n"); n != many+1 || strings.Count(log.String(), "what=last") != 1 {
		t.Errorf("logged %d of %d problems", n, many+1)
	}
	if len(s.warned) > warnedMost {
		t.Errorf("%d are kept", len(s.warned))
	}
}

func TestRunHangingEngine(t *testing.T) {
	for _, what := range []string{"version", "events", "networks", "newest", "containers", "image"} {
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
			if what == "newest" { // of which others tell
				r.until("everything", runs("c1 a"))
				return
			}
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

// While nothing happens most lists without a reason are of the networks alone.
func TestRunListsLessWhileQuiet(t *testing.T) {
	f := newFakeEngine(t)
	f.set(box(1, netA))
	r := start(t, f, func(w *Watcher) { w.o.Relist, w.confirm = 20*time.Millisecond, time.Millisecond })
	r.first()
	full := func() (n int) {
		for _, c := range f.got("containers") {
			if len(c.ids) == 0 {
				n++
			}
		}
		return n
	}
	nets := func() int { return len(f.got("networks")) }
	eventually(t, "confirmed", func() bool { return nets() >= 2 })
	lists, asked := full(), nets()
	eventually(t, "asked for the networks", func() bool { return nets() >= asked+3*(quietLists+1) })
	if n := full() - lists; n < 2 || n > 4 {
		t.Errorf("the containers were listed %d times beside %d lists of the networks", n, nets()-asked)
	}
	before, asked := full(), nets()
	f.network("connect", netA, id(1))
	eventually(t, "asked for the networks after an event", func() bool { return nets() >= asked+3 })
	if full() == before {
		t.Error("an event came, and the next list is of the networks alone")
	}
	r.quiet()
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

// An event that was lost may be the end of a container.
func TestInboxTellsOfOverflow(t *testing.T) {
	in := newInbox()
	for range inboxLimit {
		in.add(events.Message{})
	}
	if m, err := in.take(); len(m) != inboxLimit || err != nil {
		t.Fatalf("%d messages, error %v", len(m), err)
	}
	for range inboxLimit + 1 {
		in.add(events.Message{})
	}
	if m, err := in.take(); len(m) != inboxLimit || !errors.Is(err, errOverflow) {
		t.Errorf("with one too many: %d messages, error %v", len(m), err)
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
