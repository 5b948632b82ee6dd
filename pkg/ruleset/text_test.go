package ruleset_test

import (
	"errors"
	"flag"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	. "github.com/nftfw/nftfw/pkg/ruleset"
)

var update = flag.Bool("update", false, "write the golden files anew")

func samples() []*Table {
	return []*Table{hostTable(), everyType(), priorities(), dynamicSets(), {Name: "empty"}}
}

func TestWriteTextGolden(t *testing.T) {
	for _, table := range samples() {
		t.Run(table.Name, func(t *testing.T) {
			golden := filepath.Join("testdata", table.Name+".nft")
			got := table.Text(now)
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("text (-want +got):\n%s", diff)
			}
		})
	}
}

// TestTextIsListing loads every sample into a kernel and compares what nft
// lists with what was loaded, byte for byte.
func TestTextIsListing(t *testing.T) {
	for _, table := range samples() {
		t.Run(table.Name, func(t *testing.T) {
			if err := table.Validate(); err != nil {
				t.Fatal(err)
			}
			checkListing(t, table)
		})
	}
}

func checkListing(t *testing.T, table *Table) {
	t.Helper()
	ns := newNetns(t)
	text := table.Text(now)
	ns.run(t, text, "nft", "-c", "-f", "-")
	ns.run(t, text, "nft", "-f", "-")
	got := ns.run(t, "", "nft", "list", "table", "inet", table.Name)
	if diff := cmp.Diff(normalize(got), normalize(text)); diff != "" {
		t.Errorf("text (-listed +written):\n%s", diff)
	}
}

func TestTextIgnoresMapOrder(t *testing.T) {
	want := hostTable().Text(now) + everyType().Text(now)
	for range 20 {
		var got strings.Builder
		for _, table := range []*Table{hostTable(), everyType()} {
			for _, s := range table.Sets {
				s.Elements = shuffled(s.Elements)
			}
			got.WriteString(table.Text(now))
		}
		if diff := cmp.Diff(want, got.String()); diff != "" {
			t.Fatalf("text (-first +shuffled):\n%s", diff)
		}
	}
}

// shuffled builds the same map by other insertions.
func shuffled(m map[Key]Element) map[Key]Element {
	keys := slices.Collect(maps.Keys(m))
	rand.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
	out := make(map[Key]Element)
	for _, k := range keys {
		out[k] = m[k]
	}
	return out
}

func TestWriteTextLeavesExpiredOut(t *testing.T) {
	table := &Table{Name: "t", Sets: []*Set{{
		Name: "s", Key: []Field{IPSaddr}, Interval: true,
		Ranges: ranges("10.0.0.1", "10.0.0.3+0s", "10.0.0.5+1ms", "10.0.0.7+49h3m"),
	}}}
	const want = `table inet t {
	set s {
		type ipv4_addr
		flags interval,timeout
		elements = { 10.0.0.1, 10.0.0.5 timeout 1s expires 1s,
			     10.0.0.7 timeout 2d1h3m expires 2d1h3m }
	}
}
`
	if diff := cmp.Diff(want, table.Text(now)); diff != "" {
		t.Errorf("text (-want +got):\n%s", diff)
	}
}

type brokenWriter struct{ err error }

func (w brokenWriter) Write([]byte) (int, error) { return 0, w.err }

func TestWriteTextReportsTheWriter(t *testing.T) {
	broken := errors.New("disk full")
	if err := hostTable().WriteText(brokenWriter{broken}, now); !errors.Is(err, broken) {
		t.Errorf("error %v, want %v", err, broken)
	}
}
