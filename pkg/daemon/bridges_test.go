package daemon

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nftfw/nftfw/pkg/inventory"
)

func TestNewBridges(t *testing.T) {
	br := func(index int, name string) inventory.Link {
		return inventory.Link{Index: index, Name: name, Kind: "bridge"}
	}
	eth := inventory.Link{Index: 2, Name: "eth0"}
	known := []inventory.Network{{ID: "n", Bridge: "docker0"}}
	asked := uint64(0)
	ask := func() uint64 { asked++; return asked }
	b := newBridges{}
	var list []inventory.Link
	steps := []struct {
		name   string
		list   []inventory.Link // nil: an answer to the question answer
		answer uint64
		want   []string
		asked  uint64
	}{
		{"no bridge", []inventory.Link{eth}, 0, nil, 0},
		{"one of a network that is known", []inventory.Link{eth, br(3, "docker0")}, 0, nil, 0},
		{"two that are not", []inventory.Link{eth, br(3, "docker0"), br(4, "x"), br(5, "y")}, 0, []string{"x", "y"}, 1},
		{"a third, later", []inventory.Link{eth, br(4, "x"), br(5, "y"), br(6, "z")}, 0, []string{"x", "y", "z"}, 2},
		{"an answer from before", nil, 0, []string{"x", "y", "z"}, 2},
		{"the first answer", nil, 1, []string{"z"}, 2},
		{"nothing new", []inventory.Link{br(4, "x"), br(5, "y"), br(6, "z")}, 0, []string{"z"}, 2},
		{"another by the name of one", []inventory.Link{br(7, "x"), br(5, "y"), br(6, "z")}, 0, []string{"x", "z"}, 3},
		{"one goes unanswered", []inventory.Link{br(7, "x"), br(5, "y")}, 0, []string{"x"}, 3},
		{"the last answer", nil, 3, nil, 3},
	}
	for _, step := range steps {
		if step.list == nil {
			b.answered(step.answer)
		} else {
			b.take(list, step.list, known, ask)
			list = step.list
		}
		if diff := cmp.Diff(step.want, b.names()); diff != "" {
			t.Errorf("%s: new bridges (-want +got):\n%s", step.name, diff)
		}
		if asked != step.asked {
			t.Errorf("%s: asked %d times, want %d", step.name, asked, step.asked)
		}
	}
}
