package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Firewall is nftfw in the host's namespace, with a policy, a state folder and
// a socket of its own.
type Firewall struct {
	lab   *Lab
	node  *Node
	bin   string
	dir   string
	flags []string
	wrap  []string // what nftfw run is started by
	cmd   *exec.Cmd
	ended chan struct{}
	exit  error // valid once ended is closed
}

// FirewallOptions describe a Firewall. Bin must be set.
type FirewallOptions struct {
	Bin    string  // the nftfw binary
	Node   *Node   // nil: the lab's host
	Engine *Engine // nil: no engine, nothing listens where one would be looked for
	// Flags are added to those of every command.
	Flags []string
}

// Firewall prepares nftfw with no policy file and no state. Nothing is started.
func (l *Lab) Firewall(o FirewallOptions) (*Firewall, error) {
	dir, err := os.MkdirTemp(l.dir, "nftfw-")
	if err != nil {
		return nil, err
	}
	// In memory: every command waits for the disk, and that of a machine that
	// runs tests may take half a minute for a sync.
	if err := unix.Mount("nftfw", dir, "tmpfs", 0, "size=64m,mode=0755"); err != nil {
		return nil, fmt.Errorf("mount %s: %w", dir, err)
	}
	f := &Firewall{lab: l, node: o.Node, bin: o.Bin, dir: dir}
	if f.node == nil {
		f.node = l.Host
	}
	host := "unix://" + filepath.Join(dir, "no-engine.sock")
	if o.Engine != nil {
		host = o.Engine.Host()
	}
	f.flags = append([]string{
		"--policy", f.PolicyPath(), "--state-dir", f.StateDir(),
		"--socket", f.SocketPath(), "--docker-host", host,
	}, o.Flags...)
	return f, nil
}

// Bin is the nftfw binary.
func (f *Firewall) Bin() string { return f.bin }

// PolicyPath is where the policy file is, if there is one.
func (f *Firewall) PolicyPath() string { return filepath.Join(f.dir, "policy.yaml") }

// SocketPath is the daemon's control socket.
func (f *Firewall) SocketPath() string { return filepath.Join(f.dir, "nftfw.sock") }

// StateDir is the state folder.
func (f *Firewall) StateDir() string { return filepath.Join(f.dir, "state") }

// MountState makes the state folder a file system of its own, with options of
// mount(8) for a tmpfs, or changes those of the one that it has: "size=256k",
// "remount,ro".
func (f *Firewall) MountState(ctx context.Context, options string) error {
	if err := os.MkdirAll(f.StateDir(), 0o700); err != nil {
		return err
	}
	_, err := run(exec.CommandContext(ctx, "mount", "-t", "tmpfs", "-o", options, "nftfw-state", f.StateDir()))
	return err
}

// Wrap has nftfw run be started by another program, which gets its command
// line behind args.
func (f *Firewall) Wrap(args ...string) { f.wrap = args }

// WritePolicy puts a policy file in place. An empty one removes the file.
func (f *Firewall) WritePolicy(text string) error {
	if text == "" {
		if err := os.Remove(f.PolicyPath()); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	}
	return os.WriteFile(f.PolicyPath(), []byte(text), 0o644)
}

// Start starts nftfw run and waits until it enforces and, where there is an
// engine that runs, has heard from it.
func (f *Firewall) Start(ctx context.Context, args ...string) error {
	if err := f.Launch(ctx, args...); err != nil {
		return err
	}
	return f.WaitReady(ctx, true)
}

