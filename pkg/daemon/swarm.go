package daemon

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/nftfw/nftfw/nft"
	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/api"
	"github.com/nftfw/nftfw/pkg/inventory"
	"github.com/nftfw/nftfw/policy"
)

// setEngine makes s what the engine says. While it has not told of its swarm,
// what was known of that stays. The swarm's nodes go into their set.
func (c *core) setEngine(s inventory.Snapshot) {
	if s.Swarm.Unknown {
		s.Swarm = c.engine.Swarm
	}
	before := c.engine.Swarm
	c.engine = s
	if before.Role != s.Swarm.Role || !slices.Equal(before.Nodes, s.Swarm.Nodes) {
		c.log.Info("swarm", "role", cmp.Or(string(s.Swarm.Role), "none"), "nodes", s.Swarm.Nodes)
	}
	if _, declared := c.sets[policy.SetSwarmNodes]; declared && !slices.Equal(before.Nodes, s.Swarm.Nodes) {
		c.sets[policy.SetSwarmNodes] = c.join(policy.SetSwarmNodes, c.now())
	}
}

// setSaved gives c the policy and the nodes of the swarm that a daemon left
// behind, for looking at sets.
func (c *core) setSaved() {
	c.setPolicy(savedPolicy(c.cfg.PolicyPath, c.store))
	c.setEngine(c.loadSnapshot().Snapshot)
}

// adoptSwarm gives what is believed of a saved swarm until the engine answers:
// without a table nothing, else the nodes and the services that have their
// permission in it.
func adoptSwarm(s inventory.Swarm, have *nft.State, owners map[string]bool) inventory.Swarm {
	if !have.Exists() {
		return inventory.Swarm{}
	}
	var standing []*addrset.Segments
	for _, set := range have.Table().Sets {
		if policy.Holds(policy.SetSwarmNodes, set.Name) {
			standing = append(standing, set.Ranges)
		}
	}
	s.Nodes = slices.DeleteFunc(slices.Clone(s.Nodes), func(a netip.Addr) bool {
		return !slices.ContainsFunc(standing, func(g *addrset.Segments) bool {
			_, in := g.Lookup(a)
			return in
		})
	})
	s.Services = slices.DeleteFunc(slices.Clone(s.Services), func(v inventory.Service) bool {
		return !owners[policy.ElementOwner(v.ID)]
	})
	return s
}

// swarmStatus says what is known of the swarm; nil for a host in none.
func swarmStatus(s inventory.Swarm) *api.SwarmStatus {
	if s.Role == "" {
		return nil
	}
	out := &api.SwarmStatus{Role: string(s.Role), Nodes: []string{}, Services: len(s.Services), Problem: s.Problem}
	for _, a := range s.Nodes {
		out.Nodes = append(out.Nodes, a.String())
	}
	if s.Ingress.IsValid() {
		out.Ingress = s.Ingress.String()
	}
	return out
}
