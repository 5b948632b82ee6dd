package daemon

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nftfw/nftfw/pkg/api"
)

// peer is who is at the other end of a connection, as the kernel noted it when
// the connection was made: SO_PEERCRED and SO_PEERGROUPS of unix(7).
type peer struct {
	uid    uint32
	groups []uint32 // the primary one among them
}

// peerOf asks the kernel about a connection over a unix socket.
func peerOf(conn *net.UnixConn) (peer, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return peer{}, err
	}
	var out peer
	var asked error
	err = raw.Control(func(fd uintptr) {
		var cred *unix.Ucred
		if cred, asked = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); asked != nil {
			return
		}
		out.uid = cred.Uid
		out.groups, asked = peerGroups(fd)
		out.groups = append(out.groups, cred.Gid)
	})
	if err == nil {
		err = asked
	}
	return out, err
}

// maxGroups is NGROUPS_MAX of limits.h.
const maxGroups = 65536

// peerGroups gives the supplementary groups. Package unix has no function for
// this option.
func peerGroups(fd uintptr) ([]uint32, error) {
	for groups := make([]uint32, 32); ; {
		size := uint32(len(groups) * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == 0:
			return groups[:size/4], nil
		case errno != unix.ERANGE || len(groups) >= maxGroups:
			return nil, errno
		}
		groups = make([]uint32, maxGroups)
	}
}

// allowed tells whether p may talk to a daemon whose socket belongs to a group:
// root may, the daemon's own user, and the members of the group. The file's
// mode says the same, but may be changed, and a descriptor passed on.
func (p peer) allowed(group uint32) bool {
	return p.uid == 0 || p.uid == uint32(os.Geteuid()) || slices.Contains(p.groups, group)
}

// socketGroup gives the group that the socket at path belongs to.
func socketGroup(path string) (uint32, error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, fmt.Errorf("group of %s is not known", path)
	}
	return stat.Gid, nil
}

// stranger is the error for a peer that may not talk to the daemon. It is a
// value of the context of its requests.
type stranger struct{ err *api.Error }

type strangerKey struct{}

// identify looks at a new connection, and has onlyPeers refuse its requests if
// nobody let its peer in.
func identify(ctx context.Context, conn net.Conn, group uint32) context.Context {
	local, ok := conn.(*net.UnixConn)
	if !ok {
		return context.WithValue(ctx, strangerKey{}, stranger{api.Failedf("not a local connection")})
	}
	switch p, err := peerOf(local); {
	case err != nil:
		return context.WithValue(ctx, strangerKey{}, stranger{api.Failedf("not known who calls: %v", err)})
	case !p.allowed(group):
		return context.WithValue(ctx, strangerKey{}, stranger{api.Failedf(
			"user %d may not talk to the daemon: run as root, or have root run `usermod -aG %s USER` and log in again", p.uid, SocketGroup)})
	}
	return ctx
}

// onlyPeers refuses the requests of strangers with 403, before their bodies are
// read. Bodies have a time in which they must come, those as well that nobody reads:
// the server waits for their end before the next request.
func onlyPeers(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 {
			wait := bodyTimeout
			if r.Method == http.MethodGet {
				wait = headerTimeout // a body of no use
			}
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(wait)) // fails as the read does
		}
		if s, ok := r.Context().Value(strangerKey{}).(stranger); ok {
			w.Header().Set("Connection", "close")
			replyError(w, http.StatusForbidden, s.err)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// bounded keeps the number of connections below a bound: it closes the one
// that has been idle for longest. So neither a thousand idle clients nor those
// who come after them are turned away, and file descriptors are left for the
// kernel's sockets.
type bounded struct {
	most int

	mu    sync.Mutex
	idle  []net.Conn // the longest idle first
	total int
}

// state is the ConnState of an http.Server.
func (b *bounded) state(conn net.Conn, s http.ConnState) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.idle = slices.DeleteFunc(b.idle, func(c net.Conn) bool { return c == conn })
	switch s {
	case http.StateNew:
		b.total++
		b.idle = append(b.idle, conn)
	case http.StateIdle:
		b.idle = append(b.idle, conn)
	case http.StateClosed, http.StateHijacked:
		b.total--
	case http.StateActive:
	}
	if b.total > b.most && len(b.idle) > 1 { // never the one that has just come
		_ = b.idle[0].Close() // the server notices, and tells state
		b.idle = b.idle[1:]
	}
}
