package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// row is one line of the table.
type row struct {
	Group     string  `json:"group"`
	What      string  `json:"what"`
	Size      int     `json:"size,omitempty"` // what the figure grows with; 0 where there is one size
	Figure    float64 `json:"figure"`
	Unit      string  `json:"unit"`
	Than      string  `json:"yardstick,omitempty"`
	Yardstick float64 `json:"yardstick_figure,omitempty"`
	// Ratio is the median over the rounds of figure by yardstick; 0 where the
	// reach is about something else.
	Ratio float64 `json:"ratio,omitempty"`
	Reach string  `json:"reach,omitempty"`
	Met   *bool   `json:"met,omitempty"`
}

// add puts a row into the table. met is what became of its reach; a smoke run
// meets nothing and misses nothing.
func (b *bench) add(r row, met bool) {
	if r.Reach != "" && !b.smoke {
		r.Met = &met
	}
	b.rows = append(b.rows, r)
}

func printTable(out io.Writer, rows []row) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "WHAT\tNFTFW\tYARDSTICK\tRATIO\tREACH\t")
	for _, r := range rows {
		ratio, than, met := "", "", ""
		if r.Ratio > 0 {
			ratio = fmt.Sprintf("%.3f", r.Ratio)
		}
		if r.Than != "" {
			than = fmt.Sprintf("%s %s (%s)", number(r.Yardstick), r.Unit, r.Than)
		}
		if r.Met != nil {
			met = "missed"
			if *r.Met {
				met = "met"
			}
		}
		fmt.Fprintf(w, "%s\t%s %s\t%s\t%s\t%s\t%s\n", r.What, number(r.Figure), r.Unit, than, ratio, r.Reach, met)
	}
	_ = w.Flush()
}

// number writes three digits that count.
func number(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	case v >= 1:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.3f", v)
}

// document is bench.json.
type document struct {
	At      time.Time `json:"at"`
	Machine machine   `json:"machine"`
	Smoke   bool      `json:"smoke,omitempty"`
	Rows    []row     `json:"rows"`
}

// machine is what the figures hold for.
type machine struct {
	Processor string `json:"processor"`
	Cores     int    `json:"cores"`
	Kernel    string `json:"kernel"`
	Load      string `json:"load_average"` // when the run ended
}

// write keeps the table, with the former figures of groups that did not run.
func (b *bench) write() error {
	if err := os.MkdirAll(b.out, 0o755); err != nil {
		return err
	}
	path := filepath.Join(b.out, "bench.json")
	var old document
	switch text, err := os.ReadFile(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	default:
		if err := json.Unmarshal(text, &old); err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
	}
	doc := document{At: time.Now().UTC().Truncate(time.Second), Machine: thisMachine(), Smoke: b.smoke, Rows: []row{}}
	for _, g := range groups {
		of := func(r row) bool { return r.Group == g.name }
		from := b.rows
		if !slices.ContainsFunc(from, of) {
			from = old.Rows
		}
		for _, r := range from {
			if of(r) {
				doc.Rows = append(doc.Rows, r)
			}
		}
	}
	text, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
		return err
	}
	return plotRows(filepath.Join(b.out, "bench.svg"), doc.Rows)
}

func thisMachine() machine {
	m := machine{Cores: runtime.NumCPU()}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	for line := range strings.Lines(readText("/proc/cpuinfo")) {
		if name, ok := strings.CutPrefix(line, "model name"); ok {
			m.Processor = strings.TrimSpace(strings.TrimLeft(name, "\t :"))
			break
		}
	}
	if f := strings.Fields(readText("/proc/loadavg")); len(f) >= 3 {
		m.Load = strings.Join(f[:3], " ")
	}
	return m
}

// readText reads a file of /proc, "" where it is not there.
func readText(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return string(text)
}
