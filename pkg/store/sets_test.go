package store

import (
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nftfw/nftfw/pkg/addrset"
)

var epoch = time.Date(2024, 1, 1, 0, 0, 0, 123456789, time.UTC)

func entry(t testing.TB, text string) addrset.Entry {
	t.Helper()
	r, err := addrset.ParseRange(text)
	if err != nil {
		t.Fatal(err)
	}
	return addrset.Entry{Range: r, Source: addrset.Runtime}
}

// sets returns the set "trusted" with these entries.
func sets(t testing.TB, texts ...string) map[string]*addrset.Set {
	t.Helper()
	var list []addrset.Entry
	for _, s := range texts {
		list = append(list, entry(t, s))
	}
	return map[string]*addrset.Set{"trusted": addrset.New(list...)}
}

// contents is what a test compares.
func contents(sets map[string]*addrset.Set) map[string][]addrset.Entry {
	if sets == nil {
		return nil
	}
	all := map[string][]addrset.Entry{}
	for name, s := range sets {
		all[name] = s.Entries()
	}
	return all
}

var equalEntries = cmp.Comparer(func(a, b addrset.Entry) bool { return a == b })

func checkSets(t testing.TB, want, got map[string]*addrset.Set) {
	t.Helper()
	if diff := cmp.Diff(contents(want), contents(got), equalEntries); diff != "" {
		t.Errorf("sets (-want +got):\n%s", diff)
	}
}

func richSets(t testing.TB) map[string]*addrset.Set {
	timed := entry(t, "10.0.0.0/8")
	timed.Expires = epoch
	local := entry(t, "fd00::1-fd00::5")
	local.Expires = time.Now().In(time.FixedZone("x", 7200)) // with a monotonic reading
	local.Comment = "a \"quoted\" <b> \\ line\nbreak é \u2028"
	return map[string]*addrset.Set{
		"trusted":   addrset.New(timed, local, entry(t, "0.0.0.0/0"), entry(t, "255.255.255.255")),
		"blocked":   addrset.New(entry(t, "::/0")),
		`odd "name`: addrset.New(entry(t, "198.51.100.5-198.51.100.9")),
	}
}

func TestSetsRoundTrip(t *testing.T) {
	s := open(t)
	got, err := s.LoadSets()
	if err != nil || got == nil || len(got) != 0 {
		t.Fatalf("LoadSets before any save = %v, %v, want an empty map", got, err)
	}
	want := richSets(t)
	if err := s.SaveSets(want); err != nil {
		t.Fatal(err)
	}
	got, err = s.LoadSets()
	if err != nil {
		t.Fatal(err)
	}
	checkSets(t, want, got)
}

