package daemon

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nftfw/nftfw/nft"
	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/api"
	"github.com/nftfw/nftfw/pkg/sources"
	"github.com/nftfw/nftfw/pkg/sources/spec"
)

// direct is a command without a daemon.
func (w *world) direct() Direct {
	return Direct{Config: w.cfg, LockWait: time.Second, Warn: func(text string) { w.Log(text) }}
}

// etcdWrites is an etcd that counts what is written into it.
type etcdWrites struct {
	Sources
	n int
}

func (*etcdWrites) Follow(context.Context, spec.Source, sources.Last, func(sources.Update)) {}

func (e *etcdWrites) Put(context.Context, spec.Etcd, []addrset.Range, string, time.Duration) (int64, error) {
	e.n++
	return 1, nil
}

// A set alone cannot be changed where the table has to be made anew. Nothing is
// said to be in force then, and nothing saved.
func TestSetOfATableThatMustBeReplaced(t *testing.T) {
	const policy = `version: 1
sets: {trusted: {entries: [192.0.2.10], sources: [{etcd: {endpoints: ["https://127.0.0.1:1"], prefix: /s/}}]}}
`
	alterations := map[string][]string{
		"a counter of somebody's": {"add", "counter", "inet", "nftfw", "foo"},
		"put to sleep":            {"add", "table", "inet", "nftfw", "{ flags dormant; }"},
	}
	for name, args := range alterations {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			etcd := &etcdWrites{}
			w.cfg.Sources = etcd
			w.policy(policy)
			c := w.start()
			_, err := c.addToSet(w.Context(), "trusted", add("203.0.113.1"))
			w.must(err)
			w.nft(args...)
			before := w.listing()
			commands := map[string]func(Direct) (api.Change, error){
				"add":   func(x Direct) (api.Change, error) { return x.AddToSet(w.Context(), "trusted", add("192.0.2.77")) },
				"again": func(x Direct) (api.Change, error) { return x.AddToSet(w.Context(), "trusted", add("203.0.113.1")) },
				"del":   func(x Direct) (api.Change, error) { return x.DeleteFromSet(w.Context(), "trusted", add("203.0.113.1")) },
				"flush": func(x Direct) (api.Change, error) { return x.FlushSet(w.Context(), "trusted", api.Flush{}) },
				"fleet": func(x Direct) (api.Change, error) { return x.AddToFleet(w.Context(), "trusted", add("192.0.2.77")) },
			}
			for name, command := range commands {
				w.run(name, func(w *world) {
					_, err := command(w.direct())
					w.mustFail(err, "`nftfw apply` puts it right")
				})
			}
			if diff := cmp.Diff([]string{"203.0.113.1"}, w.saved("trusted")); diff != "" || etcd.n > 0 {
				t.Errorf("%d writes to etcd, set on disk (-want +got):\n%s", etcd.n, diff)
			}
			if diff := cmp.Diff(before, w.listing()); diff != "" {
				t.Errorf("kernel (-want +got):\n%s", diff)
			}
			_, err = w.direct().Apply(w.Context(), apply(policy, w.cfg.PolicyPath))
			w.must(err)
			_, err = w.direct().AddToSet(w.Context(), "trusted", add("192.0.2.77"))
			w.must(err)
			if !w.inKernel("trusted4", "192.0.2.77") {
				t.Error("added after an apply, and not in the kernel")
			}
		})
	}
}

// Somebody alters the table between the look at it and the commit.
func TestTableReplacedUnderASetChange(t *testing.T) {
	w := newWorld(t)
	w.policy(openPolicy)
	c := w.start()
	c.onlySet = "trusted"
	w.nft("add", "counter", "inet", "nftfw", "foo")
	w.kernel.refuse = []error{&nft.CommitError{Op: "x", Errno: unix.ENOENT}}
	_, err := c.addToSet(w.Context(), "trusted", add("192.0.2.77"))
	w.mustFail(err, "`nftfw apply` puts it right")
	if got := w.saved("trusted"); len(got) > 0 {
		t.Errorf("set on disk %q after a refusal", got)
	}
}
