package main

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func sampleGrid() grid {
	g := grid{
		clients:    []client{{name: "stranger"}, {name: "you", note: "(trusted)"}},
		containers: []container{plain, shop},
		letIn:      map[string][]string{"plain": {"you"}, "shop": {"stranger", "you"}},
		found:      map[cellKey]mark{},
	}
	for _, cl := range g.clients {
		for _, co := range g.containers {
			for _, f := range bothFamilies {
				key := cellKey{cl.name, co.name, f}
				g.found[key] = g.must(key)
			}
		}
	}
	return g
}

func TestGrid(t *testing.T) {
	strangerV6 := cellKey{"stranger", "plain", v6}
	tests := []struct {
		name  string
		found mark
		wrong int
		want  string
	}{
		{"as it must be", closed, 0, `
                  plain :8081     shop :8082
                  v4      v6      v4      v6
  stranger        closed  closed  open    open
  you (trusted)   open    open    open    open
  8 connections tried, each as it must be
`},
		{"a hole", open, 1, `
                  plain :8081     shop :8082
                  v4      v6      v4      v6
  stranger        closed  open!   open    open
  you (trusted)   open    open    open    open
  NOT AS IT MUST BE: plain is open to stranger over IPv6, and must be closed
`},
		{"a reset", refused, 1, `
                  plain :8081     shop :8082
                  v4      v6      v4      v6
  stranger        closed  refused!open    open
  you (trusted)   open    open    open    open
  NOT AS IT MUST BE: plain is refused to stranger over IPv6, and must be closed
`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			p := &page{w: &out}
			g := sampleGrid()
			g.found[strangerV6] = tt.found
			p.grid(g)
			if diff := cmp.Diff(tt.want, out.String()); diff != "" {
				t.Errorf("page (-want +got):\n%s", diff)
			}
			if p.checks != 8 || p.wrong != tt.wrong {
				t.Errorf("%d checks, %d wrong; want 8, %d", p.checks, p.wrong, tt.wrong)
			}
		})
	}
}

func TestColoursOnlyWhenAskedFor(t *testing.T) {
	for _, colours := range []bool{false, true} {
		var out strings.Builder
		p := &page{w: &out, colours: colours}
		p.step("a step")
		p.command("nftfw", "run")
		p.measured("1 ms", "of something")
		p.check(false, "this")
		p.grid(sampleGrid())
		if got := strings.Contains(out.String(), "\x1b["); got != colours {
			t.Errorf("colours %v: escape sequences %v", colours, got)
		}
	}
}

func TestTableWatch(t *testing.T) {
	var w tableWatch
	at := time.Unix(1000, 0)
	for _, line := range []string{
		"add table inet demo_ready", "delete table inet demo_ready",
		"add table inet nftfw", // not gone yet
		"delete table ip nat", "delete chain inet nftfw input", "delete table inet nftfw",
		"# new generation 3 by process 1 (nft)",
		"create table inet nftfw", "add set inet nftfw trusted4 { type ipv4_addr; flags interval; }",
		"add table inet nftfw",
	} {
		at = at.Add(time.Second)
		w.line(line, at)
	}
	if !w.heard {
		t.Error("the table made to hear the monitor went unnoticed")
	}
	if away := w.back.Sub(w.gone); away != 2*time.Second {
		t.Errorf("away for %s, want 2s", away)
	}
}

func TestMilliseconds(t *testing.T) {
	for d, want := range map[time.Duration]string{
		420 * time.Microsecond: "0.4 ms", 9900 * time.Microsecond: "9.9 ms",
		11400 * time.Microsecond: "11 ms", 2240 * time.Millisecond: "2.2 s",
	} {
		if got := milliseconds(d); got != want {
			t.Errorf("milliseconds(%d) = %q, want %q", d, got, want)
		}
	}
}
