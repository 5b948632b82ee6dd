package daemon

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/api"
	"github.com/nftfw/nftfw/pkg/inventory"
	"github.com/nftfw/nftfw/pkg/links"
	"github.com/nftfw/nftfw/pkg/ruleset"
	"github.com/nftfw/nftfw/policy"
)

// explain says what becomes of the first packet of a connection, step by step.
func (c *core) explain(q api.Question) (api.Explanation, error) {
	routes, err := links.ReadRoutes()
	if err != nil {
		return api.Explanation{}, err
	}
	e := explainer{core: c, inv: c.inventory(), routes: routes, table: c.table}
	if err := e.parse(q); err != nil {
		return api.Explanation{}, err
	}
	return e.answer(), nil
}

// explainer follows one packet.
type explainer struct {
	*core
	inv    inventory.Snapshot
	routes *links.Routes
	table  *ruleset.Table // nil: nothing is enforced

	packet   ruleset.Packet // as it arrives
	silenced netip.Addr     // whose answers are dropped; zero: nobody's
	refused  policy.Reason  // why the packet is refused, in observe mode too; "": it is not
	out      api.Explanation
}

func (e *explainer) parse(q api.Question) error {
	from, err := netip.ParseAddr(q.From)
	if err != nil {
		return api.Invalidf("--from %q is no address", q.From)
	}
	to, err := netip.ParseAddr(q.To)
	if err != nil {
		return api.Invalidf("--to %q is no address", q.To)
	}
	if q.In == "" {
		q.In = from.Zone()
	}
	from, to = from.Unmap().WithZone(""), to.Unmap().WithZone("")
	if from.Is4() != to.Is4() {
		return api.Invalidf("%s and %s are of different address families", from, to)
	}
	if q.In != "" && !slices.ContainsFunc(e.inv.Links, func(l inventory.Link) bool { return l.Name == q.In }) {
		e.step("interfaces", fmt.Sprintf("this host has no interface %s now", q.In), "taken as if it had")
	}
	e.packet = ruleset.Packet{
		Src: from, Dst: to, Proto: q.Proto, DPort: q.Port, SPort: ephemeralPort,
		IIf: q.In, State: ruleset.StateNew, Time: e.now(),
	}
	if q.Port == 0 {
		e.packet.SPort = 0
		e.packet.ICMPType = echoRequest(to)
	}
	if e.packet.IIf == "" {
		e.packet.IIf = e.routes.Link(from)
	}
	return nil
}

// ephemeralPort stands for the port that a client picks, the first of IANA's
// dynamic range.
const ephemeralPort = 49152

// echoRequest is the ICMP type of a ping (IANA).
func echoRequest(to netip.Addr) uint8 {
	if to.Is4() {
		return 8
	}
	return 128
}

func (e *explainer) answer() api.Explanation {
	e.follow()
	if e.refused != "" {
		e.out.Remedy = e.remedy()
		if e.out.Verdict == string(ruleset.Accept) {
			e.out.Enforced = string(ruleset.Drop)
		}
	}
	return e.out
}

// follow takes the packet from where it arrives to its end.
func (e *explainer) follow() {
	e.out.Verdict = string(ruleset.Accept)
	if name := e.containerAt(e.packet.Src); name != "" {
		e.step("source", fmt.Sprintf("%s is container %s", e.packet.Src, name), "arrives on "+e.packet.IIf)
	}
	switch {
	case e.table == nil:
		e.out.DecidedBy = "nothing is enforced"
		e.step("nftfw", "no table is in force", "accept")
	case e.packet.IIf == "":
		e.out.Verdict, e.out.DecidedBy = string(ruleset.Drop), "routing"
		e.step("routing", fmt.Sprintf("this host has no route back to %s, so it answers nothing (--in names the interface)", e.packet.Src), "drop")
	case e.routes.Local(e.packet.Src):
		e.out.DecidedBy = "the host itself"
		e.step("output", "nftfw does not filter what the host sends", "accept")
	case e.staysInside():
	default:
		e.walk()
	}
}

// staysInside notes a packet that no hook of this host sees: a container's to
// itself, or one that a bridge merely switches from one container to another.
func (e *explainer) staysInside() bool {
	from, to := e.containerAt(e.packet.Src), e.containerAt(e.packet.Dst)
	if from == "" || to == "" {
		return false
	}
	if from == to {
		e.out.Container, e.out.DecidedBy = to, "the container itself"
		e.step("loopback", "it does not leave container "+from, "accept")
		return true
	}
	bridge := e.bridgeOf(e.packet.Dst)
	if bridge == "" || bridge != e.packet.IIf || bridge != e.bridgeOf(e.packet.Src) || filtersBridged(e.packet.Dst) {
		return false
	}
	e.out.Container, e.out.DecidedBy = to, "the bridge "+bridge
	e.step("bridge", fmt.Sprintf("%s switches it to container %s; this host's firewall sees nothing of it", bridge, to), "accept")
	return true
}

