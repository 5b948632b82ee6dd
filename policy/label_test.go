package policy

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// describeLabels writes l as lines: what is granted in the order in which it
// counts, then egress, then problems.
func describeLabels(l Labels) []string {
	var out []string
	for _, g := range l.Expose {
		line := g.Key + ": " + g.Ports.String() + " from " + g.From.String()
		if g.Err != nil {
			line = g.Key + ": " + g.Ports.String() + " refused: " + g.Err.Error()
		}
		out = append(out, line)
	}
	switch {
	case l.EgressErr != nil:
		out = append(out, "egress refused: "+l.EgressErr.Error())
	case l.Egress != nil:
		out = append(out, "egress "+l.Egress.String())
	}
	for _, p := range l.Problems {
		out = append(out, "problem "+p.Label+": "+p.Message)
	}
	if len(l.Problems) > 0 {
		out = append(out, "doubt")
	}
	return out
}

func TestParseLabels(t *testing.T) {
	const wide = "version: 1\nsets: {office: [10.0.0.0/8]}\n"
	const narrow = wide + "containers: {labels: [office, 192.0.2.0/24]}\n"
	for _, test := range []struct {
		name   string
		policy string
		labels map[string]string
		want   []string
	}{
		{"none at all", wide, map[string]string{"tier": "web", "nftfwx.expose": "any", "com.nftfw.expose": "any"}, nil},
		{"every port", wide, map[string]string{"nftfw.expose": "any"}, []string{"nftfw.expose: * from any"}},
		{"tcp unless said", wide, map[string]string{"nftfw.expose.80": "office, 192.0.2.1"}, []string{"nftfw.expose.80: 80/tcp from office,192.0.2.1"}},
		{
			"fewest ports first, then lower first port, then tcp", wide,
			map[string]string{
				"nftfw.expose": "any", "nftfw.expose.8000-8010": "any", "nftfw.expose.8005-8015": "none", "nftfw.expose.1-65535": "none",
				"nftfw.expose.53/udp": "any", "nftfw.expose.53/tcp": "any", "nftfw.expose.9/sctp": "any",
			},
			[]string{
				"nftfw.expose.9/sctp: 9/sctp from any",
				"nftfw.expose.53/tcp: 53/tcp from any",
				"nftfw.expose.53/udp: 53/udp from any",
				"nftfw.expose.8000-8010: 8000-8010/tcp from any",
				"nftfw.expose.8005-8015: 8005-8015/tcp from none",
				"nftfw.expose.1-65535: 1-65535/tcp from none",
				"nftfw.expose: * from any",
			},
		},
		{
			"unknown set", wide,
			map[string]string{"nftfw.expose.80": "offices"},
			[]string{`nftfw.expose.80: 80/tcp refused: no set named "offices" is declared (declared: blocked, office, swarm_nodes, trusted), did you mean office?`},
		},
		{
			"over the ceiling, whole", narrow,
			map[string]string{"nftfw.expose.80": "office,198.51.100.1", "nftfw.expose.81": "192.0.2.1", "nftfw.expose": "any"},
			[]string{
				"nftfw.expose.80: 80/tcp refused: it asks for office,198.51.100.1, and containers.labels lets labels grant only office,192.0.2.0/24",
				"nftfw.expose.81: 81/tcp from 192.0.2.1",
				"nftfw.expose: * refused: it asks for any, and containers.labels lets labels grant only office,192.0.2.0/24",
			},
		},
		{
			"labels none", wide + "containers: {labels: none}\n",
			map[string]string{"nftfw.expose": "none", "nftfw.expose.80": "office"},
			[]string{
				"nftfw.expose.80: 80/tcp refused: it asks for office, and containers.labels lets labels grant nothing (none)",
				"nftfw.expose: * from none",
			},
		},
		{
			"empty values", wide,
			map[string]string{"nftfw.expose": "", "nftfw.egress": " "},
			[]string{
				"nftfw.expose: * refused: its value is empty: " + fromForms,
				"egress refused: its value is empty: write any, none, or a list of sets, addresses, address:port/proto and :port/proto",
			},
		},
		{
			"the same port said twice alike", wide,
			map[string]string{"nftfw.expose.80": "any", "nftfw.expose.80/tcp": "any"},
			[]string{"nftfw.expose.80: 80/tcp from any", "nftfw.expose.80/tcp: 80/tcp from any"},
		},
		{
			"the same port said twice", wide,
			map[string]string{"nftfw.expose.80": "any", "nftfw.expose.80/tcp": "none", "nftfw.expose.80/udp": "any"},
			[]string{
				`nftfw.expose.80: 80/tcp refused: it is about the same port as label "nftfw.expose.80/tcp", which says something else: remove one of them`,
				`nftfw.expose.80/tcp: 80/tcp refused: it is about the same port as label "nftfw.expose.80", which says something else: remove one of them`,
				"nftfw.expose.80/udp: 80/udp from any",
			},
		},
		{
			"the same port said twice, once badly", wide,
			map[string]string{"nftfw.expose.80": "any", "nftfw.expose.80/tcp": "any,none", "nftfw.expose.80-80": "any"},
			[]string{
				`nftfw.expose.80: 80/tcp refused: it is about the same port as label "nftfw.expose.80-80", which says something else: remove one of them`,
				`nftfw.expose.80-80: 80/tcp refused: it is about the same port as label "nftfw.expose.80", which says something else: remove one of them`,
				"nftfw.expose.80/tcp: 80/tcp refused: none stands alone: it lets nobody in, so leave the rest out, or leave none out",
			},
		},
		{
			"ports that are not understood", wide,
			map[string]string{"nftfw.expose.http": "any", "nftfw.expose.0": "any", "nftfw.expose.": "any", "nftfw.expose.*": "any", "nftfw.expose.esp": "any"},
			[]string{
				`problem nftfw.expose.: the port is empty: ` + portForms,
				`problem nftfw.expose.*: for every port the label is nftfw.expose, without a port`,
				`problem nftfw.expose.0: port "0": "0" is out of range: ports go from 1 to 65535`,
				`problem nftfw.expose.esp: port "esp": containers publish ports of tcp, udp and sctp only: write one such as 443/tcp`,
				`problem nftfw.expose.http: "http" is not a port or protocol: ` + portForms,
				"doubt",
			},
		},
		{
			"other keys", wide,
			map[string]string{"nftfw": "x", "nftfw.exposes.80": "any", "NFTFW.expose": "any", "nftfw.": ""},
			[]string{
				"problem NFTFW.expose: there is no such label, did you mean nftfw.expose?; " + labelForms,
				"problem nftfw: there is no such label; " + labelForms,
				"problem nftfw.: there is no such label; " + labelForms,
				"problem nftfw.exposes.80: there is no such label, did you mean nftfw.expose?; " + labelForms,
				"doubt",
			},
		},
		{"egress", wide, map[string]string{"nftfw.egress": "office, :53/udp"}, []string{"egress :53/udp,office"}},
		{"egress none", wide, map[string]string{"nftfw.egress": "none"}, []string{"egress none"}},
		{"egress refused", wide, map[string]string{"nftfw.egress": "192.0.2.1:0"}, []string{`egress refused: egress "192.0.2.1:0": port "0": "0" is out of range: ports go from 1 to 65535`}},
		{
			"too long", wide,
			map[string]string{"nftfw.expose": strings.Repeat("10.0.0.1,", 8000) + "10.0.0.2", "nftfw.egress": strings.Repeat(" ", 65537)},
			[]string{
				"nftfw.expose: * refused: its value is 72008 bytes long, and 65536 are the most: put the addresses into a set",
				"egress refused: its value is 65537 bytes long, and 65536 are the most: put the addresses into a set",
			},
		},
		{
			"as long as can be", wide,
			map[string]string{"nftfw.expose": "any" + strings.Repeat(" ", 65533)},
			[]string{"nftfw.expose: * from any"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, _ := mustParse(t, test.policy)
			got := ParseLabels(test.labels, p)
			if diff := cmp.Diff(test.want, describeLabels(got)); diff != "" {
				t.Errorf("labels (-want +got):\n%s", diff)
			}
			checkLabels(t, got)
		})
	}
}

