package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/nftfw/nftfw/pkg/ruleset"
)

const (
	// maxComment is what fits into one entry of an element's user data
	// (NFTNL_UDATA_COMMENT_MAXLEN).
	maxComment = 128
	// elementBytes bounds the bytes of elements in one message: they are the
	// payload of one attribute, whose length has 16 bits.
	elementBytes = 60 << 10
	// readBuffer holds the kernel's answers, each of which repeats the message
	// that it refuses.
	readBuffer = 8 << 20
	// answerTime is how long an answer may take after the batch was handed over.
	// The kernel has worked it off by then.
	answerTime = 10 * time.Second
	// quietBytes is from which size on a batch is hidden from Monitor: some ten
	// thousand elements.
	quietBytes = 1 << 20
)

// Commit sends p as one netlink batch: the kernel does all of it or nothing. An
// empty plan sends nothing. A context that is done before the batch is sent
// stops it; after that Commit waits for the answer, which is never far.
// The error is a *CommitError, except for that of the context and for rules that
// cannot be expressed.
func (k *Kernel) Commit(ctx context.Context, p Plan) error {
	if p.Empty() {
		return ctx.Err()
	}
	batch, err := p.messages(time.Now())
	if err != nil {
		return fmt.Errorf("commit table %q: %w", p.table, err)
	}
	if len(batch) == 0 {
		return ctx.Err() // all that was to be added has expired by now
	}
	k.commit.Lock()
	defer k.commit.Unlock()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("commit table %q: %w", p.table, err)
	}
	return k.send(p.table, batch)
}

// send sends the batch and reads the answer. The caller holds commit.
func (k *Kernel) send(table string, batch []message) error {
	begin := k.number(batch)
	buf := marshal(batch, begin)
	room, err := k.conn.WriteBuffer()
	if err == nil && room < 2*len(buf) {
		// The kernel refuses a datagram that is larger than the buffer.
		err = k.conn.SetWriteBuffer(2 * len(buf))
	}
	if err == nil {
		err = k.conn.SetReadBuffer(readBuffer)
	}
	if err != nil {
		return refused("raise netlink buffers", table, err)
	}
	if len(buf) > quietBytes {
		defer k.quiet()()
	}
	_ = k.conn.SetWriteDeadline(time.Now().Add(answerTime)) // see session.patience
	if err := write(k.conn, buf); err != nil {
		return refused("send batch", table, err)
	}
	buf = nil // the kernel has worked it off; what is refused is still in batch
	at, err := k.answer(begin, len(batch))
	if err == nil {
		return nil
	}
	what := "start transaction"
	if at > 0 {
		what = batch[at-1].about(err)
	}
	return refused(what, table, err)
}

// write sends what may be many messages as one datagram, without a copy.
func write(conn *netlink.Conn, buf []byte) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Write(func(fd uintptr) bool {
		failed = unix.Sendto(int(fd), buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		return !errors.Is(failed, unix.EAGAIN) && !errors.Is(failed, unix.EINTR)
	})
	return errors.Join(err, failed)
}

// number gives the number of the begin message of a batch. The caller holds
// commit.
func (k *Kernel) number(batch []message) uint32 {
	begin := k.sequence
	k.sequence += uint32(len(batch)) + 2
	return begin
}

// boundLen is the size of the message that begins or ends a batch.
const boundLen = unix.NLMSG_HDRLEN + nfgenmsgLen

