package daemon

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// defaultSSHPort is IANA's port for ssh.
const defaultSSHPort = 22

// tcpListen is TCP_LISTEN as /proc/net/tcp prints it (include/net/tcp_states.h).
const tcpListen = "0A"

// sshdPorts lists the TCP ports on which sshd listens in this network
// namespace, and 22 alone when none can be found.
func sshdPorts() []uint16 {
	ports := listeningPorts("/proc", "sshd")
	if len(ports) == 0 {
		return []uint16{defaultSSHPort}
	}
	return ports
}

// listeningPorts lists the TCP ports on which processes called name listen,
// sorted. proc is where procfs is mounted.
func listeningPorts(proc, name string) []uint16 {
	byInode := map[string]uint16{}
	for _, file := range []string{"tcp", "tcp6"} {
		readListeners(filepath.Join(proc, "thread-self", "net", file), byInode)
	}
	var ports []uint16
	comms, _ := filepath.Glob(filepath.Join(proc, "[0-9]*", "comm"))
	for _, comm := range comms {
		if text, err := os.ReadFile(comm); err != nil || strings.TrimSpace(string(text)) != name {
			continue // gone, or another program
		}
		fds, _ := filepath.Glob(filepath.Join(filepath.Dir(comm), "fd", "*"))
		for _, fd := range fds {
			target, err := os.Readlink(fd)
			if err != nil {
				continue
			}
			if port, ok := byInode[target]; ok {
				ports = append(ports, port)
			}
		}
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}

// readListeners adds the listening sockets of a /proc/net/tcp table, under the
// name that a link in /proc/PID/fd gives them. The columns are those of
// proc_net_tcp in the kernel's documentation: local address, remote address,
// state and, tenth, the inode.
func readListeners(path string, byInode map[string]uint16) {
	f, err := os.Open(path)
	if err != nil {
		return // no IPv6 in this kernel
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 || fields[3] != tcpListen {
			continue
		}
		_, hexPort, _ := strings.Cut(fields[1], ":")
		port, err := strconv.ParseUint(hexPort, 16, 16)
		if err != nil {
			continue
		}
		byInode[fmt.Sprintf("socket:[%s]", fields[9])] = uint16(port)
	}
}
