package policy

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/nftfw/nftfw/pkg/inventory"
)

// Decider says whose word counted for a port.
type Decider string

// The deciders, strongest first.
const (
	ByRule    Decider = "rule"
	ByLabel   Decider = "label"
	ByDefault Decider = "default"
)

// Decision says who may reach one port of one container, and why.
type Decision struct {
	Container *inventory.Container // not to be written to
	Port      inventory.Port
	From      From
	By        Decider
	// Origin is the policy line or the label that decided.
	Origin string
	// Err says why a label or a rule that would have decided, or may have been
	// meant to, does not count; From is then what is left without it, trusted
	// at the most.
	Err string
	// AtHostIP is set when the decision holds only for connections to that
	// address of the host (a rule with match.host_ip); it stands above the
	// decision for the same port without it.
	AtHostIP netip.Addr
	// HostNetwork is set for a port of a container in the host's network.
	HostNetwork bool
	// Ingress is set for a port of a swarm's routing mesh. Container stands
	// for the service then, or on a worker, which does not know of services,
	// for any. Mesh is where the engine sends it; invalid where this node has
	// no mesh.
	Ingress bool
	Mesh    netip.Addr
}

// subject names whose port it is, for people.
func (d Decision) subject() string {
	switch {
	case d.Ingress && d.Container.ID == ingressOwner:
		return "the routing mesh"
	case d.Ingress:
		return "service " + d.Container.Name
	default:
		return "container " + d.Container.Name
	}
}

// HostOnly reports whether the port is bound to a loopback address, so that
// nothing outside the host may reach it.
func (d Decision) HostOnly() bool { return d.Port.HostIP.IsValid() && d.Port.HostIP.IsLoopback() }

// Decide gives one decision for every port of every container that runs, and of
// the swarm's routing mesh, sorted by container name, port and host address, and what is wrong with labels.
func Decide(p *Policy, inv inventory.Snapshot) ([]Decision, []Diagnostic) {
	var (
		decisions []Decision
		diags     []Diagnostic
	)
	networks := networksByID(inv)
	decisions = slices.Grow(decisions, portCount(inv))
	for i := range inv.Containers {
		of, wrong := decideContainer(p, networks, inv.Swarm.Role, &inv.Containers[i])
		decisions, diags = append(decisions, of...), append(diags, wrong...)
	}
	ingress, more := decideIngress(p, inv.Swarm)
	decisions, diags = append(decisions, ingress...), append(diags, more...)
	slices.SortFunc(decisions, compareDecisions)
	slices.SortFunc(diags, compareDiagnostics)
	return decisions, diags
}

// decideContainer gives the decisions for the ports of a container, in no order,
// and what is wrong with its labels. There are none unless it runs.
func decideContainer(p *Policy, networks map[string]inventory.Network, role inventory.SwarmRole, c *inventory.Container) ([]Decision, []Diagnostic) {
	if c.Starting {
		return nil, nil
	}
	d := newDecider(p, networks, c)
	d.role = role
	return d.decide(), d.diags
}

// portCount is how many ports the containers that run have in all, for what is
// to hold something for each.
func portCount(inv inventory.Snapshot) int {
	n := 0
	for i := range inv.Containers {
		n += len(inv.Containers[i].Ports)
	}
	return n
}

func compareDecisions(a, b Decision) int {
	return cmp.Or(
		cmp.Compare(a.Container.Name, b.Container.Name),
		cmp.Compare(a.Container.ID, b.Container.ID),
		cmp.Compare(a.Port.ContainerPort, b.Port.ContainerPort),
		cmp.Compare(a.Port.Proto, b.Port.Proto),
		a.Port.HostIP.Compare(b.Port.HostIP),
		cmp.Compare(a.Port.HostPort, b.Port.HostPort),
		a.AtHostIP.Compare(b.AtHostIP),
	)
}

func compareDiagnostics(a, b Diagnostic) int {
	return cmp.Or(
		cmp.Compare(a.Container, b.Container),
		cmp.Compare(a.ContainerID, b.ContainerID),
		cmp.Compare(a.Label, b.Label),
		cmp.Compare(a.Port, b.Port),
		cmp.Compare(a.Message, b.Message),
		cmp.Compare(a.Severity, b.Severity),
	)
}

func networksByID(inv inventory.Snapshot) map[string]inventory.Network {
	networks := make(map[string]inventory.Network, len(inv.Networks))
	for _, n := range inv.Networks {
		networks[n.ID] = n
	}
	return networks
}