// marshal writes the batch between its begin and end messages, numbered from
// begin on, and asks for an answer to the last message before the end.
func marshal(batch []message, begin uint32) []byte {
	// The resource ID names the subsystem whose batch it is.
	mark := binary.BigEndian.AppendUint16([]byte{unix.AF_UNSPEC, unix.NFNETLINK_V0}, unix.NFNL_SUBSYS_NFTABLES)
	size := 2 * boundLen
	for _, m := range batch {
		size += unix.NLMSG_HDRLEN + nfgenmsgLen + (len(m.data)+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1)
	}
	buf := make([]byte, 0, size)
	add := func(kind uint16, flags netlink.HeaderFlags, header, data []byte) {
		buf = binary.NativeEndian.AppendUint32(buf, uint32(unix.NLMSG_HDRLEN+len(header)+len(data)))
		buf = binary.NativeEndian.AppendUint16(buf, kind)
		buf = binary.NativeEndian.AppendUint16(buf, uint16(netlink.Request|flags))
		buf = binary.NativeEndian.AppendUint32(buf, begin)
		buf = binary.NativeEndian.AppendUint32(buf, 0) // the kernel knows who sends
		buf = pad(append(append(buf, header...), data...))
		begin++
	}
	add(unix.NFNL_MSG_BATCH_BEGIN, 0, mark, nil)
	for i, m := range batch {
		flags := m.flags
		if i == len(batch)-1 {
			flags |= netlink.Acknowledge
		}
		add(uint16(unix.NFNL_SUBSYS_NFTABLES<<8|m.kind), flags, []byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0}, m.data)
	}
	add(unix.NFNL_MSG_BATCH_END, 0, mark, nil)
	return buf
}

// answer reads until the kernel has said everything about a batch of n messages
// whose begin message has the number begin, and returns the first refusal with
// the place of what it is about: 0 is the begin message.
//
// The kernel answers the messages that it refuses and the one that asked, which
// is the last, in their order. What concerns the transaction as a whole, as
// missing rights or no memory, it says about the begin message, and then it may
// say nothing else.
func (k *Kernel) answer(begin uint32, last int) (at int, err error) {
	place := func(seq uint32) (int, bool) { // earlier batches may have left answers
		n := int(seq - begin)
		return n, n <= last
	}
	_ = k.conn.SetReadDeadline(time.Now().Add(answerTime))
	for {
		replies, failure := k.conn.Receive()
		var op *netlink.OpError
		switch {
		case failure == nil:
			for _, m := range replies {
				if n, ok := place(m.Header.Sequence); ok && n == last && m.Header.Type == netlink.Error {
					return at, err
				}
			}
		case errors.As(failure, &op) && op.Sequence != 0:
			n, ok := place(op.Sequence)
			if !ok {
				continue
			}
			if err == nil {
				at, err = n, failure
			}
			if n == 0 || n == last {
				return at, err
			}
		default:
			// Some answer is lost. The next batch gets a connection without any.
			if err == nil {
				at, err = 0, failure
			}
			if reopened := k.reopen(); reopened != nil {
				return at, errors.Join(err, reopened)
			}
			return at, err
		}
	}
}

// about says what m does, and where the kernel points at an element which one.
func (m message) about(refusal error) string {
	const header = unix.NLMSG_HDRLEN + nfgenmsgLen
	var op *netlink.OpError
	if m.set == nil || !errors.As(refusal, &op) || op.Offset < header || op.Offset-header >= len(m.data) {
		return m.what
	}
	for _, b := range attributes(m.data[op.Offset-header:]) {
		e := parseElement(b, time.Time{})
		if len(e.key) != int(definitionOf(m.set).keyLen) {
			break
		}
		return m.what + ": " + decodeKey(m.set.Key, e.key).Format(m.set.Key)
	}
	return m.what
}

// batch collects the messages of a transaction.
type batch struct {
	table string
	list  []message
}

func (b *batch) add(kind int, flags netlink.HeaderFlags, data []byte, what string) {
	b.list = append(b.list, message{kind: kind, flags: flags, data: data, what: what})
}

