package nflog

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestParse(t *testing.T) {
	addr := netip.MustParseAddr
	const (
		v4  = "45 00 0028 0001 0000 40 %s 0000 c6120042 ac110002 "
		v6  = "60000000 0018 %s 40 fd000018000000000000000000000066 fd000018000000000000000000000001 "
		syn = "d431 0050 00000000 00000000 5002 ffff 0000 0000"
	)
	for _, tt := range []struct {
		name, packet string
		want         Packet
		bad          bool
	}{
		{name: "tcp", packet: strings.Replace(v4, "%s", "06", 1) + syn, want: Packet{Src: addr("198.18.0.66"), Dst: addr("172.17.0.2"), Proto: 6, SPort: 54321, DPort: 80}},
		{name: "options", packet: "46 00 002c 0001 0000 40 11 0000 c6120042 ac110002 94040000 0035 0035 0008 0000", want: Packet{Src: addr("198.18.0.66"), Dst: addr("172.17.0.2"), Proto: 17, SPort: 53, DPort: 53}},
		{name: "icmp has no ports", packet: strings.Replace(v4, "%s", "01", 1) + "0800 0000 0001 0001", want: Packet{Src: addr("198.18.0.66"), Dst: addr("172.17.0.2"), Proto: 1}},
		{name: "later fragment", packet: strings.Replace(strings.Replace(v4, "%s", "11", 1), "0001 0000", "0001 0010", 1) + "0035 0035", want: Packet{Src: addr("198.18.0.66"), Dst: addr("172.17.0.2"), Proto: 17}},
		{name: "cut off behind the header", packet: strings.Replace(v4, "%s", "06", 1) + "d4", want: Packet{Src: addr("198.18.0.66"), Dst: addr("172.17.0.2"), Proto: 6}},
		{name: "tcp over IPv6", packet: strings.Replace(v6, "%s", "06", 1) + syn, want: Packet{Src: addr("fd00:18::66"), Dst: addr("fd00:18::1"), Proto: 6, SPort: 54321, DPort: 80}},
		{name: "extension headers", packet: strings.Replace(v6, "%s", "00", 1) + "3c 00 010400000000 06 01 0104000000000000000000000000" + syn, want: Packet{Src: addr("fd00:18::66"), Dst: addr("fd00:18::1"), Proto: 6, SPort: 54321, DPort: 80}},
		{name: "first fragment of IPv6", packet: strings.Replace(v6, "%s", "2c", 1) + "11 00 0001 00000001 0035 0036 0008 0000", want: Packet{Src: addr("fd00:18::66"), Dst: addr("fd00:18::1"), Proto: 17, SPort: 53, DPort: 54}},
		{name: "later fragment of IPv6", packet: strings.Replace(v6, "%s", "2c", 1) + "11 00 0008 00000001 0035 0036 0008 0000", want: Packet{Src: addr("fd00:18::66"), Dst: addr("fd00:18::1"), Proto: 17}},
		{name: "extension header cut off", packet: strings.Replace(v6, "%s", "00", 1) + "3c", want: Packet{Src: addr("fd00:18::66"), Dst: addr("fd00:18::1"), Proto: 0}},
		{name: "nothing", packet: "", bad: true},
		{name: "half an IPv4 header", packet: "45 00 0028 0001", bad: true},
		{name: "half an IPv6 header", packet: "60000000 0018", bad: true},
		{name: "ARP", packet: "00 01 08 00", bad: true},
	} {
		b, err := hex.DecodeString(strings.ReplaceAll(tt.packet, " ", ""))
		if err != nil {
			t.Fatal(tt.name, err)
		}
		var got Packet
		if err := got.parse(b); (err != nil) != tt.bad {
			t.Errorf("%s: %v", tt.name, err)
		}
		if diff := cmp.Diff(tt.want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" && !tt.bad {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

// FuzzParse holds that no packet, however cut, is read beyond its end.
func FuzzParse(f *testing.F) {
	f.Add([]byte{0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6})
	f.Add([]byte{0x60, 0, 0, 0, 0, 8, 0, 64})
	f.Fuzz(func(_ *testing.T, b []byte) {
		var p Packet
		_ = p.parse(b)
	})
}