// checkLabels checks what Labels promises.
func checkLabels(t *testing.T, l Labels) {
	t.Helper()
	if l.Egress != nil && l.EgressErr != nil {
		t.Error("both Egress and EgressErr are set")
	}
	if !slices.IsSortedFunc(l.Expose, func(a, b LabelGrant) int { return a.Ports.Width() - b.Ports.Width() }) {
		t.Error("Expose is not sorted by the number of ports")
	}
	for _, g := range l.Expose {
		if diff := cmp.Diff(From{}, g.From, compareValues); g.Err != nil && diff != "" {
			t.Errorf("%s is refused and says FROM %s", g.Key, g.From)
		}
	}
	for _, p := range l.Problems {
		if p.Severity != SeverityError || p.Label == "" || p.Message == "" {
			t.Errorf("problem %+v lacks something", p)
		}
	}
}

func TestMatchContainer(t *testing.T) {
	labels := map[string]string{
		"com.docker.compose.project": "shop", "com.docker.compose.service": "web", "tier": "front.end", "empty": "",
	}
	for _, test := range []struct {
		name  string
		match Match
		want  bool
	}{
		{"name", Match{Name: "shop-web-1"}, true},
		{"other name", Match{Name: "shop-web"}, false},
		{"star at the end", Match{Name: "shop-*"}, true},
		{"star for nothing", Match{Name: "shop-web-1*"}, true},
		{"star in the middle", Match{Name: "s*-1"}, true},
		{"stars", Match{Name: "*web*"}, true},
		{"stars that take more than the first fit", Match{Name: "*-?"}, true},
		{"question mark", Match{Name: "shop-web-?"}, true},
		{"question mark for nothing", Match{Name: "shop-web-1?"}, false},
		{"case counts", Match{Name: "Shop-*"}, false},
		{"brackets are letters", Match{Name: "shop-web-[1]"}, false},
		{"project", Match{Project: "shop"}, true},
		{"other project", Match{Project: "blog"}, false},
		{"service", Match{Service: "w?b"}, true},
		{"other service", Match{Service: "db"}, false},
		{"image", Match{Image: "nginx*"}, true},
		{"star takes slashes", Match{Image: "n*7"}, true},
		{"image without its tag", Match{Image: "nginx"}, false},
		{"label", Match{Label: map[string]string{"tier": "front.end"}}, true},
		{"label pattern", Match{Label: map[string]string{"tier": "*.end"}}, true},
		{"dot is a letter", Match{Label: map[string]string{"tier": "front?end", "empty": "*"}}, true},
		{"label with another value", Match{Label: map[string]string{"tier": "back"}}, false},
		{"label that is not there", Match{Label: map[string]string{"stage": "*"}}, false},
		{"one of two labels", Match{Label: map[string]string{"tier": "front.end", "stage": "*"}}, false},
		{"all parts", Match{Name: "shop-*", Project: "shop", Service: "web", Image: "nginx*", Label: map[string]string{"tier": "*"}}, true},
		{"all parts but one", Match{Name: "shop-*", Project: "shop", Service: "db", Image: "nginx*"}, false},
		{"nothing", Match{}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := test.match.Container("shop-web-1", "nginx/x:1.27", labels); got != test.want {
				t.Errorf("Container = %v, want %v", got, test.want)
			}
		})
	}
	for name, m := range map[string]Match{"project": {Project: "*"}, "service": {Service: "*"}} {
		if m.Container("web", "nginx", nil) {
			t.Errorf("a pattern of %s matches a container that has none", name)
		}
	}
}