func TestSavedForm(t *testing.T) {
	timed := entry(t, "192.0.2.0/24")
	timed.Expires, timed.Comment = epoch, "VPN"
	fromPolicy := entry(t, "203.0.113.1")
	fromPolicy.Source = addrset.Policy
	s := open(t)
	err := s.SaveSets(map[string]*addrset.Set{
		"trusted": addrset.New(timed, fromPolicy, entry(t, "192.0.2.1")),
		"blocked": addrset.New(entry(t, "2001:db8::/32")),
		"office":  addrset.New(fromPolicy),
		"void":    nil,
	})
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"version":1,"save":"ID","sets":{
"blocked":[
{"entry":"2001:db8::/32"}],
"trusted":[
{"entry":"192.0.2.0/24","expires_at":"2024-01-01T00:00:00.123456789Z","comment":"VPN"},
{"entry":"192.0.2.1"}]}}
`
	got := regexp.MustCompile(`"save":"[A-Z2-7]{26}"`).ReplaceAllString(read(t, s.path("sets.json")), `"save":"ID"`)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("sets.json (-want +got):\n%s", diff)
	}
}

func TestSavedFormIsJSON(t *testing.T) {
	for name, sets := range map[string]map[string]*addrset.Set{"nil": nil, "empty": {"trusted": addrset.New()}, "rich": richSets(t)} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			if err := s.SaveSets(sets); err != nil {
				t.Fatal(err)
			}
			if text := read(t, s.path("sets.json")); !json.Valid([]byte(text)) {
				t.Errorf("not JSON:\n%s", text)
			}
			if _, err := s.LoadSets(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestDamagedSets(t *testing.T) {
	tests := []struct {
		name   string
		damage func(t *testing.T, path string)
		reason string
	}{
		{"zero length", func(t *testing.T, path string) { write(t, path, "") }, "empty"},
		{"white space", func(t *testing.T, path string) { write(t, path, "\n \n") }, "empty"},
		{"cut short", func(t *testing.T, path string) { text := read(t, path); write(t, path, text[:len(text)-4]) }, "cut short"},
		{"zeroes", func(t *testing.T, path string) { write(t, path, strings.Repeat("\x00", 100)) }, "invalid character"},
		{"something after the end", func(t *testing.T, path string) { write(t, path, read(t, path)+"{}") }, "after its end"},
		{"other JSON", func(t *testing.T, path string) { write(t, path, "{}") }, "no sets"},
		{"a version and nothing else", func(t *testing.T, path string) { write(t, path, `{"version":1}`) }, "no sets"},
		{"null", func(t *testing.T, path string) { write(t, path, "null") }, "no sets"},
		{"an entry that is none", func(t *testing.T, path string) {
			write(t, path, strings.Replace(read(t, path), "192.0.2.1", "192.0.2.300", 1))
		}, `set "trusted": "192.0.2.300"`},
		{"an expiry that is none", func(t *testing.T, path string) {
			write(t, path, `{"version":1,"save":"ID","sets":{"trusted":[{"entry":"192.0.2.1","expires_at":"soon"}]}}`)
		}, "soon"},
		{"missing", func(t *testing.T, path string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}, "no such file"},
		{"not to be read", func(t *testing.T, path string) {
			// What read(2) says of a directory stands for every fault of the
			// disk: an error that is neither of the contents nor of rights.
			if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
				t.Fatal(err)
			}
		}, "is a directory"},
	}
	former := "192.0.2.7"
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t)
			if err := errors.Join(s.SaveSets(sets(t, former)), s.SaveSets(sets(t, "192.0.2.1", former))); err != nil {
				t.Fatal(err)
			}
			path, prev := s.path("sets.json"), s.path("sets.json.prev")
			tt.damage(t, path)

			// Another process: it has not seen the file when it was good.
			s, err := Open(s.dir)
			if err != nil {
				t.Fatal(err)
			}
			got, err := s.LoadSets()
			checkDamaged(t, err, path, prev)
			if err != nil && !strings.Contains(err.Error(), tt.reason) {
				t.Errorf("%q does not speak of %q", err, tt.reason)
			}
			checkSets(t, sets(t, former), got)

			if err := os.Remove(prev); err != nil {
				t.Fatal(err)
			}
			got, err = s.LoadSets()
			if tt.name == "missing" { // both: nothing was ever saved
				if err != nil || len(got) != 0 {
					t.Errorf("LoadSets with no file = %v, %v", got, err)
				}
				return
			}
			checkDamaged(t, err, path, "")
			if got != nil {
				t.Errorf("LoadSets gave %v all the same", contents(got))
			}

			write(t, prev, "")
			if _, err = s.LoadSets(); err == nil {
				t.Error("both files are damaged, no error")
			}
			checkDamaged(t, err, path, "")
		})
	}
}

// TestSaveOverDamagedSets makes sure that the good generation is not lost by
// saving over a damaged file, and the damaged one is kept to look at.
func TestSaveOverDamagedSets(t *testing.T) {
	for _, fresh := range []bool{false, true} {
		s := open(t)
		if err := errors.Join(s.SaveSets(sets(t, "192.0.2.1")), s.SaveSets(sets(t, "192.0.2.2"))); err != nil {
			t.Fatal(err)
		}
		write(t, s.path("sets.json"), "damaged")
		if fresh {
			var err error
			if s, err = Open(s.dir); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.SaveSets(sets(t, "192.0.2.3")); err != nil {
			t.Fatal(err)
		}
		got, err := s.LoadSets()
		if err != nil {
			t.Fatal(err)
		}
		checkSets(t, sets(t, "192.0.2.3"), got)
		if text := read(t, s.path("sets.json.prev")); !strings.Contains(text, "192.0.2.1") {
			t.Errorf("sets.json.prev is now %q", text)
		}
		if text := read(t, s.path("sets.json.damaged")); text != "damaged" {
			t.Errorf("sets.json.damaged is %q", text)
		}
	}
}

func TestEachSaveKeepsTheOneBefore(t *testing.T) {
	dir := open(t).dir
	for _, addr := range []string{"192.0.2.1", "192.0.2.2", "192.0.2.3"} {
		s, err := Open(dir) // each time another process, which loads nothing
		if err != nil {
			t.Fatal(err)
		}
		if err := s.SaveSets(sets(t, addr)); err != nil {
			t.Fatal(err)
		}
	}
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if text := read(t, s.path("sets.json.prev")); !strings.Contains(text, "192.0.2.2") {
		t.Errorf("sets.json.prev is %q", text)
	}
}

func TestSetsOfANewerVersion(t *testing.T) {
	s := open(t)
	if err := errors.Join(s.SaveSets(sets(t, "192.0.2.1")), s.SaveSets(sets(t, "192.0.2.2"))); err != nil {
		t.Fatal(err)
	}
	write(t, s.path("sets.json"), `{"version":2,"sets":{}}`)
	got, err := s.LoadSets()
	checkDamaged(t, err, s.path("sets.json"), "")
	if got != nil || !strings.Contains(err.Error(), "newer") {
		t.Errorf("LoadSets = %v, %v", got, err)
	}
}

func BenchmarkSets(b *testing.B) {
	list := make([]addrset.Entry, 100_000)
	for i := range list {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		list[i] = addrset.Entry{Range: addrset.Range{From: a, To: a}, Source: addrset.Runtime, Expires: epoch}
	}
	sets := map[string]*addrset.Set{"trusted": addrset.New(list...)}
	s, err := Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	b.Run("save", func(b *testing.B) {
		for b.Loop() {
			if err := s.SaveSets(sets); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("load", func(b *testing.B) {
		for b.Loop() {
			if _, err := s.LoadSets(); err != nil {
				b.Fatal(err)
			}
		}
	})
}
