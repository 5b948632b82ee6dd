package dockerwatch

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"unicode"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"

	"github.com/nftfw/nftfw/pkg/inventory"
)

// Options of Docker's bridge driver.
// See https://docs.docker.com/engine/network/drivers/bridge/#options.
const (
	optionBridgeName   = "com.docker.network.bridge.name"
	optionGatewayMode4 = "com.docker.network.bridge.gateway_mode_ipv4"
	optionGatewayMode6 = "com.docker.network.bridge.gateway_mode_ipv6"
)

// protocols are the values of Port.Type.
var protocols = map[string]uint8{"tcp": 6, "udp": 17, "sctp": 132}

// problem is something in an answer that was left out because it could not be
// understood.
type problem struct {
	kind string // container or network
	name string
	id   string
	text string
}

// decoded is one container of a list. The problems are those of its fields.
type decoded struct {
	inventory.Container
	problems []problem
}

// decodeContainer makes of s what is certain: an address or a port that does
// not parse is left out and named among the problems. ok is false for a
// container without an ID, or whose processes do not run: a restarting one has
// given its addresses back.
func decodeContainer(s container.Summary) (d decoded, ok bool) {
	if !isRunning(s) {
		return decoded{}, false
	}
	d = decoded{Container: identify(s)}
	if s.NetworkSettings != nil {
		for _, name := range slices.Sorted(maps.Keys(s.NetworkSettings.Networks)) {
			d.addEndpoint(name, s.NetworkSettings.Networks[name])
		}
	}
	for _, p := range s.Ports {
		d.addPort(p)
	}
	slices.SortFunc(d.Endpoints, func(a, b inventory.Endpoint) int { return cmp.Compare(a.NetworkID, b.NetworkID) })
	slices.SortFunc(d.Ports, comparePorts)
	d.Ports = slices.Compact(d.Ports)
	if s.ID == "" {
		d.doubt("it has no ID")
	}
	return d, s.ID != ""
}

// isRunning reports whether a container of a list runs. A state that is not known
// here counts as running.
func isRunning(s container.Summary) bool {
	switch s.State {
	case container.StateCreated, container.StateRestarting, container.StateRemoving,
		container.StateExited, container.StateDead:
		return false
	default:
		return true
	}
}

// identify makes of s what does not change when the container starts or stops.
func identify(s container.Summary) inventory.Container {
	c := inventory.Container{
		ID:          s.ID,
		Name:        containerName(s.Names),
		Image:       s.Image,
		ImageID:     s.ImageID,
		Labels:      s.Labels,
		NetworkMode: s.HostConfig.NetworkMode,
	}
	if c.NetworkMode == "default" {
		c.NetworkMode = "bridge" // the engine's default on Linux
	}
	return c
}

func comparePorts(a, b inventory.Port) int {
	return cmp.Or(
		cmp.Compare(a.ContainerPort, b.ContainerPort),
		cmp.Compare(a.Proto, b.Proto),
		a.HostIP.Compare(b.HostIP),
		cmp.Compare(a.HostPort, b.HostPort),
	)
}

// containerName is the name that has no second slash: the others are links.
func containerName(names []string) string {
	for _, n := range names {
		if n = strings.TrimPrefix(n, "/"); n != "" && !strings.Contains(n, "/") {
			return n
		}
	}
	return ""
}

func (d *decoded) doubt(format string, args ...any) {
	d.problems = append(d.problems, problem{
		kind: "container", name: d.Name, id: d.ID, text: fmt.Sprintf(format, args...),
	})
}

func (d *decoded) addEndpoint(name string, s *network.EndpointSettings) {
	if s == nil || s.NetworkID == "" {
		if s != nil && s.IPAddress != "" {
			d.doubt("endpoint on %q has no network ID", name)
		}
		return
	}
	e := inventory.Endpoint{NetworkID: s.NetworkID}
	var err error
	if e.Addr4, err = parseAddr(s.IPAddress, netip.Addr.Is4); err != nil {
		d.doubt("IPv4 address on network %q: %v", name, err)
	}
	if e.Addr6, err = parseAddr(s.GlobalIPv6Address, netip.Addr.Is6); err != nil {
		d.doubt("IPv6 address on network %q: %v", name, err)
	}
	d.Endpoints = append(d.Endpoints, e)
}

