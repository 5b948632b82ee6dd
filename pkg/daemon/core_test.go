package daemon

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nftfw/nftfw/nft"
	"github.com/nftfw/nftfw/pkg/api"
	"github.com/nftfw/nftfw/pkg/inventory"
)

const otherPolicy = `version: 1
sets:
  trusted: [192.0.2.99]
`

func apply(text, path string) api.Apply { return api.Apply{Source: []byte(text), Path: path} }

func TestApplyRefusedByTheKernel(t *testing.T) {
	w := newWorld(t)
	w.policy(openPolicy)
	c := w.start()
	before := w.listing()
	w.kernel.refuse = []error{errRefused}
	_, err := c.apply(w.Context(), apply(otherPolicy, w.cfg.PolicyPath))
	w.mustFail(err, "cannot allocate memory")
	if diff := cmp.Diff(before, w.listing()); diff != "" {
		t.Errorf("kernel (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(openPolicy, w.savedPolicy()); diff != "" {
		t.Errorf("policy on disk (-want +got):\n%s", diff)
	}
	if s := c.status(); !s.Enforced || s.Policy.Source != SourceFile || s.Policy.Error != "" {
		t.Errorf("status %+v, want the former policy enforced", s)
	}
	if diff := cmp.Diff([]string{"192.0.2.10"}, texts(c.sets["trusted"])); diff != "" {
		t.Errorf("set shown (-want +got):\n%s", diff)
	}
}

// The kernel refuses the first policy that a host is ever given.
func TestFirstApplyRefusedLeavesNothing(t *testing.T) {
	for _, down := range []bool{false, true} {
		w := newWorld(t)
		c := w.fresh()
		w.must(c.loadSets())
		w.must(c.store.SetDown(down))
		c.setPolicy(savedPolicy(w.cfg.PolicyPath, c.store))
		w.must(c.adopt(w.Context()))
		w.kernel.refuse = []error{errRefused}
		_, err := c.apply(w.Context(), apply(openPolicy, w.cfg.PolicyPath))
		w.mustFail(err, "cannot allocate memory")
		if got := w.listing(); got != "" {
			t.Errorf("a refused apply left a table:\n%s", got)
		}
		if got := w.savedPolicy(); got != "none" {
			t.Errorf("policy on disk %q, want none", got)
		}
		if c.store.Down() != down {
			t.Errorf("down = %v, want %v", !down, down)
		}
	}
}

func TestApplyNotSaved(t *testing.T) {
	w := newWorld(t)
	w.policy(openPolicy)
	c := w.start()
	before := w.listing()
	saved := filepath.Join(w.cfg.StateDir, "policy.yaml")
	w.must(os.Remove(saved))
	w.must(os.MkdirAll(filepath.Join(saved, "x"), 0o700))
	_, err := c.apply(w.Context(), apply(otherPolicy, w.cfg.PolicyPath))
	w.mustFail(err, "save policy")
	if diff := cmp.Diff(before, w.listing()); diff != "" {
		t.Errorf("kernel (-want +got):\n%s", diff)
	}
}

// That the note of a `down` cannot be removed takes the policy back too.
func TestApplyWhileDownNotSaved(t *testing.T) {
	w := newWorld(t)
	w.policy(openPolicy)
	c := w.start()
	_, err := c.stop(w.Context())
	w.must(err)
	w.block("down")
	_, err = c.apply(w.Context(), apply(otherPolicy, w.cfg.PolicyPath))
	w.mustFail(err, "note that enforcement is on")
	if diff := cmp.Diff(openPolicy, w.savedPolicy()); diff != "" {
		t.Errorf("policy on disk (-want +got):\n%s", diff)
	}
	if got := w.listing(); got != "" || !c.down {
		t.Errorf("down: %v, kernel:\n%s", c.down, got)
	}
}

// A policy may take access away by what it adds.
func TestApplyListsConnections(t *testing.T) {
	w := newWorld(t)
	w.policy(openPolicy)
	c := w.start()
	c.revoked.look = false
	_, err := c.apply(w.Context(), apply(openPolicy, w.cfg.PolicyPath))
	w.must(err)
	if !c.revoked.look {
		t.Error("an apply lists no connections")
	}
	w.tryOut(c, openPolicy+"# on trial\n")
	c.revoked.look = false
	w.must(c.putBack(w.Context()))
	if !c.revoked.look {
		t.Error("no connections are listed when a policy is put back")
	}
}

func TestBadPolicyChangesNothing(t *testing.T) {
	w := newWorld(t)
	w.policy(openPolicy)
	c := w.start()
	before := w.listing()
	for name, text := range map[string]string{
		"mistake":      "version: 1\nsets: {trusted: [192.0.2.300]}\n",
		"half written": openPolicy[:len(openPolicy)-8],
		"empty":        "",
	} {
		w.run(name, func(w *world) {
			w.policy(text)
			_, err := c.reload(w.Context(), false)
			w.mustFail(err, w.cfg.PolicyPath+":")
			if asAPIError(err).Kind != api.KindPolicy {
				w.Errorf("kind %s", asAPIError(err).Kind)
			}
			if s := c.status(); !s.Enforced || s.Policy.Source != SourceLastGood || s.Policy.Error == "" {
				w.Errorf("status %+v, want the last good policy and the mistake", s.Policy)
			}
			if diff := cmp.Diff(before, w.listing()); diff != "" {
				t.Errorf("kernel (-want +got):\n%s", diff)
			}
		})
	}
	w.must(os.Remove(w.cfg.PolicyPath))
	_, err := c.reload(w.Context(), false)
	w.mustFail(err, "is gone; the policy in force stays")
	w.policy(openPolicy)
	_, err = c.reload(w.Context(), false)
	w.must(err)
	if s := c.status(); s.Policy.Source != SourceFile || s.Policy.Error != "" {
		t.Errorf("status after a good reload %+v", s.Policy)
	}
}

// After a commit that went wrong the kernel is asked before it is believed.
func TestFailedCommitIsObserved(t *testing.T) {
	w := newWorld(t)
	w.policy(openPolicy)
	c := w.start()
	want := w.listing()
	w.kernel.refuse = []error{errRefused}
	c.declared, c.sets["trusted"] = nil, c.sets["office"]
	w.mustFail(c.reconcile(w.Context()), "cannot allocate memory")
	if !c.unsettled() {
		t.Error("what should be in force is not, and the core takes it for settled")
	}
	w.nft("flush", "ruleset") // nobody tells
	c.setPolicy(c.policy)
	w.must(c.reconcile(w.Context()))
	if diff := cmp.Diff(want, w.listing()); diff != "" {
		t.Errorf("kernel (-want +got):\n%s", diff)
	}
}

func TestStaleCommitIsRetried(t *testing.T) {
	w := newWorld(t)
	w.policy(openPolicy)
	c := w.start()
	if _, err := c.addToSet(w.Context(), "trusted", add("203.0.113.1")); err != nil {
		t.Fatal(err)
	}
	w.nft("flush", "ruleset") // ahead of the kernel's message
	if _, err := c.deleteFromSet(w.Context(), "trusted", add("203.0.113.1")); err != nil {
		t.Fatalf("delete from a table that is gone: %v", err)
	}
	if !w.inKernel("trusted4", "192.0.2.10") || w.inKernel("trusted4", "203.0.113.1") {
		t.Errorf("kernel after the commit:\n%s", w.listing())
	}
	// The message comes now: it is counted, once, though all is well.
	for i, want := range []bool{true, false} {
		if got, err := c.check(w.Context(), true); err != nil || got != want {
			t.Errorf("check %d = %v, %v, want %v", i, got, err, want)
		}
	}
}

// Of very many elements those that decide are in force first, in one transaction.
// Where the others are refused, what was asked for is in force all the same, and they
// follow with the next change.
func TestCountsComeLast(t *testing.T) {
	w := newWorld(t)
	w.policy(openPolicy)
	c := w.start()
	serving := func(ports uint16) []inventory.Container {
		list := docker("a", "b").Containers
		for i := range list {
			list[i].Labels, list[i].Ports = nil, nil
			for port := range ports {
				list[i].Ports = append(list[i].Ports, inventory.Port{
					HostIP: netip.IPv4Unspecified(), HostPort: 10000 + 1000*uint16(i) + port, ContainerPort: 100 + port, Proto: protoTCP,
				})
			}
		}
		return list
	}
	c.engine, c.links = docker(), dockerLinks()
	c.engine.Containers = serving(1)
	few := w.kernel.commits
	w.must(c.reconcile(w.Context()))
	if got := w.kernel.commits - few; got != 1 {
		t.Errorf("%d commits for few elements, want one", got)
	}
	c.engine.Containers = serving(200)
	w.kernel.refuse = []error{nil, errRefused}
	w.must(c.reconcile(w.Context()))
	elements := func(set string) int { return strings.Count(w.nft("list", "set", "inet", "nftfw", set), " . tcp . ") }
	if got := strings.Count(w.nft("list", "map", "inet", "nftfw", "published4"), " . tcp . "); got != 400 {
		t.Errorf("%d elements decide, want 400", got)
	}
	if got := elements("refused4"); got != 2 {
		t.Errorf("%d elements count already, want the 2 of before", got)
	}
	w.must(c.reconcile(w.Context()))
	if got := elements("refused4"); got != 400 || c.unsettled() {
		t.Errorf("%d elements count, unsettled %v", got, c.unsettled())
	}
	want := c.table
	have, err := c.kernel.Observe(w.Context(), w.cfg.Table)
	w.must(err)
	if plan := nft.Diff(have, want, time.Now()); !plan.Empty() {
		t.Errorf("the kernel differs:\n%s", strings.Join(plan.Lines(), "\n"))
	}
}

func TestStaleForEverEnds(t *testing.T) {
	w := newWorld(t)
	w.policy(openPolicy)
	c := w.start()
	for range 2 * commitAttempts {
		w.kernel.refuse = append(w.kernel.refuse, &nft.CommitError{Op: "x", Errno: unix.ENOENT})
	}
	_, err := c.addToSet(w.Context(), "trusted", add("203.0.113.1"))
	w.mustFail(err, "no such file")
	if left := len(w.kernel.refuse); left != commitAttempts {
		t.Errorf("%d commits were tried, want %d", 2*commitAttempts-left, commitAttempts)
	}
}

func TestCheckPutsRight(t *testing.T) {
	tamper := map[string][]string{
		"flush":   {"flush", "ruleset"},
		"delete":  {"delete", "table", "inet", "nftfw"},
		"element": {"add", "element", "inet", "nftfw", "trusted4", "{ 203.0.113.66 }"},
		"chain":   {"flush", "chain", "inet", "nftfw", "input"},
	}
	for name, args := range tamper {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.policy(openPolicy)
			c := w.start()
			want := w.listing()
			d := &Daemon{core: c, log: discard, retry: time.NewTimer(time.Hour)}
			w.nft(args...)
			for range 3 { // one flush may be told of more than once
				d.restore(w.Context(), nft.Event{Process: "nft", PID: 7})
			}
			if diff := cmp.Diff(want, w.listing()); diff != "" {
				t.Errorf("kernel (-want +got):\n%s", diff)
			}
			if d.restores != 1 || d.restored.Process != "nft" || d.restored.PID != 7 {
				t.Errorf("%d restores, the last %+v, want one of nft", d.restores, d.restored)
			}
		})
	}
}

