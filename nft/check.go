package nft

import (
	"context"
	"fmt"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Check asks whether the kernel would take p, and changes nothing: a batch
// without its end is looked at as any other and then thrown away, which is how
// `nft -c` asks. It may load modules. The error is as Commit's.
func (k *Kernel) Check(ctx context.Context, p Plan) error {
	if p.Empty() {
		return ctx.Err()
	}
	batch, err := p.messages(time.Now())
	if err != nil {
		return fmt.Errorf("check table %q: %w", p.table, err)
	}
	k.commit.Lock()
	defer k.commit.Unlock()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("check table %q: %w", p.table, err)
	}
	begin := k.number(batch)
	buf := marshal(batch, begin)
	if err := k.conn.SetWriteBuffer(2 * len(buf)); err != nil {
		return refused("raise netlink buffers", p.table, err)
	}
	if err := k.conn.SetReadBuffer(readBuffer); err != nil {
		return refused("raise netlink buffers", p.table, err)
	}
	_ = k.conn.SetWriteDeadline(time.Now().Add(answerTime)) // see session.patience
	if err := write(k.conn, buf[:len(buf)-boundLen]); err != nil {
		return refused("send batch", p.table, err)
	}
	at, err := k.answer(begin, len(batch))
	if err == nil {
		return nil
	}
	what := "start transaction"
	if at > 0 {
		what = batch[at-1].about(err)
	}
	return refused(what, p.table, err)
}

// ipctnlGetStats is IPCTNL_MSG_CT_GET_STATS of
// include/uapi/linux/netfilter/nfnetlink_conntrack.h: how many entries there are.
const ipctnlGetStats = 5

// CheckConntrack asks whether entries of connection tracking can be listed and
// deleted here.
func (k *Kernel) CheckConntrack(ctx context.Context) error {
	s, err := k.session(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	const what = "read connection tracking"
	if _, err := s.send(conntrackMessage(ipctnlGetStats, netlink.Acknowledge, unix.AF_UNSPEC, nil)); err != nil {
		return conntrackRefused(ctx, what, err)
	}
	// The answer is marked as one of several, and none follows: only the
	// acknowledgement ends it.
	if err := s.rawMessages(func([]byte) {}); err != nil {
		return conntrackRefused(ctx, what, err)
	}
	return nil
}
