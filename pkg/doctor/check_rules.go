package doctor

import (
	"fmt"
	"slices"
	"strings"

	"github.com/nftfw/nftfw/nft"
	"github.com/nftfw/nftfw/pkg/inventory"
	"github.com/nftfw/nftfw/pkg/ruleset"
	"github.com/nftfw/nftfw/policy"
)

// dockerTable is the table of Docker's nftables backend, in ip and in ip6.
const dockerTable = "docker-bridges"

// shownRules is how many rules of one chain a finding names.
const shownRules = 4

// others yields the tables that are neither nftfw's nor Docker's.
func (f *Facts) others() []nft.ForeignTable {
	return slices.DeleteFunc(slices.Clone(f.Kernel.Tables), func(t nft.ForeignTable) bool {
		return t.Family == "inet" && t.Name == f.Options.Table || t.Name == dockerTable || isNftfw(t)
	})
}

// ofDocker reports whether Docker or Podman makes the chain and fills it.
// DOCKER-USER and CNI-ADMIN they make and leave to others.
func ofDocker(chain string) bool {
	if chain == "DOCKER-USER" || chain == "CNI-ADMIN" {
		return false
	}
	return chain == "DOCKER" || slices.ContainsFunc([]string{"DOCKER-", "NETAVARK", "CNI-"}, func(prefix string) bool {
		return strings.HasPrefix(chain, prefix)
	})
}

// banList reports whether a chain or table is there to drop single sources
// (fail2ban, crowdsec, sshguard): its drops are meant.
func banList(name string) bool {
	return strings.HasPrefix(name, "f2b-") || strings.HasPrefix(name, "crowdsec") || name == "sshguard"
}

// beside reports whether a rule concerns only packets of which no policy speaks:
// those of the host to itself, broken ones, and those of a false source.
func beside(r nft.ForeignRule) bool {
	return r.OnlyInvalid && !r.ByMap || slices.ContainsFunc([]string{`iifname "lo" `, "iif 1 ", "fib saddr ", "<match rpfilter> "}, func(words string) bool {
		return strings.Contains(r.Text, words)
	})
}

// ofDirectRouting reports whether a rule is like those by which Docker keeps
// packets to a container's address on its bridge, and those to a port that is
// published on loopback there.
func (f *Facts) ofDirectRouting(r nft.ForeignRule) bool {
	return strings.Contains(r.Text, "daddr ") && slices.ContainsFunc(f.Links, func(l inventory.Link) bool {
		return (l.Kind == "bridge" || l.Name == "lo") && strings.Contains(r.Text, fmt.Sprintf("iifname != %q ", l.Name))
	})
}

// refusal is a rule that drops, with its chain.
type refusal struct {
	chain string
	rule  nft.ForeignRule
}

// walk is one way through a table from a base chain.
type walk struct {
	table    nft.ForeignTable
	seen     map[string]bool
	refusals []refusal
	// passed is set once what Docker forwards has left: by Docker's chains, or
	// by a rule that accepts whatever was DNATed.
	passed bool
}

func (w *walk) chain(name string) *nft.ForeignChain {
	i := slices.IndexFunc(w.table.Chains, func(c nft.ForeignChain) bool { return c.Name == name })
	if i < 0 {
		return nil
	}
	return &w.table.Chains[i]
}

// visit collects the rules that drop, from the chain on.
func (w *walk) visit(c *nft.ForeignChain) {
	if c == nil || w.seen[c.Name] || banList(c.Name) {
		return
	}
	w.seen[c.Name] = true
	for _, r := range c.Rules {
		if beside(r) {
			continue
		}
		if r.Refuses && !r.OnlyInvalid {
			w.refusals = append(w.refusals, refusal{c.Name, r})
		}
		switch {
		case r.ByMap:
			// It may lead anywhere in the table.
			for i := range w.table.Chains {
				if w.table.Chains[i].Hook == "" && !ofDocker(w.table.Chains[i].Name) {
					w.visit(&w.table.Chains[i])
				}
			}
		case r.To != "" && !ofDocker(r.To):
			w.visit(w.chain(r.To))
		}
	}
}

// forwardWay is visit for a base chain at forward, for what Docker forwards:
// what stands behind the last jump into Docker's chains never meets it.
func (w *walk) forwardWay(c *nft.ForeignChain) {
	end := len(c.Rules)
	for i, r := range c.Rules {
		if ofDocker(r.To) || r.Text == "ct status dnat accept" {
			end, w.passed = i, true
		}
	}
	before := *c
	before.Rules = c.Rules[:end]
	w.visit(&before)
}