// A restore that fails at first is done by the retry, and counted then.
func TestRestoreThatFailsAtFirst(t *testing.T) {
	faults := map[string]func(*faultyKernel){
		"commit":  func(k *faultyKernel) { k.refuse = []error{errRefused} },
		"observe": func(k *faultyKernel) { k.blind = []error{errRefused} },
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.policy(openPolicy)
			c := w.start()
			want := w.listing()
			d := &Daemon{core: c, log: discard, retry: time.NewTimer(time.Hour)}
			w.nft("flush", "ruleset")
			fault(w.kernel)
			d.restore(w.Context(), nft.Event{Process: "nft", PID: 7, TableGone: true})
			if d.restores != 0 || d.backoff == 0 {
				t.Errorf("%d restores, backoff %s after a failure", d.restores, d.backoff)
			}
			d.reconcile(w.Context(), "retry")
			if diff := cmp.Diff(want, w.listing()); diff != "" {
				t.Errorf("kernel (-want +got):\n%s", diff)
			}
			if d.restores != 1 || d.restored.Process != "nft" || d.backoff != 0 {
				t.Errorf("%d restores, backoff %s", d.restores, d.backoff)
			}
		})
	}
}

func TestDown(t *testing.T) {
	w := newWorld(t)
	w.policy(openPolicy)
	c := w.start()
	if change, err := c.stop(w.Context()); err != nil || !change.Changed {
		t.Fatalf("stop = %+v, %v", change, err)
	}
	c.links = dockerLinks()
	w.must(c.reconcile(w.Context()))
	if differed, err := c.check(w.Context(), true); err != nil || differed {
		t.Errorf("check while down = %v, %v", differed, err)
	}
	change, err := c.addToSet(w.Context(), "trusted", add("203.0.113.1"))
	if err != nil || len(change.Warnings) != 1 || !strings.Contains(change.Warnings[0], "nothing is enforced") {
		t.Errorf("add while down = %+v, %v", change, err)
	}
	if got := w.listing(); got != "" {
		t.Fatalf("a table while down:\n%s", got)
	}
	if c.status().Enforced {
		t.Error("status says enforced while down")
	}
	if change, err := c.stop(w.Context()); err != nil || change.Changed {
		t.Errorf("stop again = %+v, %v", change, err)
	}
	_, err = c.apply(w.Context(), apply(openPolicy, w.cfg.PolicyPath))
	w.must(err)
	if !w.inKernel("trusted4", "203.0.113.1") || c.store.Down() || !c.status().Enforced {
		t.Error("apply does not end down, with the entries added meanwhile")
	}
	_, err = c.stop(w.Context())
	w.must(err)
	if c = w.start(); !c.status().Enforced || c.store.Down() {
		t.Error("a restart does not end down")
	}
}