// filtersBridged reports whether packets of a's family that a bridge switches
// pass the hooks of IP as well.
func filtersBridged(a netip.Addr) bool {
	seen := bridged()
	return a.Is4() && seen.IPv4 || a.Is6() && seen.IPv6
}

// walk sends the packet through prerouting and then along its way.
func (e *explainer) walk() {
	if !e.eval(ruleset.Prerouting, e.packet) {
		return
	}
	if dst := e.packet.Dst; dst.IsMulticast() || e.routes.Broadcast(dst) {
		e.step("routing", fmt.Sprintf("%s is an address of many, of which this host is one", dst), "input")
		e.eval(ruleset.Input, e.packet)
		return
	}
	if !e.routes.Local(e.packet.Dst) {
		e.forwarded()
		return
	}
	if d, ok := e.meshPort(); ok {
		e.throughMesh(d)
		return
	}
	port, container, published := e.publishedPort()
	if published {
		e.out.Container = container.Name
	}
	target := e.dnatTarget(container)
	switch {
	case !published:
		e.out.Container = e.hostNetworked()
		e.eval(ruleset.Input, e.packet)
		e.perhapsMesh()
		return
	case !target.IsValid():
		e.proxied(container, port)
		return
	}
	p := e.packet
	p.OrigDst, p.Status = p.Dst, ruleset.StatusDNAT
	p.Dst, p.DPort = target, port.ContainerPort
	p.OIf = e.bridgeOf(target)
	if e.isBridge(e.packet.IIf) {
		e.betweenBridges(container, port, p)
		return
	}
	e.step("dnat", fmt.Sprintf("Docker translates %s to %s of container %s", e.destination(e.packet), e.destination(p), container.Name), "forward to "+p.OIf)
	if !e.eval(ruleset.Forward, p) || !e.answered(p) || p.Dst.Is4() {
		return
	}
	// Whether the engine translates IPv6 is its setting: what docker-proxy
	// would take has to get through as well.
	e.step("docker-proxy", "where Docker does not translate IPv6, docker-proxy accepts it", "input")
	e.proxied(container, port)
}

// proxied sends the packet to docker-proxy, which asks the container in turn.
func (e *explainer) proxied(c inventory.Container, port inventory.Port) {
	if !e.eval(ruleset.Input, e.packet) {
		return
	}
	for _, end := range c.Endpoints {
		a, bridge := end.Addr4, e.networkOf(end).Bridge
		if !e.packet.Dst.Is4() && end.Addr6.IsValid() {
			a = end.Addr6
		}
		if a.IsValid() && bridge != "" {
			// Only the family of the proxy's own address counts.
			e.answered(ruleset.Packet{Src: a, Dst: a, Proto: port.Proto, DPort: port.ContainerPort, OIf: bridge, Time: e.packet.Time})
			return
		}
	}
}

// translatesAll is the first Docker engine that translates also what containers send to
// published ports of others, where docker-proxy is on (seen).
const translatesAll = 29

// betweenBridges sends a container's packet for another's published port to
// docker-proxy, which takes it unless the engine is of a release that translates it,
// or has no proxy. The latter cannot be asked, so that the other way, with the
// translated packet, is named where it ends differently.
func (e *explainer) betweenBridges(c inventory.Container, port inventory.Port, translated ruleset.Packet) {
	if e.inv.Release >= translatesAll {
		e.step("dnat", fmt.Sprintf("Docker translates %s to %s of container %s", e.destination(e.packet), e.destination(translated), c.Name), "forward to "+translated.OIf)
		if e.eval(ruleset.Forward, translated) {
			e.answered(translated)
		}
		return
	}
	e.step("docker-proxy", "accepts on this host what containers send to published ports", "input")
	e.proxied(c, port)
	translated.Hook = ruleset.Forward
	if verdict := e.table.Eval(translated).Verdict; string(verdict) != e.out.Verdict {
		e.step("dnat", fmt.Sprintf("an engine of release %d or later, or one without docker-proxy, would translate it to %s: then the verdict is %s", translatesAll,
			e.destination(translated), verdict), e.out.Verdict)
	}
}

