package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nftfw/nftfw/integration/lab"
)

// hammer starts to hammer addresses from a client; the function that it
// returns ends that, and demands that nothing was reached.
func (s *set) hammer(n *lab.Node, to ...netip.AddrPort) (unreached func()) {
	s.t.Helper()
	h := n.Hammer(to...)
	return func() {
		s.t.Helper()
		tally, err := h.Stop()
		if err != nil {
			s.t.Error(err)
		}
		if tally.Attempts == 0 || tally.Reached() > 0 {
			s.t.Errorf("%s reached %v of %d attempts, first at %s", n.Name, tally.Connected, tally.Attempts, tally.First)
		}
		s.t.Logf("%s: %d attempts, %d refused, %d unanswered", n.Name, tally.Attempts, tally.Refused, tally.Silent)
	}
}

func hostPort(port uint16) []netip.AddrPort {
	return []netip.AddrPort{netip.AddrPortFrom(lab.HostV4, port), netip.AddrPortFrom(lab.HostV6, port)}
}

// Nothing is opened between the making of a container and the moment its
// policy is known, nor when it goes.
func TestScenario21HammeredWhileStarting(t *testing.T) {
	for name, flags := range map[string][]string{"proxied IPv6": nil, "forwarded IPv6": dualStack} {
		t.Run(name, func(t *testing.T) {
			s := scene(t, "version: 1", flags...)
			unreached := s.hammer(s.stranger, hostPort(8080)...)
			for range 5 {
				s.run("plain", "-p", "8080:80")
				s.ready("plain", "8080")
				s.docker("rm", "-f", "plain")
			}
			for range 5 {
				s.run("labelled", "-p", "8080:80", "--label",
					fmt.Sprintf("nftfw.expose=%s,%s", s.permitted.V4, s.permitted.V6))
				s.open(s.permitted.Namespace, "labelled", hostPorts("8080"))
				s.docker("rm", "-f", "labelled")
			}
			unreached()
		})
	}
}

// others lists the ruleset without the table of nftfw, and without counters.
func (s *set) others() string {
	s.t.Helper()
	out, err := s.Host.Run(s.ctx(), "nft", "-s", "list", "ruleset")
	if err != nil {
		s.t.Fatal(err)
	}
	var b strings.Builder
	ours := false
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "table ") {
			ours = line == "table inet nftfw {\n"
		}
		if !ours {
			b.WriteString(line)
		}
	}
	return b.String()
}

func TestScenario26OthersRulesAreTheirs(t *testing.T) {
	s := bare(t)
	s.run("web", "-p", "8080:80", "--label", "nftfw.expose=any")
	s.run("db", "-p", "8081:80")
	if err := s.Host.NFT(s.ctx(), "add table inet theirs; add chain inet theirs c { type filter hook input priority 5; policy accept; }; add rule inet theirs c tcp dport 1 counter drop"); err != nil {
		t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := s.Host.NFT(context.Background(), "delete table inet theirs"); err != nil {
			t.Error(err)
		}
	})
	before := s.others()
	if !strings.Contains(before, "theirs") || !strings.Contains(before, "DOCKER") && !strings.Contains(before, "docker-bridges") {
		t.Fatalf("there is nothing to leave alone:\n%s", before)
	}
	same := func(when string) {
		t.Helper()
		if diff := cmp.Diff(before, s.others()); diff != "" {
			t.Errorf("%s the others' rules differ (-before +now):\n%s", when, diff)
		}
	}
	s.start("version: 1")
	s.open(s.stranger.Namespace, "web", hostPorts("8080"))
	same("while nftfw runs")
	s.nftfw("sets", "add", "trusted", s.permitted.V4.String())
	s.nftfw("reload")
	same("after changes")
	if err := s.fw.Kill(s.ctx()); err != nil {
		t.Fatal(err)
	}
	same("with nftfw dead")
	if err := s.fw.Start(s.ctx()); err != nil {
		t.Fatal(err)
	}
	s.closed(s.stranger.Namespace, hostPorts("8081"))
	s.nftfw("down", "--yes")
	same("after nftfw down")
	if all, err := s.Host.Run(s.ctx(), "nft", "list", "tables"); err != nil || strings.Contains(all, "inet nftfw") {
		t.Errorf("after nftfw down (%v):\n%s", err, all)
	}
	s.open(s.stranger.Namespace, "db", hostPorts("8081"))
}

// everything uses as much of the policy language as makes different rules.
const everything = `version: 1
interfaces: {trusted: [wg0, "tailscale*"]}
sets:
  trusted: [198.18.0.10, "fd00:18::10", 192.0.2.5-192.0.2.77]
  blocked: [198.18.0.13, "fd00:18::13"]
  office: {comment: head office, entries: [198.18.1.0/24, "fd00:18::1:0/112"]}
host:
  allow:
    - {ports: [9100/tcp], from: any}
    - {ports: [9101/tcp, 9200-9300/udp], from: [office, 198.18.0.66]}
    - {in: virbr0, ports: [53/udp], from: any}
    - {ports: [esp, 47/proto], from: office}
containers:
  to_containers: same-project
  to_host: [53/udp, 9100/tcp]
  rules:
    - {match: {name: "web"}, expose: {80/tcp: office}}
    - {match: {name: db}, expose: {"*": none}, egress: [office, "198.18.0.10:443/tcp", ":53/udp"]}
    - {match: {name: twice, host_ip: 198.18.0.1}, expose: {80/tcp: any}}
forward: {default: drop, allow: [{in: eth0, out: wg0, from: office}]}
log: {drops: true, rate: 10/second}
`

