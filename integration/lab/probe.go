package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ProbeTimeout is how long a probe waits for an answer. On the wire an answer
// takes well under a millisecond; the rest is for a busy machine.
const ProbeTimeout = 400 * time.Millisecond

// Outcome says what became of a probe.
type Outcome string

// The outcomes.
const (
	Answered Outcome = "answered" // the echo server spoke
	Mute     Outcome = "mute"     // TCP connected, and no echo server spoke
	Refused  Outcome = "refused"  // a reset or an ICMP error came back
	Silent   Outcome = "silent"   // nothing came back: dropped, or no such host
)

// Result is the outcome of one probe.
type Result struct {
	Outcome Outcome
	Server  string         // who answered, when Answered
	Peer    netip.AddrPort // the prober's address as the server saw it
	Err     error          // of an outcome other than Answered
}

// Reached reports whether anything behind the address was reached: a TCP
// handshake alone is enough.
func (r Result) Reached() bool { return r.Outcome == Answered || r.Outcome == Mute }

// String returns the result in a few words.
func (r Result) String() string {
	if r.Outcome == Answered {
		return fmt.Sprintf("answered by %s to %s", r.Server, r.Peer)
	}
	return fmt.Sprintf("%s (%v)", r.Outcome, r.Err)
}

// Probe is one question: can this address be reached?
type Probe struct {
	Network string // tcp or udp
	To      netip.AddrPort
	From    netip.Addr    // source address; zero: what routing says
	Timeout time.Duration // zero: ProbeTimeout
}

// String returns the probe as "tcp 198.18.0.1:80 from 198.18.0.7".
func (p Probe) String() string {
	s := p.Network + " " + p.To.String()
	if p.From.IsValid() {
		s += " from " + p.From.String()
	}
	return s
}

// Probe asks once.
func (n Namespace) Probe(ctx context.Context, p Probe) Result {
	if p.Timeout == 0 {
		p.Timeout = ProbeTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, p.Timeout)
	defer cancel()
	c, err := n.Dial(ctx, p.Network, p.To, p.From)
	if err != nil {
		return failed(err)
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return failed(err)
	}
	if p.Network == "udp" {
		if _, err := c.Write([]byte("probe\n")); err != nil {
			return failed(err)
		}
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		r := failed(err)
		if p.Network != "udp" {
			r.Outcome = Mute
		}
		return r
	}
	return answered(line)
}

// answered reads the echo server's greeting.
func answered(line string) Result {
	server, peer, ok := strings.Cut(strings.TrimSpace(line), " ")
	if !ok {
		return Result{Outcome: Mute, Err: fmt.Errorf("%q is not an echo server's greeting", line)}
	}
	from, err := netip.ParseAddrPort(peer)
	if err != nil {
		return Result{Outcome: Mute, Err: err}
	}
	return Result{Outcome: Answered, Server: server, Peer: netip.AddrPortFrom(from.Addr().Unmap(), from.Port())}
}

func failed(err error) Result {
	var timeout net.Error
	if errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout() {
		return Result{Outcome: Silent, Err: err}
	}
	for _, no := range []unix.Errno{unix.ECONNREFUSED, unix.ECONNRESET, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EACCES, unix.EPERM} {
		if errors.Is(err, no) {
			return Result{Outcome: Refused, Err: err}
		}
	}
	return Result{Outcome: Silent, Err: err}
}
