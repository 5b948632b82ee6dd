package daemon

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nftfw/nftfw/nft"
	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/api"
	"github.com/nftfw/nftfw/pkg/sources"
	"github.com/nftfw/nftfw/pkg/sources/spec"
)

// direct is a command without a daemon.
func (w *world) direct() Direct {
	return Direct{Config: w.cfg, LockWait: time.Second, Warn: func(text string) { w.Log(text) }}
}

// etcdWrites is an etcd that counts what is written into it.
type etcdWrites struct {
	Sources
	n int
}

func (*etcdWrites) Follow(context.Context, spec.Source, sources.Last, func(sources.Update)) {}

func (e *etcdWrites) Put(context.Context, spec.Etcd, []addrset.Range, string, time.Duration) (int64, error) {
	e.n++
	return 1, nil
}

// A set alone cannot be changed where the table has to be made anew. Nothing is
// said to be in force then, and nothing saved.
func TestSetOfATableThatMustBeReplaced(t *testing.T) {
	const policy = `version: 1
sets: {trusted: {entries: [192.0.2.10], sources: [{etcd: {endpoints: ["https://127.0.0.1:1"], prefix: /s/}}]}}
`
	alterations := map[string][]string{
		"a counter of somebody's": {"add", "counter", "inet", "nftfw", "foo"},
		"put to sleep":            {"add", "table", "inet", "nftfw", "{ flags dormant; }"},
	}
	for name, args := range alterations {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			etcd := &etcdWrites{}
			w.cfg.Sources = etcd
			w.policy(policy)
			c := w.start()
			_, err := c.addToSet(w.Context(), "trusted", add("203.0.113.1"))
			w.must(err)
			w.nft(args...)
			before := w.listing()
			commands := map[string]func(Direct) (api.Change, error){
				"add":   func(x Direct) (api.Change, error) { return x.AddToSet(w.Context(), "trusted", add("192.0.2.77")) },
				"again": func(x Direct) (api.Change, error) { return x.AddToSet(w.Context(), "trusted", add("203.0.113.1")) },
				"del":   func(x Direct) (api.Change, error) { return x.DeleteFromSet(w.Context(), "trusted", add("203.0.113.1")) },
				"flush": func(x Direct) (api.Change, error) { return x.FlushSet(w.Context(), "trusted", api.Flush{}) },
				"fleet": func(x Direct) (api.Change, error) { return x.AddToFleet(w.Context(), "trusted", add("192.0.2.77")) },
			}
			for name, command := range commands {
				w.run(name, func(w *world) {
					_, err := command(w.direct())
					w.mustFail(err, "`nftfw apply` puts it right")
				})
			}
			if diff := cmp.Diff([]string{"203.0.113.1"}, w.saved("trusted")); diff != "" || etcd.n > 0 {
				t.Errorf("%d writes to etcd, set on disk (-want +got):\n%s", etcd.n, diff)
			}
			if diff := cmp.Diff(before, w.listing()); diff != "" {
				t.Errorf("kernel (-want +got):\n%s", diff)
			}
			_, err = w.direct().Apply(w.Context(), apply(policy, w.cfg.PolicyPath))
			w.must(err)
			_, err = w.direct().AddToSet(w.Context(), "trusted", add("192.0.2.77"))
			w.must(err)
			if !w.inKernel("trusted4", "192.0.2.77") {
				t.Error("added after an apply, and not in the kernel")
			}
		})
	}
}

// Somebody alters the table between the look at it and the commit.
func TestTableReplacedUnderASetChange(t *testing.T) {
	w := newWorld(t)
	w.policy(openPolicy)
	c := w.start()
	c.onlySet = "trusted"
	w.nft("add", "counter", "inet", "nftfw", "foo")
	w.kernel.refuse = []error{&nft.CommitError{Op: "x", Errno: unix.ENOENT}}
	_, err := c.addToSet(w.Context(), "trusted", add("192.0.2.77"))
	w.mustFail(err, "`nftfw apply` puts it right")
	if got := w.saved("trusted"); len(got) > 0 {
		t.Errorf("set on disk %q after a refusal", got)
	}
}

