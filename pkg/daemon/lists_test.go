package daemon

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/api"
	"github.com/nftfw/nftfw/pkg/sources"
	"github.com/nftfw/nftfw/pkg/store"
)

const sourcedPolicy = `version: 1
sets:
  blocked:
    entries: [192.0.2.1]
    sources: [{url: "https://example.net/list"}, {file: /etc/list}]
`

var (
	urlKey  = listKey{"blocked", "url:https://example.net/list"}
	fileKey = listKey{"blocked", "file:/etc/list"}
)

// whole is an update with all entries of a source.
func whole(t *testing.T, key listKey, entries ...string) sources.Update {
	t.Helper()
	return sources.Update{Whole: true, Add: entriesOf(t, key, entries...)}
}

func entriesOf(t *testing.T, key listKey, entries ...string) []addrset.Entry {
	t.Helper()
	var out []addrset.Entry
	for _, text := range entries {
		r, err := addrset.ParseRange(text)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, addrset.Entry{Range: r, Source: addrset.Source(key.source)})
	}
	return out
}

// told has c take an update and save what it made of it.
func (w *world) told(c *core, key listKey, u sources.Update) {
	w.Helper()
	save, err := c.takeUpdate(w.Context(), key, u)
	w.must(err)
	if save {
		w.must(c.store.SaveList(c.savedList(key)))
	}
}

// shown gives the entries of a set with their sources, as sets show does.
func (w *world) shown(c *core, set string) []string {
	w.Helper()
	s, err := c.showSet(set)
	w.must(err)
	out := []string{}
	for _, e := range s.Entries {
		out = append(out, e.Entry+" "+e.Source)
	}
	return out
}

func (w *world) holds(set string, want map[string]bool) {
	w.Helper()
	for addr, in := range want {
		if got := w.inKernel(set, addr); got != in {
			w.Errorf("%s in the kernel's set %s: %v, want %v", addr, set, got, in)
		}
	}
}

func TestListsOfSourcesAreInForce(t *testing.T) {
	w := newWorld(t)
	w.policy(sourcedPolicy)
	c := w.start()
	w.told(c, urlKey, whole(t, urlKey, "198.51.100.0/24", "192.0.2.1", "2001:db8::1"))
	w.told(c, fileKey, whole(t, fileKey, "198.51.100.7", "203.0.113.7"))
	if _, err := c.addToSet(w.Context(), "blocked", add("203.0.113.7")); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"192.0.2.1 policy", "192.0.2.1 url:https://example.net/list", "198.51.100.0/24 url:https://example.net/list",
		"198.51.100.7 file:/etc/list", "203.0.113.7 file:/etc/list", "203.0.113.7 runtime", "2001:db8::1 url:https://example.net/list",
	}
	if diff := cmp.Diff(want, w.shown(c, "blocked")); diff != "" {
		t.Errorf("set (-want +got):\n%s", diff)
	}
	w.holds("blocked4", map[string]bool{"192.0.2.1": true, "198.51.100.9": true, "203.0.113.7": true})
	w.holds("blocked6", map[string]bool{"2001:db8::1": true})
	if diff := cmp.Diff(api.SetSummary{Name: "blocked", Entries: 7, Policy: 1, Runtime: 1, Sources: 5}, c.listSets().Sets[0]); diff != "" {
		t.Errorf("summary (-want +got):\n%s", diff)
	}

	t.Log("what one source lets go of, the others keep")
	w.told(c, urlKey, whole(t, urlKey, "2001:db8::2"))
	w.holds("blocked4", map[string]bool{"192.0.2.1": true, "198.51.100.9": false, "198.51.100.7": true})
	w.holds("blocked6", map[string]bool{"2001:db8::1": false, "2001:db8::2": true})
	w.told(c, fileKey, sources.Update{Del: []addrset.Range{entriesOf(t, fileKey, "203.0.113.7")[0].Range}, Add: entriesOf(t, fileKey, "203.0.113.8")})
	w.holds("blocked4", map[string]bool{"203.0.113.7": true, "203.0.113.8": true})

	t.Log("what cannot be read changes nothing")
	w.told(c, urlKey, sources.Update{Err: errors.New("gone"), Whole: true})
	w.holds("blocked6", map[string]bool{"2001:db8::2": true})
	if s := c.status().Sources[0]; s.Error != "gone" || s.Entries != 1 || s.LastGood == nil {
		t.Errorf("state of the source %+v", s)
	}

	t.Log("a restart begins with the last good lists, and without them once the policy does")
	w.nft("flush", "ruleset")
	c = w.start()
	w.holds("blocked4", map[string]bool{"198.51.100.7": true, "203.0.113.8": true})
	w.holds("blocked6", map[string]bool{"2001:db8::2": true})
	if _, err := c.apply(w.Context(), apply("version: 1\n", w.cfg.PolicyPath)); err != nil {
		t.Fatal(err)
	}
	w.holds("blocked6", map[string]bool{"2001:db8::2": false})
	c.forgetLists()
	lists, err := c.store.LoadLists()
	if err != nil || len(lists) != 0 {
		t.Errorf("lists left of a policy without sources: %v, %v", lists, err)
	}
}

