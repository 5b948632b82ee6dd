package daemon

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nftfw/nftfw/nft"
	"github.com/nftfw/nftfw/pkg/api"
	"github.com/nftfw/nftfw/pkg/inventory"
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

// tracked gives the clients of the TCP connections that the kernel tracks.
func (w *world) tracked() []string {
	w.Helper()
	var out []string
	w.must(w.kernel.Flows(w.Context(), func(flows []nft.Flow) {
		for _, f := range flows {
			if f.Proto == protoTCP {
				out = append(out, f.Src.Addr().String())
			}
		}
	}))
	slices.Sort(out)
	return out
}

// Before the engine has said what runs, those who lose a port of the host are cut. All
// others are looked at after its answer.
func TestCutsBeforeTheEngineAnswers(t *testing.T) {
	const unknown, toHost, toContainer, through = "198.18.0.6", "198.18.0.7", "198.18.0.8", "198.18.0.9"
	w := newWorld(t)
	w.cfg.NoDocker = false
	run(t, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
	address(t, "eth0", "198.18.0.1/24")
	address(t, "eth1", "198.19.0.1/24")
	w.policy(`version: 1
host: {allow: [{ports: [9100/tcp], from: trusted}]}
containers: {default: trusted}
forward: {default: drop, allow: [{from: trusted}]}
`)
	c := w.start()
	w.mustFail(c.withdrawNow(w.Context()), "the engine has not said yet what runs") // who got in before
	_, err := c.addToSet(w.Context(), "trusted", add(toHost, toContainer, through))
	w.must(err)
	w.must(c.withdrawNow(w.Context()))
	w.must(w.kernel.TrackFlows(w.Context(), []nft.Flow{
		flow(protoTCP, toHost+":4000", "198.18.0.1:9100", "198.18.0.1:9100"),
		flow(protoTCP, toContainer+":4000", "198.18.0.1:8080", "172.17.0.2:80"),
		flow(protoTCP, through+":4000", "198.19.0.5:80", "198.19.0.5:80"),     // and to a container too
		flow(protoTCP, unknown+":4000", "198.18.0.1:8081", "198.18.0.1:8081"), // a container's, it may be
	}))
	_, err = c.deleteFromSet(w.Context(), "trusted", add(toHost, toContainer, through))
	w.must(err)
	w.mustFail(c.withdrawNow(w.Context()), "the engine has not said yet what runs")
	if diff := cmp.Diff([]string{unknown, toContainer, through}, w.tracked()); diff != "" {
		t.Errorf("tracked (-want +got):\n%s", diff)
	}
	w.must(c.withdrawNow(w.Context()))

	snap := docker("a")
	snap.Containers[0].Ports = []inventory.Port{{HostIP: netip.IPv4Unspecified(), HostPort: 8081, ContainerPort: 81, Proto: protoTCP}}
	c.takeEngine(snap)
	w.must(c.reconcile(w.Context()))
	if wd := c.withdrawal(); wd == nil || !wd.look || !wd.opened || wd.before != nil {
		t.Fatalf("after the engine's answer %+v is to be done, want a look at all", wd)
	}
	c.revoked.look = true
	w.must(c.withdrawNow(w.Context()))
	if diff := cmp.Diff([]string{unknown}, w.tracked()); diff != "" {
		t.Errorf("tracked after the engine's answer (-want +got):\n%s", diff)
	}
}

// Whoever takes access away before the engine has said what runs is told.
func TestCommandsBeforeTheEngineAnswers(t *testing.T) {
	w := newWorld(t)
	w.cfg.NoDocker = false
	w.policy(openPolicy)
	client := serving(t, &Daemon{core: w.start(), log: discard}, w.cfg.Socket)
	warns := func(out api.Change, err error) bool {
		t.Helper()
		w.must(err)
		return strings.Contains(strings.Join(out.Warnings, "\n"), "may live on: the engine has not said yet what runs")
	}
	if warns(client.AddToSet(w.Context(), "trusted", add("203.0.113.1"))) {
		t.Error("add warns")
	}
	if !warns(client.DeleteFromSet(w.Context(), "trusted", add("203.0.113.1"))) {
		t.Error("del does not warn")
	}
	if warns(client.AddToSet(w.Context(), "trusted", add("203.0.113.2"))) {
		t.Error("another add warns")
	}
}

func TestDirectApplyWithoutAnEngine(t *testing.T) {
	w := newWorld(t)
	w.cfg.NoDocker, w.cfg.DockerHost = false, "unix:///nowhere/docker.sock"
	out, err := w.direct().Apply(w.Context(), apply(openPolicy, w.cfg.PolicyPath))
	w.must(err)
	if got := strings.Join(out.Warnings, "\n"); !strings.Contains(got, "the engine has not said yet what runs") {
		t.Errorf("warnings %q", got)
	}
}

// What is refused or granted again is asked anew where the table is another one by then.
func TestJudgedAgainUnderANewerTable(t *testing.T) {
	w := newWorld(t)
	run(t, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
	address(t, "eth0", "198.18.0.1/24")
	w.policy("version: 1\nhost: {allow: [{ports: [9100/tcp], from: trusted}]}\n")
	c := w.start()
	flows := func() []nft.Flow {
		return []nft.Flow{flow(protoTCP, "198.18.0.8:4000", "198.18.0.1:9100", "198.18.0.1:9100")}
	}
	asked := func() *withdrawal {
		t.Helper()
		wd := c.withdrawal()
		if wd == nil {
			t.Fatal("nothing is to be done")
		}
		w.must(wd.ask(w.Context()))
		return wd
	}
	change := func(do func(context.Context, string, api.SetChange) (api.Change, error)) {
		t.Helper()
		_, err := do(w.Context(), "trusted", add("198.18.0.8"))
		w.must(err)
	}

	wd := asked()
	if got := c.stillRefused(wd, flows()); len(got) != 1 {
		t.Error("let in by the table that refused it")
	}
	change(c.addToSet)
	if got := c.stillRefused(wd, flows()); len(got) > 0 {
		t.Error("cut though it is allowed by now")
	}

	w.must(c.cut(w.Context(), flows()))
	wd = asked()
	if len(wd.granted) != 1 {
		t.Fatalf("%d cuts are granted again, want one", len(wd.granted))
	}
	change(c.deleteFromSet)
	w.must(c.grant(w.Context(), wd, wd.granted))
	if len(c.revoked.cuts) != 1 {
		t.Error("let in again by a table that refuses it")
	}
}
