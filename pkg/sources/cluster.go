package sources

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/nftfw/nftfw/pkg/sources/etcdpb"
	"github.com/nftfw/nftfw/pkg/sources/spec"
)

const (
	// etcdTimeout bounds one request to etcd, however many members it takes. It
	// is also how often it is found out whether etcd answers: a watch that hears
	// nothing does not say whether there is nothing to hear.
	etcdTimeout = 3 * time.Second
	// etcdKeepAlive is how often a silent connection is probed; servers drop
	// clients that do so more often than every 5 s (--grpc-keepalive-min-time).
	etcdKeepAlive = 10 * time.Second
	// nextMember is how long a member has to take a connection before the next
	// is tried beside it.
	nextMember = 250 * time.Millisecond
	// againFirst and againMost bound the pause before a request that failed on
	// its way is made again.
	againFirst = 50 * time.Millisecond
	againMost  = time.Second
)

// cluster is a client of etcd. It speaks gRPC with one member at a time, and
// goes over to another where that one fails. It is safe for concurrent use once
// dial has returned.
type cluster struct {
	spec    spec.Etcd
	timeout time.Duration // of one request

	tls      *tls.Config
	password string // of spec.User

	connecting, loggingIn chan struct{} // hold one token each: the turn

	mu     sync.Mutex
	order  []string    // endpoints as they are tried: those that failed come last
	at     *memberConn // nil: none
	token  string      // "": not logged in
	closed bool
	seen   *etcdpb.ResponseHeader // of the newest state of the store that was answered
}

func (r Reader) etcdTimeout() time.Duration {
	if r.Timeout > 0 {
		return r.Timeout
	}
	return etcdTimeout
}

// dial reads the files that c needs and logs in where there is a user. Requests
// connect by themselves.
func (c *cluster) dial(ctx context.Context) error {
	var err error
	if c.tls, err = tlsConfig(c.spec.TLS); err != nil {
		return err
	}
	c.tls.NextProtos = []string{"h2"}
	c.connecting, c.loggingIn = make(chan struct{}, 1), make(chan struct{}, 1)
	// Hosts of a fleet that begin at different members share them out.
	c.order = slices.Clone(c.spec.Endpoints)
	rand.Shuffle(len(c.order), func(i, j int) { c.order[i], c.order[j] = c.order[j], c.order[i] })
	if c.spec.User == "" {
		return nil
	}
	if c.password, err = readSecret(c.spec.PasswordFile); err != nil {
		return err
	}
	if err := c.login(ctx, ""); err != nil {
		c.close()
		return fmt.Errorf("connect to etcd: %w", err)
	}
	return nil
}

// close ends the connection.
func (c *cluster) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.at != nil {
		c.at.close()
	}
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

// memberConn is a connection to one member.
type memberConn struct {
	endpoint string
	conn     *http.ClientConn
}

// Do makes a request over the connection.
func (m *memberConn) Do(req *http.Request) (*http.Response, error) { return m.conn.RoundTrip(req) }

// close ends the connection and all that is under way on it.
func (m *memberConn) close() { _ = m.conn.Close() }

// connectTo connects to a member and waits until it has said something: the
// kernel takes connections for a process that hangs, and what a server thinks
// of our certificate comes after the handshake.
func (c *cluster) connectTo(ctx context.Context, endpoint string) (*memberConn, error) {
	u, err := url.Parse(endpoint)
	if err != nil {
		return nil, err
	}
	named := func(err error) error {
		if u.Scheme == "https" {
			return fmt.Errorf("%s: %w", endpoint, err)
		}
		return err // has the address
	}
	first := make(chan error, 1)
	protocols := &http.Protocols{}
	protocols.SetUnencryptedHTTP2(true) // TLS, if any, is ours: see below
	transport := &http.Transport{
		Protocols: protocols,
		HTTP2:     &http.HTTP2Config{SendPingTimeout: etcdKeepAlive, PingTimeout: c.timeout},
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			var conn net.Conn
			var err error
			if u.Scheme == "https" {
				conn, err = (&tls.Dialer{Config: c.tls}).DialContext(ctx, network, address)
			} else {
				conn, err = new(net.Dialer).DialContext(ctx, network, address)
			}
			if err != nil {
				return nil, err
			}
			return &listened{Conn: conn, first: first}, nil
		},
	}
	conn, err := transport.NewClientConn(ctx, "http", u.Host)
	if err != nil {
		return nil, named(err)
	}
	m := &memberConn{endpoint: endpoint, conn: conn}
	select {
	case err = <-first:
	case <-ctx.Done():
		err = c.noAnswer()
	}
	if err != nil {
		m.close()
		return nil, fmt.Errorf("%s: %w", endpoint, err)
	}
	return m, nil
}