// messages writes the plan. The order is one that the kernel takes: what is
// referred to comes before what refers to it, and goes after.
func (p Plan) messages(now time.Time) ([]message, error) {
	b := &batch{table: p.table}
	b.start(p.begin)
	for _, s := range p.newSets {
		b.newSet(s)
	}
	for _, c := range p.newChains {
		b.newChain(c)
	}
	for _, c := range p.policies {
		b.newChain(c)
	}
	for _, name := range p.flush {
		data := appendString(nil, unix.NFTA_RULE_TABLE, b.table)
		b.add(unix.NFT_MSG_DELRULE, 0, appendString(data, unix.NFTA_RULE_CHAIN, name), "flush chain "+name)
	}
	for _, c := range p.rules {
		for i, r := range c.Rules {
			if err := b.newRule(c.Name, r); err != nil {
				return nil, fmt.Errorf("rule %d of chain %s: %w", i+1, c.Name, err)
			}
		}
	}
	for _, c := range p.elements {
		if err := b.changeElements(c, now); err != nil {
			return nil, err
		}
	}
	for _, name := range p.goneSets {
		data := appendString(nil, unix.NFTA_SET_TABLE, b.table)
		b.add(unix.NFT_MSG_DELSET, 0, appendString(data, unix.NFTA_SET_NAME, name), "delete set "+name)
	}
	for _, name := range p.goneChains {
		data := appendString(nil, unix.NFTA_CHAIN_TABLE, b.table)
		b.add(unix.NFT_MSG_DELCHAIN, 0, appendString(data, unix.NFTA_CHAIN_NAME, name), "delete chain "+name)
	}
	return b.list, nil
}

func (b *batch) start(begin beginning) {
	name := appendString(nil, unix.NFTA_TABLE_NAME, b.table)
	if begin == replaceTable || begin == deleteTable {
		b.add(unix.NFT_MSG_DELTABLE, 0, name, "delete table")
	}
	if begin == replaceTable || begin == createTable {
		data := appendU32(name[:len(name):len(name)], unix.NFTA_TABLE_FLAGS, 0)
		// Exclusive: what somebody made meanwhile must not be mixed with ours.
		b.add(unix.NFT_MSG_NEWTABLE, netlink.Create|netlink.Excl, data, "add table")
	}
}

func (b *batch) newSet(s *ruleset.Set) {
	d := definitionOf(s)
	data := appendString(nil, unix.NFTA_SET_TABLE, b.table)
	data = appendString(data, unix.NFTA_SET_NAME, s.Name)
	data = appendU32(data, unix.NFTA_SET_FLAGS, d.flags)
	data = appendU32(data, unix.NFTA_SET_KEY_TYPE, d.keyType)
	data = appendU32(data, unix.NFTA_SET_KEY_LEN, d.keyLen)
	// The number refers to the set within the batch. It must be there, and names do as well.
	data = appendU32(data, unix.NFTA_SET_ID, uint32(len(b.list)+1))
	if s.Verdicts {
		data = appendU32(data, unix.NFTA_SET_DATA_TYPE, unix.NFT_DATA_VERDICT)
		data = appendU32(data, unix.NFTA_SET_DATA_LEN, 0)
	}
	if d.timeout != 0 {
		data = appendU64(data, unix.NFTA_SET_TIMEOUT, d.timeout)
	}
	if d.counter {
		// The kernel gives a copy to every element that comes without one.
		data = appendNested(data, nftaSetExpr, func(data []byte) []byte {
			return appendString(data, unix.NFTA_EXPR_NAME, counterName)
		})
	}
	if d.size != 0 {
		data = appendNested(data, unix.NFTA_SET_DESC, func(data []byte) []byte {
			return appendU32(data, unix.NFTA_SET_DESC_SIZE, d.size)
		})
	}
	order := uint32(0)
	if len(s.Key) == 1 {
		order = typeOf(s.Key[0]).order
	}
	// nft reads the byte order of values from here when it lists the set.
	udata := newUdata(udataSetKeyByteOrder, binary.NativeEndian.AppendUint32(nil, order))
	data = appendAttr(data, unix.NFTA_SET_USERDATA, udata...)
	b.add(unix.NFT_MSG_NEWSET, netlink.Create, data, "add set "+s.Name)
}

