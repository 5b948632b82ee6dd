package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nftfw/nftfw/nft"
	"github.com/nftfw/nftfw/pkg/api"
	"github.com/nftfw/nftfw/pkg/inventory"
	"github.com/nftfw/nftfw/pkg/links"
	"github.com/nftfw/nftfw/pkg/ruleset"
	"github.com/nftfw/nftfw/policy"
)

// scene is what is needed to name what a packet shows. It is not changed once
// made.
type scene struct {
	policy *policy.Policy
	inv    inventory.Snapshot
	table  *ruleset.Table
}

// watching holds those who watch connections.
type watching struct {
	scene atomic.Pointer[scene]

	mu      sync.Mutex
	viewers map[*viewer]bool
	deaf    error // why nothing is heard of refused packets; nil: it is
}

// viewer is one who watches.
type viewer struct {
	events chan api.Event
	missed atomic.Uint64 // events that found no room
}

const (
	viewerRoom  = 256
	viewerTick  = time.Second      // after which a viewer is told what it missed
	viewerWrite = 10 * time.Second // a viewer that takes nothing for so long is left
	routesFor   = 10 * time.Second // for which addresses of the host are believed
)

// show makes sc what packets are named by, unless it says what is known.
func (w *watching) show(sc scene) {
	old := w.scene.Load()
	if old != nil && old.policy == sc.policy && old.table == sc.table && inventory.Same(old.inv.Containers, sc.inv.Containers) &&
		inventory.Same(old.inv.Networks, sc.inv.Networks) && inventory.Same(old.inv.Links, sc.inv.Links) {
		return
	}
	w.scene.Store(&sc)
}

func (w *watching) add() *viewer {
	v := &viewer{events: make(chan api.Event, viewerRoom)}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.viewers == nil {
		w.viewers = map[*viewer]bool{}
	}
	w.viewers[v] = true
	return v
}

func (w *watching) remove(v *viewer) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.viewers, v)
}

func (w *watching) setDeaf(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deaf = err
}

func (w *watching) listening() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.deaf
}

// tell shows e to everybody who watches, and waits for nobody.
func (w *watching) tell(e api.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for v := range w.viewers {
		v.offer(e)
	}
}

func (v *viewer) offer(e api.Event) {
	select {
	case v.events <- e:
	default:
		v.missed.Add(1)
	}
}

// watch answers GET /v1/watch: one JSON object a line until the caller goes.
func (d *Daemon) watch(w http.ResponseWriter, r *http.Request) {
	if err := d.watching.listening(); err != nil {
		reply(w, nil, api.Failedf("nothing is heard of refused packets: %v", err))
		return
	}
	v := d.watching.add()
	defer d.watching.remove(v)
	ctx, cancel := context.WithCancel(r.Context())
	var accepted sync.WaitGroup
	defer accepted.Wait()
	defer cancel()
	if r.URL.Query().Get("all") != "" {
		accepted.Go(func() { d.watchAccepted(ctx, v) })
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	to := http.NewResponseController(w)
	write := func(e api.Event) error {
		return errors.Join(to.SetWriteDeadline(time.Now().Add(viewerWrite)), json.NewEncoder(w).Encode(e), to.Flush())
	}
	if to.Flush() != nil { // so that the caller knows that it watches
		return
	}
	tick := time.NewTicker(viewerTick)
	defer tick.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return
		case e := <-v.events:
			err = write(e)
		case now := <-tick.C:
			if n := v.missed.Swap(0); n > 0 {
				err = write(api.Event{Time: now.UTC(), Verdict: api.Missed, Missed: n, Why: "they came faster than this client takes them"})
			}
		}
		if err != nil {
			return // the caller has gone
		}
	}
}

// watchAccepted shows v the connections that begin, until ctx is done.
func (d *Daemon) watchAccepted(ctx context.Context, v *viewer) {
	n := namer{watching: &d.watching}
	var routes *links.Routes
	var read time.Time
	err := d.core.kernel.NewFlows(ctx, func(f nft.Flow) {
		if routes == nil || time.Since(read) > routesFor {
			if fresh, err := links.ReadRoutes(); err == nil {
				routes, read = fresh, time.Now()
			}
		}
		if routes != nil && !routes.Local(f.Src.Addr()) { // what the host sends is not filtered
			v.offer(n.accepted(f))
		}
	}, func() {
		v.offer(api.Event{Time: time.Now().UTC(), Verdict: api.Missed, Why: "the kernel's buffer overflowed"})
	})
	if err != nil && ctx.Err() == nil {
		v.offer(api.Event{Time: time.Now().UTC(), Verdict: api.Failed, Why: err.Error()})
	}
}
