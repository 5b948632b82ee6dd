package sockets

import (
	"bufio"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

// initProcess is the process that holds the sockets of services which are
// started by their first client; see systemd.socket(5).
const initProcess = 1

// acceptsConnections is the flag of a socket that listens in the fourth column of
// /proc/net/unix (__SO_ACCEPTCON, include/linux/net.h).
const acceptsConnections = 1 << 16

// Activation tells whether a connection to a Unix socket would start a service. Its
// methods may be called at any time and by anyone.
type Activation struct {
	path string
	init int

	mu sync.Mutex
	// The open file by which a process other than init was seen to hold the socket,
	// below /proc, and what it was; "" where none was.
	file, socket string
}

// NewActivation is for the Unix socket at path.
func NewActivation(path string) *Activation { return &Activation{path: path, init: initProcess} }

// Starts reports whether a connection would start a service now: init listens there,
// and no other process does. It reads /proc of the calling thread's network namespace
// and says false of what it may not see. That takes some milliseconds, and some
// microseconds while a process that was seen to listen still does.
func (a *Activation) Starts() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if name, err := os.Readlink(a.file); err == nil && name == a.socket {
		return false
	}
	a.file, a.socket = "", ""
	inodes := listeners(a.path)
	own := "/proc/" + strconv.Itoa(a.init)
	if len(inodes) == 0 {
		return false
	}
	if file, _ := held(own, inodes); file == "" {
		return false
	}
	processes, _ := filepath.Glob("/proc/[0-9]*") // the pattern is well formed
	for _, process := range processes {
		if process == own {
			continue
		}
		if a.file, a.socket = held(process, inodes); a.file != "" {
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

// held gives the first of the sockets that the process at /proc/PID has open, and the
// file below /proc that it is; "" where it has none of them.
func held(process string, sockets map[string]bool) (file, name string) {
	for file, name := range OpenFiles(process) {
		if sockets[name] {
			return file, name
		}
	}
	return "", ""
}