// listened is a connection that tells how its first read went.
type listened struct {
	net.Conn
	first chan<- error
	told  bool
}

// Read reads from the connection. One goroutine does that.
func (l *listened) Read(b []byte) (int, error) {
	n, err := l.Conn.Read(b)
	if !l.told && (n > 0 || err != nil) {
		l.told = true
		if n > 0 {
			l.first <- nil
		} else {
			l.first <- err
		}
	}
	return n, err
}

func (c *cluster) noAnswer() error {
	return fmt.Errorf("no answer within %s: %w", c.timeout, context.DeadlineExceeded)
}

// member gives the member that is spoken with, and connects to one if there is
// none. Why others could not be connected to goes into causes.
func (c *cluster) member(ctx context.Context, causes causes) (*memberConn, error) {
	if !take(ctx, c.connecting) {
		return nil, ctx.Err()
	}
	defer leave(c.connecting)
	c.mu.Lock()
	m, order := c.at, slices.Clone(c.order)
	c.mu.Unlock()
	if m != nil {
		if m.conn.Err() == nil {
			return m, nil
		}
		m.close()
	}
	m, err := c.connectToAny(ctx, order, causes)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		m.close()
		return nil, context.Canceled
	}
	c.at = m
	return m, nil
}

// take waits for a turn, and reports whether it came.
func take(ctx context.Context, turn chan struct{}) bool {
	select {
	case turn <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

// leave gives a turn back.
func leave(turn chan struct{}) { <-turn }

// connectToAny connects to the first member in order that lets it. One that
// says nothing for a while is not waited for: the next is tried beside it.
func (c *cluster) connectToAny(ctx context.Context, order []string, causes causes) (*memberConn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		*memberConn
		endpoint string
		err      error
	}
	results := make(chan result, len(order))
	begun, failed := 0, 0
	var last error
	for failed < len(order) {
		var next <-chan time.Time
		if begun < len(order) {
			endpoint := order[begun]
			begun++
			go func() {
				m, err := c.connectTo(ctx, endpoint)
				results <- result{m, endpoint, err}
			}()
			next = time.After(nextMember)
		}
		select {
		case r := <-results:
			if r.err != nil {
				failed++
				last = r.err
				causes[r.endpoint] = r.err
				c.putLast(r.endpoint)
				continue
			}
			others := begun - failed - 1
			go func() {
				for range others {
					if r := <-results; r.err == nil {
						r.close()
					}
				}
			}()
			return r.memberConn, nil
		case <-next:
		}
	}
	return nil, last
}

// putLast lets all other members be tried before this one.
func (c *cluster) putLast(endpoint string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := slices.Index(c.order, endpoint); i >= 0 {
		c.order = append(slices.Delete(c.order, i, i+1), endpoint)
	}
}

// giveUp ends the connection to a member that failed, and with it what others
// have under way there: they go over to another member as well.
func (c *cluster) giveUp(m *memberConn) {
	m.close()
	c.putLast(m.endpoint)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.at == m {
		c.at = nil
	}
}

// causes says why a request failed, by endpoint.
type causes map[string]error

// explain makes one error of the causes for which nothing came within the time.
func (c *cluster) explain(causes causes) error {
	var list []error
	for _, endpoint := range c.spec.Endpoints {
		if err := causes[endpoint]; err != nil && !slices.Contains(list, err) {
			list = append(list, err)
		}
	}
	if len(list) == 0 {
		return c.noAnswer()
	}
	return together(list)
}

// answerError is an error that etcd answered.
type answerError struct {
	code connect.Code
	text string
}

// Error gives etcd's words.
func (e *answerError) Error() string { return e.text }

// plain gives an error without what connect puts around it.
func plain(err error) error {
	var wrapped *connect.Error
	switch {
	case !errors.As(err, &wrapped):
		return err
	case connect.IsWireError(err):
		return &answerError{wrapped.Code(), wrapped.Message()}
	case wrapped.Code() == connect.CodeResourceExhausted: // longer than maxBody
		return &answerError{wrapped.Code(), wrapped.Message()}
	case wrapped.Unwrap() != nil:
		return wrapped.Unwrap()
	}
	return err
}

// The answers of etcd that are told from others (api/v3rpc/rpctypes).
const (
	textNoLeader     = "etcdserver: no leader"
	textInvalidToken = "etcdserver: invalid auth token"
	textOldRevision  = "etcdserver: revision of auth store is old"
	textUserEmpty    = "etcdserver: user name is empty"
	textAuthOff      = "etcdserver: authentication is not enabled"
	textLearner      = "etcdserver: rpc not supported for learner"
)

// tokenIsStale tells whether an answer asks to log in anew. Nothing was done
// then.
func (c *cluster) tokenIsStale(err error) bool {
	var answer *answerError
	if !errors.As(err, &answer) {
		return false
	}
	switch answer.text {
	case textInvalidToken, textOldRevision:
		return true
	case textUserEmpty:
		return c.spec.User != ""
	}
	return false
}

// passes tells whether another member, or the same one a little later, may
// answer where one failed with err.
func passes(err error) bool {
	var answer *answerError
	if !errors.As(err, &answer) {
		return true // something on the way
	}
	return answer.code == connect.CodeUnavailable || answer.code == connect.CodeDeadlineExceeded || answer.text == textLearner
}

// unary is a procedure of one question and one answer.
type unary[In, Out any] struct {
	path string
	// once says that it changes something and must not be done twice: it is
	// repeated only if it certainly was not done.
	once bool
	// anonymous says that it is for those who have not logged in.
	anonymous bool
}

// The procedures of etcd that are used.
var (
	getRange     = unary[etcdpb.RangeRequest, etcdpb.RangeResponse]{path: "/etcdserverpb.KV/Range"}
	transact     = unary[etcdpb.TxnRequest, etcdpb.TxnResponse]{path: "/etcdserverpb.KV/Txn", once: true}
	timeToLive   = unary[etcdpb.LeaseTimeToLiveRequest, etcdpb.LeaseTimeToLiveResponse]{path: "/etcdserverpb.Lease/LeaseTimeToLive"}
	authenticate = unary[etcdpb.AuthenticateRequest, etcdpb.AuthenticateResponse]{path: "/etcdserverpb.Auth/Authenticate", anonymous: true}
	// A lease that was granted twice ends by itself, unused.
	grantLease = unary[etcdpb.LeaseGrantRequest, etcdpb.LeaseGrantResponse]{path: "/etcdserverpb.Lease/LeaseGrant"}
)

// do asks within the time of one request. What fails on the way is asked of
// another member, or of the same one again, for as long as there is time.
func (u unary[In, Out]) do(ctx context.Context, c *cluster, in *In) (*Out, error) {
	limited, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	causes := causes{}
	for wait := time.Duration(0); ; wait = again(wait) {
		m, err := c.member(limited, causes)
		if err == nil {
			token := ""
			if !u.anonymous { // etcd refuses a stale token also here
				token = c.currentToken()
			}
			var out *connect.Response[Out]
			if out, err = newClient[In, Out](m, u.path).CallUnary(limited, newRequest(in, token)); err == nil {
				return out.Msg, nil
			}
			err = plain(err)
			switch {
			case ctx.Err() != nil: // nothing is wrong with the member
			case !u.anonymous && c.tokenIsStale(err):
				causes[m.endpoint] = err
				if !sleep(limited, wait) {
					return nil, c.explain(causes)
				}
				if err := c.login(limited, token); err != nil {
					return nil, err
				}
				continue // before it is stale again
			case passes(err):
				c.giveUp(m)
				if limited.Err() != nil {
					err = c.noAnswer()
				}
				causes[m.endpoint] = fmt.Errorf("%s: %w", m.endpoint, err)
				if u.once {
					return nil, causes[m.endpoint]
				}
			default:
				return nil, err
			}
		}
		if !sleep(limited, wait) {
			if errors.Is(ctx.Err(), context.Canceled) {
				return nil, ctx.Err()
			}
			return nil, c.explain(causes)
		}
	}
}

// again gives the pause after one of wait. The first is none: there may be
// another member.
func again(wait time.Duration) time.Duration { return min(max(2*wait, againFirst), againMost) }

// newClient makes a client of a procedure of a member.
func newClient[In, Out any](m *memberConn, path string) *connect.Client[In, Out] {
	return connect.NewClient[In, Out](m, m.endpoint+path,
		connect.WithGRPC(), connect.WithReadMaxBytes(maxBody), connect.WithAcceptCompression("gzip", nil, nil))
}

// newRequest makes a request that a member without a leader refuses.
func newRequest[In any](in *In, token string) *connect.Request[In] {
	req := connect.NewRequest(in)
	req.Header().Set("Hasleader", "true")
	if token != "" {
		req.Header().Set("Token", token)
	}
	return req
}

func (c *cluster) currentToken() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.token
}

