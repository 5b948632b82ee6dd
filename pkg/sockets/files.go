package sockets

import (
	"fmt"
	"iter"
	"os"
	"path/filepath"
)

// FileName is how the open files of a process name the socket with that inode; see
// proc_pid_fd(5).
func FileName(inode uint64) string { return fmt.Sprintf("socket:[%d]", inode) }

// OpenFiles yields the names of the files that the process at /proc/PID has open, as
// far as they may be seen. It yields none of a process that is gone.
func OpenFiles(process string) iter.Seq[string] {
	return func(yield func(string) bool) {
		folder := filepath.Join(process, "fd")
		fds, err := os.ReadDir(folder)
		if err != nil {
			return // gone, or hidden
		}
		for _, fd := range fds {
			if name, err := os.Readlink(filepath.Join(folder, fd.Name())); err == nil && !yield(name) {
				return
			}
		}
	}
}