// parseAddr returns the zero Addr for "".
func parseAddr(s string, family func(netip.Addr) bool) (netip.Addr, error) {
	if s == "" {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}, err
	}
	if !family(a) || a.Zone() != "" || a.Is4In6() {
		return netip.Addr{}, fmt.Errorf("%q is not of this family", s)
	}
	return a, nil
}

func (d *decoded) addPort(p container.Port) {
	proto, ok := protocols[p.Type]
	if !ok {
		d.doubt("port %d has the unknown protocol %q", p.PrivatePort, p.Type)
		return
	}
	if p.PrivatePort == 0 {
		d.doubt("a published port has no number inside the container")
		return
	}
	port := inventory.Port{ContainerPort: p.PrivatePort, Proto: proto}
	if p.PublicPort == 0 {
		d.Ports = append(d.Ports, port)
		return
	}
	port.HostPort = p.PublicPort
	if p.IP == "" {
		for _, any := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
			port.HostIP = any
			d.Ports = append(d.Ports, port)
		}
		return
	}
	ip, err := netip.ParseAddr(p.IP)
	if err != nil || ip.Zone() != "" {
		d.doubt("host address %q of port %d", p.IP, p.PrivatePort)
		return
	}
	port.HostIP = ip.Unmap()
	d.Ports = append(d.Ports, port)
}

// decodeNetwork makes of s what is certain; ok is false for one without an ID.
func decodeNetwork(s network.Summary) (n inventory.Network, problems []problem, ok bool) {
	n = inventory.Network{
		ID:       s.ID,
		Name:     s.Name,
		Driver:   s.Driver,
		Internal: s.Internal,
		Labels:   s.Labels,
	}
	doubt := func(format string, args ...any) {
		problems = append(problems, problem{kind: "network", name: n.Name, id: n.ID, text: fmt.Sprintf(format, args...)})
	}
	if n.Driver == "bridge" {
		n.Gateway4 = inventory.GatewayMode(s.Options[optionGatewayMode4])
		n.Gateway6 = inventory.GatewayMode(s.Options[optionGatewayMode6])
		n.Bridge = s.Options[optionBridgeName]
		if n.Bridge == "" && len(n.ID) >= 12 {
			n.Bridge = "br-" + n.ID[:12]
		}
		if !linkName(n.Bridge) {
			doubt("bridge name %q", n.Bridge)
			n.Bridge = ""
		}
	}
	for _, c := range s.IPAM.Config {
		if c.Subnet == "" {
			continue
		}
		p, err := netip.ParsePrefix(c.Subnet)
		if err != nil {
			doubt("subnet: %v", err)
			continue
		}
		n.Subnets = append(n.Subnets, p.Masked())
	}
	slices.SortFunc(n.Subnets, netip.Prefix.Compare)
	if n.Driver == "overlay" {
		if err := decodeOverlay(s, &n); err != nil {
			doubt("%v", err)
		}
	}
	return n, problems, n.ID != ""
}

// linkName reports whether the kernel would take s as a link's name: see
// dev_valid_name in net/core/dev.c.
func linkName(s string) bool {
	return s != "" && len(s) < 16 && s != "." && s != ".." &&
		!strings.ContainsFunc(s, func(r rune) bool {
			return r == '/' || r == ':' || r == '"' || unicode.IsSpace(r) || unicode.IsControl(r)
		})
}

func sortNetworks(list []inventory.Network) {
	slices.SortFunc(list, func(a, b inventory.Network) int { return cmp.Compare(a.ID, b.ID) })
}
