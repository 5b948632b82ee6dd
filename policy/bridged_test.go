package policy

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nftfw/nftfw/pkg/inventory"
)

func TestUnseen(t *testing.T) {
	inv := inventory.Snapshot{Engine: inventory.EngineListed, Networks: []inventory.Network{
		{ID: "1", Name: "bridge", Bridge: "docker0", Subnets: []netip.Prefix{netip.MustParsePrefix("172.17.0.0/16")}},
		{ID: "2", Name: "dual", Bridge: "br-2", Subnets: []netip.Prefix{netip.MustParsePrefix("172.30.0.0/24"), netip.MustParsePrefix("fd00:d0c::/64")}},
		{ID: "3", Name: "lan", Driver: "macvlan", Subnets: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}},
	}}
	const peers = "containers.to_containers: none"
	tests := []struct {
		name, policy string
		seen         Bridged
		want         []string // how each message begins
		settings     []string
	}{
		{"nothing is narrowed", "", Bridged{}, nil, nil},
		{"egress never speaks of peers", "containers: {egress: none}", Bridged{}, nil, nil},
		{"peers", "containers: {to_containers: none}", Bridged{}, []string{peers + " does not hold for IPv4", peers + " does not hold for IPv6"}, []string{BridgedIPv4, BridgedIPv6}},
		{"peers, IPv4 is shown", "containers: {to_containers: none}", Bridged{IPv4: true}, []string{peers + " does not hold for IPv6"}, []string{BridgedIPv6}},
		{"all is shown", "containers: {to_containers: same-project}\nsets: {blocked: [172.17.0.2]}", Bridged{true, true}, nil, nil},
		{"observing", "mode: observe\ncontainers: {to_containers: none}", Bridged{}, nil, nil},
		{"blocked from outside", "sets: {blocked: [198.51.100.0/24, 172.16.255.255, 172.18.0.0/16, 203.0.113.5]}", Bridged{}, nil, nil},
		{"a container is blocked", "sets: {blocked: [172.30.0.255]}", Bridged{}, []string{"the set blocked, which holds addresses of network dual, does not hold for IPv4"}, []string{BridgedIPv4}},
		{"a range around networks", "sets: {blocked: [172.0.0.0/8]}", Bridged{}, []string{"the set blocked, which holds addresses of network bridge,", "the set blocked, which holds addresses of network dual,"}, []string{BridgedIPv4}},
		{"over IPv6", `sets: {blocked: ["fd00:d0c::/48"]}`, Bridged{}, []string{"the set blocked, which holds addresses of network dual, does not hold for IPv6"}, []string{BridgedIPv6}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, _, err := Parse("policy.yaml", []byte("version: 1\n"+tt.policy))
			if err != nil {
				t.Fatal(err)
			}
			diags, settings := Unseen(p, setsOf(p), inv, tt.seen)
			if diff := cmp.Diff(tt.settings, settings); diff != "" {
				t.Errorf("settings (-want +got):\n%s", diff)
			}
			if len(diags) != len(tt.want) {
				t.Fatalf("%d diagnostics, want %d: %v", len(diags), len(tt.want), diags)
			}
			for i, d := range diags {
				if !strings.HasPrefix(d.Message, tt.want[i]) || d.Severity != SeverityError {
					t.Errorf("%s %q, want it to begin with %q", d.Severity, d.Message, tt.want[i])
				}
			}
		})
	}
}
