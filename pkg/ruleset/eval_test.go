package ruleset_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	. "github.com/nftfw/nftfw/pkg/ruleset"
)

// flow is a tcp packet to a container, forwarded after DNAT.
func flow(src, dst string, port uint16) Packet {
	return Packet{
		Hook: Forward, IIf: "eth0", OIf: "docker0", Src: addr(src), Dst: addr(dst),
		Proto: 6, SPort: 40000, DPort: port, Status: StatusDNAT, OrigDst: addr("198.18.0.1"), Time: now,
	}
}

func with(p Packet, change func(*Packet)) Packet {
	change(&p)
	return p
}

func TestEvalHost(t *testing.T) {
	tests := []struct {
		name   string
		packet Packet
		want   VerdictKind
	}{
		{"published to any", flow("203.0.113.9", "172.17.0.2", 80), Accept},
		{"published to office, from there", flow("198.51.100.7", "172.17.0.10", 80), Accept},
		{"published to office, from elsewhere", flow("203.0.113.9", "172.17.0.10", 80), Drop},
		{"refused to all", flow("198.51.100.7", "172.17.0.3", 80), Drop},
		{"not published", flow("203.0.113.9", "172.17.0.2", 81), Drop},
		{"another protocol", with(flow("203.0.113.9", "172.17.0.2", 80), func(p *Packet) { p.Proto = 132 }), Drop},
		{"routed, no DNAT", with(flow("203.0.113.9", "172.17.0.2", 80), func(p *Packet) { p.Status = 0; p.OrigDst = p.Dst }), Drop},
		{"established", with(flow("203.0.113.9", "172.17.0.2", 81), func(p *Packet) { p.State = StateEstablished }), Accept},
		{"related tcp", with(flow("203.0.113.9", "172.17.0.2", 81), func(p *Packet) { p.State = StateRelated }), Drop},
		{"related icmp", with(flow("203.0.113.9", "172.17.0.2", 81), func(p *Packet) { p.State, p.Proto = StateRelated, 1 }), Accept},
		{"invalid", with(flow("203.0.113.9", "172.17.0.2", 80), func(p *Packet) { p.State = StateInvalid }), Drop},
		{"untracked", with(flow("203.0.113.9", "172.17.0.2", 80), func(p *Packet) { p.State = StateUntracked }), Drop},
		{"asked for loopback", with(flow("203.0.113.9", "172.17.0.2", 80), func(p *Packet) { p.OrigDst = addr("127.0.0.1") }), Drop},
		{"by one address of the host", with(flow("203.0.113.9", "172.17.0.4", 443), func(p *Packet) { p.OrigDst = addr("198.51.100.2") }), Accept},
		{"by another address of the host", flow("203.0.113.9", "172.17.0.4", 443), Drop},
		{"mapped addresses", flow("::ffff:203.0.113.9", "::ffff:172.17.0.2", 80), Accept},
		{"between containers", Packet{Hook: Forward, IIf: "br-a", OIf: "docker0", Src: addr("172.18.0.2"), Dst: addr("172.17.0.2"), Proto: 6, DPort: 8005}, Accept},
		{"between containers, closed", Packet{Hook: Forward, IIf: "br-a", OIf: "docker0", Src: addr("172.18.0.2"), Dst: addr("172.17.0.2"), Proto: 6, DPort: 80}, Drop},
		{"v6 from a trusted source", with(flow("2001:db8:1::5", "fd00::2", 80), func(p *Packet) { p.OrigDst = p.Dst }), Accept},
		{"v6 from elsewhere", with(flow("2001:db8:2::5", "fd00::2", 80), func(p *Packet) { p.OrigDst = p.Dst }), Drop},
		{"v6 before expiry", with(flow("fe80::5", "fd00::2", 80), func(p *Packet) { p.Time = now.Add(time.Hour - 1) }), Accept},
		{"v6 at expiry", with(flow("fe80::5", "fd00::2", 80), func(p *Packet) { p.Time = now.Add(time.Hour) }), Drop},
		{"v6 at no time", with(flow("fe80::5", "fd00::2", 80), func(p *Packet) { p.Time = time.Time{} }), Accept},
		{"blocked", Packet{Hook: Prerouting, IIf: "eth0", Src: addr("203.0.113.66"), Dst: addr("198.18.0.1"), Proto: 6}, Drop},
		{"blocked on lo", Packet{Hook: Prerouting, IIf: "lo", Src: addr("203.0.113.66"), Dst: addr("198.18.0.1"), Proto: 6}, Accept},
		{"ssh", Packet{Hook: Input, IIf: "eth0", Src: addr("203.0.113.9"), Dst: addr("198.18.0.1"), Proto: 6, DPort: 22}, Accept},
		{"ssh over v6", Packet{Hook: Input, IIf: "eth0", Src: addr("2001:db8::9"), Dst: addr("fd00::1"), Proto: 6, DPort: 22}, Accept},
		{"closed port", Packet{Hook: Input, IIf: "eth0", Src: addr("203.0.113.9"), Dst: addr("198.18.0.1"), Proto: 6, DPort: 23}, Drop},
		{"wildcard interface", Packet{Hook: Input, IIf: "tailscale0", Src: addr("203.0.113.9"), Dst: addr("198.18.0.1"), Proto: 6, DPort: 23}, Accept},
		{"icmp error", Packet{Hook: Input, IIf: "eth0", Src: addr("203.0.113.9"), Dst: addr("198.18.0.1"), Proto: 1, ICMPType: 3}, Accept},
		{"echo", Packet{Hook: Input, IIf: "eth0", Src: addr("203.0.113.9"), Dst: addr("198.18.0.1"), Proto: 1, ICMPType: 8}, Drop},
		{"neighbour solicitation", Packet{Hook: Input, IIf: "eth0", Src: addr("fe80::1"), Dst: addr("fe80::2"), Proto: 58, ICMPType: 135}, Accept},
		{"icmp type of the other family", Packet{Hook: Input, IIf: "eth0", Src: addr("2001:db8::1"), Dst: addr("fd00::1"), Proto: 58, ICMPType: 3}, Drop},
		{"no chain at the hook", Packet{Hook: Output, Src: addr("198.18.0.1"), Dst: addr("203.0.113.9")}, Accept},
	}
	table := hostTable()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			trace := table.Eval(tt.packet)
			if trace.Verdict != tt.want {
				t.Errorf("verdict %s, want %s", trace.Verdict, tt.want)
				for _, s := range trace.Steps {
					t.Logf("%s %d: %s => %s", s.Chain, s.Rule, s.Text, s.Result)
				}
			}
			if got := table.Decide(tt.packet); got != trace.Verdict {
				t.Errorf("Decide says %s, Eval %s", got, trace.Verdict)
			}
		})
	}
}

