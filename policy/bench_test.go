package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/nftfw/nftfw/pkg/inventory"
)

// crowd is a host that runs so many containers, with ten ports each and the
// labels that compose gives, a tenth of them with a label for us.
func crowd(n int) inventory.Snapshot {
	inv := inventory.Snapshot{
		Engine:   inventory.EngineListed,
		Networks: []inventory.Network{{ID: "n", Name: "app", Driver: "bridge", Bridge: "br-app", Subnets: []netip.Prefix{netip.MustParsePrefix("172.30.0.0/16")}}},
		Links:    []inventory.Link{{Index: 1, Name: "lo"}, {Index: 2, Name: "eth0"}, {Index: 3, Name: "br-app", Kind: "bridge"}},
	}
	for i := range n {
		c := inventory.Container{
			ID: fmt.Sprintf("%012x%052x", i+1, 0), Name: fmt.Sprintf("box-%d", i), Image: "box:1", NetworkMode: "app",
			Labels: map[string]string{
				"com.docker.compose.project": fmt.Sprintf("project%d", i/10),
				"com.docker.compose.service": "box", "com.docker.compose.version": "2.20.0",
			},
			Endpoints: []inventory.Endpoint{{NetworkID: "n", Addr4: netip.AddrFrom4([4]byte{172, 30, byte(1 + i/250), byte(1 + i%250)})}},
		}
		if i%10 == 0 {
			c.Labels["nftfw.expose"] = "any"
		}
		for p := range 10 {
			c.Ports = append(c.Ports, inventory.Port{
				HostIP: netip.IPv4Unspecified(), HostPort: uint16(10000 + (10*i+p)%50000), ContainerPort: uint16(8000 + p), Proto: 6,
			})
		}
		inv.Links = append(inv.Links, inventory.Link{Index: 10 + i, Name: fmt.Sprintf("veth%d", i), Kind: "veth", Master: 3, Sandbox: fmt.Sprintf("/run/docker/netns/%d", i)})
		inv.Containers = append(inv.Containers, c)
	}
	return inv
}

func BenchmarkCompile(b *testing.B) {
	for _, n := range []int{10, 100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			p, inv := Default(nil), crowd(n)
			b.ReportAllocs()
			for b.Loop() {
				Compile(p, nil, inv)
			}
		})
	}
}

// BenchmarkCompileNext compiles what one container more, or one less, makes of the
// table before.
func BenchmarkCompileNext(b *testing.B) {
	for _, n := range []int{10, 100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			p, inv := Default(nil), crowd(n+1)
			most := inv
			most.Containers = slices.Clone(inv.Containers[:n])
			var k Compiler
			k.Compile(p, nil, inv)
			b.ReportAllocs()
			for b.Loop() {
				k.Compile(p, nil, most)
				most, inv = inv, most
			}
		})
	}
}
