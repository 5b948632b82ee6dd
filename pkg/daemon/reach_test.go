package daemon

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nftfw/nftfw/pkg/api"
	"github.com/nftfw/nftfw/pkg/inventory"
)

func TestReach(t *testing.T) {
	c := explainWorld(t)
	for _, tt := range []struct {
		name, from string
		want, host []string
	}{
		{"a stranger", "203.0.113.9", []string{"a 198.18.0.1:8080"}, []string{"22/tcp"}},
		{"the office", "203.0.113.130", []string{"a 198.18.0.1:8080", "b 198.18.0.1:8081"}, []string{"22/tcp", "9100/tcp"}},
		{"trusted", "203.0.113.10", []string{"a 198.18.0.1:8080", "b 198.18.0.1:8081"}, []string{"22/tcp", "9100/tcp", "*"}},
		{"as IPv4 in IPv6", "::ffff:203.0.113.9", []string{"a 198.18.0.1:8080"}, []string{"22/tcp"}},
		{"blocked", "203.0.113.66", nil, nil},
		{"over IPv6", "fd00:18::9", []string{"a fd00:18::1:8080"}, []string{"22/tcp"}},
		{"no way back", "192.0.2.1", nil, nil},
	} {
		got, err := c.reach(api.Source{From: tt.from}, c.table)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		var ports, host []string
		for _, p := range got.Ports {
			ports = append(ports, fmt.Sprintf("%s %s:%d", p.Container, p.Address, p.Port))
			// What is listed here is what explain says.
			e, err := c.explain(api.Question{From: tt.from, To: p.Address, Port: p.Port, Proto: 6})
			if err != nil || e.Verdict != "accept" || e.DecidedBy != p.DecidedBy {
				t.Errorf("%s: %s, and explain says %+v, %v", tt.name, ports[len(ports)-1], e, err)
			}
		}
		for _, h := range got.Host {
			host = append(host, h.Ports)
		}
		if diff := cmp.Diff(tt.want, ports); diff != "" {
			t.Errorf("%s: ports (-want +got):\n%s", tt.name, diff)
		}
		if diff := cmp.Diff(tt.host, host); diff != "" {
			t.Errorf("%s: the host's ports (-want +got):\n%s", tt.name, diff)
		}
	}
	if _, err := c.reach(api.Source{From: "office"}, c.table); err == nil {
		t.Error("a name is no address, and was taken for one")
	}
	got, err := c.reach(api.Source{From: "203.0.113.9"}, nil)
	if err != nil || len(got.Ports) != 2 {
		t.Errorf("without a table: %+v, %v, want what is not on loopback open", got, err)
	}
	c.engine.Containers = append(c.engine.Containers, inventory.Container{
		ID: strings.Repeat("e", 64), Name: "e", NetworkMode: "host", Labels: map[string]string{"nftfw.expose.9000-9001/udp": "any"},
	})
	if err := c.reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	hosts, err := c.reach(api.Source{From: "203.0.113.9"}, c.table)
	if err != nil || len(hosts.Ports) != 3 || hosts.Ports[1].Container != "e" || hosts.Ports[2].Port != 9001 || hosts.Ports[2].Proto != "udp" {
		t.Errorf("with a container in the host's network: %+v, %v", hosts, err)
	}
}