// inDocker collects the rules that drop from Docker's chain for published ports,
// but for Docker's own, which keep packets between other links from a bridge.
func (w *walk) inDocker() {
	c := w.chain("DOCKER")
	if c == nil {
		return
	}
	for _, r := range c.Rules {
		var in, out string
		_, err := fmt.Sscanf(r.Text, "iifname != %q oifname %q drop", &in, &out)
		if own := err == nil && in == out; r.Refuses && !own && !beside(r) {
			w.refusals = append(w.refusals, refusal{c.Name, r})
		}
	}
}

// hasDocker reports whether Docker has made its chains in the tables of a family.
func (f *Facts) hasDocker(family string) bool {
	return slices.ContainsFunc(f.Kernel.Tables, func(t nft.ForeignTable) bool {
		return t.Family == family && slices.ContainsFunc(t.Chains, func(c nft.ForeignChain) bool { return c.Name == "DOCKER" })
	})
}

// ruleFindings names rules of others that keep packets from connection
// tracking, or drop what nftfw accepts.
func ruleFindings(f *Facts) []Finding {
	var out []Finding
	for _, t := range f.others() {
		for i := range t.Chains {
			c := &t.Chains[i]
			for _, r := range c.Rules {
				if r.Notrack {
					out = append(out, notrackFinding(t, c, r))
				}
			}
			if c.Type != "filter" || banList(t.Name) || banList(c.Name) {
				continue
			}
			w := &walk{table: t, seen: map[string]bool{}}
			switch {
			case c.Hook == nft.Ingress:
				w.visit(c)
			case c.Hook == ruleset.Prerouting:
				others := *c
				others.Rules = slices.DeleteFunc(slices.Clone(c.Rules), f.ofDirectRouting)
				w.visit(&others)
			case c.Hook == ruleset.Forward:
				w.forwardWay(c)
				w.inDocker()
			case c.Hook == ruleset.Input && !f.Policy.Host.DefaultAccept:
				w.visit(c)
			default:
				continue
			}
			drops := c.Drops && !w.passed
			if drops && c.Name == "FORWARD" && f.hasDocker(t.Family) {
				drops = false
				out = append(out, flushedFinding(t, c))
			}
			if drops || len(w.refusals) > 0 {
				out = append(out, dropFinding(t, c, drops, w.refusals))
			}
		}
	}
	return out
}

func notrackFinding(t nft.ForeignTable, c *nft.ForeignChain, r nft.ForeignRule) Finding {
	return Finding{
		"notrack-rule", Error,
		fmt.Sprintf("chain %s of table %s %s keeps packets from connection tracking (handle %d: %s)", c.Name, t.Family, t.Name, r.Handle, r.Text),
		"nftfw knows answers by connection tracking: answers to what it matches are dropped, and its connections cannot be cut",
		fmt.Sprintf("nft delete rule %s %s %s handle %d, and take it out of where it is made", t.Family, t.Name, c.Name, r.Handle),
	}
}

// flushedFinding tells of Docker's policy that outlived its rules.
func flushedFinding(t nft.ForeignTable, c *nft.ForeignChain) Finding {
	return Finding{
		"docker-rules-flushed", Error,
		fmt.Sprintf("the policy of chain %s of table %s %s is drop, and Docker's rules are gone from it: somebody has flushed them", c.Name, t.Family, t.Name),
		"nothing is forwarded: no published port leads to its container, and no container reaches the outside",
		"systemctl restart docker",
	}
}

func dropFinding(t nft.ForeignTable, c *nft.ForeignChain, drops bool, list []refusal) Finding {
	var parts []string
	if drops {
		parts = append(parts, "policy drop")
	}
	for i, r := range list {
		if i == shownRules {
			parts = append(parts, fmt.Sprintf("and %d rules more", len(list)-i))
			break
		}
		parts = append(parts, fmt.Sprintf("chain %s handle %d: %s", r.chain, r.rule.Handle, r.rule.Text))
	}
	owner, remedy := ownerOf(t, c, list)
	return Finding{
		"foreign-drop", Warning,
		fmt.Sprintf("%s drops packets at %s: table %s %s, chain %s (%s)", owner, c.Hook, t.Family, t.Name, c.Name, strings.Join(parts, "; ")),
		"an accept of nftfw is not final: what this chain drops stays closed, whatever policy and labels say",
		remedy,
	}
}

// iptablesOf is the command that changes what iptables has in a family's tables.
func iptablesOf(family string) string {
	if family == "ip6" {
		return "ip6tables"
	}
	return "iptables"
}