// decider decides for one container.
type decider struct {
	p         *Policy
	c         *inventory.Container
	networks  []inventory.Network // those that the container is attached to
	effective map[string]string   // labels that count
	labels    Labels
	doubt     string // why a label may speak of any port, "" where none may
	rules     []Rule // those that match the container, or may: see unsure
	role      inventory.SwarmRole
	diags     []Diagnostic
}

func newDecider(p *Policy, networks map[string]inventory.Network, c *inventory.Container) *decider {
	d := &decider{p: p, c: c, effective: operatorLabels(p, c)}
	for _, e := range c.Endpoints {
		if n, known := networks[e.NetworkID]; known {
			d.networks = append(d.networks, n)
		}
	}
	d.labels = ParseLabels(d.effective, p)
	for _, problem := range d.labels.Problems {
		d.doubt = fmt.Sprintf("label %s is not understood and may be about this port", problem.Label)
		d.report(problem.Severity, problem.Label, "", problem.Message)
	}
	if c.ImageUnknown && len(d.effective) < len(c.Labels) {
		d.doubt = "the image cannot be inspected, so the container's labels do not count"
	}
	for _, r := range p.Containers.Rules {
		if r.Match.mayBe(c, d.effective) {
			d.rules = append(d.rules, r)
		}
	}
	return d
}

// operatorLabels gives the labels that count, not to be written to: what the image
// carries with the same key and value is the image's word.
func operatorLabels(p *Policy, c *inventory.Container) map[string]string {
	switch {
	case p.Containers.ImageLabels:
		return c.Labels
	case c.ImageUnknown:
		return nil
	case len(c.ImageLabels) == 0:
		return c.Labels
	}
	own := make(map[string]string, len(c.Labels))
	for k, v := range c.Labels {
		if baked, ok := c.ImageLabels[k]; !ok || baked != v {
			own[k] = v
		}
	}
	return own
}

func (d *decider) report(s Severity, label, port, message string) {
	d.diags = append(d.diags, Diagnostic{
		Severity: s, Container: d.c.Name, ContainerID: d.c.ID,
		Label: label, Port: port, Message: message,
	})
}

func (d *decider) decide() []Decision {
	var out []Decision
	switch mode := d.c.NetworkMode; {
	case mode == "host":
		out = d.decideHostNetwork()
	case strings.HasPrefix(mode, "container:"):
		const why = "cannot be enforced: the container shares the network of another one, whose labels and rules count"
		d.ignoreLabels(why)
		for _, r := range d.rules {
			if len(r.Expose) > 0 && r.Match.names() {
				d.report(SeverityError, "", "", fmt.Sprintf("expose at %s %s", r.Pos, why))
			}
		}
	default:
		if len(d.c.Endpoints) > 0 && !slices.ContainsFunc(d.networks, onBridge) {
			d.ignoreLabels("cannot be enforced: the container is on no bridge network, so its traffic does not pass this host's firewall")
		}
		out = make([]Decision, 0, len(d.c.Ports))
		for _, port := range d.c.Ports {
			out = append(out, d.decidePort(port)...)
		}
		out = append(out, d.atOwnAddress(out)...)
		d.reportUnpublished()
	}
	d.reportLabels()
	d.reportImageLabels()
	return out
}

func onBridge(n inventory.Network) bool { return n.Bridge != "" }

// decidePort gives the decision for a port, and further ones for the host
// addresses at which rules with match.host_ip decide otherwise.
func (d *decider) decidePort(port inventory.Port) []Decision {
	at := port.HostIP
	if at.IsValid() && at.IsUnspecified() {
		at = netip.Addr{}
	}
	out := []Decision{d.at(port, at)}
	if wildcard(port) {
		for _, host := range d.hostIPs(port) {
			if special := d.at(port, host); special.AtHostIP.IsValid() {
				out = append(out, special)
			}
		}
	}
	return out
}

// atOwnAddress gives decisions for what is sent straight to the container, on networks
// where that is possible, of ports about which only rules with match.host_ip are.
func (d *decider) atOwnAddress(decided []Decision) []Decision {
	if !slices.ContainsFunc(d.networks, func(n inventory.Network) bool {
		return n.Gateway4 == inventory.GatewayRouted || n.Gateway6 == inventory.GatewayRouted
	}) {
		return nil
	}
	type own struct {
		port  uint16
		proto uint8
	}
	seen := map[own]bool{}
	for _, by := range decided {
		if !by.AtHostIP.IsValid() {
			seen[own{by.Port.ContainerPort, by.Port.Proto}] = true
		}
	}
	var out []Decision
	for _, by := range decided {
		if at := (own{by.Port.ContainerPort, by.Port.Proto}); !seen[at] && !by.HostOnly() {
			seen[at] = true
			out = append(out, d.at(inventory.Port{ContainerPort: at.port, Proto: at.proto}, netip.Addr{}))
		}
	}
	return out
}