func TestScenario30RenderAndExplain(t *testing.T) {
	s := scene(t, everything)
	s.service("host", "tcp:9100", "tcp:9101", "tcp:9102")
	s.run("web", "-p", "8080:80")
	s.run("db", "-p", "8081:80")
	s.run("labelled", "-p", "8082:80", "-p", "127.0.0.1:8085:80", "--label", "nftfw.expose=198.18.0.66,fd00:18::66")
	s.run("open", "-p", "8083:80", "--label", "nftfw.expose=any")
	s.run("twice", "-p", "8084:80")
	s.open(s.permitted.Namespace, "open", hostPorts("8083"))
	s.open(s.stranger.Namespace, "twice", addrPorts(lab.HostV4, "8084"))

	t.Run("render", func(t *testing.T) {
		rendered := s.nftfw("render")
		check := s.Host.Command(s.ctx(), "nft", "-c", "-f", "-")
		check.Stdin = strings.NewReader(rendered)
		if out, err := check.CombinedOutput(); err != nil {
			t.Fatalf("nft -c -f: %v\n%s\n%s", err, out, rendered)
		}
		// A client's namespace has no rules.
		if err := s.routed.NFT(s.ctx(), rendered); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.routed.NFT(context.Background(), "delete table inet nftfw"); err != nil {
				t.Error(err)
			}
		})
		// A connection that the test before left behind was cut when nftfw began:
		// render prints what policy, sets and containers make, and no such flow.
		if diff := cmp.Diff(slices.DeleteFunc(listing(t, s.Host), isCut), listing(t, s.routed)); diff != "" {
			t.Errorf("the table loaded from render's text differs (-daemon +render):\n%s", diff)
		}
	})
	t.Run("explain", func(t *testing.T) { testExplain(s.in(t)) })
}

// listing is nftfw's table in a namespace without counters, its sets, maps and
// chains in the order of their names: the kernel lists them as they were made.
func listing(t testing.TB, n *lab.Node) []string {
	t.Helper()
	objects, err := tryListing(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

// isCut reports whether an object of a listing is there for flows that were cut,
// which stay for hours.
func isCut(object string) bool {
	return strings.HasPrefix(object, "chain cut_") || strings.HasPrefix(object, "set cut4 ") || strings.HasPrefix(object, "set cut6 ")
}

// tryListing is listing where there may be no table.
func tryListing(ctx context.Context, n *lab.Node) ([]string, error) {
	out, err := n.Run(ctx, "nft", "-s", "list", "table", "inet", "nftfw")
	if err != nil {
		return nil, err
	}
	out = regexp.MustCompile(`counter packets \d+ bytes \d+`).ReplaceAllString(out, "counter")
	// Objects end with a brace at their own depth.
	objects := strings.SplitAfter(out, "\n\t}\n")
	for i, o := range objects {
		objects[i] = strings.TrimSpace(strings.TrimPrefix(o, "table inet nftfw {\n"))
	}
	slices.Sort(objects)
	return objects, nil
}

// testExplain asks explain about packets and then sends them.
func testExplain(s *set) {
	office, blocked := newPair("198.18.1.20", "fd00:18::1:20"), newPair("198.18.0.13", "fd00:18::13")
	s.lend(s.stranger, office, blocked)
	probes := hostPorts("9100", "9101", "9102", "8080", "8081", "8082", "8083", "8084")
	own, trusted := newPair(s.stranger.V4.String(), s.stranger.V6.String()), newPair(s.permitted.V4.String(), s.permitted.V6.String())
	for _, src := range []struct {
		node *lab.Node
		pair
	}{{s.stranger, own}, {s.stranger, office}, {s.stranger, blocked}, {s.permitted, trusted}} {
		s.each(from(probes, src.v4, src.v6), func(p lab.Probe) error {
			o := s.fw.Exec(s.ctx(), "explain", "--from", p.From.String(), "--to", p.To.String()+"/"+p.Network, "--in", "eth0", "--json")
			var said struct{ Verdict string }
			if err := json.Unmarshal([]byte(o.Stdout), &said); err != nil {
				return fmt.Errorf("%w: %s", err, o)
			}
			want := "drop"
			if r := src.node.Probe(s.ctx(), p); r.Reached() {
				want = "accept"
			}
			if said.Verdict != want {
				return fmt.Errorf("%s: the kernel says %s, and %s", p, want, o)
			}
			return nil
		})
	}
}