// ownerOf says whose a table is by its name and its chains, and how to see or
// change its rules.
func ownerOf(t nft.ForeignTable, c *nft.ForeignChain, list []refusal) (owner, remedy string) {
	has := func(prefix string) bool {
		return slices.ContainsFunc(t.Chains, func(c nft.ForeignChain) bool { return strings.HasPrefix(c.Name, prefix) })
	}
	inDocker := slices.IndexFunc(list, func(r refusal) bool { return r.chain == "DOCKER-USER" || r.chain == "DOCKER" })
	show := fmt.Sprintf("nft -a list chain %s %s %s", t.Family, t.Name, c.Name)
	switch {
	case t.Name == "firewalld":
		return "firewalld", "firewall-cmd --list-all-zones; open the port there as well, or leave the host's ports to one of the two (host.default: accept, or systemctl disable --now firewalld)"
	case has("ufw") || has("ufw6"):
		return "ufw", "ufw status numbered; ufw delete NUMBER, or ufw allow PORT (ufw route allow … for containers), or leave the host's ports to one of the two (host.default: accept, or ufw disable)"
	case inDocker >= 0:
		chain := list[inDocker].chain
		return "a rule in " + chain, fmt.Sprintf("%[1]s -L %[2]s --line-numbers; %[1]s -D %[2]s NUMBER, and say it in nftfw's policy instead", iptablesOf(t.Family), chain)
	case strings.HasPrefix(t.Name, "libvirt") || has("LIBVIRT"):
		return "libvirt", show + "; it concerns its virtual networks"
	default:
		return "somebody else's rule", show + "; delete the rule that drops, or accept there what nftfw is to decide"
	}
}

// forwardFindings tells where Docker's policy at forward drops what is meant to
// go through the host.
func forwardFindings(f *Facts) []Finding {
	if !f.routes() {
		return nil
	}
	for _, t := range f.others() {
		for i := range t.Chains {
			c := &t.Chains[i]
			w := &walk{table: t, seen: map[string]bool{}}
			if c.Hook != ruleset.Forward || c.Type != "filter" || !c.Drops {
				continue
			}
			if w.forwardWay(c); !w.passed {
				continue // a finding already
			}
			return []Finding{{
				"forward-policy-drop", Warning,
				fmt.Sprintf("the policy of chain %s of table %s %s is drop, as Docker sets it", c.Name, t.Family, t.Name),
				"what goes through the host and is no container's (virtual machines, VPNs) is dropped there, although nftfw accepts it",
				"iptables -I DOCKER-USER -i IN -o OUT -j ACCEPT for each way, or `\"ip-forward-no-drop\": true` in /etc/docker/daemon.json (Docker 28 and later)",
			}}
		}
	}
	return nil
}

// routes reports whether the host seems to forward for others than containers:
// the policy says so, or it has links that are made for that.
func (f *Facts) routes() bool {
	if len(f.Policy.Forward.Allow) > 0 {
		return true
	}
	if f.Policy.Forward.DefaultDrop {
		return false
	}
	for _, l := range policy.ClassifyLinks(f.Docker.Inventory) {
		if l.Side == policy.Foreign && slices.Contains([]string{"bridge", "wireguard", "tun"}, l.Link.Kind) {
			return true
		}
	}
	return false
}

// legacyFindings tells of rules that nobody can see with nft.
func legacyFindings(f *Facts) []Finding {
	var out []Finding
	add := func(what string, tables []string, remedy string) {
		if len(tables) > 0 {
			out = append(out, Finding{
				"iptables-legacy", Warning, what + ": " + strings.Join(tables, ", "),
				"its rules may drop what nftfw accepts or leave packets untracked, and neither nft nor this command lists them", remedy,
			})
		}
	}
	add("iptables-legacy has rules beside nf_tables, in tables", f.LegacyTables,
		"iptables-legacy-save and ip6tables-legacy-save show them; move them over (update-alternatives --set iptables /usr/sbin/iptables-nft), restart docker, and reboot")
	add("iptables-legacy has tables beside nf_tables, which may be empty", f.LegacyUnread,
		"run nftfw doctor as root, which can tell whether there is a rule in them")
	return out
}

// isNftfw reports whether a table has the chains of nftfw's.
func isNftfw(t nft.ForeignTable) bool {
	want := []string{"essential", "forward", "input", "refuse"}
	return t.Family == "inet" && !slices.ContainsFunc(want, func(name string) bool {
		return !slices.ContainsFunc(t.Chains, func(c nft.ForeignChain) bool {
			// One priority for both; see policy.Compile.
			return c.Name == name && (c.Hook == "" || c.Priority == ruleset.PriorityFilter-10)
		})
	})
}

// rivalFindings names the tables of another nftfw.
func rivalFindings(f *Facts) []Finding {
	var out []Finding
	for _, t := range f.Kernel.Tables {
		if t.Name != f.Options.Table && isNftfw(t) {
			out = append(out, Finding{
				"second-nftfw", Error, fmt.Sprintf("table inet %s is an nftfw's as well", t.Name),
				"what either of the two refuses is closed: permissions have to be given twice",
				fmt.Sprintf("stop the other daemon and nftfw --table %s down", t.Name),
			})
		}
	}
	return out
}
