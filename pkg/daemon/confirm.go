package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/nftfw/nftfw/pkg/api"
)

// trial is a policy that is in force until its deadline, unless somebody
// confirms it. It is on disk, so that the deadline outlives the daemon. Once it is
// over only PutBack is left: those policies are not loaded by themselves again.
type trial struct {
	Deadline        time.Time `json:"deadline,omitzero"`
	FormerPath      string    `json:"former_path,omitempty"`
	FormerText      []byte    `json:"former_text,omitempty"`      // empty: the embedded default
	FormerDown      bool      `json:"former_down,omitempty"`      // nothing was enforced before
	FormerObserving bool      `json:"former_observing,omitempty"` // it only observed, as a first start does
	Tried           string    `json:"tried,omitempty"`            // identity of the policy that waits
	PutBack         []string  `json:"put_back,omitempty"`         // identities of policies that were put back, the last at the end
}

// maxPutBack is how many policies are remembered that were put back.
const maxPutBack = 16

// open tells whether t still waits for its confirmation. A nil trial does not.
func (t *trial) open() bool { return t != nil && !t.Deadline.IsZero() }

// ended is what is left of a trial: the policies that were put back. It may be nil.
func ended(putBack []string) *trial {
	if len(putBack) == 0 {
		return nil
	}
	return &trial{PutBack: putBack[max(0, len(putBack)-maxPutBack):]}
}

// putBackBut gives the policies that were put back without p. A nil trial has none.
func (t *trial) putBackBut(p string) []string {
	if t == nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(t.PutBack), func(id string) bool { return id == p })
}

// notConfirmed is what is left of t when its time is up.
func (t *trial) notConfirmed() *trial {
	if t.idle() {
		return ended(t.PutBack)
	}
	return ended(append(t.putBackBut(t.Tried), t.Tried))
}

// idle tells whether what t tries was in force before it, so that its end changes
// nothing.
func (t *trial) idle() bool {
	former := loadedPolicy{text: t.FormerText}
	if len(t.FormerText) == 0 {
		former.text = nil
	}
	return former.identity() == t.Tried && !t.FormerDown && !t.FormerObserving
}

// former is the policy that t puts back, or the embedded default where that
// does not parse any more.
func (t *trial) former() loadedPolicy {
	text := t.FormerText
	if len(text) == 0 {
		text = nil
	}
	p, err := parsePolicy(t.FormerPath, text)
	if err != nil {
		p, _ = parsePolicy(t.FormerPath, nil) // the default cannot fail
	}
	if t.FormerObserving {
		p = p.observe(nil)
	}
	if !t.idle() {
		p.source, p.err = SourceLastGood, errors.Join(errPutBack, err)
	}
	return p
}

// loadTrial reads what the state directory says of a trial. What cannot be
// read is none: it must not keep the host from being closed.
func (c *core) loadTrial() {
	text, err := c.store.LoadPending()
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var t trial
	if err == nil {
		err = json.Unmarshal(text, &t)
	}
	if err != nil {
		c.log.Error("policy that waits for a confirmation forgotten, it stays in force", "err", err)
		return
	}
	c.trial = &t
}

// saveTrial makes t the trial, on disk too; nil removes it.
func (c *core) saveTrial(t *trial) error {
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

// restoreTrial makes t the trial again after a change failed, whatever the disk takes of
// it.
func (c *core) restoreTrial(t *trial) error {
	err := c.saveTrial(t)
	c.trial = t
	return err
}

// beginTrial notes, before p is put in force, what comes back unless p is
// confirmed within d. A trial that is open already keeps what it would put
// back.
func (c *core) beginTrial(p loadedPolicy, d time.Duration) error {
	t := &trial{
		FormerPath: c.policy.path, FormerText: c.policy.text,
		FormerDown: c.down || c.table == nil, FormerObserving: c.policy.observing,
	}
	if c.trial.open() {
		kept := *c.trial
		t = &kept
	}
	t.Deadline, t.Tried, t.PutBack = c.now().Add(d), p.identity(), c.trial.putBackBut(p.identity())
	return c.saveTrial(t)
}

// confirm keeps the policy in force for good.
func (c *core) confirm() (api.Change, error) {
	if !c.trial.open() {
		return api.Change{}, nil
	}
	out := api.Change{Changed: true}
	if c.down {
		out.Warnings = append(out.Warnings, "nothing is enforced since `nftfw down`: `nftfw apply` puts a policy in force")
	}
	return out, c.saveTrial(ended(c.trial.PutBack))
}

// putBack ends a trial that nobody confirmed, in the kernel before on the disk: the
// policy that was tried may have locked its administrator out, and a disk that is full
// must not keep it in force. When the kernel refuses, the trial stays open, and putBack
// may be called again. What the disk refuses is left to note.
func (c *core) putBack(ctx context.Context) error {
	t := c.trial
	undo := c.takePolicy(t.former())
	var err error
	if t.FormerDown {
		c.have = nil // whatever stands there goes
		err = c.commit(ctx, nil)
	} else {
		err = c.reconcile(ctx)
	}
	if err != nil {
		undo()
		return errors.Join(err, c.settle(ctx))
	}
	c.down = t.FormerDown
	c.revoked.look = true // as after applyPolicy
	c.warnPolicy()
	if !t.idle() {
		c.log.Warn("policy not confirmed in time, the former one is back", "policy", c.policy.path)
	}
	c.trial = t.notConfirmed()
	return c.note()
}

// note writes down what is in force and how the trial ended, the latter last: while it
// is open on the disk, a start puts the former policy back by itself. When note fails
// it may be called again, whatever was put in force meanwhile.
func (c *core) note() error {
	err := c.savePolicy(c.policy)
	if err == nil {
		err = c.store.SetDown(c.down)
	}
	if err == nil {
		err = c.saveTrial(c.trial)
	}
	c.unnoted = err != nil
	return err
}

// errPutBack says why a policy file is not in force that has no mistake.
var errPutBack = errors.New("the policy was put back because nobody confirmed it in time; its file stays as it is, and `nftfw apply` loads it again")

// rejected tells whether a policy was put back and not applied by hand since.
func (c *core) rejected(p loadedPolicy) bool {
	return c.trial != nil && slices.Contains(c.trial.PutBack, p.identity())
}

// beginPolicy finds the policy to start with.
func (c *core) beginPolicy() loadedPolicy {
	c.loadTrial()
	if c.trial.open() {
		if c.now().Before(c.trial.Deadline) {
			return savedPolicy(c.cfg.PolicyPath, c.store)
		}
		return c.endTrial()
	}
	p := startPolicy(c.cfg.PolicyPath, c.store)
	if c.rejected(p) {
		return fallbackPolicy(c.cfg.PolicyPath, c.store, errPutBack)
	}
	return p
}

// endTrial gives the former policy of a trial that ran out while no daemon
// did. When that cannot be written down the trial stays open, and the running
// daemon ends it.
func (c *core) endTrial() loadedPolicy {
	former := c.trial.former()
	err := c.savePolicy(former)
	if err == nil {
		err = c.saveTrial(c.trial.notConfirmed())
	}
	if err != nil {
		c.log.Error("former policy put back, but not noted", "err", err)
	}
	return former
}
