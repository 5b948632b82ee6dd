package daemon

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/nftfw/nftfw/nft"
	"github.com/nftfw/nftfw/policy"
)

// unwanted is a connection that openPolicy refuses.
func unwanted(proto uint8, client string) nft.Flow {
	return flow(proto, client, "127.0.0.1:9100", "127.0.0.1:9100")
}

// While connections go on being cut, those whose time is over are forgotten.
func TestCutsAreForgotten(t *testing.T) {
	w, c := newTrialWorld(t)
	for hour := range 24 {
		client := netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(hour)}), 4000)
		w.must(c.cut(w.Context(), []nft.Flow{unwanted(protoTCP, client.String())}))
		c.revoked.look = true
		w.must(c.withdrawNow(w.Context()))
		// Each is held for three hours, and a recount comes when the first is over.
		if n := len(c.revoked.cuts); n < min(hour+1, 3) || n > 4 {
			t.Fatalf("%d cuts are known after %d hours", n, hour)
		}
		w.now = w.now.Add(time.Hour)
	}
}

// The kernel is asked when the first of the cuts ends, and not again and again.
func TestCutsAreRecountedNowAndThen(t *testing.T) {
	w, c := newTrialWorld(t)
	cutFor := func(proto uint8, client string) {
		t.Helper()
		w.must(c.cut(w.Context(), []nft.Flow{unwanted(proto, client)}))
	}
	recheckIn := func(want time.Duration) {
		t.Helper()
		if got := c.revoked.recheck.Sub(w.now).Round(time.Second); got != want {
			t.Errorf("recount in %s, want %s", got, want)
		}
	}
	cutFor(protoTCP, "203.0.113.1:4000")
	recheckIn(3 * time.Hour)
	cutFor(17, "203.0.113.1:4000")
	recheckIn(3 * time.Minute)
	w.now = w.now.Add(2*time.Minute + 59*time.Second)
	cutFor(17, "203.0.113.2:4000")
	recheckIn(time.Second)
	w.now = w.now.Add(time.Second)
	w.must(c.withdrawNow(w.Context()))
	recheckIn(recountEvery)
	w.now = w.now.Add(recountEvery)
	w.must(c.withdrawNow(w.Context()))
	recheckIn(3*time.Hour - 3*time.Minute - recountEvery)

	// Of a table that stands the kernel has yet to tell which there are.
	c = w.start()
	cutFor(protoTCP, "203.0.113.9:4000")
	if !c.revoked.recheck.IsZero() {
		t.Error("the cuts of the daemon before are not asked for at once")
	}
	w.must(c.withdrawNow(w.Context()))
	if n := len(c.revoked.cuts); n != 2 {
		t.Errorf("%d cuts are known after a restart, want 2", n)
	}
}

// Each family has room for as many. Of what is too much the log says so.
func TestRoomForCuts(t *testing.T) {
	w, c := newTrialWorld(t)
	full := func(first string) {
		c.revoked.cuts = cutFlows{}
		client := netip.MustParseAddr(first)
		for range policy.MaxCuts {
			c.revoked.cuts[idOf(nft.Cut{Proto: protoTCP, Client: netip.AddrPortFrom(client, 1)})] = w.now.Add(time.Hour).UnixNano()
			client = client.Next()
		}
	}
	flows := []nft.Flow{unwanted(protoTCP, "203.0.113.1:4000"), unwanted(protoTCP, "203.0.113.2:4000")}
	full("fd00::1")
	w.must(c.cut(w.Context(), flows))
	if n := len(c.revoked.cuts) - policy.MaxCuts; n != 2 {
		t.Errorf("%d cuts of IPv4 where IPv6 has no room left, want 2", n)
	}
	if got := w.log.String(); !strings.Contains(got, "permission\" connections=2") || strings.Contains(got, "too many") {
		t.Errorf("log:\n%s", got)
	}
	full("10.0.0.1")
	delete(c.revoked.cuts, idOf(nft.Cut{Proto: protoTCP, Client: netip.MustParseAddrPort("10.0.0.1:1")}))
	w.must(c.cut(w.Context(), flows))
	if n := len(c.revoked.cuts); n != policy.MaxCuts {
		t.Errorf("%d cuts, want %d", n, policy.MaxCuts)
	}
	if got := w.log.String(); !strings.Contains(got, "permission\" connections=1") || !strings.Contains(got, "too many") {
		t.Errorf("log:\n%s", got)
	}
}
