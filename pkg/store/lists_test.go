package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nftfw/nftfw/pkg/addrset"
)

func listOf(t *testing.T, set, source string, entries ...addrset.Entry) List {
	t.Helper()
	for i := range entries {
		entries[i].Source = addrset.Source(source)
	}
	return List{
		Set: set, Source: source, GoodAt: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), Entries: addrset.New(entries...),
	}
}

func rangeOf(t *testing.T, text string) addrset.Range {
	t.Helper()
	r, err := addrset.ParseRange(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

var compareLists = cmp.Transformer("entries", func(s *addrset.Set) []string {
	out := []string{}
	for _, e := range s.Entries() {
		out = append(out, fmt.Sprintf("%s %s %q %s %q", e.Range, e.Expires, e.Comment, e.Source, e.Origin))
	}
	return out
})

func TestListsComeBack(t *testing.T) {
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	expires := time.Date(2026, 5, 6, 7, 8, 9, 10, time.UTC)
	first := listOf(t, "blocked", "url:https://example.net/a b/ü",
		addrset.Entry{Range: rangeOf(t, "192.0.2.0/24")},
		addrset.Entry{Range: rangeOf(t, "192.0.2.7"), Comment: "a \"word\" of\nmine"},
		addrset.Entry{Range: rangeOf(t, "198.51.100.1-198.51.100.9"), Expires: expires},
		addrset.Entry{Range: rangeOf(t, "2001:db8::/32"), Expires: expires, Origin: "/etc/x y", Comment: "c"},
	)
	first.Resume = json.RawMessage(`{"etag":"x"}`)
	second := listOf(t, "blocked", "file:/etc/list")
	third := listOf(t, "trusted", "file:/etc/list", addrset.Entry{Range: rangeOf(t, "192.0.2.1"), Origin: "/etc/list"})
	for _, l := range []List{second, first, third} {
		if err := s.SaveList(l); err != nil {
			t.Fatal(err)
		}
	}
	check := func(want ...List) {
		t.Helper()
		lists, err := s.LoadLists()
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]List{}
		for _, l := range lists {
			got[l.Set+" "+l.Source] = l
		}
		wanted := map[string]List{}
		for _, l := range want {
			wanted[l.Set+" "+l.Source] = l
		}
		if diff := cmp.Diff(wanted, got, compareLists); diff != "" {
			t.Errorf("lists (-want +got):\n%s", diff)
		}
	}
	check(first, second, third)

	third.Entries = addrset.New()
	if err := s.SaveList(third); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.RemoveList("blocked", second.Source); err != nil {
			t.Fatal(err)
		}
	}
	check(first, third)
}

// Files of earlier releases have no checksum.
func TestListsWithoutChecksum(t *testing.T) {
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	want := listOf(t, "a", "file:/b", addrset.Entry{Range: rangeOf(t, "192.0.2.1")}, addrset.Entry{Range: rangeOf(t, "192.0.2.2")})
	want.Resume = json.RawMessage(`{"etag":"x"}`)
	text := `{"version":1,"set":"a","source":"file:/b","good_at":"2026-01-02T03:04:05.000000006Z","entries":2,"resume":{"etag":"x"}}` +
		"\n192.0.2.1\n192.0.2.2\n"
	if err := os.WriteFile(s.path(listFile("a", "file:/b")), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := s.LoadLists()
	if diff := cmp.Diff([]List{want}, got, compareLists); diff != "" || err != nil {
		t.Errorf("lists (-want +got), %v:\n%s", err, diff)
	}
}

func TestDamagedListsAreTold(t *testing.T) {
	for _, test := range []struct {
		name  string
		spoil func(text string) string
		want  string
	}{
		{"cut in the middle", func(s string) string { return s[:len(s)-len("192.0.2.2\n")] }, "cut short"},
		{"cut within an address", func(s string) string { return strings.TrimSuffix(s, "2.2\n") }, "not an address"},
		{"more entries", func(s string) string { return s + "192.0.2.3\n" }, "altered"},
		{"another digit", func(s string) string { return strings.Replace(s, "192.0.2.2\n", "192.0.2.3\n", 1) }, "checksum"},
		{"another time", func(s string) string { return strings.Replace(s, "2026-01-02", "2026-01-03", 1) }, "checksum"},
		{"another source", func(s string) string { return strings.Replace(s, "file:/bad", "file:/evil", 1) }, "checksum"},
		{"another checksum", func(s string) string { return strings.Replace(s, `"sha256":"`, `"sha256":"0`, 1) }, "checksum"},
		{"empty", func(string) string { return "" }, "empty"},
		{"no head", func(s string) string { return s[1:] }, "invalid character"},
		{"newer", func(s string) string { return strings.Replace(s, `"version":1`, `"version":2`, 1) }, "version 2"},
		{"words", func(s string) string { return strings.Replace(s, "192.0.2.2\n", "192.0.2.2 - word\n", 1) }, "quotes"},
		{"expiry", func(s string) string { return strings.Replace(s, "192.0.2.2\n", "192.0.2.2 soon\n", 1) }, "soon"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, err := Open(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			good := listOf(t, "a", "file:/good", addrset.Entry{Range: rangeOf(t, "192.0.2.9")})
			bad := listOf(t, "a", "file:/bad", addrset.Entry{Range: rangeOf(t, "192.0.2.1")}, addrset.Entry{Range: rangeOf(t, "192.0.2.2")})
			for _, l := range []List{good, bad} {
				if err := s.SaveList(l); err != nil {
					t.Fatal(err)
				}
			}
			path := filepath.Join(s.dir, listFile("a", "file:/bad"))
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(test.spoil(string(text))), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := s.LoadLists()
			if diff := cmp.Diff([]List{good}, got, compareLists); diff != "" {
				t.Errorf("lists (-want +got):\n%s", diff)
			}
			var d *DamagedError
			if !errors.As(err, &d) || d.File != path || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one about %s with %q", err, path, test.want)
			}
		})
	}
}
