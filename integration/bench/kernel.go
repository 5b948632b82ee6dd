package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nftfw/nftfw/integration/lab"
)

// elements tells when a set or map of a namespace is given an element with a
// key, or of another thing that the kernel tells its listeners.
type elements struct {
	fd    int
	tells func(packet []byte) bool
	times chan time.Time
	stop  chan struct{}
	ended sync.WaitGroup
}

// elementKey is how the kernel writes the key of address . protocol . port:
// each part in network order, padded to four bytes.
func elementKey(a netip.Addr, port uint16) []byte { return append(a.AsSlice(), portKey(port)...) }

// portKey is the end of such a key, whatever the address.
func portKey(port uint16) []byte {
	return []byte{unix.IPPROTO_TCP, 0, 0, 0, byte(port >> 8), byte(port), 0, 0}
}

// listenFor begins to listen. What is told before it is stopped waits to be
// taken.
func listenFor(ns lab.Namespace, key []byte) (*elements, error) {
	return listenTo(ns, func(packet []byte) bool { return adds(packet, key) })
}

// listenForCommits begins to listen for transactions.
func listenForCommits(ns lab.Namespace) (*elements, error) {
	return listenTo(ns, func(packet []byte) bool {
		msgs, err := syscall.ParseNetlinkMessage(packet)
		return err == nil && slices.ContainsFunc(msgs, func(m syscall.NetlinkMessage) bool {
			return m.Header.Type == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN
		})
	})
}

func listenTo(ns lab.Namespace, tells func([]byte) bool) (*elements, error) {
	e := &elements{fd: -1, tells: tells, times: make(chan time.Time, 1024), stop: make(chan struct{})}
	err := ns.Do(func() (err error) {
		if e.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER); err != nil {
			return err
		}
		return errors.Join(
			unix.Bind(e.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)}),
			unix.SetsockoptInt(e.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
			// So that the reader notices when it is stopped.
			unix.SetsockoptTimeval(e.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}),
		)
	})
	if err != nil {
		return nil, fmt.Errorf("listen to nf_tables: %w", err)
	}
	e.ended.Go(e.read)
	return e, nil
}

func (e *elements) read() {
	buf := make([]byte, 1<<20)
	for {
		select {
		case <-e.stop:
			return
		default:
		}
		n, _, err := unix.Recvfrom(e.fd, buf, 0)
		if err != nil {
			continue // no news
		}
		now := time.Now()
		if e.tells(buf[:n]) {
			select {
			case e.times <- now:
			default: // nobody has asked for a long time
			}
		}
	}
}

// adds reports whether one of some netlink messages adds an element with a
// key. The kernel puts many messages of one transaction together.
func adds(packet, key []byte) bool {
	msgs, err := syscall.ParseNetlinkMessage(packet)
	return err == nil && slices.ContainsFunc(msgs, func(m syscall.NetlinkMessage) bool {
		return m.Header.Type == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWSETELEM && bytes.Contains(m.Data, key)
	})
}

// next waits for the element.
func (e *elements) next() (time.Time, error) { return receive(e.times, "the kernel never told of it") }

// forget drops what was told so far: a change of what is there names it again.
func (e *elements) forget() {
	for {
		select {
		case <-e.times:
		default:
			return
		}
	}
}

func (e *elements) close() {
	close(e.stop)
	e.ended.Wait()
	unix.Close(e.fd)
}

// receive takes a time from a listener.
func receive(c <-chan time.Time, missing string) (time.Time, error) {
	select {
	case t, ok := <-c:
		if ok {
			return t, nil
		}
	case <-time.After(60 * time.Second):
	}
	return time.Time{}, errors.New(missing)
}

// asker asks the kernel for an element of nftfw's table until it is there. With
// somebody who listens, the kernel would make a message of each element of a
// large transaction, and take so much longer.
type asker struct {
	fd       int
	question []byte
}

func newAsker(ns lab.Namespace, set string, key []byte) (*asker, error) {
	fd, err := netlinkSocket(ns)
	if err != nil {
		return nil, err
	}
	return &asker{fd: fd, question: message(
		unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETSETELEM, unix.NLM_F_ACK, unix.NFPROTO_INET, 0, oneElement("nftfw", set, key),
	)}, nil
}

// wait returns when the element is there, and gives the time.
func (a *asker) wait(ctx context.Context) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err := lab.Poll(ctx, 500*time.Microsecond, func() error {
		there, err := a.ask()
		if err == nil && !there {
			err = errors.New("the element is not there")
		}
		return err
	})
	return time.Now(), err
}

