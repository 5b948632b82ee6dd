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

// OpenFiles yields the open files of the process at /proc/PID, as far as they may be
// seen: the link below /proc that is the file, and what it leads to, which for a socket
// is its FileName. It yields none of a process that is gone.
func OpenFiles(process string) iter.Seq2[string, string] {
	return func(yield func(link, name string) bool) {
		folder := filepath.Join(process, "fd")
		fds, err := os.ReadDir(folder)
		if err != nil {
			return // gone, or hidden
		}
		for _, fd := range fds {
			link := filepath.Join(folder, fd.Name())
			if name, err := os.Readlink(link); err == nil && !yield(link, name) {
				return
			}
		}
	}
}
