package nft

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrNoConntrackEvents is what NewFlows gives where the kernel is told not to
// speak of connections.
var ErrNoConntrackEvents = errors.New("sysctl net.netfilter.nf_conntrack_events is 0")

// newFlowsBuffer is what may wait to be read: some ten thousand connections.
const newFlowsBuffer = 16 << 20

// NewFlows calls notify for each connection that begins: that connection
// tracking has taken in, once its first packet got past every rule on its way.
// It calls lost when some found no room in the buffer. The kernel makes the
// messages only while somebody listens (nf_conntrack_events, since Linux 5.19
// unless set otherwise). NewFlows returns when ctx is done, with its error, or
// when it cannot listen.
func (k *Kernel) NewFlows(ctx context.Context, notify func(Flow), lost func()) error {
	const what = "listen to new connections"
	if text, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_events"); err == nil && strings.TrimSpace(string(text)) == "0" {
		return fmt.Errorf("%s: %w", what, ErrNoConntrackEvents)
	}
	s, err := k.subscription(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer s.end()
	_ = s.conn.SetReadBuffer(newFlowsBuffer) // with less, more is lost, which is told
	if err := s.conn.JoinGroup(unix.NFNLGRP_CONNTRACK_NEW); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	for {
		msgs, err := s.conn.Receive()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, unix.ENOBUFS):
			lost()
		case err != nil:
			return fmt.Errorf("%s: %w", what, err)
		}
		for _, m := range msgs {
			if f, ok := parseFlow(payload(m)); ok {
				notify(f)
			}
		}
	}
}
