package policy

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/nftfw/nftfw/pkg/inventory"
)

// linkKindBridge is IFLA_INFO_KIND of a bridge, and linkKindVeth that of a
// virtual Ethernet pair (drivers/net/veth.c).
const (
	linkKindBridge = "bridge"
	linkKindVeth   = "veth"
)

// Side says on which side of the firewall a link is.
type Side string

// The sides. A link that is on neither forwards nothing.
const (
	Inside  Side = "inside"  // a bridge of Docker's with nothing but containers on it
	Foreign Side = "foreign" // known not to be Docker's
	Neither Side = "neither"
)

// ClassifiedLink is a link with its side.
type ClassifiedLink struct {
	Link inventory.Link
	Side Side
	// Reason says why a bridge of Docker's is not inside, or what is wrong
	// with the link's name; "" otherwise.
	Reason string
}

// ClassifyLinks gives the side of every link of the host in the order of the
// inventory, but of lo and of ports of bridges: what arrives on a port is seen
// to arrive on its bridge. A bridge is inside only while Docker says that it is
// its network's and every port on it is a veth into a container. A link that is
// no bridge is foreign at once, a bridge that appears only when it is no longer
// among inv.NewBridges.
func ClassifyLinks(inv inventory.Snapshot) []ClassifiedLink {
	network := map[string]inventory.Network{}
	for _, n := range inv.Networks {
		if other, twice := network[n.Bridge]; n.Bridge != "" && (!twice || n.Name < other.Name) {
			network[n.Bridge] = n
		}
	}
	bridges := map[int]bool{}
	for _, l := range inv.Links {
		bridges[l.Index] = l.Kind == linkKindBridge
	}
	ports := map[int][]inventory.Link{}
	for _, l := range inv.Links {
		if bridges[l.Master] {
			ports[l.Master] = append(ports[l.Master], l)
		}
	}
	var out []ClassifiedLink
	for _, l := range inv.Links {
		if l.Name == "lo" || bridges[l.Master] {
			continue
		}
		n, docker := network[l.Name]
		c := ClassifiedLink{Link: l, Side: Neither}
		switch {
		case !spellable(l.Name):
			c.Reason = fmt.Sprintf("link %q: nft cannot write its name, so nothing is forwarded over it: rename it", l.Name)
		case docker && l.Kind != linkKindBridge:
			c.Reason = fmt.Sprintf("network %s: link %s is no bridge; what arrives on it counts as outside", n.Name, l.Name)
		case docker:
			if strangers := strangePorts(ports[l.Index]); len(strangers) > 0 {
				c.Reason = fmt.Sprintf("network %s: bridge %s has a port that leads to no container (%s); what arrives on it counts as outside: take the port off the bridge, or give the network a bridge of its own",
					n.Name, l.Name, strings.Join(strangers, ", "))
			} else {
				c.Side = Inside
			}
		case l.Kind != linkKindBridge, inv.Engine == inventory.EngineAbsent,
			inv.Engine == inventory.EngineListed && !slices.Contains(inv.NewBridges, l.Name),
			inv.Engine == inventory.EngineUnknown && slices.Contains(inv.ForeignBridges, l.Name):
			c.Side = Foreign
		}
		out = append(out, c)
	}
	return out
}

// spellable reports whether nft can write the name of a link. The kernel keeps
// only blanks, slashes and colons out of names.
func spellable(name string) bool {
	return utf8.ValidString(name) && !strings.ContainsFunc(name, func(c rune) bool {
		return unicode.IsControl(c) || strings.ContainsRune(`"*\`, c)
	})
}

// strangePorts lists the ports that do not lead into a container. A port that
// has only just been enslaved has a moment to be moved into one.
func strangePorts(ports []inventory.Link) []string {
	var out []string
	for _, l := range ports {
		if l.Kind != linkKindVeth || l.Sandbox == "" && !l.Settling {
			out = append(out, l.Name)
		}
	}
	slices.Sort(out)
	return out
}