func FuzzLabels(f *testing.F) {
	f.Add("nftfw.expose.80/tcp", "office, 10.0.0.0/8", "nftfw.egress", "[2001:db8::1]:443/tcp,:53")
	f.Add("nftfw.expose.80-90", "any", "nftfw.expose.80-90/tcp", "none")
	f.Add("nftfw.exposed", "", "nftfw.expose", "trusted")
	p, _, err := Parse("f", []byte("version: 1\nsets: {office: [10.0.0.0/8]}\ncontainers: {labels: [office, 10.0.0.0/8]}\n"))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, key1, value1, key2, value2 string) {
		labels := map[string]string{key1: value1, key2: value2}
		before := maps.Clone(labels)
		l := ParseLabels(labels, p)
		if !maps.Equal(before, labels) {
			t.Error("ParseLabels changed its input")
		}
		checkLabels(t, l)
		for _, g := range l.Expose {
			if g.Err == nil && !p.Containers.Grants(g.From) {
				t.Errorf("%s grants %s, over the ceiling", g.Key, g.From)
			}
			if spec, err := ParsePort(g.Ports.String()); err != nil || spec != g.Ports {
				t.Errorf("%s: ports %v are read back as %v, %v", g.Key, g.Ports, spec, err)
			}
			if from, err := ParseFrom(g.From.String(), p.declared); err != nil || from.String() != g.From.String() {
				t.Errorf("%s: FROM %v is read back as %v, %v", g.Key, g.From, from, err)
			}
		}
		if l.Egress != nil {
			if e, err := ParseEgress(l.Egress.String(), p.declared); err != nil || e.String() != l.Egress.String() {
				t.Errorf("egress %v is read back as %v, %v", l.Egress, e, err)
			}
		}
		checkCompiled(t, p, fuzzedInventory(labels))
	})
}
