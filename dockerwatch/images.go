package dockerwatch

import (
	"context"
	"sync"

	"github.com/containerd/errdefs"
)

const (
	// cachedImages bounds the memory: hosts run tens of images.
	cachedImages = 1024
	// parallelInspects keeps the first list of a busy host short without
	// pressing its engine.
	parallelInspects = 8
)

// imageCache remembers the labels of images by ID. An ID stands for the image's
// content, so what was learned once is true for ever. Failures are not kept. It
// is used by one goroutine at a time.
type imageCache struct {
	labels map[string]map[string]string
}

func newImageCache() *imageCache {
	return &imageCache{labels: map[string]map[string]string{}}
}

// lookup returns the labels of the images in ids, each asked for at most once
// and all within one request's time. Images that are gone or could not be asked
// are missing from found; the latter, where asking later may help, are in failed.
func (c *imageCache) lookup(ctx context.Context, e *engine, ids []string) (found map[string]map[string]string, failed map[string]error) {
	ctx, cancel := context.WithTimeout(ctx, e.timeout)
	defer cancel()
	found = make(map[string]map[string]string)
	failed = make(map[string]error)
	asked := make(map[string]bool)
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		slots = make(chan struct{}, parallelInspects)
	)
	for _, id := range ids {
		if id == "" || asked[id] {
			continue
		}
		asked[id] = true
		mu.Lock()
		labels, known := c.labels[id]
		if known {
			found[id] = labels
		}
		mu.Unlock()
		if known {
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			labels, err := e.imageLabels(ctx, id)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				found[id] = labels
				keep(c.labels, cachedImages, id, labels)
			case !errdefs.IsNotFound(err):
				failed[id] = err
			}
		})
	}
	wg.Wait()
	return found, failed
}

// keep puts a value into a map that holds so many at the most: any other goes for
// it.
func keep[V any](m map[string]V, most int, key string, value V) {
	delete(m, key)
	for old := range m {
		if len(m) < most {
			break
		}
		delete(m, old)
	}
	m[key] = value
}
