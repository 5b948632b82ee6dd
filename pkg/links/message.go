package links

import (
	"encoding/binary"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// noNetNS is the netnsid of a link whose other end is in the same namespace,
// and of a namespace that has no id here (NETNSA_NSID_NOT_ASSIGNED).
const noNetNS = -1

// link is what one RTM_NEWLINK message says.
type link struct {
	index   int
	name    string
	kind    string // IFLA_INFO_KIND
	master  int
	peer    int  // IFLA_LINK: the other end of a veth, an index in its namespace
	netnsid int  // IFLA_LINK_NETNSID: the namespace of the other end
	carrier bool // IFF_LOWER_UP: up, and the other end too
}

// port reports whether l is a veth that belongs to a bridge: only for these the
// other end matters.
func (l link) port() bool { return l.kind == "veth" && l.master != 0 }

// change is one message: a link as it is now, or one that is gone.
type change struct {
	link
	gone bool
}

// decodeChange returns ok false for a message that says nothing about a link as
// such: the bridge's own reports about its ports (family AF_BRIDGE, whose
// RTM_DELLINK means only that a port left), and wireless events, which carry no
// name.
func decodeChange(m syscall.NetlinkMessage) (c change, ok bool) {
	if m.Header.Type != unix.RTM_NEWLINK && m.Header.Type != unix.RTM_DELLINK {
		return change{}, false
	}
	l, ok := decodeLink(m.Data)
	return change{link: l, gone: m.Header.Type == unix.RTM_DELLINK}, ok
}

func decodeLink(data []byte) (l link, ok bool) {
	if len(data) < unix.SizeofIfInfomsg {
		return link{}, false
	}
	info := nl.DeserializeIfInfomsg(data)
	if info.Family != unix.AF_UNSPEC {
		return link{}, false
	}
	attrs, err := nl.ParseRouteAttr(data[unix.SizeofIfInfomsg:])
	if err != nil {
		return link{}, false
	}
	l = link{index: int(info.Index), netnsid: noNetNS, carrier: info.Flags&unix.IFF_LOWER_UP != 0}
	for _, a := range attrs {
		switch a.Attr.Type &^ unix.NLA_F_NESTED {
		case unix.IFLA_IFNAME:
			l.name = unix.ByteSliceToString(a.Value)
		case unix.IFLA_MASTER:
			l.master = int32Of(a.Value)
		case unix.IFLA_LINK:
			l.peer = int32Of(a.Value)
		case unix.IFLA_LINK_NETNSID:
			l.netnsid = int32Of(a.Value)
		case unix.IFLA_LINKINFO:
			l.kind = kindOf(a.Value)
		}
	}
	return l, l.name != ""
}

func kindOf(info []byte) string {
	attrs, err := nl.ParseRouteAttr(info)
	if err != nil {
		return ""
	}
	for _, a := range attrs {
		if a.Attr.Type == unix.IFLA_INFO_KIND {
			return unix.ByteSliceToString(a.Value)
		}
	}
	return ""
}

func int32Of(b []byte) int {
	if len(b) < 4 {
		return 0
	}
	return int(int32(binary.NativeEndian.Uint32(b)))
}