// login asks for a token in place of one that is stale, unless somebody has
// done so meanwhile. Without a user there is nothing to do: certificates name
// users, too.
func (c *cluster) login(ctx context.Context, stale string) error {
	if c.spec.User == "" {
		return nil
	}
	if !take(ctx, c.loggingIn) {
		return c.noAnswer()
	}
	defer leave(c.loggingIn)
	if c.currentToken() != stale {
		return nil
	}
	out, err := authenticate.do(ctx, c, &etcdpb.AuthenticateRequest{Name: c.spec.User, Password: c.password})
	var answer *answerError
	if err != nil && !(errors.As(err, &answer) && answer.text == textAuthOff) {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.token = out.GetToken()
	return nil
}

// prefixEnd is the first key behind those that begin with prefix, which ends
// with a slash (package policy sees to that).
func prefixEnd(prefix string) []byte {
	end := []byte(prefix)
	end[len(end)-1]++
	return end
}

// read reads the keys under the prefix as they are at one revision, which it
// returns, in pages.
func (c *cluster) read(ctx context.Context, keysOnly bool, each func(*etcdpb.KeyValue)) (revision int64, err error) {
	in := &etcdpb.RangeRequest{Key: []byte(c.spec.Prefix), RangeEnd: prefixEnd(c.spec.Prefix), Limit: etcdPage, KeysOnly: keysOnly}
	for {
		page, err := c.question(ctx, in)
		if err != nil {
			return 0, err
		}
		if in.Revision == 0 {
			in.Revision = page.GetHeader().GetRevision()
		}
		for _, kv := range page.GetKvs() {
			each(kv)
		}
		if !page.GetMore() || len(page.GetKvs()) == 0 {
			return in.GetRevision(), nil
		}
		in.Key = append(page.GetKvs()[len(page.GetKvs())-1].GetKey(), 0)
	}
}

// answers asks a question that only a cluster with a majority answers.
func (c *cluster) answers(ctx context.Context) error {
	_, err := c.question(ctx, &etcdpb.RangeRequest{Key: []byte(c.spec.Prefix), CountOnly: true})
	return err
}

// question asks about the store. The error is an errReload where it is another
// store than was seen before, or an earlier state of it.
func (c *cluster) question(ctx context.Context, in *etcdpb.RangeRequest) (*etcdpb.RangeResponse, error) {
	c.mu.Lock()
	before := c.seen // no answer from now on is older
	c.mu.Unlock()
	out, err := getRange.do(ctx, c, in)
	if err != nil {
		return nil, err
	}
	now := out.GetHeader()
	c.mu.Lock()
	if now.GetRevision() > c.seen.GetRevision() {
		c.seen = now
	}
	c.mu.Unlock()
	return out, goneBack(before, now)
}

// goneBack gives an errReload where now is no later state of the store than
// before.
func goneBack(before, now *etcdpb.ResponseHeader) error {
	switch {
	case before == nil:
		return nil
	case now.GetClusterId() != before.GetClusterId():
		return fmt.Errorf("%w: another etcd cluster answers", errReload)
	case now.GetRevision() < before.GetRevision() || now.GetRaftTerm() < before.GetRaftTerm():
		return fmt.Errorf("%w: etcd went back to an earlier state", errReload)
	}
	return nil
}
