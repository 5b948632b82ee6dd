package ruleset_test

import (
	"strings"
	"testing"
	"time"

	. "github.com/nftfw/nftfw/pkg/ruleset"
)

var (
	flow4 = []Field{IPSaddr, L4Proto, Sport, IPDaddr, Dport}
	flow6 = []Field{IP6Saddr, L4Proto, Sport, IP6Daddr, Dport}
)

// dynamicSets is a table whose rules fill sets, in every way that they can.
func dynamicSets() *Table {
	goTo := func(chain string, m Match) Rule { return Rule{Matches: []Match{m}, Verdict: to(Goto, chain)} }
	held := func(set string, key []Field, timeout time.Duration, m ...Match) Rule {
		return Rule{Matches: m, Update: &Update{Set: set, Key: key, Timeout: timeout}, Counter: true, Verdict: to(Drop)}
	}
	tcp := Is(L4Proto, 6)
	return &Table{
		Name: "flows",
		Sets: []*Set{
			{Name: "flow4", Key: flow4, Dynamic: true, Size: 1 << 16, Timeout: 3 * time.Minute},
			{Name: "flow6", Key: flow6, Dynamic: true, Size: 65535},
			{Name: "seen", Key: []Field{IPSaddr}, Dynamic: true, Size: 10, Timeout: 25*time.Hour + time.Second},
		},
		Chains: []*Chain{
			{Name: "input", Hook: Input, Priority: PriorityFilter - 11, Policy: Accept, Rules: []Rule{
				goTo("held4", In("flow4", flow4...)), goTo("held6", In("flow6", flow6...)),
				{Matches: []Match{In("seen", IPSaddr).Negate()}, Update: &Update{Set: "seen", Key: []Field{IPSaddr}}, Verdict: to(Accept)},
			}},
			{Name: "held4", Rules: []Rule{
				held("flow4", flow4, 3*time.Hour, tcp), held("flow4", flow4, 90*time.Second), held("flow4", flow4, 0),
				held("flow4", flow4, time.Hour, Is(NFProto, NFProtoIPv4), tcp),
				{Update: &Update{Set: "seen", Key: []Field{IPDaddr}}},
				{Update: &Update{Set: "seen", Key: []Field{IPDaddr}}, Limit: &Limit{Rate: 1, Unit: "hour"}, Log: &Log{Group: 1}},
			}},
			{Name: "held6", Rules: []Rule{
				held("flow6", flow6, 24*time.Hour, Is(NFProto, NFProtoIPv6), Is(L4Proto, 17)), held("flow6", flow6, time.Second),
			}},
		},
	}
}

func TestValidateDynamicSets(t *testing.T) {
	rule := func(change func(*Table, *Rule)) *Table {
		table := dynamicSets()
		change(table, &table.Chains[1].Rules[0])
		return table
	}
	set := func(change func(*Set)) *Table {
		table := dynamicSets()
		change(table.Sets[0])
		return table
	}
	tests := []struct {
		name  string
		table *Table
		want  string
	}{
		{"no size", set(func(s *Set) { s.Size = 0 }), "has a size"},
		{"part of a second", set(func(s *Set) { s.Timeout = time.Millisecond }), "whole seconds"},
		{"contents", set(func(s *Set) { s.Elements = map[Key]Element{{}: {}} }), "no part of the table"},
		{"a map", set(func(s *Set) { s.Verdicts = true }), "nor a map"},
		{"state as key", set(func(s *Set) { s.Key = []Field{CtState} }), "cannot be part of a key"},
		{"size of another set", withSet(&Set{Name: "s", Key: []Field{Dport}, Size: 1}), "only a dynamic set"},
		{"update of another set", rule(func(table *Table, r *Rule) {
			table.Sets[0].Dynamic, table.Sets[0].Size, table.Sets[0].Timeout = false, 0, 0
			table.Sets[0].Key = []Field{IPSaddr}
			r.Update.Key = []Field{IPSaddr}
		}), "is no dynamic set"},
		{"update of no set", rule(func(_ *Table, r *Rule) { r.Update.Set = "x" }), "no such set"},
		{"update with another key", rule(func(_ *Table, r *Rule) { r.Update.Key = []Field{IPSaddr} }), "do not fit"},
		{"update for a moment", rule(func(_ *Table, r *Rule) { r.Update.Timeout = 1 }), "whole seconds"},
		{"update of both families", rule(func(_ *Table, r *Rule) {
			r.Matches = []Match{Is(NFProto, NFProtoIPv6)}
		}), "contradicts the family"},
		{"update and vmap", rule(func(_ *Table, r *Rule) {
			r.Verdict, r.VMap = Verdict{}, &VMap{Key: flow4, Map: "flow4"}
		}), "both an update"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.table.Validate(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}

func TestEvalFindsNothingInDynamicSets(t *testing.T) {
	p := Packet{Hook: Input, Src: addr("10.0.0.1"), SPort: 1, Dst: addr("10.0.0.2"), DPort: 2, Proto: 6}
	trace := dynamicSets().Eval(p)
	if trace.Verdict != Accept {
		t.Errorf("verdict %s, want accept", trace.Verdict)
	}
	if got := trace.Steps[2]; got.Result != "accept" || got.Text != "ip saddr != @seen update @seen { ip saddr } accept" {
		t.Errorf("%q gave %q, want a set that lacks the source", got.Text, got.Result)
	}
}
