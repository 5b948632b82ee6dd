package daemon

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nftfw/nftfw/pkg/inventory"
	"github.com/nftfw/nftfw/policy"
)

// bridge is one bridge of the host. Another that takes its name is not the same.
type bridge struct {
	index int
	name  string
}

// newBridges are the bridges that appeared after the engine had last listed its
// networks, each with the number of the question that will tell. Podman makes a
// bridge when the first container starts and sends no event of it; any engine's
// event may come behind the kernel's.
type newBridges map[bridge]uint64

// take compares a list of links with the one before. ask has the engine asked,
// and is called at most once.
func (b newBridges) take(before, list []inventory.Link, networks []inventory.Network, ask func() uint64) {
	old, there := bridgesOf(before), bridgesOf(list)
	var number uint64
	for br := range there {
		listed := slices.ContainsFunc(networks, func(n inventory.Network) bool { return n.Bridge == br.name })
		if old[br] || listed {
			continue
		}
		if number == 0 {
			number = ask()
		}
		b[br] = number
	}
	maps.DeleteFunc(b, func(br bridge, _ uint64) bool { return !there[br] })
}

// answered takes in that the engine has listed its networks.
func (b newBridges) answered(number uint64) {
	maps.DeleteFunc(b, func(_ bridge, asked uint64) bool { return asked <= number })
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
