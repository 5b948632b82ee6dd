package sources

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/sources/etcdpb"
	"github.com/nftfw/nftfw/pkg/sources/spec"
)

const (
	// etcdRetryMost bounds the pause after a failure.
	etcdRetryMost = 5 * time.Second
	// etcdPage is how many keys are read in one request.
	etcdPage = 5000
	// gather is how long it is waited for more after a change of manyEvents or
	// more keys.
	gather     = 20 * time.Millisecond
	manyEvents = maxTxn / 2
	// leaseQuestions is how many leases are asked about at a time.
	leaseQuestions = 16
	// leaseSlack is by how much an expiry may differ from what was told before
	// it is told again: etcd counts in whole seconds.
	leaseSlack = 2 * time.Second
	// maxComment is the longest comment that is kept, in bytes.
	maxComment = 200
)

// followEtcd tells of the entries under a prefix in etcd.
func (r Reader) followEtcd(ctx context.Context, s spec.Etcd, source addrset.Source, emit func(Update)) {
	p := pause{jitter: r.jitter, every: etcdRetryMost}
	for wait := time.Duration(0); sleep(ctx, wait); {
		wait = 0
		f := &etcdFollower{cluster: cluster{spec: s, timeout: r.etcdTimeout()}, source: source, emit: emit, fleet: newFleet()}
		err := f.session(ctx)
		if ctx.Err() != nil {
			return
		}
		if lasted := time.Since(f.loaded); !f.loaded.IsZero() && lasted > f.timeout {
			p.backoff = 0
			if errors.Is(err, errReload) {
				continue // at once: nothing is wrong
			}
		}
		emit(Update{Err: err})
		wait = p.after(err)
	}
}

// etcdFollower follows a prefix from one time that everything was read to the
// next.
type etcdFollower struct {
	cluster
	source addrset.Source
	emit   func(Update)
	loaded time.Time // when everything was read; zero: not yet
	fleet  *fleet
}

// session reads everything and follows changes until something goes wrong.
func (f *etcdFollower) session(ctx context.Context) error {
	if err := f.dial(ctx); err != nil {
		return err
	}
	defer f.close()
	until, err := f.load(ctx)
	if err != nil {
		return fmt.Errorf("read %s: %w", f.spec.Prefix, err)
	}
	f.loaded = time.Now()
	return f.follow(ctx, until)
}

// load reads all keys as they are at one revision, and tells of them. It gives
// the point that is known by that.
func (f *etcdFollower) load(ctx context.Context) (point, error) {
	var p point
	revision, err := f.read(ctx, false, func(kv *etcdpb.KeyValue) {
		f.fleet.put(strings.TrimPrefix(string(kv.GetKey()), f.spec.Prefix), string(kv.GetValue()), kv.GetLease())
		if kv.GetModRevision() > p.mod {
			p.key, p.mod = kv.GetKey(), kv.GetModRevision()
		}
	})
	if err != nil {
		return p, err
	}
	p.revision, p.at = revision, revision
	if err := f.askLeases(ctx, time.Now()); err != nil {
		return p, err
	}
	add, _ := f.fleet.changes(f.source, time.Now())
	f.emit(Update{Whole: true, Add: add, Revision: revision, Note: f.fleet.note()})
	return p, nil
}

// follow tells of changes after a point until the watch ends or etcd does not
// answer any more. What cannot be caught up with, such as a compaction that was
// slept through or an etcd that went back, ends in errReload.
func (f *etcdFollower) follow(ctx context.Context, from point) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changes := make(chan change)
	go f.watch(ctx, from, changes)
	health := make(chan error, 1)
	ticker := time.NewTicker(f.timeout)
	defer ticker.Stop()
	asking, failures := false, 0
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case change := <-changes:
			if err := f.take(ctx, change, changes); err != nil {
				return err
			}
		case <-time.After(f.fleet.nextLease(time.Now())):
			if err := f.renew(ctx); err != nil {
				f.emit(Update{Err: fmt.Errorf("ask for leases: %w", err)})
			}
		case <-ticker.C:
			if !asking {
				asking = true
				go func() { health <- f.answers(ctx) }()
			}
		case err := <-health:
			asking = false
			if err == nil {
				failures = 0
				f.emit(Update{Note: f.fleet.note()})
				continue
			}
			if errors.Is(err, errReload) {
				return err
			}
			err = fmt.Errorf("etcd does not answer: %w", err)
			if failures++; failures > 1 {
				return err
			}
			// An election, most often: the watch goes on by itself.
			f.emit(Update{Err: err})
		}
	}
}

// take tells of a change and of those that wait behind it.
func (f *etcdFollower) take(ctx context.Context, change change, more <-chan change) error {
	var revision int64
	for waiting := true; waiting; {
		if change.err != nil {
			return change.err
		}
		for _, e := range change.events {
			kv := e.GetKv()
			key := strings.TrimPrefix(string(kv.GetKey()), f.spec.Prefix)
			if e.GetType() == etcdpb.Event_DELETE {
				f.fleet.remove(key)
			} else {
				f.fleet.put(key, string(kv.GetValue()), kv.GetLease())
			}
		}
		revision = change.revision
		// A change of many keys is one of several, most often: they are told
		// of together. One of a few is told of at once.
		wait := time.Duration(0)
		if len(change.events) >= manyEvents {
			wait = gather
		}
		select {
		case change = <-more:
		case <-time.After(wait):
			waiting = false
		}
	}
	if err := f.askLeases(ctx, time.Now()); err != nil {
		// What went is known without.
		if gone := f.fleet.gone(); len(gone) > 0 {
			f.emit(Update{Del: gone, Note: f.fleet.note()})
		}
		return fmt.Errorf("ask for leases: %w", err)
	}
	add, gone := f.fleet.changes(f.source, time.Now())
	f.emit(Update{Add: add, Del: gone, Revision: revision, Note: f.fleet.note()})
	return nil
}

// renew asks again for how long leases last and tells what that changes: to
// keep one alive is no change of a key.
func (f *etcdFollower) renew(ctx context.Context) error {
	if err := f.askLeases(ctx, time.Now()); err != nil {
		f.fleet.putOff(time.Now().Add(f.timeout))
		return err
	}
	if add, gone := f.fleet.changes(f.source, time.Now()); len(add)+len(gone) > 0 {
		f.emit(Update{Add: add, Del: gone, Note: f.fleet.note()})
	}
	return nil
}

// askLeases asks for how long leases last, those of which it is not known and
// those that it is time to ask about again.
func (f *etcdFollower) askLeases(ctx context.Context, now time.Time) error {
	due := f.fleet.dueLeases(now)
	left := make([]time.Duration, len(due))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(leaseQuestions)
	for i, id := range due {
		group.Go(func() error {
			lease, err := timeToLive.do(ctx, &f.cluster, &etcdpb.LeaseTimeToLiveRequest{ID: id})
			if err != nil {
				return err
			}
			// TTL is rounded down, and -1 for a lease that has ended. Where
			// etcd is there it ends the lease itself, so nobody loses the
			// second that is rounded off.
			left[i] = time.Duration(lease.GetTTL()+1) * time.Second
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for i, id := range due {
		f.fleet.lasts(id, now, left[i])
	}
	return nil
}
