package daemon

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/nftfw/nftfw/pkg/api"
	"github.com/nftfw/nftfw/pkg/inventory"
)

const explainPolicy = `version: 1
sets:
  trusted: [203.0.113.10]
  office: [203.0.113.128/25]
  blocked: [203.0.113.66]
host:
  allow:
    - {ports: [22/tcp], from: any}
    - {ports: [9100/tcp], from: office}
forward:
  default: drop
`

// explainWorld is a host with a wire and docker0, with three containers on it:
// a is open to any, b to the office, l published on loopback.
func explainWorld(t *testing.T) *core { return explainUnder(t, explainPolicy) }

// explainUnder is explainWorld with another policy.
func explainUnder(t *testing.T, policy string) *core {
	w := newWorld(t)
	for _, args := range []string{
		"link set lo up",
		"link add eth0 type veth peer name far0",
		"address add 198.18.0.1/24 dev eth0",
		"address add fd00:18::1/64 dev eth0 nodad",
		"link set eth0 up", "link set far0 up",
		"route add 203.0.113.0/24 via 198.18.0.254",
		"link add docker0 type bridge",
		"address add 172.17.0.1/16 dev docker0",
		"link set docker0 up",
	} {
		if out, err := exec.CommandContext(t.Context(), "ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", args, err, out)
		}
	}
	w.policy(policy)
	c := w.start()
	inv := docker("a", "b", "l")
	inv.Containers[1].Labels = map[string]string{"nftfw.expose": "office"}
	inv.Containers[2].Ports[0].HostIP = netip.MustParseAddr("127.0.0.1")
	wildcard6 := inv.Containers[0].Ports[0]
	wildcard6.HostIP = netip.IPv6Unspecified()
	inv.Containers[0].Ports = append(inv.Containers[0].Ports, wildcard6)
	c.engine = inv
	c.links = dockerLinks()
	w.must(c.reconcile(w.Context()))
	return c
}

