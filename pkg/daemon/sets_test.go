package daemon

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nftfw/nftfw/nft"
	"github.com/nftfw/nftfw/pkg/api"
)

const openPolicy = `version: 1
sets:
  trusted: [192.0.2.10]
  office: [198.51.100.0/24]
`

func add(entries ...string) api.SetChange { return api.SetChange{Entries: entries} }

func TestSetChangeRefusedByTheKernel(t *testing.T) {
	changes := map[string]func(w *world, c *core) error{
		"add": func(w *world, c *core) error {
			_, err := c.addToSet(w.Context(), "trusted", add("203.0.113.7"))
			return err
		},
		"del": func(w *world, c *core) error {
			_, err := c.deleteFromSet(w.Context(), "trusted", add("203.0.113.1"))
			return err
		},
		"flush": func(w *world, c *core) error {
			_, err := c.flushSet(w.Context(), "trusted", api.Flush{})
			return err
		},
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.policy(openPolicy)
			c := w.start()
			if _, err := c.addToSet(w.Context(), "trusted", add("203.0.113.1")); err != nil {
				t.Fatal(err)
			}
			before, shown := w.listing(), texts(c.sets["trusted"])
			w.kernel.refuse = []error{errRefused}
			w.mustFail(change(w, c), "cannot allocate memory")
			if diff := cmp.Diff(shown, texts(c.sets["trusted"])); diff != "" {
				t.Errorf("set shown (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff([]string{"203.0.113.1"}, w.saved("trusted")); diff != "" {
				t.Errorf("set on disk (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(before, w.listing()); diff != "" {
				t.Errorf("kernel (-want +got):\n%s", diff)
			}
			if !c.status().Enforced {
				t.Error("status says that nothing is enforced, but the table stands")
			}
			w.must(change(w, c)) // it may be repeated
		})
	}
}

func TestSetChangeNotSaved(t *testing.T) {
	w := newWorld(t)
	w.policy(openPolicy)
	c := w.start()
	before := w.listing()
	// A directory cannot be replaced by a file, not even by root.
	w.must(os.MkdirAll(filepath.Join(w.cfg.StateDir, "sets.json", "x"), 0o700))
	_, err := c.addToSet(w.Context(), "trusted", add("203.0.113.7"))
	w.mustFail(err, "save sets", "sets.json")
	if diff := cmp.Diff(before, w.listing()); diff != "" {
		t.Errorf("kernel (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"192.0.2.10"}, texts(c.sets["trusted"])); diff != "" {
		t.Errorf("set shown (-want +got):\n%s", diff)
	}
}

// A command that exits 0 is in force, also where the disk had it already.
func TestAddReachesAKernelThatLostTheEntry(t *testing.T) {
	w := newWorld(t)
	w.policy(openPolicy)
	c := w.start()
	if _, err := c.addToSet(w.Context(), "trusted", add("203.0.113.7")); err != nil {
		t.Fatal(err)
	}
	w.nft("delete", "element", "inet", "nftfw", "trusted4", "{ 203.0.113.7 }")
	x := Direct{Config: w.cfg, LockWait: time.Second, Warn: func(s string) { t.Log(s) }}
	if _, err := x.AddToSet(w.Context(), "trusted", add("203.0.113.7")); err != nil {
		t.Fatal(err)
	}
	if !w.inKernel("trusted4", "203.0.113.7") {
		t.Error("sets add succeeded and the kernel does not have the entry")
	}
}

// Where nothing is blocked, packets meet no chain at prerouting.
func TestFirstAndLastBlocked(t *testing.T) {
	w := newWorld(t)
	w.policy(openPolicy)
	c := w.start()
	x := Direct{Config: w.cfg, LockWait: time.Second, Warn: func(s string) { t.Log(s) }}
	type change func(context.Context, string, api.SetChange) (api.Change, error)
	ways := []struct {
		name     string
		add, del change
	}{
		{"without the daemon", x.AddToSet, x.DeleteFromSet},
		{"by the daemon", c.addToSet, c.deleteFromSet},
	}
	for _, way := range ways {
		before := w.listing()
		if strings.Contains(before, "prerouting") {
			t.Fatalf("%s: hooked at prerouting for nothing:\n%s", way.name, before)
		}
		for _, address := range []string{"203.0.113.7", "2001:db8::7"} {
			if _, err := way.add(w.Context(), "blocked", add(address)); err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(w.listing(), "type filter hook prerouting priority raw - 10; policy accept;") {
				t.Errorf("%s: %s is blocked, and nothing asks for it:\n%s", way.name, address, w.listing())
			}
			if _, err := way.del(w.Context(), "blocked", add(address)); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, w.listing()); diff != "" {
				t.Errorf("%s: kernel after %s came and went (-want +got):\n%s", way.name, address, diff)
			}
		}
	}
}

