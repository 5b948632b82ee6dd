package daemon

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/api"
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
	d.listSaves.keep(c.lists)
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
	failed  map[listKey]error // why those could not be written that were tried
	some    chan struct{}     // holds a value while any wait
}

func newListSaves() *listSaves {
	return &listSaves{waiting: map[listKey]store.List{}, failed: map[listKey]error{}, some: make(chan struct{}, 1)}
}

func (s *listSaves) put(l store.List) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting[listKey{l.Set, l.Source}] = l
	s.wake()
}

func (s *listSaves) wake() {
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

// tried notes how the writing of a list went. One that failed goes on waiting,
// unless there is a newer one. It tells whether it went as the time before.
func (s *listSaves) tried(key listKey, l store.List, err error) (asBefore bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	asBefore = (err != nil) == (s.failed[key] != nil)
	if err == nil {
		delete(s.failed, key)
		return asBefore
	}
	s.failed[key] = err
	if _, newer := s.waiting[key]; !newer {
		s.waiting[key] = l
	}
	s.wake()
	return asBefore
}

// keep drops the lists that are not in lists any more.
func (s *listSaves) keep(lists map[listKey]*list) {
	s.mu.Lock()
	defer s.mu.Unlock()
	gone := func(key listKey) bool { return lists[key] == nil }
	maps.DeleteFunc(s.waiting, func(key listKey, _ store.List) bool { return gone(key) })
	maps.DeleteFunc(s.failed, func(key listKey, _ error) bool { return gone(key) })
}

// problems says which lists could not be written down.
func (s *listSaves) problems() []api.Problem {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []api.Problem
	for key, err := range s.failed {
		out = append(out, api.Problem{
			Severity: string(policy.SeverityWarning),
			Message:  fmt.Sprintf("the list of %s of set %s is in force, but a restart begins with an older one: %v", key.source, key.set, err),
		})
	}
	slices.SortFunc(out, func(a, b api.Problem) int { return strings.Compare(a.Message, b.Message) })
	return out
}

const (
	// saveAfter is how long a list waits to be written down.
	saveAfter = 100 * time.Millisecond
	// saveAgain is how long it waits after a time that failed.
	saveAgain = 10 * time.Second
)

// saveLists writes lists down, behind the loop's back: they are in force
// already, and are kept elsewhere.
func (d *Daemon) saveLists(ctx context.Context) error {
	for wait := saveAfter; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-d.listSaves.some:
			select { // what comes in a burst is written once
			case <-ctx.Done():
			case <-time.After(wait):
			}
			wait = saveAfter
			if !d.saveWaitingLists() {
				wait = saveAgain
			}
		}
	}
}

// saveWaitingLists writes the lists that wait, and tells whether all could be.
func (d *Daemon) saveWaitingLists() (all bool) {
	all = true
	for key, l := range d.listSaves.take() {
		err := d.core.store.SaveList(l)
		all = all && err == nil
		switch asBefore := d.listSaves.tried(key, l, err); {
		case asBefore:
		case err != nil:
			d.log.Warn("list not saved, a restart begins with an older one; it is tried again", "set", key.set, "source", key.source, "err", err)
		default:
			d.log.Info("list is saved again", "set", key.set, "source", key.source)
		}
	}
	return all
}
