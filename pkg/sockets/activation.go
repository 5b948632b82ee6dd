package sockets

import (
	"bufio"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// initProcess is the process that holds the sockets of services which are
// started by their first client; see systemd.socket(5).
const initProcess = 1

// acceptsConnections is the flag of a socket that listens in the fourth column of
// /proc/net/unix (__SO_ACCEPTCON, include/linux/net.h).
const acceptsConnections = 1 << 16

// Activates reports whether a connection to the Unix socket at path would start a
// service: init listens there, and no other process does. It reads /proc of the
// calling thread's network namespace, which takes some milliseconds, and says false
// of what it may not see.
func Activates(path string) bool { return heldOnlyBy(initProcess, path) }

// heldOnlyBy reports whether that process and no other one has the socket that
// listens at path.
func heldOnlyBy(pid int, path string) bool {
	inodes := listeners(path)
	if len(inodes) == 0 || !holds("/proc/"+strconv.Itoa(pid), inodes) {
		return false
	}
	processes, _ := filepath.Glob("/proc/[0-9]*") // the pattern is well formed
	for _, process := range processes {
		if filepath.Base(process) != strconv.Itoa(pid) && holds(process, inodes) {
			return false
		}
	}
	return true
}

// listeners gives the Unix sockets that listen at path, as FileName names them.
func listeners(path string) map[string]bool {
	f, err := os.Open("/proc/thread-self/net/unix")
	if err != nil {
		return nil
	}
	defer f.Close()
	out := map[string]bool{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// Num: RefCount Protocol Flags Type St Inode Path
		fields := strings.Fields(lines.Text())
		if len(fields) != 8 || !samePlace(fields[7], path) {
			continue
		}
		flags, err := strconv.ParseUint(fields[3], 16, 32)
		inode, errInode := strconv.ParseUint(fields[6], 10, 64)
		if err == nil && errInode == nil && flags&acceptsConnections != 0 {
			out[FileName(inode)] = true
		}
	}
	return out
}

// samePlace reports whether both paths lead to the same file: /var/run is a link to
// /run.
func samePlace(a, b string) bool {
	if filepath.Base(a) != filepath.Base(b) {
		return false
	}
	a, errA := filepath.EvalSymlinks(a)
	b, errB := filepath.EvalSymlinks(b)
	return errA == nil && errB == nil && a == b
}

// holds reports whether the process at /proc/PID has one of the files open.
func holds(process string, files map[string]bool) bool {
	for name := range OpenFiles(process) {
		if files[name] {
			return true
		}
	}
	return false
}
