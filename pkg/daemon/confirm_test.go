package daemon

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// tryOut applies otherPolicy for a minute. The file holds it too, as after an
// administrator's edit.
func (w *world) tryOut(c *core, text string) {
	w.Helper()
	w.policy(text)
	request := apply(text, w.cfg.PolicyPath)
	request.Confirm = time.Minute
	if _, err := c.apply(w.Context(), request); err != nil {
		w.Fatal(err)
	}
}

// newTrialWorld is a host on which openPolicy is in force, with a clock that
// the test moves.
func newTrialWorld(t *testing.T) (*world, *core) {
	w := newWorld(t)
	w.now = time.Now()
	w.policy(openPolicy)
	return w, w.start()
}

func (w *world) inForce(text string) {
	w.Helper()
	open, other := w.inKernel("trusted4", "192.0.2.10"), w.inKernel("trusted4", "192.0.2.99")
	if open != (text == openPolicy) || other != (text == otherPolicy) {
		w.Errorf("openPolicy in force: %v, otherPolicy in force: %v, want\n%s", open, other, text)
	}
	if diff := cmp.Diff(text, w.savedPolicy()); diff != "" {
		w.Errorf("policy on disk (-want +got):\n%s", diff)
	}
}

// passedOver checks that the file, which was put back, is loaded by nothing
// but an apply by hand.
func (w *world) passedOver(c *core) {
	w.Helper()
	_, err := c.reload(w.Context(), true)
	w.mustFail(err, "put back because nobody confirmed", "nftfw apply")
	w.inForce(openPolicy)
	c = w.start()
	w.inForce(openPolicy)
	if s := c.status(); s.Policy.Source != SourceLastGood || !strings.Contains(s.Policy.Error, "nobody confirmed") {
		w.Errorf("status %+v", s.Policy)
	}
	_, err = c.reload(w.Context(), true)
	w.mustFail(err, "put back because nobody confirmed")
	_, err = c.apply(w.Context(), apply(otherPolicy, w.cfg.PolicyPath))
	w.must(err)
	w.inForce(otherPolicy)
	c = w.start()
	w.inForce(otherPolicy)
	if s := c.status(); s.Policy.Source != SourceFile || s.Policy.Error != "" {
		w.Errorf("status after an apply by hand %+v", s.Policy)
	}
}

func TestTrialIsPutBack(t *testing.T) {
	w, c := newTrialWorld(t)
	w.tryOut(c, otherPolicy)
	w.inForce(otherPolicy)
	w.now = w.now.Add(time.Minute)
	w.must(c.putBack(w.Context()))
	w.inForce(openPolicy)
	w.passedOver(c)
}

func TestTrialSurvivesARestart(t *testing.T) {
	w, c := newTrialWorld(t)
	w.tryOut(c, otherPolicy)
	w.now = w.now.Add(30 * time.Second)
	c = w.start()
	w.inForce(otherPolicy)
	if !c.trial.open() || !c.trial.Deadline.Equal(w.now.Add(30*time.Second)) {
		t.Fatalf("trial after a restart %+v, want the same deadline", c.trial)
	}
	w.now = w.now.Add(30 * time.Second)
	w.must(c.putBack(w.Context()))
	w.inForce(openPolicy)
	w.passedOver(c)
}

func TestTrialEndsWhileNothingRuns(t *testing.T) {
	w, c := newTrialWorld(t)
	w.tryOut(c, otherPolicy)
	w.now = w.now.Add(time.Hour)
	c = w.start()
	w.inForce(openPolicy)
	w.passedOver(c)
}

// The daemon dies between the former policy and the note that it was put back.
func TestPutBackInterrupted(t *testing.T) {
	w, c := newTrialWorld(t)
	w.tryOut(c, otherPolicy)
	w.must(c.applyPolicy(w.Context(), c.trial.former(), true))
	w.now = w.now.Add(time.Hour)
	c = w.start()
	w.inForce(openPolicy)
	w.passedOver(c)
}

