package daemon

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/api"
	"github.com/nftfw/nftfw/pkg/inventory"
	"github.com/nftfw/nftfw/pkg/links"
)

// withDocker enforces for containers, as a daemon does after the engine's
// first answer, and saves the snapshot.
func (w *world) withDocker(names ...string) *core {
	w.Helper()
	w.cfg.NoDocker = false
	c := w.start()
	c.engine, c.links = docker(names...), dockerLinks()
	w.must(c.reconcile(w.Context()))
	w.saveSnapshot(c, c.engine)
	return c
}

func (w *world) saveSnapshot(c *core, inv inventory.Snapshot) {
	w.Helper()
	text, err := json.Marshal(savedSnapshot{Snapshot: inv, SandboxDirs: []string{"/run/docker/netns"}})
	w.must(err)
	w.must(c.store.SaveSnapshot(text))
}

// published gives the container addresses that the kernel's table knows.
func (w *world) published() []string {
	w.Helper()
	var out []string
	list := w.nft("list", "map", "inet", "nftfw", "published4")
	for _, addr := range []string{"172.17.0.2", "172.17.0.3"} {
		if strings.Contains(list, addr+" ") {
			out = append(out, addr)
		}
	}
	return out
}

func TestAdoption(t *testing.T) {
	both := []string{"172.17.0.2", "172.17.0.3"}
	tests := []struct {
		name    string
		between func(w *world, c *core) // what happens while no daemon runs
		want    []string                // published, until the engine answers
	}{
		{"as it was", func(*world, *core) {}, both},
		{"an element is gone", func(w *world, c *core) {
			c.engine = docker("a")
			w.must(c.reconcile(w.Context()))
		}, both[:1]},
		{"the snapshot knows one container only", func(w *world, c *core) { w.saveSnapshot(c, docker("a")) }, both[:1]},
		{"another container is saved with the address", func(w *world, c *core) {
			inv := docker("a", "b")
			inv.Containers[1].ID = strings.Repeat("c", 64)
			w.saveSnapshot(c, inv)
		}, both[:1]},
		{"nothing saved", func(w *world, _ *core) { w.must(os.Remove(filepath.Join(w.cfg.StateDir, "snapshot.json"))) }, nil},
		{"snapshot damaged", func(w *world, _ *core) { w.write(filepath.Join(w.cfg.StateDir, "snapshot.json"), "{") }, nil},
		{"no table", func(w *world, _ *core) { w.nft("flush", "ruleset") }, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.policy(openPolicy)
			old := w.withDocker("a", "b")
			if diff := cmp.Diff(both, w.published()); diff != "" {
				t.Fatalf("published at first (-want +got):\n%s", diff)
			}
			tt.between(w, old)
			c := w.start()
			if diff := cmp.Diff(tt.want, w.published()); diff != "" {
				t.Errorf("published after the restart (-want +got):\n%s", diff)
			}
			// The engine's answer settles it.
			c.engine, c.links = docker("a"), dockerLinks()
			w.must(c.reconcile(w.Context()))
			if diff := cmp.Diff(both[:1], w.published()); diff != "" {
				t.Errorf("published after the answer (-want +got):\n%s", diff)
			}
		})
	}
}

// While the engine is silent a bridge counts as foreign only if it did before.
func TestAdoptionKeepsForeignBridges(t *testing.T) {
	w := newWorld(t)
	w.policy(openPolicy)
	c := w.withDocker("a")
	c.links = append(dockerLinks(), inventory.Link{Index: 9, Name: "virbr0", Kind: "bridge"})
	w.must(c.reconcile(w.Context()))
	c = w.fresh()
	w.must(c.adopt(w.Context()))
	if !strings.Contains(strings.Join(c.engine.ForeignBridges, " "), "virbr0") {
		t.Errorf("foreign bridges %v, want virbr0 among them", c.engine.ForeignBridges)
	}
	if strings.Contains(strings.Join(c.engine.ForeignBridges, " "), "docker0") {
		t.Errorf("foreign bridges %v, docker0 among them", c.engine.ForeignBridges)
	}
	if c.engine.Engine != inventory.EngineUnknown {
		t.Errorf("engine state %v before it answered", c.engine.Engine)
	}
	w.nft("flush", "ruleset")
	w.must(c.adopt(w.Context()))
	if len(c.engine.ForeignBridges) != 0 {
		t.Errorf("foreign bridges %v without a table", c.engine.ForeignBridges)
	}
}