// ask reports whether the element is there. Of a table or an element that is not
// the kernel says ENOENT.
func (a *asker) ask() (there bool, err error) {
	if err := unix.Sendto(a.fd, a.question, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return false, fmt.Errorf("ask for an element: %w", err)
	}
	for answer := make([]byte, 4096); ; {
		n, _, err := unix.Recvfrom(a.fd, answer, 0)
		if err != nil {
			return false, fmt.Errorf("read the answer about an element: %w", err)
		}
		msgs, err := syscall.ParseNetlinkMessage(answer[:n])
		if err != nil {
			return false, err
		}
		for _, m := range msgs {
			if m.Header.Type != unix.NLMSG_ERROR {
				there = true
				continue
			}
			switch no := -int32(binary.NativeEndian.Uint32(m.Data)); syscall.Errno(no) {
			case 0, unix.ENOENT:
				return there, nil
			default:
				return false, fmt.Errorf("ask for an element: %w", syscall.Errno(no))
			}
		}
	}
}

func (a *asker) close() { unix.Close(a.fd) }

// netlinkSocket opens a socket that waits for answers, not for ever.
func netlinkSocket(ns lab.Namespace) (fd int, err error) {
	err = ns.Do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER); err != nil {
			return err
		}
		return errors.Join(
			unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}),
		)
	})
	if err != nil {
		return -1, fmt.Errorf("open netlink socket: %w", err)
	}
	return fd, nil
}

// oneElement is the body of a message about one element of a set.
func oneElement(table, set string, key []byte) []byte {
	element := attr(unix.NFTA_SET_ELEM_KEY|unix.NLA_F_NESTED, attr(unix.NFTA_DATA_VALUE, key))
	return slices.Concat(
		attr(unix.NFTA_SET_ELEM_LIST_TABLE, []byte(table+"\x00")),
		attr(unix.NFTA_SET_ELEM_LIST_SET, []byte(set+"\x00")),
		attr(unix.NFTA_SET_ELEM_LIST_ELEMENTS|unix.NLA_F_NESTED, attr(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, element)),
	)
}

// committer adds single elements to a set of its own, by the fewest bytes that
// the kernel takes for it.
type committer struct {
	fd   int
	next uint32
}

const (
	committerTable = "bench"
	committerSet   = "s"
)

// newCommitter makes the set and opens a socket.
func newCommitter(ns lab.Namespace) (*committer, error) {
	fd, err := netlinkSocket(ns)
	return &committer{fd: fd}, err
}

// commit adds one element and waits for the kernel's word that it is there.
func (c *committer) commit() (time.Duration, error) {
	c.next++
	body := oneElement(committerTable, committerSet, binary.BigEndian.AppendUint32(nil, c.next))
	subsystem := uint16(unix.NFNL_SUBSYS_NFTABLES)
	batch := slices.Concat(
		message(unix.NFNL_MSG_BATCH_BEGIN, 0, unix.AF_UNSPEC, subsystem, nil),
		message(subsystem<<8|unix.NFT_MSG_NEWSETELEM, unix.NLM_F_ACK|unix.NLM_F_CREATE, unix.NFPROTO_INET, 0, body),
		message(unix.NFNL_MSG_BATCH_END, 0, unix.AF_UNSPEC, subsystem, nil),
	)
	began := time.Now()
	if err := unix.Sendto(c.fd, batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, fmt.Errorf("send batch: %w", err)
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(c.fd, answer, 0)
	took := time.Since(began)
	if err != nil {
		return 0, fmt.Errorf("read the answer to a batch: %w", err)
	}
	if n < unix.NLMSG_HDRLEN+4 || binary.NativeEndian.Uint32(answer[unix.NLMSG_HDRLEN:]) != 0 {
		return 0, errors.New("the kernel refused an element")
	}
	return took, nil
}

func (c *committer) close() { unix.Close(c.fd) }

// message is one netlink message of nfnetlink.
func message(kind, flags uint16, family byte, resource uint16, body []byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.NLMSG_HDRLEN+4+len(body)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|flags)
	b = append(b, make([]byte, 8)...) // sequence and port
	b = binary.BigEndian.AppendUint16(append(b, family, unix.NFNETLINK_V0), resource)
	return append(b, body...)
}

// attr is one netlink attribute.
func attr(kind uint16, value []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(unix.NLA_HDRLEN+len(value)))
	b = append(binary.NativeEndian.AppendUint16(b, kind), value...)
	for len(b)%unix.NLA_ALIGNTO != 0 {
		b = append(b, 0)
	}
	return b
}
