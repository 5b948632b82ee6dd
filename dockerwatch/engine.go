package dockerwatch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/client"

	"github.com/nftfw/nftfw/pkg/sockets"
)

// Error says what was asked of which engine when it failed, and what the
// operator can do about it where that is known.
type Error struct {
	Op     string // what was being done, e.g. "list containers"
	Host   string
	Remedy string // "" where there is none to offer
	Err    error
}

// Error returns one line.
func (e *Error) Error() string {
	s := fmt.Sprintf("%s of %s: %s", e.Op, e.Host, strings.ReplaceAll(e.Err.Error(), "\n", " "))
	if e.Remedy != "" {
		s += " (" + e.Remedy + ")"
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// engine is one connection to an engine. Every request has a timeout.
type engine struct {
	cli     *client.Client
	host    string
	timeout time.Duration
	// noNAT6 is set by greet: see withoutNAT6.
	noNAT6 bool
	// release is set by greet to that of a Docker engine; 0 where it does not tell.
	release int
	// podman is set by greet where the engine is Podman, which speaks Docker's API
	// and differs in what it leaves out; else nil.
	podman *podman
	// dialErr is why the socket could not be opened last. The client keeps
	// that to itself.
	dialErr *atomic.Pointer[error]
}

// dial prepares a connection; the first request opens it. The API version is
// negotiated anew each time, because the engine may be another after a restart.
func dial(o Options) (*engine, error) {
	e := &engine{host: o.Host, timeout: o.Timeout, dialErr: new(atomic.Pointer[error])}
	var opts []client.Opt
	path, local := strings.CutPrefix(o.Host, "unix://")
	activation := sockets.NewActivation(path)
	if !local {
		opts = append(opts, client.WithTLSClientConfigFromEnv())
	}
	opts = append(opts, client.WithHost(o.Host), client.WithAPIVersionNegotiation())
	if local {
		opts = append(opts, client.WithDialContext(func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := dialUnix(ctx, path, activation)
			if err != nil {
				e.dialErr.Store(&err)
			}
			return conn, err
		}))
	}
	cli, err := client.NewClientWithOpts(opts...)
	if err != nil {
		return nil, fmt.Errorf("engine address %q: %w", o.Host, err)
	}
	e.cli = cli
	return e, nil
}

func (e *engine) close() { _ = e.cli.Close() } // closes idle connections, never fails

// fail makes an Error of what the client reports.
func (e *engine) fail(op string, err error) error {
	if err == nil {
		return nil
	}
	out := &Error{Op: op, Host: e.host, Err: err}
	if cause := e.dialErr.Load(); cause != nil && (client.IsErrConnectionFailed(err) || errors.Is(err, *cause)) {
		out.Err = *cause
	}
	switch {
	case errors.Is(out.Err, errStopped):
		out.Remedy = "systemctl start docker: systemd would do so at the first question, and nftfw asks none"
	case errors.Is(out.Err, fs.ErrPermission):
		out.Remedy = "run as root, or as a member of the socket's group"
	case errors.Is(out.Err, fs.ErrNotExist):
		out.Remedy = "start docker, or name its socket with --docker-host; on a host without Docker, `nftfw run --no-docker`"
	case errors.Is(out.Err, syscall.ECONNREFUSED):
		out.Remedy = "start docker: nobody answers at its socket"
	case errors.Is(out.Err, context.DeadlineExceeded):
		out.Remedy = "the engine does not answer; see journalctl -u docker"
	}
	return out
}

// Headers that Docker puts on every answer, see moby's
// daemon/server/middleware/version.go. Those of a ping are in the reference of
// its API under SystemPing.
const (
	headerServer       = "Server" // Docker/VERSION (OS)
	headerAPIVersion   = "Api-Version"
	headerExperimental = "Docker-Experimental"
)

// errStopped is the answer for an engine that somebody stopped, or is stopping, while
// systemd listens at its socket.
var errStopped = errors.New("the engine is stopped")

// dialUnix connects to an engine's socket, unless that would start an engine that
// somebody stopped, as docker.socket does: if not at once then when the engine, which
// first gives up its socket, has ended. Podman's containers run without the service
// behind podman.socket: it is there to be started.
func dialUnix(ctx context.Context, path string, activation *sockets.Activation) (net.Conn, error) {
	if filepath.Base(path) != podmanSocket && activation.Starts() {
		return nil, errStopped
	}
	var d net.Dialer
	return d.DialContext(ctx, "unix", path)
}

// greet returns the engine's version, and learns from it what the engine does
// to IPv6, and whether it is Podman. It is the first to be called.
//
// Docker says so with its answer to a ping. Its answer to the question for the
// version takes longer than a list of what runs, for it runs other programs.
func (e *engine) greet(ctx context.Context) (version string, err error) {
	const op = "ask for the version"
	ctx, cancel := context.WithTimeout(ctx, e.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.url("/_ping"), nil)
	if err != nil {
		return "", e.fail(op, err)
	}
	resp, err := e.cli.HTTPClient().Do(req)
	if err != nil {
		return "", e.fail(op, err)
	}
	_ = resp.Body.Close() // says OK
	e.podman = nil
	version, docker := strings.CutPrefix(resp.Header.Get(headerServer), "Docker/")
	if docker {
		e.cli.NegotiateAPIVersionPing(types.Ping{APIVersion: resp.Header.Get(headerAPIVersion)})
		version, _, _ = strings.Cut(version, " ")
		e.noNAT6 = withoutNAT6(version, resp.Header.Get(headerExperimental) == "true")
		e.release = release(version)
		return version, nil
	}
	v, err := e.cli.ServerVersion(ctx)
	e.noNAT6 = err == nil && isEngine(v, "Engine") && withoutNAT6(v.Version, v.Experimental)
	e.release = 0
	if err == nil && isEngine(v, "Engine") {
		e.release = release(v.Version)
	}
	if isEngine(v, "Podman Engine") {
		e.podman = &podman{networks: map[string]string{}, configs: map[string]podmanConfig{}}
	}
	return v.Version, e.fail(op, err)
}

// isEngine reports whether an answer to the question for the version is that of
// an engine of this name. Others that speak this API number their versions in
// their own way.
func isEngine(v types.Version, name string) bool {
	return slices.ContainsFunc(v.Components, func(c types.ComponentVersion) bool { return c.Name == name })
}

// stream is a running subscription. errs yields once, when it is over.
type stream struct {
	messages <-chan events.Message
	errs     <-chan error
	stop     context.CancelFunc
}

// events subscribes and returns once the engine has begun to answer, so that
// whatever is listed afterwards misses nothing. The caller stops the stream.
func (e *engine) events(ctx context.Context) (stream, error) {
	ctx, cancel := context.WithCancel(ctx)
	late := time.AfterFunc(e.timeout, cancel)
	messages, errs := e.cli.Events(ctx, events.ListOptions{Filters: filters.NewArgs(
		filters.Arg("type", string(events.ContainerEventType)),
		filters.Arg("type", string(events.NetworkEventType)),
		filters.Arg("type", string(events.NodeEventType)),
		filters.Arg("type", string(events.ServiceEventType)),
	)})
	if !late.Stop() {
		cancel()
		return stream{}, e.fail("subscribe to events", context.DeadlineExceeded)
	}
	return stream{messages: messages, errs: errs, stop: cancel}, nil
}

// containers is containersOf without those that do not run.
func (e *engine) containers(ctx context.Context, ids []string) (list []container.Summary, skipped error, err error) {
	return e.containersOf(ctx, ids, false)
}

// containersOf lists the running containers among ids, or all of them where ids
// is empty; with stopped also those that do not run. skipped describes a value
// of the wrong type, which was left out.
func (e *engine) containersOf(ctx context.Context, ids []string, stopped bool) (list []container.Summary, skipped error, err error) {
	const op = "list containers"
	ctx, cancel := context.WithTimeout(ctx, e.timeout)
	defer cancel()
	o := container.ListOptions{All: stopped}
	if len(ids) > 0 {
		o.Filters = filters.NewArgs()
		for _, id := range ids {
			o.Filters.Add("id", id)
		}
	}
	list, err = e.cli.ContainerList(ctx, o)
	if skipped = tolerable(err); skipped != nil {
		err = nil
	}
	if err == nil && list == nil {
		err = errNoList
	}
	return list, skipped, e.fail(op, err)
}

// errNoList is an answer that is valid JSON and no list: not the same as a list
// that is empty.
var errNoList = errors.New("the answer is not a list")

// tolerable returns err if it means that a single field somewhere in a list has
// a value of the wrong type. The decoder leaves such a field empty and reads the
// rest, and an empty field opens nothing.
func tolerable(err error) error {
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) && wrong.Field != "" {
		return err
	}
	return nil
}

