// Package store turns the state directory into runtime set entries, the last
// good policy and the last snapshot, and back. It never decides what to do
// with them, and never writes a file that a crash could leave half written.
//
// The directory, mode 0700, holds these files, each of mode 0600:
//
//	lock            flock(2) on it guards everything that is written; it stays empty
//	sets.json       runtime entries of the address sets
//	sets.json.prev  the same, one save earlier
//	sets.log        small changes since sets.json was written, and
//	sets.log.prev   those since sets.json.prev was
//	*.damaged       what could not be read of the two, kept aside
//	list-HASH.txt   the last good list of a source of a set
//	policy.yaml     the last good policy, with its checksum and first name
//	snapshot.json   what ran on the host when last looked at
//	pending.json    an apply that waits for its confirm
//	down            there while enforcing was stopped on purpose
//
// Be aware: who saves must hold the lock. Loading needs no lock, since every
// file but the log is replaced whole, and the log only grows at its end; sets that
// are written anew meanwhile are read again.
package store