func TestExplain(t *testing.T) {
	c := explainWorld(t)
	if _, err := c.addToSet(t.Context(), "blocked", add("203.0.113.67")); err != nil {
		t.Fatal(err)
	}
	const tcp, udp, ping = 6, 17, 1
	tests := []struct {
		name      string
		q         api.Question
		verdict   string
		container string
		decided   string // is in DecidedBy
		remedy    string // is in Remedy
		step      string // is in one of the steps
	}{
		{"to an open container", api.Question{From: "203.0.113.9", To: "198.18.0.1", Port: 8080, Proto: tcp}, "accept", "a", "nftfw.expose", "", "Docker translates 198.18.0.1:8080/tcp to 172.17.0.2:80/tcp"},
		{"the other protocol", api.Question{From: "203.0.113.9", To: "198.18.0.1", Port: 8080, Proto: udp}, "drop", "", "", "nftfw sets add trusted 203.0.113.9", ""},
		{"to a container of the office", api.Question{From: "203.0.113.9", To: "198.18.0.1", Port: 8081, Proto: tcp}, "drop", "b", "nftfw.expose", "nftfw sets add trusted 203.0.113.9", ""},
		{"from the office", api.Question{From: "203.0.113.200", To: "198.18.0.1", Port: 8081, Proto: tcp}, "accept", "b", "nftfw.expose", "", ""},
		{"from a trusted", api.Question{From: "203.0.113.10", To: "198.18.0.1", Port: 8081, Proto: tcp}, "accept", "b", "", "", ""},
		{"through docker-proxy over IPv6", api.Question{From: "fd00:18::9", To: "fd00:18::1", Port: 8080, Proto: tcp}, "accept", "a", "", "", ""},
		{"straight to a container", api.Question{From: "203.0.113.9", To: "172.17.0.3", Port: 80, Proto: tcp}, "drop", "b", "", "", "straight to 172.17.0.3 of container b"},
		{"a host port open to any", api.Question{From: "203.0.113.9", To: "198.18.0.1", Port: 22, Proto: tcp}, "accept", "", "policy.yaml:8", "", ""},
		{"a host port of the office", api.Question{From: "203.0.113.9", To: "198.18.0.1", Port: 9100, Proto: tcp}, "drop", "", "", "nftfw sets add trusted 203.0.113.9", ""},
		{"a ping", api.Question{From: "203.0.113.9", To: "198.18.0.1", Proto: ping}, "accept", "", "", "", ""},
		{"blocked in the policy", api.Question{From: "203.0.113.66", To: "198.18.0.1", Port: 22, Proto: tcp}, "drop", "", "", "take 203.0.113.66 out of the set blocked at", ""},
		{"blocked by command", api.Question{From: "203.0.113.67", To: "198.18.0.1", Port: 22, Proto: tcp}, "drop", "", "", "nftfw sets del blocked 203.0.113.67", ""},
		{"from the host itself", api.Question{From: "198.18.0.1", To: "203.0.113.9", Port: 80, Proto: tcp}, "accept", "", "the host itself", "", ""},
		{"no way back", api.Question{From: "100.64.0.1", To: "198.18.0.1", Port: 22, Proto: tcp}, "drop", "", "routing", "", "no route back to 100.64.0.1"},
		{"no way back, but the interface is named", api.Question{From: "100.64.0.1", To: "198.18.0.1", Port: 22, Proto: tcp, In: "eth0"}, "accept", "", "", "", ""},
		{"a broadcast on a link", api.Question{From: "203.0.113.9", To: "198.18.0.255", Port: 9999, Proto: udp}, "drop", "", "host.default", "", "an address of many"},
		{"a broadcast to an open port", api.Question{From: "203.0.113.9", To: "255.255.255.255", Port: 22, Proto: tcp}, "accept", "", "policy.yaml:8", "", ""},
		{"a multicast", api.Question{From: "203.0.113.9", To: "224.0.0.251", Port: 5353, Proto: udp}, "drop", "", "host.default", "", "an address of many"},
		{"an interface that is not there", api.Question{From: "203.0.113.9", To: "198.18.0.1", Port: 22, Proto: tcp, In: "eth7"}, "accept", "", "", "", "no interface eth7"},
		{"a zone names the interface", api.Question{From: "fe80::9%eth7", To: "fd00:18::1", Port: 22, Proto: tcp}, "accept", "", "", "", "no interface eth7"},
		{"no way there", api.Question{From: "203.0.113.9", To: "100.64.0.1", Port: 22, Proto: tcp}, "drop", "", "routing", "", "no route to 100.64.0.1"},
		{"a mapped address", api.Question{From: "::ffff:203.0.113.9", To: "::ffff:198.18.0.1", Port: 22, Proto: tcp}, "accept", "", "", "", ""},
	}
	for _, tt := range tests {
		got, err := c.explain(tt.q)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		var steps strings.Builder
		for _, s := range got.Steps {
			steps.WriteString(s.Where + ": " + s.What + ": " + s.Result + "\n")
		}
		if got.Verdict != tt.verdict || got.Container != tt.container {
			t.Errorf("%s: %s, container %q, want %s, %q\n%s", tt.name, got.Verdict, got.Container, tt.verdict, tt.container, &steps)
		}
		if !strings.Contains(got.DecidedBy, tt.decided) || got.DecidedBy == "" {
			t.Errorf("%s: decided by %q, want %q\n%s", tt.name, got.DecidedBy, tt.decided, &steps)
		}
		if !strings.Contains(got.Remedy, tt.remedy) || tt.verdict == "accept" && got.Remedy != "" {
			t.Errorf("%s: remedy %q, want %q", tt.name, got.Remedy, tt.remedy)
		}
		if !strings.Contains(steps.String(), tt.step) || len(got.Steps) == 0 {
			t.Errorf("%s: no step speaks of %q:\n%s", tt.name, tt.step, &steps)
		}
	}
}

