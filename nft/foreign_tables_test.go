package nft

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nftfw/nftfw/pkg/ruleset"
)

func TestTables(t *testing.T) {
	k := inNamespace(t)
	if got, err := k.Tables(context.Background()); err != nil || len(got) != 0 {
		t.Fatalf("empty namespace: %v, %v", got, err)
	}
	nft(t, k, `
table ip raw { chain PREROUTING { type filter hook prerouting priority raw; udp dport 53 notrack; }; }
table inet other {
	set banned { type ipv4_addr; }
	chain input { type filter hook input priority 5; policy drop;
		ct state invalid drop
		ct state established,related accept
		iifname "eth0" tcp dport 22 jump from_eth0
		ip saddr @banned counter drop
		ip saddr != 10.0.0.0/8 log limit rate 1/second reject
		ip6 saddr fd00::/12 drop
		ct status dnat accept
		ct state invalid,new drop
		ct state == invalid drop
		iif 1 drop
		fib saddr . iif oif missing drop
		fib daddr type local drop
		meta l4proto vmap { tcp : accept, udp : drop }
		meta l4proto vmap { tcp : accept }
		tcp dport vmap @ports
		iifname . tcp dport vmap @both
		ct state vmap { established : accept, invalid : drop }
		ct state vmap { new : drop, invalid : drop }
		drop
	}
	map ports { type inet_service : verdict; flags interval; elements = { 22 : accept, 100-200 : drop }; }
	map both { type ifname . inet_service : verdict; elements = { "eth0" . 22 : jump from_eth0 }; }
	chain ingress { type filter hook ingress device lo priority 0; drop; }
	chain from_eth0 { ip daddr 192.0.2.7 return; }
}
table netdev early {
	map sources { type ipv4_addr : verdict; elements = { 192.0.2.7 : drop }; }
	chain in { type filter hook ingress device lo priority 0; ip saddr 192.0.2.7 drop; ip saddr vmap @sources; }
}
table inet asleep { flags dormant; chain input { type filter hook input priority 0; drop; }; }
`, "-f", "-")
	got, err := k.Tables(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for i := range got {
		for j := range got[i].Chains {
			for r := range got[i].Chains[j].Rules {
				got[i].Chains[j].Rules[r].Handle = 0 // the kernel's choice
			}
		}
	}
	want := []ForeignTable{
		{Family: "inet", Name: "other", Chains: []ForeignChain{
			{Name: "input", Hook: ruleset.Input, Type: "filter", Priority: 5, Drops: true, Rules: []ForeignRule{
				{Text: "ct state invalid drop", Conditional: true, Refuses: true, OnlyInvalid: true},
				{Text: "ct state established,related accept", Conditional: true},
				{Text: `iifname "eth0" meta l4proto tcp th dport 22 jump from_eth0`, Conditional: true, To: "from_eth0"},
				{Text: "meta nfproto 0x02 ip saddr @banned drop", Conditional: true, Refuses: true},
				{Text: "meta nfproto 0x02 ip saddr != 10.0.0.0/8 log <limit> reject", Conditional: true, Refuses: true},
				{Text: "meta nfproto 0x0a ip6 saddr fd00::/12 drop", Conditional: true, Refuses: true},
				{Text: "ct status dnat accept", Conditional: true},
				{Text: "ct state invalid,new drop", Conditional: true, Refuses: true},
				{Text: "ct state invalid drop", Conditional: true, Refuses: true, OnlyInvalid: true},
				{Text: "iif 1 drop", Conditional: true, Refuses: true},
				{Text: "fib saddr 0x00000000 drop", Conditional: true, Refuses: true},
				{Text: "fib daddr 0x02000000 drop", Conditional: true, Refuses: true},
				{Text: "meta l4proto vmap { … : drop }", Conditional: true, Refuses: true, ByMap: true},
				{Text: "meta l4proto vmap { … }", Conditional: true, ByMap: true},
				{Text: "meta l4proto tcp th dport vmap @ports { … : drop }", Conditional: true, Refuses: true, ByMap: true},
				{Text: "meta l4proto tcp iifname vmap @both", Conditional: true, ByMap: true},
				{Text: "ct state vmap { … : drop }", Conditional: true, Refuses: true, OnlyInvalid: true, ByMap: true},
				{Text: "ct state vmap { … : drop }", Conditional: true, Refuses: true, ByMap: true},
				{Text: "drop", Refuses: true},
			}},
			{Name: "ingress", Hook: Ingress, Type: "filter", Rules: []ForeignRule{{Text: "drop", Refuses: true}}},
			{Name: "from_eth0", Rules: []ForeignRule{{Text: "meta nfproto 0x02 ip daddr 192.0.2.7 return", Conditional: true}}},
		}},
		{Family: "ip", Name: "raw", Chains: []ForeignChain{
			{Name: "PREROUTING", Hook: ruleset.Prerouting, Type: "filter", Priority: -300, Rules: []ForeignRule{
				{Text: "meta l4proto udp th dport 53 notrack", Conditional: true, Notrack: true},
			}},
		}},
		{Family: "netdev", Name: "early", Chains: []ForeignChain{
			{Name: "in", Hook: Ingress, Type: "filter", Rules: []ForeignRule{
				{Text: "<meta 1> 0x0800 ip saddr 192.0.2.7 drop", Conditional: true, Refuses: true},
				{Text: "<meta 1> 0x0800 ip saddr vmap @sources { … : drop }", Conditional: true, Refuses: true, ByMap: true},
			}},
		}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("tables (-want +got):\n%s", diff)
	}
}

// What iptables writes into nf_tables has expressions of its own.
func TestTablesOfIptables(t *testing.T) {
	k := inNamespace(t)
	if _, err := exec.LookPath("iptables-nft"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("needs iptables-nft: integration/install-deps.sh installs it")
	}
	for _, line := range []string{
		"-P FORWARD DROP",
		"-A FORWARD -m conntrack --ctstate INVALID -j DROP",
		"-A FORWARD -i eth0 ! -s 198.18.0.10 -j DROP",
		"-A INPUT -s 198.18.0.0/16 -p tcp --dport 22 -j REJECT",
		"-t raw -A PREROUTING -p udp --dport 53 -j CT --notrack",
		"-t raw -A OUTPUT -j NOTRACK",
	} {
		if out, err := exec.Command("iptables-nft", strings.Fields(line)...).CombinedOutput(); err != nil {
			t.Fatalf("iptables-nft %s: %v\n%s", line, err, out)
		}
	}
	got, err := k.Tables(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, table := range got {
		for _, c := range table.Chains {
			if c.Drops {
				lines = append(lines, c.Name+" policy drop")
			}
			for _, r := range c.Rules {
				line := c.Name + " " + r.Text
				if r.Refuses {
					line += " (refuses)"
				}
				if r.OnlyInvalid {
					line += " (invalid)"
				}
				if r.Notrack {
					line += " (notrack)"
				}
				lines = append(lines, line)
			}
		}
	}
	slices.Sort(lines)
	want := []string{
		"FORWARD ct state invalid drop (refuses) (invalid)",
		`FORWARD iifname "eth0" ip saddr != 198.18.0.10 drop (refuses)`,
		"FORWARD policy drop",
		"INPUT meta l4proto tcp ip saddr 198.18.0.0/16 th dport 22 <target REJECT> (refuses)",
		"OUTPUT <target NOTRACK> (notrack)",
		"PREROUTING meta l4proto udp th dport 53 <target NOTRACK> (notrack)",
	}
	// From Debian 13 on it has the addresses first and reads the protocol from
	// the header.
	if later := []string{
		"FORWARD ct state invalid drop (refuses) (invalid)",
		`FORWARD ip saddr != 198.18.0.10 iifname "eth0" drop (refuses)`,
		"FORWARD policy drop",
		"INPUT ip saddr 198.18.0.0/16 ip protocol tcp th dport 22 <target REJECT> (refuses)",
		"OUTPUT <target NOTRACK> (notrack)",
		"PREROUTING ip protocol udp th dport 53 <target NOTRACK> (notrack)",
	}; slices.Contains(lines, later[1]) {
		want = later
	}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Errorf("rules (-want +got):\n%s", diff)
	}
}

func TestCheckChangesNothing(t *testing.T) {
	k := inNamespace(t)
	ctx := context.Background()
	want := published(3)
	before, err := k.Generation(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Check(ctx, Diff(StateOf(nil), want, time.Now())); err != nil {
		t.Errorf("a good table: %v", err)
	}
	// A chain that is in use cannot be deleted.
	bad := *published(0)
	bad.Chains = append(slices.Clone(bad.Chains), &ruleset.Chain{Name: "refuse"})
	err = k.Check(ctx, Diff(StateOf(&bad), want, time.Now()))
	var refusal *CommitError
	if !errors.As(err, &refusal) || !errors.Is(err, unix.ENOENT) {
		t.Errorf("a plan for a table that is not there: %v, want ENOENT", err)
	}
	after, err := k.Generation(ctx)
	if err != nil || before != after || nft(t, k, "", "list", "ruleset") != "" {
		t.Errorf("Check changed the ruleset: generation %d, then %d (%v)\n%s", before, after, err, nft(t, k, "", "list", "ruleset"))
	}
	put(t, k, want) // and the connection still works
	if err := k.CheckConntrack(ctx); err != nil {
		t.Error(err)
	}
}
