package integration

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nftfw/nftfw/integration/lab"
)

// listServer serves one list of addresses, on the loopback of the host.
type listServer struct {
	mu   sync.Mutex
	body string // "" is an error of the server
}

func (s *listServer) serve(body string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.body = body
}

func (s *listServer) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.body == "" {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	_, _ = w.Write([]byte(s.body))
}

// lists starts a server of lists. The URL is good on the host.
func (s *set) lists() (*listServer, string) {
	s.t.Helper()
	l, err := s.Host.Listen(s.ctx(), "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	lists := &listServer{}
	server := &http.Server{Handler: lists}
	go func() { _ = server.Serve(l) }()
	s.t.Cleanup(func() { _ = server.Close() })
	return lists, "http://" + l.Addr().String() + "/list"
}

// replace puts a file in place as editors do, by another one that takes its
// name.
func replace(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".new~", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new~", path); err != nil {
		t.Fatal(err)
	}
}

// sourceState is what status says of a source.
type sourceState struct {
	Set      string     `json:"set"`
	Source   string     `json:"source"`
	Kind     string     `json:"kind"`
	Entries  int        `json:"entries"`
	LastGood *time.Time `json:"last_good"`
	Error    string     `json:"error"`
}

func sourceStates(t testing.TB, fw *lab.Firewall) map[string]sourceState {
	t.Helper()
	var status struct {
		Sources []sourceState `json:"sources"`
	}
	o := fw.Exec(t.Context(), "status", "--json")
	if err := json.Unmarshal([]byte(o.Stdout), &status); err != nil {
		t.Fatalf("%v: %s", err, o)
	}
	out := map[string]sourceState{}
	for _, s := range status.Sources {
		out[s.Kind] = s
	}
	return out
}

// until waits until status says of a source of that kind what is wanted.
func until(t testing.TB, fw *lab.Firewall, kind, want string, ok func(sourceState) bool) {
	t.Helper()
	var last sourceState
	deadline := time.Now().Add(20 * time.Second)
	for {
		if last = sourceStates(t, fw)[kind]; ok(last) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("source %+v, want %s", last, want)
		}
		<-time.After(50 * time.Millisecond)
	}
}

// Who is in a file reaches a container, and who is on a list behind a URL does
// not, however the two change, and while neither can be read.
func TestSourcesDecideAboutPackets(t *testing.T) {
	s := bare(t)
	lists, url := s.lists()
	dir := filepath.Join(t.TempDir(), "trusted.d")
	s.start(fmt.Sprintf(`version: 1
sets:
  trusted: {sources: [{file: %q}]}
  blocked: {sources: [{url: %q, every: 1s}]}
`, dir, url))
	s.run("web", "-p", "8080:80", "-p", "8080:80/udp")
	s.ready("web", "8080", "8080/udp")
	probes := hostPorts("8080", "8080/udp")
	s.closed(s.permitted.Namespace, probes)

	t.Log("a folder that comes later, and a file in it")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	ours := fmt.Sprintf("# mine\n%s\n%s\n", s.permitted.V4, s.permitted.V6)
	theirs := fmt.Sprintf("%s\n%s\n", s.stranger.V4, s.stranger.V6)
	replace(t, filepath.Join(dir, "ours"), ours)
	s.open(s.permitted.Namespace, "web", probes)
	s.closed(s.stranger.Namespace, probes)
	replace(t, filepath.Join(dir, "theirs"), theirs)
	s.open(s.stranger.Namespace, "web", probes)

	t.Log("blocked by a list")
	lists.serve(theirs + "192.0.2.0/24\n192.0.2.0/25\n")
	s.closes(s.stranger.Namespace, probes)
	s.open(s.permitted.Namespace, "web", probes)

	t.Log("entries say where they come from, and cannot be removed by command")
	shown := s.nftfw("sets", "show", "blocked", "--json")
	if !strings.Contains(shown, `"source": "url:`+url+`"`) {
		t.Errorf("sets show: %s", shown)
	}
	for set, want := range map[string]string{"blocked": url, "trusted": filepath.Join(dir, "theirs")} {
		o := s.fw.Exec(s.ctx(), "sets", "del", set, s.stranger.V4.String())
		if o.Status != 5 || !strings.Contains(o.Stderr, "comes from") || !strings.Contains(o.Stderr, want) {
			t.Errorf("%s; want exit status 5 and %s", o, want)
		}
	}

	t.Log("what cannot be read changes nothing")
	replace(t, filepath.Join(dir, "theirs"), "nonsense\n")
	until(t, s.fw, "file", "an error", func(s sourceState) bool { return strings.Contains(s.Error, "theirs:1:") && s.Entries == 4 })
	lists.serve("192.0.2.1\n") // less than half
	until(t, s.fw, "url", "an error", func(s sourceState) bool { return strings.Contains(s.Error, "less than half") && s.Entries == 4 })
	lists.serve("")
	until(t, s.fw, "url", "an error", func(s sourceState) bool { return strings.Contains(s.Error, "503") && s.Entries == 4 })
	s.closed(s.stranger.Namespace, probes)
	s.open(s.permitted.Namespace, "web", probes)

	t.Log("nor does a restart, after a boot as it were")
	if err := s.fw.Kill(s.ctx()); err != nil {
		t.Fatal(err)
	}
	if err := s.Host.NFT(s.ctx(), "delete table inet nftfw"); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	s.nftfw("apply") // without a daemon
	s.closed(s.stranger.Namespace, probes)
	if err := s.fw.Start(s.ctx()); err != nil {
		t.Fatal(err)
	}
	s.closed(s.stranger.Namespace, probes)
	s.open(s.permitted.Namespace, "web", probes)

	t.Log("and both are read again once they can be")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	replace(t, filepath.Join(dir, "theirs"), theirs)
	lists.serve(ours + "203.0.113.1\n")
	s.open(s.stranger.Namespace, "web", probes)
	s.closed(s.permitted.Namespace, probes)
}

