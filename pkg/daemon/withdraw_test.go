package daemon

import (
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nftfw/nftfw/nft"
	"github.com/nftfw/nftfw/pkg/ruleset"
)

// While a table cannot be put right connections are looked at more and more rarely, and
// what was to be done stays so.
func TestFailedWithdrawals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &Daemon{core: &core{}, log: discard, retry: time.NewTimer(time.Hour)}
		stale := &nft.CommitError{Op: "x", Errno: unix.ENOENT}
		againIn := func(want time.Duration) {
			t.Helper()
			if wait := time.Until(d.withdrawals.notTill); wait != want {
				t.Errorf("again in %s, want %s", wait, want)
			}
		}
		for i, want := range []time.Duration{retryFirst, 2 * retryFirst, 4 * retryFirst, 8 * retryFirst} {
			d.core.revoked = revocation{}
			d.withdrawn(&withdrawal{look: true, opened: i%2 == 0}, stale)
			againIn(want)
			if r := d.core.revoked; !r.look || r.opened != (i%2 == 0) || !r.regard {
				t.Errorf("failure %d: what is to be done is forgotten: %+v", i+1, r)
			}
		}
		for range 20 {
			d.withdrawn(&withdrawal{}, stale)
		}
		againIn(withdrawAgain)
		d.withdrawn(&withdrawal{}, nil)
		d.withdrawn(&withdrawal{}, stale)
		againIn(retryFirst)
	})
}

// What was let in before it is still to be compared with.
func TestFailedEarlyWithdrawal(t *testing.T) {
	before, now := &ruleset.Table{Name: "before"}, &ruleset.Table{Name: "now"}
	for _, early := range []*ruleset.Table{now, nil} { // nil: the engine has answered
		d := &Daemon{core: &core{}, log: discard}
		d.core.revoked.early = early
		d.withdrawn(&withdrawal{look: true, early: true, before: before}, errRefused)
		if got := d.core.revoked.early; early == nil && got != nil || early != nil && got != before {
			t.Errorf("compared with %v", got)
		}
	}
}

// A table that is being put right more and more rarely is not hurried by it.
func TestFailedWithdrawalLeavesTheRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, backoff := range []time.Duration{0, retryMost} {
			d := &Daemon{core: &core{}, log: discard, retry: time.NewTimer(time.Hour), backoff: backoff}
			began := time.Now()
			d.withdrawn(&withdrawal{}, &nft.CommitError{Op: "x", Errno: unix.ENOENT})
			<-d.retry.C
			if soon := time.Since(began) == retryFirst; soon != (backoff == 0) {
				t.Errorf("the table is tried again after %s, with a pause of %s", time.Since(began), backoff)
			}
		}
	})
}
