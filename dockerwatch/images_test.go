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
