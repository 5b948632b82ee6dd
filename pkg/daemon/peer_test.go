package daemon

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// dialAs connects to a unix socket as another user. The thread that is that
// user ends with the call.
func dialAs(t *testing.T, path string, uid, gid uint32, groups ...uint32) net.Conn {
	t.Helper()
	type result struct {
		fd  int
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: nothing else runs as that user
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		list := append(groups, gid) // never empty, for its address
		for _, call := range [][3]uintptr{
			{unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&list[0]))},
			{unix.SYS_SETGID, uintptr(gid), 0},
			{unix.SYS_SETUID, uintptr(uid), 0},
		} {
			// Of this thread alone, unlike the functions of package syscall.
			if _, _, errno := unix.RawSyscall(call[0], call[1], call[2], 0); errno != 0 {
				err = errors.Join(err, errno)
			}
		}
		done <- result{fd, errors.Join(err, unix.Connect(fd, &unix.SockaddrUnix{Name: path}))}
	}()
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	f := os.NewFile(uintptr(r.fd), "socket")
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// answerOver sends a request over conn and gives the answer's status and body.
func answerOver(t *testing.T, conn net.Conn, request string) (status int, body string) {
	t.Helper()
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

const askStatus = "GET /v1/status HTTP/1.1\r\nHost: nftfw\r\n\r\n"

// newServer is a daemon whose socket everybody may open and that belongs to
// group 4711.
func newServer(t *testing.T) (w *world, path string) {
	w = newWorld(t)
	w.policy(openPolicy)
	dir, err := os.MkdirTemp("", "nftfw") // not t.TempDir, into which only root gets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path = filepath.Join(dir, "s")
	l, err := listen(path)
	w.must(err)
	w.must(errors.Join(os.Chmod(dir, 0o755), os.Chmod(path, 0o666), os.Chown(path, -1, 4711)))
	d := &Daemon{core: w.start(), log: w.cfg.Log, listener: l, listSaves: newListSaves(), requests: make(chan func(context.Context))}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() { ended <- d.loop(ctx) }()
	go func() { ended <- d.serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-ended, <-ended); err != nil {
			t.Error(err)
		}
	})
	return w, path
}

func TestPeersAreChecked(t *testing.T) {
	_, path := newServer(t)
	tests := []struct {
		name     string
		uid, gid uint32
		groups   []uint32
		want     int
	}{
		{"root", 0, 0, nil, 200},
		{"root in another group", 0, 1000, nil, 200},
		{"a user", 1000, 1000, nil, 403},
		{"a user in other groups", 1000, 1000, []uint32{0, 4710, 4712}, 403},
		{"a user of the group", 1000, 4711, nil, 200},
		{"a user who is in the group too", 1000, 1000, []uint32{5, 4711}, 200},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			conn := dialAs(t, path, tt.uid, tt.gid, tt.groups...)
			for range 2 { // also over a connection that was refused before
				status, body := answerOver(t, conn, askStatus)
				if status != tt.want {
					t.Errorf("status %d, want %d: %s", status, tt.want, body)
				}
				if status != 403 {
					continue
				}
				if !strings.Contains(body, "user 1000 may not talk to the daemon") || !strings.Contains(body, "usermod -aG nftfw") {
					t.Errorf("it does not say what to do: %s", body)
				}
				break
			}
		})
	}
	t.Run("many groups", func(t *testing.T) {
		var groups []uint32
		for g := range uint32(1000) {
			groups = append(groups, 10_000+g)
		}
		if status, body := answerOver(t, dialAs(t, path, 1000, 1000, append(groups, 4711)...), askStatus); status != 200 {
			t.Errorf("status %d: %s", status, body)
		}
	})
	t.Run("a change by a stranger", func(t *testing.T) {
		conn := dialAs(t, path, 1000, 1000)
		const body = `{"entries":["192.0.2.200"]}`
		request := fmt.Sprintf("POST /v1/sets/trusted/add HTTP/1.1\r\nHost: nftfw\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		if status, body := answerOver(t, conn, request); status != 403 {
			t.Errorf("status %d: %s", status, body)
		}
	})
}