func TestStartSurvivesDamage(t *testing.T) {
	tests := []struct {
		name   string
		damage func(w *world, file string)
		want   []string // entries of trusted afterwards
		says   string
	}{
		{"truncated", func(w *world, file string) { w.write(file, `{"version":1,"se`) }, []string{"192.0.2.10", "203.0.113.1", "203.0.113.2"}, "went on with"},
		{"zero length", func(w *world, file string) { w.write(file, "") }, []string{"192.0.2.10", "203.0.113.1", "203.0.113.2"}, "went on with"},
		{"unreadable", func(w *world, file string) {
			w.must(os.Remove(file))
			w.must(os.Mkdir(file, 0o700))
		}, []string{"192.0.2.10", "203.0.113.1", "203.0.113.2"}, "went on with"},
		{"truncated, and no table", func(w *world, file string) {
			w.write(file, `{"version":1,"se`)
			w.nft("flush", "ruleset")
		}, []string{"192.0.2.10", "203.0.113.1"}, "went on with"},
		{"nothing to fall back to, the table stands", func(w *world, file string) {
			w.write(file, "")
			w.must(os.Remove(file + ".prev"))
		}, []string{"192.0.2.10", "203.0.113.1", "203.0.113.2"}, "begin with empty sets"},
		{"nothing to fall back to and no table", func(w *world, file string) {
			w.write(file, "")
			w.must(os.Remove(file + ".prev"))
			w.nft("flush", "ruleset")
		}, []string{"192.0.2.10"}, "begin with empty sets"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.policy(openPolicy)
			c := w.start()
			for _, entry := range []string{"203.0.113.1", "203.0.113.2"} {
				_, err := c.addToSet(w.Context(), "trusted", add(entry))
				w.must(err)
			}
			file := filepath.Join(w.cfg.StateDir, "sets.json")
			tt.damage(w, file)
			c = w.start()
			if got := w.log.String(); !strings.Contains(got, file) || !strings.Contains(got, tt.says) {
				t.Errorf("the log does not name the file and what was done:\n%s", got)
			}
			var got []string
			for _, addr := range []string{"192.0.2.10", "203.0.113.1", "203.0.113.2"} {
				if w.inKernel("trusted4", addr) {
					got = append(got, addr)
				}
				if m, err := c.testSet("trusted", addr); err != nil || m.In != w.inKernel("trusted4", addr) {
					t.Errorf("%s: test says %v, %v, the kernel says otherwise", addr, m.In, err)
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("trusted (-want +got):\n%s", diff)
			}
			if e, ok := c.sets["trusted"].Lookup(addrsetRange(t, "192.0.2.10"), addrset.Runtime); ok {
				t.Errorf("an entry of the policy came back as %+v", e)
			}
		})
	}
}

// The table knows better than the save before the last what was acknowledged,
// and that save what the entries were called. What was found is saved.
func TestStartRecoversWhatWasAcknowledged(t *testing.T) {
	w := newWorld(t)
	w.policy(openPolicy)
	c := w.start()
	named := add("203.0.113.0/24", "203.0.113.7")
	named.Comment = "office"
	for _, change := range []api.SetChange{named, add("198.51.100.1"), add("198.51.100.3")} {
		_, err := c.addToSet(w.Context(), "trusted", change)
		w.must(err)
	}
	_, err := c.deleteFromSet(w.Context(), "trusted", api.SetChange{Entries: []string{"198.51.100.1"}})
	w.must(err)
	want := []string{"198.51.100.3", "203.0.113.0/24", "203.0.113.7"}
	w.write(filepath.Join(w.cfg.StateDir, "sets.json"), "")
	c = w.start()
	if diff := cmp.Diff(want, texts(c.runtime["trusted"])); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
	if e, _ := c.runtime["trusted"].Lookup(addrsetRange(t, "203.0.113.7"), addrset.Runtime); e.Comment != "office" {
		t.Errorf("entry %+v, want it with its comment", e)
	}
	if diff := cmp.Diff(want, w.saved("trusted")); diff != "" {
		t.Errorf("on disk (-want +got):\n%s", diff)
	}
}

