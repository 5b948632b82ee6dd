package nft

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nftfw/nftfw/pkg/ruleset"
)

func TestForeignChangesArePutRight(t *testing.T) {
	k := inNamespace(t)
	want := rich(t)
	for _, c := range []struct {
		name     string
		commands string
		replaces bool
	}{
		{name: "table gone", commands: "delete table inet nftfw"},
		{name: "ruleset flushed", commands: "flush ruleset"},
		{name: "table empty", commands: "delete table inet nftfw; add table inet nftfw"},
		{name: "table dormant", commands: "add table inet nftfw { flags dormant; }", replaces: true},
		{name: "rules flushed", commands: "flush table inet nftfw"},
		{name: "rule added", commands: "insert rule inet nftfw forwarded accept"},
		{name: "rule added at the end", commands: "add rule inet nftfw refuse accept"},
		{name: "rule added where there was none", commands: "add rule inet nftfw inbound drop"},
		{name: "rule with an anonymous set", commands: "insert rule inet nftfw forwarded tcp dport { 1, 2 } accept"},
		{name: "rule with a chain in it", commands: "insert rule inet nftfw forwarded ip saddr 10.0.0.1 jump { accept; }"},
		{name: "rule with unknown expressions", commands: "insert rule inet nftfw outbound socket transparent 1 accept"},
		{name: "rule like ours with another mask", commands: "flush chain inet nftfw outbound; add rule inet nftfw outbound ct state new"},
		{name: "rule like ours with a comment", commands: `flush chain inet nftfw outbound; add rule inet nftfw outbound counter comment "x"`},
		{name: "rule like ours with another verdict", commands: "flush chain inet nftfw guard; add rule inet nftfw guard drop"},
		{name: "rule like ours that leads elsewhere", commands: "add chain inet nftfw refusf; add rule inet nftfw refusf accept; flush chain inet nftfw from_office; add rule inet nftfw from_office ip saddr @trusted4 accept; add rule inet nftfw from_office goto refusf"},
		{name: "policy", commands: "chain inet nftfw forwarded { policy accept; }"},
		{name: "chain added", commands: "add chain inet nftfw foreign; add rule inet nftfw foreign accept"},
		{name: "base chain added", commands: "add chain inet nftfw foreign { type filter hook input priority -200; policy drop; }"},
		{name: "nat chain added", commands: "add chain inet nftfw foreign { type nat hook prerouting priority -100; }"},
		{name: "chains that jump to each other's", commands: "add chain inet nftfw f1; add chain inet nftfw f2; add rule inet nftfw f1 jump f2; add rule inet nftfw forwarded jump f1"},
		{name: "set added", commands: "add set inet nftfw foreign { type mark; elements = { 1, 2 }; }; add rule inet nftfw refuse meta mark @foreign accept"},
		{name: "map that leads to a foreign chain", commands: "add chain inet nftfw f1; add map inet nftfw fm { type inet_service : verdict; elements = { 1 : jump f1 }; }"},
		{name: "element that leads to a foreign chain", commands: "add chain inet nftfw f1; add element inet nftfw host_any { tcp . 99 : jump f1 }"},
		{name: "counter added", commands: "add counter inet nftfw foreign", replaces: true},
		{name: "set that counts no more", commands: "flush chain inet nftfw forwarded; delete set inet nftfw ports; add set inet nftfw ports { type inet_service; elements = { 80, 443, 8080 }; }", replaces: true},
		{name: "set that counts", commands: "flush chain inet nftfw forwarded; delete set inet nftfw protos; add set inet nftfw protos { type inet_proto; counter; elements = { 6, 17 }; }", replaces: true},
		{name: "set with a quota", commands: "flush chain inet nftfw forwarded; delete set inet nftfw protos; add set inet nftfw protos { type inet_proto; quota over 10 bytes; elements = { 6, 17 }; }", replaces: true},
		{name: "element added", commands: "add element inet nftfw trusted4 { 1.2.3.4 }"},
		{name: "elements added next to ours", commands: "add element inet nftfw trusted4 { 203.0.112.0/24, 203.0.115.8-203.0.115.9 }"},
		{name: "element with a comment", commands: `add element inet nftfw trusted4 { 1.2.3.4 comment "x" }`},
		{name: "element of another verdict", commands: "delete element inet nftfw host_any { tcp . 22 }; add element inet nftfw host_any { tcp . 22 : drop }"},
		{name: "element of another comment", commands: `delete element inet nftfw host_any { udp . 53 }; add element inet nftfw host_any { udp . 53 comment "other" : goto from_office }`},
		{name: "element with a timeout it should not have", commands: "delete element inet nftfw trusted4 { 192.0.2.10 }; add element inet nftfw trusted4 { 192.0.2.10 timeout 1h }"},
		{name: "element without the timeout it should have", commands: "delete element inet nftfw trusted4 { 192.0.2.11 }; add element inet nftfw trusted4 { 192.0.2.11 }"},
		{name: "range like ours with a comment", commands: `delete element inet nftfw trusted4 { 192.0.2.10 }; add element inet nftfw trusted4 { 192.0.2.10 comment "x" }`},
		{name: "everyone added", commands: "flush set inet nftfw trusted4; add element inet nftfw trusted4 { 0.0.0.0/0 }"},
		{name: "element gone", commands: "delete element inet nftfw published4 { 172.17.0.2 . tcp . 80 }"},
		{name: "set flushed", commands: "flush set inet nftfw trusted6"},
		{name: "set of another type", commands: "flush chain inet nftfw forwarded; delete set inet nftfw ports; add set inet nftfw ports { type inet_service; flags interval; }", replaces: true},
		{name: "set with a default timeout", commands: "delete set inet nftfw empty4; add set inet nftfw empty4 { type ipv4_addr; flags interval,timeout; timeout 1h; }", replaces: true},
		{name: "set of limited size", commands: "delete set inet nftfw empty4; add set inet nftfw empty4 { type ipv4_addr; size 10; flags interval,timeout; }", replaces: true},
		{name: "dynamic set of another size", commands: "flush chain inet nftfw forwarded; delete set inet nftfw flow6\nadd set inet nftfw flow6 { type ipv6_addr . inet_proto . inet_service . ipv6_addr . inet_service; size 11; flags dynamic,timeout; }", replaces: true},
		{name: "chain at another priority", commands: "delete chain inet nftfw inbound; add chain inet nftfw inbound { type filter hook input priority 5; }", replaces: true},
		{name: "chain of another type", commands: "delete chain inet nftfw inbound; add chain inet nftfw inbound { type nat hook input priority -10; }", replaces: true},
		{name: "chain without its hook", commands: "delete chain inet nftfw inbound; add chain inet nftfw inbound", replaces: true},
	} {
		put(t, k, want)
		nft(t, k, strings.ReplaceAll(c.commands, "; add ", "\nadd ")+"\n", "-f", "-")
		have := observe(t, k, "nftfw")
		p := Diff(have, want, time.Now())
		if p.Empty() {
			t.Errorf("%s: not noticed", c.name)
			continue
		}
		if p.Replaces() != c.replaces {
			t.Errorf("%s: replaces the table: %v, want %v", c.name, p.Replaces(), c.replaces)
		}
		if err := k.Commit(context.Background(), p); err != nil {
			t.Errorf("%s: %v\n%s", c.name, err, strings.Join(p.Lines(), "\n"))
			nft(t, k, "flush ruleset\n", "-f", "-")
			continue
		}
		wantSettled(t, k, want)
		if diff := cmp.Diff(blocks(want.Text(time.Now())), blocks(nft(t, k, "", "list", "table", "inet", "nftfw"))); diff != "" {
			t.Errorf("%s: listing (-want +got):\n%s", c.name, diff)
		}
	}
}

