package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"time"

	"github.com/nftfw/nftfw/nft"
	"github.com/nftfw/nftfw/pkg/api"
)

// SocketGroup is the group whose members may talk to the daemon besides root.
const SocketGroup = "nftfw"

// Limits of the control socket.
const (
	maxRequest     = 256 << 20 // bytes; a million entries are about 40 MB
	maxHeader      = 16 << 10  // bytes
	maxConnections = 256
	headerTimeout  = 5 * time.Second
	bodyTimeout    = time.Minute      // for a request's body
	answerTimeout  = time.Minute      // for a caller to take an answer
	idleTimeout    = 10 * time.Second // between two requests
	socketMode     = 0o660
)

// listen opens the control socket, in place of one that a dead daemon left:
// the state's lock says that there is no live one.
func listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make folder of control socket: %w", err)
	}
	if err := removeSocket(path); err != nil {
		return nil, fmt.Errorf("remove old control socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("open control socket: %w", err)
	}
	if err := protect(path); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("protect control socket: %w", err)
	}
	return l, nil
}

// removeSocket removes what a dead daemon left at path, and nothing but a
// socket.
func removeSocket(path string) error {
	switch info, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is no socket: move it away or choose another with --socket", path)
	}
	return os.Remove(path)
}

// protect lets root and the group in, where there is such a group.
func protect(path string) error {
	if g, err := user.LookupGroup(SocketGroup); err == nil {
		gid, err := strconv.Atoi(g.Gid)
		if err != nil {
			return err
		}
		if err := os.Chown(path, -1, gid); err != nil {
			return err
		}
	}
	return os.Chmod(path, socketMode)
}

// serve answers the control socket until ctx is done.
func (d *Daemon) serve(ctx context.Context) error {
	group, err := socketGroup(d.listener.Addr().String())
	if err != nil {
		return fmt.Errorf("serve control socket: %w", err)
	}
	connections := bounded{most: maxConnections}
	server := &http.Server{
		Handler:           onlyPeers(d.signed(d.routes())),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return identify(ctx, c, group) },
		ConnState:         connections.state,
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if server.Shutdown(last) != nil {
			_ = server.Close() // whoever is still there waits for nothing
		}
	})
	err = server.Serve(d.listener)
	if !stop() {
		<-stopped
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve control socket: %w", err)
}

// signed has every answer say what the daemon takes care of.
func (d *Daemon) signed(next http.Handler) http.Handler {
	cfg := d.core.cfg
	scope := api.NewScope(cfg.PolicyPath, cfg.StateDir, cfg.Table)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		scope.Sign(w.Header())
		next.ServeHTTP(w, r)
	})
}

func (d *Daemon) routes() http.Handler {
	c := d.core
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", answer(d, func(context.Context, *http.Request) (api.Status, error) { return d.status(), nil }))
	mux.HandleFunc("GET /v1/ports", func(w http.ResponseWriter, r *http.Request) {
		out, err := d.ports(r.Context())
		reply(w, out, err)
	})
	mux.HandleFunc("GET /v1/watch", d.watch)
	mux.HandleFunc("GET /v1/sets", answer(d, func(context.Context, *http.Request) (api.Sets, error) { return c.listSets(), nil }))
	mux.HandleFunc("GET /v1/sets/{name}", answer(d, func(_ context.Context, r *http.Request) (api.Set, error) {
		return c.showSet(r.PathValue("name"))
	}))
	mux.HandleFunc("GET /v1/sets/{name}/test", answer(d, func(_ context.Context, r *http.Request) (api.Membership, error) {
		return c.testSet(r.PathValue("name"), r.URL.Query().Get("address"))
	}))
	mux.HandleFunc("POST /v1/sets/{name}/add", change(d, func(ctx context.Context, r *http.Request, in api.SetChange) (api.Change, error) {
		out, err := c.addToSet(ctx, r.PathValue("name"), in)
		return d.noted(out, err, "entries added", r.PathValue("name"), in.Entries)
	}))
	mux.HandleFunc("POST /v1/sets/{name}/del", change(d, func(ctx context.Context, r *http.Request, in api.SetChange) (api.Change, error) {
		out, err := c.deleteFromSet(ctx, r.PathValue("name"), in)
		return d.noted(out, err, "entries deleted", r.PathValue("name"), in.Entries)
	}))
	mux.HandleFunc("POST /v1/sets/{name}/fleet/add", beside(func(ctx context.Context, r *http.Request, in api.SetChange) (api.Change, error) {
		return d.changeFleet(ctx, r.PathValue("name"), in, putInFleet)
	}))
	mux.HandleFunc("POST /v1/sets/{name}/fleet/del", beside(func(ctx context.Context, r *http.Request, in api.SetChange) (api.Change, error) {
		return d.changeFleet(ctx, r.PathValue("name"), in, deleteFromFleet)
	}))
	mux.HandleFunc("POST /v1/sets/{name}/flush", change(d, func(ctx context.Context, r *http.Request, in api.Flush) (api.Change, error) {
		out, err := c.flushSet(ctx, r.PathValue("name"), in)
		return d.noted(out, err, "set flushed", r.PathValue("name"), nil)
	}))
	mux.HandleFunc("POST /v1/apply", change(d, func(ctx context.Context, _ *http.Request, in api.Apply) (api.Change, error) { return c.apply(ctx, in) }))
	mux.HandleFunc("POST /v1/reload", change(d, func(ctx context.Context, _ *http.Request, in api.Reload) (api.Change, error) {
		return c.reload(ctx, in.Force)
	}))
	mux.HandleFunc("POST /v1/confirm", change(d, func(context.Context, *http.Request, struct{}) (api.Change, error) { return c.confirm() }))
	mux.HandleFunc("POST /v1/reach", change(d, func(_ context.Context, _ *http.Request, in api.Source) (api.Reach, error) {
		return c.reach(in, c.table)
	}))
	mux.HandleFunc("POST /v1/explain", change(d, func(_ context.Context, _ *http.Request, in api.Question) (api.Explanation, error) {
		return c.explain(in)
	}))
	mux.HandleFunc("POST /v1/down", change(d, func(ctx context.Context, _ *http.Request, _ struct{}) (api.Change, error) { return c.stop(ctx) }))
	return mux
}

