package nflog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	gonflog "github.com/florianl/go-nflog/v2"
	"golang.org/x/sys/unix"
)

const (
	// copied is how much of a packet is asked for, in bytes: IPv6 with some
	// extension headers and the ports.
	copied = 192
	// A message waits until there are so many, or for so long.
	batch   = 64
	waiting = 5 // in 1/100 s
	// readBuffer holds a few thousand messages.
	readBuffer = 4 << 20
)

// ErrTaken says that another program listens to the group.
var ErrTaken = errors.New("another program listens to that group")

// Listener has a group of NFLOG to itself.
type Listener struct {
	group uint16
	log   *gonflog.Nflog
}

// Open takes the group in the network namespace of the calling thread. It needs
// CAP_NET_ADMIN. Run has to follow.
func Open(group uint16) (*Listener, error) {
	log, err := gonflog.Open(&gonflog.Config{
		Group: group, Copymode: gonflog.CopyPacket, Bufsize: copied,
		QThresh: batch, Timeout: waiting, Flags: gonflog.FlagSeq,
	})
	if err != nil {
		return nil, fmt.Errorf("open NFLOG: %w", err)
	}
	_ = log.Con.SetReadBuffer(readBuffer) // with less, more is lost, which is told
	return &Listener{group: group, log: log}, nil
}

// Run calls packet for each packet that rules send to the group, from one
// goroutine, and lost with the number of those that found no room in the
// buffer. It returns when ctx is done, with its error, or when it cannot listen;
// then the Listener is of no use any more. The error wraps ErrTaken when
// somebody else listens.
func (l *Listener) Run(ctx context.Context, packet func(Packet), lost func(n uint32)) error {
	defer func() { _ = l.log.Close() }()
	r := receiver{packet: packet, lost: lost, ended: make(chan struct{})}
	if err := l.log.RegisterWithErrorFunc(ctx, r.message, func(err error) int { return r.failed(ctx, err) }); err != nil {
		// The library passes on the text of an error, not the error.
		if taken(l.group) {
			return fmt.Errorf("listen to NFLOG group %d: %w", l.group, ErrTaken)
		}
		return fmt.Errorf("listen to NFLOG group %d: %w", l.group, err)
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-r.ended:
		return fmt.Errorf("listen to NFLOG group %d: %w", l.group, r.err)
	}
}

// taken reports whether the group has a listener in the namespace of the
// calling thread. The file has a line for each group, which begins with its
// number (seq_show, net/netfilter/nfnetlink_log.c).
func taken(group uint16) bool {
	text, err := os.ReadFile("/proc/thread-self/net/netfilter/nfnetlink_log")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 0 && fields[0] == strconv.Itoa(int(group)) {
			return true
		}
	}
	return false
}

// receiver reads what the library hands over.
type receiver struct {
	packet func(Packet)
	lost   func(uint32)
	next   uint32 // sequence number that is due
	begun  bool

	once  sync.Once
	ended chan struct{}
	err   error // valid once ended is closed
}

// message reads one packet. Zero asks for more.
func (r *receiver) message(a gonflog.Attribute) int {
	if a.Seq != nil {
		if gap := *a.Seq - r.next; r.begun && gap != 0 && gap < 1<<31 {
			r.lost(gap)
		}
		r.next, r.begun = *a.Seq+1, true
	}
	p := Packet{Time: time.Now()}
	if a.Timestamp != nil {
		p.Time = *a.Timestamp
	}
	if a.Prefix != nil {
		p.Prefix = *a.Prefix
	}
	if a.InDev != nil {
		p.In = int(*a.InDev)
	}
	if a.OutDev != nil {
		p.Out = int(*a.OutDev)
	}
	if a.Payload != nil && p.parse(*a.Payload) == nil {
		r.packet(p)
	}
	return 0
}

// failed decides whether to go on after an error of the socket.
func (r *receiver) failed(ctx context.Context, err error) int {
	if ctx.Err() == nil && errors.Is(err, unix.ENOBUFS) {
		return 0 // the next sequence number tells how many are missing
	}
	r.once.Do(func() {
		r.err = err
		close(r.ended)
	})
	return 1
}
