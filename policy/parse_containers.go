package policy

import (
	"net/netip"

	"gopkg.in/yaml.v3"
)

func (r *reader) containers(n *yaml.Node) {
	c := &r.p.Containers
	r.object(n, "containers", "default, labels, rules and so on", schema{
		"default":      func(n *yaml.Node) { c.Default, _ = r.from(n) },
		"labels":       func(n *yaml.Node) { c.Labels, c.LabelTrusted = r.from(n) },
		"image_labels": func(n *yaml.Node) { r.boolean(n, &c.ImageLabels) },
		"to_containers": func(n *yaml.Node) {
			choose(r, n, &c.ToContainers, ToContainersDocker, ToContainersNone, ToContainersSameProject)
		},
		"to_host": func(n *yaml.Node) { c.ToHost = r.toHost(n) },
		"egress":  func(n *yaml.Node) { c.Egress = r.egress(n) },
		"rules": func(n *yaml.Node) {
			r.list(n, "a list of rules such as {match: {name: web}, expose: {443/tcp: any}}", func(item *yaml.Node) {
				c.Rules = append(c.Rules, r.rule(item))
			})
		},
	})
}

func (r *reader) toHost(n *yaml.Node) ToHost {
	n = r.resolve(n)
	if n.Kind == yaml.ScalarNode && !isNothing(n) {
		var word string
		choose(r, n, &word, wordAny, wordNone, "a list of ports such as [53/udp]")
		return ToHost{Any: word == wordAny}
	}
	if n.Kind != yaml.SequenceNode {
		r.wrongType(n, "any, none or a list of ports such as [53/udp]")
		return ToHost{}
	}
	return ToHost{Ports: r.ports(n)}
}

func (r *reader) rule(n *yaml.Node) Rule {
	rule := Rule{Pos: r.pos(n)}
	var egress *yaml.Node
	given, ok := r.object(n, "containers.rules", "match with expose or egress", schema{
		"match":  func(n *yaml.Node) { rule.Match = r.match(n) },
		"expose": func(n *yaml.Node) { rule.Expose = r.expose(n, parseContainerPort) },
		"egress": func(n *yaml.Node) {
			e := r.egress(n)
			rule.Egress, egress = &e, n
		},
	})
	switch {
	case !ok:
		return rule
	case !given["match"]:
		r.fail(n, `match is missing: say which containers the rule is for, as in match: {name: web}, or {name: "*"} for all`)
	case !given["expose"] && !given["egress"]:
		r.fail(n, "the rule says nothing: give it expose or egress")
	case egress != nil && rule.Match.HostIP.IsValid():
		r.fail(egress, "egress cannot depend on host_ip, which is about connections to the container: put it into a rule of its own")
	}
	return rule
}

func (r *reader) match(n *yaml.Node) Match {
	var m Match
	pattern := func(into *string) func(*yaml.Node) {
		return func(n *yaml.Node) { *into = r.pattern(n) }
	}
	given, ok := r.object(n, "containers.rules.match", "name, project, service, image, label or host_ip", schema{
		"name":    pattern(&m.Name),
		"project": pattern(&m.Project),
		"service": pattern(&m.Service),
		"image":   pattern(&m.Image),
		"label":   func(n *yaml.Node) { m.Label = r.labelPatterns(n) },
		"host_ip": func(n *yaml.Node) { m.HostIP = r.hostIP(n) },
	})
	if ok && len(given) == 0 {
		r.fail(r.resolve(n), `match is empty: say which containers the rule is for, as in {name: web}, or {name: "*"} for all`)
	}
	return m
}

// pattern reads a pattern of match.
func (r *reader) pattern(n *yaml.Node) string {
	n = r.resolve(n)
	s, ok := r.text(n, `a name or a pattern such as "shop-*"`)
	if ok && s == "" {
		r.fail(n, `the pattern is empty and matches nothing: write "*" for any, or remove the key`)
	}
	return s
}

func (r *reader) labelPatterns(n *yaml.Node) map[string]string {
	pairs, ok := r.pairs(n, "labels and the values that they must have, as in {tier: web}")
	if !ok {
		return nil
	}
	if len(pairs) == 0 {
		r.fail(r.resolve(n), "the mapping is empty: write labels and the values that they must have, as in {tier: web}")
	}
	m := make(map[string]string, len(pairs))
	for _, p := range pairs {
		m[p.name], _ = r.text(p.value, `the value of a label or a pattern such as "web-*"`)
	}
	return m
}

// hostIP reads an address of the host.
func (r *reader) hostIP(n *yaml.Node) netip.Addr {
	n = r.resolve(n)
	s, ok := r.text(n, "an address of this host")
	if !ok {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" {
		r.fail(n, "host_ip %s: write one address of this host, such as 198.51.100.2", quote(s))
		return netip.Addr{}
	}
	return a.Unmap()
}
