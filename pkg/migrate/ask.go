package migrate

import (
	"regexp"
	"sync"
)

// outcomes is a set of what may become of a packet.
type outcomes uint8

const (
	accepted outcomes = 1 << iota
	dropped
	passedOn // the end of the chain, or RETURN
)

// asker asks the rules of one family about packets.
type asker struct {
	*source
	f *family
}

// maxDepth is how deep chains may call one another; the kernel allows 16 to
// nest and refuses loops.
const maxDepth = 32

// accepts reports whether a packet certainly gets through everything.
func (a asker) accepts(p packet) bool {
	return a.early(p)&dropped == 0 && a.filter(p) == accepted
}

// early asks the chains ahead of the filter. They can only drop.
func (a asker) early(p packet) outcomes {
	hook := "FORWARD"
	if p.kind == toHost {
		hook = "INPUT"
	}
	out := outcomes(0)
	for _, table := range []string{"raw", "mangle"} {
		before := p
		if p.kind == toContainer {
			before.port = 0 // not translated yet: conditions on the port are in doubt
		}
		out |= a.base(table, "PREROUTING", before)
	}
	return out | a.base("mangle", hook, p)
}

// filter asks the table filter.
func (a asker) filter(p packet) outcomes {
	if p.kind == toHost {
		return a.base("filter", "INPUT", p)
	}
	filter := a.f.tables["filter"]
	if c := filter["FORWARD"]; c != nil && (c.policy != "" || len(c.rules) > 0) {
		return a.base("filter", "FORWARD", p)
	}
	// Only a part of the rules was given, as by iptables -S DOCKER-USER. What
	// it hands back Docker lets through.
	for _, name := range []string{userChain, "FILTERS"} {
		if filter[name] != nil {
			return a.settle(a.chain(filter, name, p, 0), accepted)
		}
	}
	return accepted
}

// base asks a base chain, whose policy decides at the end.
func (a asker) base(name, hook string, p packet) outcomes {
	t := a.f.tables[name]
	c := t[hook]
	if c == nil {
		return accepted
	}
	policy := accepted
	if c.policy == "DROP" {
		policy = dropped
	}
	return a.settle(a.chain(t, hook, p, 0), policy)
}

func (a asker) settle(out, end outcomes) outcomes {
	if out&passedOn != 0 {
		out = out&^passedOn | end
	}
	return out
}

// chain gives every outcome that a chain may have.
func (a asker) chain(t table, name string, p packet, depth int) outcomes {
	if depth > maxDepth {
		return accepted | dropped
	}
	out := outcomes(0)
	for _, r := range t[name].rules {
		if a.steps--; a.steps < 0 {
			return accepted | dropped
		}
		match, doubt := r.matches(p)
		if end, ours := a.docker(t, r, p); ours {
			if end == 0 {
				continue
			}
			return out | end
		}
		if match == no {
			continue
		}
		verdict, goesOn := a.target(t, r, p, depth)
		if match == maybe && verdict != 0 && (p.kind == toHost || p.kind == toContainer) {
			a.noteRule(r, inDoubt(doubt))
		}
		out |= verdict
		if match == yes && !goesOn {
			return out
		}
	}
	return out | passedOn
}

// target gives the outcomes of a rule that matches, and whether the packet may
// go on to the next rule.
func (a asker) target(t table, r *rule, p packet, depth int) (verdict outcomes, goesOn bool) {
	switch r.target {
	case "ACCEPT":
		return accepted, false
	case "DROP", "REJECT", "TARPIT":
		return dropped, false
	case "RETURN":
		return passedOn, false
	case "", "LOG", "NFLOG", "ULOG", "AUDIT", "TRACE", "CT", "NOTRACK", "MARK", "CONNMARK", "TCPMSS", "TOS", "DSCP", "TTL", "HL", "SET", "CLASSIFY", "CHECKSUM", "CONNSECMARK", "SECMARK":
		return 0, true
	}
	if t[r.target] == nil {
		a.noteRule(r, "what "+r.target+" does is not known here, so it counts as if it dropped")
		return dropped, true
	}
	verdict = a.chain(t, r.target, p, depth+1)
	if r.isGoto {
		return verdict, false
	}
	return verdict &^ passedOn, verdict&passedOn != 0
}

// userChain is the chain that Docker leaves to its users.
const userChain = "DOCKER-USER"

// straightToContainer are the rules with which engines from 28 on keep packets
// from containers that were not sent to a published port.
var straightToContainer = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(\[\d+:\d+\] )?-A PREROUTING -d \S+ ! -i (docker|br-)\S* -j DROP$`)
})

// docker reports whether a rule is Docker's own, which lead into its chains,
// and what becomes of a packet there: Docker lets published ports through, and
// what containers send. Rules that somebody put into Docker's own chain to drop
// by source count all the same.
func (a asker) docker(t table, r *rule, p packet) (end outcomes, ours bool) {
	if straightToContainer().MatchString(r.text) {
		return 0, true // nftfw closes what is not published as well
	}
	switch r.target {
	case "DOCKER", "DOCKER-FORWARD", "DOCKER-INGRESS":
	case "DOCKER-ISOLATION-STAGE-1", "DOCKER-ISOLATION-STAGE-2", "DOCKER-CT", "DOCKER-BRIDGE", "DOCKER-INTERNAL":
		return 0, true
	default:
		return 0, false
	}
	if p.kind == through {
		return 0, true // leads to bridges only
	}
	if p.kind == toHost {
		return 0, false
	}
	end = accepted
	for _, inner := range t["DOCKER"].orEmpty() {
		if inner.target != "DROP" && inner.target != "REJECT" || !inner.bySource() {
			continue
		}
		if match, _ := inner.matches(p); match != no {
			end |= dropped
			a.noteRule(inner, "a rule in Docker's own chain, which Docker rewrites: whom it may drop stays closed out")
		}
	}
	return end, true
}

func (c *chain) orEmpty() []*rule {
	if c == nil {
		return nil
	}
	return c.rules
}

// bySource reports whether a rule looks at who sends.
func (r *rule) bySource() bool {
	for _, c := range r.when {
		if c.text == "-s" || c.text == "--match-set" || c.text == "--src-range" {
			return true
		}
	}
	return false
}
