package sources

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/nftfw/nftfw/pkg/sources/etcdpb"
)

const pathWatch = "/etcdserverpb.Watch/Watch"

// errReload ends a watch that missed something, or that etcd ended: everything
// is to be read anew.
var errReload = errors.New("the watch ended")

// change is what a watch tells: what happened until a revision, or the
// errReload that ended it.
type change struct {
	events   []*etcdpb.Event
	revision int64
	err      error
}

// point is how far the changes of the store are known, with one key by which
// its past is told from another one.
type point struct {
	revision int64
	key      []byte // that changed last; nil: there is none
	at, mod  int64  // at revision at the key was there, last changed at mod; mod 0: whenever
}

// after is the point at which an event has been told of.
func after(e *etcdpb.Event) point {
	key, revision := e.GetKv().GetKey(), e.GetKv().GetModRevision()
	if e.GetType() == etcdpb.Event_DELETE {
		return point{revision, key, revision - 1, 0}
	}
	return point{revision, key, revision, revision}
}

// continues asks whether what comes after p is all that is new. The error is an
// errReload where it is not: an etcd whose data were lost is the same cluster
// under the same flags, and may have as many revisions soon.
func (c *cluster) continues(ctx context.Context, p point) error {
	in := &etcdpb.RangeRequest{Key: p.key, Revision: p.at, KeysOnly: true}
	if p.key == nil {
		in = &etcdpb.RangeRequest{Key: []byte(c.spec.Prefix), CountOnly: true}
	}
	out, err := c.question(ctx, in)
	if err != nil || p.key == nil {
		return c.judge(err, false) // an errReload where p.at is still to come
	}
	if kvs := out.GetKvs(); len(kvs) == 0 || p.mod != 0 && kvs[0].GetModRevision() != p.mod {
		return fmt.Errorf("%w: etcd has another past", errReload)
	}
	return nil
}

// watch tells of all changes under the prefix after a point. It goes over to
// another member where one fails, for as long as it takes, and misses nothing
// by that. It ends with ctx, or after it has told of an error.
func (c *cluster) watch(ctx context.Context, from point, out chan<- change) {
	wait := time.Duration(0)
	for sleep(ctx, wait) {
		begun := time.Now()
		next, err := c.watchOnce(ctx, from, out)
		if errors.Is(err, errReload) {
			select {
			case out <- change{err: err}:
			case <-ctx.Done():
			}
			return
		}
		if next.revision > from.revision || time.Since(begun) > c.timeout {
			from, wait = next, 0
		}
		wait = again(wait)
	}
}

// watchOnce watches at one member until that breaks. It gives the point to go
// on from.
func (c *cluster) watchOnce(ctx context.Context, from point, out chan<- change) (point, error) {
	limited, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	// A watch from a revision that is still to come hears nothing, and that is no
	// error. And some releases refuse it a stale token like a prefix that is not
	// ours, where the question gets a new one.
	if err := c.continues(limited, from); err != nil {
		return from, err
	}
	m, err := c.member(limited, causes{})
	if err != nil {
		return from, err
	}
	next, confirmed, err := c.watchMember(ctx, m, from, out)
	if ctx.Err() != nil {
		return next, ctx.Err()
	}
	if !c.tokenIsStale(err) {
		c.giveUp(m)
	}
	return next, c.judge(err, confirmed)
}

// judge makes err an errReload where there is no going on elsewhere. confirmed
// says that the watch had begun.
func (c *cluster) judge(err error, confirmed bool) error {
	var answer *answerError
	switch {
	case errors.Is(err, errReload) || c.tokenIsStale(err) || !errors.As(err, &answer):
		return err
	case answer.code == connect.CodeInternal || passes(err) && !(confirmed && answer.text == textNoLeader):
		return err
	}
	return fmt.Errorf("%w: %w", errReload, err)
}

// watchMember tells of what a member says until that ends with an error. It
// gives the point to go on from, and whether the watch had begun.
func (c *cluster) watchMember(ctx context.Context, m *memberConn, from point, out chan<- change) (next point, confirmed bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	// There is no end to a watch, but it is confirmed at once.
	confirm := time.AfterFunc(c.timeout, cancel)
	defer confirm.Stop()
	in := &etcdpb.WatchRequest{RequestUnion: &etcdpb.WatchRequest_CreateRequest{CreateRequest: &etcdpb.WatchCreateRequest{
		Key: []byte(c.spec.Prefix), RangeEnd: prefixEnd(c.spec.Prefix), StartRevision: from.revision + 1,
	}}}
	// The request ends with its one message, and etcd goes on after that: with
	// a body that stayed open net/http would not end it with ctx.
	stream, err := newClient[etcdpb.WatchRequest, etcdpb.WatchResponse](m, pathWatch).CallServerStream(ctx, newRequest(in, c.currentToken()))
	if err != nil {
		cancel()
		return from, false, plain(err)
	}
	defer func() {
		cancel() // or it would be waited for the end
		_ = stream.Close()
	}()
	for stream.Receive() {
		answer := stream.Msg()
		switch reason := answer.GetCancelReason(); {
		case answer.GetCompactRevision() != 0:
			return from, confirmed, fmt.Errorf("%w: etcd has forgotten what came next (compaction)", errReload)
		case answer.GetCanceled() && (strings.Contains(reason, textInvalidToken) || strings.Contains(reason, textOldRevision)):
			return from, confirmed, &answerError{connect.CodeUnauthenticated, textInvalidToken}
		case answer.GetCanceled():
			return from, confirmed, fmt.Errorf("%w: %s", errReload, reason)
		case answer.GetCreated():
			confirm.Stop()
			confirmed = true
		}
		events := answer.GetEvents()
		if len(events) == 0 {
			continue
		}
		select {
		case out <- change{events: events, revision: answer.GetHeader().GetRevision()}:
			from = after(events[len(events)-1])
		case <-ctx.Done():
			return from, confirmed, ctx.Err()
		}
	}
	if err = stream.Err(); err == nil {
		err = errors.New("the member ended the watch")
	}
	return from, confirmed, plain(err)
}