// Whatever refuses a packet is named by its place, and so is what to change, where no
// set would open it.
func TestExplainSaysWhatToChange(t *testing.T) {
	const restrictive = `version: 1
mode: %s
sets: {office: [203.0.113.128/25], blocked: [203.0.113.66]}
host: {ping: false}
containers:
  default: none
  to_host: [53/udp]
  to_containers: none
  egress: [198.51.100.0/24]
  rules:
    - {match: {name: a}, expose: {80/tcp: none}}
    - {match: {name: l}, egress: none}
forward: {default: drop}
`
	const tcp, udp, ping = 6, 17, 1
	tests := []struct {
		name            string
		q               api.Question
		decided, remedy string
	}{
		{"a rule of none", api.Question{From: "203.0.113.9", To: "198.18.0.1", Port: 8080, Proto: tcp}, "policy.yaml:11, for container a", "change DIR/policy.yaml:11, then nftfw apply"},
		{"a label of none", api.Question{From: "203.0.113.9", To: "198.18.0.1", Port: 8081, Proto: tcp}, "label nftfw.expose of container b", "change label nftfw.expose, and create the container anew"},
		{"a default of none", api.Question{From: "203.0.113.9", To: "198.18.0.1", Port: 8083, Proto: tcp}, "containers.default, for container d", "change containers.default in DIR/policy.yaml, then nftfw apply"},
		{"straight to a container", api.Question{From: "203.0.113.9", To: "172.17.0.3", Port: 80, Proto: tcp}, "closed until opened", "nothing opens a container's own address"},
		{"the loopback", api.Question{From: "203.0.113.9", To: "127.0.0.1", Port: 80, Proto: tcp, In: "eth0"}, "loopback", "nothing opens the loopback"},
		{"egress by default", api.Question{From: "172.17.0.2", To: "203.0.113.9", Port: 80, Proto: tcp, In: "docker0"}, "containers.egress, egress of container a", "change containers.egress in DIR/policy.yaml, then nftfw apply"},
		{"egress by a rule", api.Question{From: "172.17.0.4", To: "203.0.113.9", Port: 80, Proto: tcp, In: "docker0"}, "policy.yaml:12, egress of container l", "change DIR/policy.yaml:12, then nftfw apply"},
		{"egress by a label", api.Question{From: "172.17.0.3", To: "203.0.113.9", Port: 80, Proto: tcp, In: "docker0"}, "label nftfw.egress, egress of container b", "change label nftfw.egress, and create the container anew"},
		{"nobody's address", api.Question{From: "172.17.0.99", To: "203.0.113.9", Port: 80, Proto: tcp, In: "docker0"}, "no known container's", "it opens by itself"},
		{"a host port from a container", api.Question{From: "172.17.0.2", To: "198.18.0.1", Port: 22, Proto: tcp, In: "docker0"}, "containers.to_host", "change containers.to_host in DIR/policy.yaml, then nftfw apply"},
		{"through the host", api.Question{From: "203.0.113.9", To: "198.18.0.77", Port: 80, Proto: udp}, "forward.default", "change forward.default in DIR/policy.yaml, then nftfw apply"},
		{"a ping", api.Question{From: "203.0.113.9", To: "198.18.0.1", Proto: ping}, "host.ping", "nftfw sets add trusted 203.0.113.9"},
		{"a blocked source", api.Question{From: "203.0.113.66", To: "198.18.0.1", Port: 22, Proto: tcp}, "policy.yaml:3", "take 203.0.113.66 out of the set blocked"},
	}
	for _, mode := range []string{"enforce", "observe"} {
		c := explainUnder(t, fmt.Sprintf(restrictive, mode))
		c.engine = docker("a", "b", "l", "d")
		c.engine.Containers[3].Labels = nil
		c.engine.Containers[1].Labels = map[string]string{"nftfw.expose": "none", "nftfw.egress": "none"}
		if err := c.reconcile(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, tt := range tests {
			got, err := c.explain(tt.q)
			verdict, enforced := "drop", ""
			if mode == "observe" {
				verdict, enforced = "accept", "drop"
			}
			if err != nil || got.Verdict != verdict || got.Enforced != enforced {
				t.Errorf("%s, %s: %+v, %v", mode, tt.name, got, err)
			}
			if !strings.Contains(got.DecidedBy, tt.decided) {
				t.Errorf("%s, %s: decided by %q, want %q", mode, tt.name, got.DecidedBy, tt.decided)
			}
			if remedy := strings.ReplaceAll(tt.remedy, "DIR", filepath.Dir(c.cfg.PolicyPath)); !strings.HasPrefix(got.Remedy, remedy) {
				t.Errorf("%s, %s: remedy %q, want %q", mode, tt.name, got.Remedy, remedy)
			}
		}
	}
}

// What passes no hook of this host is not decided by its rules.
func TestExplainWhatStaysInside(t *testing.T) {
	c := explainUnder(t, "version: 1\nsets: {blocked: [172.17.0.0/16]}\n")
	for _, tt := range []struct{ name, to, seen, verdict, where string }{
		{"switched by the bridge", "172.17.0.3", "0", "accept", "bridge"},
		{"switched while br_netfilter looks on", "172.17.0.3", "1", "drop", "refuse_blocked"},
		{"to itself", "172.17.0.2", "1", "accept", "loopback"},
	} {
		// Without the module there is no such file, and nothing is looked at.
		err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-iptables", []byte(tt.seen), 0)
		if err != nil && tt.seen == "1" {
			t.Logf("NOT TESTED: %s: %v", tt.name, err)
			continue
		}
		got, err := c.explain(api.Question{From: "172.17.0.2", To: tt.to, Port: 80, Proto: 6})
		if err != nil || got.Verdict != tt.verdict || got.Steps[len(got.Steps)-1].Where != tt.where {
			t.Errorf("%s: %+v, %v, want %s by %s", tt.name, got, err, tt.verdict, tt.where)
		}
	}
}

// A container that is blocked cannot answer, whoever asks.
func TestExplainBlockedAnswer(t *testing.T) {
	c := explainUnder(t, "version: 1\nsets: {trusted: [203.0.113.0/24, \"fd00:18::/64\"], blocked: [172.17.0.2]}\n")
	for _, q := range []api.Question{
		{From: "203.0.113.9", To: "198.18.0.1", Port: 8080, Proto: 6},
		{From: "fd00:18::9", To: "fd00:18::1", Port: 8080, Proto: 6}, // through docker-proxy
	} {
		got, err := c.explain(q)
		if err != nil || got.Verdict != "drop" || !strings.HasPrefix(got.Remedy, "take 172.17.0.2 out of the set blocked") {
			t.Errorf("from %s: %+v, %v", q.From, got, err)
		}
	}
	if got, err := c.explain(api.Question{From: "203.0.113.9", To: "198.18.0.1", Port: 8081, Proto: 6}); err != nil || got.Verdict != "accept" {
		t.Errorf("another container: %+v, %v", got, err)
	}
}

// What a container sends to another's published port is docker-proxy's, so
// that its egress is compared with the host's address and port.
func TestExplainBetweenBridges(t *testing.T) {
	c := explainUnder(t, "version: 1\ncontainers: {egress: [\":8080/tcp\"]}\n")
	c.engine.Networks = append(c.engine.Networks, inventory.Network{ID: "m", Name: "other", Driver: "bridge", Bridge: "br-m"})
	c.engine.Containers = append(c.engine.Containers, inventory.Container{
		ID: strings.Repeat("d", 64), Name: "d", NetworkMode: "other",
		Endpoints: []inventory.Endpoint{{NetworkID: "m", Addr4: netip.MustParseAddr("172.30.0.2")}},
	})
	c.links = append(c.links, inventory.Link{Index: 5, Name: "br-m", Kind: "bridge"},
		inventory.Link{Index: 6, Name: "veth2", Kind: "veth", Master: 5, Sandbox: "/run/docker/netns/2"})
	if err := c.reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	got, err := c.explain(api.Question{From: "172.30.0.2", To: "198.18.0.1", Port: 8080, Proto: 6, In: "br-m"})
	if err != nil || got.Verdict != "accept" || got.Container != "a" {
		t.Fatalf("%+v, %v, want it accepted", got, err)
	}
	if last := got.Steps[len(got.Steps)-1]; !strings.Contains(last.What, "translate it to 172.17.0.2:80/tcp: then the verdict is drop") {
		t.Errorf("the other way is not named: %+v", got.Steps)
	}
	// From release 29 on there is one way.
	c.engine.Release = translatesAll
	got, err = c.explain(api.Question{From: "172.30.0.2", To: "198.18.0.1", Port: 8080, Proto: 6, In: "br-m"})
	if err != nil || got.Verdict != "drop" || got.Container != "a" || !strings.Contains(got.DecidedBy, "containers.egress") {
		t.Errorf("%+v, %v, want it dropped", got, err)
	}
}

// Who is in a set is told by which entry, and a container's own word counts before the
// default.
func TestExplainNamesTheWord(t *testing.T) {
	c := explainUnder(t, `version: 1
sets:
  trusted: [203.0.113.10]
  blocked: [203.0.113.66]
host:
  allow:
    - {ports: [80/tcp], from: [203.0.113.128/25]}
    - {ports: [81/tcp], from: none}
containers:
  rules:
    - {match: {name: b}, egress: [203.0.113.9]}
`)
	c.engine = docker("a", "b")
	c.engine.Containers[0].Labels = map[string]string{"nftfw.egress": "203.0.113.9"}
	if err := c.reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.addToSet(t.Context(), "trusted", add("203.0.113.20")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.addToSet(t.Context(), "blocked", add("203.0.113.67")); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		from, to string
		port     uint16
		verdict  string
		decided  []string
	}{
		{"203.0.113.10", "198.18.0.1", 80, "accept", []string{"policy.yaml:3, 203.0.113.10 in the set trusted"}},
		{"203.0.113.20", "198.18.0.1", 80, "accept", []string{"203.0.113.20 in the set trusted, added by command"}},
		{"203.0.113.20", "198.18.0.1", 9999, "accept", []string{"203.0.113.20 in the set trusted, added by command"}},
		{"203.0.113.130", "198.18.0.1", 80, "accept", []string{"policy.yaml:7"}},
		{"203.0.113.10", "198.18.0.1", 81, "drop", []string{"policy.yaml:8"}},
		{"203.0.113.66", "198.18.0.1", 80, "drop", []string{"policy.yaml:4, 203.0.113.66 in the set blocked"}},
		{"203.0.113.67", "198.18.0.1", 80, "drop", []string{"203.0.113.67 in the set blocked, added by command"}},
		{"172.17.0.2", "203.0.113.9", 80, "accept", []string{"nftfw.egress", "container a"}},
		{"172.17.0.2", "203.0.113.8", 80, "drop", []string{"nftfw.egress", "container a"}},
		{"172.17.0.3", "203.0.113.9", 80, "accept", []string{"policy.yaml:11", "container b"}},
	} {
		got, err := c.explain(api.Question{From: tt.from, To: tt.to, Port: tt.port, Proto: 6})
		if err != nil || got.Verdict != tt.verdict {
			t.Errorf("%+v: %+v, %v", tt, got, err)
		}
		for _, part := range tt.decided {
			if !strings.Contains(got.DecidedBy, part) {
				t.Errorf("%s to %s: decided by %q, want %q", tt.from, tt.to, got.DecidedBy, part)
			}
		}
	}
}

// The port of a container in the host's network is that container's.
func TestExplainHostNetwork(t *testing.T) {
	c := explainWorld(t)
	c.engine.Containers = append(c.engine.Containers, inventory.Container{
		ID: strings.Repeat("e", 64), Name: "e", NetworkMode: "host",
		Labels: map[string]string{"nftfw.expose.9000": "office"},
	})
	if err := c.reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		from, container, verdict, decided string
		port                              uint16
	}{
		{"203.0.113.200", "e", "accept", "nftfw.expose.9000", 9000},
		{"203.0.113.9", "e", "drop", "nftfw.expose.9000", 9000},
		{"203.0.113.9", "", "drop", "host.default", 9001},
	} {
		got, err := c.explain(api.Question{From: tt.from, To: "198.18.0.1", Port: tt.port, Proto: 6})
		if err != nil || got.Container != tt.container || got.Verdict != tt.verdict || !strings.Contains(got.DecidedBy, tt.decided) {
			t.Errorf("%+v: %+v, %v", tt, got, err)
		}
	}
}