func TestWhatTheKernelCountsIsNoChange(t *testing.T) {
	k := inNamespace(t)
	want := rich(t)
	put(t, k, want)
	nft(t, k, "flush chain inet nftfw outbound\nadd rule inet nftfw outbound counter packets 7 bytes 900", "-f", "-")
	wantSettled(t, k, want)
}

func TestWhatRulesFillIsLeftAlone(t *testing.T) {
	k := inNamespace(t)
	want := rich(t)
	put(t, k, want)
	nft(t, k, "add element inet nftfw flow4 { 10.0.0.1 . tcp . 1 . 10.0.0.2 . 2 timeout 1h }", "-f", "-")
	wantSettled(t, k, want)
	if !Diff(StateOf(want), want, time.Now()).Empty() {
		t.Error("a table differs from itself")
	}
}

func TestObserveSeesOneStateOnly(t *testing.T) {
	k := inNamespace(t)
	other, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	// Two tables whose three sets go together.
	both := make([]*ruleset.Table, 2)
	for i := range both {
		both[i] = published(0)
		for n := range 3 {
			set := *published(500).Sets[0]
			set.Name = fmt.Sprint("set", n)
			if i == 1 {
				set.Elements = nil
			}
			both[i].Sets = append(both[i].Sets, &set)
		}
	}
	put(t, k, both[0])
	stop := make(chan struct{})
	var flips sync.WaitGroup
	flips.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(i%7) * time.Millisecond):
			}
			if err := other.Commit(context.Background(), Diff(StateOf(both[i%2]), both[(i+1)%2], time.Now())); err != nil {
				t.Error(err)
				return
			}
		}
	})
	seen, enough := 0, 25
	if testing.Short() {
		enough = 8
	}
	for try := 0; seen < enough && try < 5000; try++ {
		s, err := k.Observe(context.Background(), "nftfw")
		if errors.Is(err, ErrUnsettled) {
			continue
		}
		if err != nil {
			t.Error(err)
			break
		}
		seen++
		if !Diff(s, both[0], time.Now()).Empty() && !Diff(s, both[1], time.Now()).Empty() {
			t.Error("observed a table that never was")
			break
		}
	}
	close(stop)
	flips.Wait()
	if seen == 0 {
		t.Error("nothing was observed")
	}
}

