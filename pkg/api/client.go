package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"syscall"
)

// ErrNoDaemon is in the chain of the error of a call to which no daemon
// listened.
var ErrNoDaemon = errors.New("no daemon listens")

// Kind sorts failures by what the caller did wrong; the command line turns it
// into an exit status.
type Kind string

// The kinds of failures.
const (
	KindInvalid Kind = "invalid" // the request is wrong: exit status 2
	KindPolicy  Kind = "policy"  // the policy has mistakes, each FILE:LINE:COL: message with the line below it: exit status 2
	KindFailed  Kind = "failed"  // the operation failed: exit status 5
)

// Error is a failure that the daemon reports. Nothing was changed, but for a change of
// a fleet, whose message says how much of it etcd has.
type Error struct {
	Kind    Kind   `json:"kind"`
	Message string `json:"error"`
}

func (e *Error) Error() string { return e.Message }

// Invalidf makes an Error of KindInvalid.
func Invalidf(format string, args ...any) *Error {
	return &Error{Kind: KindInvalid, Message: fmt.Sprintf(format, args...)}
}

// Failedf makes an Error of KindFailed.
func Failedf(format string, args ...any) *Error {
	return &Error{Kind: KindFailed, Message: fmt.Sprintf(format, args...)}
}

// Client calls a daemon over its control socket. It may be used from several
// goroutines.
type Client struct {
	// Answered, unless it is nil, is called at each answer with the scope of the
	// daemon, all of it "" where the daemon does not tell.
	Answered func(Scope)

	socket string
	http   *http.Client
}

// NewClient makes a client for the unix socket at path. It does not connect.
func NewClient(path string) *Client {
	var d net.Dialer
	return &Client{socket: path, http: &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, // one call a command; nothing stays open behind it
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, "unix", path)
		},
	}}}
}

// Status asks how things stand.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return call[Status](ctx, c, http.MethodGet, "/v1/status", nil)
}

// Ports asks for every published port.
func (c *Client) Ports(ctx context.Context) (Ports, error) {
	return call[Ports](ctx, c, http.MethodGet, "/v1/ports", nil)
}

// Sets asks for all sets.
func (c *Client) Sets(ctx context.Context) (Sets, error) {
	return call[Sets](ctx, c, http.MethodGet, "/v1/sets", nil)
}

// Set asks for one set.
func (c *Client) Set(ctx context.Context, name string) (Set, error) {
	return call[Set](ctx, c, http.MethodGet, "/v1/sets/"+url.PathEscape(name), nil)
}

// TestSet asks whether a set holds an address.
func (c *Client) TestSet(ctx context.Context, name, addr string) (Membership, error) {
	return call[Membership](ctx, c, http.MethodGet, "/v1/sets/"+url.PathEscape(name)+"/test?address="+url.QueryEscape(addr), nil)
}

// AddToSet adds entries, or renews those that are there. It returns once they
// are on disk and in force.
func (c *Client) AddToSet(ctx context.Context, name string, change SetChange) (Change, error) {
	return call[Change](ctx, c, http.MethodPost, "/v1/sets/"+url.PathEscape(name)+"/add", change)
}

// DeleteFromSet removes runtime entries.
func (c *Client) DeleteFromSet(ctx context.Context, name string, change SetChange) (Change, error) {
	return call[Change](ctx, c, http.MethodPost, "/v1/sets/"+url.PathEscape(name)+"/del", change)
}

// AddToFleet adds entries in the set's etcd, for every host that follows it. It
// returns once they are there, and in force on the daemon's host.
func (c *Client) AddToFleet(ctx context.Context, name string, change SetChange) (Change, error) {
	return call[Change](ctx, c, http.MethodPost, "/v1/sets/"+url.PathEscape(name)+"/fleet/add", change)
}

// DeleteFromFleet removes entries from the set's etcd.
func (c *Client) DeleteFromFleet(ctx context.Context, name string, change SetChange) (Change, error) {
	return call[Change](ctx, c, http.MethodPost, "/v1/sets/"+url.PathEscape(name)+"/fleet/del", change)
}

// FlushSet removes every runtime entry.
func (c *Client) FlushSet(ctx context.Context, name string, flush Flush) (Change, error) {
	return call[Change](ctx, c, http.MethodPost, "/v1/sets/"+url.PathEscape(name)+"/flush", flush)
}

// Apply puts a policy in force.
func (c *Client) Apply(ctx context.Context, a Apply) (Change, error) {
	return call[Change](ctx, c, http.MethodPost, "/v1/apply", a)
}

// Reload has the daemon read its policy file again.
func (c *Client) Reload(ctx context.Context, reload Reload) (Change, error) {
	return call[Change](ctx, c, http.MethodPost, "/v1/reload", reload)
}

// Confirm keeps a policy for good that was applied with a deadline. Nothing is
// Changed when none waits.
func (c *Client) Confirm(ctx context.Context) (Change, error) {
	return call[Change](ctx, c, http.MethodPost, "/v1/confirm", struct{}{})
}

// Explain asks what becomes of a packet.
func (c *Client) Explain(ctx context.Context, q Question) (Explanation, error) {
	return call[Explanation](ctx, c, http.MethodPost, "/v1/explain", q)
}

// Reach asks what one source reaches.
func (c *Client) Reach(ctx context.Context, from Source) (Reach, error) {
	return call[Reach](ctx, c, http.MethodPost, "/v1/reach", from)
}

// Down removes the table until the next apply or restart.
func (c *Client) Down(ctx context.Context) (Change, error) {
	return call[Change](ctx, c, http.MethodPost, "/v1/down", struct{}{})
}

// call sends in as JSON (nil: no body) and decodes the answer.
func call[Out any](ctx context.Context, c *Client, method, path string, in any) (Out, error) {
	var out Out
	var body bytes.Buffer
	if in != nil {
		if err := json.NewEncoder(&body).Encode(in); err != nil {
			return out, fmt.Errorf("encode request %s: %w", path, err)
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://nftfw"+path, &body)
	if err != nil {
		return out, fmt.Errorf("make request %s: %w", path, err)
	}
	resp, err := c.do(req)
	if err != nil {
		return out, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return out, failureOf(resp, path)
	}
	if err := json.NewDecoder(resp.Body).Decode(&out); err != nil {
		return out, fmt.Errorf("decode answer to %s: %w", path, err)
	}
	return out, nil
}

// do sends a request, and hears who answers.
func (c *Client) do(req *http.Request) (*http.Response, error) {
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.dialError(err)
	}
	if c.Answered != nil {
		c.Answered(scopeOf(resp.Header))
	}
	return resp, nil
}

// failureOf reads the failure that the daemon answered to path.
func failureOf(resp *http.Response, path string) *Error {
	failure := &Error{Kind: KindFailed}
	if err := json.NewDecoder(resp.Body).Decode(failure); err != nil || failure.Message == "" {
		failure.Message = fmt.Sprintf("daemon answered %s to %s", resp.Status, path)
	}
	return failure
}

// dialError tells "no daemon" from "not allowed to talk to it".
func (c *Client) dialError(err error) error {
	var op *net.OpError
	switch {
	case errors.Is(err, fs.ErrPermission):
		return &Error{Kind: KindFailed, Message: fmt.Sprintf("not allowed to open %s: run as root, or join the group nftfw", c.socket)}
	case errors.As(err, &op) && op.Op == "dial" && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)):
		return fmt.Errorf("%w on %s: start it with `systemctl start nftfw` or `nftfw run`", ErrNoDaemon, c.socket)
	default:
		return fmt.Errorf("call daemon on %s: %w", c.socket, err)
	}
}
