package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// hammerPatience is how long one of the hammer's connections may take. With
// one attempt a millisecond to each target it bounds how many are under way.
const hammerPatience = 250 * time.Millisecond

// Hammer tries to connect by TCP, every millisecond unless told otherwise, to
// each of some addresses, on one thread, until it is stopped.
type Hammer struct {
	every time.Duration
	stop  chan struct{}
	ended chan error
	tally Tally
}

// Tally counts what came of the attempts.
type Tally struct {
	Attempts  int
	Connected map[netip.AddrPort]int // handshakes that completed
	Refused   int                    // answered by a reset or an ICMP error
	Silent    int                    // not answered in time
	First     time.Time              // of the first handshake, zero if none
}

// Reached is the number of handshakes that completed.
func (t Tally) Reached() int {
	sum := 0
	for _, n := range t.Connected {
		sum += n
	}
	return sum
}

// attempt is a connection under way.
type attempt struct {
	fd    int
	to    netip.AddrPort
	began time.Time
}

// Hammer begins to hammer from the namespace.
func (n Namespace) Hammer(to ...netip.AddrPort) *Hammer {
	return n.HammerEvery(time.Millisecond, to...)
}

// HammerEvery begins to hammer from the namespace, at a pace of one's own.
func (n Namespace) HammerEvery(every time.Duration, to ...netip.AddrPort) *Hammer {
	h := &Hammer{every: every, stop: make(chan struct{}), ended: make(chan error, 1)}
	h.tally.Connected = map[netip.AddrPort]int{}
	go func() { h.ended <- n.Do(func() error { return h.run(to) }) }()
	return h
}

// Stop ends the hammering and returns what came of it. It is called once.
func (h *Hammer) Stop() (Tally, error) {
	close(h.stop)
	err := <-h.ended
	return h.tally, err
}

func (h *Hammer) run(to []netip.AddrPort) error {
	var under []attempt
	defer func() {
		for _, a := range under {
			unix.Close(a.fd)
		}
	}()
	tick := time.NewTicker(h.every)
	defer tick.Stop()
	for {
		select {
		case <-h.stop:
			return nil
		case <-tick.C:
		}
		for _, addr := range to {
			a, err := begin(addr)
			if err != nil {
				return fmt.Errorf("hammer %s: %w", addr, err)
			}
			h.tally.Attempts++
			under = append(under, a)
		}
		var err error
		if under, err = h.collect(under); err != nil {
			return fmt.Errorf("hammer: %w", err)
		}
	}
}

// begin starts to connect without waiting.
func begin(to netip.AddrPort) (attempt, error) {
	family, addr := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()})
	if to.Addr().Is4() {
		family, addr = unix.AF_INET, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return attempt{}, err
	}
	// Closing resets the connection, so that no port is left in TIME_WAIT.
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return attempt{}, errors.Join(err, unix.Close(fd))
	}
	// What connect says at once poll says again as an error of the socket.
	_ = unix.Connect(fd, addr)
	return attempt{fd: fd, to: to, began: time.Now()}, nil
}

// collect takes note of the attempts that have ended and returns the others.
func (h *Hammer) collect(under []attempt) ([]attempt, error) {
	fds := make([]unix.PollFd, len(under))
	for i, a := range under {
		fds[i] = unix.PollFd{Fd: int32(a.fd), Events: unix.POLLOUT}
	}
	if _, err := unix.Poll(fds, 0); err != nil && !errors.Is(err, unix.EINTR) {
		return under, err
	}
	left := under[:0]
	for i, a := range under {
		switch {
		case fds[i].Revents != 0:
			h.note(a)
		case time.Since(a.began) > hammerPatience:
			h.tally.Silent++
		default:
			left = append(left, a)
			continue
		}
		unix.Close(a.fd)
	}
	return left, nil
}

func (h *Hammer) note(a attempt) {
	errno, err := unix.GetsockoptInt(a.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if _, peerErr := unix.Getpeername(a.fd); err != nil || errno != 0 || peerErr != nil {
		h.tally.Refused++
		return
	}
	if h.tally.First.IsZero() {
		h.tally.First = time.Now()
	}
	h.tally.Connected[a.to]++
}
