package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// ErrNoEngine is returned where there is no dockerd to start.
var ErrNoEngine = errors.New("no dockerd on this machine")

// engineReady is how long an engine may take to answer. Alone it takes three
// seconds.
const engineReady = 90 * time.Second

// Engine is a Docker engine in the host's namespace, with folders of its own, or
// Podman, of which Major is 0.
type Engine struct {
	// Version is what dockerd calls its version, such as 20.10.24+dfsg1, and
	// Major its first number.
	Version string
	Major   int

	lab    *Lab
	dir    string
	bin    string
	flags  []string
	podman string // its network backend; "" for Docker
	log    *os.File
	cmd    *exec.Cmd
	ended  chan struct{} // closed when cmd has ended
}

// engineEnv names a folder with a dockerd and its docker-proxy, to be used
// rather than the machine's: see integration/fetch-engines.sh.
const engineEnv = "NFTFW_ENGINE"

// EngineOptions choose the engine. The zero value is the machine's dockerd as
// Debian starts it, or the one in the folder that $NFTFW_ENGINE names.
type EngineOptions struct {
	// Flags are added to those that give the engine its folders.
	Flags []string
	// BinDir is put in front of PATH; its dockerd is the one that is started.
	BinDir string
}

// Engine prepares an engine. It is not started.
func (l *Lab) Engine(o EngineOptions) (*Engine, error) {
	binDir := o.BinDir
	if binDir == "" {
		binDir = os.Getenv(engineEnv)
	}
	bin := filepath.Join(binDir, "dockerd")
	if binDir == "" {
		var err error
		if bin, err = exec.LookPath("dockerd"); err != nil {
			return nil, ErrNoEngine
		}
	}
	version, major, err := engineVersion(bin)
	if err != nil {
		return nil, err
	}
	flags := o.Flags
	if major >= 28 {
		// The machine's containerd has no image store for such an engine.
		flags = append([]string{"--feature", "containerd-snapshotter=false"}, flags...)
	}
	e, err := l.newEngine(bin, version)
	if err != nil {
		return nil, err
	}
	e.Major, e.flags = major, flags
	return e, nil
}

func (l *Lab) newEngine(bin, version string) (*Engine, error) {
	dir := filepath.Join(l.dir, "engine")
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	return &Engine{Version: version, lab: l, dir: dir, bin: bin, log: log}, nil
}

// engineVersion asks a dockerd, which need not run: "Docker version 28.5.2,
// build 3ef3c07".
func engineVersion(bin string) (version string, major int, err error) {
	out, err := run(exec.Command(bin, "--version"))
	if err != nil {
		return "", 0, err
	}
	if _, err := fmt.Sscanf(out, "Docker version %s", &version); err != nil {
		return "", 0, fmt.Errorf("version of %s: %q: %w", bin, out, err)
	}
	version = strings.TrimSuffix(version, ",")
	if _, err := fmt.Sscanf(version, "%d", &major); err != nil {
		return "", 0, fmt.Errorf("version of %s: %q: %w", bin, out, err)
	}
	return version, major, nil
}

// Host is the URL of the engine's API.
func (e *Engine) Host() string { return "unix://" + e.socket() }

func (e *Engine) socket() string { return filepath.Join(e.dir, "docker.sock") }

// Start starts the engine and waits until it answers.
func (e *Engine) Start(ctx context.Context) error {
	if err := e.Launch(ctx); err != nil {
		return err
	}
	return e.WaitReady(ctx)
}

// Sandbox is a network namespace of the engine's own, by the name that it gives
// it: "ingress_sbox" is the routing mesh's.
func (e *Engine) Sandbox(name string) Namespace {
	return PathNamespace(filepath.Join(e.dir, "exec", "netns", name))
}

// Launch starts the engine and does not wait for it.
func (e *Engine) Launch(ctx context.Context) error {
	if e.Running() {
		return errors.New("the engine runs already")
	}
	// The engine outlives the call that started it.
	ctx = context.WithoutCancel(ctx)
	start := e.dockerdCommand
	if e.podman != "" {
		start = e.podmanCommand
	}
	cmd, err := start(ctx)
	if err != nil {
		return err
	}
	cmd.Stdout, cmd.Stderr = e.log, e.log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start engine: %w", err)
	}
	e.cmd, e.ended = cmd, make(chan struct{})
	go func(ended chan struct{}) {
		// Its exit status says nothing that its log does not.
		_ = cmd.Wait()
		close(ended)
	}(e.ended)
	return nil
}

// dockerdCommand is what starts a Docker engine.
func (e *Engine) dockerdCommand(ctx context.Context) (*exec.Cmd, error) {
	args := append([]string{
		"--data-root", filepath.Join(e.dir, "data"),
		"--exec-root", filepath.Join(e.dir, "exec"),
		"--pidfile", filepath.Join(e.dir, "pid"),
		"--config-file", filepath.Join(e.dir, "daemon.json"),
		"--host", e.Host(),
	}, e.flags...)
	if err := os.WriteFile(filepath.Join(e.dir, "daemon.json"), []byte("{}\n"), 0o644); err != nil {
		return nil, err
	}
	cmd := e.lab.Host.Command(ctx, e.bin, args...)
	cmd.Env = e.lab.env("PATH=" + filepath.Dir(e.bin) + ":" + os.Getenv("PATH"))
	return cmd, nil
}

