package policy_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nftfw/nftfw/pkg/inventory"
	"github.com/nftfw/nftfw/pkg/ruleset"
	"github.com/nftfw/nftfw/policy"
)

func TestWithCuts(t *testing.T) {
	plain, _ := policy.Compile(policy.Default([]uint16{22}), nil, inventory.Snapshot{})
	before := plain.Text(time.Time{})
	cut := policy.WithCuts(plain)
	if err := cut.Validate(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, plain.Text(time.Time{})); diff != "" {
		t.Errorf("the table without cuts has changed (-before +after):\n%s", diff)
	}
	if policy.HasCuts(plain) || policy.HasCuts(nil) || !policy.HasCuts(cut) {
		t.Error("HasCuts does not tell the tables apart")
	}
	if policy.WithCuts(cut) != cut {
		t.Error("cuts are added twice")
	}
	for _, hook := range []ruleset.Hook{ruleset.Input, ruleset.Forward, ruleset.Output} {
		var own, first *ruleset.Chain
		for _, c := range cut.Chains {
			switch {
			case c.Hook != hook:
			case plain.Chain(c.Name) == nil:
				own = c
			case first == nil || c.Priority < first.Priority:
				first = c
			}
		}
		if own == nil || own.Policy != ruleset.Accept || first != nil && own.Priority >= first.Priority {
			t.Errorf("%s: no chain of cuts ahead of the others", hook)
		}
	}
}

func TestCutHoldOutlastsKeepalive(t *testing.T) {
	if got := policy.CutHold(6); got <= 2*time.Hour {
		t.Errorf("tcp is held for %s, less than a peer keeps quiet", got)
	}
	if got := policy.CutHold(17); got <= 2*time.Minute {
		t.Errorf("udp is held for %s, less than its conntrack entry would live", got)
	}
}
