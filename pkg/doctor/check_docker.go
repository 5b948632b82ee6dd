package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/nftfw/nftfw/pkg/inventory"
	"github.com/nftfw/nftfw/policy"
)

func dockerFindings(f *Facts) []Finding {
	withoutDocker := f.Daemon != nil && !f.Daemon.Docker.Connected && f.Daemon.Docker.Error == ""
	path := strings.TrimPrefix(f.Options.DockerHost, "unix://")
	switch err := f.Docker.Err; {
	case f.Options.NoDocker:
		return nil
	case errors.Is(err, fs.ErrPermission):
		return []Finding{unreadableSocket("docker-socket-unreadable", "Docker", path, f.Docker.Group)}
	case err != nil && withoutDocker:
		return nil
	case err != nil:
		return []Finding{{
			"docker-unreachable", Warning, err.Error(),
			"containers, their labels and their networks were not looked at",
			"systemctl start docker, or name its socket with --docker-host; for a host without Docker: --no-docker",
		}}
	case f.Docker.Info.Rootless:
		return []Finding{{
			"docker-rootless", Error, "the engine at " + f.Options.DockerHost + " is rootless",
			"its containers have a network of their own: the host sees a process that listens, and labels and rules for containers do not count",
			"open the ports under host.allow instead, or use the engine of root",
		}}
	}
	if f.Kernel.Err == nil && f.hasBridge() && f.Docker.Info.Podman {
		if f.hasRules("netavark", "NETAVARK-HOSTPORT-DNAT", "CNI-HOSTPORT-DNAT") {
			return nil
		}
		return []Finding{{
			"podman-rules-missing", Error,
			"Podman has no rules on this host: somebody has flushed them",
			"published ports lead nowhere, and containers reach the outside only where something else masquerades",
			"podman network reload --all",
		}}
	}
	if f.Kernel.Err == nil && f.hasBridge() && !f.hasRules(dockerTable, "DOCKER") {
		return []Finding{{
			"docker-iptables-false", Error,
			"Docker has no rules on this host: it runs with `iptables: false`, or somebody has flushed its rules",
			"published ports are carried by docker-proxy alone, so that containers see the bridge's address as every client's, and containers reach the outside only where something else masquerades",
			"remove `\"iptables\": false` from /etc/docker/daemon.json (or --iptables=false from the unit), then systemctl restart docker",
		}}
	}
	return nil
}

// hasBridge reports whether one of the engine's bridges is here: an engine may
// be elsewhere.
func (f *Facts) hasBridge() bool {
	return slices.ContainsFunc(f.Docker.Inventory.Networks, func(n inventory.Network) bool {
		return n.Bridge != "" && slices.ContainsFunc(f.Links, func(l inventory.Link) bool { return l.Name == n.Bridge })
	})
}

// hasRules looks for the table of an engine's nftables backend, and for one of
// the chains for published ports that the other one makes. Where that may be in
// a legacy table, which is not read, the engine has the benefit of the doubt.
func (f *Facts) hasRules(table string, natChains ...string) bool {
	if slices.Contains(f.LegacyTables, "nat") || slices.Contains(f.LegacyUnread, "nat") {
		return true
	}
	for _, t := range f.Kernel.Tables {
		// Of IPv6 an option of its own speaks, ip6tables.
		if t.Name == table && t.Family != "ip6" {
			return true
		}
		for _, c := range t.Chains {
			if t.Family == "ip" && t.Name == "nat" && slices.Contains(natChains, c.Name) {
				return true
			}
		}
	}
	return false
}

// networkFindings names containers that no host firewall sees, and bridges that
// are not Docker's alone.
func networkFindings(f *Facts) []Finding {
	var out []Finding
	for _, n := range f.Docker.Inventory.Networks {
		if n.Driver != "macvlan" && n.Driver != "ipvlan" {
			continue
		}
		var names []string
		for _, c := range f.Docker.Inventory.Containers {
			if slices.ContainsFunc(c.Endpoints, func(e inventory.Endpoint) bool { return e.NetworkID == n.ID }) {
				names = append(names, c.Name)
			}
		}
		if len(names) == 0 {
			continue
		}
		slices.Sort(names)
		out = append(out, Finding{
			"container-unfiltered", Error,
			fmt.Sprintf("on the %s network %s: container %s", n.Driver, n.Name, strings.Join(names, ", ")),
			"its packets go past the host's network stack: neither nftfw nor any other firewall of the host filters them, and every port that it listens on is open to its network",
			"put the container on a bridge network, or filter in front of the host or inside the container",
		})
	}
	for _, l := range policy.ClassifyLinks(f.Docker.Inventory) {
		if l.Reason != "" {
			out = append(out, Finding{
				"bridge-foreign-port", Error, l.Reason,
				"whoever is behind it would be a neighbour of the containers; nftfw counts the whole bridge as outside, its containers included",
				fmt.Sprintf("bridge link show; ip link set PORT nomaster, or a bridge of its own for the network of %s", l.Link.Name),
			})
		}
	}
	return out
}

// labelFindings names what policy could not understand or enforce.
func labelFindings(f *Facts) []Finding {
	var out []Finding
	add := func(severity, container, label, message string) {
		id, why := "port-closed", "the port is closed"
		if label != "" {
			id, why = "label-not-enforced", "the label does not count: what it speaks of is left to the default, and to trusted at the most"
		}
		s := Warning
		if severity == string(Error) {
			s = Error
		}
		out = append(out, Finding{
			id, s, message, why,
			fmt.Sprintf("correct it (docker inspect %s) and create the container anew, or write a rule in the policy file; nftfw ports shows what holds", container),
		})
	}
	if f.listed() {
		for _, d := range f.Diagnostics {
			if d.Container != "" {
				add(string(d.Severity), d.Container, d.Label, d.String())
			}
		}
		return out
	}
	if f.Daemon != nil { // it sees what we may not
		for _, p := range f.Daemon.Problems {
			if p.Container != "" {
				add(p.Severity, p.Container, p.Label, p.Message)
				continue
			}
			out = append(out, Finding{"not-as-asked", Error, p.Message, "what the policy asks for does not hold there", "see the message; run nftfw doctor as root for more"})
		}
	}
	return out
}
