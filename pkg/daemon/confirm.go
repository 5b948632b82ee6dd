package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/nftfw/nftfw/pkg/api"
)

// trial is a policy that is in force until its deadline, unless somebody
// confirms it. It is on disk, so that the deadline outlives the daemon. Once
// the policy was put back, only Rejected is left: the policy with that hash is
// not loaded by itself again.
type trial struct {
	Deadline   time.Time `json:"deadline,omitzero"`
	FormerPath string    `json:"former_path,omitempty"`
	FormerText []byte    `json:"former_text,omitempty"` // empty: the embedded default
	FormerDown bool      `json:"former_down,omitempty"` // nothing was enforced before
	Rejected   string    `json:"rejected,omitempty"`    // sha256 of the policy that was put back
}

// open tells whether t still waits for its confirmation. A nil trial does not.
func (t *trial) open() bool { return t != nil && !t.Deadline.IsZero() }

// former is the policy that t puts back.
func (t *trial) former() (loadedPolicy, error) {
	text := t.FormerText
	if len(text) == 0 {
		text = nil
	}
	return parsePolicy(t.FormerPath, text)
}

// loadTrial reads what the state directory says of a trial.
func (c *core) loadTrial() error {
	text, err := c.store.LoadPending()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	c.trial = &trial{}
	return json.Unmarshal(text, c.trial)
}

// saveTrial makes t the trial, on disk too; nil removes it.
func (c *core) saveTrial(t *trial) error {
	if t == nil && c.trial == nil {
		return nil
	}
	var text []byte
	if t != nil {
		var err error
		if text, err = json.Marshal(t); err != nil {
			return err
		}
	}
	if err := c.store.SavePending(text); err != nil {
		return fmt.Errorf("save confirmation: %w", err)
	}
	c.trial = t
	return nil
}

// beginTrial notes, before a policy is put in force, what comes back unless it
// is confirmed within d. A trial that is open already keeps what it would put
// back.
func (c *core) beginTrial(d time.Duration) error {
	t := &trial{
		FormerPath: c.policy.path, FormerText: c.policy.text,
		FormerDown: c.down || c.table == nil,
	}
	if c.trial.open() {
		kept := *c.trial
		t = &kept
	}
	t.Deadline = c.now().Add(d)
	return c.saveTrial(t)
}

// confirm keeps the policy in force for good.
func (c *core) confirm() (api.Change, error) {
	if !c.trial.open() {
		return api.Change{}, nil
	}
	return api.Change{Changed: true}, c.saveTrial(nil)
}

// putBack ends a trial that nobody confirmed.
func (c *core) putBack(ctx context.Context) error {
	rejected := c.policy.hash()
	former, err := c.trial.former()
	if err != nil {
		return err
	}
	if c.trial.FormerDown {
		c.setPolicy(former)
		_, err = c.stop(ctx)
	} else {
		err = c.applyPolicy(ctx, former, true)
	}
	if err != nil {
		return err
	}
	c.policy.source, c.policy.err = SourceLastGood, errPutBack
	c.log.Warn("policy not confirmed in time, the former one is in force again", "policy", former.path)
	return c.saveTrial(&trial{Rejected: rejected})
}

// errPutBack says why a policy file is not in force that has no mistake.
var errPutBack = errors.New("the policy file was put back because nobody confirmed it in time; `nftfw apply` loads it again")

// rejected tells whether a policy was put back and not applied by hand since.
func (c *core) rejected(p loadedPolicy) bool {
	return c.trial != nil && c.trial.Rejected != "" && c.trial.Rejected == p.hash()
}

// beginPolicy finds the policy to start with.
func (c *core) beginPolicy() (loadedPolicy, error) {
	if err := c.loadTrial(); err != nil {
		return loadedPolicy{}, err
	}
	switch {
	case c.trial.open() && c.now().Before(c.trial.Deadline):
		return savedPolicy(c.cfg.PolicyPath, c.store), nil
	case c.trial.open():
		tried := savedPolicy(c.cfg.PolicyPath, c.store)
		former, err := c.trial.former()
		if err != nil {
			return loadedPolicy{}, err
		}
		former.source, former.err = SourceLastGood, errPutBack
		if err := c.store.SavePolicy(former.path, former.text); err != nil {
			return loadedPolicy{}, fmt.Errorf("save policy: %w", err)
		}
		return former, c.saveTrial(&trial{Rejected: tried.hash()})
	}
	p := startPolicy(c.cfg.PolicyPath, c.store)
	if c.rejected(p) {
		return fallbackPolicy(c.cfg.PolicyPath, c.store, errPutBack), nil
	}
	return p, nil
}