// Launch starts nftfw run and does not wait for it.
func (f *Firewall) Launch(ctx context.Context, args ...string) error {
	if f.Running() {
		return errors.New("nftfw runs already")
	}
	log, err := os.OpenFile(f.logPath(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	line := slices.Concat(f.wrap, f.CommandLine("run", "--log-level", "debug"), args)
	cmd := f.node.Command(context.WithoutCancel(ctx), line[0], line[1:]...)
	cmd.Env = f.lab.env("NO_COLOR=1")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start nftfw: %w", err)
	}
	ended := make(chan struct{})
	f.cmd, f.ended = cmd, ended
	go func() {
		f.exit = cmd.Wait()
		close(ended)
	}()
	return nil
}

// CommandLine is an nftfw command as somebody on the host would type it.
func (f *Firewall) CommandLine(args ...string) []string {
	return slices.Concat([]string{f.bin}, f.flags, args)
}

func (f *Firewall) command(ctx context.Context, args ...string) *exec.Cmd {
	line := f.CommandLine(args...)
	cmd := f.node.Command(ctx, line[0], line[1:]...)
	cmd.Env = f.lab.env("NO_COLOR=1")
	return cmd
}

// Status is what nftfw status --json says, as far as the lab needs it.
type Status struct {
	Enforced bool   `json:"enforced"`
	Mode     string `json:"mode"`
	Policy   struct {
		Source string `json:"source"`
		Error  string `json:"error"`
	} `json:"policy"`
	Docker struct {
		Connected  bool `json:"connected"`
		Containers int  `json:"containers"`
	} `json:"docker"`
	Restores int `json:"restores"`
	Sets     map[string]struct {
		Entries int `json:"entries"`
	} `json:"sets"`
}

// Status asks nftfw for its status. Not being enforced is no error.
func (f *Firewall) Status(ctx context.Context) (Status, error) {
	var s Status
	r := f.Exec(ctx, "status", "--json")
	if err := json.Unmarshal([]byte(r.Stdout), &s); err != nil {
		return s, fmt.Errorf("decode status: %w: %s", err, r)
	}
	return s, nil
}

// WaitReady waits until nftfw enforces and, if asked for, has heard from
// Docker.
func (f *Firewall) WaitReady(ctx context.Context, docker bool) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	err := Poll(ctx, 50*time.Millisecond, func() error {
		if !f.Running() {
			cancel()
			return fmt.Errorf("nftfw run has ended: %w", f.exit)
		}
		s, err := f.Status(ctx)
		switch {
		case err != nil:
			return err
		case !s.Enforced:
			return errors.New("nftfw does not enforce")
		case docker && !s.Docker.Connected:
			return errors.New("nftfw is not connected to Docker")
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("wait for nftfw: %w", err)
	}
	return nil
}

// Running reports whether nftfw run lives.
func (f *Firewall) Running() bool {
	if f.cmd == nil {
		return false
	}
	select {
	case <-f.ended:
		return false
	default:
		return true
	}
}

// Stop sends SIGTERM and waits for the end; an exit status other than 0 is an
// error.
func (f *Firewall) Stop(ctx context.Context) error {
	if !f.Running() {
		return nil
	}
	if err := f.signal(ctx, syscall.SIGTERM); err != nil {
		return err
	}
	if f.exit != nil {
		return fmt.Errorf("nftfw run: %w", f.exit)
	}
	return nil
}

// Kill ends nftfw with SIGKILL.
func (f *Firewall) Kill(ctx context.Context) error {
	if !f.Running() {
		return nil
	}
	return f.signal(ctx, syscall.SIGKILL)
}

// Abort ends nftfw with SIGQUIT: its log then tells what each goroutine was
// doing.
func (f *Firewall) Abort(ctx context.Context) error {
	if !f.Running() {
		return nil
	}
	return f.signal(ctx, syscall.SIGQUIT)
}

func (f *Firewall) signal(ctx context.Context, sig syscall.Signal) error {
	if err := f.cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("signal nftfw: %w", err)
	}
	select {
	case <-f.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for nftfw's end: %w", ctx.Err())
	}
}

// Hangup sends SIGHUP, which reloads the policy, and does not wait.
func (f *Firewall) Hangup() error { return f.cmd.Process.Signal(syscall.SIGHUP) }

// PID is the process id of nftfw run, 0 if it never ran.
func (f *Firewall) PID() int {
	if f.cmd == nil {
		return 0
	}
	return f.cmd.Process.Pid
}

// Output is what a command printed and how it ended.
type Output struct {
	Args   []string
	Stdout string
	Stderr string
	Status int // exit status, -1 if it was killed or did not start
}

// String returns all of it, to be read by a person.
func (o Output) String() string {
	return fmt.Sprintf("nftfw %s: exit status %d\nstdout: %s\nstderr: %s", strings.Join(o.Args, " "), o.Status, o.Stdout, o.Stderr)
}

// Exec runs an nftfw command in the host's namespace.
func (f *Firewall) Exec(ctx context.Context, args ...string) Output {
	return f.ExecIn(ctx, "", args...)
}

// ExecIn is Exec with text on the command's stdin.
func (f *Firewall) ExecIn(ctx context.Context, stdin string, args ...string) Output {
	return finish(f.command(ctx, args...), stdin, args)
}

// ExecUnder is Exec by another program, which gets nftfw's command line behind
// wrap.
func (f *Firewall) ExecUnder(ctx context.Context, wrap []string, args ...string) Output {
	line := slices.Concat(wrap, f.CommandLine(args...))
	cmd := f.node.Command(ctx, line[0], line[1:]...)
	cmd.Env = f.lab.env("NO_COLOR=1")
	return finish(cmd, "", args)
}

// finish runs a command of nftfw to its end.
func finish(cmd *exec.Cmd, stdin string, args []string) Output {
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	cmd.WaitDelay = 5 * time.Second
	o := Output{Args: args, Status: -1}
	err := cmd.Run()
	o.Stdout, o.Stderr = stdout.String(), stderr.String()
	var exit *exec.ExitError
	switch {
	case err == nil:
		o.Status = 0
	case errors.As(err, &exit):
		o.Status = exit.ExitCode()
	default:
		o.Stderr += err.Error()
	}
	return o
}

// Log returns what nftfw run has logged, over all of its runs.
func (f *Firewall) Log() string {
	log, err := os.ReadFile(f.logPath())
	if err != nil {
		return err.Error()
	}
	return string(log)
}

func (f *Firewall) logPath() string { return filepath.Join(f.dir, "log") }

// FindBinary gives the absolute path of the nftfw that is tried: NFTFW_BIN in the
// environment, else bin/nftfw below the working directory. It is an error when
// there is no such file.
func FindBinary() (string, error) {
	name := os.Getenv("NFTFW_BIN")
	if name == "" {
		name = filepath.Join("bin", "nftfw")
	}
	path, err := filepath.Abs(name)
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		return "", fmt.Errorf("find nftfw: %w (make build makes it)", err)
	}
	return path, nil
}