func TestOtherTablesAreLeftAlone(t *testing.T) {
	k := inNamespace(t)
	nft(t, k, "table ip nftfw { chain c { accept; }; }\ntable inet other { set s { type ipv4_addr; elements = { 1.2.3.4 }; }; chain forwarded { drop; }; }", "-f", "-")
	before := nft(t, k, "", "list", "ruleset")
	want := rich(t)
	put(t, k, want)
	wantSettled(t, k, want)
	commit(t, k, Diff(StateOf(want), published(3), time.Now()))
	commit(t, k, Diff(StateOf(published(3)), nil, time.Now()))
	if diff := cmp.Diff(before, nft(t, k, "", "list", "ruleset")); diff != "" {
		t.Errorf("other tables (-want +got):\n%s", diff)
	}
}

func TestAdoptedTable(t *testing.T) {
	k := inNamespace(t)
	want := rich(t)
	if observe(t, k, "nftfw").Exists() {
		t.Error("a table exists in a new namespace")
	}
	put(t, k, want)
	got := observe(t, k, "nftfw")
	if !got.Exists() {
		t.Fatal("the table does not exist")
	}
	for _, w := range want.Sets {
		g := got.Table().Set(w.Name)
		if g == nil && w.Dynamic {
			continue // its key has a field twice
		}
		if g == nil {
			t.Errorf("set %s is missing", w.Name)
			continue
		}
		if diff := cmp.Diff(w.Elements, g.Elements, cmp.Comparer(func(a, b ruleset.Key) bool { return a == b })); diff != "" && len(w.Elements)+len(g.Elements) > 0 {
			t.Errorf("elements of %s (-want +got):\n%s", w.Name, diff)
		}
		if g.Interval != w.Interval || g.Verdicts != w.Verdicts || g.Ranges.Len() != w.Ranges.Len() {
			t.Errorf("set %s is read as %+v, want %+v", w.Name, g, w)
		}
	}
	for _, w := range want.Chains {
		if g := got.Table().Chain(w.Name); g == nil || g.Hook != w.Hook || g.Priority != w.Priority || g.Policy != w.Policy {
			t.Errorf("chain %s is read as %+v, want %+v", w.Name, g, w)
		}
	}
}

func TestStalePlans(t *testing.T) {
	k := inNamespace(t)
	base := published(3)
	more := with(base, publishedKey(3), ruleset.Element{Verdict: ruleset.Verdict{Kind: ruleset.Drop}})
	inUse, unused := *published(0), *published(0)
	inUse.Chains = append(inUse.Chains, &ruleset.Chain{Name: "refuse"})
	unused.Chains = []*ruleset.Chain{inUse.Chains[0], inUse.Chains[2]}
	for _, c := range []struct {
		name       string
		have, want *ruleset.Table
		commands   string
		errno      unix.Errno
		op         string
	}{
		{
			"element gone", more, base, "delete element inet nftfw published4 { 172.17.0.3 . tcp . 80 }", unix.ENOENT,
			"delete elements of published4: 172.17.0.3 . tcp . 80",
		},
		{
			"element there with another verdict", base, more, "add element inet nftfw published4 { 172.17.0.3 . tcp . 80 : accept }", unix.EEXIST,
			"add elements to published4: 172.17.0.3 . tcp . 80",
		},
		{"table gone", base, more, "delete table inet nftfw", unix.ENOENT, "add elements to published4"},
		{"table there", nil, more, "", unix.EEXIST, "add table"},
		{"chain gone", base, nil, "delete table inet nftfw", unix.ENOENT, "delete table"},
		{"chain in use", &inUse, &unused, "add rule inet nftfw refuse jump from_any", unix.EBUSY, "delete chain from_any"},
	} {
		start := more
		if c.have != nil {
			start = c.have
		}
		put(t, k, start)
		nft(t, k, c.commands+"\n", "-f", "-")
		before := nft(t, k, "", "list", "ruleset")
		err := k.Commit(context.Background(), Diff(StateOf(c.have), c.want, time.Now()))
		var refusal *CommitError
		switch {
		case !errors.As(err, &refusal):
			t.Errorf("%s: %v, want a CommitError", c.name, err)
			continue
		case !refusal.Stale(), !errors.Is(err, c.errno), refusal.Table != "nftfw", refusal.Hint == "":
			t.Errorf("%s: %+v, want a stale one with %v", c.name, refusal, c.errno)
		}
		if !strings.HasPrefix(refusal.Op, c.op) {
			t.Errorf("%s: step %q, want %q", c.name, refusal.Op, c.op)
		}
		if after := nft(t, k, "", "list", "ruleset"); after != before {
			t.Errorf("%s: a refused plan changed the ruleset (-before +after):\n%s", c.name, cmp.Diff(before, after))
		}
		if c.want != nil {
			put(t, k, c.want)
			wantSettled(t, k, c.want)
		}
	}
}