// noted logs a change of a set that somebody asked for, unless it failed: then that is
// for him to hear. It gives out and err back.
func (d *Daemon) noted(out api.Change, err error, what, set string, entries []string) (api.Change, error) {
	about := []any{"set", set}
	switch len(entries) {
	case 0:
	case 1:
		about = append(about, "entry", entries[0])
	default:
		about = append(about, "entries", len(entries))
	}
	if err == nil {
		d.log.Info(what, about...)
	}
	return out, err
}

// change makes a handler of an operation that takes a JSON body.
func change[In, Out any](d *Daemon, f func(context.Context, *http.Request, In) (Out, error)) http.HandlerFunc {
	return limited(d, maxRequest, f)
}

// limited is change with a limit on the body, in bytes.
func limited[In, Out any](d *Daemon, limit int64, f func(context.Context, *http.Request, In) (Out, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var in In
		if err := decode(w, r, limit, &in); err != nil {
			reply(w, nil, err)
			return
		}
		answer(d, func(ctx context.Context, r *http.Request) (Out, error) { return f(ctx, r, in) })(w, r)
	}
}

// decode reads the body of a request, of limit bytes at the most and to its end.
func decode(w http.ResponseWriter, r *http.Request, limit int64, into any) error {
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, limit))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return api.Invalidf("request: %v", err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return api.Invalidf("request: something follows after its end")
	}
	// The operation may take longer than the body had.
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) // fails as the next read does
	return nil
}

// beside makes a handler of an operation that takes a JSON body and does not
// run on the daemon's loop: it waits for others.
func beside[In, Out any](f func(context.Context, *http.Request, In) (Out, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var in In
		if err := decode(w, r, maxRequest, &in); err != nil {
			reply(w, nil, err)
			return
		}
		out, err := f(r.Context(), r, in)
		reply(w, out, err)
	}
}

// answer makes a handler of an operation that runs on the daemon's loop.
func answer[Out any](d *Daemon, f func(context.Context, *http.Request) (Out, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var (
			out Out
			err error

			unjudged error
		)
		stopped := d.do(r.Context(), func(ctx context.Context) {
			out, err = f(ctx, r)
			unjudged = d.core.unjudged()
		})
		if stopped != nil {
			err = stopped
		}
		if _, changes := any(out).(api.Change); err == nil && changes {
			warn(&out, errors.Join(d.awaitWithdrawal(r.Context()), unjudged))
		}
		reply(w, out, err)
	}
}

func reply(w http.ResponseWriter, out any, err error) {
	hasten(w)
	w.Header().Set("Content-Type", "application/json")
	if err == nil {
		_ = json.NewEncoder(w).Encode(out) // the caller has gone if this fails
		return
	}
	failure := asAPIError(err)
	status := http.StatusInternalServerError
	if failure.Kind != api.KindFailed {
		status = http.StatusBadRequest
	}
	replyError(w, status, failure)
}

func replyError(w http.ResponseWriter, status int, failure *api.Error) {
	hasten(w)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(failure)
}

// hasten gives the caller some time to take an answer.
func hasten(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(answerTimeout)) // fails as the write does
}

// asAPIError gives err the form in which it crosses the socket.
func asAPIError(err error) *api.Error {
	var failure *api.Error
	if errors.As(err, &failure) {
		return failure
	}
	return api.Failedf("%v", err)
}

// ports lists the ports on the loop, and counts beside it.
func (d *Daemon) ports(ctx context.Context) (api.Ports, error) {
	var ports countedPorts
	if err := d.do(ctx, func(context.Context) { ports = d.core.ports(d.core.table) }); err != nil {
		return api.Ports{}, err
	}
	return ports.count(ctx)
}

// status is the core's, with what the daemon knows besides.
func (d *Daemon) status() api.Status {
	out := d.core.status()
	out.Daemon = d.core.daemonStatus()
	out.Restores, out.Restored = d.restores, d.restored
	out.Problems = append(out.Problems, d.listSaves.problems()...)
	out.Docker.Absent = d.core.cfg.NoDocker
	if d.watcher != nil {
		docker := d.watcher.Status()
		out.Docker.Connected, out.Docker.Version, out.Docker.Error = docker.Connected, docker.Version, docker.Err
	}
	return out
}

var _ Kernel = (*nft.Kernel)(nil)