// forwarded sends the packet, which is not for the host, through it.
func (e *explainer) forwarded() {
	p := e.packet
	if p.OIf = e.bridgeOf(p.Dst); p.OIf == "" {
		p.OIf = e.routes.Link(p.Dst)
	}
	if p.OIf == "" {
		e.out.Verdict, e.out.DecidedBy = string(ruleset.Drop), "routing"
		e.step("routing", fmt.Sprintf("this host has no route to %s", p.Dst), "drop")
		return
	}
	if name := e.containerAt(p.Dst); name != "" {
		e.out.Container = name
		e.step("routing", fmt.Sprintf("straight to %s of container %s", p.Dst, name), "forward to "+p.OIf)
	} else {
		e.step("routing", fmt.Sprintf("%s is reached through this host", p.Dst), "forward to "+p.OIf)
	}
	if e.eval(ruleset.Forward, p) {
		e.answered(p)
	}
}

// answered reports whether the answer to a forwarded packet gets into the
// host: blocked speaks of sources, whoever began the connection.
func (e *explainer) answered(p ruleset.Packet) bool {
	back := p
	back.Hook, back.State, back.IIf, back.OIf = ruleset.Prerouting, ruleset.StateEstablished, p.OIf, ""
	back.Src, back.Dst, back.SPort, back.DPort = p.Dst, p.Src, p.DPort, p.SPort
	if e.table.Eval(back).Verdict == ruleset.Accept {
		return true
	}
	e.silenced = back.Src
	e.step("answer", "it would come from "+back.Src.String(), "arrives on "+back.IIf)
	return e.eval(ruleset.Prerouting, back)
}

// eval runs one hook and notes the rules that matched. It reports whether the
// packet goes on.
func (e *explainer) eval(hook ruleset.Hook, p ruleset.Packet) bool {
	p.Hook = hook
	trace := e.table.Eval(p)
	for _, s := range trace.Steps {
		if s.Result == "no match" || s.Result == "continue" {
			continue // a rule that only counts or logs
		}
		what := s.Text
		if s.Element != "" {
			what += "  [" + s.Element + "]"
		}
		e.step(s.Chain, what, s.Result)
		if e.refused != "" {
			continue // decided; a policy that observes lets it go on
		}
		switch {
		case s.Origin == "":
		case e.out.DecidedBy != "" && (s.Result == "return" || s.Origin == policy.OriginEgress):
			// It is within a container's egress: who gave it that was told by the map.
		default:
			e.out.DecidedBy = e.decider(s.Origin, p)
		}
		if e.refused, _ = policy.ReasonOfChain(s.Chain); e.refused == policy.ReasonBlocked {
			e.out.DecidedBy = e.holder(policy.SetBlocked, p.Src)
		}
	}
	e.out.Verdict = string(trace.Verdict)
	return trace.Verdict == ruleset.Accept
}

// decider names who decided on a packet, by the origin of the rule that did.
func (e *explainer) decider(origin string, p ruleset.Packet) string {
	if origin == policy.OriginTrusted {
		return e.holder(policy.SetTrusted, p.Src)
	}
	ping := p.Hook == ruleset.Input && p.DPort == 0 && p.ICMPType == echoRequest(p.Dst)
	if ping && (origin == policy.OriginEssential || origin == policy.OriginHostDefault) {
		return "host.ping"
	}
	return origin
}

func (e *explainer) step(where, what, result string) {
	e.out.Steps = append(e.out.Steps, api.Step{Where: where, What: what, Result: result})
}

func (e *explainer) destination(p ruleset.Packet) string {
	if p.DPort == 0 {
		return p.Dst.String()
	}
	return fmt.Sprintf("%s/%s", netip.AddrPortFrom(p.Dst, p.DPort), ruleset.ProtocolName(p.Proto))
}

// publishedPort finds the container that publishes the packet's destination.
func (e *explainer) publishedPort() (inventory.Port, inventory.Container, bool) {
	for _, c := range e.inv.Containers {
		for _, port := range c.Ports {
			at := port.HostIP
			here := !at.IsValid() || at == e.packet.Dst || at.IsUnspecified() && at.Is4() == e.packet.Dst.Is4()
			if port.Published() && here && port.HostPort == e.packet.DPort && port.Proto == e.packet.Proto {
				return port, c, true
			}
		}
	}
	return inventory.Port{}, inventory.Container{}, false
}

