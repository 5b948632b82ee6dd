package daemon

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// defaultSSHPort is IANA's port for ssh.
const defaultSSHPort = 22

// States of a socket as /proc/net/tcp prints them (include/net/tcp_states.h).
const (
	tcpEstablished = "01"
	tcpListen      = "0A"
)

// procfs is where the kernel's process file system is mounted; see proc(5).
const procfs = "/proc"

// sshdPorts lists the TCP ports on which sshd listens in this network
// namespace, and 22 alone when none can be found.
func sshdPorts() []uint16 {
	var ports []uint16
	for _, s := range sshdSockets(procfs, tcpListen) {
		ports = append(ports, s.local.Port())
	}
	slices.Sort(ports)
	if ports = slices.Compact(ports); len(ports) == 0 {
		return []uint16{defaultSSHPort}
	}
	return ports
}

// tcpSocket is a line of /proc/net/tcp.
type tcpSocket struct {
	local, remote netip.AddrPort
	state         string
	inode         string
}

// sshdSockets lists the sockets in the given state that sshd, or one of the
// processes that it makes for a session (sshd-session since OpenSSH 9.8),
// holds in this network namespace.
func sshdSockets(proc, state string) []tcpSocket {
	byInode := map[string]tcpSocket{}
	for _, file := range []string{"tcp", "tcp6"} {
		for _, s := range readSockets(filepath.Join(proc, "thread-self", "net", file)) {
			if s.state == state {
				byInode["socket:["+s.inode+"]"] = s
			}
		}
	}
	if len(byInode) == 0 {
		return nil
	}
	var out []tcpSocket
	comms, _ := filepath.Glob(filepath.Join(proc, "[0-9]*", "comm")) // the pattern is well formed
	for _, comm := range comms {
		name, err := os.ReadFile(comm)
		if err != nil || !strings.HasPrefix(string(name), "sshd") {
			continue // gone, or another program
		}
		fds, _ := filepath.Glob(filepath.Join(filepath.Dir(comm), "fd", "*"))
		for _, fd := range fds {
			target, err := os.Readlink(fd)
			if err != nil {
				continue
			}
			if s, ok := byInode[target]; ok {
				out = append(out, s)
				delete(byInode, target) // parent and child share one
			}
		}
	}
	slices.SortFunc(out, func(a, b tcpSocket) int { return a.remote.Compare(b.remote) })
	return out
}

// readSockets reads a table of /proc/net/tcp's form: the columns are local
// address, remote address, state and, tenth, the inode.
func readSockets(path string) []tcpSocket {
	f, err := os.Open(path)
	if err != nil {
		return nil // no IPv6 in this kernel
	}
	defer f.Close()
	var out []tcpSocket
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 {
			continue
		}
		local, err := parseSocketAddr(fields[1])
		if err != nil {
			continue // the heading
		}
		remote, err := parseSocketAddr(fields[2])
		if err != nil {
			continue
		}
		out = append(out, tcpSocket{local: local, remote: remote, state: fields[3], inode: fields[9]})
	}
	return out
}

// parseSocketAddr reads ADDRESS:PORT in hexadecimal. The address is printed as
// 32-bit words in the machine's byte order, the port as a number.
func parseSocketAddr(text string) (netip.AddrPort, error) {
	hexAddr, hexPort, ok := strings.Cut(text, ":")
	port, err := strconv.ParseUint(hexPort, 16, 16)
	if !ok || err != nil {
		return netip.AddrPort{}, fmt.Errorf("port of %q", text)
	}
	words, err := hex.DecodeString(hexAddr)
	if err != nil || len(words)%4 != 0 {
		return netip.AddrPort{}, fmt.Errorf("address of %q", text)
	}
	for i := 0; i < len(words); i += 4 {
		binary.NativeEndian.PutUint32(words[i:], binary.BigEndian.Uint32(words[i:]))
	}
	addr, ok := netip.AddrFromSlice(words)
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("address of %q", text)
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(port)), nil
}