// What a source says is in force as soon as the kernel takes it.
func TestListRefusedByTheKernel(t *testing.T) {
	w := newWorld(t)
	w.policy(sourcedPolicy)
	c := w.start()
	w.kernel.refuse = []error{errRefused}
	_, err := c.takeUpdate(w.Context(), urlKey, whole(t, urlKey, "198.51.100.0/24"))
	w.mustFail(err, "cannot allocate memory")
	w.holds("blocked4", map[string]bool{"198.51.100.9": false, "192.0.2.1": true})
	w.must(c.reconcile(w.Context()))
	w.holds("blocked4", map[string]bool{"198.51.100.9": true})
}

func TestEntriesOfSourcesStay(t *testing.T) {
	w := newWorld(t)
	w.policy(sourcedPolicy)
	c := w.start()
	w.told(c, urlKey, whole(t, urlKey, "198.51.100.0/24"))
	files := whole(t, fileKey, "198.51.100.7")
	files.Add[0].Origin = "/etc/list/mine"
	w.told(c, fileKey, files)
	for entry, want := range map[string]string{
		"192.0.2.1":       "policy.yaml:4",
		"198.51.100.0/24": "comes from url:https://example.net/list: remove it there",
		"198.51.100.7":    "comes from /etc/list/mine: remove it there",
	} {
		_, err := c.deleteFromSet(w.Context(), "blocked", add(entry))
		w.mustFail(err, want)
		_, err = c.deleteFromSet(w.Context(), "blocked", api.SetChange{Entries: []string{entry}, Exist: true})
		w.mustFail(err, want)
	}
	out, err := c.flushSet(w.Context(), "blocked", api.Flush{})
	w.must(err)
	if got := strings.Join(out.Warnings, "\n"); !strings.Contains(got, "2 entries of set blocked stay: they come from its sources") {
		t.Errorf("flush warns %q", got)
	}
	w.holds("blocked4", map[string]bool{"198.51.100.9": true})
}

// Where no daemon runs the saved lists count as well.
func TestListsWithoutDaemon(t *testing.T) {
	w := newWorld(t)
	w.policy(sourcedPolicy)
	st := w.fresh().store
	at := time.Now().Add(-time.Hour)
	w.must(st.SaveList(store.List{Set: urlKey.set, Source: urlKey.source, GoodAt: at, Entries: addrset.New(entriesOf(t, urlKey, "198.51.100.0/24")...)}))
	w.must(st.SaveList(store.List{Set: "blocked", Source: "url:https://example.net/former", GoodAt: at, Entries: addrset.New(entriesOf(t, urlKey, "203.0.113.0/24")...)}))
	x := Direct{Config: w.cfg, LockWait: time.Second, Warn: func(text string) { t.Log(text) }}
	if _, err := x.Apply(w.Context(), apply(sourcedPolicy, w.cfg.PolicyPath)); err != nil {
		t.Fatal(err)
	}
	w.holds("blocked4", map[string]bool{"198.51.100.9": true, "203.0.113.9": false, "192.0.2.1": true})
	if _, err := x.AddToSet(w.Context(), "blocked", add("203.0.113.1")); err != nil {
		t.Fatal(err)
	}
	w.holds("blocked4", map[string]bool{"198.51.100.9": true, "203.0.113.1": true})
	status, err := x.Status(w.Context())
	w.must(err)
	if s := status.Sources[0]; s.Source != urlKey.source || s.Age == nil || *s.Age < 3600 || *s.Age > 3700 {
		t.Errorf("state of the source %+v", s)
	}

	t.Log("a damaged list is told of and the rest goes on")
	files, err := filepath.Glob(filepath.Join(w.cfg.StateDir, "list-*"))
	if err != nil || len(files) != 2 {
		t.Fatalf("saved lists %q, %v", files, err)
	}
	for _, f := range files {
		w.write(f, "nonsense")
	}
	c := w.start()
	w.holds("blocked4", map[string]bool{"198.51.100.9": false, "203.0.113.1": true, "192.0.2.1": true})
	if !strings.Contains(w.log.String(), "saved lists damaged") || c.status().Sources[0].LastGood != nil {
		t.Errorf("log %s", w.log)
	}
}

