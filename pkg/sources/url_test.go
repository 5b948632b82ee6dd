package sources

import (
	"compress/gzip"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/sources/spec"
)

// listServer serves what it is told to.
type listServer struct {
	*httptest.Server
	mu      sync.Mutex
	serve   http.HandlerFunc
	headers http.Header // of the last request
}

func newListServer(t *testing.T) *listServer {
	s := &listServer{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.headers = r.Header.Clone()
		serve := s.serve
		s.mu.Unlock()
		serve(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *listServer) set(serve http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serve = serve
}

func text(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(body)) }
}

// raw answers with bytes of its own and closes the connection.
func raw(answer string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		c, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		_, _ = c.Write([]byte(answer))
		_ = c.Close()
	}
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

const quick = 5 * time.Millisecond

func TestURLKeepsTheLastGoodList(t *testing.T) {
	many := strings.Repeat("\n", 3)
	for i := range 10 {
		many += fmt.Sprintf("198.51.100.%d\n", i)
	}
	for _, test := range []struct {
		name  string
		bad   http.HandlerFunc
		error string
	}{
		{"error of the server", status(http.StatusServiceUnavailable), "503"},
		{"not found", status(http.StatusNotFound), "404"},
		{"empty", text(""), "empty"},
		{"only comments", text("# nothing\n; here\n"), "empty"},
		{"a web page", text("<!DOCTYPE html>\n<p>busy"), "line 1:"},
		{"one bad line", text(many + "198.51.100.300\n"), "line 14:"},
		{"shorter than its length", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "5000")
			_, _ = w.Write([]byte(many))
		}, "cut short"},
		{"chunks that end early", raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n18\r\n198.51.100.1\n198.51.100."), "cut short"},
		{"no length and half an address", raw("HTTP/1.0 200 OK\r\n\r\n" + many + "198.51.100.1"), "may be cut short"},
		{"half of a packed answer", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			_, _ = z.Write([]byte(many))
			_ = z.Flush() // and never closed
		}, "cut short"},
		{"less than half", text("198.51.100.1\n198.51.100.2\n198.51.100.3\n198.51.100.4\n198.51.100.4\n"), "4 entries and had 10"},
		{"too long", func(w http.ResponseWriter, _ *http.Request) {
			line := []byte(strings.Repeat("#", 1023) + "\n")
			for range maxBody/len(line) + 1 {
				if _, err := w.Write(line); err != nil {
					return
				}
			}
		}, "more than"},
		{"never ends", func(w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write([]byte("198.51.100.1\n"))
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}, "deadline"},
		{"not modified, unasked", status(http.StatusNotModified), ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			server := newListServer(t)
			server.set(text(many))
			r := Reader{Timeout: 20 * time.Second}
			if test.name == "never ends" {
				r.Timeout = time.Second
			}
			f := follow(t, r, spec.Source{URL: &spec.URL{URL: server.URL, Every: quick}}, Last{})
			var want []string
			for i := range 10 {
				want = append(want, fmt.Sprintf("198.51.100.%d", i))
			}
			f.until("", want...)
			server.set(test.bad)
			f.until(test.error, want...)
			server.set(text(many + "203.0.113.1\n"))
			f.until("", append(want, "203.0.113.1")...)
		})
	}
}

