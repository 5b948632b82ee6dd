package dockerwatch

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nftfw/nftfw/pkg/inventory"
)

// object is a piece of JSON as the engine sends it.
type object = map[string]any

// call is one request that the fake engine got.
type call struct {
	what string   // events, containers, networks, network, image, container, version
	ids  []string // of a filtered list
	name string   // of the image, container or network inspected
}

// fakeEngine answers like an engine over a real unix socket.
type fakeEngine struct {
	t    *testing.T
	path string
	srv  *httptest.Server

	mu         sync.Mutex
	containers map[string]object
	networks   []object
	attached   map[string]object // by network: its Containers
	images     map[string]any    // labels, or an int: the status to answer with
	configs    map[string]object // by container: what its inspection has beside its sandbox
	swarm      object            // the Swarm of info
	nodes      []object
	services   []object
	peers      []object          // of every network
	pingSwarm  string            // what a ping says of the swarm, "" for nothing
	ping       map[string]string // further headers of the answer to a ping
	calls      []call
	streams    map[chan string]bool
	// answer, where it returns true, has answered instead.
	answer func(w http.ResponseWriter, r *http.Request, c call) bool
	// gate, where not nil, gets each list of containers after the answer was
	// made up and before it is sent; sending waits until done is closed.
	gate chan gated
}

type gated struct {
	call
	done chan struct{}
}

func newFakeEngine(t *testing.T) *fakeEngine {
	// Not t.TempDir: its paths are too long for a socket.
	dir, err := os.MkdirTemp("", "dw")
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeEngine{
		t:          t,
		path:       filepath.Join(dir, "s"),
		containers: map[string]object{},
		images:     map[string]any{"sha256:img": object{"baked": "in"}},
		networks: []object{
			{"Id": netA, "Name": "a", "Driver": "bridge"},
		},
		attached: map[string]object{netA: {}, netB: {}},
		streams:  map[chan string]bool{},
		configs:  map[string]object{},
	}
	f.listen()
	t.Cleanup(func() {
		f.stop()
		os.RemoveAll(dir)
	})
	return f
}

func (f *fakeEngine) listen() {
	l, err := net.Listen("unix", f.path)
	if err != nil {
		f.t.Fatal(err)
	}
	f.srv = httptest.NewUnstartedServer(f)
	f.srv.Listener.Close()
	f.srv.Listener = l
	f.srv.Start()
}

// stop ends every connection and removes the socket.
func (f *fakeEngine) stop() {
	f.endStreams()
	f.srv.CloseClientConnections()
	f.srv.Close()
}

func (f *fakeEngine) endStreams() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for s := range f.streams {
		close(s)
	}
	clear(f.streams)
}

var route = regexp.MustCompile(`^(?:/v1\.\d+|/v4\.0\.0/libpod)?/(_ping|version|events|networks|containers|images|info|nodes|services)(?:/(.*))?$`)

func (f *fakeEngine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Api-Version", "1.41")
	w.Header().Set("Content-Type", "application/json")
	m := route.FindStringSubmatch(r.URL.Path)
	if m == nil {
		http.Error(w, `{"message":"page not found"}`, http.StatusNotFound)
		return
	}
	if m[1] == "_ping" {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.pingSwarm != "" {
			w.Header().Set("Swarm", f.pingSwarm)
		}
		for key, value := range f.ping {
			w.Header().Set(key, value)
		}
		return
	}
	c := call{what: m[1]}
	libpod := m[2] == "json" // how Podman's own API calls a list
	if m[1] == "networks" && m[2] != "" && !libpod {
		c.what, c.name = "network", m[2]
	}
	if name, ok := strings.CutSuffix(m[2], "/json"); ok {
		c.what, c.name = strings.TrimSuffix(m[1], "s"), name
	}
	var filter struct{ ID map[string]bool }
	if s := r.URL.Query().Get("filters"); s != "" {
		if err := json.Unmarshal([]byte(s), &filter); err != nil {
			f.t.Errorf("filters %q: %v", s, err)
		}
	}
	c.ids = slices.Sorted(maps.Keys(filter.ID))
	if r.URL.Query().Get("limit") == "1" {
		c.what = "newest"
	}
	f.serve(w, r, c)
}

