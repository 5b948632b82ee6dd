package dockerwatch

import (
	"context"

	"github.com/docker/docker/api/types/container"

	"github.com/nftfw/nftfw/pkg/inventory"
)

// ask answers q. The engine's version has been asked before.
func (e *engine) ask(ctx context.Context, images *imageCache, q question) answer {
	if e.podman != nil {
		// It does not tell of a start before the process runs.
		q.attached, q.starts = false, nil
	}
	a := answer{question: q}
	if q.networks {
		list, skipped, err := e.networks(ctx)
		if err != nil {
			return answer{question: q, err: err}
		}
		a.skipped("network", skipped)
		for _, s := range list {
			n, problems, ok := decodeNetwork(s)
			a.problems = append(a.problems, problems...)
			if ok {
				a.nets = append(a.nets, n)
			}
		}
		if e.noNAT6 {
			routeIPv6(a.nets)
		}
		sortNetworks(a.nets)
	}
	if q.full || len(q.ids) > 0 {
		list, skipped, err := e.containersOf(ctx, q.ids, q.attached || len(q.starts) > 0)
		if err != nil {
			return answer{question: q, err: err}
		}
		a.skipped("container", skipped)
		if e.podman != nil {
			var failed map[string]error
			list, failed = e.asDocker(ctx, list)
			a.uninspected(failed)
		}
		a.addContainers(ctx, e, images, list, a.attachedTo(ctx, e))
	}
	return a
}

func (a *answer) skipped(kind string, err error) {
	if err != nil {
		a.problems = append(a.problems, problem{kind: kind, text: err.Error()})
	}
}

// uninspected has containers asked for once more. Until then they have nothing.
func (a *answer) uninspected(failed map[string]error) {
	for id, err := range failed {
		a.again = err
		a.retry = append(a.retry, id)
	}
}

func (a *answer) addContainers(ctx context.Context, e *engine, images *imageCache, list []container.Summary, attached map[string][]inventory.Endpoint) {
	var imageIDs []string
	for _, s := range list {
		d, ok := decodeContainer(s)
		if !ok {
			d, ok = decodeStarting(s, attached[s.ID])
		}
		a.problems = append(a.problems, d.problems...)
		if !ok {
			continue
		}
		a.containers = append(a.containers, d.Container)
		imageIDs = append(imageIDs, d.ImageID)
	}
	labels, failed := images.lookup(ctx, e, imageIDs)
	for i := range a.containers {
		c := &a.containers[i]
		found, ok := labels[c.ImageID]
		c.ImageLabels, c.ImageUnknown = found, !ok
		if err := failed[c.ImageID]; err != nil {
			a.again = err
			a.retry = append(a.retry, c.ID)
		}
	}
}
