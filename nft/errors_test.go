package nft

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nftfw/nftfw/pkg/ruleset"
)

// childVariable makes TestMain play a process of another user.
const childVariable = "NFTFW_TEST_NFT_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		if err := childWork(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// childWork does one of everything.
func childWork() error {
	k, err := Open()
	if err != nil {
		var refusal *CommitError
		if errors.As(err, &refusal) && errors.Is(err, unix.EPERM) {
			return fmt.Errorf("EPERM: %w", err)
		}
		return err
	}
	defer func() { _ = k.Close() }()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ready, done := make(chan struct{}), make(chan error)
	go func() { done <- k.Monitor(ctx, "nftfw", func(Event) { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		return err
	}
	have, err := k.Observe(ctx, "nftfw")
	if err != nil {
		return err
	}
	if err := k.Commit(ctx, Diff(have, published(3), time.Now())); err != nil {
		return err
	}
	cancel()
	<-done
	return nil
}

// asNobody runs childWork as another user, in the namespace of k, with the
// given capabilities.
func asNobody(t *testing.T, k *Kernel, caps ...uintptr) (string, error) {
	t.Helper()
	if !k.inside() {
		t.Fatal("the child would run outside the namespace of the test")
	}
	// By its path the binary may not be reached by another user.
	cmd := exec.Command("/proc/self/exe")
	cmd.Dir = "/"
	cmd.Env = []string{childVariable + "=1"}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential:  &syscall.Credential{Uid: 65534, Gid: 65534},
		AmbientCaps: caps,
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestWithoutRights(t *testing.T) {
	k := inNamespace(t)
	out, err := asNobody(t, k)
	if err == nil || !strings.HasPrefix(out, "EPERM: ") || !strings.Contains(out, "CAP_NET_ADMIN") {
		t.Errorf("without rights: %v, output %q; want EPERM with its remedy", err, out)
	}
}

func TestCapNetAdminIsEnough(t *testing.T) {
	k := inNamespace(t)
	if out, err := asNobody(t, k, unix.CAP_NET_ADMIN); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	wantSettled(t, k, published(3))
}

func TestFromAnyThread(t *testing.T) {
	k := inNamespace(t)
	done := make(chan error)
	go func() { // on a thread of the machine's own namespace
		if k.inside() {
			done <- errors.New("the thread is in the namespace; the test proves nothing")
			return
		}
		s, err := k.Observe(context.Background(), "nftfw")
		if err == nil && s.Exists() {
			err = errors.New("looked into the wrong namespace")
		}
		if err == nil {
			err = k.Commit(context.Background(), Diff(s, published(1), time.Now()))
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	wantSettled(t, k, published(1))
}

func TestContextStopsCommit(t *testing.T) {
	k := inNamespace(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := k.Commit(ctx, Diff(StateOf(nil), published(1), time.Now())); !errors.Is(err, context.Canceled) {
		t.Errorf("commit: %v", err)
	}
	if _, err := k.Observe(ctx, "nftfw"); !errors.Is(err, context.Canceled) {
		t.Errorf("observe: %v", err)
	}
	if observe(t, k, "nftfw").Exists() {
		t.Error("a table was made after the context was done")
	}
}

func TestRefusedPlansDoNotHarmTheNext(t *testing.T) {
	k := inNamespace(t)
	base := published(1)
	put(t, k, base)
	// A great many refusals, each with an answer as large as the message.
	for range 5 {
		lots := published(20_000)
		missing := Diff(StateOf(lots), base, time.Now())
		err := k.Commit(context.Background(), missing)
		var refusal *CommitError
		if !errors.As(err, &refusal) || !refusal.Stale() {
			t.Fatalf("%v, want a stale plan", err)
		}
		next := with(base, publishedKey(7), ruleset.Element{Verdict: ruleset.Verdict{Kind: ruleset.Drop}})
		commit(t, k, Diff(StateOf(base), next, time.Now()))
		commit(t, k, Diff(StateOf(next), base, time.Now()))
	}
	wantSettled(t, k, base)
}

// Without a descriptor for another connection the one that is there goes on.
func TestReopenFails(t *testing.T) {
	k := inNamespace(t)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	set := func(soft uint64) {
		t.Helper()
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: soft, Max: limit.Max}); err != nil {
			t.Fatal(err)
		}
	}
	set(0) // what is open stays so
	err := k.reopen()
	set(limit.Cur)
	if !errors.Is(err, unix.EMFILE) {
		t.Fatalf("reopen = %v, want EMFILE", err)
	}
	put(t, k, published(1))
	if err := k.reopen(); err != nil {
		t.Fatal(err)
	}
	put(t, k, published(2))
}

func TestRulesThatCannotBeExpressed(t *testing.T) {
	k := inNamespace(t)
	for _, c := range []struct {
		name string
		rule ruleset.Rule
	}{
		{"no field", ruleset.Rule{Matches: []ruleset.Match{{Op: ruleset.OpSet, Set: "s"}}}},
		{"no operator", ruleset.Rule{Matches: []ruleset.Match{{Fields: []ruleset.Field{ruleset.Dport}}}}},
		{"any interface", ruleset.Rule{Matches: []ruleset.Match{ruleset.Named(ruleset.IIfName, "*")}}},
		{"unit", ruleset.Rule{Limit: &ruleset.Limit{Rate: 1, Unit: "week"}}},
		{"verdict", ruleset.Rule{Verdict: ruleset.Verdict{Kind: "queue"}}},
	} {
		table := &ruleset.Table{Name: "nftfw", Chains: []*ruleset.Chain{{Name: "alpha", Rules: []ruleset.Rule{c.rule}}}}
		if err := k.Commit(context.Background(), Diff(StateOf(nil), table, time.Now())); err == nil || !strings.Contains(err.Error(), "rule 1 of chain alpha") {
			t.Errorf("%s: %v, want an error that names the rule", c.name, err)
		}
	}
	if observe(t, k, "nftfw").Exists() {
		t.Error("a part of a plan was committed")
	}
}
