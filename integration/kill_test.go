package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nftfw/nftfw/integration/lab"
)

// killsEnv says how long TestScenario22KilledAtRandom kills, as a duration; and
// killSeedEnv with which seed, to see a run again as far as chance allows.
const (
	killsEnv    = "NFTFW_KILLS"
	killSeedEnv = "NFTFW_KILL_SEED"
)

// killTime is how long it kills where nothing is said.
const killTime = 12 * time.Second

// The daemon and the commands are killed at random moments while sets change
// and containers come and go. What is closed stays so all the time, and in the
// end the kernel holds what the state folder does, and both hold what the
// commands have acknowledged.
func TestScenario22KilledAtRandom(t *testing.T) {
	length, seed := killTime, uint64(time.Now().UnixNano())
	if text := os.Getenv(killsEnv); text != "" {
		var err error
		if length, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	if text := os.Getenv(killSeedEnv); text != "" {
		if _, err := fmt.Sscan(text, &seed); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%s=%d %s=%s", killSeedEnv, seed, killsEnv, length)
	s := scene(t, "version: 1"+trust+"  office: []\n")
	s.run("plain", "-p", "8082:80")
	s.open(s.permitted.Namespace, "plain", hostPorts("8082"))
	unreached := s.hammer(s.stranger, hostPort(8082)...)

	ctx, stop := context.WithTimeout(s.ctx(), length)
	defer stop()
	var all sync.WaitGroup
	workers := make([]*editor, 3)
	for i := range workers {
		workers[i] = newEditor(s, i, rand.New(rand.NewPCG(seed, uint64(i))))
		all.Go(func() { workers[i].work(ctx) })
	}
	all.Go(func() { s.churn(ctx) })
	kills := s.killDaemon(ctx, rand.New(rand.NewPCG(seed, 100)))
	all.Wait()
	unreached()
	if t.Failed() {
		return
	}
	want := map[string]map[string]bool{"trusted": {}, "office": {}}
	tally := map[string]int{"kills": kills}
	for _, w := range workers {
		w.settle()
		for set, entries := range w.there {
			maps.Copy(want[set], entries)
		}
		for what, n := range w.tally {
			tally[what] += n
		}
	}
	t.Logf("%v", tally)
	if kills < int(length/(5*time.Second)) || tally["acknowledged"] == 0 || tally["killed"] == 0 {
		t.Errorf("too little happened: %v", tally)
	}
	s.agree(want, "the daemon")
	if err := s.fw.Stop(s.ctx()); err != nil {
		t.Fatal(err)
	}
	s.agree(want, "the state folder")
	if err := s.fw.Start(s.ctx()); err != nil {
		t.Fatal(err)
	}
	s.agree(want, "a new daemon")
	s.open(s.permitted.Namespace, "plain", hostPorts("8082"))
	s.closed(s.stranger.Namespace, hostPorts("8082"))
}

// agree demands that sets hold these runtime entries, and the kernel no others.
func (s *set) agree(want map[string]map[string]bool, who string) {
	s.t.Helper()
	for name, entries := range want {
		if diff := cmp.Diff(entries, s.runtimeEntries(name)); diff != "" {
			s.t.Errorf("acknowledged, and what %s says of %s (-acknowledged +said):\n%s", who, name, diff)
		}
		inKernel := s.kernelEntries(name + "4")
		delete(inKernel, s.permitted.V4.String()) // of the policy
		if diff := cmp.Diff(entries, inKernel); diff != "" {
			s.t.Errorf("acknowledged, and what the kernel has of %s beside %s (-acknowledged +kernel):\n%s", name, who, diff)
		}
	}
	if o := s.fw.Exec(s.ctx(), "plan"); o.Status != 0 {
		s.t.Errorf("the kernel is not as it should be, says %s: %s", who, o)
	}
}

// runtimeEntries are those that commands have added to a set.
func (s *set) runtimeEntries(name string) map[string]bool {
	s.t.Helper()
	var shown struct {
		Entries []struct{ Entry, Source string }
	}
	if err := json.Unmarshal([]byte(s.nftfw("sets", "show", name, "--json")), &shown); err != nil {
		s.t.Fatal(err)
	}
	entries := map[string]bool{}
	for _, e := range shown.Entries {
		if e.Source == "runtime" {
			entries[e.Entry] = true
		}
	}
	return entries
}

// kernelEntries are the elements of a set in the kernel, of which no two touch.
func (s *set) kernelEntries(name string) map[string]bool {
	s.t.Helper()
	out, err := s.Host.Run(s.ctx(), "nft", "list", "set", "inet", "nftfw", name)
	if err != nil {
		s.t.Fatal(err)
	}
	return elementsOf(out)
}

// elementsOf takes the elements of a set out of nft's listing, without their
// times.
func elementsOf(out string) map[string]bool {
	entries := map[string]bool{}
	if _, list, ok := strings.Cut(out, "elements = {"); ok {
		list, _, _ = strings.Cut(list, "}")
		for e := range strings.SplitSeq(list, ",") {
			entries[strings.Fields(e)[0]] = true
		}
	}
	return entries
}

// killDaemon kills the daemon at random moments and starts it at once, as its
// unit would, until ctx is done. It leaves one running and gives the number of
// kills.
func (s *set) killDaemon(ctx context.Context, rnd *rand.Rand) (kills int) {
	s.t.Helper()
	for ctx.Err() == nil {
		select {
		case <-time.After(time.Duration(rnd.Int64N(int64(1500 * time.Millisecond)))):
		case <-ctx.Done():
		}
		if err := s.fw.Kill(s.ctx()); err != nil {
			s.t.Error(err)
		}
		kills++
		if err := s.fw.Launch(s.ctx()); err != nil {
			s.t.Error(err)
			return kills
		}
	}
	if err := s.fw.WaitReady(s.ctx(), true); err != nil {
		s.t.Error(err)
	}
	return kills
}

// churn starts and removes a container until ctx is done.
func (s *set) churn(ctx context.Context) {
	for ctx.Err() == nil {
		if _, err := s.engine.Run(s.ctx(), lab.Spec{Name: "churn", Options: []string{"-p", "8083:80", "--label", "nftfw.expose=any"}}); err != nil {
			s.t.Error(err)
			return
		}
		if _, err := s.engine.Docker(s.ctx(), "rm", "-f", "churn"); err != nil {
			s.t.Error(err)
			return
		}
	}
}

// editor changes sets by commands, some of which it kills, and keeps account of
// what must be in them. Its addresses are nobody else's.
type editor struct {
	s       *set
	number  int
	rnd     *rand.Rand
	there   map[string]map[string]bool // by set: entries that are in it for certain
	unknown map[[2]string]bool         // set and entry of which nobody was told
	tally   map[string]int
}

func newEditor(s *set, number int, rnd *rand.Rand) *editor {
	return &editor{
		s: s, number: number, rnd: rnd, unknown: map[[2]string]bool{}, tally: map[string]int{},
		there: map[string]map[string]bool{"trusted": {}, "office": {}},
	}
}

func (e *editor) work(ctx context.Context) {
	for ctx.Err() == nil {
		set := []string{"trusted", "office"}[e.rnd.IntN(2)]
		var entries []string
		for range 1 + e.rnd.IntN(3) {
			// Even ones: no two touch.
			entries = append(entries, fmt.Sprintf("10.%d.0.%d", e.number, 2*e.rnd.IntN(100)))
		}
		verb := []string{"add", "del"}[e.rnd.IntN(2)]
		args := []string{"sets", verb, set}
		if verb == "del" {
			args = append(args, "--exist")
		} else if e.rnd.IntN(4) == 0 {
			args = append(args, "--timeout", "24h")
		}
		call := e.s.ctx()
		if e.rnd.IntN(3) == 0 {
			var cancel context.CancelFunc
			call, cancel = context.WithTimeout(call, time.Duration(e.rnd.Int64N(int64(60*time.Millisecond))))
			defer cancel()
		}
		e.note(set, verb == "add", entries, e.s.fw.Exec(call, append(args, entries...)...))
	}
}

// note takes account of what a command has said.
func (e *editor) note(set string, added bool, entries []string, o lab.Output) {
	switch {
	case o.Status == 0:
		e.tally["acknowledged"]++
		for _, entry := range entries {
			delete(e.unknown, [2]string{set, entry})
			delete(e.there[set], entry)
			if added {
				e.there[set][entry] = true
			}
		}
	case o.Status == -1, strings.Contains(o.Stderr, "call daemon on"), strings.Contains(o.Stderr, "daemon is stopping"):
		// Killed, or its daemon was: nobody was told what came of it.
		e.tally["killed"]++
		for _, entry := range entries {
			e.unknown[[2]string{set, entry}] = true
		}
	case o.Status == 5:
		e.tally["refused"]++ // which changed nothing
	default:
		e.s.t.Errorf("a change came to an odd end: %s", o)
	}
}

// settle asks about what nobody was told.
func (e *editor) settle() {
	e.s.t.Helper()
	for key := range e.unknown {
		switch o := e.s.fw.Exec(e.s.ctx(), "sets", "test", key[0], key[1]); o.Status {
		case 0:
			e.there[key[0]][key[1]] = true
		case 1:
			delete(e.there[key[0]], key[1])
		default:
			e.s.t.Error(o)
		}
	}
}
