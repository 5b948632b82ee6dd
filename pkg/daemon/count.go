package daemon

import (
	"cmp"
	"context"
	"slices"

	"github.com/nftfw/nftfw/nft"
	"github.com/nftfw/nftfw/pkg/api"
	"github.com/nftfw/nftfw/pkg/ruleset"
	"github.com/nftfw/nftfw/policy"
)

// Counters is what is needed of the kernel to tell what was counted.
type Counters interface {
	Counts(ctx context.Context, t *ruleset.Table, wanted func(set string) bool) (nft.Counts, error)
}

// tally joins what the kernel counted with the ports that it counted it for.
// It is a value of one moment, which may be counted on another goroutine than
// the core's.
type tally struct {
	counters Counters       // nil: nothing can be counted
	table    *ruleset.Table // nil: nothing is in force
	places   [][]policy.Place
	owners   []string // of the places, as elements name them
	where    *whereabouts
}

// tally gives what is needed to count for the decisions under the table t.
func (c *core) tally(decisions []policy.Decision, t *ruleset.Table) tally {
	inv := c.inventory()
	out := tally{table: t, places: policy.Places(decisions, inv), where: newWhereabouts(inv, decisions)}
	if c.kernel != nil {
		out.counters = c.kernel
	}
	for i, d := range decisions {
		out.owners = append(out.owners, policy.ElementOwner(d.Container.ID))
		host := d.Port.HostIP
		if d.AtHostIP.IsValid() {
			host = d.AtHostIP
		}
		if host.IsValid() {
			// The other family is another binding's.
			out.places[i] = slices.DeleteFunc(out.places[i], func(p policy.Place) bool { return p.IPv4 != host.Is4() })
		}
	}
	return out
}

// read asks the kernel. ok is false where nothing is counted.
func (t tally) read(ctx context.Context) (counts nft.Counts, ok bool, err error) {
	if t.counters == nil || t.table == nil {
		return counts, false, nil
	}
	counts, err = t.counters.Counts(ctx, t.table, func(string) bool { return true })
	return counts, err == nil && len(counts.Chains) > 0, err
}

// port gives the connections that were let in and refused at the i-th
// decision's elements.
func (t tally) port(counts nft.Counts, i int) (accepted, refused uint64) {
	for _, p := range t.places[i] {
		asked, no := t.place(counts, i, p)
		accepted += asked - no
		refused += no
	}
	return accepted, refused
}

// place gives the connections that asked at one element of the i-th decision,
// and how many of them were refused.
func (t tally) place(counts nft.Counts, i int, p policy.Place) (asked, refused uint64) {
	set := t.table.Set(p.Map)
	if set == nil || set.Elements[p.Key].Comment != t.owners[i] {
		return 0, 0 // somebody else's by now
	}
	asked, refused = counts.Sets[p.Map][p.Key].Packets, counts.Sets[p.Refused][p.Key].Packets
	// One that came between the two readings is in the second only.
	return max(asked, refused), refused
}

// byReason gives what was refused, in packets, by reason.
func byReason(counts nft.Counts) map[string]uint64 {
	out := map[string]uint64{}
	for _, why := range policy.Reasons() {
		var n uint64
		for _, chain := range why.Chains() {
			n += counts.Chains[chain].Packets
		}
		out[string(why)] = n
	}
	return out
}

// observed lists who would have been refused what, those first who asked most.
func (t tally) observed(counts nft.Counts) []api.Observed {
	out := []api.Observed{}
	for _, flows := range counts.Flows {
		for key, n := range flows {
			container, _ := t.where.target(key.Dst, key.Proto, key.Port)
			out = append(out, api.Observed{
				Source: key.Src.String(), SourceName: t.where.containers[key.Src],
				Container: container, To: key.Dst.String(), Port: key.Port,
				Proto: policy.ProtocolName(key.Proto), Refused: n.Packets,
			})
		}
	}
	slices.SortFunc(out, func(a, b api.Observed) int {
		return cmp.Or(cmp.Compare(b.Refused, a.Refused), cmp.Compare(a.Source, b.Source),
			cmp.Compare(a.To, b.To), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Proto, b.Proto))
	})
	return out
}

// countedPorts is the list of ports with what is needed to count for it.
type countedPorts struct {
	api.Ports
	tally
}

// ports lists every published port and who may reach it under the policy. t
// is the table that counts, nil for none.
func (c *core) ports(t *ruleset.Table) countedPorts {
	inv := c.inventory()
	decisions, _ := policy.Decide(c.policy.Policy, inv)
	compiled, diags := c.table, c.diags
	if compiled == nil {
		compiled, diags = policy.Compile(c.policy.Policy, c.sets, inv)
	}
	out := countedPorts{Ports: api.Ports{
		Mode: string(c.policy.Mode), Enforced: c.enforced(), Down: c.down,
		Ports: []api.Port{}, Problems: problems(diags), Refused: map[string]uint64{}, Observed: []api.Observed{},
	}}
	decisions = slices.DeleteFunc(decisions, func(d policy.Decision) bool { return !d.Port.Published() })
	for _, d := range decisions {
		out.Ports.Ports = append(out.Ports.Ports, portView(c.policy.Policy, d))
	}
	out.tally = c.tally(decisions, t)
	for i, d := range decisions {
		if why := out.lost(compiled, i, d); why != "" {
			out.Ports.Ports[i].From, out.Ports.Ports[i].Error = []string{"none"}, why
		}
	}
	return out
}

// lost says why the i-th decision, which is d, does not hold in the table: another
// container claims the same. It gives "" where it holds.
func (t tally) lost(table *ruleset.Table, i int, d policy.Decision) string {
	for _, p := range t.places[i] {
		set := table.Set(p.Map)
		if set == nil {
			continue
		}
		switch e, ok := set.Elements[p.Key]; {
		case !ok:
		case !d.From.None && e.Verdict.Chain == policy.ReasonFrom.Chains()[0]:
			return e.Origin
		case d.HostNetwork && d.By != policy.ByRule && e.Comment != t.owners[i]:
			return "the port of the host is another container's: " + e.Origin
		}
	}
	return ""
}

// count fills in what the kernel has counted.
func (p countedPorts) count(ctx context.Context) (api.Ports, error) {
	counts, ok, err := p.read(ctx)
	if !ok {
		return p.Ports, err
	}
	for i := range p.Ports.Ports {
		accepted, refused := p.port(counts, i)
		p.Ports.Ports[i].Accepted, p.Ports.Ports[i].Refused = &accepted, &refused
	}
	p.Ports.Refused = byReason(counts)
	p.Ports.Observed = p.observed(counts)
	return p.Ports, nil
}

// enforced tells whether what is refused is really dropped now.
func (c *core) enforced() bool { return c.inForce && !c.down && c.policy.Mode == policy.Enforce }