func TestURLFormats(t *testing.T) {
	aws := `{"syncToken": "1", "prefixes": [{"ip_prefix": "198.51.100.0/24", "region": "x"}, {"ip_prefix": "203.0.113.0/24"}],
		"ipv6_prefixes": [{"ipv6_prefix": "2001:db8::/32"}], "hooks": ["192.0.2.0/24", "192.0.2.0/25"], "one": "192.0.2.9", "n": 5}`
	google := `{"prefixes": [{"ipv4Prefix": "198.51.100.0/24"}, {"ipv6Prefix": "2001:db8::/32"}]}`
	table := "# made today\n\"first_seen\",\"dst_ip\",\"port\"\n\"2026\",\"198.51.100.1\",\"80\"\n2026, 198.51.100.2 ,\"a,b\"\n2026,,1\n"
	for _, test := range []struct {
		name  string
		spec  spec.URL
		body  string
		want  string // the entries
		error string
	}{
		{"plain", spec.URL{}, "\ufeff; Spamhaus\r\n192.0.2.0/24 ; SBL1\r\n2001:db8::/32 # x\r\n192.0.2.1-192.0.2.9", "192.0.2.0/24 192.0.2.1-192.0.2.9 2001:db8::/32", ""},
		{"json objects", spec.URL{JSON: []string{"prefixes.ip_prefix"}}, aws, "198.51.100.0/24 203.0.113.0/24", ""},
		{"json other key", spec.URL{JSON: []string{"ipv6_prefixes.ipv6_prefix"}}, aws, "2001:db8::/32", ""},
		{"json texts", spec.URL{JSON: []string{"hooks"}}, aws, "192.0.2.0/25 192.0.2.0/24", ""},
		{"json two paths", spec.URL{JSON: []string{"prefixes.ip_prefix", "ipv6_prefixes.ipv6_prefix"}}, aws, "198.51.100.0/24 203.0.113.0/24 2001:db8::/32", ""},
		{"json two paths to one entry", spec.URL{JSON: []string{"one", "one"}}, aws, "192.0.2.9", ""},
		{"json one of two missing", spec.URL{JSON: []string{"one", "two"}}, aws, "", "no entries at two"},
		{"json one text", spec.URL{JSON: []string{"one"}}, aws, "192.0.2.9", ""},
		{"json some objects", spec.URL{JSON: []string{"prefixes.ipv4Prefix"}}, google, "198.51.100.0/24", ""},
		{"json missing", spec.URL{JSON: []string{"prefixes.ip"}}, aws, "", "no entries at prefixes.ip"},
		{"json number", spec.URL{JSON: []string{"n"}}, aws, "", "5 at n"},
		{"json too short a path", spec.URL{JSON: []string{"prefixes"}}, aws, "", "an object at prefixes"},
		{"json too long a path", spec.URL{JSON: []string{"hooks.x"}}, aws, "", "above hooks.x"},
		{"json no address", spec.URL{JSON: []string{"prefixes.region"}}, aws, "", `"x" is not an address`},
		{"json cut", spec.URL{JSON: []string{"prefixes.ip_prefix"}}, aws[:80], "", "no JSON document"},
		{"json and more", spec.URL{JSON: []string{"one"}}, aws + "{}", "", "no JSON document"},
		{"csv by name", spec.URL{Column: "DST_IP"}, table, "198.51.100.1 198.51.100.2", ""},
		{"csv by number", spec.URL{Column: "2"}, table, "198.51.100.1 198.51.100.2", ""},
		{"csv without names", spec.URL{Column: "1"}, "192.0.2.1,x\n192.0.2.2,y\n", "192.0.2.1 192.0.2.2", ""},
		{"csv no such name", spec.URL{Column: "ip"}, table, "", `no column "ip"`},
		{"csv no such number", spec.URL{Column: "4"}, table, "", "no column 4"},
		{"csv no address", spec.URL{Column: "1"}, "192.0.2.1\nx\n", "", "line 2:"},
		{"csv quotes", spec.URL{Column: "1"}, "a\n\"192.0.2.1\n", "", "no CSV document"},
		{"nothing that ends", spec.URL{}, strings.Repeat("x", maxLine+10), "", "this is no list"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			server := newListServer(t)
			server.set(text(test.body))
			s := test.spec
			s.URL, s.Every = server.URL+"/list", time.Hour
			follow(t, Reader{}, spec.Source{URL: &s}, Last{}).until(test.error, strings.Fields(test.want)...)
		})
	}
}

// A server that keeps to the protocol is asked for a list once, also across a
// restart, and again when the list is to be read in another way.
func TestURLAsksWhetherItChanged(t *testing.T) {
	const date = "Wed, 21 Oct 2015 07:28:00 GMT"
	server := newListServer(t)
	body, tag, sent := "192.0.2.1,198.51.100.1\n", `"one"`, 0
	server.set(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", tag)
		w.Header().Set("Last-Modified", date)
		if r.Header.Get("If-None-Match") == tag && r.Header.Get("If-Modified-Since") == date {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		sent++
		_, _ = w.Write([]byte(body))
	})
	address := strings.Replace(server.URL, "://", "://user:secret@", 1)
	s := spec.Source{URL: &spec.URL{URL: address, Every: quick, Column: "1"}}
	f := follow(t, Reader{}, s, Last{})
	f.until("", "192.0.2.1")
	f.wait(func() bool { return f.told > 3 }, func() string { return "more updates" })
	f.stop()
	if f.wholes != 1 || sent != 1 {
		t.Errorf("%d lists told of, %d sent; want 1", f.wholes, sent)
	}
	if got := server.headers.Get("User-Agent"); got != "nftfw" {
		t.Errorf("user agent %q", got)
	}
	last := Last{Entries: f.entries}
	f.mu.Lock()
	last.Resume = f.resume
	f.mu.Unlock()
	if strings.Contains(string(last.Resume), "secret") {
		t.Errorf("%s is written down", last.Resume)
	}

	again := follow(t, Reader{}, s, last)
	again.until("", "192.0.2.1")
	again.stop()
	if sent != 1 || again.wholes != 0 {
		t.Errorf("after a restart the list was sent again")
	}
	other := spec.Source{URL: &spec.URL{URL: address, Every: quick, Column: "2"}}
	f = follow(t, Reader{}, other, last)
	f.until("", "198.51.100.1")
	f.stop()
	if sent != 2 {
		t.Errorf("the list was sent %d times, want 2", sent)
	}
}