// Whom CrowdSec bans reaches no container, until the decision is taken back.
func TestCrowdSecReachesContainers(t *testing.T) {
	s := bare(t)
	l, err := s.Host.Listen(s.ctx(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var answer atomic.Value // what the next question gets, once
	answer.Store("{}")
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Api-Key") != "secret" || r.URL.Path != "/v1/decisions/stream" {
			http.Error(w, "no", http.StatusForbidden)
			return
		}
		_, _ = w.Write([]byte(answer.Swap("{}").(string)))
	})}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.start(fmt.Sprintf(`version: 1
sets:
  blocked: {sources: [{crowdsec: {url: "http://%s/", key_file: %q, every: 1s}}]}
containers: {default: any}
`, l.Addr(), key))
	s.run("web", "-p", "8080:80", "-p", "8080:80/udp")
	probes := hostPorts("8080", "8080/udp")
	s.open(s.stranger.Namespace, "web", probes)
	decisions := func(duration string) string {
		return fmt.Sprintf(`[{"id": 1, "origin": "crowdsec", "scenario": "crowdsecurity/ssh-bf", "type": "ban", "duration": %[1]q, "scope": "Range", "value": "%[2]s/32"},
			{"id": 2, "origin": "crowdsec", "scenario": "crowdsecurity/ssh-bf", "type": "ban", "duration": %[1]q, "scope": "Ip", "value": %[3]q}]`,
			duration, s.stranger.V4, s.stranger.V6.String())
	}
	answer.Store(`{"new": ` + decisions("4h0m0s") + `, "deleted": null}`)
	s.closes(s.stranger.Namespace, probes)
	s.open(s.permitted.Namespace, "web", probes)
	answer.Store(`{"new": null, "deleted": ` + decisions("-1s") + `}`)
	s.open(s.stranger.Namespace, "web", probes)
	t.Log("a decision ends by itself")
	answer.Store(`{"new": ` + decisions("2s") + `, "deleted": null}`)
	s.closes(s.stranger.Namespace, probes)
	s.open(s.stranger.Namespace, "web", probes)
}

// While a list of 100,000 entries is replaced by another one, over and over,
// an address on both is never let in and one on neither never refused.
func TestLargeListIsReplacedInOneStep(t *testing.T) {
	const entries = 100_000
	s := bare(t)
	path := filepath.Join(t.TempDir(), "blocked.list")
	// Every other address of 10.0.0.0/8 and the like, so that nothing merges;
	// the two lists have no entry in common but the stranger's.
	list := func(first int) string {
		var b strings.Builder
		fmt.Fprintf(&b, "%s\n%s\n", s.stranger.V4, s.stranger.V6)
		for i := range entries {
			n := 4*i + first
			fmt.Fprintf(&b, "10.%d.%d.%d\n", n>>16, n>>8&255, n&255)
		}
		return b.String()
	}
	a, b := list(0), list(2)
	replace(t, path, a)
	s.start(fmt.Sprintf(`version: 1
sets:
  blocked: {sources: [{file: %q}]}
containers: {default: any}
`, path))
	s.run("web", "-p", "8080:80", "-p", "8080:80/udp")
	s.open(s.permitted.Namespace, "web", hostPorts("8080", "8080/udp"))
	s.closed(s.stranger.Namespace, hostPorts("8080", "8080/udp"))
	holds := func(addr string) {
		t.Helper()
		deadline := time.Now().Add(30 * time.Second)
		for {
			if o := s.fw.Exec(s.ctx(), "sets", "test", "blocked", addr); o.Status == 0 {
				return
			} else if time.Now().After(deadline) {
				t.Fatal(o)
			}
		}
	}
	holds("10.0.0.4")

	listed := hostPorts("8080")
	hammer := s.stranger.Hammer(listed[0].To, listed[1].To)
	// A datagram is sent once: one that is dropped has no answer, however long
	// a busy machine is waited for.
	var asked, unanswered atomic.Int64
	stop := make(chan struct{})
	var workers sync.WaitGroup
	for i := range 4 {
		probe := hostPorts("8080/udp")[i%2]
		probe.Timeout = 10 * time.Second
		workers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				asked.Add(1)
				if r := s.permitted.Probe(s.ctx(), probe); r.Outcome != lab.Answered {
					unanswered.Add(1)
					t.Errorf("%s: %s", probe, r)
				}
			}
		})
	}
	const swaps = 4
	for i := range swaps {
		next, addr := b, "10.0.0.6"
		if i%2 == 1 {
			next, addr = a, "10.0.0.4"
		}
		replace(t, path, next)
		holds(addr)
	}
	close(stop)
	workers.Wait()
	tally, err := hammer.Stop()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d datagrams of an unrelated address, %d unanswered; %d attempts of a listed one, %d got in",
		asked.Load(), unanswered.Load(), tally.Attempts, tally.Reached())
	if tally.Reached() > 0 {
		t.Errorf("a listed address got in %d times of %d", tally.Reached(), tally.Attempts)
	}
	if asked.Load() < 100 || tally.Attempts < 100 {
		t.Errorf("too few packets to say anything: %d and %d", asked.Load(), tally.Attempts)
	}
}
