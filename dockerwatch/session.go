package dockerwatch

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nftfw/nftfw/pkg/inventory"
)

const (
	// fewContainers is up to how many containers are asked for by ID; a list
	// of everything is cheaper for more.
	fewContainers = 16
	// confirm is when everything is listed for the second time in a
	// connection: a container whose death was announced just before we
	// subscribed may still have been in the first list.
	confirm = time.Second
	// doubtMin and doubtMax pace asking again while a list and the events
	// contradict each other.
	doubtMin = 2 * time.Millisecond
	doubtMax = time.Second
	// imageRetryMin and imageRetryMax pace asking again for images that could
	// not be asked.
	imageRetryMin = time.Second
	imageRetryMax = time.Minute
	// quietLists is how many of the lists without a reason leave the containers out
	// while no event speaks of anything: listing a hundred takes the daemon 20 ms,
	// and was most of what it took at rest. The networks are asked for all the same,
	// by which an engine is noticed that answers no more.
	quietLists = 4
	// foreseeAtOnce is how many new containers are inspected at a time.
	foreseeAtOnce = 4
	// firstSandboxWait is how long the first word of what runs waits for the
	// folder of network namespaces.
	firstSandboxWait = time.Second
)

var errMissed = errors.New("containers changed and the engine sent no event, subscribing again")

// session is one connection: one event stream and at most one question under
// way beside it.
type session struct {
	w     *Watcher
	e     *engine
	emit  func(inventory.Snapshot)
	state *state
	wg    sync.WaitGroup

	sandbox    atomic.Bool // learned, or being learned
	doubtAfter time.Duration
	imageAfter time.Duration
}

func newSession(w *Watcher, e *engine, emit func(inventory.Snapshot)) *session {
	s := &session{w: w, e: e, emit: emit, state: newState(w.grace, w.o.Log), doubtAfter: doubtMin, imageAfter: w.imageRetry}
	s.state.podman, s.state.release = e.podman != nil, e.release
	return s
}

// run subscribes, lists, and follows until the connection fails or ctx is done.
// It calls listed after each complete list. When it returns, everything it
// started has ended.
func (s *session) run(ctx context.Context, listed func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer s.wg.Wait()
	defer cancel()
	stream, err := s.e.events(ctx)
	if err != nil {
		return err
	}
	defer stream.stop()
	in := newInbox()
	l := loop{
		session: s,
		in:      in,
		answers: make(chan answer, 1),
		swarms:  make(chan swarmAnswer, 1),
		poll:    time.NewTimer(time.Hour),
		relist:  time.NewTimer(min(s.w.confirm, s.w.o.Relist)),
		later:   time.NewTimer(time.Hour),
		listed:  listed,

		foreseen:   make(chan foreseen, foreseeAtOnce),
		inspecting: make(chan struct{}, foreseeAtOnce),
	}
	defer l.relist.Stop()
	defer l.later.Stop()
	defer l.poll.Stop()
	s.wg.Go(func() { in.read(ctx, stream, func(id string) { l.foresee(ctx, id) }) })
	for {
		l.ask(ctx)
		l.askSwarm(ctx)
		if err := l.step(ctx); err != nil {
			return err
		}
	}
}

// loop is the state of run.
type loop struct {
	*session
	in      *inbox
	answers chan answer
	asking  bool
	listed  func()
	first   bool      // the first snapshot is out
	since   time.Time // of the oldest event that no snapshot has taken in wholly

	relist    *time.Timer
	confirmed bool // the second list has been asked
	due       bool // a list without a reason is to be asked
	quiet     int  // such lists since an event spoke of something

	// The swarm is asked about beside the containers, which must not wait for
	// it: what the engine has to gather for the answer may take seconds.
	swarms      chan swarmAnswer
	askingSwarm bool
	poll        *time.Timer   // asks how the swarm stands
	pollAfter   time.Duration // while answers are not complete: after which time the last was asked

	// New containers are inspected beside all that: see foresee.
	foreseen   chan foreseen
	inspecting chan struct{} // holds a token for each

	later   *time.Timer // asks for what is in again
	laterAt time.Time   // zero: not set
	again   []string
}

// ask starts the next question unless one is under way.
func (l *loop) ask(ctx context.Context) {
	if l.asking {
		return
	}
	q := l.state.next(fewContainers)
	q.asked = l.w.asked.Load()
	if l.due {
		l.due = false
		q.networks = true
		if l.quiet%(quietLists+1) == 0 {
			q.periodic = l.confirmed && !q.full
			// Later lists leave it at what runs: what is being started was announced.
			q.attached = q.attached || !l.confirmed
			l.confirmed = true
			q.full, q.ids = true, nil
		}
		l.quiet++
	}
	if q.empty() {
		return
	}
	// What was under way before the events began is found in the networks.
	q.attached = q.attached || q.full && !l.first
	// Without the folder no bridge with a container on it would count as the
	// engine's own.
	q.sandbox, q.learned = q.full && !l.first, l.learned
	q.starts = l.state.startsOf(q)
	l.asking = true
	l.wg.Go(func() { l.answers <- l.e.ask(ctx, l.w.images, q) })
}

