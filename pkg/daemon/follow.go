package daemon

import (
	"context"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/sources"
	"github.com/nftfw/nftfw/pkg/sources/spec"
	"github.com/nftfw/nftfw/pkg/store"
	"github.com/nftfw/nftfw/policy"
)

// Sources is what is needed of the places where entries of sets are kept.
// sources.Reader reads the real ones.
type Sources interface {
	// Follow tells emit of the entries of s and of each change until ctx is
	// done, and returns then.
	Follow(ctx context.Context, s spec.Source, last sources.Last, emit func(sources.Update))
	// Put writes entries into etcd, and Delete removes them: all or none, up
	// to a hundred. They give the revision of the store that shows it.
	Put(ctx context.Context, s spec.Etcd, ranges []addrset.Range, comment string, timeout time.Duration) (revision int64, err error)
	Delete(ctx context.Context, s spec.Etcd, ranges []addrset.Range, exist bool) (n int, revision int64, err error)
}

// following is where the daemon stands with the sources. All but the group
// belongs to the loop.
type following struct {
	group   sync.WaitGroup
	policy  *policy.Policy // whose sources are followed
	each    map[listKey]*followed
	updates chan sourceUpdate
	waiting []waitingChange
}

// waitingChange is a change that was made elsewhere and that somebody waits
// for here.
type waitingChange struct {
	key      listKey
	revision int64
	before   list // as it was before the change
	done     chan struct{}
}

// reached tells whether l shows the change. A change has a higher revision than
// all that was seen before it, unless etcd has gone back, and then a revision
// says nothing until everything is read anew.
func (w *waitingChange) reached(l *list) bool {
	return l != nil && l.revision >= w.revision && (w.revision > w.before.revision || l.readings > w.before.readings)
}

// followed is one source that is being followed.
type followed struct {
	spec spec.Source
	stop context.CancelFunc
}

// sourceUpdate is what a source said, with who heard it.
type sourceUpdate struct {
	key  listKey
	from *followed
	sources.Update
}

// follow begins to follow the sources of the policy in force and leaves those
// that it does not name. What goes on is not disturbed.
func (d *Daemon) follow(ctx context.Context) {
	f, c := &d.following, d.core
	if f.policy == c.policy.Policy || c.cfg.Sources == nil {
		return
	}
	f.policy = c.policy.Policy
	want := map[listKey]spec.Source{}
	for name, s := range f.policy.Sets {
		for _, source := range s.Sources {
			want[listKey{name, source.Name()}] = source.Source
		}
	}
	for key, one := range f.each {
		if s, ok := want[key]; !ok || !reflect.DeepEqual(s, one.spec) {
			one.stop()
			delete(f.each, key)
		}
	}
	for key, s := range want {
		if f.each[key] == nil {
			f.each[key] = d.followOne(ctx, key, s)
		}
	}
	c.forgetLists()
}

// followOne follows one source, beside the loop.
func (d *Daemon) followOne(ctx context.Context, key listKey, s spec.Source) *followed {
	ctx, stop := context.WithCancel(ctx)
	one := &followed{spec: s, stop: stop}
	var last sources.Last
	if l := d.core.lists[key]; l != nil {
		last = sources.Last{GoodAt: l.goodAt, Entries: l.entries, Resume: l.resume}
	}
	d.following.group.Go(func() {
		d.core.cfg.Sources.Follow(ctx, s, last, func(u sources.Update) {
			select {
			case d.following.updates <- sourceUpdate{key, one, u}:
			case <-ctx.Done():
			}
		})
	})
	return one
}

// takeUpdate puts in force what a source said.
func (d *Daemon) takeUpdate(ctx context.Context, u sourceUpdate) {
	if d.following.each[u.key] != u.from {
		return // it was on its way when the source was left
	}
	save, err := d.core.takeUpdate(ctx, u.key, u.Update)
	if save {
		d.listSaves.put(d.core.savedList(u.key))
	}
	if err != nil {
		d.again("source", err)
		return
	}
	d.announce()
}

// announce tells those who wait for what is in force now.
func (d *Daemon) announce() {
	f := &d.following
	f.waiting = slices.DeleteFunc(f.waiting, func(w waitingChange) bool {
		reached := w.reached(d.core.lists[w.key])
		if reached {
			close(w.done)
		}
		return reached
	})
}

// listSaves are lists that wait to be written down: the newest of each source.
// The giver never waits.
type listSaves struct {
	mu      sync.Mutex
	waiting map[listKey]store.List
	some    chan struct{} // holds a value while any wait
}

func newListSaves() *listSaves {
	return &listSaves{waiting: map[listKey]store.List{}, some: make(chan struct{}, 1)}
}

func (s *listSaves) put(l store.List) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting[listKey{l.Set, l.Source}] = l
	select {
	case s.some <- struct{}{}:
	default:
	}
}

func (s *listSaves) take() map[listKey]store.List {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.waiting
	s.waiting = map[listKey]store.List{}
	return out
}

// saveAfter is how long a list waits to be written down.
const saveAfter = 100 * time.Millisecond

// saveLists writes lists down, behind the loop's back: they are in force
// already, and are kept elsewhere.
func (d *Daemon) saveLists(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.listSaves.some:
			select { // what comes in a burst is written once
			case <-ctx.Done():
			case <-time.After(saveAfter):
			}
			d.saveWaitingLists()
		}
	}
}

func (d *Daemon) saveWaitingLists() {
	for key, l := range d.listSaves.take() {
		if err := d.core.store.SaveList(l); err != nil {
			d.log.Warn("list not saved, a restart begins with an older one", "set", key.set, "source", key.source, "err", err)
		}
	}
}
