package confine

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/psx"
)

// Capabilities leaves every thread of the process with no more than the given
// capabilities (capabilities(7), as of package unix), of those that it has, and
// with none that a program executed later could inherit. no_new_privs is set, so
// that not even one that is root's gets them back.
//
// After an error some may have been dropped.
func Capabilities(keep ...uint) error {
	if _, _, errno := psx.Syscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); errno != 0 {
		return fmt.Errorf("set no_new_privs: %w", errno)
	}
	// Two words of 32 capabilities: _LINUX_CAPABILITY_VERSION_3 of
	// linux/capability.h. A PID of 0 is the calling thread, which each is in turn.
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var now [2]unix.CapUserData
	if err := unix.Capget(&header, &now[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	var kept [2]unix.CapUserData
	for _, c := range keep {
		word, bit := c/32, uint32(1)<<(c%32)
		kept[word].Permitted |= now[word].Permitted & bit
		kept[word].Effective |= now[word].Effective & bit
	}
	_, _, errno := psx.Syscall3(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&kept[0])), 0)
	if errno != 0 {
		return fmt.Errorf("drop capabilities: %w", errno)
	}
	return nil
}