func TestPutBackRefusedAtFirst(t *testing.T) {
	w, c := newTrialWorld(t)
	w.tryOut(c, otherPolicy)
	w.kernel.refuse = []error{errRefused}
	w.mustFail(c.putBack(w.Context()), "cannot allocate memory")
	if !c.trial.open() {
		t.Fatal("the trial ended though the former policy is not back")
	}
	w.inForce(otherPolicy)
	w.must(c.putBack(w.Context()))
	w.inForce(openPolicy)
}

// block makes a file of the state directory one that cannot be written, and gives the
// way back.
func (w *world) block(name string) (unblock func()) {
	w.Helper()
	path := filepath.Join(w.cfg.StateDir, name)
	w.must(os.RemoveAll(path))
	w.must(os.MkdirAll(filepath.Join(path, "x"), 0o700))
	return func() { w.must(os.RemoveAll(path)) }
}

// A policy that locked its administrator out is put back though the disk is full, and
// counts as put back. What is to be on disk follows.
func TestPutBackWithoutADisk(t *testing.T) {
	for _, down := range []bool{false, true} {
		for _, file := range []string{"policy.yaml", "pending.json"} {
			t.Run(fmt.Sprintf("%s/down=%v", file, down), func(t *testing.T) {
				w, c := newTrialWorld(t)
				if down {
					_, err := c.stop(w.Context())
					w.must(err)
				}
				w.tryOut(c, otherPolicy)
				w.now = w.now.Add(time.Minute)
				unblock := w.block(file)
				w.mustFail(c.putBack(w.Context()), "save")
				putBack := func() {
					t.Helper()
					if c.down != down || w.inKernel("trusted4", "192.0.2.10") == down || w.inKernel("trusted4", "192.0.2.99") {
						t.Errorf("down: %v, kernel:\n%s", c.down, w.listing())
					}
				}
				putBack()
				if change, err := c.confirm(); err != nil || change.Changed {
					t.Errorf("confirm of what was put back = %+v, %v", change, err)
				}
				w.mustFail(c.note(), "save")
				unblock()
				w.must(c.note())
				putBack()
				if c.unnoted || c.store.Down() != down {
					t.Errorf("unnoted: %v, down on disk: %v, want %v", c.unnoted, c.store.Down(), down)
				}
				c = w.start()
				w.inForce(openPolicy)
				w.passedOver(c)
			})
		}
	}
}

func TestConfirm(t *testing.T) {
	w, c := newTrialWorld(t)
	if change, err := c.confirm(); err != nil || change.Changed {
		t.Errorf("confirm of nothing = %+v, %v", change, err)
	}
	w.tryOut(c, otherPolicy)
	if change, err := c.confirm(); err != nil || !change.Changed {
		t.Errorf("confirm = %+v, %v", change, err)
	}
	if c.trial.open() {
		t.Error("the trial goes on after its confirmation")
	}
	w.now = w.now.Add(time.Hour)
	w.start()
	w.inForce(otherPolicy)
}

// A trial of what is in force already ends in nothing, and its policy is passed over by
// nobody.
func TestTrialOfWhatIsInForce(t *testing.T) {
	w, c := newTrialWorld(t)
	w.tryOut(c, openPolicy)
	w.now = w.now.Add(time.Hour)
	w.must(c.putBack(w.Context()))
	if s := c.status(); s.Policy.Source != SourceFile || s.Policy.Error != "" {
		t.Errorf("status %+v", s.Policy)
	}
	_, err := c.reload(w.Context(), false)
	w.must(err)
	w.inForce(openPolicy)
}

// A second trial keeps the policy from before the first.
func TestTrialWithinATrial(t *testing.T) {
	w, c := newTrialWorld(t)
	w.tryOut(c, "version: 1\nsets: {trusted: [192.0.2.55]}\n")
	w.now = w.now.Add(30 * time.Second)
	w.tryOut(c, otherPolicy)
	if want := w.now.Add(time.Minute); !c.trial.Deadline.Equal(want) {
		t.Errorf("deadline %s, want %s", c.trial.Deadline, want)
	}
	w.must(c.putBack(w.Context()))
	w.inForce(openPolicy)
	w.passedOver(c)
}