func (e *engine) networks(ctx context.Context) (list []network.Summary, skipped error, err error) {
	ctx, cancel := context.WithTimeout(ctx, e.timeout)
	defer cancel()
	if e.podman != nil {
		list, err = e.listPodmanNetworks(ctx)
		return list, nil, e.fail("list networks", err)
	}
	list, err = e.cli.NetworkList(ctx, network.ListOptions{})
	if skipped = tolerable(err); skipped != nil {
		err = nil
	}
	if err == nil && list == nil {
		err = errNoList
	}
	return list, skipped, e.fail("list networks", err)
}

// attached returns the endpoints on a network by container; nil where there is
// no such network any more. Unlike the list of containers, and the inspection
// of one, it answers about a container while it is being started.
func (e *engine) attached(ctx context.Context, id string) (map[string]network.EndpointResource, error) {
	n, err := e.inspectNetwork(ctx, id)
	return n.Containers, err
}

// inspectNetwork returns what the engine says of a network; the zero Inspect
// where there is no such network any more.
func (e *engine) inspectNetwork(ctx context.Context, id string) (network.Inspect, error) {
	ctx, cancel := context.WithTimeout(ctx, e.timeout)
	defer cancel()
	n, err := e.cli.NetworkInspect(ctx, id, network.InspectOptions{})
	if errdefs.IsNotFound(err) {
		return network.Inspect{}, nil
	}
	if tolerable(err) != nil {
		err = nil
	}
	return n, e.fail("inspect network "+id, err)
}

