package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/inventory"
)

// Bridged says which families the kernel shows to the hooks of IP when a bridge
// merely switches them, as br_netfilter does.
// See https://docs.kernel.org/networking/ip-sysctl.html, "/proc/sys/net/bridge".
type Bridged struct{ IPv4, IPv6 bool }

// Settings of the kernel, below /proc/sys, that have it show what bridges
// switch. Each network namespace has its own; without the module br_netfilter
// there are none.
const (
	BridgedIPv4 = "net.bridge.bridge-nf-call-iptables"
	BridgedIPv6 = "net.bridge.bridge-nf-call-ip6tables"
)

// Unseen gives what of p cannot be enforced between containers on one bridge,
// because the kernel does not show what the bridge switches between them, and
// the names of the settings that would have it do so. Egress is not among it: it
// never covers peers on one bridge.
func Unseen(p *Policy, sets Sets, inv inventory.Snapshot, seen Bridged) (diags []Diagnostic, settings []string) {
	if inv.Engine == inventory.EngineAbsent || p.Mode == Observe {
		return nil, nil
	}
	var what4, what6 []string
	if mode := p.Containers.ToContainers; mode != ToContainersDocker {
		word := fmt.Sprintf("containers.to_containers: %s", mode)
		what4, what6 = []string{word}, []string{word}
	}
	for _, n := range slices.SortedFunc(slices.Values(inv.Networks), func(a, b inventory.Network) int { return strings.Compare(a.Name, b.Name) }) {
		if n.Bridge == "" {
			continue
		}
		for _, subnet := range n.Subnets {
			word := fmt.Sprintf("the set %s, which holds addresses of network %s,", SetBlocked, n.Name)
			switch blocked := sets[SetBlocked]; {
			case subnet.Addr().Is4() && blocked.Segments4().Overlaps(addrset.RangeOf(subnet)):
				what4 = append(what4, word)
			case subnet.Addr().Is6() && blocked.Segments6().Overlaps(addrset.RangeOf(subnet)):
				what6 = append(what6, word)
			}
		}
	}
	for _, f := range []struct {
		seen    bool
		what    []string
		family  string
		setting string
	}{{seen.IPv4, what4, "IPv4", BridgedIPv4}, {seen.IPv6, what6, "IPv6", BridgedIPv6}} {
		if f.seen || len(f.what) == 0 {
			continue
		}
		settings = append(settings, f.setting)
		for _, what := range f.what {
			diags = append(diags, Diagnostic{
				Severity: SeverityError,
				Message: fmt.Sprintf("%s does not hold for %s between containers on one bridge: the kernel does not show this firewall what a bridge switches (modprobe br_netfilter; sysctl -w %s=1)",
					what, f.family, f.setting),
			})
		}
	}
	return diags, settings
}