func (f *fakeEngine) serve(w http.ResponseWriter, r *http.Request, c call) {
	f.mu.Lock()
	f.calls = append(f.calls, c)
	answer, gate := f.answer, f.gate
	f.mu.Unlock()
	if answer != nil && answer(w, r, c) {
		return
	}
	switch c.what {
	case "version":
		reply(w, object{"Version": "20.10.24", "ApiVersion": "1.41"})
	case "events":
		f.serveEvents(w, r)
	case "networks":
		f.mu.Lock()
		list := slices.Clone(f.networks)
		f.mu.Unlock()
		reply(w, list)
	case "network":
		f.mu.Lock()
		attached, peers := maps.Clone(f.attached[c.name]), slices.Clone(f.peers)
		f.mu.Unlock()
		reply(w, object{"Id": c.name, "Containers": attached, "Peers": peers})
	case "info", "nodes", "services":
		f.mu.Lock()
		answers := map[string]any{"info": object{"Swarm": f.swarm}, "nodes": f.nodes, "services": f.services}
		f.mu.Unlock()
		reply(w, answers[c.what])
	case "newest":
		list := f.list(nil, false)
		reply(w, list[max(len(list)-1, 0):])
	case "containers":
		list := f.list(c.ids, r.URL.Query().Get("all") == "1")
		if gate != nil {
			g := gated{call: c, done: make(chan struct{})}
			gate <- g
			<-g.done
		}
		reply(w, list)
	case "container":
		f.mu.Lock()
		answer := maps.Clone(f.configs[c.name])
		f.mu.Unlock()
		if answer == nil {
			answer = object{}
		}
		answer["Id"], answer["NetworkSettings"] = c.name, object{"SandboxKey": "/run/engine/netns/" + c.name[:12]}
		reply(w, answer)
	case "image":
		f.mu.Lock()
		img := f.images[c.name]
		f.mu.Unlock()
		if status, failed := img.(int); failed {
			http.Error(w, `{"message":"image trouble"}`, status)
			return
		}
		reply(w, object{"Id": c.name, "Config": object{"Labels": img}, "RootFS": object{"Type": "layers"}})
	}
}

func reply(w http.ResponseWriter, v any) {
	_ = json.NewEncoder(w).Encode(v) // the client may be gone
}

func (f *fakeEngine) list(ids []string, all bool) []object {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := []object{}
	for _, id := range slices.Sorted(maps.Keys(f.containers)) {
		runs := f.containers[id]["State"] == "running" || f.containers[id]["State"] == "restarting"
		if (all || runs) && (len(ids) == 0 || slices.Contains(ids, id)) {
			list = append(list, f.containers[id])
		}
	}
	return list
}

func (f *fakeEngine) serveEvents(w http.ResponseWriter, r *http.Request) {
	s := make(chan string, 10000)
	f.mu.Lock()
	f.streams[s] = true
	f.mu.Unlock()
	w.WriteHeader(http.StatusOK)
	w.(http.Flusher).Flush()
	for {
		select {
		case <-r.Context().Done():
			return
		case line, ok := <-s:
			if !ok {
				return
			}
			fmt.Fprintln(w, line)
			w.(http.Flusher).Flush()
		}
	}
}

// set adds or replaces a container.
func (f *fakeEngine) set(c object) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.containers[c["Id"].(string)] = c
}

func (f *fakeEngine) unset(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.containers, id)
}