// Who waits for a change of the fleet is told where the kernel takes it at a retry.
func TestFleetChangeInForceAtARetry(t *testing.T) {
	w := newWorld(t)
	w.policy(sourcedPolicy)
	c := w.start()
	one, done := &followed{}, make(chan struct{})
	d := &Daemon{core: c, log: discard, listSaves: newListSaves(), retry: time.NewTimer(time.Hour)}
	d.following = following{each: map[listKey]*followed{urlKey: one}, waiting: []waitingChange{{urlKey, 7, list{}, done}}}
	u := whole(t, urlKey, "203.0.113.1")
	u.Revision = 7
	w.kernel.refuse = []error{errRefused}
	d.takeUpdate(w.Context(), sourceUpdate{urlKey, one, u})
	select {
	case <-done:
		t.Fatal("told before it is in force")
	default:
	}
	d.reconcile(w.Context(), "retry")
	w.holds("blocked4", map[string]bool{"203.0.113.1": true})
	select {
	case <-done:
	default:
		t.Error("in force, and nobody is told")
	}
}

// The revision of a change says nothing of a list that shows a higher one of an
// etcd that has gone back since.
func TestFleetChangeAfterEtcdWentBack(t *testing.T) {
	now := &list{revision: 1000, readings: 1}
	change := waitingChange{revision: 5, before: *now}
	for _, test := range []struct {
		name string
		now  *list
		want bool
	}{
		{"nothing heard yet", now, false},
		{"one more change of before", &list{revision: 1001, readings: 1}, false},
		{"read anew before the change", &list{revision: 4, readings: 2}, false},
		{"read anew", &list{revision: 5, readings: 2}, true},
		{"read anew, and more changes", &list{revision: 7, readings: 2}, true},
		{"left", nil, false},
	} {
		if got := change.reached(test.now); got != test.want {
			t.Errorf("%s: reached %v", test.name, got)
		}
	}
	change.revision = 1001
	if change.reached(now) || !change.reached(&list{revision: 1001, readings: 1}) {
		t.Error("a change where nothing went back is reached with its revision alone")
	}
}

// An empty list is written down once, as others are.
func TestEmptyListIsSavedOnce(t *testing.T) {
	w := newWorld(t)
	w.policy(sourcedPolicy)
	c := w.start()
	for i, want := range []bool{true, false, false} {
		if save, err := c.takeUpdate(w.Context(), fileKey, whole(t, fileKey)); save != want || err != nil {
			t.Errorf("update %d: saved %v, %v", i, save, err)
		}
	}
}

func TestLogOfSourcesThatFail(t *testing.T) {
	w := newWorld(t)
	w.policy(sourcedPolicy)
	c := w.start()
	w.told(c, urlKey, sources.Update{Err: errors.New("gone")})
	w.told(c, urlKey, sources.Update{Err: errors.New("gone")})
	if got := w.log.String(); strings.Count(got, "and never was") != 1 || strings.Contains(got, "stays in force") {
		t.Errorf("log of a source that was never read: %s", got)
	}
	w.told(c, urlKey, whole(t, urlKey, "198.51.100.0/24"))
	w.told(c, urlKey, sources.Update{Err: errors.New("gone")})
	if got := w.log.String(); strings.Count(got, "its last good list stays in force") != 1 {
		t.Errorf("log of a source that was read: %s", got)
	}
}

// A list that could not be written down is, once there is room.
func TestListsAreSavedAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	st, err := store.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		d := &Daemon{core: &core{store: st}, log: discard, listSaves: newListSaves()}
		ctx, stop := context.WithCancel(t.Context())
		defer synctest.Wait()
		defer stop()
		go func() { _ = d.saveLists(ctx) }()
		saved := func(source string) bool {
			t.Helper()
			lists, err := st.LoadLists()
			if err != nil {
				t.Fatal(err)
			}
			return slices.ContainsFunc(lists, func(l store.List) bool { return l.Source == source })
		}
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		must(os.Rename(dir, dir+".away"))
		for _, key := range []listKey{urlKey, fileKey} {
			d.listSaves.put(store.List{Set: key.set, Source: key.source, Entries: addrset.New(entriesOf(t, key, "192.0.2.1")...)})
		}
		<-time.After(3 * saveAgain)
		if got := d.listSaves.problems(); len(got) != 2 || !strings.Contains(got[0].Message, fileKey.source) {
			t.Errorf("problems %+v", got)
		}
		d.listSaves.keep(map[listKey]*list{urlKey: {}}) // the policy names it no more
		must(os.Rename(dir+".away", dir))
		<-time.After(saveAgain + time.Second)
		if !saved(urlKey.source) || saved(fileKey.source) || len(d.listSaves.problems()) != 0 {
			t.Errorf("lists saved: url %v, file %v; problems %+v", saved(urlKey.source), saved(fileKey.source), d.listSaves.problems())
		}
		d.listSaves.put(store.List{Set: fileKey.set, Source: fileKey.source})
		<-time.After(2 * saveAfter)
		if !saved(fileKey.source) {
			t.Error("a list after that is not saved at once")
		}
	})
}