func TestSetRequests(t *testing.T) {
	w := newWorld(t)
	w.policy(openPolicy)
	c := w.start()
	tests := []struct {
		name string
		do   func() (api.Change, error)
		want string // of the error; "" is none
		kind api.Kind
	}{
		{
			"unknown set", func() (api.Change, error) { return c.addToSet(w.Context(), "offce", add("192.0.2.1")) },
			`no set "offce" in the policy in force (it declares blocked, office, swarm_nodes, trusted)`, api.KindInvalid,
		},
		{"no entry", func() (api.Change, error) { return c.addToSet(w.Context(), "office", add()) }, "no address given", api.KindInvalid},
		{
			"one of two is wrong", func() (api.Change, error) { return c.addToSet(w.Context(), "office", add("192.0.2.1", "192.0.2.300")) },
			`"192.0.2.300" is not an address, CIDR or range`, api.KindInvalid,
		},
		{"negative timeout", func() (api.Change, error) {
			return c.addToSet(w.Context(), "office", api.SetChange{Entries: []string{"192.0.2.1"}, Timeout: -1})
		}, "negative", api.KindInvalid},
		{"comment of two lines", func() (api.Change, error) {
			return c.addToSet(w.Context(), "office", api.SetChange{Entries: []string{"192.0.2.1"}, Comment: "a\nb"})
		}, "control character", api.KindInvalid},
		{
			"delete of the policy's", func() (api.Change, error) { return c.deleteFromSet(w.Context(), "trusted", add("192.0.2.10")) },
			"192.0.2.10 in set trusted is written at " + w.cfg.PolicyPath + ":3", api.KindFailed,
		},
		{"delete of the policy's with --exist", func() (api.Change, error) {
			return c.deleteFromSet(w.Context(), "trusted", api.SetChange{Entries: []string{"192.0.2.10"}, Exist: true})
		}, "is written at", api.KindFailed},
		{
			"delete of what is not there", func() (api.Change, error) { return c.deleteFromSet(w.Context(), "trusted", add("192.0.2.99")) },
			"192.0.2.99 is not in set trusted (--exist passes over it)", api.KindFailed,
		},
		{
			"delete of what is covered", func() (api.Change, error) { return c.deleteFromSet(w.Context(), "office", add("198.51.100.7")) },
			"198.51.100.7 is no entry of set office; 198.51.100.0/24 covers it", api.KindFailed,
		},
		{"delete of what is not there with --exist", func() (api.Change, error) {
			return c.deleteFromSet(w.Context(), "trusted", api.SetChange{Entries: []string{"192.0.2.99"}, Exist: true})
		}, "", ""},
	}
	before := w.listing()
	for _, tt := range tests {
		w.run(tt.name, func(w *world) {
			change, err := tt.do()
			if tt.want == "" {
				if err != nil || change.Changed {
					w.Fatalf("got %+v, %v, want no change", change, err)
				}
				return
			}
			w.mustFail(err, tt.want)
			if got := asAPIError(err).Kind; got != tt.kind {
				w.Errorf("kind %s, want %s", got, tt.kind)
			}
		})
	}
	if diff := cmp.Diff(before, w.listing()); diff != "" {
		t.Errorf("kernel (-want +got):\n%s", diff)
	}
	if got := w.saved("office"); len(got) != 0 {
		t.Errorf("entries on disk of refused requests: %v", got)
	}
}

func TestAddRenews(t *testing.T) {
	w := newWorld(t)
	w.now = time.Now()
	w.policy(openPolicy)
	c := w.start()
	for _, change := range []api.SetChange{
		{Entries: []string{"203.0.113.7"}, Timeout: time.Minute, Comment: "short"},
		{Entries: []string{"203.0.113.7"}, Timeout: time.Hour, Comment: "long"},
	} {
		if _, err := c.addToSet(w.Context(), "trusted", change); err != nil {
			t.Fatal(err)
		}
	}
	set, err := c.showSet("trusted")
	if err != nil {
		t.Fatal(err)
	}
	at := w.now.Add(time.Hour).Round(0).UTC()
	want := []api.Entry{
		{Entry: "192.0.2.10", Source: "policy", Origin: w.cfg.PolicyPath + ":3"},
		{Entry: "203.0.113.7", Source: "runtime", Comment: "long", ExpiresAt: &at},
	}
	if diff := cmp.Diff(want, set.Entries); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
	w.now = w.now.Add(2 * time.Hour)
	if m, err := c.testSet("trusted", "203.0.113.7"); err != nil || m.In {
		t.Errorf("test after the timeout = %+v, %v", m, err)
	}
	c.pruneSets()
	if got := texts(c.runtime["trusted"]); len(got) != 0 {
		t.Errorf("entries after their timeout: %v", got)
	}
}

