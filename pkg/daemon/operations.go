package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/nftfw/nftfw/nft"
	"github.com/nftfw/nftfw/pkg/api"
	"github.com/nftfw/nftfw/pkg/inventory"
	"github.com/nftfw/nftfw/policy"
)

// apply puts a policy in force that was handed in by a user.
func (c *core) apply(ctx context.Context, a api.Apply) (api.Change, error) {
	if a.Source == nil && a.Path != c.policy.path && c.policy.text != nil && !a.Force {
		return api.Change{}, api.Invalidf("no policy file at %s: that of %s stays in force (--force puts the embedded default in its place)", a.Path, c.policy.path)
	}
	p, err := parsePolicy(a.Path, a.Source)
	if err != nil {
		return api.Change{}, policyError(err)
	}
	out := api.Change{Warnings: warnings(p)}
	if a.DryRun {
		err = c.dryRun(ctx, p, &out)
		return out, err
	}
	before, oldTrial := c.lastChange, c.trial
	if a.Confirm > 0 {
		err = c.beginTrial(p, a.Confirm)
	} else {
		err = c.saveTrial(ended(c.trial.putBackBut(p.identity()))) // one that cannot be ended would take p back
	}
	if err == nil {
		err = c.applyPolicy(ctx, p, a.Force || a.Confirm > 0)
	}
	if err != nil {
		return api.Change{}, errors.Join(err, c.restoreTrial(oldTrial))
	}
	out.Changed = c.lastChange != before
	if oldTrial.open() && a.Confirm == 0 {
		out.Warnings = append(out.Warnings, "the trial is over: the former policy is not put back")
	}
	return out, nil
}

// policyError gives the mistakes of a policy the form in which they cross the
// socket.
func policyError(err error) error {
	var mistakes policy.Errors
	if errors.As(err, &mistakes) {
		return &api.Error{Kind: api.KindPolicy, Message: mistakes.Text()}
	}
	return &api.Error{Kind: api.KindPolicy, Message: err.Error()}
}

// dryRun says in out how the kernel would change under p, and which published
// ports would have another FROM.
func (c *core) dryRun(ctx context.Context, p loadedPolicy, out *api.Change) error {
	trial := *c
	trial.setPolicy(p)
	have := c.have // what a daemon committed, with the text of its rules
	if have == nil || have.Unread() {
		var err error
		if have, err = c.kernel.Observe(ctx, c.cfg.Table); err != nil {
			return err
		}
	}
	owners := map[string]string{}
	for _, container := range c.engine.Containers {
		owners[policy.ElementOwner(container.ID)] = container.Name
	}
	for _, l := range nft.Diff(have, trial.compile(), c.now()).Changes() {
		out.Lines = append(out.Lines, l.Text)
		owner, _, _ := strings.Cut(l.Owner, " ")
		out.Plan = append(out.Plan, api.PlanLine{Line: l.Text, Origin: l.Origin, Container: owners[owner]})
	}
	out.Changed = len(out.Lines) > 0
	out.Mode = string(p.Mode)
	out.Ports = c.portChanges(p)
	return nil
}

// portChanges lists the published ports that would have another FROM under p,
// once it is enforced.
func (c *core) portChanges(p loadedPolicy) []api.PortChange {
	type portOf struct {
		container string
		port      inventory.Port
		at        netip.Addr
	}
	inv := c.inventory()
	before := map[portOf]policy.From{}
	if c.table != nil && c.enforced() {
		decisions, _ := policy.Decide(c.policy.Policy, inv)
		for _, d := range decisions {
			before[portOf{d.Container.ID, d.Port, d.AtHostIP}] = d.From
		}
	}
	var out []api.PortChange
	decisions, _ := policy.Decide(p.Policy, inv)
	for _, d := range decisions {
		if !d.Port.Published() || d.HostNetwork || d.HostOnly() {
			continue
		}
		was := policy.From{Any: true}
		for _, at := range []netip.Addr{d.AtHostIP, {}} {
			if from, ok := before[portOf{d.Container.ID, d.Port, at}]; ok {
				was = from
				break
			}
		}
		if was.String() != d.From.String() {
			out = append(out, api.PortChange{Port: portView(p.Policy, d), Before: was.Names()})
		}
	}
	return out
}

func warnings(p loadedPolicy) []string {
	var out []string
	for _, w := range p.warnings {
		out = append(out, w.String())
	}
	return out
}

// reload reads the policy file again and puts it in force.
func (c *core) reload(ctx context.Context, force bool) (api.Change, error) {
	if c.trial.open() {
		return api.Change{}, api.Failedf("a policy waits for `nftfw confirm` until %s; confirm it or let it be put back first",
			c.trial.Deadline.Local().Format(time.RFC3339))
	}
	if c.down {
		return api.Change{}, api.Failedf("nothing is enforced since `nftfw down`; `nftfw apply` puts the policy in force")
	}
	out, err := c.reloadFile(ctx, force)
	if err != nil {
		c.policy.err = err
		if c.policy.source == SourceFile {
			c.policy.source = SourceLastGood // the file is another one by now
		}
		c.log.Error("reload refused, the policy in force stays", "err", err)
	}
	return out, err
}

func (c *core) reloadFile(ctx context.Context, force bool) (api.Change, error) {
	text, err := ReadPolicyFile(c.cfg.PolicyPath)
	if err != nil {
		return api.Change{}, err
	}
	if text == nil && c.policy.text != nil {
		return api.Change{}, api.Failedf("%s is gone; the policy in force stays (`nftfw apply` would put the default in force)", c.cfg.PolicyPath)
	}
	p, err := parsePolicy(c.cfg.PolicyPath, text)
	if err != nil {
		return api.Change{}, policyError(err)
	}
	if c.rejected(p) {
		return api.Change{}, errPutBack
	}
	before := c.lastChange
	if err := c.applyPolicy(ctx, p, force); err != nil {
		return api.Change{}, err
	}
	return api.Change{Changed: c.lastChange != before, Warnings: warnings(p)}, nil
}

// stop removes the table and keeps it away until apply or a restart. A policy
// that waits for its confirmation is not put in force again when its time is
// up.
func (c *core) stop(ctx context.Context) (api.Change, error) {
	undo := func() error { return nil }
	if trial := c.trial; trial.open() && !trial.FormerDown {
		t := *trial
		t.FormerDown = true
		if err := c.saveTrial(&t); err != nil {
			return api.Change{}, err
		}
		undo = func() error { return c.restoreTrial(trial) }
	}
	was := c.store.Down()
	if err := c.store.SetDown(true); err != nil {
		return api.Change{}, errors.Join(fmt.Errorf("note that enforcement is off: %w", err), undo())
	}
	before := c.lastChange
	c.have = nil // whatever stands there goes
	if err := c.commit(ctx, nil); err != nil {
		err = errors.Join(err, undo())
		if !was {
			err = errors.Join(err, c.store.SetDown(false))
		}
		return api.Change{}, errors.Join(err, c.settle(ctx))
	}
	c.down = true
	return api.Change{Changed: c.lastChange != before}, nil
}