// A port that two containers claim is nobody's, and ports says so of both.
func TestPortsThatTwoContainersClaim(t *testing.T) {
	c := explainWorld(t)
	for i, labels := range []map[string]string{
		{"nftfw.expose.7000": "any", "nftfw.expose.8080": "office"}, // a publishes 8080
		{"nftfw.expose.7000": "office", "nftfw.expose.7001": "office"},
	} {
		c.engine.Containers = append(c.engine.Containers, inventory.Container{
			ID: strings.Repeat(strconv.Itoa(i), 64), Name: "h" + strconv.Itoa(i), NetworkMode: "host", Labels: labels,
		})
	}
	if err := c.reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{ // From, and what is in Error
		"h0 7000": "none: claim the same", "h1 7000": "none: claim the same", "h1 7001": "office: ",
		"h0 8080": "none: another container's", "a 8080": "any: ",
	}
	for _, p := range c.ports(c.table).Ports.Ports {
		at := p.Container + " " + strconv.Itoa(int(p.HostPort))
		from, why, _ := strings.Cut(want[at], ": ")
		if _, asked := want[at]; asked && (p.From[0] != from || !strings.Contains(p.Error, why) || why == "" && p.Error != "") {
			t.Errorf("%s: from %v, error %q, want %s", at, p.From, p.Error, want[at])
		}
		delete(want, at)
	}
	if len(want) > 0 {
		t.Errorf("not listed: %v", want)
	}
}