func TestDownRefused(t *testing.T) {
	w := newWorld(t)
	w.policy(openPolicy)
	c := w.start()
	before := w.listing()
	w.kernel.refuse = []error{errRefused}
	_, err := c.stop(w.Context())
	w.mustFail(err, "cannot allocate memory")
	if c.down || c.store.Down() || !c.status().Enforced {
		t.Error("a refused down counts as down")
	}
	w.kernel.refuse = nil
	if diff := cmp.Diff(before, w.listing()); diff != "" {
		t.Errorf("kernel (-want +got):\n%s", diff)
	}
}

// Without a daemon too it is known that the table was removed on purpose, as long as
// there is none.
func TestDownIsKnownWithoutADaemon(t *testing.T) {
	w := newWorld(t)
	w.policy(openPolicy)
	x := Direct{Config: w.cfg, LockWait: time.Second, Warn: func(text string) { t.Log(text) }}
	check := func(when string, down bool) {
		t.Helper()
		status, err := x.Status(w.Context())
		w.must(err)
		ports, err := x.Ports(w.Context())
		w.must(err)
		if status.Down != down || ports.Down != down || status.Enforced != ports.Enforced || down && status.Enforced {
			t.Errorf("%s: status down %v enforced %v, ports down %v enforced %v, want down %v",
				when, status.Down, status.Enforced, ports.Down, ports.Enforced, down)
		}
	}
	check("before anything", false)
	_, err := x.Apply(w.Context(), apply(openPolicy, w.cfg.PolicyPath))
	w.must(err)
	check("applied", false)
	text := w.nft("list", "table", "inet", "nftfw")
	_, err = x.Down(w.Context())
	w.must(err)
	check("down", true)
	w.write(filepath.Join(w.cfg.StateDir, "text"), text)
	w.nft("-f", filepath.Join(w.cfg.StateDir, "text"))
	check("put back by nft", false)
}

