package dockerwatch

import (
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nftfw/nftfw/pkg/inventory"
)

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

// Engine 29 answers so about an image whose content is gone: that it has no labels
// is not said.
func TestRunImageWithoutContent(t *testing.T) {
	f := newFakeEngine(t)
	f.set(box(1, netA))
	f.answer = func(w http.ResponseWriter, _ *http.Request, c call) bool {
		if c.what == "image" {
			reply(w, object{"Id": c.name, "Config": object{}, "RootFS": object{}})
		}
		return c.what == "image"
	}
	r := start(t, f, nil)
	if s := r.first(); !s.Containers[0].ImageUnknown {
		t.Errorf("its labels are said to be known: %+v", s.Containers[0])
	}
}

func TestImageCacheIsBounded(t *testing.T) {
	c := newImageCache()
	for n := range cachedImages + 10 {
		keep(c.labels, cachedImages, fmt.Sprint(n), nil)
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

// The engine lists an image's ID once its name stands for another image, or for
// none.
func TestRunImageNames(t *testing.T) {
	byID := func(c object) object { c["Image"] = c["ImageID"]; return c }
	image := func(n int, want string) func(inventory.Snapshot) bool {
		return func(s inventory.Snapshot) bool {
			i := slices.IndexFunc(s.Containers, func(c inventory.Container) bool { return c.ID == id(n) && c.Name != "" })
			return i >= 0 && s.Containers[i].Image == want
		}
	}
	inspected := func(f *fakeEngine, n int) (times int) {
		for _, c := range f.got("container") {
			if c.name == id(n) {
				times++
			}
		}
		return times
	}
	f := newFakeEngine(t)
	f.set(box(1, netA))
	f.set(byID(box(2, netA)))
	f.set(byID(box(3, netA)))
	f.set(box(9, netA)) // which tells the folder of network namespaces
	f.configs[id(2)] = object{"Config": object{"Image": "web:2"}}
	f.configs[id(3)] = object{} // an answer that has no name
	r := start(t, f, func(w *Watcher) { w.imageRetry = time.Millisecond })
	s := r.first()
	for n, want := range []string{"web:1", "web:2", ""} {
		if !image(n+1, want)(s) {
			t.Errorf("c%d is not of %q: %+v", n+1, want, s.Containers[n])
		}
	}

	t.Log("a name that could not be asked")
	f.edit(func() { f.configs[id(3)] = object{"Config": object{"Image": "web:3"}} })
	r.until("the name", image(3, "web:3"))

	t.Log("names that are known are not asked for again")
	renamed := byID(box(1, netA))
	renamed["Names"] = []string{"/renamed"}
	f.set(renamed)
	f.send(`{}`)
	r.until("another list", func(s inventory.Snapshot) bool { return s.Containers[0].Name == "renamed" })
	for n, want := range []string{"web:1", "web:2", "web:3"} {
		if !image(n+1, want)(r.last) {
			t.Errorf("c%d is not of %q: %+v", n+1, want, r.last.Containers[n])
		}
	}
	if one, two := inspected(f, 1), inspected(f, 2); one != 0 || two != 1 {
		t.Errorf("c1 was inspected %d times, c2 %d times", one, two)
	}

	t.Log("one that is being started is not asked, for it would not answer")
	f.set(byID(created(4)))
	f.attach(4, netA)
	f.network("connect", netA, id(4))
	r.until("it starts", image(4, ""))
	if n := inspected(f, 4); n != 0 {
		t.Errorf("inspected %d times", n)
	}
	f.edit(func() { f.configs[id(4)] = object{"Config": object{"Image": "web:4"}} })
	f.set(byID(box(4, netA)))
	f.container("start", id(4))
	r.until("it runs", image(4, "web:4"))
}

// The engine does not answer about a container that it is stopping.
func TestRunImageNameHoldsNothingUp(t *testing.T) {
	f := newFakeEngine(t)
	stopping := box(1, netA)
	stopping["Image"] = stopping["ImageID"]
	f.set(stopping)
	f.set(box(2, netA)) // which tells the folder of network namespaces
	f.answer = func(_ http.ResponseWriter, r *http.Request, c call) bool {
		if c.name == id(1) {
			<-r.Context().Done()
		}
		return c.name == id(1)
	}
	r := start(t, f, func(w *Watcher) { w.o.Timeout = time.Hour })
	if s := r.first(); !runs("c1 a", "c2 a")(s) || s.Containers[0].Image != "" {
		t.Errorf("%+v", s.Containers)
	}
}