// env is the environment for processes of the lab.
func (l *Lab) env(extra ...string) []string {
	return slices.Concat(os.Environ(), []string{envMark + "=" + l.name, "DOCKER_CONFIG=" + l.dir}, extra)
}

// WaitReady waits until the engine answers.
func (e *Engine) WaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, engineReady)
	defer cancel()
	err := Poll(ctx, 20*time.Millisecond, func() error {
		if !e.Running() {
			cancel()
			return errors.New("the engine has ended")
		}
		return e.Ping(ctx)
	})
	if err != nil {
		return fmt.Errorf("wait for the engine: %w\n%s", err, e.Log())
	}
	return nil
}

// Ping asks the engine for a sign of life.
func (e *Engine) Ping(ctx context.Context) error {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", e.socket())
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/_ping", nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "OK" {
		return fmt.Errorf("ping: status %s, body %q, %w", resp.Status, body, err)
	}
	return nil
}

// Running reports whether the engine's process lives.
func (e *Engine) Running() bool {
	if e.cmd == nil {
		return false
	}
	select {
	case <-e.ended:
		return false
	default:
		return true
	}
}

// Stop asks the engine to stop and waits until it has. Containers stop with
// it, unless it has --live-restore.
func (e *Engine) Stop(ctx context.Context) error { return e.signal(ctx, syscall.SIGTERM) }

// Kill ends the engine at once, as a crash would. Containers run on.
func (e *Engine) Kill(ctx context.Context) error {
	if err := e.signal(ctx, syscall.SIGKILL); err != nil {
		return err
	}
	return e.mournContainerd(ctx)
}

// mournContainerd waits until the containerd of an engine that was killed has
// followed it, and removes its pidfile: the next engine would take a process
// that is ending, or that nobody has waited for, for one that runs.
func (e *Engine) mournContainerd(ctx context.Context) error {
	path := filepath.Join(e.dir, "exec", "containerd", "containerd.pid")
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	stat := filepath.Join("/proc", strings.TrimSpace(string(text)), "stat")
	err = Poll(ctx, 10*time.Millisecond, func() error {
		text, err := os.ReadFile(stat)
		if _, rest, _ := strings.Cut(string(text), ") "); err != nil || strings.HasPrefix(rest, "Z") {
			return nil
		}
		return errors.New("containerd lives")
	})
	return errors.Join(err, os.Remove(path))
}

func (e *Engine) signal(ctx context.Context, sig syscall.Signal) error {
	if !e.Running() {
		return nil
	}
	if err := e.cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("signal engine: %w", err)
	}
	select {
	case <-e.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the engine's end: %w", ctx.Err())
	}
}

// Log returns what the engine has logged.
func (e *Engine) Log() string {
	log, err := os.ReadFile(filepath.Join(e.dir, "log"))
	if err != nil {
		return err.Error()
	}
	return string(log)
}

// Docker runs a command of the docker client against the engine and returns
// what it printed on stdout, without the last newline.
func (e *Engine) Docker(ctx context.Context, args ...string) (string, error) {
	out, err := run(e.docker(ctx, args...))
	return strings.TrimSuffix(out, "\n"), err
}

// DockerAll is Docker with what the command says on stderr as well.
func (e *Engine) DockerAll(ctx context.Context, args ...string) (string, error) {
	out, err := e.docker(ctx, args...).CombinedOutput()
	return string(out), err
}

// Compose runs docker-compose against the engine, for a project whose file is
// text.
func (e *Engine) Compose(ctx context.Context, project, text string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "docker-compose", append([]string{"--no-ansi", "-p", project, "-f", "-"}, args...)...)
	cmd.Env = e.lab.env("DOCKER_HOST=" + e.Host())
	cmd.Dir = e.dir
	cmd.Stdin = strings.NewReader(text)
	return run(cmd)
}

func (e *Engine) docker(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Env = e.lab.env("DOCKER_HOST=" + e.Host())
	return cmd
}

// RemoveAll removes all containers and all networks that the engine does not
// make by itself.
func (e *Engine) RemoveAll(ctx context.Context) error {
	if err := e.removeListed(ctx, []string{"ps", "-aq"}, []string{"rm", "-f", "-v"}); err != nil {
		return err
	}
	return e.removeListed(ctx, []string{"network", "ls", "-q", "--filter", "type=custom"}, []string{"network", "rm"})
}

func (e *Engine) removeListed(ctx context.Context, list, remove []string) error {
	ids, err := e.Docker(ctx, list...)
	if err != nil || ids == "" {
		return err
	}
	_, err = e.Docker(ctx, append(remove, strings.Fields(ids)...)...)
	return err
}

// inspect decodes what docker inspect says about one object.
func (e *Engine) inspect(ctx context.Context, kind, name string, into any) error {
	out, err := e.Docker(ctx, kind, "inspect", "--format", "{{json .}}", name)
	if err != nil {
		return err
	}
	if err := json.NewDecoder(bytes.NewReader([]byte(out))).Decode(into); err != nil {
		return fmt.Errorf("decode docker %s inspect %s: %w", kind, name, err)
	}
	return nil
}
