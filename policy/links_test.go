package policy

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nftfw/nftfw/pkg/inventory"
)

func TestClassifyLinks(t *testing.T) {
	bridge := inventory.Link{Index: 10, Name: "docker0", Kind: "bridge"}
	docker := []inventory.Network{{ID: "n", Name: "bridge", Driver: "bridge", Bridge: "docker0"}}
	port := func(l inventory.Link) inventory.Link {
		l.Index, l.Name, l.Master = 20, "port", 10
		return l
	}
	type side struct {
		Name   string
		Side   Side
		Reason string
	}
	const strange = "network bridge: bridge docker0 has a port that leads to no container (port); what arrives on it counts as outside: take the port off the bridge, or give the network a bridge of its own"
	tests := []struct {
		name string
		inv  inventory.Snapshot
		want []side
	}{
		{
			"lo is on no side",
			inventory.Snapshot{Links: []inventory.Link{{Index: 1, Name: "lo"}}},
			nil,
		},
		{
			"a link that is no bridge is foreign before the engine answers",
			inventory.Snapshot{Links: []inventory.Link{{Index: 2, Name: "eth0"}, {Index: 3, Name: "wg0", Kind: "wireguard"}}},
			[]side{{"eth0", Foreign, ""}, {"wg0", Foreign, ""}},
		},
		{
			"a bridge is on neither side before the engine answers",
			inventory.Snapshot{Links: []inventory.Link{bridge}},
			[]side{{"docker0", Neither, ""}},
		},
		{
			"but for one that was known before",
			inventory.Snapshot{Links: []inventory.Link{bridge}, ForeignBridges: []string{"docker0"}},
			[]side{{"docker0", Foreign, ""}},
		},
		{
			"whatever was known before, a network's bridge is Docker's",
			inventory.Snapshot{Links: []inventory.Link{bridge}, ForeignBridges: []string{"docker0"}, Networks: docker},
			[]side{{"docker0", Inside, ""}},
		},
		{
			"a bridge that is no network's is foreign once the engine has answered",
			inventory.Snapshot{Links: []inventory.Link{bridge}, Engine: inventory.EngineListed},
			[]side{{"docker0", Foreign, ""}},
		},
		{
			"but not one that is younger than the answer",
			inventory.Snapshot{Links: []inventory.Link{bridge}, Engine: inventory.EngineListed, NewBridges: []string{"docker0"}},
			[]side{{"docker0", Neither, ""}},
		},
		{
			"and on a host without Docker",
			inventory.Snapshot{Links: []inventory.Link{bridge}, Engine: inventory.EngineAbsent},
			[]side{{"docker0", Foreign, ""}},
		},
		{
			"a network's bridge without ports is inside",
			inventory.Snapshot{Links: []inventory.Link{bridge}, Engine: inventory.EngineListed, Networks: docker},
			[]side{{"docker0", Inside, ""}},
		},
		{
			"and with a port into a container",
			inventory.Snapshot{Links: []inventory.Link{bridge, port(inventory.Link{Kind: "veth", Sandbox: "/run/docker/netns/a"})}, Networks: docker},
			[]side{{"docker0", Inside, ""}},
		},
		{
			"and with one that may be on its way into one",
			inventory.Snapshot{Links: []inventory.Link{bridge, port(inventory.Link{Kind: "veth", Settling: true})}, Networks: docker},
			[]side{{"docker0", Inside, ""}},
		},
		{
			"a veth that leads elsewhere makes it neither",
			inventory.Snapshot{Links: []inventory.Link{bridge, port(inventory.Link{Kind: "veth"})}, Networks: docker},
			[]side{{"docker0", Neither, strange}},
		},
		{
			"so does a card, settling or not",
			inventory.Snapshot{Links: []inventory.Link{bridge, port(inventory.Link{Settling: true})}, Networks: docker},
			[]side{{"docker0", Neither, strange}},
		},
		{
			"and a vxlan",
			inventory.Snapshot{Links: []inventory.Link{bridge, port(inventory.Link{Kind: "vxlan", Sandbox: "/run/docker/netns/a"})}, Networks: docker},
			[]side{{"docker0", Neither, strange}},
		},
		{
			"a network whose bridge is no bridge is not inside",
			inventory.Snapshot{Links: []inventory.Link{{Index: 10, Name: "docker0"}}, Networks: docker},
			[]side{{"docker0", Neither, "network bridge: link docker0 is no bridge; what arrives on it counts as outside"}},
		},
		{
			"a member of a bond is a link like any other",
			inventory.Snapshot{Links: []inventory.Link{{Index: 3, Name: "bond0", Kind: "bond"}, {Index: 4, Name: "eth0", Master: 3}}},
			[]side{{"bond0", Foreign, ""}, {"eth0", Foreign, ""}},
		},
		{
			"a network without a bridge claims no link",
			inventory.Snapshot{Links: []inventory.Link{{Index: 2, Name: ""}, {Index: 3, Name: "eth0"}}, Networks: []inventory.Network{{Name: "lan", Driver: "macvlan"}}},
			[]side{{"", Foreign, ""}, {"eth0", Foreign, ""}},
		},
		{
			"a name that nft cannot write is on neither side",
			inventory.Snapshot{Links: []inventory.Link{{Index: 2, Name: `a"b`}, {Index: 3, Name: "eth*"}, {Index: 4, Name: "\xff"}}},
			[]side{
				{`a"b`, Neither, `link "a\"b": nft cannot write its name, so nothing is forwarded over it: rename it`},
				{"eth*", Neither, `link "eth*": nft cannot write its name, so nothing is forwarded over it: rename it`},
				{"\xff", Neither, `link "\xff": nft cannot write its name, so nothing is forwarded over it: rename it`},
			},
		},
		{
			"of two networks that claim one bridge the message names the first by name",
			inventory.Snapshot{
				Links:    []inventory.Link{bridge, port(inventory.Link{})},
				Networks: []inventory.Network{{Name: "x", Bridge: "docker0"}, {Name: "bridge", Bridge: "docker0"}, {Name: "y", Bridge: "docker0"}},
			},
			[]side{{"docker0", Neither, strange}},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for range 2 {
				var got []side
				for _, l := range ClassifyLinks(tt.inv) {
					got = append(got, side{l.Link.Name, l.Side, l.Reason})
				}
				slices.SortFunc(got, func(a, b side) int { return slices.Compare([]byte(a.Name), []byte(b.Name)) })
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Errorf("ClassifyLinks (-want +got):\n%s", diff)
				}
				slices.Reverse(tt.inv.Links) // no order means anything
				slices.Reverse(tt.inv.Networks)
			}
		})
	}
}
