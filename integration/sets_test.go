package integration

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nftfw/nftfw/integration/lab"
)

func TestScenario06SetsAddDel(t *testing.T) {
	s := scene(t, "")
	s.run("web", "-p", "8080:80", "-p", "8080:80/udp")
	probes := hostPorts("8080", "8080/udp")
	s.ready("web", "8080", "8080/udp")
	addrs := []string{s.permitted.V4.String(), s.permitted.V6.String()}

	// Not a moment is allowed for a change to come into force.
	answered := func() {
		t.Helper()
		s.each(probes, func(p lab.Probe) error {
			p.Timeout = 2 * time.Second
			if r := s.permitted.Probe(s.ctx(), p); r.Outcome != lab.Answered {
				return fmt.Errorf("%s: %s, want it answered at once", p, r)
			}
			return nil
		})
	}
	s.closed(s.permitted.Namespace, probes)
	for range 3 {
		s.nftfw(append([]string{"sets", "add", "trusted"}, addrs...)...)
		answered()
		s.nftfw(append([]string{"sets", "del", "trusted"}, addrs...)...)
		s.closed(s.permitted.Namespace, probes)
	}

	for _, stopped := range []bool{false, true} {
		t.Logf("a timeout, the daemon stopped: %v", stopped)
		began := time.Now()
		s.nftfw(append([]string{"sets", "add", "trusted", "--timeout", "2s"}, addrs...)...)
		answered()
		if stopped {
			if err := s.fw.Stop(s.ctx()); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(began); took < 1500*time.Millisecond {
			answered()
		}
		s.closes(s.permitted.Namespace, probes)
		if took := time.Since(began); took < 1800*time.Millisecond || took > 5*time.Second {
			t.Errorf("a timeout of 2s ended after %s", took)
		}
	}

	t.Log("add and del with the daemon stopped")
	s.nftfw(append([]string{"sets", "add", "trusted"}, addrs...)...)
	answered()
	s.nftfw(append([]string{"sets", "del", "trusted"}, addrs...)...)
	s.closed(s.permitted.Namespace, probes)
}

// TestScenario07OverlappingEntries adds entries that overlap and touch, takes
// them away in some order, and compares what packets meet with the union of
// what is left.
func TestScenario07OverlappingEntries(t *testing.T) {
	s := scene(t, "version: 1\nsets: {office: []}\n")
	s.run("web", "-p", "8080:80", "--label", "nftfw.expose=office")
	s.ready("web", "8080")
	entries := []string{
		"198.0.0.0/8", "198.18.3.5", // one within the other
		"198.18.3.16/29", "198.18.3.24/29", // neighbours
		"198.18.3.30-198.18.3.40", "198.18.3.41-198.18.3.50", // a range that overlaps, one that touches
		"fd00:18::3:0/112", "fd00:18::3:5", "fd00:18::2:fff0-fd00:18::3:f",
	}
	asked := []pair{
		newPair("198.18.3.5", "fd00:18::3:5"),
		newPair("198.18.3.16", "fd00:18::3:f"),
		newPair("198.18.3.31", "fd00:18::3:10"),
		newPair("198.18.3.41", "fd00:18::2:fff0"),
		newPair("198.18.3.51", "fd00:18::2:ffef"),
	}
	s.lend(s.stranger, asked...)
	var all []netip.Addr
	for _, p := range asked {
		all = append(all, p.v4, p.v6)
	}
	compare := func(left []string) {
		t.Helper()
		var can, cannot []lab.Probe
		for _, a := range all {
			probes := from(hostPorts("8080"), a)
			if slices.ContainsFunc(left, func(e string) bool { return covers(t, e, a) }) {
				can = append(can, probes...)
			} else {
				cannot = append(cannot, probes...)
			}
		}
		if len(can) > 0 {
			s.open(s.stranger.Namespace, "web", can)
		}
		if len(cannot) > 0 {
			s.closed(s.stranger.Namespace, cannot)
		}
		if t.Failed() {
			t.Fatalf("with entries %q", left)
		}
	}
	for seed := range uint64(2) {
		order := rand.New(rand.NewPCG(seed, 0))
		left := slices.Clone(entries)
		order.Shuffle(len(left), func(i, j int) { left[i], left[j] = left[j], left[i] })
		s.nftfw(append([]string{"sets", "add", "office"}, left...)...)
		compare(left)
		order.Shuffle(len(left), func(i, j int) { left[i], left[j] = left[j], left[i] })
		for len(left) > 0 {
			s.nftfw("sets", "del", "office", left[0])
			left = left[1:]
			compare(left)
		}
	}

	t.Log("each address until its latest expiry")
	first, second := from(hostPorts("8080"), asked[0].v4), from(hostPorts("8080"), asked[1].v4)
	s.nftfw("sets", "add", "office", "198.18.3.0/28", "--timeout", "1h")
	s.nftfw("sets", "add", "office", "198.18.3.0/24", "--timeout", "1s")
	s.nftfw("sets", "add", "office", "198.18.3.5", "--timeout", "1s")
	s.closes(s.stranger.Namespace, second)
	s.open(s.stranger.Namespace, "web", first)
	t.Log("adding what is there renews its timeout")
	s.nftfw("sets", "add", "office", "198.18.3.0/28", "--timeout", "1s")
	s.closes(s.stranger.Namespace, first)
}

// covers says whether an entry as a user writes it covers an address.
func covers(t *testing.T, entry string, a netip.Addr) bool {
	t.Helper()
	if lo, hi, ok := strings.Cut(entry, "-"); ok {
		return netip.MustParseAddr(lo).Compare(a) <= 0 && a.Compare(netip.MustParseAddr(hi)) <= 0
	}
	if p, err := netip.ParsePrefix(entry); err == nil {
		return p.Contains(a)
	}
	return netip.MustParseAddr(entry) == a
}
