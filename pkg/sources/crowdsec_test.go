package sources

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nftfw/nftfw/pkg/sources/spec"
)

// localAPI stands in for CrowdSec's: it gives the answers of testdata/crowdsec
// one after the other, and then empty ones. They have the form of those that
// the local API sends.
type localAPI struct {
	*httptest.Server
	mu      sync.Mutex
	answers []string // files
	held    bool     // nothing new is given
	broken  bool     // answers are cut short
	asked   []string // the questions, in their order
}

const apiKey = "0123456789abcdef"

func newLocalAPI(t *testing.T, answers ...string) *localAPI {
	t.Helper()
	s := &localAPI{answers: answers}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		switch {
		case r.Header.Get("X-Api-Key") != apiKey:
			http.Error(w, `{"message":"access forbidden"}`, http.StatusForbidden)
			return
		case r.URL.Path != "/v1/decisions/stream":
			http.NotFound(w, r)
			return
		}
		s.asked = append(s.asked, r.URL.RawQuery)
		if s.broken {
			_, _ = w.Write([]byte(`{"new": [{"dura`))
			return
		}
		if s.held || len(s.answers) == 0 {
			_, _ = w.Write([]byte(`{"deleted": null, "new": null}`))
			return
		}
		body, err := os.ReadFile(filepath.Join("testdata", "crowdsec", s.answers[0]))
		if err != nil {
			t.Error(err)
		}
		s.answers = s.answers[1:]
		s.held = true
		_, _ = w.Write(body)
	}))
	t.Cleanup(s.Close)
	return s
}

// next lets the next answer be given.
func (s *localAPI) next(broken bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held, s.broken = false, broken
}

func TestCrowdSecIsFollowed(t *testing.T) {
	api := newLocalAPI(t, "startup.json", "changes.json", "again.json")
	key := filepath.Join(t.TempDir(), "key")
	write(t, key, "wrong\n")
	s := spec.Source{CrowdSec: &spec.CrowdSec{URL: api.URL, KeyFile: key, Every: quick}}
	f := follow(t, Reader{}, s, Last{})
	f.until("cscli bouncers add")
	write(t, key, apiKey+"\n")

	t.Log("everything, when it begins")
	f.until("", "192.0.2.24", "198.51.100.0/24", "203.0.113.7", "2001:db8::24", "2001:db8:5::/48")
	f.wait(func() bool {
		return f.last.Note == `6 decisions are passed over: 1 of scope "AS", 1 of scope "Country", 1 of type "captcha", 1 simulated, 1 without a duration, 1 without an address`
	}, func() string { return "a note, not " + f.last.Note })
	for text, want := range map[string]struct {
		left    time.Duration
		comment string
	}{
		"192.0.2.24":      {3*time.Hour + 59*time.Minute, "crowdsecurity/ssh-bf"},
		"198.51.100.0/24": {23 * time.Hour, "manual 'ban' from 'localhost'"},
		"203.0.113.7":     {10 * time.Hour, "crowdsecurity/http-probing"}, // the longer of two
	} {
		e, _ := f.entry(text)
		if left := time.Until(e.Expires); left > want.left+time.Minute || left < want.left-time.Minute || e.Comment != want.comment {
			t.Errorf("%s expires in %s, comment %q; want %s, %q", text, left, e.Comment, want.left, want.comment)
		}
	}

	t.Log("then what changed: one gone, one gone and back, one new, one longer")
	api.next(false)
	f.until("", "192.0.2.25", "198.51.100.0/24", "203.0.113.7", "2001:db8::24")
	if e, _ := f.entry("203.0.113.7"); time.Until(e.Expires) < 90*time.Hour {
		t.Errorf("203.0.113.7 expires at %s", e.Expires)
	}

	t.Log("a lost answer: everything again")
	api.next(true)
	f.until("decisions", "192.0.2.25", "198.51.100.0/24", "203.0.113.7", "2001:db8::24")
	api.next(false)
	f.until("", "192.0.2.99")
	f.wait(func() bool { return !f.last.Whole }, func() string { return "one more question" })
	f.stop()
	api.mu.Lock()
	defer api.mu.Unlock()
	questions := slices.Compact(api.asked)
	want := []string{"startup=true", "startup=false", "startup=true", "startup=false"}
	if diff := cmp.Diff(want, questions[:min(len(questions), 4)]); diff != "" {
		t.Errorf("questions (-want +got):\n%s", diff)
	}
}

func TestCrowdSecIsNot(t *testing.T) {
	for body, want := range map[string]string{
		"null":                          "no JSON object",
		"<html>":                        "no JSON object",
		`{"new": [`:                     "read the decisions",
		"{}":                            "no decisions",
		`{"message": "internal error"}`: `no decisions, neither`,
		`{"new": "no list"}`:            "read the decisions",
		`{"deleted": [1, 2]}`:           "read the decisions",
	} {
		server := httptest.NewServer(text(body))
		t.Cleanup(server.Close)
		key := filepath.Join(t.TempDir(), "key")
		write(t, key, apiKey)
		follow(t, Reader{}, spec.Source{CrowdSec: &spec.CrowdSec{URL: server.URL, KeyFile: key, Every: time.Hour}}, Last{}).until(want)
	}
	for _, body := range []string{`{"new": null, "deleted": null}`, `{"new": []}`, `{"deleted": null}`} {
		server := httptest.NewServer(text(body))
		t.Cleanup(server.Close)
		key := filepath.Join(t.TempDir(), "key")
		write(t, key, apiKey)
		follow(t, Reader{}, spec.Source{CrowdSec: &spec.CrowdSec{URL: server.URL, KeyFile: key, Every: time.Hour}}, Last{}).until("")
	}
	follow(t, Reader{}, spec.Source{CrowdSec: &spec.CrowdSec{URL: "http://127.0.0.1:1", KeyFile: "/nowhere", Every: time.Hour}}, Last{}).until("/nowhere does not exist")
}

// The answers are whole documents, with all keys that CrowdSec sends.
func TestCrowdSecAnswersAreWhole(t *testing.T) {
	files, err := filepath.Glob("testdata/crowdsec/*.json")
	if err != nil || len(files) != 3 {
		t.Fatalf("answers %q, %v", files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var answer map[string][]map[string]any
		if err := json.Unmarshal(text, &answer); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		for _, d := range slices.Concat(answer["new"], answer["deleted"]) {
			if d["origin"] == nil || d["id"] == nil || !strings.HasSuffix(d["duration"].(string), "s") && d["value"] != "192.0.2.77" {
				t.Errorf("%s: %v is no decision as CrowdSec sends it", file, d)
			}
		}
	}
}
