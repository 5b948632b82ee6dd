package links

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// receiveBuffer holds the messages of some thousand links; more than the
	// kernel's default of 208 KiB, which a few hundred overflow.
	receiveBuffer = 8 << 20
	// dumpTries is how often a dump that a change interrupted is repeated.
	dumpTries = 50
	// extSkipStats is RTEXT_FILTER_SKIP_STATS (linux/rtnetlink.h).
	extSkipStats = 1 << 3
)

// batch is what gathered since the last look.
type batch struct {
	changes []change
	lost    bool  // messages were dropped: list again
	err     error // the subscription is over
}

// inbox reads link messages into memory as they come, so that the kernel's
// buffer stays empty whatever the reader is busy with.
type inbox struct {
	sock *nl.NetlinkSocket
	wake chan struct{} // holds one token while there is something to take
	done chan struct{}

	mu  sync.Mutex
	got batch
}

// subscribe opens the subscription in the calling thread's namespace.
func subscribe() (*inbox, error) {
	sock, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK)
	if err != nil {
		return nil, fmt.Errorf("subscribe to link messages: %w", err)
	}
	// Without CAP_NET_ADMIN the buffer stays as it is, and an overflow is
	// noticed all the same.
	_ = sock.SetReceiveBufferSize(receiveBuffer, true)
	in := &inbox{sock: sock, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go in.read()
	return in, nil
}

func (in *inbox) close() {
	in.sock.Close()
	<-in.done
}

func (in *inbox) read() {
	defer close(in.done)
	for {
		msgs, from, err := in.sock.Receive()
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		case errors.Is(err, unix.ENOBUFS):
			in.add(batch{lost: true})
			continue
		case errors.Is(err, fs.ErrClosed):
			return
		case err != nil:
			in.add(batch{err: err})
			return
		case from.Pid != nl.PidKernel:
			continue // any local process may send to us
		}
		var b batch
		for _, m := range msgs {
			if c, ok := decodeChange(m); ok {
				b.changes = append(b.changes, c)
			}
		}
		if len(b.changes) > 0 {
			in.add(b)
		}
	}
}

func (in *inbox) add(b batch) {
	in.mu.Lock()
	in.got.changes = append(in.got.changes, b.changes...)
	in.got.lost = in.got.lost || b.lost
	if b.err != nil {
		in.got.err = b.err
	}
	in.mu.Unlock()
	select {
	case in.wake <- struct{}{}:
	default:
	}
}

func (in *inbox) take() batch {
	in.mu.Lock()
	defer in.mu.Unlock()
	b := in.got
	in.got = batch{}
	return b
}

// query asks the kernel about the namespace it was opened in.
type query struct {
	sock map[int]*nl.SocketHandle
}

func openQuery() (*query, error) {
	sock, err := nl.Subscribe(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a route socket: %w", err)
	}
	timeout := unix.Timeval{Sec: 10}
	_ = sock.SetReceiveTimeout(&timeout) // only stores the value
	_ = sock.SetSendTimeout(&timeout)
	return &query{sock: map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: sock}}}, nil
}

func (q *query) close() { q.sock[unix.NETLINK_ROUTE].Close() }

func (q *query) request(kind, flags int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(kind, flags)
	req.Sockets = q.sock
	return req
}

// links returns all links, and never a list that a change interrupted.
func (q *query) links() (map[int]link, error) {
	msgs, err := undisturbed(func() ([][]byte, error) {
		req := q.request(unix.RTM_GETLINK, unix.NLM_F_DUMP)
		req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
		req.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(extSkipStats)))
		return req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	})
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	links := make(map[int]link, len(msgs))
	for _, m := range msgs {
		if l, ok := decodeLink(m); ok {
			links[l.index] = l
		}
	}
	return links, nil
}

// undisturbed reads a list of the kernel's again for as long as changes
// interrupt it, which happens while many containers start at once, and gives up
// after dumpTries.
func undisturbed[T any](read func() (T, error)) (list T, err error) {
	for range dumpTries {
		if list, err = read(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return list, err
		}
	}
	return list, fmt.Errorf("changed under %d attempts: %w", dumpTries, err)
}

// link returns one link; ok is false when there is none or it cannot be asked.
func (q *query) link(index int) (l link, ok bool) {
	req := q.request(unix.RTM_GETLINK, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil || len(msgs) != 1 {
		return link{}, false
	}
	return decodeLink(msgs[0])
}

// netnsidsAtOnce is how many namespaces netnsids may be asked about at a time:
// their answers fit into what a socket holds by default (net.core.rmem_default).
const netnsidsAtOnce = 64

// netnsids returns the ids that the namespaces behind files have in this one,
// noNetNS where it has none or a file is no namespace. The library takes a buffer
// of 64 KiB to read each answer into, and two system calls more.
func (q *query) netnsids(files []*os.File) []int {
	ids := make([]int, len(files))
	asked := map[uint32]int{} // by the number of the message
	var batch []byte
	for i, f := range files {
		ids[i] = noNetNS
		req := nl.NewNetlinkRequest(unix.RTM_GETNSID, 0)
		req.AddData(nl.NewRtGenMsg())
		req.AddData(nl.NewRtAttr(netlink.NETNSA_FD, nl.Uint32Attr(uint32(f.Fd()))))
		asked[req.Seq] = i
		batch = append(batch, req.Serialize()...) // of a size that needs no padding
	}
	fd := q.sock[unix.NETLINK_ROUTE].Socket.GetFd()
	if unix.Sendto(fd, batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}) != nil {
		return ids
	}
	// What the kernel has to say has been said by now.
	answer := make([]byte, unix.Getpagesize())
	for len(asked) > 0 {
		n, from, err := unix.Recvfrom(fd, answer, unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if sender, ok := from.(*unix.SockaddrNetlink); err != nil || !ok || sender.Pid != nl.PidKernel {
			return ids
		}
		messages, err := syscall.ParseNetlinkMessage(answer[:n])
		if err != nil {
			return ids
		}
		for _, m := range messages {
			i, ours := asked[m.Header.Seq]
			if !ours {
				continue
			}
			delete(asked, m.Header.Seq)
			if m.Header.Type == unix.RTM_NEWNSID {
				ids[i] = netnsidIn(m.Data)
			}
		}
	}
	return ids
}

// netnsidIn reads an RTM_NEWNSID message.
func netnsidIn(data []byte) int {
	skip := nl.NewRtGenMsg().Len()
	if len(data) < skip {
		return noNetNS
	}
	attrs, err := nl.ParseRouteAttr(data[skip:])
	if err != nil {
		return noNetNS
	}
	for _, a := range attrs {
		if a.Attr.Type == netlink.NETNSA_NSID {
			return int32Of(a.Value)
		}
	}
	return noNetNS
}
