package doctor

import (
	"fmt"
	"slices"
	"strings"

	"github.com/nftfw/nftfw/policy"
)

// serviceFindings names addresses of the host that lead to somewhere else than
// Docker's containers.
func serviceFindings(f *Facts) []Finding {
	const why = "what it sends on is neither a container of Docker nor a port of the host to nftfw: labels do not count, and where host.default is drop its addresses are closed"
	var out []Finding
	if len(f.IPVS) > 0 {
		out = append(out, Finding{
			"ipvs-service", Warning, fmt.Sprintf("IPVS has %d virtual services: %s", len(f.IPVS), strings.Join(f.IPVS[:min(len(f.IPVS), shownRules)], "; ")),
			why, "ipvsadm -Ln; open their ports under host.allow, and filter behind them",
		})
	}
	for _, t := range f.others() {
		n := 0
		for _, c := range t.Chains {
			if strings.HasPrefix(c.Name, "KUBE-") {
				n++
			}
		}
		if n > 0 || t.Name == "kube-proxy" {
			out = append(out, Finding{
				"kube-proxy", Warning, fmt.Sprintf("kube-proxy has rules in table %s %s", t.Family, t.Name),
				why, "say what may reach Kubernetes' services in its network policies, and leave its links to forward.allow and interfaces.trusted",
			})
			break
		}
	}
	return out
}

func sysctlFindings(f *Facts) []Finding {
	var out []Finding
	if f.listed() {
		seen := policy.Bridged{IPv4: f.BridgeNF4, IPv6: f.BridgeNF6}
		if unseen, missing := policy.Unseen(f.Policy, f.Sets, f.Docker.Inventory, seen); len(unseen) > 0 {
			var what []string
			for _, d := range unseen {
				subject, _, _ := strings.Cut(d.Message, " does not hold")
				if !slices.Contains(what, subject) {
					what = append(what, subject)
				}
			}
			out = append(out, Finding{
				"bridge-netfilter-off", Error,
				fmt.Sprintf("%s is not 1, so these do not hold between containers on one bridge: %s", strings.Join(missing, " and "), strings.Join(what, "; ")),
				"what a bridge switches between its containers passes no firewall then: containers on one network reach each other all the same",
				"modprobe br_netfilter; sysctl -w " + strings.Join(missing, "=1 ") + "=1, and both in /etc/modules-load.d and /etc/sysctl.d",
			})
		}
	}
	inside := f.inside() // without docker-proxy Docker sets it on its bridges
	open := slices.DeleteFunc(slices.Clone(f.RouteLocalnet), func(l string) bool { return inside[l] || l == "lo" })
	if len(open) > 0 {
		out = append(out, Finding{
			"route-localnet", Warning, "route_localnet is set on " + strings.Join(open, ", "),
			"neighbours can address the host's 127.0.0.0/8 there; while nftfw is down nothing keeps them from services that listen on loopback alone",
			// A link's name may have dots.
			"sysctl -w net/ipv4/conf/" + open[0] + "/route_localnet=0, and see who sets it (kube-proxy does)",
		})
	}
	return out
}
