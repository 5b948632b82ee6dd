package daemon

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nftfw/nftfw/nft"
	"github.com/nftfw/nftfw/pkg/sockets"
)

// defaultSSHPort is IANA's port for ssh.
const defaultSSHPort = 22

// procfs is where the kernel's process file system is mounted; see proc(5).
const procfs = "/proc"

// host is where the sockets of the host and the processes that hold them are
// looked up.
type host struct {
	tcp  func() []sockets.Socket
	proc string // where the process file system is mounted
}

// thisHost is the host of the calling thread's network namespace.
var thisHost = host{tcp: sockets.TCP, proc: procfs}

// sshdPorts lists the TCP ports on which sshd listens, and 22 alone when none can
// be found.
func (h host) sshdPorts() []uint16 {
	var ports []uint16
	for _, s := range h.sshd(sockets.Listen) {
		ports = append(ports, s.Local.Port())
	}
	slices.Sort(ports)
	if ports = slices.Compact(ports); len(ports) == 0 {
		return []uint16{defaultSSHPort}
	}
	return ports
}

// sshd lists the sockets in the given state that sshd, or one of the processes that
// it makes for a session (sshd-session since OpenSSH 9.8), holds.
func (h host) sshd(state sockets.State) []sockets.Socket {
	byName := map[string]sockets.Socket{}
	for _, s := range h.tcp() {
		if s.State == state {
			byName[sockets.FileName(s.Inode)] = s
		}
	}
	if len(byName) == 0 {
		return nil
	}
	var out []sockets.Socket
	comms, _ := filepath.Glob(filepath.Join(h.proc, "[0-9]*", "comm")) // the pattern is well formed
	for _, comm := range comms {
		name, err := os.ReadFile(comm)
		if err != nil || !strings.HasPrefix(string(name), "sshd") {
			continue // gone, or another program
		}
		for _, name := range sockets.OpenFiles(filepath.Dir(comm)) {
			if s, ok := byName[name]; ok {
				out = append(out, s)
				delete(byName, name) // parent and child share one
			}
		}
	}
	slices.SortFunc(out, func(a, b sockets.Socket) int { return a.Remote.Compare(b.Remote) })
	return out
}

// connections gives the TCP connections of the host: those that its servers have
// accepted, and the established ones that it has made itself. Where nothing tracked
// an accepted one until a moment ago, the next packet of its server makes an entry
// that has it the wrong way round. Of UDP nobody knows who began.
func (h host) connections() (accepted map[ends]bool, dialled []nft.Flow) {
	all := h.tcp()
	listening := map[uint16]bool{}
	for _, s := range all {
		if s.State == sockets.Listen {
			listening[s.Local.Port()] = true
		}
	}
	accepted = map[ends]bool{}
	for _, s := range all {
		switch {
		case s.State == sockets.Listen:
		case listening[s.Local.Port()]:
			if s.Remote.Port() != 0 {
				accepted[ends{s.Local, s.Remote}] = true
			}
		case s.State == sockets.Established && !s.Remote.Addr().IsLoopback():
			dialled = append(dialled, nft.Flow{Proto: protoTCP, Src: s.Local, Dst: s.Remote, ReplySrc: s.Remote, ReplyDst: s.Local})
		}
	}
	return accepted, dialled
}