// fakeEngine is an engine with one container, whose port 80 is published as 8080. It
// gives the engine's address.
func fakeEngine(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "engine") // the path of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	answers := map[string]string{
		"/_ping":        "OK",
		"/v1.45/info":   "{}",
		"/v1.45/images": "{}",
		"/v1.45/networks": `[{"Id": "n", "Name": "bridge", "Driver": "bridge",
			"Options": {"com.docker.network.bridge.name": "docker0"}}]`,
		"/v1.45/containers/json": `[{"Id": "` + strings.Repeat("a", 64) + `", "Names": ["/shop"], "Image": "shop", "State": "running",
			"Ports": [{"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"}],
			"HostConfig": {"NetworkMode": "bridge"},
			"NetworkSettings": {"Networks": {"bridge": {"NetworkID": "n", "IPAddress": "172.17.0.2"}}}}]`,
	}
	server := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.45")
		w.Header().Set("Server", "Docker/26.1.5 (linux)")
		answer, ok := answers[r.URL.Path]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
		}
		_, _ = io.WriteString(w, answer)
	})}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	return "unix://" + path
}

// What a command takes away is cut without a daemon as well: towards containers, from
// them, and through the host. What was refused before is left alone.
func TestDirectCutsWhatItTakesAway(t *testing.T) {
	w := newWorld(t)
	w.cfg.NoDocker, w.cfg.DockerHost = false, fakeEngine(t)
	run(t, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
	run(t, "ip", "link", "add", "docker0", "type", "bridge")
	address(t, "eth0", "198.18.0.1/24")
	address(t, "eth1", "198.19.0.1/24")
	address(t, "docker0", "172.17.0.1/16")
	const policy = `version: 1
sets: {office: []}
containers: {default: office, egress: [office]}
forward: {default: drop, allow: [{from: office}]}
`
	x := w.direct()
	_, err := x.Apply(w.Context(), apply(policy, w.cfg.PolicyPath))
	w.must(err)
	_, err = x.AddToSet(w.Context(), "office", add("198.18.0.9"))
	w.must(err)
	w.must(w.kernel.TrackFlows(w.Context(), []nft.Flow{
		flow(protoTCP, "198.18.0.7:4000", "198.18.0.1:8080", "172.17.0.2:80"),
		flow(protoTCP, "198.18.0.9:4000", "198.18.0.1:8080", "172.17.0.2:80"),
		flow(protoTCP, "172.17.0.2:5000", "198.18.0.9:443", "198.18.0.9:443"),
		flow(protoTCP, "198.18.0.9:6000", "198.19.0.5:443", "198.19.0.5:443"),
	}))
	_, err = x.DeleteFromSet(w.Context(), "office", add("198.18.0.9"))
	w.must(err)
	if diff := cmp.Diff([]string{"198.18.0.7"}, w.tracked()); diff != "" {
		t.Errorf("tracked (-want +got):\n%s", diff)
	}
}

// A file of sets that cannot be read may be whole: what was saved before it is not put
// in its place.
func TestDirectOverUnreadableSets(t *testing.T) {
	w := newWorld(t)
	w.policy(openPolicy)
	c := w.start()
	for _, e := range []string{"203.0.113.1", "203.0.113.2"} {
		_, err := c.addToSet(w.Context(), "trusted", add(e))
		w.must(err)
	}
	w.must(c.store.SaveSets(c.runtime))
	w.must(c.store.SaveSets(c.runtime)) // one to fall back to
	w.block("sets.json")
	for range 2 {
		_, err := w.direct().AddToSet(w.Context(), "trusted", add("192.0.2.77"))
		w.mustFail(err, "sets.json cannot be used")
	}
	if w.inKernel("trusted4", "192.0.2.77") {
		t.Error("added over sets that could not be read")
	}
}
