package links

import (
	"slices"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

func TestDecodeChange(t *testing.T) {
	message := func(kind uint16, family uint8, attrs ...*nl.RtAttr) syscall.NetlinkMessage {
		info := nl.NewIfInfomsg(int(family))
		info.Index = 7
		info.Flags = unix.IFF_UP | unix.IFF_LOWER_UP
		data := slices.Clone(info.Serialize())
		for _, a := range attrs {
			data = append(data, a.Serialize()...)
		}
		return syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: kind}, Data: data}
	}
	name := nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated("v0"))
	nsid := nl.NewRtAttr(unix.IFLA_LINK_NETNSID, nl.Uint32Attr(3))
	master := nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(5))
	peer := nl.NewRtAttr(unix.IFLA_LINK, nl.Uint32Attr(6))
	kind := nl.NewRtAttr(unix.IFLA_LINKINFO|unix.NLA_F_NESTED, nil)
	kind.AddRtAttr(unix.IFLA_INFO_KIND, nl.ZeroTerminated("veth"))
	full := link{index: 7, name: "v0", kind: "veth", master: 5, peer: 6, netnsid: 3, carrier: true}
	bare := link{index: 7, name: "v0", netnsid: noNetNS, carrier: true}
	tests := []struct {
		name string
		msg  syscall.NetlinkMessage
		want change
		ok   bool
	}{
		{"new", message(unix.RTM_NEWLINK, unix.AF_UNSPEC, name, nsid, master, peer, kind), change{link: full}, true},
		{"gone", message(unix.RTM_DELLINK, unix.AF_UNSPEC, name), change{link: bare, gone: true}, true},
		{"the bridge's word", message(unix.RTM_DELLINK, unix.AF_BRIDGE, name), change{gone: true}, false},
		{"wireless event", message(unix.RTM_NEWLINK, unix.AF_UNSPEC), change{}, false},
		{"another message", message(unix.RTM_NEWADDR, unix.AF_UNSPEC, name), change{}, false},
		{"cut short", syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: unix.RTM_NEWLINK}, Data: []byte{0}}, change{}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := decodeChange(tt.msg)
			if ok != tt.ok || ok && got != tt.want {
				t.Errorf("got %+v %v, want %+v %v", got, ok, tt.want, tt.ok)
			}
		})
	}
}
