package policy

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/inventory"
	rs "github.com/nftfw/nftfw/pkg/ruleset"
)

// Names of what opens the ports over which the nodes of a swarm talk to each
// other. A host in no swarm has neither.
const (
	chainSwarm    = "swarm"
	setSwarmPorts = "swarm_ports"
)

// Ports of Swarm's own, and ESP, which carries the packets of encrypted overlay
// networks. The first and the third can be set to others when a swarm is made.
// See https://docs.docker.com/engine/swarm/swarm-tutorial/#open-protocols-and-ports-between-the-hosts.
const (
	controlPort = 2377
	gossipPort  = 7946
	dataPort    = 4789

	protoESP = 50
)

// ingressOwner stands for the container of a port of the routing mesh where
// its service is not known, which is on workers.
const ingressOwner = "ingress"

// NodeEntries gives the entries of SetSwarmNodes that the engine's word about
// its swarm makes.
func NodeEntries(s inventory.Swarm) []addrset.Entry {
	var out []addrset.Entry
	for _, a := range s.Nodes {
		a = plain(a)
		out = append(out, addrset.Entry{Range: addrset.Range{From: a, To: a}, Source: addrset.Docker})
	}
	return out
}

// decideIngress gives the decisions about the ports of the routing mesh. A
// manager knows which services publish them; on a worker swarm.ingress alone
// names them.
func decideIngress(p *Policy, swarm inventory.Swarm) ([]Decision, []Diagnostic) {
	var (
		decisions []Decision
		diags     []Diagnostic
	)
	switch swarm.Role {
	case inventory.SwarmManager:
		for _, s := range swarm.Services {
			d := newServiceDecider(p, s)
			decisions = append(decisions, d.decideService(s)...)
			diags = append(diags, d.diags...)
		}
	case inventory.SwarmWorker:
		decisions = decideListed(p)
	}
	for i := range decisions {
		decisions[i].Ingress, decisions[i].Mesh = true, swarm.Ingress
	}
	if swarm.Problem != "" {
		diags = append(diags, Diagnostic{
			Severity: SeverityWarning,
			Message:  "swarm: " + swarm.Problem + "; what is not known of it stays closed",
		})
	}
	return decisions, diags
}

// decideListed gives the decisions of swarm.ingress for a worker.
func decideListed(p *Policy) []Decision {
	type key struct {
		proto uint8
		port  uint16
	}
	listed := map[key]bool{}
	for _, g := range p.Ingress {
		for port := int(g.Ports.Low); port <= int(g.Ports.High); port++ {
			listed[key{g.Ports.Proto, uint16(port)}] = true
		}
	}
	var out []Decision
	for k := range listed {
		grant, _ := narrowest(p.Ingress, k.proto, k.port)
		out = append(out, Decision{
			Container: &inventory.Container{ID: ingressOwner, Name: ingressOwner},
			Port:      inventory.Port{HostPort: k.port, ContainerPort: k.port, Proto: k.proto},
			From:      grant.From, By: ByRule, Origin: grant.Pos.String(),
		})
	}
	return out
}

// newServiceDecider decides for a service as if it were a container that
// publishes the service's ports. What the service's own labels say stands above
// what those of its containers say under the same key.
func newServiceDecider(p *Policy, s inventory.Service) *decider {
	c := inventory.Container{ID: s.ID, Name: s.Name, Image: s.Image, Labels: map[string]string{}}
	maps.Copy(c.Labels, s.ContainerLabels)
	maps.Copy(c.Labels, s.Labels)
	// As the engine labels the service's containers.
	c.Labels[swarmService] = s.Name
	for _, port := range s.Ports {
		c.Ports = append(c.Ports, inventory.Port{HostPort: port.Published, ContainerPort: port.Target, Proto: port.Proto})
	}
	return newDecider(p, nil, &c)
}

