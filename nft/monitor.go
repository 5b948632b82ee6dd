package nft

import (
	"context"
	"errors"
	"fmt"
	"math/bits"

	"github.com/mdlayher/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// monitorBuffer is what may wait to be read: a few hundred thousand elements that
// somebody else changes at once.
const monitorBuffer = 64 << 20

// Event tells of a transaction that changed the table and was not this Kernel's.
type Event struct {
	PID        uint32 // of the thread that sent it, in the root PID namespace; 0 is not known
	Process    string // the thread's name, at most 15 bytes
	Generation uint32 // of the ruleset after it
	TableGone  bool   // the table is not there any more
	// Elements says that elements were added or deleted.
	Elements bool
	// Overflow says that there may have been changes that nobody can tell of.
	// The other members are zero, but Elements is set when that is known to have
	// happened while Monitor listened.
	Overflow bool
}

// Monitor calls notify for each foreign change to the table of family inet called
// table, one call for a transaction, in their order. Expiry of elements is no
// change. It returns when ctx is done, with its error, or when it cannot go
// on.
//
// The first call has Overflow set and comes as soon as nothing is missed any
// more: what happened before is not known, so that is the time to look.
func (k *Kernel) Monitor(ctx context.Context, table string, notify func(Event)) error {
	s, err := k.subscription(ctx)
	if err != nil {
		return err
	}
	defer s.end()
	// Neither is needed for the truth: without a large buffer there is more
	// Overflow, without a filter our own batches take room in it.
	_ = s.conn.SetReadBuffer(k.buffer)
	_ = s.conn.SetBPF(ignorePort(k.port()))
	if err := s.conn.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
		return refused("subscribe to changes", table, err)
	}
	defer k.monitored(s.conn)()
	notify(Event{Overflow: true})
	w := watch{table: table, own: k.own, notify: notify}
	for {
		msgs, err := s.conn.Receive()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case k.missed(s.conn):
			w.lost()
			if ctx.Err() != nil { // what woke Receive for that is undone
				return ctx.Err()
			}
		case errors.Is(err, unix.ENOBUFS):
			w.lost()
		case err != nil:
			return fmt.Errorf("monitor table %q: %w", table, err)
		}
		for _, m := range msgs {
			w.message(m)
		}
	}
}

// ignorePort is a socket filter that drops the notifications of batches that
// came from the netlink port. One datagram never holds those of two batches.
func ignorePort(port uint32) []bpf.RawInstruction {
	const portOffset = 12 // nlmsg_pid in struct nlmsghdr, in host byte order
	if nativeIsLittle {
		port = bits.ReverseBytes32(port) // loads are big-endian
	}
	filter, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: portOffset, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: port, SkipTrue: 1},
		bpf.RetConstant{Val: ^uint32(0)},
		bpf.RetConstant{Val: 0},
	})
	if err != nil {
		return nil // cannot be: the program is constant
	}
	return filter
}

// watch follows the notifications. The kernel sends those of one transaction
// together, with the generation that it makes at the end.
type watch struct {
	table  string
	own    func(port uint32) bool
	notify func(Event)

	changed  bool // the transaction touched the table
	gone     bool
	elements bool // of the table's sets
}

// lost handles notifications that nobody will see.
func (w *watch) lost() {
	w.changed, w.gone = false, false
	w.elements = false
	w.notify(Event{Overflow: true, Elements: true})
}

func (w *watch) message(m netlink.Message) {
	if int(m.Header.Type)>>8 != unix.NFNL_SUBSYS_NFTABLES || w.own(m.Header.PID) {
		return
	}
	kind := int(m.Header.Type) & 0xff
	if kind == unix.NFT_MSG_NEWGEN {
		w.end(m)
		return
	}
	if !w.ours(m) {
		return
	}
	w.changed = true
	switch kind {
	case unix.NFT_MSG_DELTABLE:
		w.gone = true
	case unix.NFT_MSG_NEWTABLE:
		w.gone = false
	case unix.NFT_MSG_NEWSETELEM, unix.NFT_MSG_DELSETELEM:
		w.elements = true
	}
}

// ours reports whether m is about the table. The table's name is the first
// attribute of everything that is in a table, and of a table.
func (w *watch) ours(m netlink.Message) bool {
	if len(m.Data) == 0 || m.Data[0] != unix.NFPROTO_INET {
		return false
	}
	for typ, v := range attributes(payload(m)) {
		if typ == unix.NFTA_TABLE_NAME {
			return text(v) == w.table
		}
	}
	return false
}

func (w *watch) end(m netlink.Message) {
	changed, gone, elements := w.changed, w.gone, w.elements
	w.changed, w.gone, w.elements = false, false, false
	if !changed {
		return
	}
	e := Event{TableGone: gone, Elements: elements}
	for typ, v := range attributes(payload(m)) {
		switch typ {
		case unix.NFTA_GEN_ID:
			e.Generation = uint32(number(v))
		case unix.NFTA_GEN_PROC_PID:
			e.PID = uint32(number(v))
		case unix.NFTA_GEN_PROC_NAME:
			e.Process = text(v)
		}
	}
	w.notify(e)
}
