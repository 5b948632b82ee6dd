package daemon

import (
	"fmt"
	"net/netip"

	"github.com/nftfw/nftfw/pkg/inventory"
	"github.com/nftfw/nftfw/pkg/ruleset"
	"github.com/nftfw/nftfw/policy"
)

// meshPort gives the decision about the packet's destination where that is a
// port of the swarm's routing mesh.
func (e *explainer) meshPort() (d policy.Decision, ok bool) {
	decisions, _ := policy.Decide(e.policy.Policy, e.inv)
	for _, d := range decisions {
		if d.Ingress && d.Port.HostPort == e.packet.DPort && d.Port.Proto == e.packet.Proto {
			return d, true
		}
	}
	return policy.Decision{}, false
}

// throughMesh sends the packet into the routing mesh, which knows IPv4 only.
// What becomes of it there, on this node or another, passes no hook of the
// host's any more.
func (e *explainer) throughMesh(d policy.Decision) {
	e.out.Container = d.Container.Name
	if !e.packet.Dst.Is4() || !d.Mesh.IsValid() {
		e.step("routing mesh", fmt.Sprintf("the engine holds port %d itself, and answers nothing over IPv6", e.packet.DPort), "input")
		e.eval(ruleset.Input, e.packet)
		return
	}
	p := e.toMesh(d.Mesh)
	e.step("dnat", fmt.Sprintf("Docker translates %s to %s of the routing mesh", e.destination(e.packet), e.destination(p)), "forward to "+p.OIf)
	if e.eval(ruleset.Forward, p) {
		e.answered(p)
	}
}

// toMesh is the packet as Docker translates it for the routing mesh.
func (e *explainer) toMesh(mesh netip.Addr) ruleset.Packet {
	p := e.packet
	p.OrigDst, p.Status, p.Dst = p.Dst, ruleset.StatusDNAT, mesh
	for _, n := range e.inv.Networks {
		if n.Name == inventory.GatewayNetwork {
			p.OIf = n.Bridge
		}
	}
	return p
}

// perhapsMesh names the other way that the packet takes on a worker if its port
// is one of the mesh's, where it ends differently.
func (e *explainer) perhapsMesh() {
	s := e.inv.Swarm
	if s.Role != inventory.SwarmWorker || !s.Ingress.IsValid() || !e.packet.Dst.Is4() || e.packet.DPort == 0 {
		return
	}
	p := e.toMesh(s.Ingress)
	p.Hook = ruleset.Forward
	if verdict := e.table.Eval(p).Verdict; string(verdict) != e.out.Verdict {
		e.step("routing mesh", fmt.Sprintf("a worker is not told what the mesh publishes: if this port is, Docker translates it to %s, and the verdict is %s",
			e.destination(p), verdict), e.out.Verdict)
	}
}