func (b *batch) newChain(c *ruleset.Chain) {
	data := appendString(nil, unix.NFTA_CHAIN_TABLE, b.table)
	data = appendString(data, unix.NFTA_CHAIN_NAME, c.Name)
	if c.Hook != "" {
		policy := uint32(nfDrop)
		if c.Policy == ruleset.Accept {
			policy = nfAccept
		}
		data = appendString(data, unix.NFTA_CHAIN_TYPE, "filter")
		data = appendU32(data, unix.NFTA_CHAIN_POLICY, policy)
		data = appendNested(data, unix.NFTA_CHAIN_HOOK, func(data []byte) []byte {
			data = appendU32(data, unix.NFTA_HOOK_HOOKNUM, hookNumber(c.Hook))
			return appendU32(data, unix.NFTA_HOOK_PRIORITY, uint32(int32(c.Priority)))
		})
	}
	b.add(unix.NFT_MSG_NEWCHAIN, netlink.Create, data, "add chain "+c.Name)
}

func hookNumber(h ruleset.Hook) uint32 {
	for n, name := range hooks {
		if name == h {
			return uint32(n)
		}
	}
	return ^uint32(0) // which the kernel refuses
}

func (b *batch) newRule(chain string, r ruleset.Rule) error {
	expressions, err := marshalRule(r)
	if err != nil {
		return err
	}
	data := appendString(nil, unix.NFTA_RULE_TABLE, b.table)
	data = appendString(data, unix.NFTA_RULE_CHAIN, chain)
	data = appendAttr(data, unix.NFTA_RULE_EXPRESSIONS|unix.NLA_F_NESTED, expressions...)
	b.add(unix.NFT_MSG_NEWRULE, netlink.Create|netlink.Append, data, "add rule to "+chain+": "+r.String())
	return nil
}

// changeElements deletes before it adds, so that one range may make room for
// another.
func (b *batch) changeElements(c elementChange, now time.Time) error {
	if c.flush || c.recount {
		data := appendString(nil, unix.NFTA_SET_ELEM_LIST_TABLE, b.table)
		b.add(unix.NFT_MSG_DELSETELEM, 0, appendString(data, unix.NFTA_SET_ELEM_LIST_SET, c.set.Name), "flush set "+c.set.Name)
	}
	gone := elementWriter{batch: b, kind: unix.NFT_MSG_DELSETELEM, set: c.set, what: "delete elements of "}
	for _, e := range c.deleted() {
		gone.write(func(buf []byte) []byte { return appendElement(buf, e) })
	}
	gone.flush()
	added := elementWriter{batch: b, kind: unix.NFT_MSG_NEWSETELEM, flags: netlink.Create, set: c.set, what: "add elements to "}
	for e := range c.added() {
		if c.set.Verdicts {
			if _, err := verdictCode(e.verdict); err != nil {
				return fmt.Errorf("element %s: %w", elementText(c.set, e), err)
			}
		}
		if len(e.comment) > maxComment {
			return fmt.Errorf("element %s: comment is longer than %d bytes", elementText(c.set, e), maxComment)
		}
		var left time.Duration
		if !e.expires.IsZero() {
			if left = e.expires.Sub(now); left <= 0 {
				continue // a timeout of zero would be none at all
			}
		}
		added.write(func(buf []byte) []byte { return appendNewElement(buf, e, c.set.Verdicts, left) })
	}
	added.flush()
	return nil
}

// elementWriter spreads elements over as many messages as they need.
type elementWriter struct {
	batch *batch
	kind  int
	flags netlink.HeaderFlags
	set   *ruleset.Set
	what  string
	buf   []byte
}

func (w *elementWriter) write(fill func([]byte) []byte) {
	w.buf = fill(w.buf)
	if len(w.buf) > elementBytes {
		w.flush()
	}
}

func (w *elementWriter) flush() {
	if len(w.buf) == 0 {
		return
	}
	data := appendString(nil, unix.NFTA_SET_ELEM_LIST_TABLE, w.batch.table)
	data = appendString(data, unix.NFTA_SET_ELEM_LIST_SET, w.set.Name)
	data = appendAttr(data, unix.NFTA_SET_ELEM_LIST_ELEMENTS|unix.NLA_F_NESTED, w.buf...)
	w.batch.add(w.kind, w.flags, data, w.what+w.set.Name)
	w.batch.list[len(w.batch.list)-1].set = w.set
	w.buf = w.buf[:0]
}