func (f *fakeEngine) edit(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// refuse has questions of a kind fail.
func (f *fakeEngine) refuse(what string) {
	f.edit(func() {
		f.answer = func(w http.ResponseWriter, _ *http.Request, c call) bool {
			if c.what == what {
				http.Error(w, `{"message":"no"}`, http.StatusInternalServerError)
			}
			return c.what == what
		}
	})
}

// send writes a line into every event stream.
func (f *fakeEngine) send(line string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for s := range f.streams {
		s <- line
	}
}

func (f *fakeEngine) container(action, id string) {
	f.send(fmt.Sprintf(`{"Type":"container","Action":%q,"Actor":{"ID":%q,"Attributes":{"name":"x"}},"scope":"local"}`, action, id))
}

// renamed tells that a container was given a name.
func (f *fakeEngine) renamed(id, name string) {
	f.send(fmt.Sprintf(`{"Type":"container","Action":"rename","Actor":{"ID":%q,"Attributes":{"name":%q,"oldName":"/x"}},"scope":"local"}`, id, name))
}

func (f *fakeEngine) network(action, net, id string) {
	f.send(fmt.Sprintf(`{"Type":"network","Action":%q,"Actor":{"ID":%q,"Attributes":{"container":%q,"type":"bridge"}}}`, action, net, id))
}

// got returns the requests so far of one kind, or all.
func (f *fakeEngine) got(what string) []call {
	f.mu.Lock()
	defer f.mu.Unlock()
	var got []call
	for _, c := range f.calls {
		if what == "" || c.what == what {
			got = append(got, c)
		}
	}
	return got
}

// run is a Watcher at work on a fakeEngine.
type run struct {
	t *testing.T
	f *fakeEngine
	w *Watcher
	// snapshots are those emitted; last is the latest that was taken.
	snapshots chan inventory.Snapshot
	last      inventory.Snapshot
}

// start runs a Watcher that does nothing without a reason, unless change says
// otherwise.
func start(t *testing.T, f *fakeEngine, change func(*Watcher)) *run {
	t.Helper()
	w, err := New(Options{Host: "unix://" + f.path, Relist: time.Hour, Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	w.backoffMin, w.backoffMax = time.Millisecond, 10*time.Millisecond
	w.confirm = time.Hour
	if change != nil {
		change(w)
	}
	r := &run{t: t, f: f, w: w, snapshots: make(chan inventory.Snapshot, 10000)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.Run(ctx, func(s inventory.Snapshot) { r.snapshots <- s })
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case <-done:
		case <-time.After(5 * time.Second):
			t.Error("Run did not return")
		}
	})
	return r
}

// until takes snapshots up to the first that satisfies ok.
func (r *run) until(what string, ok func(inventory.Snapshot) bool) inventory.Snapshot {
	r.t.Helper()
	deadline := time.After(5 * time.Second)
	for {
		select {
		case r.last = <-r.snapshots:
			if ok(r.last) {
				return r.last
			}
		case <-deadline:
			r.t.Fatalf("never emitted: %s; last: %+v", what, r.last)
		}
	}
}

// first returns the first snapshot that has the engine's word about its swarm,
// which may be the second of all.
func (r *run) first() inventory.Snapshot {
	r.t.Helper()
	return r.until("a snapshot", func(s inventory.Snapshot) bool { return !s.Swarm.Unknown })
}

// quiet fails if anything was emitted. It is for after a synchronisation.
func (r *run) quiet() {
	r.t.Helper()
	select {
	case s := <-r.snapshots:
		r.t.Errorf("emitted %v", names(s))
	default:
	}
}

// eventually waits for ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		<-time.After(time.Millisecond)
	}
}

const (
	netA = "aaaaaaaaaaaa0000000000000000000000000000000000000000000000000000"
	netB = "bbbbbbbbbbbb0000000000000000000000000000000000000000000000000000"
)

func id(n int) string { return fmt.Sprintf("%064x", n) }

// box is container number n, attached to nets with the address 172.17.0.n.
func box(n int, nets ...string) object {
	endpoints := object{}
	for i, net := range nets {
		endpoints[net[:1]] = object{"NetworkID": net, "IPAddress": fmt.Sprintf("172.%d.0.%d", 17+i, n)}
	}
	return object{
		"Id": id(n), "Names": []string{fmt.Sprintf("/c%d", n)}, "Image": "web:1", "ImageID": "sha256:img",
		"State": "running", "Labels": object{"baked": "in"},
		"HostConfig":      object{"NetworkMode": "default"},
		"NetworkSettings": object{"Networks": endpoints},
		"Ports":           []object{{"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8000 + n, "Type": "tcp"}},
	}
}

// names are the containers of s with the networks that each is attached to.
func names(s inventory.Snapshot) []string {
	var out []string
	for _, c := range s.Containers {
		name := c.Name
		for _, e := range c.Endpoints {
			name += " " + e.NetworkID[:1]
		}
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

func runs(want ...string) func(inventory.Snapshot) bool {
	return func(s inventory.Snapshot) bool { return slices.Equal(names(s), want) }
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }
