package policy

import (
	"strings"
	"testing"

	"github.com/nftfw/nftfw/pkg/inventory"
	rs "github.com/nftfw/nftfw/pkg/ruleset"
)

func TestWhichWordCounts(t *testing.T) {
	run(t, []verdicts{
		{
			name:       "without rule and label a published port is for trusted",
			containers: []inventory.Container{container("web", nil, "8080:80/tcp")},
			accept: packets(from(dnat, web+":80", trusted), from(dnat, "["+web6+"]:80", trusted6),
				from(input, host1+":8080", trusted), from(input, "["+host6+"]:8080", trusted6)),
			drop: packets(from(dnat, web+":80", office, stranger), from(dnat, "["+web6+"]:80", office6, stranger6),
				from(input, host1+":8080", office, stranger), from(input, "["+host6+"]:8080", office6, stranger6)),
		},
		{
			name:       "containers.default is for ports that nobody speaks of",
			policy:     "containers: {default: office}",
			containers: []inventory.Container{container("web", labels{"nftfw.expose.443": "any"}, "8080:80/tcp", "443:443/tcp")},
			accept:     packets(from(dnat, web+":80", trusted, office), from(dnat, web+":443", stranger)),
			drop:       packets(from(dnat, web+":80", stranger)),
		},
		{
			name: "a rule stands above a label, and a label above the default",
			policy: `containers:
  default: any
  rules: [{match: {name: web}, expose: {80/tcp: office}}]`,
			containers: []inventory.Container{container("web", labels{"nftfw.expose": "trusted", "nftfw.expose.80": "any"}, "8080:80/tcp", "443:443/tcp")},
			accept:     packets(from(dnat, web+":80", office, trusted), from(dnat, web+":443", trusted)),
			drop:       packets(from(dnat, web+":80", stranger), from(dnat, web+":443", stranger, office)),
		},
		{
			name: "the first rule that matches and mentions the port counts",
			policy: `containers:
  rules:
  - {match: {name: other}, expose: {"*": any}}
  - {match: {name: "w*"}, expose: {443/tcp: any}}
  - {match: {name: web}, expose: {"*": office}}
  - {match: {name: web}, expose: {443/tcp: none, 80/tcp: any}}`,
			containers: []inventory.Container{container("web", nil, "8080:80/tcp", "443:443/tcp")},
			accept:     packets(from(dnat, web+":443", stranger), from(dnat, web+":80", office)),
			drop:       packets(from(dnat, web+":80", stranger)),
		},
		{
			name: "within a rule a number beats a range, and a range beats *",
			policy: `containers:
  rules: [{match: {name: web}, expose: {"*": any, 8000-8999/tcp: office, 8500/tcp: none}}]`,
			containers: []inventory.Container{container("web", nil, "80:80/tcp", "8001:8001/tcp", "8500:8500/tcp")},
			accept:     packets(from(dnat, web+":80", stranger), from(dnat, web+":8001", office)),
			drop:       packets(from(dnat, web+":8001", stranger), from(dnat, web+":8500", office, trusted)),
		},
		{
			name: "the label that covers the fewest ports wins, between equals the lower first port",
			containers: []inventory.Container{container("web", labels{
				"nftfw.expose": "any", "nftfw.expose.8000-8010": "office", "nftfw.expose.8005-8015": "branch", "nftfw.expose.8005": "none",
			}, "80:80/tcp", "8004:8004/tcp", "8005:8005/tcp", "8006:8006/tcp", "8012:8012/tcp")},
			accept: packets(from(dnat, web+":80", stranger), from(dnat, web+":8004", office), from(dnat, web+":8006", office),
				from(dnat, web+":8012", "203.0.114.1")),
			drop: packets(from(dnat, web+":8004", stranger), from(dnat, web+":8005", trusted, office),
				from(dnat, web+":8006", "203.0.114.1"), from(dnat, web+":8012", office)),
		},
		{
			name:       "tcp does not open udp of the same number",
			containers: []inventory.Container{container("dns", labels{"nftfw.expose.53": "any"}, "53:53/tcp", "53:53/udp")},
			accept:     packets(from(dnat, web+":53/tcp", stranger), from(input, host1+":53/tcp", stranger), from(dnat, web+":53/udp", trusted)),
			drop:       packets(from(dnat, web+":53/udp", stranger), from(input, host1+":53/udp", stranger)),
		},
		{
			name:       "the port of a label is the container's, not the host's",
			containers: []inventory.Container{container("web", labels{"nftfw.expose.8080": "any"}, "8080:80/tcp")},
			drop:       packets(from(dnat, web+":80", stranger), from(input, host1+":8080", stranger)),
			says:       []string{"warning: container web: label nftfw.expose.8080: the container publishes no such port; labels name the container's own port, not the host's"},
		},
		{
			name: "a rule for a host_ip counts only for connections to that address",
			policy: `containers:
  rules:
  - {match: {host_ip: 198.18.0.2}, expose: {443/tcp: any}}
  - {match: {name: web}, expose: {443/tcp: office}}`,
			containers: []inventory.Container{container("web", nil, "8443:443/tcp")},
			accept: packets(through(host2, dnat(stranger, web+":443")), input(stranger, host2+":8443"),
				dnat(office, web+":443"), input(office, host1+":8443")),
			drop: packets(dnat(stranger, web+":443"), input(stranger, host1+":8443"), input(stranger6, "["+host6+"]:8443"),
				through(host2, direct(stranger, web+":443"))),
		},
		{
			name: "a rule before that for a host_ip counts for every address",
			policy: `containers:
  rules:
  - {match: {name: web}, expose: {443/tcp: office}}
  - {match: {host_ip: 198.18.0.2}, expose: {443/tcp: any}}`,
			containers: []inventory.Container{container("web", nil, "8443:443/tcp")},
			accept:     packets(through(host2, dnat(office, web+":443"))),
			drop:       packets(through(host2, dnat(stranger, web+":443")), input(stranger, host2+":8443")),
		},
		{
			name: "a port bound to the host_ip alone, and its twin on another address",
			policy: `containers:
  rules: [{match: {host_ip: 198.18.0.2}, expose: {443/tcp: any}}]`,
			containers: []inventory.Container{container("web", nil, "198.18.0.1:443:443/tcp", "198.18.0.2:443:443/tcp")},
			accept:     packets(through(host2, dnat(stranger, web+":443")), input(stranger, host2+":443"), dnat(trusted, web+":443")),
			drop:       packets(dnat(stranger, web+":443"), input(stranger, host1+":443")),
		},
	})
}

func TestFrom(t *testing.T) {
	exposed := func(from string) []inventory.Container {
		return []inventory.Container{container("web", labels{"nftfw.expose.80": from}, "8080:80/tcp")}
	}
	sources := []string{trusted, office, partner, stranger}
	only := func(who ...string) (accept, drop []rs.Packet) {
		for _, s := range sources {
			both := packets(dnat(s, web+":80"), input(s, host1+":8080"))
			if strings.Contains(strings.Join(who, " "), s) {
				accept = append(accept, both...)
			} else {
				drop = append(drop, both...)
			}
		}
		return accept, drop
	}
	var tests []verdicts
	for _, tt := range []struct {
		name, from string
		who        []string
	}{
		{"any is everyone", "any", sources},
		{"trusted is the set", "trusted", []string{trusted}},
		{"none is nobody, not even trusted", "none", nil},
		{"a set lets trusted in as well", "office", []string{trusted, office}},
		{"an address", "10.1.2.3", []string{trusted, partner}},
		{"a CIDR", "10.0.0.0/8", []string{trusted, partner}},
		{"a range, its last address included", "10.1.2.0-10.1.2.3", []string{trusted, partner}},
		{"a range that ends before", "10.1.2.0-10.1.2.2", []string{trusted}},
		{"a list", "office,10.0.0.0/8", []string{trusted, office, partner}},
		{"0.0.0.0/0 is every IPv4 source", "0.0.0.0/0", sources},
		{"::/0 is no IPv4 source", "::/0", []string{trusted}},
	} {
		accept, drop := only(tt.who...)
		tests = append(tests, verdicts{name: tt.name, containers: exposed(tt.from), accept: accept, drop: drop})
	}
	run(t, append(tests, []verdicts{
		{
			name:       "0.0.0.0/0 is not any: no IPv6 source is in it",
			containers: exposed("0.0.0.0/0"),
			accept:     packets(dnat(trusted6, "["+web6+"]:80")),
			drop:       packets(dnat(stranger6, "["+web6+"]:80"), input(stranger6, "["+host6+"]:8080")),
		},
		{
			name:       "IPv6 sources of sets and lists",
			containers: []inventory.Container{container("web", labels{"nftfw.expose.80": "office", "nftfw.expose.443": "office,2001:db8:9::/48"}, "8080:80/tcp", "443:443/tcp")},
			accept:     packets(from(dnat, "["+web6+"]:80", office6, trusted6), from(dnat, "["+web6+"]:443", office6, stranger6), input(stranger6, "["+host6+"]:443")),
			drop:       packets(dnat(stranger6, "["+web6+"]:80"), dnat(stranger, web+":443")),
		},
		{
			name:       "trusted reaches the host's ports and all published ports, but those whose FROM is none",
			policy:     "host: {allow: [{ports: [9100/tcp], from: none}, {ports: [22/tcp], from: office}]}",
			containers: []inventory.Container{container("web", labels{"nftfw.expose.80": "10.0.0.0/8", "nftfw.expose.81": "none"}, "8080:80/tcp", "8081:81/tcp")},
			accept:     packets(from(input, host1+":5432", trusted), from(input, host1+":22", trusted, office), from(dnat, web+":80", trusted)),
			drop:       packets(from(dnat, web+":81", trusted), from(input, host1+":8081", trusted), from(input, host1+":9100", trusted, office)),
		},
		{
			name:       "containers.default: none keeps trusted out",
			policy:     "containers: {default: none}",
			containers: []inventory.Container{container("web", nil, "8080:80/tcp")},
			accept:     packets(input(trusted, host1+":22")),
			drop:       packets(from(dnat, web+":80", trusted), from(input, host1+":8080", trusted)),
		},
	}...))
}

func TestMatch(t *testing.T) {
	c := container("shop-web-1", labels{
		"com.docker.compose.project": "shop", "com.docker.compose.service": "web", "tier": "front",
	}, "8080:80/tcp")
	c.Image = "registry.example/nginx:1.27"
	var tests []verdicts
	for match, open := range map[string]bool{
		`{name: "shop-*"}`:                         true,
		`{name: shop}`:                             false,
		`{project: shop, service: web}`:            true,
		`{project: shop, service: db}`:             false,
		`{image: "*nginx*"}`:                       true,
		`{image: "nginx*"}`:                        false,
		`{label: {tier: "f*"}}`:                    true,
		`{label: {tier: back}}`:                    false,
		`{name: "shop-*", label: {missing: "*"}}`:  false,
		`{name: "shop-*", host_ip: "198.18.0.1"}`:  true,
		`{name: "other-*", host_ip: "198.18.0.1"}`: false,
	} {
		tt := verdicts{
			name:       match,
			policy:     "containers: {rules: [{match: " + match + ", expose: {80/tcp: any}}]}",
			containers: []inventory.Container{c},
		}
		if way := packets(dnat(stranger, web+":80"), input(stranger, host1+":8080")); open {
			tt.accept = way
		} else {
			tt.drop = way
		}
		tests = append(tests, tt)
	}
	run(t, tests)
}

func TestLabels(t *testing.T) {
	run(t, []verdicts{
		{
			name:       "a label without a port is for every published port",
			containers: []inventory.Container{container("web", labels{"nftfw.expose": "any"}, "8080:80/tcp", "53:53/udp")},
			accept:     packets(dnat(stranger, web+":80"), dnat(stranger, web+":53/udp"), input(stranger6, "["+host6+"]:53/udp")),
			drop:       packets(dnat(stranger, web+":81"), input(stranger, host1+":80")),
		},
		{
			name:       "labels: none lets no label open anything, but narrow it may",
			policy:     "containers: {labels: none, default: office}",
			containers: []inventory.Container{container("web", labels{"nftfw.expose.80": "any", "nftfw.expose.81": "none"}, "8080:80/tcp", "8081:81/tcp")},
			accept:     packets(dnat(trusted, web+":80")),
			drop:       packets(from(dnat, web+":80", stranger, office), from(dnat, web+":81", trusted)),
			says:       []string{"error: container web: label nftfw.expose.80: it asks for any, and…"},
		},
		{
			name:   "what lies within the labels that containers.labels names is granted, more is refused whole",
			policy: "containers: {labels: [office, 10.0.0.0/8]}",
			containers: []inventory.Container{container("web", labels{
				"nftfw.expose.80": "office,10.1.0.0/16", "nftfw.expose.81": "office,11.0.0.0/8", "nftfw.expose.82": "branch", "nftfw.expose.83": "9.0.0.0-10.255.255.255",
			}, "80:80/tcp", "81:81/tcp", "82:82/tcp", "83:83/tcp")},
			accept: packets(from(dnat, web+":80", office, partner, trusted), from(dnat, web+":81", trusted), from(dnat, web+":83", trusted)),
			drop:   packets(from(dnat, web+":80", stranger), from(dnat, web+":81", office, "11.0.0.1"), from(dnat, web+":82", "203.0.114.1"), from(dnat, web+":83", partner)),
			says: []string{
				"error: container web: label nftfw.expose.81: it asks for office,11.0.0.0/8, and…",
				"error: container web: label nftfw.expose.82: it asks for branch, and…",
				"error: container web: label nftfw.expose.83: it asks for 9.0.0.0-10.255.255.255, and…",
			},
		},
		{
			name:       "a label that names an unknown set leaves its port to trusted, whatever the default opens",
			policy:     "containers: {default: any}",
			containers: []inventory.Container{container("web", labels{"nftfw.expose.80": "offce"}, "8080:80/tcp", "443:443/tcp")},
			accept:     packets(dnat(trusted, web+":80"), dnat(stranger, web+":443")),
			drop:       packets(from(dnat, web+":80", office, stranger), from(input, host1+":8080", office)),
			says:       []string{`error: container web: label nftfw.expose.80: no set named "offce" is declared…`},
		},
		{
			name:       "a label that does not parse does not open what containers.default: none closes",
			policy:     "containers: {default: none}",
			containers: []inventory.Container{container("web", labels{"nftfw.expose.80": "10.0.0.0/99"}, "8080:80/tcp")},
			drop:       packets(from(dnat, web+":80", trusted, office), from(input, host1+":8080", trusted)),
			says:       []string{`error: container web: label nftfw.expose.80: "10.0.0.0/99"…`},
		},
		{
			name:       "nor what a wider label closes",
			containers: []inventory.Container{container("web", labels{"nftfw.expose": "none", "nftfw.expose.80": ""}, "8080:80/tcp")},
			drop:       packets(from(dnat, web+":80", trusted)),
			says:       []string{"error: container web: label nftfw.expose.80: its value is empty…"},
		},
		{
			name:       "a label in error is reported though nothing is decided by it",
			policy:     `containers: {rules: [{match: {name: web}, expose: {80/tcp: any}}]}`,
			containers: []inventory.Container{container("web", labels{"nftfw.expose.80": "offce", "nftfw.expose.99": "offce"}, "8080:80/tcp")},
			accept:     packets(dnat(stranger, web+":80")),
			says: []string{
				`error: container web: label nftfw.expose.80: no set named "offce" is declared…`,
				`error: container web: label nftfw.expose.99: no set named "offce" is declared…`,
			},
		},
		{
			name:       "a key that is not understood may be about any port, but for those that a label names alone",
			policy:     "containers: {default: any}",
			containers: []inventory.Container{container("web", labels{"nftfw.exposed.81": "none", "nftfw.expose": "any", "nftfw.expose.80-89": "any", "nftfw.expose.443": "any"}, "8080:80/tcp", "90:90/tcp", "443:443/tcp")},
			accept:     packets(dnat(stranger, web+":443"), dnat(trusted, web+":80"), dnat(trusted, web+":90")),
			drop:       packets(from(dnat, web+":80", stranger), from(dnat, web+":90", stranger, office)),
			says:       []string{"error: container web: label nftfw.exposed.81: there is no such label…"},
		},
		{
			name:       "a key that is not understood does not open what a wider label closes",
			containers: []inventory.Container{container("web", labels{"nftfw.exposed.81": "any", "nftfw.expose": "none"}, "8080:80/tcp")},
			drop:       packets(dnat(trusted, web+":80")),
			says:       []string{"error: container web: label nftfw.exposed.81: there is no such label…"},
		},
		{
			name:       "an egress label that cannot be read is reported",
			containers: []inventory.Container{container("web", labels{"nftfw.egress": "nowhere"}), container("x", labels{"nftfw.egress": "none"})},
			says: []string{
				`error: container web: label nftfw.egress: no set named "nowhere" is declared…`,
			},
		},
	})
}

