package dockerwatch

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/nftfw/nftfw/pkg/inventory"
)

// ip6tablesByDefault is the first engine that translates addresses of IPv6
// packets unless it is told not to. Engines before it do so on request, and
// refuse to start with that request unless experimental features are on: see
// verifyDaemonSettings in moby's daemon/daemon_unix.go before 27.0.
const ip6tablesByDefault = 27

// withoutNAT6 reports whether a Docker engine certainly translates no addresses
// of IPv6 packets. None says so itself; where experimental features are on, and
// for engines that do it by default, it is not to be known.
func withoutNAT6(version string, experimental bool) bool {
	major := release(version)
	return !experimental && major > 0 && major < ip6tablesByDefault
}

// routedUnlisted is the first engine whose list of containers lacks ports that are
// published without a port of the host, as on networks in gateway mode routed: it
// takes them for mistakes. See GetContainerSnapshot's "invalid host port map" in moby's
// daemon/container/view.go.
const routedUnlisted = 29

// release gives the first number of a version, 0 where there is none.
func release(version string) int {
	number, _, dotted := strings.Cut(version, ".")
	major, err := strconv.Atoi(number)
	if !dotted || err != nil {
		return 0
	}
	return major
}

// routeIPv6 gives bridge networks with IPv6 the gateway mode that an engine
// without NAT for IPv6 gives them without a name: packets go to the container's
// own address or not at all.
func routeIPv6(networks []inventory.Network) {
	for i := range networks {
		n := &networks[i]
		if n.Bridge != "" && slices.ContainsFunc(n.Subnets, func(p netip.Prefix) bool { return p.Addr().Is6() }) {
			n.Gateway6 = inventory.GatewayRouted
		}
	}
}