// Each policy that was put back stays so until it is applied by hand.
func TestAllThatWasPutBackIsPassedOver(t *testing.T) {
	const third = "version: 1\nsets: {trusted: [192.0.2.55]}\n"
	w, c := newTrialWorld(t)
	for _, text := range []string{third, otherPolicy} {
		w.tryOut(c, text)
		w.must(c.putBack(w.Context()))
	}
	loads := func(text string, want bool) {
		t.Helper()
		w.policy(text)
		c = w.start()
		if got := c.policy.source == SourceFile; got != want {
			t.Errorf("a start loads what was put back: %v, want %v\n%s", got, want, text)
		}
		if _, err := c.reload(w.Context(), true); err == nil != want {
			t.Errorf("reload = %v\n%s", err, text)
		}
	}
	loads(third, false)
	loads(otherPolicy, false)
	_, err := c.apply(w.Context(), apply(third, w.cfg.PolicyPath))
	w.must(err)
	loads(third, true)
	loads(otherPolicy, false)
	w.tryOut(c, otherPolicy)
	_, err = c.confirm()
	w.must(err)
	loads(otherPolicy, true)

	for i := range 2 * maxPutBack {
		text := fmt.Sprintf("version: 1\nsets: {trusted: [192.0.2.%d]}\n", i)
		w.tryOut(c, text)
		w.must(c.putBack(w.Context()))
	}
	if n := len(c.trial.PutBack); n != maxPutBack {
		t.Errorf("%d policies are remembered, want %d", n, maxPutBack)
	}
	loads("version: 1\nsets: {trusted: [192.0.2.31]}\n", false)
}

// The end of a trial while nothing ran is no reason to forget the others.
func TestPutBackAtAStart(t *testing.T) {
	w, c := newTrialWorld(t)
	w.tryOut(c, "version: 1\nsets: {trusted: [192.0.2.55]}\n")
	w.must(c.putBack(w.Context()))
	w.tryOut(c, otherPolicy)
	w.now = w.now.Add(time.Hour)
	if c = w.start(); len(c.trial.PutBack) != 2 {
		t.Errorf("put back: %q, want two", c.trial.PutBack)
	}
	w.passedOver(c)
}

func TestReloadDuringATrial(t *testing.T) {
	w, c := newTrialWorld(t)
	w.tryOut(c, otherPolicy)
	_, err := c.reload(w.Context(), true)
	w.mustFail(err, "waits for `nftfw confirm`")
	s := c.status()
	if s.Policy.Source != SourceFile || s.Policy.Error != "" {
		t.Errorf("status %+v: the file is in force", s.Policy)
	}
	if by := s.Policy.ConfirmBy; by == nil || !by.Equal(w.now.Add(time.Minute)) {
		t.Errorf("to be confirmed by %v, want a minute from now", by)
	}
	_, err = c.confirm()
	w.must(err)
	if by := c.status().Policy.ConfirmBy; by != nil {
		t.Errorf("confirmed, and to be confirmed by %v", by)
	}
}

// An apply by hand settles a trial.
func TestApplyEndsATrial(t *testing.T) {
	w, c := newTrialWorld(t)
	w.tryOut(c, otherPolicy)
	_, err := c.apply(w.Context(), apply(openPolicy, w.cfg.PolicyPath))
	w.must(err)
	if c.trial.open() {
		t.Error("the trial goes on")
	}
	if _, err := os.Stat(filepath.Join(w.cfg.StateDir, "pending.json")); err == nil {
		t.Error("the trial is still on disk")
	}
}

