package daemon

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nftfw/nftfw/pkg/inventory"
	"github.com/nftfw/nftfw/policy"
)

// bridge is one bridge of the host. Another that takes its name is not the same.
type bridge struct {
	index int
	name  string
}

// listedWithin is how long an engine may take from making a bridge to listing the
// network that it made it for: 0.2 s were seen on a busy machine. Until then a
// list without the network says nothing of the bridge.
const listedWithin = 10 * time.Second

// newBridge is what is known of a bridge that appeared lately.
type newBridge struct {
	due   time.Time // when the engine is to be asked what it is
	asked uint64    // the number of that question, 0 before it
}

// newBridges are the bridges that appeared after the engine had last listed its
// networks. Each stays one until the engine has been asked listedWithin later and
// has answered. Podman makes a bridge when the first container starts and sends no
// event of it; any engine's event may come behind the kernel's.
type newBridges map[bridge]newBridge

// take compares a list of links, read at a moment, with the one before. ask has
// the engine asked, and is called at most once.
func (b newBridges) take(before, list []inventory.Link, networks []inventory.Network, now time.Time, ask func() uint64) {
	old, there := bridgesOf(before), bridgesOf(list)
	asked := false
	for br := range there {
		listed := slices.ContainsFunc(networks, func(n inventory.Network) bool { return n.Bridge == br.name })
		if old[br] || listed {
			continue
		}
		if !asked {
			ask() // it may be known already, and so be a container's at once
			asked = true
		}
		b[br] = newBridge{due: now.Add(listedWithin)}
	}
	maps.DeleteFunc(b, func(br bridge, _ newBridge) bool { return !there[br] })
}

// due is when the engine is to be asked next; zero: not.
func (b newBridges) due() (at time.Time) {
	for _, n := range b {
		if n.asked == 0 && (at.IsZero() || n.due.Before(at)) {
			at = n.due
		}
	}
	return at
}

// ask asks of those that are due by now.
func (b newBridges) ask(now time.Time, ask func() uint64) {
	var number uint64
	for br, n := range b {
		if n.asked != 0 || n.due.After(now) {
			continue
		}
		if number == 0 {
			number = ask()
		}
		n.asked = number
		b[br] = n
	}
}

// answered takes in that the engine has listed its networks.
func (b newBridges) answered(number uint64) {
	maps.DeleteFunc(b, func(_ bridge, n newBridge) bool { return n.asked != 0 && n.asked <= number })
}

// names gives the bridges in the order of their names.
func (b newBridges) names() []string {
	var out []string
	for br := range b {
		out = append(out, br.name)
	}
	slices.Sort(out)
	return out
}

func bridgesOf(list []inventory.Link) map[bridge]bool {
	out := map[bridge]bool{}
	for _, l := range list {
		if l.Kind == "bridge" {
			out[bridge{l.Index, l.Name}] = true
		}
	}
	return out
}

// awayGrace is how long the engine may be away before what happens meanwhile
// counts: a connection that breaks is made anew within it.
const awayGrace = 500 * time.Millisecond

// newPorts names the bridges that have a veth which they did not have before.
func newPorts(before, list []inventory.Link) []string {
	type port struct{ index, master int }
	had, names := map[port]bool{}, map[int]string{}
	for _, l := range before {
		had[port{l.Index, l.Master}] = true
	}
	for _, l := range list {
		names[l.Index] = l.Name
	}
	var out []string
	for _, l := range list {
		if name := names[l.Master]; l.Kind == "veth" && name != "" && !had[port{l.Index, l.Master}] && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

// doubt notes that containers are being started on bridges while nobody can ask
// the engine which: any of them may have the address of one that is known, and
// so nothing is open there until the engine answers. An engine that comes back
// starts its containers before it does.
func (c *core) doubt(bridges []string) {
	for _, b := range bridges {
		if !c.doubted[b] && slices.ContainsFunc(c.engine.Networks, func(n inventory.Network) bool { return n.Bridge == b }) {
			c.log.Warn("a container is started while the engine does not answer, its bridge is closed until it does", "bridge", b)
			c.doubted[b] = true
		}
	}
}

// certain takes from the containers with an address on a doubted bridge what
// they may: nothing leads to them, and they begin no connection.
func (c *core) certain(containers []inventory.Container) []inventory.Container {
	if len(c.doubted) == 0 {
		return containers
	}
	doubted := map[string]bool{}
	for _, n := range c.engine.Networks {
		doubted[n.ID] = c.doubted[n.Bridge]
	}
	out := slices.Clone(containers)
	for i := range out {
		if slices.ContainsFunc(out[i].Endpoints, func(e inventory.Endpoint) bool { return doubted[e.NetworkID] }) {
			out[i].Ports, out[i].Starting, out[i].Unidentified = nil, true, true
		}
	}
	return out
}

// bridged asks the kernel what it shows of what bridges switch, in the network
// namespace of the calling thread.
func bridged() policy.Bridged {
	return policy.Bridged{IPv4: sysctlOn(policy.BridgedIPv4), IPv6: sysctlOn(policy.BridgedIPv6)}
}

// sysctlOn reports whether a setting is there and on.
func sysctlOn(key string) bool {
	value, err := os.ReadFile(filepath.Join(procfs, "sys", strings.ReplaceAll(key, ".", "/")))
	return err == nil && strings.TrimSpace(string(value)) != "0"
}
