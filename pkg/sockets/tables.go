package sockets

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Tables reads the TCP sockets of the calling thread's network namespace from the
// tables of a process file system that is mounted at proc, see proc_pid_net(5).
// Tables and lines that cannot be read are passed over.
func Tables(proc string) []Socket {
	var out []Socket
	for _, file := range []string{"tcp", "tcp6"} {
		out = append(out, readTable(filepath.Join(proc, "thread-self", "net", file))...)
	}
	return out
}

// readTable reads a table of /proc/net/tcp's form: the columns are local
// address, remote address, state and, tenth, the inode.
func readTable(path string) []Socket {
	f, err := os.Open(path)
	if err != nil {
		return nil // no IPv6 in this kernel
	}
	defer f.Close()
	var out []Socket
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if s, err := parseLine(lines.Text()); err == nil { // else the heading
			out = append(out, s)
		}
	}
	return out
}

func parseLine(line string) (s Socket, err error) {
	fields := strings.Fields(line)
	if len(fields) < 10 {
		return s, fmt.Errorf("%d columns in %q", len(fields), line)
	}
	if s.Local, err = parseAddr(fields[1]); err != nil {
		return s, err
	}
	if s.Remote, err = parseAddr(fields[2]); err != nil {
		return s, err
	}
	state, err := strconv.ParseUint(fields[3], 16, 8)
	if err != nil {
		return s, fmt.Errorf("state: %w", err)
	}
	s.State = State(state)
	if s.Inode, err = strconv.ParseUint(fields[9], 10, 64); err != nil {
		return s, fmt.Errorf("inode: %w", err)
	}
	return s, nil
}

// parseAddr reads ADDRESS:PORT in hexadecimal. The address is printed as
// 32-bit words in the machine's byte order, the port as a number.
func parseAddr(text string) (netip.AddrPort, error) {
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