// imageLabels returns the labels that the image carries.
func (e *engine) imageLabels(ctx context.Context, id string) (map[string]string, error) {
	img, err := e.cli.ImageInspect(ctx, id)
	if err != nil {
		return nil, e.fail("inspect image "+id, err)
	}
	// Every image has a RootFS. Without one the Config, too, is only what engines make
	// up for content that is gone: see ImageInspect in moby's daemon/containerd.
	if img.Config == nil || img.RootFS.Type == "" {
		return nil, e.fail("inspect image "+id, errors.New("the answer has no Config or no RootFS"))
	}
	return img.Config.Labels, nil
}

// imageName returns the image of a container as its operator wrote it. The engine
// answers only when it is done starting or stopping that container.
func (e *engine) imageName(ctx context.Context, id string) (name string, err error) {
	err = e.inspect(ctx, id, func(c container.InspectResponse) error {
		if c.Config == nil {
			return errors.New("the answer has no Config")
		}
		name = c.Config.Image
		return nil
	})
	return name, err
}

// inspect asks about one container and calls take with the answer. An error of take's
// is one of the answer.
func (e *engine) inspect(ctx context.Context, id string, take func(container.InspectResponse) error) error {
	ctx, cancel := context.WithTimeout(ctx, e.timeout)
	defer cancel()
	c, err := e.cli.ContainerInspect(ctx, id)
	if err == nil {
		err = take(c)
	}
	return e.fail("inspect container "+id, err)
}

// sandbox returns the path of a container's network namespace. The engine
// answers only when it is done starting or stopping that container.
func (e *engine) sandbox(ctx context.Context, id string) (path string, err error) {
	err = e.inspect(ctx, id, func(c container.InspectResponse) error {
		if c.NetworkSettings == nil || !filepath.IsAbs(c.NetworkSettings.SandboxKey) {
			return errors.New("the answer has no SandboxKey")
		}
		path = filepath.Clean(c.NetworkSettings.SandboxKey)
		return nil
	})
	return path, err
}
