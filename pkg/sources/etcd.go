package sources

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/sources/spec"
)

const (
	// etcdTimeout bounds one request to etcd. It is also how often it is found
	// out whether etcd answers: a watch that hears nothing does not say whether
	// there is nothing to hear.
	etcdTimeout = 3 * time.Second
	// etcdKeepAlive is how often a silent connection is probed; servers drop
	// clients that do so more often than every 5 s (--grpc-keepalive-min-time).
	etcdKeepAlive = 10 * time.Second
	// etcdRetryMost bounds the pause after a failure.
	etcdRetryMost = 5 * time.Second
	// etcdPage is how many keys are read in one request.
	etcdPage = 5000
	// probeWait is how long a server may take to refuse a certificate.
	probeWait = 300 * time.Millisecond
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

// errReload ends a session that missed something and is to begin anew at once.
var errReload = errors.New("the watch ended")

// etcdFollower follows a prefix over one connection.
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
	defer f.client.Close()
	revision, err := f.load(ctx)
	if err != nil {
		return fmt.Errorf("read %s: %w", f.spec.Prefix, err)
	}
	f.loaded = time.Now()
	return f.watch(ctx, revision)
}

// cluster is a connection to etcd.
type cluster struct {
	spec    spec.Etcd
	timeout time.Duration // of one request
	client  *clientv3.Client
}

func (r Reader) etcdTimeout() time.Duration {
	if r.Timeout > 0 {
		return r.Timeout
	}
	return etcdTimeout
}

// dial makes the client. It connects in the background, and logs in where there
// is a user.
func (c *cluster) dial(ctx context.Context) error {
	config := clientv3.Config{
		Endpoints: c.spec.Endpoints, DialTimeout: c.timeout, Context: ctx, Logger: zap.NewNop(),
		DialKeepAliveTime: etcdKeepAlive, DialKeepAliveTimeout: c.timeout,
	}
	var err error
	if config.TLS, err = tlsConfig(c.spec.TLS); err != nil {
		return err
	}
	if c.spec.User != "" {
		config.Username = c.spec.User
		if config.Password, err = readSecret(c.spec.PasswordFile); err != nil {
			return err
		}
	}
	if c.client, err = clientv3.New(config); err != nil {
		return fmt.Errorf("connect to etcd: %w", c.explain(ctx, err))
	}
	return nil
}

// request makes one request of c, within its timeout.
func request[Out any](ctx context.Context, c *cluster, f func(context.Context) (Out, error)) (Out, error) {
	limited, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	out, err := f(clientv3.WithRequireLeader(limited))
	return out, c.explain(ctx, err)
}

// explain finds out why nothing came within the time: the client tries again
// and again and does not say.
func (c *cluster) explain(ctx context.Context, err error) error {
	if !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
		return err
	}
	var causes []error
	for _, endpoint := range c.spec.Endpoints {
		if cause := c.probe(ctx, endpoint); cause != nil {
			causes = append(causes, cause)
		}
	}
	if len(causes) == 0 {
		return fmt.Errorf("no answer within %s: %w", c.timeout, err)
	}
	return together(causes)
}

// probe connects to an endpoint and gives what goes wrong.
func (c *cluster) probe(ctx context.Context, endpoint string) error {
	u, err := url.Parse(endpoint)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if u.Scheme != "https" {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", u.Host)
		if err == nil {
			_ = conn.Close()
		}
		return err
	}
	config, err := tlsConfig(c.spec.TLS)
	if err != nil {
		return err
	}
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return fmt.Errorf("%s: %w", endpoint, err)
	}
	defer conn.Close()
	// What the server thinks of our certificate comes after the handshake.
	if err := conn.SetReadDeadline(time.Now().Add(probeWait)); err != nil {
		return err
	}
	if _, err = conn.Read(make([]byte, 1)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("%s: %w", endpoint, err)
	}
	return nil
}