func TestURLShrinksWhenAllowed(t *testing.T) {
	server := newListServer(t)
	server.set(text("192.0.2.9\n"))
	var entries []addrset.Entry
	for i := range 100 {
		rng, _ := addrset.ParseRange(fmt.Sprintf("192.0.2.%d", i))
		entries = append(entries, addrset.Entry{Range: rng})
	}
	last := Last{Entries: addrset.New(entries...)}
	s := spec.URL{URL: server.URL, Every: quick, Shrink: true}
	follow(t, Reader{}, spec.Source{URL: &s}, last).until("", "192.0.2.9")
	s.Shrink = false
	f := follow(t, Reader{}, spec.Source{URL: &s}, last)
	f.wait(func() bool { return f.last.Err != nil }, func() string { return "a refusal" })
	if len(f.texts()) != 100 {
		t.Errorf("the list of %d is not the last good one", len(f.texts()))
	}
}

func TestURLRedirects(t *testing.T) {
	plain := newListServer(t)
	plain.set(text("192.0.2.1\n"))
	follow(t, Reader{}, spec.Source{URL: &spec.URL{URL: plain.URL, Every: quick}}, Last{}).until("", "192.0.2.1")
	var here *httptest.Server
	here = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/safe" {
			_, _ = w.Write([]byte("192.0.2.2\n"))
			return
		}
		http.Redirect(w, r, map[string]string{"/": here.URL + "/safe", "/open": plain.URL, "/loop": "/loop"}[r.URL.Path], http.StatusFound)
	}))
	t.Cleanup(here.Close)
	client := here.Client()
	client.CheckRedirect = checkRedirect
	for path, want := range map[string]string{"/": "", "/open": "from https to http", "/loop": "more than 10 redirects"} {
		f := follow(t, Reader{HTTP: client}, spec.Source{URL: &spec.URL{URL: here.URL + path, Every: quick}}, Last{})
		if want == "" {
			f.until("", "192.0.2.2")
		} else {
			f.until(want)
		}
	}
	if (Reader{}).httpClient().CheckRedirect == nil {
		t.Error("the client of its own follows redirects anywhere")
	}
}

// Hosts ask at different times; one that fails asks soon again, and not more
// often than it would otherwise.
func TestPauses(t *testing.T) {
	failed := fmt.Errorf("failed")
	for _, test := range []struct {
		jitter float64
		every  time.Duration
		want   []time.Duration // after failures one by one, then a success
	}{
		{0.5, time.Hour, []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, time.Hour}},
		{0, time.Hour, []time.Duration{900 * time.Millisecond, 54 * time.Minute}},
		{1, time.Hour, []time.Duration{1100 * time.Millisecond, 66 * time.Minute}},
		{0.5, time.Second, []time.Duration{time.Second, time.Second, time.Second}},
	} {
		p := pause{jitter: func() float64 { return test.jitter }, every: test.every}
		var got []time.Duration
		for range len(test.want) - 1 {
			got = append(got, p.after(failed).Round(time.Millisecond))
		}
		got = append(got, p.after(nil).Round(time.Millisecond))
		if !slices.Equal(got, test.want) {
			t.Errorf("every %s, jitter %v: %v, want %v", test.every, test.jitter, got, test.want)
		}
	}
	p := pause{jitter: func() float64 { return 0.5 }, every: time.Hour}
	for range 20 {
		p.after(failed)
	}
	if got := p.after(failed); got != retryMost {
		t.Errorf("after many failures %s, want %s", got, retryMost)
	}
}