// hostNetworked names the container in the host's network whose port the packet's
// destination is, "" where no rule and no label says that it is one's.
func (e *explainer) hostNetworked() string {
	decisions, _ := policy.Decide(e.policy.Policy, e.inv)
	name, d := newWhereabouts(e.inv, decisions).target(e.packet.Dst, e.packet.Proto, e.packet.DPort)
	if d == nil || !d.HostNetwork {
		return ""
	}
	return name
}

// dnatTarget is the container's address to which Docker translates: none where
// docker-proxy takes the packet, because the container has no address of the
// family that is translated to, or the packet comes from the container's own
// bridge.
func (e *explainer) dnatTarget(c inventory.Container) netip.Addr {
	for _, end := range c.Endpoints {
		n := e.networkOf(end)
		a, mode := end.Addr4, n.Gateway4
		if !e.packet.Dst.Is4() {
			a, mode = end.Addr6, n.Gateway6
		}
		if a.IsValid() && n.Bridge != "" && n.Bridge != e.packet.IIf && mode != inventory.GatewayRouted {
			return a
		}
	}
	return netip.Addr{}
}

func (e *explainer) networkOf(end inventory.Endpoint) inventory.Network {
	for _, n := range e.inv.Networks {
		if n.ID == end.NetworkID {
			return n
		}
	}
	return inventory.Network{}
}

func (e *explainer) isBridge(link string) bool {
	return slices.ContainsFunc(e.inv.Networks, func(n inventory.Network) bool { return n.Bridge == link })
}

// bridgeOf names the bridge of the container network on which a is an
// endpoint's address, "" where there is none.
func (e *explainer) bridgeOf(a netip.Addr) string {
	for _, c := range e.inv.Containers {
		for _, end := range c.Endpoints {
			if a.IsValid() && (end.Addr4 == a || end.Addr6 == a) {
				return e.networkOf(end).Bridge
			}
		}
	}
	return ""
}

func (e *explainer) containerAt(a netip.Addr) string {
	for _, c := range e.inv.Containers {
		for _, end := range c.Endpoints {
			if end.Addr4 == a || end.Addr6 == a {
				return c.Name
			}
		}
	}
	return ""
}

// remedy gives what would open what is closed: a command, which is tried on a copy of
// the table first, and where no change of a set helps the place to change.
func (e *explainer) remedy() string {
	src := e.packet.Src
	single := addrset.Range{From: src, To: src}
	for _, a := range []netip.Addr{src, e.silenced} {
		blocked := e.sets[policy.SetBlocked].Covering(a, e.now())
		if len(blocked) == 0 {
			continue
		}
		if blocked[0].Source == addrset.Runtime {
			return fmt.Sprintf("nftfw sets del blocked %s", blocked[0].Range)
		}
		return fmt.Sprintf("take %s out of the set blocked at %s, then nftfw apply", blocked[0].Range, blocked[0].Origin)
	}
	if e.table == nil {
		return ""
	}
	trusted := e.sets[policy.SetTrusted].Add(addrset.Entry{Range: single, Source: addrset.Runtime})
	trial := explainer{
		core: e.core, inv: e.inv, routes: e.routes, packet: e.packet,
		table: policy.WithSet(e.table, policy.SetTrusted, trusted),
	}
	if trial.packet.IIf != "" {
		trial.walk()
		if trial.refused == "" && trial.out.Verdict == string(ruleset.Accept) {
			return fmt.Sprintf("nftfw sets add trusted %s", src)
		}
	}
	return e.change()
}

// change says what to change where no set helps.
func (e *explainer) change() string {
	switch e.refused {
	case policy.ReasonClosed:
		return "nothing opens a container's own address: publish the port, and connect to the host's"
	case policy.ReasonLoopback:
		return "nothing opens the loopback to others"
	case policy.ReasonUnknown:
		return "it opens by itself when the engine says which container that is"
	default: // somebody's word
	}
	place, _, _ := strings.Cut(e.out.DecidedBy, ", ")
	label, _, _ := strings.Cut(place, " of ")
	switch {
	case strings.HasPrefix(label, "label "):
		return fmt.Sprintf("change %s, and create the container anew", label)
	case strings.HasPrefix(place, "nftfw."):
		return fmt.Sprintf("correct the label %s, and create the container anew", place)
	case strings.HasPrefix(place, "containers."), strings.HasPrefix(place, "forward."), strings.HasPrefix(place, "host."):
		return fmt.Sprintf("change %s in %s, then nftfw apply", place, e.policy.path)
	case strings.Contains(place, ":"):
		return fmt.Sprintf("change %s, then nftfw apply", place)
	}
	return ""
}