// tlsConfig gives the configuration for https endpoints. Others ignore it.
func tlsConfig(s spec.TLS) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if s.CA != "" {
		text, err := os.ReadFile(s.CA)
		if err != nil {
			return nil, shorten(err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("%s holds no certificate", s.CA)
		}
	}
	if s.Cert != "" {
		pair, err := tls.LoadX509KeyPair(s.Cert, s.Key)
		if err != nil {
			return nil, fmt.Errorf("read %s and %s: %w", s.Cert, s.Key, err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// readSecret reads a file that holds a password or a key and a line end.
func readSecret(path string) (string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", shorten(err)
	}
	secret := strings.TrimRight(string(text), "\r\n")
	if secret == "" {
		return "", fmt.Errorf("%s is empty", path)
	}
	return secret, nil
}

// load reads all keys as they are at one revision, which it returns, and tells
// of them.
func (f *etcdFollower) load(ctx context.Context) (int64, error) {
	end := clientv3.GetPrefixRangeEnd(f.spec.Prefix)
	var revision int64
	for from := f.spec.Prefix; ; {
		options := []clientv3.OpOption{clientv3.WithRange(end), clientv3.WithLimit(etcdPage)}
		if revision != 0 {
			options = append(options, clientv3.WithRev(revision))
		}
		page, err := request(ctx, &f.cluster, func(ctx context.Context) (*clientv3.GetResponse, error) {
			return f.client.Get(ctx, from, options...)
		})
		if err != nil {
			return 0, err
		}
		if revision == 0 {
			revision = page.Header.Revision
		}
		for _, kv := range page.Kvs {
			f.fleet.put(strings.TrimPrefix(string(kv.Key), f.spec.Prefix), string(kv.Value), kv.Lease)
		}
		if !page.More || len(page.Kvs) == 0 {
			break
		}
		from = string(page.Kvs[len(page.Kvs)-1].Key) + "\x00"
	}
	if err := f.askLeases(ctx, time.Now()); err != nil {
		return 0, err
	}
	add, _ := f.fleet.changes(f.source, time.Now())
	f.emit(Update{Whole: true, Add: add, Revision: revision, Note: f.fleet.note()})
	return revision, nil
}

// watch tells of changes after revision until the watch breaks or etcd does
// not answer any more. What the client cannot catch up with by itself, such as
// a compaction that it slept through, ends in errReload.
func (f *etcdFollower) watch(ctx context.Context, revision int64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Watch waits for a server, for as long as there is none.
	opened := make(chan clientv3.WatchChan, 1)
	go func() {
		opened <- f.client.Watch(clientv3.WithRequireLeader(ctx), f.spec.Prefix, clientv3.WithPrefix(), clientv3.WithRev(revision+1))
	}()
	var changes clientv3.WatchChan
	health := make(chan error, 1)
	ticker := time.NewTicker(f.timeout)
	defer ticker.Stop()
	asking, failures := false, 0
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case changes = <-opened:
		case change, ok := <-changes:
			if !ok {
				return errReload
			}
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
			err = fmt.Errorf("etcd does not answer: %w", err)
			if failures++; failures > 1 {
				return err
			}
			// An election, most often: the watch goes on by itself.
			f.emit(Update{Err: err})
		}
	}
}

// answers asks a question that only a cluster with a majority answers.
func (f *etcdFollower) answers(ctx context.Context) error {
	_, err := request(ctx, &f.cluster, func(ctx context.Context) (*clientv3.GetResponse, error) {
		return f.client.Get(ctx, f.spec.Prefix, clientv3.WithCountOnly())
	})
	return err
}

// take tells of a change and of those that wait behind it.
func (f *etcdFollower) take(ctx context.Context, change clientv3.WatchResponse, more clientv3.WatchChan) error {
	var revision int64
	for waiting := true; waiting; {
		if err := change.Err(); err != nil {
			// Compacted, or the member has lost its leader.
			return fmt.Errorf("%w: %w", errReload, err)
		}
		for _, e := range change.Events {
			key := strings.TrimPrefix(string(e.Kv.Key), f.spec.Prefix)
			if e.Type == mvccpb.Event_DELETE {
				f.fleet.remove(key)
			} else {
				f.fleet.put(key, string(e.Kv.Value), e.Kv.Lease)
			}
		}
		revision = change.Header.Revision
		// A change of many keys is one of several, most often: they are told
		// of together. One of a few is told of at once.
		wait := time.Duration(0)
		if len(change.Events) >= manyEvents {
			wait = gather
		}
		select {
		case change, waiting = <-more:
		case <-time.After(wait):
			waiting = false
		}
	}
	if err := f.askLeases(ctx, time.Now()); err != nil {
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
			lease, err := request(ctx, &f.cluster, func(ctx context.Context) (*clientv3.LeaseTimeToLiveResponse, error) {
				return f.client.TimeToLive(ctx, clientv3.LeaseID(id))
			})
			if err != nil {
				return err
			}
			// TTL is rounded down, and -1 for a lease that has ended. Where
			// etcd is there it ends the lease itself, so nobody loses the
			// second that is rounded off.
			left[i] = time.Duration(lease.TTL+1) * time.Second
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