// wildcard reports whether the port is bound on every address of the host.
func wildcard(port inventory.Port) bool {
	return port.Published() && (!port.HostIP.IsValid() || port.HostIP.IsUnspecified())
}

// hostIPs lists the addresses of the binding's family that rules for this
// container tell apart.
func (d *decider) hostIPs(port inventory.Port) []netip.Addr {
	var out []netip.Addr
	for _, r := range d.rules {
		ip := r.Match.HostIP
		if ip.IsValid() && (!port.HostIP.IsValid() || ip.Is4() == port.HostIP.Is4()) && !slices.Contains(out, ip) {
			out = append(out, ip)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// at decides for connections to the port through the host address host, or
// through any address when host is invalid.
func (d *decider) at(port inventory.Port, host netip.Addr) Decision {
	out := Decision{Container: d.c, Port: port}
	if grant, i, ok := d.byRule(port.Proto, port.ContainerPort, host); ok {
		by := d.rules[i]
		out.From, out.By, out.Origin = grant.From, ByRule, grant.Pos.String()
		if out.Err = d.unsure(by); out.Err != "" {
			rest := *d
			rest.rules = d.rules[i+1:]
			out.From = From{None: grant.From.None || rest.at(port, host).From.None}
		}
		if by.Match.HostIP.IsValid() {
			out.AtHostIP = by.Match.HostIP
		}
		return out
	}
	if grant, ok := d.byLabel(port.Proto, port.ContainerPort); ok {
		out.From, out.By, out.Origin = grant.From, ByLabel, grant.Key
		if grant.Err != nil {
			out.From, out.By, out.Err = d.capped(port), ByDefault, grant.Err.Error()
		}
		return out
	}
	out.From, out.By, out.Origin = d.p.Containers.Default, ByDefault, "containers.default"
	if d.doubt != "" {
		out.From, out.Err = d.capped(port), d.doubt
	}
	return out
}

// unsure says why it is not known whether a rule that may speak of the container
// does; "" where it does.
func (d *decider) unsure(r Rule) string {
	switch {
	case r.Match.Container(d.c.Name, d.c.Image, d.effective):
		return ""
	case imageUnnamed(d.c):
		return "the name of the container's image is not known, and this rule may be about it"
	default:
		return "the image cannot be inspected, and this rule may be about the container"
	}
}

// capped is what is left of a port when a label that is, or may be, about it
// is not understood: trusted, or nobody where the default or another label
// says none.
func (d *decider) capped(port inventory.Port) From {
	none := d.p.Containers.Default.None || slices.ContainsFunc(d.labels.Expose, func(g LabelGrant) bool {
		return g.Err == nil && g.From.None && g.Ports.Contains(port.Proto, port.ContainerPort)
	})
	return From{None: none}
}

// byHostIP reports whether a rule holds at one address of the host's only.
func (p *Policy) byHostIP() bool {
	return slices.ContainsFunc(p.Containers.Rules, func(r Rule) bool { return r.Match.HostIP.IsValid() })
}

// byRule gives the first of d.rules that speaks of the port; within the rule the
// narrowest port specification counts.
func (d *decider) byRule(proto uint8, port uint16, host netip.Addr) (grant PortGrant, index int, ok bool) {
	for i, r := range d.rules {
		if r.Match.HostIP.IsValid() && r.Match.HostIP != host {
			continue
		}
		if grant, ok := narrowest(r.Expose, proto, port); ok {
			return grant, i, true
		}
	}
	return PortGrant{}, 0, false
}

func narrowest(grants []PortGrant, proto uint8, port uint16) (PortGrant, bool) {
	var (
		best  PortGrant
		found bool
	)
	for _, g := range grants {
		if !g.Ports.Contains(proto, port) {
			continue
		}
		if !found || g.Ports.Width() < best.Ports.Width() ||
			g.Ports.Width() == best.Ports.Width() && g.Ports.Low < best.Ports.Low {
			best, found = g, true
		}
	}
	return best, found
}

// byLabel gives the narrowest label that covers the port; Labels.Expose is
// sorted so that it comes first. With a label in doubt, which may be about
// this port alone, only one that is about this port alone counts.
func (d *decider) byLabel(proto uint8, port uint16) (LabelGrant, bool) {
	for _, g := range d.labels.Expose {
		if g.Ports.Contains(proto, port) && (d.doubt == "" || g.Ports.Width() == 1) {
			return g, true
		}
	}
	return LabelGrant{}, false
}

// decideHostNetwork opens ports of the host for a container in the host's
// network: those that a label or a rule names by number.
func (d *decider) decideHostNetwork() []Decision {
	type portKey struct {
		proto uint8
		port  uint16
	}
	named := map[portKey]bool{}
	collect := func(s PortSpec) {
		if s.All || s.Portless {
			return
		}
		for port := int(s.Low); port <= int(s.High); port++ {
			named[portKey{s.Proto, uint16(port)}] = true
		}
	}
	for _, g := range d.labels.Expose {
		if g.Ports.All {
			d.report(SeverityWarning, g.Key, "", "a container in the host's network publishes no ports; name the port, as in nftfw.expose.80/tcp")
		}
		collect(g.Ports)
	}
	for _, r := range d.rules {
		for _, g := range r.Expose {
			collect(g.Ports)
		}
	}
	var out []Decision
	for k := range named {
		if pos, taken := d.p.hostAllows(k.proto, k.port); taken {
			label, _ := d.byLabel(k.proto, k.port)
			d.report(SeverityError, label.Key, portName(k.proto, k.port),
				fmt.Sprintf("host port %s stays as %s says: host.allow names it", portName(k.proto, k.port), pos))
			continue
		}
		port := inventory.Port{ContainerPort: k.port, HostPort: k.port, Proto: k.proto}
		for _, dec := range d.decidePort(port) {
			if dec.By == ByDefault && dec.Err == "" {
				continue // named for another address of the host only
			}
			dec.HostNetwork = true
			out = append(out, dec)
		}
	}
	return out
}

// hostAllows reports whether host.allow names the port, and where.
func (p *Policy) hostAllows(proto uint8, port uint16) (Pos, bool) {
	for _, a := range p.Host.Allow {
		for _, s := range a.Ports {
			if s.Contains(proto, port) {
				return a.Pos, true
			}
		}
	}
	return Pos{}, false
}

// reportImageLabels says which nftfw labels of the container do not count
// because its image carries them.
func (d *decider) reportImageLabels() {
	if d.p.Containers.ImageLabels {
		return
	}
	for k := range d.c.Labels {
		if _, counts := d.effective[k]; counts || !isOurs(k) {
			continue
		}
		message := "comes with the image and does not count; containers.image_labels: true would let it"
		if d.c.ImageUnknown {
			message = "does not count while the image cannot be inspected: it may have come with it"
		}
		d.report(SeverityWarning, k, "", message)
	}
}

// isOurs reports whether a label is meant for nftfw, which ParseLabels takes
// of every key in this namespace, however it is spelt.
func isOurs(key string) bool {
	namespace, _, _ := strings.Cut(key, ".")
	return strings.EqualFold(namespace, labelNamespace)
}

// ignoreLabels lets no label of the container count.
func (d *decider) ignoreLabels(why string) {
	for i := range d.labels.Expose {
		if g := &d.labels.Expose[i]; g.Err == nil {
			g.From, g.Err = From{}, errors.New(why)
		}
	}
}

// reportLabels says once for every label that does not count why it does not,
// whether or not it would have decided about a port.
func (d *decider) reportLabels() {
	for _, g := range d.labels.Expose {
		if g.Err == nil {
			continue
		}
		port := g.Ports.String()
		if g.Ports.All {
			port = ""
		}
		d.report(SeverityError, g.Key, port, g.Err.Error())
	}
}

// reportUnpublished warns of labels that name a port which the container does
// not publish: most often the host's port was meant.
func (d *decider) reportUnpublished() {
	why := "the container publishes no such port; labels name the container's own port, not the host's"
	if slices.ContainsFunc(d.networks, func(n inventory.Network) bool { return n.Ingress }) {
		if d.role == inventory.SwarmManager {
			return // its service publishes it
		}
		why = "a worker is not told what the routing mesh publishes: here swarm.ingress decides about its ports"
	}
	for _, g := range d.labels.Expose {
		if g.Ports.All || g.Err != nil {
			continue
		}
		if !slices.ContainsFunc(d.c.Ports, func(port inventory.Port) bool {
			return g.Ports.Contains(port.Proto, port.ContainerPort) && d.reachable(port)
		}) {
			d.report(SeverityWarning, g.Key, g.Ports.String(), why)
		}
	}
}

// reachable reports whether there is a way to the port from outside: a port
// of the host, or a network that is routed to.
func (d *decider) reachable(port inventory.Port) bool {
	return port.Published() || slices.ContainsFunc(d.networks, func(n inventory.Network) bool {
		return onBridge(n) && (n.Gateway4 == inventory.GatewayRouted || n.Gateway6 == inventory.GatewayRouted)
	})
}

func portName(proto uint8, port uint16) string {
	return PortSpec{Proto: proto, Low: port, High: port}.String()
}