// step waits for one thing to happen and takes it in.
func (l *loop) step(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-l.in.wake:
		return l.takeEvents(time.Now())
	case <-l.w.wake:
		l.state.dirtyNets = true
	case <-l.poll.C:
		l.state.dirtySwarm = true
	case a := <-l.swarms:
		l.askingSwarm = false
		if err := l.takeEvents(time.Now()); err != nil {
			return err
		}
		l.takeSwarm(a)
	case f := <-l.foreseen:
		if l.state.takeForeseen(f) {
			l.send()
		}
	case <-l.relist.C:
		l.due, l.state.dirtySwarm = true, true
		l.relist.Reset(l.w.o.Relist)
	case <-l.later.C:
		for _, id := range l.again {
			l.state.dirty[id] = true
		}
		l.again, l.laterAt = nil, time.Time{}
	case a := <-l.answers:
		l.asking = false
		// Whatever is known to have ended since goes first.
		if err := l.takeEvents(time.Now()); err != nil {
			return err
		}
		return l.takeAnswer(ctx, a, time.Now())
	}
	return nil
}

func (l *loop) takeEvents(now time.Time) error {
	messages, err := l.in.take()
	changed := false
	for _, m := range messages {
		relevant := l.state.event(m, now)
		changed = changed || relevant
		if l.since.IsZero() && m.TimeNano != 0 && (relevant || l.state.stale()) {
			l.since = time.Unix(0, m.TimeNano)
		}
	}
	if changed || l.state.stale() {
		l.quiet = 0
	}
	if changed {
		l.send()
	}
	return l.e.fail("follow events", err)
}

func (l *loop) takeAnswer(ctx context.Context, a answer, now time.Time) error {
	if a.err != nil {
		if a.full || ctx.Err() != nil {
			return a.err // connect again, and list before believing anything
		}
		l.w.o.Log.Warn("containers not refreshed, listing all", "err", a.err)
		l.state.failed()
		return nil
	}
	changed := l.state.apply(a, now)
	if l.state.unannounced > 0 {
		// Emit what was found, then find out what else was missed.
		l.send()
		return fmt.Errorf("list containers: %w", errMissed)
	}
	if l.state.listed && !l.first {
		l.first, changed = true, true
	}
	if a.full {
		l.listed()
	}
	l.learnSandbox(ctx)
	if changed {
		l.send()
	}
	if !l.state.stale() {
		l.since = time.Time{} // nothing came of what happened
	}
	l.askAgain(a, now)
	return nil
}

// askAgain plans what is to be asked once more in a while.
func (l *loop) askAgain(a answer, now time.Time) {
	wait := time.Duration(0)
	if a.again != nil {
		l.w.o.Log.Warn("image or container not inspected, what depends on it stays closed", "err", a.again)
		wait = l.imageAfter
		l.imageAfter = min(2*l.imageAfter, imageRetryMax)
		l.again = append(l.again, a.retry...)
	} else if a.full {
		l.imageAfter = l.w.imageRetry
	}
	if len(l.state.doubted) == 0 {
		l.doubtAfter = doubtMin
	} else {
		wait = l.doubtAfter
		l.doubtAfter = min(2*l.doubtAfter, doubtMax)
		for id := range l.state.doubted {
			l.again = append(l.again, id)
		}
		clear(l.state.doubted)
	}
	at := now.Add(wait)
	if wait > 0 && (l.laterAt.IsZero() || at.Before(l.laterAt)) {
		l.laterAt = at
		l.later.Reset(wait)
	}
}

func (l *loop) send() {
	if !l.state.listed {
		return
	}
	s := l.state.snapshot()
	if !l.asking && !l.state.stale() {
		s.Since, l.since = l.since, time.Time{}
	}
	l.w.counted(s.Running())
	l.emit(s)
}

// learnSandbox asks one container where its network namespace is, once in a
// connection. Nothing waits for it: the engine answers such a question only
// when it is done starting or stopping that container.
func (l *loop) learnSandbox(ctx context.Context) {
	id, ok := l.anySandboxed()
	if !ok || l.sandbox.Swap(true) {
		return
	}
	l.wg.Go(func() {
		path, err := l.e.sandbox(ctx, id)
		if err != nil {
			l.sandbox.Store(false)
			l.w.o.Log.Debug("container's network namespace not learned", "err", err)
			return
		}
		l.w.learned(path)
	})
}

// learned takes in where the network namespace of a container is.
func (l *loop) learned(path string) {
	l.sandbox.Store(true)
	l.w.learned(path)
}

// anySandboxed gives a container that has a network namespace of its own.
func (l *loop) anySandboxed() (id string, ok bool) {
	for id, c := range l.state.containers {
		if !c.Starting && sandboxed(&c) {
			return id, true
		}
	}
	return "", false
}

// sandboxed reports whether a container that runs has a network namespace of
// its own.
func sandboxed(c *inventory.Container) bool { return len(c.Endpoints) > 0 && c.NetworkMode != "host" }
