package nft

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// CommitError is the error of every call that nf_tables refused. errors.Is
// works on it with the values of package unix.
type CommitError struct {
	Op    string // what was refused, "add chain input"
	Table string // "" where no table is meant
	Errno error  // a unix.Errno, or what went wrong on the way to the kernel
	Hint  string // what to do about it, "" where that is not known
}

// Error gives the step, the table, the kernel's word and the remedy.
func (e *CommitError) Error() string {
	s := "nf_tables: "
	if e.Table != "" {
		s = fmt.Sprintf("table inet %s: ", e.Table)
	}
	s += fmt.Sprintf("%s: %v", e.Op, e.Errno)
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
}

// Unwrap returns Errno.
func (e *CommitError) Unwrap() error { return e.Errno }

// Stale reports whether the kernel's table was not what the plan was made for:
// an element had expired, or somebody else had changed the table. Observe, Diff
// and Commit again, a few times at most: a table that refers to what it does not
// have is refused with the same errors for ever.
func (e *CommitError) Stale() bool {
	return errors.Is(e.Errno, unix.ENOENT) || errors.Is(e.Errno, unix.EEXIST) || errors.Is(e.Errno, unix.EBUSY)
}

// refused makes the error of a refused step.
func refused(op, table string, err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		err = errno
	}
	return &CommitError{Op: op, Table: table, Errno: err, Hint: hint(errno)}
}

func hint(errno unix.Errno) string {
	switch errno {
	case unix.EPERM, unix.EACCES:
		return "needs CAP_NET_ADMIN: run as root or under the unit, while no other process owns the table"
	case unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT, unix.EOPNOTSUPP:
		return "the kernel has no nf_tables for family inet: modprobe nf_tables, or a kernel with CONFIG_NF_TABLES_INET"
	case unix.ENOENT, unix.EBUSY:
		return "the table is not what it was: observe it again"
	case unix.EEXIST:
		return "something in the way is there already: observe the table again"
	case unix.ENFILE:
		return "a set is full"
	case unix.EINVAL:
		return "the kernel does not know this; it may be too old or lack a module (nft_ct, nft_log, nft_limit)"
	case unix.ENOMEM, unix.ENOBUFS, unix.EMSGSIZE:
		return "the change is too large for the memory that netlink may use"
	}
	return ""
}
