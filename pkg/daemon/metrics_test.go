package daemon

import (
	"net/netip"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nftfw/nftfw/nft"
	"github.com/nftfw/nftfw/pkg/api"
	"github.com/nftfw/nftfw/pkg/ruleset"
	"github.com/nftfw/nftfw/policy"
)

// collector makes a prometheus.Collector of a function.
type collector func(ch chan<- prometheus.Metric)

func (c collector) Describe(ch chan<- *prometheus.Desc) {
	ch <- descPortAccepted
	ch <- descPortRefused
}
func (c collector) Collect(ch chan<- prometheus.Metric) { c(ch) }

// A port of a container is told once, whatever leads to it, and what was
// accepted never goes back but when the kernel's counter does.
func TestPortMetrics(t *testing.T) {
	inside := policy.Place{Map: "published4", Refused: "refused4", IPv4: true, Key: ruleset.Key{Addr: netip.MustParseAddr("172.17.0.2"), Proto: 6, Port: 80}}
	at := func(port uint16) policy.Place {
		return policy.Place{Map: "host_any4", Refused: "refused_any4", IPv4: true, Key: ruleset.Key{Proto: 6, Port: port}}
	}
	owned := ruleset.Element{Comment: "a"}
	table := &ruleset.Table{Sets: []*ruleset.Set{
		{Name: "host_any4", Elements: map[ruleset.Key]ruleset.Element{at(8080).Key: owned, at(8081).Key: {Comment: "somebody else's"}}},
		{Name: "published4", Elements: map[ruleset.Key]ruleset.Element{inside.Key: owned}},
	}}
	ports := countedPorts{
		Ports: api.Ports{Ports: []api.Port{{Container: "web", ContainerPort: 80, Proto: "tcp"}, {Container: "web", ContainerPort: 80, Proto: "tcp"}}},
		tally: tally{table: table, owners: []string{"a", "a"}, places: [][]policy.Place{{inside, at(8080)}, {inside, at(8081)}}},
	}
	m := &metrics{}
	for _, step := range []struct {
		name                      string
		asked, refused, hostAsked uint64
		accepted                  float64
	}{
		{"first", 10, 3, 2, 9},
		{"refused since, and read before it was asked", 10, 4, 2, 9},
		{"more", 15, 4, 2, 13},
		{"anew", 1, 0, 0, 1},
	} {
		counts := nft.Counts{Sets: map[string]map[ruleset.Key]nft.Count{
			"published4": {inside.Key: {Packets: step.asked}}, "refused4": {inside.Key: {Packets: step.refused}},
			"host_any4": {at(8080).Key: {Packets: step.hostAsked}, at(8081).Key: {Packets: 1000}},
		}}
		registry := prometheus.NewRegistry()
		registry.MustRegister(collector(func(ch chan<- prometheus.Metric) { m.ports(sink{ch}, ports, counts) }))
		families, err := registry.Gather()
		if err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		for _, f := range families {
			want := step.accepted
			if f.GetName() == "nftfw_port_refused_total" {
				want = float64(step.refused)
			}
			if n := len(f.GetMetric()); n != 1 {
				t.Fatalf("%s: %s is told %d times", step.name, f.GetName(), n)
			}
			if got := f.GetMetric()[0].GetCounter().GetValue(); got != want {
				t.Errorf("%s: %s is %v, want %v", step.name, f.GetName(), got, want)
			}
		}
		if len(families) != 2 {
			t.Errorf("%s: %d metrics", step.name, len(families))
		}
	}
}