func TestTestSet(t *testing.T) {
	w := newWorld(t)
	w.policy("version: 1\nsets:\n  office: [198.51.100.0/25, 198.51.100.128/25, 2001:db8::/32]\n")
	c := w.start()
	tests := []struct {
		addr string
		want bool
	}{
		{"198.51.100.7", true},
		{"198.51.100.0/24", true}, // of two entries together
		{"198.51.100.0-198.51.101.0", false},
		{"198.51.101.1", false},
		{"::ffff:198.51.100.7", true},
		{"2001:db8:1::/48", true},
		{"2001:db9::1", false},
	}
	for _, tt := range tests {
		m, err := c.testSet("office", tt.addr)
		if err != nil || m.In != tt.want {
			t.Errorf("test %s = %v, %v, want %v", tt.addr, m.In, err, tt.want)
		}
		if m.In == (len(m.Entries) == 0) {
			t.Errorf("test %s: in %v, covered by %v", tt.addr, m.In, m.Entries)
		}
	}
}

// lostKernel refuses commits, and takes the state directory away as it does.
type lostKernel struct {
	Kernel
	lose func()
}

func (k *lostKernel) Commit(context.Context, nft.Plan) error {
	k.lose()
	return errRefused
}

// A refused entry that could not be taken off the disk again does not come back with
// the next change, be it that nothing is to be changed.
func TestRefusedEntryThatCannotBeUndone(t *testing.T) {
	former := []string{"203.0.113.1", "203.0.113.2", "203.0.113.3"}
	next := map[string]struct {
		change func(w *world, c *core) (api.Change, error)
		want   []string
	}{
		"another entry": {
			func(w *world, c *core) (api.Change, error) {
				return c.addToSet(w.Context(), "trusted", add("203.0.113.4"))
			},
			append(slices.Clone(former), "203.0.113.4"),
		},
		"nothing": {
			func(w *world, c *core) (api.Change, error) {
				return c.deleteFromSet(w.Context(), "trusted", api.SetChange{Entries: []string{"203.0.113.9"}, Exist: true})
			},
			former,
		},
	}
	for name, tt := range next {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.policy(openPolicy)
			c := w.start()
			for _, e := range former {
				_, err := c.addToSet(w.Context(), "trusted", add(e))
				w.must(err)
			}
			away := w.cfg.StateDir + ".away"
			c.kernel = &lostKernel{w.kernel, func() { w.must(os.Rename(w.cfg.StateDir, away)) }}
			_, err := c.addToSet(w.Context(), "trusted", add("198.51.100.66"))
			w.mustFail(err, "cannot allocate memory")
			w.must(os.Rename(away, w.cfg.StateDir))
			c.kernel = w.kernel
			_, err = tt.change(w, c)
			w.must(err)
			if diff := cmp.Diff(tt.want, w.saved("trusted")); diff != "" {
				t.Errorf("on disk (-want +got):\n%s", diff)
			}
		})
	}
}

// The kernel counts what is left of a timeout by a clock of its own: after the wall
// clock was set, entries of the daemon and of the kernel end at different moments.
func TestClockThatIsSet(t *testing.T) {
	const entry = "203.0.113.1"
	tests := []struct {
		name    string
		timeout time.Duration
		kernel  func(*world) // what it has after the clock was set
		want    bool
	}{
		{"forward, past the end", time.Second, func(w *world) {
			w.nft("delete", "element", "inet", "nftfw", "trusted4", "{", entry, "}")
			w.nft("add", "element", "inet", "nftfw", "trusted4", "{", entry, "timeout", "1h", "}")
			<-time.After(1200 * time.Millisecond)
		}, false},
		{"back, with the kernel's end behind it", time.Hour, func(w *world) {
			w.nft("delete", "element", "inet", "nftfw", "trusted4", "{", entry, "}")
		}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.policy(openPolicy)
			d := &Daemon{core: w.start(), log: discard, retry: time.NewTimer(time.Hour)}
			change := add(entry)
			change.Timeout = tt.timeout
			_, err := d.core.addToSet(w.Context(), "trusted", change)
			w.must(err)
			tt.kernel(w)
			d.core.pruneSets()
			d.clockSet(w.Context(), time.Hour)
			in, err := d.core.testSet("trusted", entry)
			w.must(err)
			if kernel := w.inKernel("trusted4", entry); in.In != tt.want || kernel != tt.want {
				t.Errorf("in the set: %v, in the kernel's: %v, want %v", in.In, kernel, tt.want)
			}
		})
	}
}