func TestExplainRefuses(t *testing.T) {
	c := explainWorld(t)
	for _, q := range []api.Question{
		{From: "here", To: "198.18.0.1"},
		{From: "198.18.0.1", To: "198.18.0.1/24"},
		{From: "198.18.0.9", To: "fd00:18::1"},
	} {
		if got, err := c.explain(q); err == nil || asAPIError(err).Kind != api.KindInvalid {
			t.Errorf("explain %s to %s = %+v, %v", q.From, q.To, got, err)
		}
	}
}

func TestExplainWithoutATable(t *testing.T) {
	c := explainWorld(t)
	if _, err := c.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	got, err := c.explain(api.Question{From: "203.0.113.9", To: "198.18.0.1", Port: 8081, Proto: 6})
	if err != nil || got.Verdict != "accept" || got.DecidedBy != "nothing is enforced" {
		t.Errorf("explain = %+v, %v", got, err)
	}
}

func TestPorts(t *testing.T) {
	c := explainWorld(t)
	c.engine.Containers = append(c.engine.Containers, inventory.Container{
		ID: strings.Repeat("f", 64), Name: "typo", NetworkMode: "bridge", Labels: map[string]string{"nftfw.expose": "offce"},
		Endpoints: []inventory.Endpoint{{NetworkID: "n", Addr4: netip.MustParseAddr("172.17.0.9")}},
		Ports:     []inventory.Port{{HostIP: netip.IPv4Unspecified(), HostPort: 99, ContainerPort: 90, Proto: 17}, {ContainerPort: 91, Proto: 6}},
	})
	got := map[string]api.Port{}
	c.compile()
	ports := c.ports(nil)
	for _, p := range ports.Ports.Ports {
		if p.HostIP != "::" {
			got[p.Container] = p
		}
	}
	if len(ports.Ports.Ports) != 5 {
		t.Errorf("%d ports, want 5: four and one for IPv6, none for what is only exposed", len(ports.Ports.Ports))
	}
	for name, want := range map[string][]string{"a": {"any"}, "b": {"office"}, "l": {"none"}, "typo": {"trusted"}} {
		if p := got[name]; strings.Join(p.From, ",") != strings.Join(want, ",") {
			t.Errorf("%s from %v, want %v", name, p.From, want)
		}
	}
	p := got["typo"]
	if p.HostPort != 99 || p.ContainerPort != 90 || p.Proto != "udp" || p.ContainerIP != "172.17.0.9" || !strings.Contains(p.Error, "offce") {
		t.Errorf("port of the label mistake = %+v", p)
	}
	if len(ports.Problems) == 0 || ports.Problems[0].Container != "typo" {
		t.Errorf("problems = %+v", ports.Problems)
	}
}
