package integration

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// starts is how often BenchmarkStartToElement starts its container.
const starts = 200

// BenchmarkStartToElement measures how long a started container stays closed:
// from the time that the engine stamps on its `start` event to the moment at
// which the kernel tells its listeners of the element that speaks of the
// container's published port. Included are the event's way through the
// engine's API, nftfw's questions to the engine, and the commit. The error is
// the time that this process takes to wake up and read the kernel's message,
// some tens of microseconds on an idle machine. An element that was there
// before the event has a time below zero.
//
// One iteration is 200 starts; p50 and p99 are over all of them.
func BenchmarkStartToElement(b *testing.B) {
	s := scene(b, "version: 1")
	s.docker("network", "create", "--subnet", "172.30.9.0/24", "bench")
	address := netip.MustParseAddr("172.30.9.10")
	s.docker("create", "--name", "web", "--network", "bench", "--ip", address.String(), "-p", "8080:80", "echo:1")

	elements := s.newElements(elementKey(address, unix.IPPROTO_TCP, 80))
	events := s.startEvents()
	var took []time.Duration
	for b.Loop() {
		for range starts {
			s.docker("start", "web")
			began, present := receive(b, events), receive(b, elements)
			took = append(took, present.Sub(began))
			s.docker("kill", "web")
			s.docker("wait", "web")
			drain(elements) // a change of what is there names it again
		}
	}
	slices.Sort(took)
	quantile := func(q float64) float64 {
		return float64(took[int(q*float64(len(took)-1))].Microseconds()) / 1000
	}
	b.ReportMetric(quantile(0.50), "p50-ms")
	b.ReportMetric(quantile(0.99), "p99-ms")
	b.ReportMetric(0, "ns/op") // of no meaning here
}

func receive(tb testing.TB, c <-chan time.Time) time.Time {
	tb.Helper()
	select {
	case t, ok := <-c:
		if !ok {
			tb.Fatal("the listener has ended")
		}
		return t
	case <-time.After(10 * time.Second):
		tb.Fatal("nothing was reported within 10s of a start")
	}
	panic("unreachable")
}

func drain(c <-chan time.Time) {
	for {
		select {
		case <-c:
		default:
			return
		}
	}
}

// startEvents reports the times of the engine's start events.
func (s *set) startEvents() <-chan time.Time {
	s.t.Helper()
	out, err := s.engine.Events(s.ctx(), "--filter", "event=start", "--format", "{{.TimeNano}}")
	if err != nil {
		s.t.Fatal(err)
	}
	times := make(chan time.Time, starts)
	go func() {
		defer close(times)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			ns, err := strconv.ParseInt(strings.TrimSpace(lines.Text()), 10, 64)
			if err != nil {
				s.t.Errorf("the time of an event: %v", err)
				return
			}
			times <- time.Unix(0, ns)
		}
	}()
	return times
}

// elementKey is how the kernel writes the key of address . protocol . port:
// each part in network order, padded to four bytes.
func elementKey(a netip.Addr, proto byte, port uint16) []byte {
	return append(a.AsSlice(), proto, 0, 0, 0, byte(port>>8), byte(port), 0, 0)
}

// newElements reports when a set or map in the host's namespace is given an
// element with a key.
func (s *set) newElements(key []byte) <-chan time.Time {
	s.t.Helper()
	fd := -1
	if err := s.Host.Do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)})
	}); err != nil {
		s.t.Fatal(err)
	}
	// So that the reader notices when the benchmark is over.
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}); err != nil {
		s.t.Fatal(err)
	}
	times, ended := make(chan time.Time, starts), make(chan struct{})
	ctx, cancel := context.WithCancel(s.ctx())
	s.t.Cleanup(func() {
		cancel()
		<-ended
		unix.Close(fd)
	})
	go func() {
		defer close(ended)
		buf := make([]byte, 1<<20)
		for ctx.Err() == nil {
			n, _, err := unix.Recvfrom(fd, buf, 0)
			if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				s.t.Errorf("listen to nf_tables: %v", err)
				return
			}
			now := time.Now()
			found, err := newElement(buf[:n], key)
			if err != nil {
				s.t.Errorf("read a message of nf_tables: %v", err)
				return
			}
			if found {
				times <- now
			}
		}
	}()
	return times
}

// newElement reports whether one of some netlink messages adds an element with
// a key. The kernel puts many messages of one transaction together.
func newElement(packet, key []byte) (bool, error) {
	msgs, err := syscall.ParseNetlinkMessage(packet)
	return slices.ContainsFunc(msgs, func(m syscall.NetlinkMessage) bool {
		return m.Header.Type == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWSETELEM && bytes.Contains(m.Data, key)
	}), err
}
