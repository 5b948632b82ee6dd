package nft

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Kernel talks to nf_tables in the network namespace in which it was opened.
// Its methods may be called from any goroutine and any thread.
type Kernel struct {
	ns     *os.File // the namespace
	buffer int      // of Monitor, in bytes

	commit   sync.Mutex // held for one batch
	conn     *netlink.Conn
	sequence uint32 // of the next message of a batch

	resting sync.Mutex
	idle    []*netlink.Conn // of sessions that are over, at most idleConns; nil after Close

	mu    sync.Mutex
	ports map[uint32]bool // netlink ports that this Kernel has sent batches from
	// monitors are the connections of Monitor; those in deaf may have missed a
	// change while a batch was hidden from them.
	monitors map[*netlink.Conn]bool
	deaf     map[*netlink.Conn]bool
}

// Open connects to nf_tables in the network namespace of the calling thread.
// The error is a *CommitError with a remedy where the process may not or the
// kernel cannot.
func Open() (*Kernel, error) {
	ns, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	k := &Kernel{ns: ns, buffer: monitorBuffer, idle: []*netlink.Conn{}, ports: map[uint32]bool{}, sequence: 1, monitors: map[*netlink.Conn]bool{}, deaf: map[*netlink.Conn]bool{}}
	if err := k.reopen(); err != nil {
		_ = ns.Close()
		return nil, err
	}
	if _, err := k.Generation(context.Background()); err != nil {
		_ = k.Close()
		var refusal *CommitError
		if errors.As(err, &refusal) && errors.Is(err, unix.EINVAL) {
			// What nfnetlink says when it has no such subsystem.
			refusal.Hint = hint(unix.EOPNOTSUPP)
		}
		return nil, err
	}
	return k, nil
}

// Close ends the connection. A Monitor that runs goes on until its context is done.
func (k *Kernel) Close() error {
	k.commit.Lock()
	defer k.commit.Unlock()
	k.resting.Lock()
	defer k.resting.Unlock()
	for _, conn := range k.idle {
		_ = conn.Close()
	}
	k.idle = nil
	return errors.Join(k.conn.Close(), k.ns.Close())
}

// reopen replaces the connection that batches are sent over. One connection
// for all of them means one netlink port, by which Monitor knows our own
// changes. Where none is to be had the former one stays: what it has not read yet is
// told from later answers by its number. The caller holds commit, or is the only one.
func (k *Kernel) reopen() error {
	conn, err := k.dial()
	if err != nil {
		return err
	}
	if k.conn != nil {
		_ = k.conn.Close()
	}
	k.conn = conn
	k.mu.Lock()
	k.ports[conn.PID()] = true
	k.mu.Unlock()
	return nil
}

// own reports whether the netlink port is one of ours.
func (k *Kernel) own(port uint32) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.ports[port]
}

// port returns the netlink port that batches are sent from.
func (k *Kernel) port() uint32 {
	k.commit.Lock()
	defer k.commit.Unlock()
	return k.conn.PID()
}

// dial opens a connection in the namespace of k, whichever the thread is in.
// Entering a namespace needs more than CAP_NET_ADMIN, so it is done only by
// callers who have left it.
func (k *Kernel) dial() (*netlink.Conn, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cfg := &netlink.Config{}
	if !k.inside() {
		cfg.NetNS = int(k.ns.Fd())
	}
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, cfg)
	if err != nil {
		return nil, refused("open netlink socket", "", err)
	}
	// Gives the kernel's own words with an error. Kernels before 4.12 do not have it.
	_ = conn.SetOption(netlink.ExtendedAcknowledge, true)
	return conn, nil
}

// inside reports whether the calling thread is in the namespace of k.
func (k *Kernel) inside() bool {
	var ours, here unix.Stat_t
	if unix.Fstat(int(k.ns.Fd()), &ours) != nil || unix.Stat("/proc/thread-self/ns/net", &here) != nil {
		return false
	}
	return ours.Dev == here.Dev && ours.Ino == here.Ino
}

// idleConns is how many connections wait for the next session: as many as there
// are at a time.
const idleConns = 4

// session is a connection for reading, which ends with its context.
type session struct {
	k    *Kernel
	conn *netlink.Conn
	stop func() bool
	over func() bool // whether its context is done
}

