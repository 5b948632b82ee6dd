package daemon

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nftfw/nftfw/pkg/api"
	"github.com/nftfw/nftfw/pkg/inventory"
)

func TestNewBridges(t *testing.T) {
	br := func(index int, name string) inventory.Link {
		return inventory.Link{Index: index, Name: name, Kind: "bridge"}
	}
	eth := inventory.Link{Index: 2, Name: "eth0"}
	known := []inventory.Network{{ID: "n", Bridge: "docker0"}}
	asked := uint64(0)
	ask := func() uint64 { asked++; return asked }
	b := newBridges{}
	var list []inventory.Link
	began := time.Now()
	steps := []struct {
		name   string
		after  time.Duration    // since the beginning
		list   []inventory.Link // nil: an answer to the question answer
		answer uint64
		want   []string
		asked  uint64
	}{
		{"no bridge", 0, []inventory.Link{eth}, 0, nil, 0},
		{"one of a network that is known", 0, []inventory.Link{eth, br(3, "docker0")}, 0, nil, 0},
		{"two that are not", 0, []inventory.Link{eth, br(3, "docker0"), br(4, "x"), br(5, "y")}, 0, []string{"x", "y"}, 1},
		{"a third, later", time.Second, []inventory.Link{eth, br(4, "x"), br(5, "y"), br(6, "z")}, 0, []string{"x", "y", "z"}, 2},
		{"an answer from before", time.Second, nil, 0, []string{"x", "y", "z"}, 2},
		{"answers while the engine may still be making networks", time.Second, nil, 2, []string{"x", "y", "z"}, 2},
		{"time enough for two", listedWithin, nil, 2, []string{"x", "y", "z"}, 3},
		{"the answer to that", listedWithin, nil, 3, []string{"z"}, 3},
		{"nothing new", listedWithin, []inventory.Link{br(4, "x"), br(5, "y"), br(6, "z")}, 0, []string{"z"}, 3},
		{"another by the name of one", listedWithin, []inventory.Link{br(7, "x"), br(5, "y"), br(6, "z")}, 0, []string{"x", "z"}, 4},
		{"one goes unanswered", listedWithin, []inventory.Link{br(7, "x"), br(5, "y")}, 0, []string{"x"}, 4},
		{"asked too early", listedWithin, nil, 4, []string{"x"}, 4},
		{"asked in time", 2 * listedWithin, nil, 4, []string{"x"}, 5},
		{"the last answer", 2 * listedWithin, nil, 5, nil, 5},
	}
	for _, step := range steps {
		now := began.Add(step.after)
		if step.list == nil {
			b.ask(now, ask)
			b.answered(step.answer)
		} else {
			b.take(list, step.list, known, now, ask)
			list = step.list
		}
		if diff := cmp.Diff(step.want, b.names()); diff != "" {
			t.Errorf("%s: new bridges (-want +got):\n%s", step.name, diff)
		}
		if asked != step.asked {
			t.Errorf("%s: asked %d times, want %d", step.name, asked, step.asked)
		}
	}
	if at := b.due(); !at.IsZero() {
		t.Errorf("asked again at %s", at)
	}
}

// What starts while the engine does not answer may have anybody's address.
func TestStartsWhileTheEngineIsAway(t *testing.T) {
	c := explainWorld(t)
	away := time.Time{}
	c.away = func() time.Time { return away }
	verdict := func() string {
		t.Helper()
		if err := c.reconcile(t.Context()); err != nil {
			t.Fatal(err)
		}
		got, err := c.explain(api.Question{From: "203.0.113.9", To: "198.18.0.1", Port: 8080, Proto: 6})
		if err != nil {
			t.Fatal(err)
		}
		out, err := c.explain(api.Question{From: "172.17.0.2", To: "203.0.113.9", Port: 80, Proto: 6})
		if err != nil || out.Verdict != got.Verdict {
			t.Errorf("what it sends: %s (%v), and what is sent to it: %s", out.Verdict, err, got.Verdict)
		}
		return got.Verdict
	}
	docker0 := slices.IndexFunc(c.links, func(l inventory.Link) bool { return l.Name == "docker0" })
	veth := func(index int) inventory.Link {
		return inventory.Link{Index: index, Name: "veth", Kind: "veth", Master: c.links[docker0].Index, Sandbox: "/run/docker/netns/x"}
	}
	links := c.links
	steps := []struct {
		name  string
		away  time.Duration
		links []inventory.Link
		want  string
	}{
		{"the engine answers", 0, append(slices.Clone(links), veth(90)), "accept"},
		{"it has only just gone", awayGrace / 2, append(slices.Clone(links), veth(90), veth(91)), "accept"},
		{"it is away, and nothing starts", time.Minute, append(slices.Clone(links), veth(90), veth(91)), "accept"},
		{"one ends", time.Minute, append(slices.Clone(links), veth(90)), "accept"},
		{"one starts", time.Minute, append(slices.Clone(links), veth(90), veth(92)), "drop"},
		{"one ends after that", time.Minute, append(slices.Clone(links), veth(92)), "drop"},
	}
	for _, step := range steps {
		if away = (time.Time{}); step.away > 0 {
			away = c.now().Add(-step.away)
		}
		c.takeLinks(step.links)
		if got := verdict(); got != step.want {
			t.Errorf("%s: %s, want %s", step.name, got, step.want)
		}
	}
	away = time.Time{}
	c.takeEngine(c.engine)
	if got := verdict(); got != "accept" {
		t.Errorf("the engine is back: %s, want accept", got)
	}
}

// What the engine said before it went away does not lift what came to be in doubt after.
func TestOldSnapshotLiftsNoDoubt(t *testing.T) {
	for range 8 { // which of two that wait the loop takes first is left to chance
		w := newWorld(t)
		w.policy(openPolicy)
		c := w.start()
		c.away = func() time.Time { return time.Now().Add(-time.Minute) }
		c.setEngine(docker("a"))
		links := dockerLinks()
		c.links = links[:3]
		d := &Daemon{
			core: c, log: discard, requests: make(chan func(context.Context)),
			snapshots: newSlot[inventory.Snapshot](), linkLists: newSlot[[]inventory.Link](), saves: newSlot[savedSnapshot](),
		}
		d.snapshots.put(docker("a"))
		d.linkLists.put(links)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- d.loop(ctx) }()
		doubted, taken := false, false
		for !taken {
			w.must(d.do(ctx, func(context.Context) {
				doubted, taken = c.doubted["docker0"], len(d.snapshots)+len(d.linkLists) == 0
			}))
		}
		cancel()
		w.must(<-ended)
		if !doubted {
			t.Fatal("docker0 is believed again")
		}
	}
}
