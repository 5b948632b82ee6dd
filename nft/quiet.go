package nft

import (
	"context"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// monitored notes that a Monitor listens on conn, until the function that it
// returns is called.
func (k *Kernel) monitored(conn *netlink.Conn) (done func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.monitors[conn] = true
	return func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.monitors, conn)
		delete(k.deaf, conn)
	}
}

// quiet has every Monitor stop listening until the function that it returns is
// called. For each element of a batch the kernel writes a message to whoever
// listens, the filter of our own ones comes after that: with a listener a
// million elements took it ten times as long. Whether somebody else changed the
// ruleset meanwhile the generation tells, which every transaction raises by one;
// Monitor then says that something was lost. The caller holds commit.
func (k *Kernel) quiet() (resume func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.monitors) == 0 {
		return func() {}
	}
	before, err := k.Generation(context.Background())
	if err != nil {
		return func() {}
	}
	var silent []*netlink.Conn
	for conn := range k.monitors {
		if conn.LeaveGroup(unix.NFNLGRP_NFTABLES) == nil {
			silent = append(silent, conn)
		}
	}
	return func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		failed := map[*netlink.Conn]bool{}
		for _, conn := range silent {
			failed[conn] = k.monitors[conn] && conn.JoinGroup(unix.NFNLGRP_NFTABLES) != nil
		}
		after, err := k.Generation(context.Background())
		for _, conn := range silent {
			// A batch that was refused may or may not have raised it.
			if k.monitors[conn] && (err != nil || after-before > 1 || failed[conn]) {
				k.deaf[conn] = true
				_ = conn.SetReadDeadline(time.Unix(1, 0)) // wakes Receive
			}
		}
	}
}

// missed reports whether conn may have missed a change since it was last asked,
// and has it listen on.
func (k *Kernel) missed(conn *netlink.Conn) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.deaf[conn] {
		return false
	}
	delete(k.deaf, conn)
	_ = conn.SetReadDeadline(time.Time{})
	// Once more, should it have failed before: who is a member stays one.
	_ = conn.JoinGroup(unix.NFNLGRP_NFTABLES)
	return true
}