// Whoever connects and says nothing, or says it slowly, keeps nobody away.
func TestIdleClientsAreInNobodysWay(t *testing.T) {
	const clients = 1000
	_, path := newServer(t)
	for i := range clients {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatalf("client %d: %v", i, err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		if i%3 == 0 {
			_, _ = io.WriteString(conn, "GET /v1/status HTTP/1.1\r\nHo")
		}
		if i%3 == 1 { // a body that never comes
			_, _ = io.WriteString(conn, "POST /v1/sets/trusted/add HTTP/1.1\r\nHost: nftfw\r\nContent-Length: 100\r\n\r\n{")
		}
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if status, body := answerOver(t, conn, askStatus); status != 200 {
		t.Errorf("status %d: %s", status, body)
	}
}

// closable is a connection that notes that it was closed.
type closable struct {
	net.Conn
	closed bool
}

func (c *closable) Close() error {
	c.closed = true
	return nil
}

// The one that is idle for longest goes, none that is being answered, and never
// the one that has just come.
func TestConnectionsAreBounded(t *testing.T) {
	b := bounded{most: 3}
	var conns []*closable
	arrive := func() *closable {
		c := &closable{}
		conns = append(conns, c)
		b.state(c, http.StateNew)
		return c
	}
	closed := func(want ...bool) {
		t.Helper()
		var got []bool
		for _, c := range conns {
			got = append(got, c.closed)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("closed (-want +got):\n%s", diff)
		}
	}
	first, second := arrive(), arrive()
	b.state(first, http.StateActive)
	arrive()
	closed(false, false, false)
	arrive()
	closed(false, true, false, false)
	b.state(second, http.StateClosed)
	b.state(first, http.StateIdle) // as young as any now
	arrive()
	closed(false, true, true, false, false)
	b.state(conns[2], http.StateClosed)
	for _, c := range []*closable{first, conns[3], conns[4]} {
		b.state(c, http.StateActive)
	}
	arrive() // over the bound, with nobody idle beside it
	closed(false, true, true, false, false, false)
}

func TestRequestsAreBounded(t *testing.T) {
	_, path := newServer(t)
	tests := []struct {
		name, request string
		want          int
	}{
		{"a header without end", "GET /v1/status HTTP/1.1\r\nHost: nftfw\r\nX: " + strings.Repeat("x", 2*maxHeader+8192) + "\r\n\r\n", 431},
		{"no request", "\x00\x01\x02\r\n\r\n", 400},
		{"no JSON", "POST /v1/confirm HTTP/1.1\r\nHost: nftfw\r\nContent-Length: 3\r\n\r\n{]}", 400},
		{"an unknown field", "POST /v1/reload HTTP/1.1\r\nHost: nftfw\r\nContent-Length: 9\r\n\r\n{\"x\":123}", 400},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			conn, err := net.Dial("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if status, body := answerOver(t, conn, tt.request); status != tt.want {
				t.Errorf("status %d, want %d: %s", status, tt.want, body)
			}
		})
	}
}

// A body that nobody reads, and that never comes, holds no connection.
func TestBodyThatNeverComes(t *testing.T) {
	_, path := newServer(t)
	run(t, "ip", "link", "set", "lo", "up")
	const metrics = "127.0.0.1:9469" // in a namespace of the test's own
	stop, err := (&Daemon{log: discard}).startMetrics(metrics, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	var conns []net.Conn
	for network, at := range map[string]string{"unix": path, "tcp": metrics} {
		conn, err := net.Dial(network, at)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, "GET /v1/sets HTTP/1.1\r\nHost: nftfw\r\nContent-Length: 10\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	until := time.Now().Add(headerTimeout + scrapeTimeout)
	for _, conn := range conns {
		_ = conn.SetReadDeadline(until)
		if answer, err := io.ReadAll(conn); err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 200 ") {
			t.Errorf("%s: %v after %q", conn.RemoteAddr().Network(), err, answer)
		}
	}
}