// What the set has from a source is not an entry that somebody added.
func TestStartRecoversNoListOfASource(t *testing.T) {
	w := newWorld(t)
	w.policy(sourcedPolicy)
	c := w.start()
	w.told(c, urlKey, whole(t, urlKey, "198.51.100.0/24"))
	for _, e := range []string{"203.0.113.1", "203.0.113.3"} {
		_, err := c.addToSet(w.Context(), "blocked", add(e))
		w.must(err)
	}
	w.write(filepath.Join(w.cfg.StateDir, "sets.json"), "")
	c = w.start()
	if diff := cmp.Diff([]string{"203.0.113.1", "203.0.113.3"}, texts(c.runtime["blocked"])); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
	w.told(c, urlKey, whole(t, urlKey, "192.0.2.77"))
	w.holds("blocked4", map[string]bool{"198.51.100.9": false, "192.0.2.77": true, "203.0.113.1": true})
}

func addrsetRange(t *testing.T, text string) addrset.Range {
	t.Helper()
	r, err := addrset.ParseRange(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestStartWithABadPolicy(t *testing.T) {
	const bad = "version: 1\nmode: sleep\n"
	t.Run("the last good one", func(t *testing.T) {
		w := newWorld(t)
		w.policy(openPolicy)
		w.start()
		w.policy(bad)
		s := w.start().status()
		if !s.Enforced || s.Policy.Source != SourceLastGood || !strings.Contains(s.Policy.Error, w.cfg.PolicyPath+":2:") {
			t.Errorf("status %+v", s.Policy)
		}
		if !w.inKernel("trusted4", "192.0.2.10") {
			t.Error("the last good policy is not in force")
		}
		if diff := cmp.Diff(openPolicy, w.savedPolicy()); diff != "" {
			t.Errorf("policy on disk (-want +got):\n%s", diff)
		}
	})
	t.Run("the default", func(t *testing.T) {
		w := newWorld(t)
		w.policy(bad)
		s := w.start().status()
		if !s.Enforced || s.Policy.Source != SourceDefault || s.Policy.Hash != "" || !strings.Contains(s.Policy.Error, w.cfg.PolicyPath+":2:") {
			t.Errorf("status %+v", s.Policy)
		}
	})
	t.Run("the last good one is damaged", func(t *testing.T) {
		w := newWorld(t)
		w.policy(openPolicy)
		w.start()
		w.policy(bad)
		w.write(filepath.Join(w.cfg.StateDir, "policy.yaml"), "version: 1\n")
		if s := w.start().status(); !s.Enforced || s.Policy.Source != SourceDefault {
			t.Errorf("status %+v", s.Policy)
		}
	})
	t.Run("no file", func(t *testing.T) {
		w := newWorld(t)
		if s := w.start().status(); !s.Enforced || s.Policy.Source != SourceDefault || s.Policy.Error != "" {
			t.Errorf("status %+v", s.Policy)
		}
	})
}

// Without folders to look in every port of a bridge would lead nowhere, and no
// bridge would be Docker's.
func TestSandboxFolders(t *testing.T) {
	standard := []string{links.DefaultSandboxDir}
	other := []string{links.DefaultSandboxDir, "/run/other/netns"}
	tests := []struct {
		name  string
		saved string // "" for nothing
		want  []string
	}{
		{name: "first start", want: standard},
		{name: "engine with the default folder", saved: `{"snapshot": {}}`, want: standard},
		{name: "engine with a folder of its own", saved: `{"sandbox_dirs": ["/var/run/docker/netns", "/run/other/netns"]}`, want: other},
		{name: "damaged", saved: `{"sandbox_dirs": [`, want: standard},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.policy(openPolicy)
			c := w.fresh()
			if tt.saved != "" {
				w.must(c.store.SaveSnapshot([]byte(tt.saved)))
			}
			w.must(c.adopt(w.Context()))
			if diff := cmp.Diff(tt.want, c.sandboxDirs); diff != "" {
				t.Errorf("folders (-want +got):\n%s", diff)
			}
		})
	}
}
