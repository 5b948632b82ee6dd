package doctor

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The options by which iptables-legacy reads a table, those of IPv4 and IPv6
// alike (linux/netfilter_ipv4/ip_tables.h, linux/netfilter_ipv6/ip6_tables.h).
const (
	iptGetInfo    = 64 // IPT_SO_GET_INFO
	iptGetEntries = 65 // IPT_SO_GET_ENTRIES
	// Where the offset of the target stands in struct ipt_entry and ip6t_entry.
	iptTargetOffset, ip6tTargetOffset = 88, 140
	// Where the entries begin in struct ipt_get_entries, and the verdict in
	// struct xt_standard_target.
	iptEntries, xtVerdict = 40, 32
	xtAccept              = -2 // NF_ACCEPT, as such a target has it
)

// legacyInfo is struct ipt_getinfo.
type legacyInfo struct {
	name             [32]byte
	hooks            uint32 // a bit for each
	entry, underflow [5]uint32
	entries, size    uint32
}

// legacyHolds reports whether a table of iptables-legacy, which must exist, has
// what a new one has not: a rule, a chain, or a policy that drops. It takes
// CAP_NET_ADMIN, and asks the network namespace of the calling thread.
func legacyHolds(table string, v6 bool) (bool, error) {
	domain, level, target := unix.AF_INET, unix.SOL_IP, uint32(iptTargetOffset)
	if v6 {
		domain, level, target = unix.AF_INET6, unix.SOL_IPV6, ip6tTargetOffset
	}
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return false, fmt.Errorf("read table %s of iptables-legacy: %w", table, err)
	}
	defer unix.Close(fd)
	ask := func(option int, answer unsafe.Pointer, size uint32) error {
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
			uintptr(answer), uintptr(unsafe.Pointer(&size)), 0)
		if errno != 0 {
			return fmt.Errorf("read table %s of iptables-legacy: %w", table, errno)
		}
		return nil
	}
	var info legacyInfo
	copy(info.name[:len(info.name)-1], table)
	if err := ask(iptGetInfo, unsafe.Pointer(&info), uint32(unsafe.Sizeof(info))); err != nil {
		return false, err
	}
	// The policy of each hook, and the end.
	if int(info.entries) > bits.OnesCount32(info.hooks)+1 {
		return true, nil
	}
	list := make([]byte, iptEntries+info.size)
	copy(list, info.name[:])
	binary.NativeEndian.PutUint32(list[len(info.name):], info.size)
	if err := ask(iptGetEntries, unsafe.Pointer(&list[0]), uint32(len(list))); err != nil {
		return false, err
	}
	for hook, at := range info.underflow {
		if info.hooks>>hook&1 == 0 {
			continue
		}
		policy := list[iptEntries+at:]
		verdict := policy[uint32(binary.NativeEndian.Uint16(policy[target:]))+xtVerdict:]
		if int32(binary.NativeEndian.Uint32(verdict)) != xtAccept {
			return true, nil
		}
	}
	return false, nil
}