func TestEvalTrace(t *testing.T) {
	got := hostTable().Eval(flow("198.51.100.7", "172.17.0.10", 80))
	forward := func(rule int, text, result, element string) Step {
		return Step{Chain: "forward", Rule: rule, Text: text, Result: result, Element: element}
	}
	want := Trace{Verdict: Accept, Steps: []Step{
		forward(0, "ct state established accept", "no match", ""),
		forward(1, "ct state related meta l4proto icmp accept", "no match", ""),
		forward(2, "ct state related meta l4proto ipv6-icmp accept", "no match", ""),
		forward(3, "ct original ip daddr 127.0.0.0/8 drop", "no match", ""),
		forward(4, "iifname @inside oifname @inside jump between", "no match", ""),
		forward(5, "iifname @inside accept", "no match", ""),
		forward(6, "ct status dnat ct original ip daddr . ip daddr . meta l4proto . th dport vmap @by_host4", "no match", ""),
		forward(7, "ct status dnat ip daddr . meta l4proto . th dport vmap @published4", "goto from_office", "172.17.0.10 . tcp . 80 : goto from_office"),
		{Chain: "from_office", Rule: 0, Text: "ip saddr @office4 accept", Result: "accept", Origin: "policy.yaml:20", Element: "198.51.100.0/24"},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("trace (-want +got):\n%s", diff)
	}

	last := func(p Packet) Step {
		steps := hostTable().Eval(p).Steps
		return steps[len(steps)-1]
	}
	wantPolicy := Step{Chain: "forward", Rule: -1, Text: "policy drop", Result: "drop"}
	if diff := cmp.Diff(wantPolicy, last(flow("203.0.113.9", "172.17.0.2", 81))); diff != "" {
		t.Errorf("last step (-want +got):\n%s", diff)
	}
}

func TestEvalOriginOfElement(t *testing.T) {
	for _, s := range hostTable().Eval(flow("203.0.113.9", "172.17.0.2", 80)).Steps {
		if s.Result == "goto from_any" {
			if s.Origin != "label nftfw.expose.80" {
				t.Errorf("origin %q, want that of the element", s.Origin)
			}
			return
		}
	}
	t.Error("no step goes to from_any")
}

// TestEvalFlow tries how jump, goto and return go together. Each rule accepts
// or drops a port of its own, so that the port tells where evaluation came by.
func TestEvalFlow(t *testing.T) {
	port := func(n uint32, v Verdict) Rule {
		return Rule{Matches: []Match{Is(L4Proto, 6), Is(Dport, n)}, Verdict: v}
	}
	do := func(v Verdict) Rule { return Rule{Verdict: v} }
	base := func(rules ...Rule) *Chain { return &Chain{Name: "base", Hook: Input, Policy: Drop, Rules: rules} }
	tests := []struct {
		name   string
		chains []*Chain
		want   VerdictKind
	}{
		{"jump comes back", []*Chain{base(do(to(Jump, "a")), do(to(Accept))), {Name: "a"}}, Accept},
		{"goto does not come back", []*Chain{base(do(to(Goto, "a")), do(to(Accept))), {Name: "a"}}, Drop},
		{"return ends a base chain", []*Chain{base(do(to(Return)), do(to(Accept)))}, Drop},
		{"return comes back", []*Chain{base(do(to(Jump, "a")), do(to(Accept))), {Name: "a", Rules: []Rule{do(to(Return)), do(to(Drop))}}}, Accept},
		{
			"goto below a jump comes back to the caller of the jump",
			[]*Chain{
				base(do(to(Jump, "a")), do(to(Accept))),
				{Name: "a", Rules: []Rule{do(to(Goto, "b")), do(to(Drop))}},
				{Name: "b", Rules: []Rule{port(9, to(Drop))}},
			},
			Accept,
		},
		{
			"jump below a goto comes back to the goto's chain",
			[]*Chain{
				base(do(to(Goto, "a")), do(to(Drop))),
				{Name: "a", Rules: []Rule{do(to(Jump, "b")), do(to(Accept))}},
				{Name: "b"},
			},
			Accept,
		},
		{
			"accept ends one base chain only",
			[]*Chain{base(do(to(Accept))), {Name: "later", Hook: Input, Priority: 1, Policy: Drop}},
			Drop,
		},
		{
			"drop ends all of them",
			[]*Chain{{Name: "later", Hook: Input, Priority: 1, Policy: Accept}, {Name: "base", Hook: Input, Priority: -1, Policy: Drop}},
			Drop,
		},
		{"other hooks do not count", []*Chain{base(do(to(Accept))), {Name: "f", Hook: Forward, Policy: Drop}}, Accept},
		{"circles end", []*Chain{base(do(to(Goto, "a"))), {Name: "a", Rules: []Rule{do(to(Goto, "a"))}}}, Drop},
		{"recursion ends", []*Chain{base(do(to(Jump, "a"))), {Name: "a", Rules: []Rule{do(to(Jump, "a"))}}}, Drop},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			table := &Table{Name: "t", Chains: tt.chains}
			if got := table.Decide(Packet{Hook: Input, Src: addr("10.0.0.1"), Dst: addr("10.0.0.2"), Proto: 6, DPort: 80}); got != tt.want {
				t.Errorf("verdict %s, want %s", got, tt.want)
			}
		})
	}
}

func TestDecideAllocatesLittle(t *testing.T) {
	table, p := hostTable(), flow("198.51.100.7", "172.17.0.10", 80)
	if n := testing.AllocsPerRun(100, func() { table.Decide(p) }); n > 10 {
		t.Errorf("%v allocations for one packet", n)
	}
}

func BenchmarkDecide(b *testing.B) {
	table, p := hostTable(), flow("198.51.100.7", "172.17.0.10", 80)
	for b.Loop() {
		table.Decide(p)
	}
}
