package integration

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/nftfw/nftfw/integration/lab"
)

// Without nftfw everything that Docker leaves open is open: that shows that the
// probes of the other tests can succeed, on every path that nftfw must close.
func TestLabWithoutFirewall(t *testing.T) {
	s := bare(t)
	x := s.run("web", "-p", "8080:80", "-p", "8080:80/udp", "-p", "127.0.0.1:8082:81")
	bridge := x.Addr4("bridge")

	t.Log("a stranger reaches a published port, over IPv6 through docker-proxy")
	s.open(s.stranger.Namespace, "web", hostPorts("8080/tcp", "8080/udp"))
	t.Log("a neighbour with a route reaches the container's own ports")
	s.openUntil(28, s.routed.Namespace, "web", addrPorts(bridge, "80/tcp", "80/udp"))
	t.Log("the host reaches the container")
	s.open(s.Host.Namespace, "web", addrPorts(bridge, "80"))
	t.Log("what is not there is not reached")
	s.closed(s.stranger.Namespace, hostPorts("8081/tcp", "8081/udp"))
	s.closed(s.stranger.Namespace, addrPorts(bridge, "80"))
}

func TestLabLoopbackHole(t *testing.T) {
	s := bare(t)
	s.runSpec(lab.Spec{Name: "web", Options: []string{"-p", "127.0.0.1:8082:81"}, Args: []string{"tcp:81"}})
	loopback := addrPorts(netip.MustParseAddr("127.0.0.1"), "8082")
	s.open(s.Host.Namespace, "web", loopback)
	s.openUntil(28, s.loopback.Namespace, "web", loopback)
	s.closed(s.stranger.Namespace, hostPorts("8082"))
}

// A rule set by hand turns the same probes the other way.
func TestLabProbesSeeRules(t *testing.T) {
	s := bare(t)
	s.run("web", "-p", "8080:80", "-p", "8080:80/udp")
	probes := hostPorts("8080/tcp", "8080/udp")
	s.open(s.stranger.Namespace, "web", probes)
	rules := `table inet nftfw {
		chain forward { type filter hook forward priority -10; ip saddr 198.18.0.66 drop; ip6 saddr fd00:18::66 drop; }
		chain input { type filter hook input priority -10; ip saddr 198.18.0.66 drop; ip6 saddr fd00:18::66 drop; }
	}`
	if err := s.Host.NFT(s.ctx(), rules); err != nil {
		t.Fatal(err)
	}
	s.closed(s.stranger.Namespace, probes)
	s.open(s.permitted.Namespace, "web", probes)
}

func TestLabHammer(t *testing.T) {
	s := bare(t)
	targets := []netip.AddrPort{netip.AddrPortFrom(lab.HostV4, 8080), netip.AddrPortFrom(lab.HostV6, 8080)}
	h := s.stranger.Hammer(targets...)
	s.run("web", "-p", "8080:80")
	s.open(s.permitted.Namespace, "web", hostPorts("8080"))
	tally, err := h.Stop()
	if err != nil {
		t.Fatal(err)
	}
	if tally.Refused == 0 {
		t.Errorf("nothing was refused before the container was there: %+v", tally)
	}
	for _, to := range targets {
		if tally.Connected[to] == 0 {
			t.Errorf("no connection to %s: %+v", to, tally)
		}
	}
	t.Logf("%+v", tally)
}

// What a killed process left behind goes with the next lab.
func TestLabRemovesAbandoned(t *testing.T) {
	needRoot(t)
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("nftfwlab%d-1", gone.Process.Pid)
	if out, err := exec.Command("ip", "netns", "add", name+"-host").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	left := lab.PathNamespace("/run/netns/"+name+"-host").Command(t.Context(), "sleep", "60")
	left.Env = []string{"NFTFW_LAB=" + name}
	if err := left.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- left.Wait() }()

	l, err := lab.New(t.Context(), newLogger())
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	for _, path := range []string{"/run/netns/" + name + "-host", l.Dir(), l.Host.Path()} {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there (stat: %v)", path, err)
		}
	}
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Error("the abandoned process lives")
	}
}

// With IPv6 in the engine's own hands packets are forwarded, not proxied: the
// server sees the client's address.
func TestLabDualStackEngine(t *testing.T) {
	s := bare(t, dualStack...)
	web := s.run("web", "-p", "8080:80", "-p", "8080:80/udp")
	s.open(s.stranger.Namespace, "web", hostPorts("8080/tcp", "8080/udp"))
	s.openUntil(28, s.routed.Namespace, "web", addrPorts(web.Addr6("bridge"), "80/tcp", "80/udp"))
	for _, p := range hostPorts("8080") {
		want := s.stranger.V4
		if p.To.Addr().Is6() {
			want = s.stranger.V6
		}
		if r := s.stranger.Probe(s.ctx(), p); r.Peer.Addr() != want {
			t.Errorf("%s: %s, want the server to see %s", p, r, want)
		}
	}
}
