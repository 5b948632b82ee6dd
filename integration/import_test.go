package integration

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/nftfw/nftfw/integration/lab"
)

// importSources are who asks in the tests of import, and importPorts what for:
// ports of the host and published ones, of which 8125 is udp.
var (
	importSources = []string{
		"192.0.2.10", "192.0.2.66", "198.51.100.64", "203.0.113.5", "10.1.2.3",
		"2001:db8:1::7", "2001:db8:2::7",
	}
	importPorts = []string{"22", "9999", "8080", "8443", "8125/udp"}
)

// importStage is a host with services and containers and no nftfw.
func importStage(t *testing.T) *set {
	s := bare(t)
	for _, a := range importSources {
		s.lend(s.stranger, pair{v4: netip.MustParseAddr(a)})
	}
	nets := []string{"192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "10.1.2.0/24", "2001:db8::/32"}
	var add, del []string
	for _, n := range nets {
		add, del = append(add, "route add "+n+" dev eth0"), append(del, "route del "+n+" dev eth0")
	}
	s.ip(s.Host.Namespace, add, del)
	s.service("host", "tcp:22", "tcp:9999")
	s.runSpec(lab.Spec{
		Name: "web", Options: []string{"-p", "8080:80", "-p", "8443:443", "-p", "8125:8125/udp"},
		Args: []string{"tcp:80", "tcp:443", "udp:8125"},
	})
	s.open(s.stranger.Namespace, "", visits{importSources, "", importPorts, nil}.probes())
	s.host("iptables", "-F", "DOCKER-USER") // older engines put a RETURN into it
	return s
}

// iptables loads rules beside those of the engine, of either family.
func (s *set) iptables(command, rules string) error {
	cmd := s.Host.Command(s.ctx(), command, "--noflush")
	cmd.Stdin = strings.NewReader(rules)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s\n%s", command, err, stderr.String(), rules)
	}
	return nil
}

// host runs a command on the host that must succeed.
func (s *set) host(name string, args ...string) string {
	s.t.Helper()
	out, err := s.Host.Run(s.ctx(), name, args...)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// reach asks every port from every source, and gives those that answered.
func (s *set) reach() map[string]bool {
	var mu sync.Mutex
	var wg sync.WaitGroup
	reached := map[string]bool{}
	for _, p := range (visits{importSources, "", importPorts, nil}).probes() {
		wg.Go(func() {
			if s.stranger.Probe(s.ctx(), p).Reached() {
				mu.Lock()
				defer mu.Unlock()
				reached[p.String()] = true
			}
		})
	}
	wg.Wait()
	return reached
}

// imported saves the host's rules with its own tools and imports them, to be
// enforced.
func (s *set) imported() string {
	s.t.Helper()
	dir := s.t.TempDir()
	var args []string
	for name, text := range map[string]string{
		"v4": s.host("iptables-save"), "v6": s.host("ip6tables-save"), "sets": s.host("ipset", "save"),
	} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			s.t.Fatal(err)
		}
		args = append(args, file)
	}
	slices.Sort(args)
	policy := s.nftfw(append([]string{"import"}, args...)...)
	return strings.Replace(policy, "\nmode: observe", "\nmode: enforce", 1)
}

// forget removes the rules of iptables that are not the engine's.
func (s *set) forget() {
	s.t.Helper()
	s.host("iptables", "-F", "DOCKER-USER")
	s.host("iptables", "-F", "INPUT")
	s.host("iptables", "-F", "FILTERS")
	s.host("iptables", "-t", "raw", "-F", "PREROUTING")
	for _, chain := range []string{"INPUT", "FORWARD"} {
		s.host("ip6tables", "-F", chain)
		s.host("ip6tables", "-P", chain, "ACCEPT")
	}
}

func TestImport(t *testing.T) {
	s := importStage(t)
	s.prepare("")
	s.host("ipset", "create", "office", "hash:net")
	s.host("ipset", "add", "office", "198.51.100.64/26")
	if err := s.iptables("iptables-restore", `*filter
:FILTERS - [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -j FILTERS
-A DOCKER-USER -i eth0 -j FILTERS
-A DOCKER-USER -j RETURN
-A FILTERS -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FILTERS -s 192.0.2.10/32 -j ACCEPT
-A FILTERS -p tcp -m tcp --dport 22 -j ACCEPT
-A FILTERS -p tcp -m multiport --dports 80,443 -m set --match-set office src -j ACCEPT
-A FILTERS -p udp -m udp --dport 8125 -s 203.0.113.0/24 -j ACCEPT
-A FILTERS -j REJECT
COMMIT
`); err != nil {
		t.Fatal(err)
	}
	if err := s.iptables("ip6tables-restore", `*filter
:INPUT DROP [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p ipv6-icmp -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
-A INPUT -s 2001:db8:1::/48 -j ACCEPT
COMMIT
`); err != nil {
		t.Fatal(err)
	}
	before := s.reach()
	policy := s.imported()
	s.forget()
	if err := s.fw.WritePolicy(policy); err != nil {
		t.Fatal(err)
	}
	if o := s.fw.Exec(s.ctx(), "check"); o.Status != 0 {
		t.Fatal(o)
	}
	if err := s.fw.Start(s.ctx()); err != nil {
		t.Fatal(err)
	}
	// Rules like these have a counterpart each.
	s.compareReach(before, s.reach(), policy, true)
	if len(before) < 10 || len(before) > 25 {
		t.Errorf("%d ways were open before: %v", len(before), before)
	}
}

