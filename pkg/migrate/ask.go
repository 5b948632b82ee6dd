package migrate

import (
	"regexp"
	"slices"
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
	return a.beside(p)&dropped == 0 && a.filter(p) == accepted
}

// hook is the base chain behind the routing.
func (p packet) hook() string {
	if p.kind == toHost {
		return "INPUT"
	}
	return "FORWARD"
}

// beside asks the tables other than filter. They can only drop.
func (a asker) beside(p packet) outcomes {
	before := p
	if p.kind == toContainer {
		before.port, before.untranslated = 0, true
	}
	out := a.base("raw", "PREROUTING", before) | a.base("mangle", "PREROUTING", before)
	out |= a.base("mangle", p.hook(), p) | a.base("security", p.hook(), p)
	if p.kind != toHost {
		out |= a.base("mangle", "POSTROUTING", p)
	}
	return out
}

// filter asks the table filter. What was not given counts as if it dropped.
func (a asker) filter(p packet) outcomes {
	if a.f.has(p.hook()) {
		return a.base("filter", p.hook(), p)
	}
	// Only a part of the rules was given, as by iptables -S DOCKER-USER. What
	// it hands back Docker lets through.
	if c := a.f.userChain(); c != "" && (p.kind == toContainer || p.kind == fromContainer) {
		return a.settle(a.chain(a.f.tables["filter"], c, p, 0), accepted)
	}
	return dropped
}

// has reports whether rules of a base chain of the table filter were given.
func (f *family) has(hook string) bool {
	c := f.tables["filter"][hook]
	return c != nil && (c.policy != "" || len(c.rules) > 0)
}

// userChain is the chain of users that was given, "" if none was.
func (f *family) userChain() string {
	for _, name := range []string{userChain, "FILTERS"} {
		if f.tables["filter"][name] != nil {
			return name
		}
	}
	return ""
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
		if end, ours := a.docker(t, r, p, depth); ours {
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

// dockerChains are the chains that Docker keeps for itself.
var dockerChains = [...]string{
	"DOCKER", "DOCKER-FORWARD", "DOCKER-INGRESS", "DOCKER-BRIDGE", "DOCKER-CT", "DOCKER-INTERNAL",
	"DOCKER-ISOLATION-STAGE-1", "DOCKER-ISOLATION-STAGE-2",
}

// straightToContainer are the rules with which engines from 28 on keep packets
// from containers that were not sent to a published port.
var straightToContainer = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(?:\[\d+:\d+\] )?-A PREROUTING -d \S+ ! -i (\S+)(?: -p \S+ -m \S+ --dport \d+)? -j DROP$`)
})

// towardsDocker are the rules by which Docker has a bridge's packets asked about.
var towardsDocker = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(?:\[\d+:\d+\] )?-A (?:FORWARD|DOCKER-BRIDGE) -o (\S+) -j DOCKER$`)
})

// dockerDrop are the rules with which Docker drops in its own chains: what no
// published port let through, what would go along a bridge without icc, cross
// over to another bridge, or go into or out of an internal network. The first two
// name their link twice.
var dockerDrop = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(?:\[\d+:\d+\] )?-A DOCKER(?: ! -i (\S+) -o (\S+)|-FORWARD -i (\S+) -o (\S+)|-ISOLATION-STAGE-2 -o \S+|` +
		`-(?:INTERNAL|ISOLATION-STAGE-1) (?:! -s \S+(?: ! -i \S+)? -o \S+|! -d \S+ -i \S+(?: ! -o \S+)?)) -j DROP$`)
})

// dockerDrops reports whether Docker wrote a rule of its chains that drops.
func (r *rule) dockerDrops() bool {
	m := dockerDrop().FindStringSubmatch(r.text)
	return m != nil && m[1] == m[2] && m[3] == m[4]
}

// docker reports whether a rule is Docker's own, which lead into its chains,
// and what becomes of a packet there: Docker lets published ports through, and
// what containers send. Rules that somebody put into Docker's own chains to drop
// count all the same.
func (a asker) docker(t table, r *rule, p packet, depth int) (end outcomes, ours bool) {
	if m := straightToContainer().FindStringSubmatch(r.text); m != nil && a.isBridge(m[1]) {
		return 0, true // nftfw closes what is not published as well
	}
	if !slices.Contains(dockerChains[:], r.target) {
		return 0, false
	}
	switch r.target {
	case "DOCKER", "DOCKER-FORWARD", "DOCKER-INGRESS":
	default:
		return 0, true
	}
	switch p.kind {
	case toHost:
		return 0, false
	case through: // leads to bridges only
		return a.foreign(t, p, depth), true
	default:
		return accepted | a.foreign(t, p, depth), true
	}
}

// foreign gives dropped if a rule that is not Docker's own may drop a packet in
// one of Docker's chains.
func (a asker) foreign(t table, p packet, depth int) (end outcomes) {
	for _, name := range dockerChains {
		for _, r := range t[name].orEmpty() {
			if a.steps--; a.steps < 0 {
				return dropped
			}
			if r.dockerDrops() || slices.Contains(dockerChains[:], r.target) {
				continue
			}
			if match, _ := r.matches(p); match == no {
				continue
			}
			if verdict, _ := a.target(t, r, p, depth+1); verdict&dropped != 0 {
				end = dropped
				a.noteRule(r, "a rule in Docker's own chain, which Docker rewrites: whom it may drop stays closed out")
			}
		}
	}
	return end
}

func (c *chain) orEmpty() []*rule {
	if c == nil {
		return nil
	}
	return c.rules
}
