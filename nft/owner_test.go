package nft

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Flags of a table that its maker alone may change, and that outlives it:
// NFT_TABLE_F_OWNER since 5.12, NFT_TABLE_F_PERSIST since 6.9 (nf_tables.h).
const (
	tableOwner   = 0x2
	tablePersist = 0x4
)

// own sends NEWTABLE with flags.
func own(k *Kernel, table string, flags uint32) error {
	data := appendU32(appendString(nil, unix.NFTA_TABLE_NAME, table), unix.NFTA_TABLE_FLAGS, flags)
	return k.send(table, []message{{kind: unix.NFT_MSG_NEWTABLE, flags: netlink.Create, data: data, what: "own table"}})
}

// What the kernel does with owned tables. nftfw does not use them; the reasons
// stand in ARCHITECTURE.md, and hold for as long as this test passes.
func TestOwnedTables(t *testing.T) {
	const table = "owned"
	daemon := inNamespace(t)
	if err := own(daemon, table, tableOwner|tablePersist); err != nil {
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
			t.Skipf("this kernel is older than 6.9: %v", err)
		}
		t.Fatal(err)
	}
	command, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = command.Close() })
	stands := func() bool { return strings.Contains(nft(t, command, "", "list", "tables"), table) }
	change := func(k *Kernel) error {
		data := appendString(appendString(nil, unix.NFTA_CHAIN_TABLE, table), unix.NFTA_CHAIN_NAME, "some")
		return k.send(table, []message{{kind: unix.NFT_MSG_NEWCHAIN, flags: netlink.Create, data: data, what: "add chain"}})
	}

	// While its owner lives a flush passes it by, and nobody else changes it: no
	// administrator by hand either.
	nft(t, command, "flush ruleset\n", "-f", "-")
	if !stands() {
		t.Error("a flush took the owned table")
	}
	if err := change(command); !errors.Is(err, unix.EPERM) {
		t.Errorf("another process changed it: %v, want EPERM", err)
	}
	if out, err := tryNft(t, command, "delete table inet "+table+"\n", "-f", "-"); err == nil {
		t.Errorf("another process deleted it: %s", out)
	}
	if err := change(daemon); err != nil {
		t.Errorf("its owner may not change it: %v", err)
	}
	// Its owner is one netlink connection, not a process: one that is opened
	// anew, as after a lost answer, leaves the table to all.
	if err := daemon.reopen(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(5 * time.Second)
	for err = change(command); errors.Is(err, unix.EPERM) && time.Now().Before(deadline); err = change(command) {
		<-time.After(time.Millisecond) // the kernel takes notice of the end by and by
	}
	if err != nil || !stands() {
		t.Errorf("a table without its owner: stands %v, another process: %v", stands(), err)
	}
	// A second owner takes it over.
	if err := own(command, table, tableOwner|tablePersist); err != nil {
		t.Errorf("not taken over: %v", err)
	}
	if err := change(daemon); !errors.Is(err, unix.EPERM) {
		t.Errorf("after it was taken over the former owner: %v, want EPERM", err)
	}
	// Without an owner a flush takes it, as any.
	if err := command.reopen(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); stands() && time.Now().Before(deadline); {
		nft(t, command, "flush ruleset\n", "-f", "-")
	}
	if stands() {
		t.Error("a flush passes by a table without an owner")
	}
	// A table that was made without is never owned.
	nft(t, command, "add table inet plain\n", "-f", "-")
	if err := own(command, "plain", tableOwner|tablePersist); err == nil {
		t.Error("a plain table was taken over")
	} else {
		t.Logf("a plain table: %v", err)
	}
	t.Logf("nft lists it so:\n%s", func() string {
		if err := own(daemon, table, tableOwner|tablePersist); err != nil {
			return err.Error()
		}
		return nft(t, daemon, "", "list", "table", "inet", table)
	}())
}
