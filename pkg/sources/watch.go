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

// watch tells of all changes under the prefix from a revision on. It goes over
// to another member where one fails, for as long as it takes, and misses
// nothing by that. It ends with ctx, or after it has told of an error.
func (c *cluster) watch(ctx context.Context, from int64, out chan<- change) {
	wait := time.Duration(0)
	for first := true; sleep(ctx, wait); first = false {
		begun := time.Now()
		next, err := c.watchOnce(ctx, from, first, out)
		if errors.Is(err, errReload) {
			select {
			case out <- change{err: err}:
			case <-ctx.Done():
			}
			return
		}
		if next > from || time.Since(begun) > c.timeout {
			from, wait = next, 0
		}
		wait = again(wait)
	}
}

// watchOnce watches at one member until that breaks. It gives the revision to
// go on with.
func (c *cluster) watchOnce(ctx context.Context, from int64, first bool, out chan<- change) (int64, error) {
	limited, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	if !first {
		// Some releases refuse a stale token like a prefix that is not ours.
		if err := c.login(limited, c.currentToken()); err != nil {
			return from, c.judge(err, false)
		}
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
// gives the revision to go on with, and whether the watch had begun.
func (c *cluster) watchMember(ctx context.Context, m *memberConn, from int64, out chan<- change) (next int64, confirmed bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	// There is no end to a watch, but it is confirmed at once.
	confirm := time.AfterFunc(c.timeout, cancel)
	defer confirm.Stop()
	in := &etcdpb.WatchRequest{RequestUnion: &etcdpb.WatchRequest_CreateRequest{CreateRequest: &etcdpb.WatchCreateRequest{
		Key: []byte(c.spec.Prefix), RangeEnd: prefixEnd(c.spec.Prefix), StartRevision: from,
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
			from = events[len(events)-1].GetKv().GetModRevision() + 1
		case <-ctx.Done():
			return from, confirmed, ctx.Err()
		}
	}
	if err = stream.Err(); err == nil {
		err = errors.New("the member ended the watch")
	}
	return from, confirmed, plain(err)
}
