package dockerwatch

import (
	"encoding/json"
	"net/http"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nftfw/nftfw/pkg/inventory"
)

// asPodman has the fake engine answer as Podman 4.3.1 of Debian 12 was seen to.
// testdata/podman.json has its answers by what was asked.
func asPodman(t *testing.T, f *fakeEngine) {
	t.Helper()
	answers := map[string]any{}
	text, err := os.ReadFile("testdata/podman.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &answers); err != nil {
		t.Fatal(err)
	}
	inspected, _ := answers["inspect"].(object)
	f.answer = func(w http.ResponseWriter, _ *http.Request, c call) bool {
		answer, ok := answers[c.what]
		if c.what == "container" {
			answer, ok = inspected[c.name]
		}
		if ok {
			reply(w, answer)
		}
		return ok
	}
}

func TestPodmanIsReadAsDocker(t *testing.T) {
	f := newFakeEngine(t)
	asPodman(t, f)
	r := start(t, f, nil)
	got := r.first()
	if r.w.Status().Version != "4.3.1" {
		t.Errorf("version %q", r.w.Status().Version)
	}
	const podmanNet, oneNet = "2f259bab93aaaaa2542ba43ef33eb990d0999ee1b9924b557b7be53c0b7a1bb9", "7066530c905bb870b579202ae5274c2ecbbc8ebfbae2eacc5f8d5af94794087a"
	type box struct {
		Name, Image, Mode string
		Endpoints         []inventory.Endpoint
		Ports             []string
	}
	var boxes []box
	for _, c := range got.Containers {
		b := box{c.Name, c.Image, c.NetworkMode, c.Endpoints, nil}
		for _, p := range c.Ports {
			b.Ports = append(b.Ports, p.HostIP.String()+" "+string(rune('0'+p.ContainerPort%10)))
		}
		boxes = append(boxes, b)
	}
	slices.SortFunc(boxes, func(a, b box) int { return slices.Compare([]byte(a.Name), []byte(b.Name)) })
	want := []box{
		{"guest", "echo:1", "container:" + id(1), nil, nil},
		{"host", "example.org/team/echo:2", "host", nil, nil},
		{
			"range", "echo:1", "bridge",
			[]inventory.Endpoint{{NetworkID: oneNet, Addr4: addr("172.30.1.3"), Addr6: addr("fd00:d0c:91::3")}},
			[]string{"0.0.0.0 0", ":: 0", "0.0.0.0 1", ":: 1"},
		},
		{"web", "echo:1", "bridge", []inventory.Endpoint{{NetworkID: podmanNet, Addr4: addr("10.88.0.3")}}, []string{"0.0.0.0 0", ":: 0", "127.0.0.1 1"}},
	}
	if diff := cmp.Diff(want, boxes, cmp.Comparer(func(a, b inventory.Endpoint) bool { return a == b })); diff != "" {
		t.Errorf("containers (-want +got):\n%s", diff)
	}
	bridges := map[string]string{}
	for _, n := range got.Networks {
		bridges[n.Name] = n.Bridge + " " + string(n.Gateway6)
	}
	if diff := cmp.Diff(map[string]string{"podman": "podman0 ", "one": "podman1 "}, bridges); diff != "" {
		t.Errorf("bridges and their IPv6 gateway modes (-want +got):\n%s", diff)
	}
}

// Podman's events of networks name the container where Docker's name the
// network.
func TestPodmanEvents(t *testing.T) {
	f := newFakeEngine(t)
	asPodman(t, f)
	r := start(t, f, nil)
	r.first()
	before := len(f.got("networks"))
	f.send(`{"status":"connect","id":"` + id(1) + `","Type":"network","Action":"connect","Actor":{"ID":"` + id(1) + `","Attributes":{"image":"","name":"web","podId":""}}}`)
	eventually(t, "the container and the networks are asked for", func() bool {
		asked := f.got("containers")
		return slices.Equal(asked[len(asked)-1].ids, []string{id(1)}) && len(f.got("networks")) > before
	})
	before = len(f.got("networks"))
	f.container("start", id(1))
	eventually(t, "a start has the networks asked for", func() bool { return len(f.got("networks")) > before })
}

// What a container has is not opened before it could be inspected.
func TestPodmanUninspected(t *testing.T) {
	f := newFakeEngine(t)
	asPodman(t, f)
	whole := f.answer
	var failing atomic.Bool
	failing.Store(true)
	f.answer = func(w http.ResponseWriter, r *http.Request, c call) bool {
		if c.what == "container" && c.name == id(1) && failing.Load() {
			http.Error(w, `{"message":"busy"}`, http.StatusInternalServerError)
			return true
		}
		return whole(w, r, c)
	}
	r := start(t, f, func(w *Watcher) { w.imageRetry = 10 * time.Millisecond })
	if got := names(r.first()); slices.Contains(got, "web 2") {
		t.Errorf("containers %v, want none that was not inspected", got)
	}
	failing.Store(false)
	r.until("the container, inspected later", func(s inventory.Snapshot) bool { return slices.Contains(names(s), "web 2") })
}

func TestFamiliar(t *testing.T) {
	for image, want := range map[string]string{
		"docker.io/library/nginx:1.27": "nginx:1.27",
		"docker.io/team/app:2":         "team/app:2",
		"localhost/app:latest":         "localhost/app:latest",
		"nginx":                        "nginx",
		"sha256:0123":                  "sha256:0123",
		"NOT AN IMAGE":                 "NOT AN IMAGE",
		"":                             "",
	} {
		if got := familiar(image); got != want {
			t.Errorf("familiar(%q) = %q, want %q", image, got, want)
		}
	}
}

func TestSandboxDirs(t *testing.T) {
	for path, want := range map[string]string{
		"/run/docker/netns/0123":                "/run/docker/netns",
		"/run/netns/netns-6d7736ef-f6eb":        "/run/netns/netns-*",
		"/run/netns/cni-6d7736ef-f6eb":          "/run/netns/cni-*",
		"/var/run/engine/netns/1-netns-6d7736e": "/var/run/engine/netns",
	} {
		if got := sandboxDirs(path); !slices.Equal(got, []string{want}) {
			t.Errorf("sandboxDirs(%q) = %q, want %q", path, got, want)
		}
	}
}

// Ask has the networks listed although nothing happened, and the answer says
// that it came after.
func TestAsk(t *testing.T) {
	f := newFakeEngine(t)
	r := start(t, f, nil)
	if n := r.first().Asked; n != 0 {
		t.Fatalf("asked %d, want 0", n)
	}
	f.edit(func() { f.networks = append(f.networks, object{"Id": netB, "Name": "b", "Driver": "bridge"}) })
	n := r.w.Ask()
	s := r.until("an answer", func(s inventory.Snapshot) bool { return s.Asked >= n })
	if len(s.Networks) != 2 {
		t.Errorf("networks %v, want both", s.Networks)
	}
	n = r.w.Ask()
	r.until("an answer, though nothing changed", func(s inventory.Snapshot) bool { return s.Asked >= n })
}
