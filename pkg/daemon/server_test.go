package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nftfw/nftfw/pkg/api"
)

func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "nftfw.sock")
	for range 2 { // the second time over what the first left
		l, err := listen(path)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != 0o660 {
			t.Errorf("mode of the socket %o, want 660", got)
		}
		l.(*net.UnixListener).SetUnlinkOnClose(false) // as kill -9 does
		_ = l.Close()
	}
}

func TestListenKeepsWhatIsNoSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(path, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := listen(path); err == nil {
		_ = l.Close()
		t.Error("listened in place of a file")
	} else if !strings.Contains(err.Error(), path+" is no socket") {
		t.Errorf("error %q does not name the file", err)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "data" {
		t.Errorf("the file holds %q, %v", text, err)
	}
}

// serving runs the control server of d and its loop.
func serving(t *testing.T, d *Daemon, path string) *api.Client {
	t.Helper()
	l, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	d.listener, d.requests = l, make(chan func(context.Context))
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := d.loop(ctx); err != nil {
			t.Errorf("loop: %v", err)
		}
	})
	running.Go(func() {
		if err := d.serve(ctx); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	return api.NewClient(path)
}

func TestControlSocket(t *testing.T) {
	w := newWorld(t)
	w.policy(openPolicy)
	c := w.start()
	client := serving(t, &Daemon{core: c, log: discard, listSaves: newListSaves()}, w.cfg.Socket)
	ctx := t.Context()

	if s, err := client.Status(ctx); err != nil || !s.Enforced || !s.Daemon.Running || s.Daemon.PID != os.Getpid() {
		t.Errorf("status = %+v, %v", s, err)
	}
	if _, err := client.AddToSet(ctx, "trusted", add("203.0.113.1")); err != nil {
		t.Fatal(err)
	}
	if m, err := client.TestSet(ctx, "trusted", "203.0.113.1"); err != nil || !m.In {
		t.Errorf("test = %+v, %v", m, err)
	}
	if list, err := client.Sets(ctx); err != nil || len(list.Sets) != 4 {
		t.Errorf("sets = %+v, %v", list, err)
	}
	if _, err := client.FlushSet(ctx, "trusted", api.Flush{}); err != nil {
		t.Fatal(err)
	}
	if got := w.saved("trusted"); len(got) != 0 {
		t.Errorf("entries after a flush: %v", got)
	}
	var failure *api.Error
	if _, err := client.Set(ctx, "../policy"); !errors.As(err, &failure) || failure.Kind != api.KindInvalid || !strings.Contains(failure.Message, `no set "../policy"`) {
		t.Errorf("show of an odd name = %v", err)
	}
	if _, err := client.Apply(ctx, apply("version: 2\n", "p.yaml")); !errors.As(err, &failure) || failure.Kind != api.KindPolicy || !strings.HasPrefix(failure.Message, "p.yaml:1:") {
		t.Errorf("apply of a mistake = %v", err)
	}
	w.kernel.refuse = []error{errRefused}
	if _, err := client.AddToSet(ctx, "trusted", add("203.0.113.1")); !errors.As(err, &failure) || failure.Kind != api.KindFailed {
		t.Errorf("add that the kernel refuses = %v", err)
	}
	if change, err := client.Confirm(ctx); err != nil || change.Changed {
		t.Errorf("confirm of nothing = %+v, %v", change, err)
	}
}

func TestRequestLimits(t *testing.T) {
	w := newWorld(t)
	w.policy(openPolicy)
	serving(t, &Daemon{core: w.start(), log: discard, listSaves: newListSaves()}, w.cfg.Socket)
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", w.cfg.Socket) },
	}}
	tests := []struct {
		name, method, path, body string
		status                   int
		says                     string
	}{
		{"unknown field", "POST", "/v1/sets/trusted/add", `{"entries":["192.0.2.1"],"tiemout":5}`, 400, `unknown field \"tiemout\"`},
		{"no JSON", "POST", "/v1/sets/trusted/add", `entries`, 400, "request: "},
		{"nothing", "POST", "/v1/apply", ``, 400, "request: "},
		{"wrong type", "POST", "/v1/sets/trusted/add", `{"entries":"192.0.2.1"}`, 400, "request: "},
		{"wrong method", "GET", "/v1/apply", ``, 405, ""},
		{"no such operation", "POST", "/v1/reboot", `{}`, 404, ""},
	}
	for _, tt := range tests {
		req, err := http.NewRequestWithContext(t.Context(), tt.method, "http://nftfw"+tt.path, strings.NewReader(tt.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		var answer json.RawMessage
		_ = json.NewDecoder(resp.Body).Decode(&answer)
		_ = resp.Body.Close()
		if resp.StatusCode != tt.status || !strings.Contains(string(answer), tt.says) {
			t.Errorf("%s: %d %s, want %d with %q", tt.name, resp.StatusCode, answer, tt.status, tt.says)
		}
	}
	if got := w.saved("trusted"); len(got) != 0 {
		t.Errorf("entries of refused requests: %v", got)
	}
}

// A body that never ends is not read for ever.
func TestRequestTooLarge(t *testing.T) {
	d := &Daemon{}
	handler := limited(d, 100, func(context.Context, *http.Request, api.SetChange) (api.Change, error) {
		t.Error("a request over the limit came through")
		return api.Change{}, nil
	})
	server := httptest.NewRecorder()
	req, err := http.NewRequestWithContext(t.Context(), "POST", "/", strings.NewReader(fmt.Sprintf(`{"comment":%q}`, strings.Repeat("x", 200))))
	if err != nil {
		t.Fatal(err)
	}
	handler(server, req)
	if server.Code != http.StatusBadRequest || !strings.Contains(server.Body.String(), "too large") {
		t.Errorf("answer %d %s", server.Code, server.Body)
	}
}

// Whoever waits for the loop of a daemon that stops gets an answer.
func TestRequestWhileStopping(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	d := &Daemon{requests: make(chan func(context.Context))}
	cancel()
	if err := d.do(ctx, func(context.Context) { t.Error("ran") }); !errors.Is(err, errStopping) {
		t.Errorf("do = %v", err)
	}
}

// What was begun is finished, though the daemon is told to stop meanwhile.
func TestRequestOutlivesTheSignal(t *testing.T) {
	d := &Daemon{requests: make(chan func(context.Context))}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { (<-d.requests)(ctx) }()
	if err := d.do(t.Context(), func(inner context.Context) {
		cancel()
		if inner.Err() != nil {
			t.Errorf("the request was cancelled half way: %v", inner.Err())
		}
	}); err != nil {
		t.Error(err)
	}
}

// What a failed request left behind is put right at once.
func TestFailedRequestIsSettled(t *testing.T) {
	w := newWorld(t)
	w.policy(openPolicy)
	client := serving(t, &Daemon{core: w.start(), log: discard, listSaves: newListSaves()}, w.cfg.Socket)
	w.kernel.refuse, w.kernel.blind = []error{errRefused}, []error{errRefused} // the change, and the look at what it left
	_, err := client.AddToSet(t.Context(), "trusted", add("203.0.113.1"))
	w.mustFail(err, "cannot allocate memory")
	if s, err := client.Status(t.Context()); err != nil || !s.Enforced {
		t.Errorf("enforced: %v, %v", s.Enforced, err)
	}
}

// The loop goes on until the disk knows that a policy was put back.
func TestTrialEndIsNoted(t *testing.T) {
	w := newWorld(t)
	w.policy(openPolicy)
	c := w.start()
	request := apply(otherPolicy, w.cfg.PolicyPath)
	request.Confirm = time.Minute
	_, err := c.apply(w.Context(), request)
	w.must(err)
	unblock := w.block("policy.yaml")
	c.trial.Deadline = time.Now()
	d := &Daemon{core: c, log: w.cfg.Log}
	d.putBack(w.Context())
	if !w.inKernel("trusted4", "192.0.2.10") {
		t.Error("the former policy is not in force")
	}
	if got := w.log.String(); !strings.Contains(got, "put back, but not noted") {
		t.Errorf("the log does not say that the disk knows nothing of it:\n%s", got)
	}
	unblock()
	d.putBackAt = time.Time{}
	select {
	case <-d.trialEnds():
		d.putBack(w.Context())
	case <-time.After(10 * time.Second):
		t.Fatal("it is not tried again")
	}
	if got := w.savedPolicy(); got != openPolicy {
		t.Errorf("policy on disk:\n%s", got)
	}
	if d.trialEnds() != nil {
		t.Error("it is tried again though all is noted")
	}
}

func TestTrialEnds(t *testing.T) {
	d := &Daemon{core: &core{}}
	if d.trialEnds() != nil {
		t.Error("no trial, but an end of it")
	}
	d.core.trial = &trial{Deadline: time.Now().Add(-time.Hour)}
	select {
	case <-d.trialEnds():
	case <-time.After(time.Second):
		t.Error("a trial that is overdue does not end")
	}
	d.putBackAt = time.Now().Add(time.Hour)
	select {
	case <-d.trialEnds():
		t.Error("an attempt that just failed is made again at once")
	case <-time.After(10 * time.Millisecond):
	}
}