// baked is c with all of its labels carried by its image.
func baked(c inventory.Container) inventory.Container {
	c.ImageLabels = c.Labels
	return c
}

func unknownImage(c inventory.Container) inventory.Container {
	c.ImageUnknown = true
	return c
}

func TestImageLabels(t *testing.T) {
	l := labels{"nftfw.expose.80": "any", "com.docker.compose.project": "shop", "tier": "web"}
	overridden := container("web", l, "8080:80/tcp")
	overridden.ImageLabels = labels{"nftfw.expose.80": "none", "com.docker.compose.project": "other"}
	const rules = `
  rules:
  - {match: {project: shop}, expose: {443/tcp: any}}
  - {match: {label: {tier: web}}, expose: {444/tcp: any}}`
	run(t, []verdicts{
		{
			name:       "labels that the image carries do not count, neither for nftfw.* nor in match",
			policy:     "containers:" + rules,
			containers: []inventory.Container{baked(container("web", l, "8080:80/tcp", "443:443/tcp", "444:444/tcp"))},
			accept:     packets(dnat(trusted, web+":80")),
			drop:       packets(dnat(stranger, web+":80"), dnat(stranger, web+":443"), dnat(stranger, web+":444")),
			says:       []string{"warning: container web: label nftfw.expose.80: comes with the image and does not count; containers.image_labels: true would let it"},
		},
		{
			name:       "image_labels: true lets them count for both",
			policy:     "containers:\n  image_labels: true" + rules,
			containers: []inventory.Container{baked(container("web", l, "8080:80/tcp", "443:443/tcp", "444:444/tcp"))},
			accept:     packets(dnat(stranger, web+":80"), dnat(stranger, web+":443"), dnat(stranger, web+":444")),
		},
		{
			name:       "a label with another value than the image's is the operator's",
			policy:     "containers:" + rules,
			containers: []inventory.Container{overridden},
			accept:     packets(dnat(stranger, web+":80")),
		},
		{
			name:       "with the image gone all labels may be the image's, and the default is capped at trusted",
			policy:     "containers:\n  default: any" + rules,
			containers: []inventory.Container{unknownImage(container("web", l, "8080:80/tcp", "443:443/tcp"))},
			accept:     packets(dnat(trusted, web+":80")),
			drop:       packets(dnat(stranger, web+":80"), dnat(stranger, web+":443")),
			says:       []string{"warning: container web: label nftfw.expose.80: does not count while the image cannot be inspected: it may have come with it"},
		},
		{
			name:       "an image that is gone takes nothing from rules by name",
			policy:     `containers: {rules: [{match: {name: web}, expose: {80/tcp: any}}]}`,
			containers: []inventory.Container{unknownImage(container("web", labels{"a": "b"}, "8080:80/tcp"))},
			accept:     packets(dnat(stranger, web+":80")),
		},
	})
}

func TestUnenforceableLabels(t *testing.T) {
	shared := container("sidecar", labels{"nftfw.expose.80": "any"}, "8080:80/tcp")
	shared.NetworkMode = "container:0123456789ab"
	run(t, []verdicts{
		{
			name:       "container:X has the other's network, and its labels are refused",
			containers: []inventory.Container{shared},
			drop:       packets(dnat(stranger, web+":80"), input(stranger, host1+":8080")),
			says:       []string{"error: container sidecar: label nftfw.expose.80: cannot be enforced: the container shares the network of another one, whose labels and rules count"},
		},
		{
			name: "macvlan does not pass the host, and its labels are refused",
			containers: []inventory.Container{on(container("cam", labels{"nftfw.expose": "any", "nftfw.egress": "none"}, "80/tcp"),
				endpoint("n-macvlan", "172.17.0.2", ""))},
			drop: packets(dnat(stranger, web+":80"), direct(stranger, web+":80")),
			says: []string{
				"error: container cam: label nftfw.egress: cannot be enforced: the container is on no bridge network, so its traffic does not pass this host's firewall",
				"error: container cam: label nftfw.expose: cannot be enforced: the container is on no bridge network, so its traffic does not pass this host's firewall",
			},
		},
	})
}