// decideService gives the decisions for the ports that the service publishes
// in the routing mesh. A port that swarm.ingress lists is as open on a manager
// as it is on workers.
func (d *decider) decideService(s inventory.Service) []Decision {
	var out []Decision
	for _, port := range d.c.Ports {
		if grant, ok := narrowest(d.p.Ingress, port.Proto, port.HostPort); ok {
			out = append(out, Decision{Container: d.c, Port: port, From: grant.From, By: ByRule, Origin: grant.Pos.String()})
			continue
		}
		out = append(out, d.decidePort(port)...)
	}
	// The labels of its containers are reported with those, unless a port of
	// the mesh depends on them.
	d.labels.Expose = slices.DeleteFunc(d.labels.Expose, func(g LabelGrant) bool {
		_, own := s.Labels[g.Key]
		return !own && !slices.ContainsFunc(out, func(o Decision) bool { return g.Ports.Contains(o.Port.Proto, o.Port.ContainerPort) })
	})
	d.reportLabels()
	for _, g := range d.labels.Expose {
		if g.Err == nil && !slices.ContainsFunc(out, func(o Decision) bool { return g.Ports.Contains(o.Port.Proto, o.Port.ContainerPort) }) {
			d.report(SeverityWarning, g.Key, g.Ports.String(),
				"the service publishes no such port in the routing mesh; ports with mode=host follow the labels of the service's containers")
		}
	}
	if _, asked := s.Labels[labelEgress]; asked {
		d.report(SeverityError, labelEgress, "",
			"does not count on a service: it belongs among the labels of its containers (labels rather than deploy.labels, --container-label rather than --label)")
	}
	for i := range d.diags {
		d.diags[i].Service = true
	}
	return out
}

// vni is an encrypted overlay network on the wire.
type vni struct {
	id      uint32
	network string
}

// sealed gives the overlay networks whose packets must come out of IPsec.
func sealed(networks []inventory.Network) []vni {
	var out []vni
	for _, n := range networks {
		if !n.Encrypted {
			continue
		}
		for _, id := range n.VNIs {
			out = append(out, vni{id, n.Name})
		}
	}
	slices.SortFunc(out, func(a, b vni) int { return cmp.Or(cmp.Compare(a.id, b.id), cmp.Compare(a.network, b.network)) })
	return slices.CompactFunc(out, func(a, b vni) bool { return a.id == b.id })
}

// swarmSets makes the set of the ports that nodes reach of each other.
func (c *compiler) swarmSets() {
	if c.swarm.Role == "" {
		return
	}
	set := c.addSet(&rs.Set{Name: setSwarmPorts, Key: []rs.Field{rs.L4Proto, rs.Dport}, Elements: map[rs.Key]rs.Element{}})
	for _, k := range []rs.Key{
		{Proto: protoTCP, Port: controlPort},
		{Proto: protoTCP, Port: cmp.Or(c.swarm.ControlPort, controlPort)},
		{Proto: protoTCP, Port: gossipPort},
		{Proto: protoUDP, Port: gossipPort},
		{Proto: protoUDP, Port: c.dataPort()},
	} {
		set.Elements[k] = rs.Element{}
	}
}

// dataPort is the UDP port of overlay networks. Managers alone are told when it
// is another than the usual one.
func (c *compiler) dataPort() uint16 { return cmp.Or(c.swarm.DataPort, dataPort) }

// toSealed refuses what claims to be of an encrypted overlay network and is not
// encrypted, whoever sends it: anybody can write a node's address on a packet.
func (c *compiler) toSealed() []rs.Rule {
	var rules []rs.Rule
	for _, v := range c.sealed {
		rules = append(rules, because(fmt.Sprintf("network %s is encrypted", v.network), refuse(ReasonHost,
			rs.Is(rs.L4Proto, protoUDP), rs.Is(rs.Dport, uint32(c.dataPort())), rs.Is(rs.VNI, v.id), rs.Is(rs.IPsec, 0))))
	}
	return rules
}

// fromNodes lets the nodes of the swarm reach each other. To all others these
// are ports of the host like any, and what the policy says of them comes first.
func (c *compiler) fromNodes() *rs.Chain {
	chain := &rs.Chain{Name: chainSwarm}
	add := func(matches ...rs.Match) {
		chain.Rules = append(chain.Rules, because("node of the swarm", accept(matches...)))
	}
	for _, node := range c.inSet(SetSwarmNodes) {
		add(slices.Concat(node, []rs.Match{rs.In(setSwarmPorts, rs.L4Proto, rs.Dport)})...)
		if len(c.sealed) > 0 {
			add(slices.Concat(node, []rs.Match{rs.Is(rs.L4Proto, protoESP)})...)
		}
	}
	return chain
}

// toMesh decides about ports of the routing mesh that nothing is known of,
// which a worker cannot learn: as about a container's port that nobody speaks
// of.
func (c *compiler) toMesh() []rs.Rule {
	if c.swarm.Role != inventory.SwarmWorker || !c.swarm.Ingress.Is4() {
		return nil
	}
	mesh := netip.PrefixFrom(c.swarm.Ingress, c.swarm.Ingress.BitLen())
	return []rs.Rule{{
		Matches: []rs.Match{rs.HasBits(rs.CtStatus, rs.StatusDNAT), rs.Within(rs.IPDaddr, mesh)},
		Verdict: c.fromVerdict(c.p.Containers.Default),
		Origin:  "containers.default, for a port of the routing mesh that swarm.ingress does not list",
	}}
}