// session takes a connection of a session that is over, or opens one. To close one
// may take the kernel ten milliseconds and more, in which nobody can commit: it
// waits until what was deleted is freed (nft_rcv_nl_event,
// net/netfilter/nf_tables_api.c).
func (k *Kernel) session(ctx context.Context) (*session, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if conn := k.takeIdle(); conn != nil {
		_ = conn.SetDeadline(time.Time{}) // only fails on one that is closed
		return k.sessionOver(ctx, conn), nil
	}
	return k.subscription(ctx)
}

// subscription is a session with a connection of its own, for those who listen.
// It is over with end.
func (k *Kernel) subscription(ctx context.Context) (*session, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	conn, err := k.dial()
	if err != nil {
		return nil, err
	}
	return k.sessionOver(ctx, conn), nil
}

func (k *Kernel) sessionOver(ctx context.Context, conn *netlink.Conn) *session {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	return &session{k: k, conn: conn, stop: stop, over: func() bool { return ctx.Err() != nil }}
}

func (k *Kernel) takeIdle() *netlink.Conn {
	k.resting.Lock()
	defer k.resting.Unlock()
	n := len(k.idle)
	if n == 0 {
		return nil
	}
	conn := k.idle[n-1]
	k.idle = k.idle[:n-1]
	return conn
}

// close ends a session. Its connection waits for the next one if nothing was left
// unread.
func (s *session) close() {
	if !s.stop() || !drained(s.conn) {
		_ = s.conn.Close()
		return
	}
	s.k.resting.Lock()
	full := s.k.idle == nil || len(s.k.idle) == idleConns
	if !full {
		s.k.idle = append(s.k.idle, s.conn)
	}
	s.k.resting.Unlock()
	if full {
		_ = s.conn.Close()
	}
}

// end ends a subscription: nobody else may have its connection.
func (s *session) end() {
	s.stop()
	_ = s.conn.Close()
}

// drained reports whether there is nothing to read from the connection: of a dump
// that was left early there is always a next part (netlink_recvmsg,
// net/netlink/af_netlink.c).
func drained(conn *netlink.Conn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	var failure error
	err = raw.Control(func(fd uintptr) {
		_, _, failure = unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
	})
	return err == nil && errors.Is(failure, unix.EAGAIN)
}

// patience gives the kernel some more time to take what is sent and for its
// next answer, so that a call that is interrupted and an answer that is lost are
// errors and not a wait for ever: the library waits for a wakeup after EINTR,
// and none comes. A context that is done is out of it.
func (s *session) patience() {
	_ = s.conn.SetDeadline(time.Now().Add(answerTime))
	if s.over() {
		_ = s.conn.SetDeadline(time.Unix(1, 0))
	}
}

// send sends one request.
func (s *session) send(m netlink.Message) (netlink.Message, error) {
	s.patience()
	return s.conn.Send(m)
}

// sendAll sends requests in one datagram.
func (s *session) sendAll(msgs []netlink.Message) ([]netlink.Message, error) {
	s.patience()
	return s.conn.SendMessages(msgs)
}

// each sends one request and calls f for each answer as it comes.
func (s *session) each(m message, f func(netlink.Message)) error {
	if _, err := s.send(m.netlink()); err != nil {
		return refused(m.what, "", err)
	}
	s.patience()
	for reply, err := range s.conn.ReceiveIter() {
		if err != nil {
			return refused(m.what, "", err)
		}
		f(reply)
		s.patience()
	}
	return nil
}

// Generation returns the number of the ruleset's generation in the namespace,
// which every transaction raises, whosever it is.
func (k *Kernel) Generation(ctx context.Context) (uint32, error) {
	s, err := k.session(ctx)
	if err != nil {
		return 0, err
	}
	defer s.close()
	return s.generation()
}

func (s *session) generation() (uint32, error) {
	const what = "read generation"
	var generation uint32
	err := s.each(message{kind: unix.NFT_MSG_GETGEN, what: what}, func(m netlink.Message) {
		for typ, v := range attributes(payload(m)) {
			if typ == unix.NFTA_GEN_ID {
				generation = uint32(number(v))
			}
		}
	})
	if err == nil && generation == 0 { // the kernel never uses zero
		err = refused(what, "", unix.ENODATA)
	}
	return generation, err
}