// compareReach demands that nothing is open that was closed before, and with
// same nothing closed that was open.
func (s *set) compareReach(before, after map[string]bool, policy string, same bool) {
	s.t.Helper()
	bad := false
	for way := range after {
		if !before[way] {
			bad = true
			s.t.Errorf("%s: open, and was closed before", way)
		}
	}
	for way := range before {
		if same && !after[way] {
			bad = true
			s.t.Errorf("%s: closed, and was open before", way)
		}
	}
	if bad {
		s.t.Logf("the policy:\n%s", policy)
	}
}

// importRounds is how many random rulesets are imported. Each takes about two
// seconds.
const importRounds = 5

// Whatever the rules were, the policy made of them never opens more.
func TestImportNeverOpens(t *testing.T) {
	s := importStage(t)
	s.prepare("version: 1\n")
	s.host("ipset", "create", "office", "hash:net")
	s.host("ipset", "add", "office", "198.51.100.64/26")
	s.host("ipset", "add", "office", "192.0.2.0/25")
	s.host("ipset", "create", "soon", "hash:ip", "timeout", "600")
	s.host("ipset", "add", "soon", "203.0.113.5")
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	t.Logf("seed %d", seed)
	kept, opened := 0, 0
	for range importRounds {
		rules4, rules6 := randomRules(r, false), randomRules(r, true)
		if err := s.iptables("iptables-restore", rules4); err != nil {
			t.Fatal(err)
		}
		if err := s.iptables("ip6tables-restore", rules6); err != nil {
			t.Fatal(err)
		}
		before := s.reach()
		policy := s.imported()
		s.forget()
		if err := s.fw.WritePolicy(policy); err != nil {
			t.Fatal(err)
		}
		if s.fw.Running() {
			s.nftfw("apply", "--force")
		} else if err := s.fw.Start(s.ctx()); err != nil {
			t.Fatal(err)
		}
		after := s.reach()
		s.compareReach(before, after, policy, false)
		if t.Failed() {
			t.Fatalf("the rules:\n%s\n%s", rules4, rules6)
		}
		kept, opened = kept+len(after), opened+len(before)
		s.nftfw("down", "--yes")
	}
	t.Logf("%d of %d ways stayed open", kept, opened)
	if kept == 0 {
		t.Error("nothing stayed open in any round: nothing was tested")
	}
}

// randomRules makes rules in a chain that INPUT and, for IPv4, DOCKER-USER jump
// to.
func randomRules(r *rand.Rand, is6 bool) string {
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	var b strings.Builder
	b.WriteString("*filter\n:FILTERS - [0:0]\n:MORE - [0:0]\n")
	conditions := []func() string{
		func() string {
			return pick("-s ", "! -s ") + pick("192.0.2.0/24", "203.0.113.5/32", "198.51.100.0/25", "10.0.0.0/8")
		},
		func() string { return "-m set " + pick("", "! ") + "--match-set " + pick("office", "soon") + " src" },
		func() string { return "-m conntrack --ctstate " + pick("NEW", "NEW,RELATED", "DNAT") },
		func() string { return pick("-i ", "! -i ") + pick("eth0", "eth1", "eth+", "docker0") },
		func() string { return "-m iprange --src-range 192.0.2.5-203.0.113.200" },
		func() string { return "-m conntrack --ctorigdst 198.18.0.1" },
		func() string { return "-m conntrack --ctorigdstport 8080" },
		func() string { return "-m limit --limit 1000/sec" },
	}
	if is6 {
		conditions[0] = func() string { return pick("-s ", "! -s ") + pick("2001:db8:1::/48", "2001:db8::/32") }
		conditions = slices.Delete(append(conditions[:1:1], conditions[2:4]...), 3, 3)
	}
	number := func() string { return pick("22", "80", "443", "8080", "9999", "1:1023", "80:9000") }
	rule := func(chain string, targets ...string) {
		words := []string{"-A", chain}
		if r.IntN(2) == 0 {
			words = append(words, conditions[r.IntN(len(conditions))]())
		}
		switch r.IntN(5) {
		case 0, 1:
			words = append(words, "-p tcp -m tcp "+pick("", "", "! ")+"--dport "+number())
		case 2:
			words = append(words, "-p udp -m multiport --dports 53,8125")
		}
		fmt.Fprintln(&b, strings.Join(append(words, "-j", pick(targets...)), " "))
	}
	b.WriteString("-A FILTERS -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n")
	if is6 {
		b.WriteString("-A FILTERS -p ipv6-icmp -j ACCEPT\n")
	}
	for range 3 + r.IntN(4) {
		rule("FILTERS", "ACCEPT", "ACCEPT", "ACCEPT", "DROP", "RETURN", "MORE", "LOG")
	}
	if r.IntN(3) > 0 {
		b.WriteString("-A FILTERS -j DROP\n")
	}
	for range r.IntN(4) {
		rule("MORE", "ACCEPT", "DROP", "REJECT", "RETURN")
	}
	b.WriteString("-A INPUT -i lo -j ACCEPT\n-A INPUT -j FILTERS\n")
	if !is6 {
		b.WriteString(pick("-A DOCKER-USER -i eth0 -j FILTERS\n", "-A DOCKER-USER -j FILTERS\n", "-A DOCKER-USER -g FILTERS\n"))
	}
	b.WriteString("COMMIT\n")
	return b.String()
}
