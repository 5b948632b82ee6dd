package sources

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/sources/etcdpb"
	"github.com/nftfw/nftfw/pkg/sources/spec"
)

// maxTxn is how many operations are put into one transaction: etcd takes 128
// unless it is told otherwise (--max-txn-ops), and counts comparisons too.
const maxTxn = 100

// MissingError says that an entry that was to be removed from etcd is not
// there.
type MissingError struct{ Range addrset.Range }

// Error names the entry.
func (e *MissingError) Error() string { return fmt.Sprintf("%s is not in etcd", e.Range) }

// PartialError says that a change of more than one transaction was made in
// part. Up to maxTxn entries are one transaction, which is made or is not.
type PartialError struct {
	Done, All int // entries
	Err       error
}

// Error says how far it came.
func (e *PartialError) Error() string {
	return fmt.Sprintf("%d of %d entries were changed in etcd, then: %v", e.Done, e.All, e.Err)
}

// Unwrap returns the cause.
func (e *PartialError) Unwrap() error { return e.Err }

// Put writes entries under the prefix of s, or renews those that are there. A
// timeout other than 0 becomes a lease, which all of them share. It returns the
// revision of the store that holds them.
func (r Reader) Put(ctx context.Context, s spec.Etcd, ranges []addrset.Range, comment string, timeout time.Duration) (revision int64, err error) {
	c := &cluster{spec: s, timeout: r.etcdTimeout()}
	if err := c.dial(ctx); err != nil {
		return 0, err
	}
	defer c.close()
	var lease int64
	if timeout > 0 {
		seconds := int64((timeout + time.Second - 1) / time.Second)
		granted, err := grantLease.do(ctx, c, &etcdpb.LeaseGrantRequest{TTL: seconds})
		if err != nil {
			return 0, fmt.Errorf("ask etcd for a lease: %w", err)
		}
		lease = granted.GetID()
	}
	done := 0
	for part := range slices.Chunk(ranges, maxTxn) {
		ops := make([]*etcdpb.RequestOp, len(part))
		for i, rng := range part {
			ops[i] = &etcdpb.RequestOp{Request: &etcdpb.RequestOp_RequestPut{RequestPut: &etcdpb.PutRequest{
				Key: []byte(s.Prefix + rng.String()), Value: []byte(comment), Lease: lease,
			}}}
		}
		reply, err := transact.do(ctx, c, &etcdpb.TxnRequest{Success: ops})
		if err != nil {
			return revision, partial(done, len(ranges), fmt.Errorf("write to etcd: %w", err))
		}
		revision, done = reply.GetHeader().GetRevision(), done+len(part)
	}
	return revision, nil
}

func partial(done, all int, err error) error {
	if done == 0 {
		return err
	}
	return &PartialError{Done: done, All: all, Err: err}
}

// Delete removes entries under the prefix of s. Unless exist is set, an entry
// that is not there is a *MissingError and nothing is removed. It returns how
// many were there, and the revision of the store without them.
func (r Reader) Delete(ctx context.Context, s spec.Etcd, ranges []addrset.Range, exist bool) (n int, revision int64, err error) {
	c := &cluster{spec: s, timeout: r.etcdTimeout()}
	if err := c.dial(ctx); err != nil {
		return 0, 0, err
	}
	defer c.close()
	keys, revision, err := c.keys(ctx)
	if err != nil {
		return 0, 0, fmt.Errorf("read %s from etcd: %w", s.Prefix, err)
	}
	var gone []string
	for _, rng := range ranges {
		switch {
		case len(keys[rng]) > 0:
			n++
			gone = append(gone, keys[rng]...)
		case !exist:
			return 0, 0, &MissingError{rng}
		}
	}
	slices.Sort(gone)
	gone = slices.Compact(gone)
	done := 0
	for part := range slices.Chunk(gone, maxTxn) {
		ops := make([]*etcdpb.RequestOp, len(part))
		for i, key := range part {
			ops[i] = &etcdpb.RequestOp{Request: &etcdpb.RequestOp_RequestDeleteRange{
				RequestDeleteRange: &etcdpb.DeleteRangeRequest{Key: []byte(key)},
			}}
		}
		reply, err := transact.do(ctx, c, &etcdpb.TxnRequest{Success: ops})
		if err != nil {
			return done, revision, partial(done, len(gone), fmt.Errorf("remove from etcd: %w", err))
		}
		revision, done = reply.GetHeader().GetRevision(), done+len(part)
	}
	return n, revision, nil
}

// keys lists the keys for each range: they may be written in several ways.
func (c *cluster) keys(ctx context.Context) (map[addrset.Range][]string, int64, error) {
	out := map[addrset.Range][]string{}
	revision, err := c.read(ctx, true, func(kv *etcdpb.KeyValue) {
		key := string(kv.GetKey())
		if rng, err := addrset.ParseRange(strings.TrimPrefix(key, c.spec.Prefix)); err == nil {
			out[rng] = append(out[rng], key)
		}
	})
	return out, revision, err
}
