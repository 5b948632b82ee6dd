package policy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// maxInterface is IFNAMSIZ of linux/if.h without the final zero byte.
const maxInterface = 15

// checkInterface says what is wrong with a text as the name of an interface,
// or as the beginning of one when * stands at its end. The kernel's own
// rules are those of dev_valid_name (net/core/dev.c); quotes and the like
// have no place in a ruleset either.
func checkInterface(s string) error {
	name, wildcard := strings.CutSuffix(s, "*")
	switch {
	case s == "":
		return errors.New("the name of an interface is empty")
	case wildcard && name == "":
		return errors.New(`"*" is every interface: name them, or the beginning that they share, as in tailscale*`)
	case strings.Contains(name, "*"):
		return fmt.Errorf("interface %s: a * stands at the end only", quote(s))
	case len(name) > maxInterface:
		return fmt.Errorf("interface %s: a name has at most %d bytes", quote(s), maxInterface)
	case name == "." || name == ".." || strings.ContainsFunc(name, func(c rune) bool {
		return c <= ' ' || c > '~' || strings.ContainsRune(`/:"'\`, c)
	}):
		return fmt.Errorf("interface %s: that is not a name the kernel gives", quote(s))
	}
	return nil
}

// iface reads the name of an interface.
func (r *reader) iface(n *yaml.Node) string {
	n = r.resolve(n)
	s, ok := r.text(n, "the name of an interface")
	if !ok {
		return ""
	}
	if err := checkInterface(s); err != nil {
		r.fail(n, "%v", err)
	}
	if s == "lo" {
		r.warn(n, "lo is always accepted: leave it out")
	}
	return s
}

func (r *reader) interfaces(n *yaml.Node) {
	r.object(n, "interfaces", "trusted: [NAME, ...]", schema{
		"trusted": func(n *yaml.Node) {
			r.list(n, "a list of interfaces such as [wg0, \"tailscale*\"]", func(item *yaml.Node) {
				name := r.iface(item)
				switch {
				case name == "": // refused
					return
				case slices.Contains(r.p.TrustedInterfaces, name):
					r.warn(item, "%s is in the list twice", quote(name))
					return
				}
				r.p.TrustedInterfaces = append(r.p.TrustedInterfaces, name)
			})
		},
	})
}

// ports reads a list of ports.
func (r *reader) ports(n *yaml.Node) []PortSpec {
	var list []PortSpec
	n = r.resolve(n)
	if n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		r.fail(n, "the list of ports is empty: write one such as [22/tcp]")
	}
	r.list(n, "a list of ports such as [22/tcp]", func(item *yaml.Node) {
		if spec, ok := r.port(item, ParsePort); ok && !slices.Contains(list, spec) {
			list = append(list, spec)
		}
	})
	return list
}

// port reads one port, which may be written as a number.
func (r *reader) port(n *yaml.Node, parse func(string) (PortSpec, error)) (PortSpec, bool) {
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" && n.ShortTag() != "!!int" {
		r.wrongType(n, "a port such as 443/tcp")
		return PortSpec{}, false
	}
	spec, err := parse(n.Value)
	if err != nil {
		r.fail(n, "%v", err)
	}
	return spec, err == nil
}

func (r *reader) host(n *yaml.Node) {
	h := &r.p.Host
	r.object(n, "host", "default, allow, ping", schema{
		"default": func(n *yaml.Node) { h.DefaultAccept = r.dropOrAccept(n) == "accept" },
		"ping":    func(n *yaml.Node) { r.boolean(n, &h.Ping) },
		"allow": func(n *yaml.Node) {
			r.list(n, "a list of entries such as {ports: [22/tcp], from: any}", func(item *yaml.Node) {
				h.Allow = append(h.Allow, r.hostAllow(item))
			})
		},
	})
}

// dropOrAccept reads drop or accept.
func (r *reader) dropOrAccept(n *yaml.Node) (word string) {
	choose(r, n, &word, "drop", "accept")
	return word
}

func (r *reader) hostAllow(n *yaml.Node) HostAllow {
	a := HostAllow{Pos: r.pos(n)}
	given, ok := r.object(n, "host.allow", "ports, from, and perhaps in", schema{
		"in":    func(n *yaml.Node) { a.In = r.iface(n) },
		"ports": func(n *yaml.Node) { a.Ports = r.ports(n) },
		"from":  func(n *yaml.Node) { a.From, _ = r.from(n) },
	})
	if ok && !given["ports"] {
		r.fail(n, "ports is missing: say which ports are allowed, as in ports: [22/tcp]")
	}
	if ok && !given["from"] {
		r.fail(n, "from is missing: say who may connect, as in from: trusted")
	}
	return a
}

func (r *reader) swarm(n *yaml.Node) {
	r.object(n, "swarm", "ingress", schema{
		"ingress": func(n *yaml.Node) { r.p.Ingress = r.expose(n, parseIngressPort) },
	})
}

// parseIngressPort reads a port of the routing mesh.
func parseIngressPort(s string) (PortSpec, error) {
	spec, err := parseContainerPort(s)
	if err == nil && spec.All {
		err = errors.New(`"*" has no place here: name the ports of the routing mesh`)
	}
	return spec, err
}

// expose reads a mapping from ports to FROM.
func (r *reader) expose(n *yaml.Node, parse func(string) (PortSpec, error)) []PortGrant {
	pairs, ok := r.pairs(n, "ports and who may reach them, as in {443/tcp: any}")
	if !ok {
		return nil
	}
	if len(pairs) == 0 {
		r.fail(r.resolve(n), "the mapping is empty: write ports and who may reach them, as in {443/tcp: any}")
	}
	var list []PortGrant
	for _, p := range pairs {
		spec, ok := r.port(p.key, parse)
		from, _ := r.from(p.value)
		if !ok {
			continue
		}
		if i := slices.IndexFunc(list, func(g PortGrant) bool { return g.Ports == spec }); i >= 0 {
			r.fail(p.key, "port %s is given twice, first on line %d: keep one of them", spec, list[i].Pos.Line)
			continue
		}
		list = append(list, PortGrant{Ports: spec, From: from, Pos: r.pos(p.key)})
	}
	return list
}

func (r *reader) forward(n *yaml.Node) {
	f := &r.p.Forward
	r.object(n, "forward", "default and allow", schema{
		"default": func(n *yaml.Node) { f.DefaultDrop = r.dropOrAccept(n) == "drop" },
		"allow": func(n *yaml.Node) {
			r.list(n, "a list of entries such as {in: lan0, out: wan0, from: any}", func(item *yaml.Node) {
				a := ForwardAllow{Pos: r.pos(item)}
				given, ok := r.object(item, "forward.allow", "in, out, from", schema{
					"in":   func(n *yaml.Node) { a.In = r.iface(n) },
					"out":  func(n *yaml.Node) { a.Out = r.iface(n) },
					"from": func(n *yaml.Node) { a.From, _ = r.from(n) },
				})
				if ok && !given["from"] {
					r.fail(item, "from is missing: say whose traffic is let through, as in from: any")
				}
				f.Allow = append(f.Allow, a)
			})
		},
	})
}

// maxRate is the largest number of a rate, which is far beyond what can be
// logged.
const maxRate = 1_000_000

func (r *reader) log(n *yaml.Node) {
	r.object(n, "log", "drops and rate", schema{
		"drops": func(n *yaml.Node) { r.boolean(n, &r.p.Log.Drops) },
		"rate": func(n *yaml.Node) {
			n = r.resolve(n)
			const want = "a rate such as 10/second"
			s, ok := r.text(n, want)
			if !ok {
				return
			}
			number, unit, _ := strings.Cut(s, "/")
			rate, err := strconv.ParseUint(number, 10, 64)
			units := []string{"second", "minute", "hour", "day"}
			if err != nil || !plainNumber(number) || rate < 1 || rate > maxRate || !slices.Contains(units, unit) {
				r.fail(n, "expected %s, got %s: write a number from 1 to %d, /, and second, minute, hour or day%s",
					want, quote(s), maxRate, didYouMean(unit, units))
				return
			}
			r.p.Log.Rate, r.p.Log.Unit = rate, unit
		},
	})
}

func (r *reader) metrics(n *yaml.Node) {
	r.object(n, "metrics", `listen, as in listen: "127.0.0.1:9469"`, schema{
		"listen": func(n *yaml.Node) {
			n = r.resolve(n)
			s, ok := r.text(n, `an address and port such as "127.0.0.1:9469"`)
			if !ok {
				return
			}
			if err := checkListen(s); err != nil {
				r.fail(n, "%v", err)
			}
			r.p.Metrics.Listen = s
		},
	})
}

// checkListen says what is wrong with a HOST:PORT to listen on.
func checkListen(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf(`listen %s: write an address and port such as "127.0.0.1:9469" or "[::1]:9469"`, quote(s))
	}
	if _, err := parsePortNumber(s, port); err != nil {
		return fmt.Errorf("listen %s: the port goes from 1 to 65535", quote(s))
	}
	if _, err := netip.ParseAddr(host); err != nil && host != "" && host != "localhost" {
		return fmt.Errorf("listen %s: %s is not an address of this host", quote(s), quote(host))
	}
	return nil
}
