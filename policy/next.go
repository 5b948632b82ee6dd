package policy

import (
	"maps"
	"reflect"
	"slices"

	"github.com/nftfw/nftfw/pkg/inventory"
)

// owners are the containers of a snapshot by what their elements carry; nil for a
// service of the swarm. A nil map means that two would carry the same.
type owners map[string]*inventory.Container

func ownersOf(inv inventory.Snapshot) owners {
	out := make(owners, len(inv.Containers))
	n := len(inv.Containers)
	for i := range inv.Containers {
		out[ElementOwner(inv.Containers[i].ID)] = &inv.Containers[i]
	}
	if inv.Swarm.Role != "" {
		for _, s := range inv.Swarm.Services {
			out[ElementOwner(s.ID)] = nil
		}
		out[ElementOwner(ingressOwner)] = nil
		n += len(inv.Swarm.Services) + 1
	}
	if len(out) < n {
		return nil
	}
	return out
}

// next gives the part of p and inv. Where they differ from those of k, which may be
// nil, by some containers alone, what the others have is taken over.
func (k *containerPart) next(p *Policy, inv inventory.Snapshot) *containerPart {
	if k != nil && k.p == p && inventory.Same(k.networks, inv.Networks) && reflect.DeepEqual(k.swarm, inv.Swarm) {
		if gone, come, ok := k.owners.changes(ownersOf(inv)); ok && len(gone)+len(come) <= max(len(k.owners)/4, 4) {
			if part := k.with(inv, gone, come); part != nil {
				return part
			}
		}
	}
	return newCompiler(p).containerMaps(inv)
}

// changes gives the containers that are in o and not, or not so, in later, and the
// other way round. ok is false where it cannot be told.
func (o owners) changes(later owners) (gone, come []*inventory.Container, ok bool) {
	if o == nil || later == nil {
		return nil, nil, false
	}
	for owner, c := range later {
		old, there := o[owner]
		switch {
		case there && (c == nil) != (old == nil) || c != nil && old != nil && c.ID != old.ID:
			return nil, nil, false
		case c == nil:
		case !there:
			come = append(come, c)
		case !c.Same(old):
			gone, come = append(gone, old), append(come, c)
		}
	}
	for owner, old := range o {
		if _, still := later[owner]; !still && old != nil {
			gone = append(gone, old)
		}
	}
	return gone, come, true
}

// with gives k with other containers; nil where several claim one element, or the
// policy is about containers in view of others, so that all has to be looked at.
func (k *containerPart) with(inv inventory.Snapshot, gone, come []*inventory.Container) *containerPart {
	if !k.p.Containers.ToHost.Any || k.p.Containers.ToContainers == ToContainersSameProject {
		return nil
	}
	c := newCompiler(k.p)
	c.sets, c.froms = maps.Clone(k.sets), maps.Clone(k.froms)
	c.uses, c.contested = maps.Clone(k.uses), k.contested
	c.shared = make(map[string]bool, len(c.sets))
	for name := range c.sets {
		c.shared[name] = true
	}
	networks, limits := networksByID(inv), maps.Clone(k.limits)
	left := map[string]bool{}
	for _, container := range gone {
		if !c.withdraw(container, networks, inv.Swarm.Role) {
			return nil
		}
		left[container.ID] = true
		delete(limits, container.ID)
	}
	for _, d := range k.diags {
		if !left[d.ContainerID] {
			c.diags = append(c.diags, d)
		}
	}
	for _, container := range come {
		if !c.admit(container, networks, inv.Swarm.Role, limits) {
			return nil
		}
	}
	for i := range inv.Containers {
		container := &inv.Containers[i]
		if e := limits[container.ID]; len(e.Items) > 0 && len(bridgeAddrs(container, networks)) > 0 {
			c.egressVerdict(e) // sees to it that its chain exists
		}
	}
	c.unknownSources(inv, networks, limits)
	if !maps.Equal(hostPorts(gone), hostPorts(come)) {
		c.proxiedPorts(inv)
	}
	return c.containerPart(inv, limits)
}

// placementsOf gives what a container has in the maps by itself. ok is false for
// one that opens ports of the host, which are others' before they are its own.
func (c *compiler) placementsOf(container *inventory.Container, networks map[string]inventory.Network, role inventory.SwarmRole) (placed []placement, ok bool) {
	decisions, diags := decideContainer(c.p, networks, role, container)
	c.diags = append(c.diags, diags...)
	slices.SortFunc(decisions, compareDecisions) // of two that are one element the first gives its words
	for i := range decisions {
		d := &decisions[i]
		if d.HostNetwork {
			return nil, false
		}
		by := c.claim(d)
		for _, p := range d.places(networks) {
			placed = append(placed, placement{p, &by})
		}
	}
	return append(placed, c.foreseen(*container, networks)...), true
}

// withdraw takes away what a container has; false where others claim it.
func (c *compiler) withdraw(container *inventory.Container, networks map[string]inventory.Network, role inventory.SwarmRole) bool {
	had := newCompiler(c.p)
	placed, ok := had.placementsOf(container, networks, role)
	if !ok || slices.ContainsFunc(placed, func(p placement) bool { return c.contested[p.place] || c.contested[p.counted()] }) {
		return false
	}
	for _, p := range placed {
		delete(c.elements(p.set()), p.key)
		if p.refused.Comment != "" {
			delete(c.elements(p.counted().set()), p.key)
		}
	}
	for _, a := range bridgeAddrs(container, networks) {
		at := a.sender()
		if c.contested[at] {
			return false
		}
		delete(c.elements(at.set()), at.key)
	}
	for chain, n := range had.uses {
		if c.uses[chain] -= n; c.uses[chain] == 0 {
			delete(c.uses, chain)
			delete(c.froms, chain)
		}
	}
	return true
}

// admit enters what a container has, and its egress into limits; false where others
// claim it.
func (c *compiler) admit(container *inventory.Container, networks map[string]inventory.Network, role inventory.SwarmRole, limits map[string]Egress) bool {
	placed, ok := c.placementsOf(container, networks, role)
	if !ok {
		return false
	}
	for _, p := range placed {
		if c.contested[p.place] {
			return false
		}
		if had, taken := c.sets[p.set()].Elements[p.key]; taken {
			if had.Comment != p.element.Comment || had.Verdict != p.element.Verdict {
				return false
			}
			continue
		}
		c.elements(p.set())[p.key] = p.element
		if p.refused.Comment == "" {
			continue
		}
		counts := c.elements(p.counted().set())
		if had, taken := counts[p.key]; taken && !refusedOf(had, p.element) {
			return false
		}
		counts[p.key] = p.refused
	}
	e, origin, held := c.egressOf(container, networks)
	if !held {
		return true
	}
	limits[container.ID] = e
	for _, a := range bridgeAddrs(container, networks) {
		at := a.sender()
		if _, taken := c.sets[at.set()].Elements[at.key]; taken {
			return false
		}
		c.limit(container, a, e, origin)
	}
	return true
}
