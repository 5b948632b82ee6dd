package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// sshdPath is where Debian has sshd, which insists on being started by its
// absolute path.
const sshdPath = "/usr/sbin/sshd"

// sshdRunDir is where Debian's sshd puts its unprivileged half; its service
// makes the folder, and no service starts here.
const sshdRunDir = "/run/sshd"

// SSHD is Debian's sshd on port 22 of the host, into which root gets with the
// lab's key.
type SSHD struct {
	lab   *Lab
	dir   string
	cmd   *exec.Cmd
	ended chan struct{}
}

// SSHD starts sshd on the host and waits until it lets somebody in.
func (l *Lab) SSHD(ctx context.Context) (*SSHD, error) {
	dir, err := os.MkdirTemp(l.dir, "sshd-")
	if err != nil {
		return nil, err
	}
	s := &SSHD{lab: l, dir: dir}
	for _, key := range []string{s.hostKey(), s.key()} {
		if _, err := run(exec.CommandContext(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)); err != nil {
			return nil, err
		}
	}
	config := strings.Join([]string{
		"Port 22",
		"HostKey " + s.hostKey(),
		"AuthorizedKeysFile " + s.key() + ".pub",
		"StrictModes no", // the folder of the key is below /tmp
		"UsePAM no",
		"UseDNS no",
		"PidFile none",
		"MaxStartups 1000", // probes do not stay for the handshake
		"SetEnv " + envMark + "=" + l.name,
	}, "\n") + "\n"
	if err := errors.Join(os.WriteFile(s.config(), []byte(config), 0o600), os.MkdirAll(sshdRunDir, 0o755)); err != nil {
		return nil, err
	}
	// The folder in its arguments marks the process: see killMarked.
	s.cmd = l.Host.Command(context.WithoutCancel(ctx), sshdPath, "-D", "-f", s.config(), "-E", s.logPath())
	s.cmd.Env = l.env()
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start sshd: %w", err)
	}
	s.ended = make(chan struct{})
	go func() {
		_ = s.cmd.Wait() // it always ends by being killed
		close(s.ended)
	}()
	return s, s.wait(ctx)
}

func (s *SSHD) hostKey() string { return filepath.Join(s.dir, "host") }
func (s *SSHD) key() string     { return filepath.Join(s.dir, "key") }
func (s *SSHD) config() string  { return filepath.Join(s.dir, "config") }
func (s *SSHD) logPath() string { return filepath.Join(s.dir, "log") }

func (s *SSHD) wait(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	err := Poll(ctx, 50*time.Millisecond, func() error {
		c, err := s.lab.Host.Dial(ctx, "tcp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), 22), netip.Addr{})
		if err != nil {
			return err
		}
		return c.Close()
	})
	if err != nil {
		return fmt.Errorf("wait for sshd: %w\n%s", err, s.Log())
	}
	return nil
}

// Log returns what sshd has logged.
func (s *SSHD) Log() string {
	log, err := os.ReadFile(s.logPath())
	if err != nil {
		return err.Error()
	}
	return string(log)
}

// Stop kills sshd and its processes for sessions: one whose client cannot be
// reached would live on, and its connection with it.
func (s *SSHD) Stop() {
	sessions := childrenOf(s.cmd.Process.Pid)
	_ = s.cmd.Process.Kill() // it may have ended by itself, which the test has noticed
	<-s.ended
	for _, pid := range sessions {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}

// childrenOf lists the processes that a process has started and that live.
func childrenOf(pid int) []int {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat") // the pattern is well formed
	var children []int
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // gone
		}
		// PID (NAME) STATE PARENT, and the name may hold anything.
		var state string
		var parent, child int
		_, rest, _ := strings.Cut(string(text), ") ")
		if n, _ := fmt.Sscan(rest, &state, &parent); n != 2 || parent != pid {
			continue
		}
		if n, _ := fmt.Sscan(string(text), &child); n == 1 {
			children = append(children, child)
		}
	}
	return children
}

// endMark and the number of a call end what the call's command has printed.
const endMark = "END OF "

// Session is a shell of root on the host, behind one ssh connection. Its
// methods must not be used concurrently, except Hangup.
type Session struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines chan string
	calls int
}

// Login opens a session from a node to an address of the host. The error of
// one that does not come about within the time is that of ssh.
func (s *SSHD) Login(ctx context.Context, from *Node, to netip.Addr, within time.Duration) (*Session, error) {
	cmd := from.Command(context.WithoutCancel(ctx), "ssh", "-F", "none", "-T", "-i", s.key(),
		"-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
		"-o", "LogLevel=ERROR", "-o", fmt.Sprintf("ConnectTimeout=%d", max(1, int(within.Seconds()))),
		"root@"+to.String(), "exec /bin/sh")
	cmd.Env = s.lab.env()
	out, in := io.Pipe()
	cmd.Stdout, cmd.Stderr = in, in
	cmd.WaitDelay = 5 * time.Second
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start ssh: %w", err)
	}
	session := &Session{cmd: cmd, stdin: stdin, lines: make(chan string, 1000)}
	go func() {
		_ = in.CloseWithError(cmd.Wait()) // nil is the end of the stream
	}()
	go func() {
		defer close(session.lines)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			session.lines <- lines.Text()
		}
	}()
	if o := session.Run(within, "true"); o.Status != 0 {
		session.Hangup()
		return nil, fmt.Errorf("log in from %s to %s: %s\n%s", from.Name, to, o, s.Log())
	}
	return session, nil
}

// Run runs a command in the session's shell and waits for its end. What it
// prints on stderr is in the output's stdout as well. The status is -1 if the
// session gave no answer in the time: then it is of no more use, except that
// a late answer is passed over by the next Run.
func (s *Session) Run(within time.Duration, args ...string) Output {
	o := Output{Args: args, Status: -1}
	if err := s.Send(args...); err != nil {
		o.Stderr = err.Error()
		return o
	}
	deadline := time.After(within)
	for {
		select {
		case line, ok := <-s.lines:
			if !ok {
				o.Stderr = "the connection is closed"
				return o
			}
			before, end, ended := strings.Cut(line, endMark)
			var call, status int
			if n, _ := fmt.Sscan(end, &call, &status); !ended || n != 2 {
				o.Stdout += line + "\n"
				continue
			}
			if call == s.calls {
				o.Stdout, o.Status = o.Stdout+before, status
				return o
			}
			o.Stdout = "" // of a command that nobody waits for any more
		case <-deadline:
			o.Stderr = "no answer within " + within.String()
			return o
		}
	}
}

// Send has the session's shell run a command and does not wait.
func (s *Session) Send(args ...string) error {
	s.calls++
	quoted := make([]string, len(args))
	for i, a := range args {
		quoted[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
	}
	_, err := fmt.Fprintf(s.stdin, "%s 2>&1; echo \"%s%d $?\"\n", strings.Join(quoted, " "), endMark, s.calls)
	return err
}

// Hangup kills the client: the host hears of it only as far as packets get
// there.
func (s *Session) Hangup() {
	_ = s.cmd.Process.Kill() // it may have ended by itself
	for range s.lines {
		continue // until its end
	}
}