// A trial that cannot be ended would take back what is applied: nothing is.
func TestApplyThatCannotEndATrial(t *testing.T) {
	const tried = "version: 1\nsets: {trusted: [192.0.2.55]}\n"
	w, c := newTrialWorld(t)
	w.tryOut(c, tried)
	before, trial := w.listing(), c.trial
	unblock := w.block("pending.json")
	_, err := c.apply(w.Context(), apply(otherPolicy, w.cfg.PolicyPath))
	w.mustFail(err, "save confirmation")
	if diff := cmp.Diff(before, w.listing()); diff != "" {
		t.Errorf("kernel (-want +got):\n%s", diff)
	}
	if got := w.savedPolicy(); got != tried || c.trial != trial {
		t.Errorf("trial %+v, policy on disk:\n%s", c.trial, got)
	}
	unblock()
	w.kernel.refuse = []error{errRefused}
	_, err = c.apply(w.Context(), apply(otherPolicy, w.cfg.PolicyPath))
	w.mustFail(err, "cannot allocate memory")
	if c = w.start(); !c.trial.open() || !w.inKernel("trusted4", "192.0.2.55") {
		t.Errorf("after an apply that was refused the trial is %+v", c.trial)
	}
	c.kernel = &lostKernel{w.kernel, func() { w.block("pending.json") }}
	_, err = c.apply(w.Context(), apply(otherPolicy, w.cfg.PolicyPath))
	w.mustFail(err, "cannot allocate memory", "save confirmation")
	if !c.trial.open() {
		t.Error("the trial is over because the disk does not take it any more")
	}
}

func TestRefusedTrialLeavesTheFormer(t *testing.T) {
	w, c := newTrialWorld(t)
	w.kernel.refuse = []error{errRefused}
	request := apply(otherPolicy, w.cfg.PolicyPath)
	request.Confirm = time.Minute
	_, err := c.apply(w.Context(), request)
	w.mustFail(err, "cannot allocate memory")
	if c.trial.open() {
		t.Error("a trial that never began waits for its end")
	}
	w.inForce(openPolicy)
}

func TestTrialOverNothing(t *testing.T) {
	w, c := newTrialWorld(t)
	_, err := c.stop(w.Context())
	w.must(err)
	w.tryOut(c, otherPolicy)
	w.must(c.putBack(w.Context()))
	if got := w.listing(); got != "" {
		t.Errorf("nothing was enforced before, now:\n%s", got)
	}
	// A restart enforces, and not what was put back.
	c = w.start()
	w.inForce(openPolicy)
	w.passedOver(c)
}

// Whoever calls down wants nothing enforced, also when the time is up.
func TestDownDuringATrial(t *testing.T) {
	w, c := newTrialWorld(t)
	w.tryOut(c, otherPolicy)
	_, err := c.stop(w.Context())
	w.must(err)
	w.must(c.putBack(w.Context()))
	if got := w.listing(); got != "" {
		t.Errorf("table after down:\n%s", got)
	}
	w.start()
	w.inForce(openPolicy)
}

// A down that was refused leaves the trial as it was.
func TestDownRefusedDuringATrial(t *testing.T) {
	w, c := newTrialWorld(t)
	w.tryOut(c, otherPolicy)
	w.kernel.refuse = []error{errRefused}
	_, err := c.stop(w.Context())
	w.mustFail(err, "cannot allocate memory")
	w.must(c.putBack(w.Context()))
	w.inForce(openPolicy)
}

func TestDamagedTrialIsSurvived(t *testing.T) {
	for _, text := range []string{"", "{", "[]"} {
		w, c := newTrialWorld(t)
		w.tryOut(c, otherPolicy)
		w.write(filepath.Join(w.cfg.StateDir, "pending.json"), text)
		c = w.start()
		w.inForce(otherPolicy)
		if !strings.Contains(w.log.String(), "waits for a confirmation forgotten") {
			t.Errorf("pending.json %q: the log does not say so:\n%s", text, w.log)
		}
		_, err := c.apply(w.Context(), apply(openPolicy, w.cfg.PolicyPath))
		w.must(err)
		if _, err := os.Stat(filepath.Join(w.cfg.StateDir, "pending.json")); err == nil {
			t.Error("the damaged file stays")
		}
	}
}
