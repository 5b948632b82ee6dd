package daemon

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/nftfw/nftfw/pkg/api"
	"github.com/nftfw/nftfw/pkg/nflog"
)

func TestUnlogged(t *testing.T) {
	type step struct {
		counted, heard uint64
		missed         uint64
		more           bool
	}
	for _, tt := range []struct {
		name  string
		start unlogged
		steps []step
	}{
		{"everything is heard", unlogged{}, []step{{5, 5, 0, true}, {5, 5, 0, false}}},
		{"the limit keeps some back", unlogged{}, []step{{100, 10, 90, true}, {150, 15, 45, true}, {150, 15, 0, false}}},
		{"heard before it was counted", unlogged{}, []step{{10, 12, 0, true}, {20, 12, 8, true}, {20, 12, 0, false}}},
		{"what was before is nobody's business", unlogged{counted: 1000, last: 1000}, []step{{1003, 3, 0, true}, {1013, 3, 10, true}}},
		{"counters begin anew", unlogged{counted: 1000, last: 1000}, []step{{1100, 10, 90, true}, {7, 12, 0, false}, {17, 12, 10, true}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u := tt.start
			for i, s := range tt.steps {
				if missed, more := u.at(s.counted, s.heard); missed != s.missed || more != s.more {
					t.Errorf("step %d: missed %d, more %v, want %d, %v", i, missed, more, s.missed, s.more)
				}
			}
		})
	}
}

// A viewer that takes nothing keeps nobody waiting, and is told what it missed.
func TestSlowViewer(t *testing.T) {
	d := &Daemon{}
	server := httptest.NewServer(http.HandlerFunc(d.watch))
	defer server.Close()
	resp, err := http.Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	// More than fits into the viewer and into the buffers of a connection.
	const events = 200_000
	why := strings.Repeat("x", 100)
	for range events {
		d.watching.tell(api.Event{Verdict: api.Refused, Why: why})
	}
	var shown, missed uint64
	for lines := json.NewDecoder(bufio.NewReader(resp.Body)); shown+missed < events; {
		var e api.Event
		if err := lines.Decode(&e); err != nil {
			t.Fatal(err)
		}
		if e.Verdict == api.Missed {
			missed += e.Missed
		} else {
			shown++
		}
	}
	if missed == 0 || shown < viewerRoom {
		t.Errorf("%d shown and %d missed of %d", shown, missed, events)
	}
}

// While nobody hears of refused packets, watch says so.
func TestDeaf(t *testing.T) {
	log := &logBuffer{}
	tell := teller{namer: namer{watching: &watching{}}, log: slog.New(slog.NewTextHandler(log, nil))}
	ctx, cancel := context.WithCancel(t.Context())
	listening := func(context.Context, uint16, func(nflog.Packet), func(uint32)) error {
		if err := tell.watching.listening(); err != nil {
			t.Errorf("deaf while it listens: %v", err)
		}
		time.AfterFunc(50*time.Millisecond, cancel)
		return nflog.ErrTaken
	}
	if err := tell.listen(ctx, listening); err != nil {
		t.Error(err)
	}
	if err := tell.watching.listening(); !errors.Is(err, nflog.ErrTaken) || !strings.Contains(log.String(), "cannot be shown") {
		t.Errorf("not said to be deaf: %v\n%s", err, log)
	}
	d := &Daemon{}
	d.watching.setDeaf(nflog.ErrTaken)
	w := httptest.NewRecorder()
	d.watch(w, httptest.NewRequest(http.MethodGet, "/v1/watch", nil))
	if w.Code == http.StatusOK || !strings.Contains(w.Body.String(), nflog.ErrTaken.Error()) {
		t.Errorf("watch answers %d: %s", w.Code, w.Body)
	}
}