func TestDryRunChangesNothing(t *testing.T) {
	w := newWorld(t)
	w.policy(openPolicy)
	c := w.start()
	before, commits := w.listing(), w.kernel.commits
	request := apply(otherPolicy, w.cfg.PolicyPath)
	request.DryRun = true
	change, err := c.apply(w.Context(), request)
	w.must(err)
	lines := strings.Join(change.Lines, "\n")
	if !change.Changed || !strings.Contains(lines, "192.0.2.99") || !strings.Contains(lines, "192.0.2.10") {
		t.Errorf("dry run = %+v", change)
	}
	if diff := cmp.Diff(before, w.listing()); diff != "" || w.kernel.commits != commits {
		t.Errorf("kernel (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"192.0.2.10"}, texts(c.sets["trusted"])); diff != "" {
		t.Errorf("set shown (-want +got):\n%s", diff)
	}
}

// Without a daemon nobody remembers what a large set holds: a dry run reads it, and
// says that nothing would change.
func TestDryRunReadsLargeSets(t *testing.T) {
	w := newWorld(t)
	w.policy(openPolicy)
	c := w.start()
	var many []string
	for i := range 600 {
		many = append(many, netip.AddrFrom4([4]byte{20, 0, byte(i >> 7), byte(i << 1)}).String())
	}
	_, err := c.addToSet(w.Context(), "trusted", api.SetChange{Entries: many})
	w.must(err)
	x := Direct{Config: w.cfg, LockWait: time.Second, Warn: func(text string) { t.Log(text) }}
	for _, name := range []string{"as it stands", "altered"} {
		if name == "altered" {
			w.nft("delete", "element", "inet", "nftfw", "trusted4_hosts.1024", "{ 20.0.0.0 }")
		}
		request := apply(openPolicy, w.cfg.PolicyPath)
		request.DryRun = true
		out, err := x.Apply(w.Context(), request)
		w.must(err)
		if want := name == "altered"; out.Changed != want || len(out.Lines) > 1 {
			t.Errorf("%s: changed %v, lines %q", name, out.Changed, out.Lines)
		}
	}
}

// A reload is not an apply: what was taken down stays down.
func TestReloadWhileDown(t *testing.T) {
	w := newWorld(t)
	w.policy(openPolicy)
	c := w.start()
	_, err := c.stop(w.Context())
	w.must(err)
	_, err = c.reload(w.Context(), false)
	w.mustFail(err, "nftfw down", "nftfw apply")
	if got := w.listing(); got != "" {
		t.Errorf("a table after reload:\n%s", got)
	}
	if s := c.status(); s.Policy.Error != "" || s.Policy.Source != SourceFile {
		t.Errorf("status %+v, want the file as it is", s.Policy)
	}
}

// What a refused policy would not do is no problem of the one in force.
func TestRefusedPolicyLeavesNoProblems(t *testing.T) {
	w := newWorld(t)
	w.policy(openPolicy)
	c := w.start()
	c.engine, c.links = docker("a"), dockerLinks()
	w.must(c.reconcile(w.Context()))
	before := c.status().Problems
	const granting = "version: 1\ncontainers: {labels: none}\n"
	w.kernel.refuse = []error{errRefused}
	_, err := c.apply(w.Context(), apply(granting, w.cfg.PolicyPath))
	w.mustFail(err, "cannot allocate memory")
	if diff := cmp.Diff(before, c.status().Problems); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
	_, err = c.apply(w.Context(), apply(granting, w.cfg.PolicyPath))
	w.must(err)
	if cmp.Equal(before, c.status().Problems) {
		t.Error("the policy has no problem of its own: the test shows nothing")
	}
}
