package dockerwatch

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/nftfw/nftfw/pkg/inventory"
)

const (
	// cachedImages bounds the memory: hosts run tens of images.
	cachedImages = 1024
	// cachedNames bounds the memory for names of images by container.
	cachedNames = 8192
	// nameWait is how long the word of what runs waits for such names: the engine
	// does not answer about a container that it is starting or stopping.
	nameWait = time.Second
	// parallelInspects keeps the first list of a busy host short without
	// pressing its engine.
	parallelInspects = 8
)

// imageCache remembers the labels of images by ID, and by container the name of
// the image that it was created from. An ID stands for the image's content, and
// that name is fixed when a container is created, so that what was learned once is
// true for ever. Failures are not kept. It is used by one goroutine at a time.
type imageCache struct {
	labels map[string]map[string]string
	names  map[string]string
}

func newImageCache() *imageCache {
	return &imageCache{labels: map[string]map[string]string{}, names: map[string]string{}}
}

// lookup returns the labels of the images in ids, each asked for at most once
// and all within one request's time. Images that are gone or could not be asked
// are missing from found; the latter, where asking later may help, are in failed.
func (c *imageCache) lookup(ctx context.Context, e *engine, ids []string) (found map[string]map[string]string, failed map[string]error) {
	ctx, cancel := context.WithTimeout(ctx, e.timeout)
	defer cancel()
	known := make(map[string]map[string]string)
	unknown := make(map[string]bool)
	for _, id := range ids {
		if labels, ok := c.labels[id]; ok {
			known[id] = labels
		} else if id != "" {
			unknown[id] = true
		}
	}
	found, failed = askEach(unknown, func(id string) (map[string]string, error) { return e.imageLabels(ctx, id) })
	for id, labels := range found {
		keep(c.labels, cachedImages, id, labels)
	}
	maps.Copy(found, known)
	return found, failed
}

// putNames sees to it that Image of each container is what its operator wrote. The
// engine lists the image's ID there once that name stands for another image, or for
// none. Where the name is not known Image becomes "": for a container that is being
// started, which the engine would not answer about, and for those in failed, where
// asking later may help.
func (c *imageCache) putNames(ctx context.Context, e *engine, list []inventory.Container) (failed map[string]error) {
	ctx, cancel := context.WithTimeout(ctx, min(e.timeout, nameWait))
	defer cancel()
	unknown := make(map[string]bool)
	for i := range list {
		con := &list[i]
		switch name, known := c.names[con.ID]; {
		case con.ImageID == "": // it has no image
		case con.Image != con.ImageID && !known:
			keep(c.names, cachedNames, con.ID, con.Image)
		case con.Image == con.ImageID:
			con.Image = name
			if !known && !con.Starting {
				unknown[con.ID] = true
			}
		}
	}
	found, failed := askEach(unknown, func(id string) (string, error) { return e.imageName(ctx, id) })
	for i := range list {
		if name, ok := found[list[i].ID]; ok {
			list[i].Image = name
			keep(c.names, cachedNames, list[i].ID, name)
		}
	}
	return failed
}

// askEach asks about each of keys, some at a time. In failed is why there is no
// answer about some; what is in neither is gone.
func askEach[V any](keys map[string]bool, ask func(key string) (V, error)) (found map[string]V, failed map[string]error) {
	found, failed = make(map[string]V), make(map[string]error)
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		slots = make(chan struct{}, parallelInspects)
	)
	for key := range keys {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			v, err := ask(key)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				found[key] = v
			case !errdefs.IsNotFound(err):
				failed[key] = err
			}
		})
	}
	wg.Wait()
	return found, failed
}

// keep puts a value into a map that holds so many at the most: any other goes for
// it.
func keep[K comparable, V any](m map[K]V, most int, key K, value V) {
	delete(m, key)
	for old := range m {
		if len(m) < most {
			break
		}
		delete(m, old)
	}
	m[key] = value
}
