package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// Verdict says what an Event tells of.
type Verdict string

// The verdicts.
const (
	Refused     Verdict = "refused"
	WouldRefuse Verdict = "would be refused" // in observe mode
	Accepted    Verdict = "accepted"         // by every rule on its way, those of others too
	// Missed stands for packets, or connections, that are not told of.
	Missed Verdict = "missed"
	// Failed ends what is shown; Why says the reason.
	Failed Verdict = "failed"
)

// Event is one line of `nftfw watch --json`: a new connection, or packets of
// which nothing more is known.
type Event struct {
	Time    time.Time `json:"time"`
	Verdict Verdict   `json:"verdict"`
	Reason  string    `json:"reason,omitempty"` // in one word, as in Ports.Refused
	Why     string    `json:"why,omitempty"`    // the same for people

	Source          string `json:"source,omitempty"`
	SourcePort      uint16 `json:"source_port,omitempty"`
	SourceContainer string `json:"source_container,omitempty"`
	// To is the destination that the rules saw: a container's address, or one
	// of the host's.
	To        string `json:"to,omitempty"`
	Port      uint16 `json:"port,omitempty"`
	Proto     string `json:"proto,omitempty"`
	Container string `json:"container,omitempty"` // that it was for; "" for the host itself
	In        string `json:"in,omitempty"`        // links
	Out       string `json:"out,omitempty"`
	DecidedBy string `json:"decided_by,omitempty"` // policy line or label

	Missed uint64 `json:"missed,omitempty"` // how many, where that is known
}

// Watch calls show for every refused connection from now on, and with all for
// every accepted one as well, until ctx is done or the daemon ends. Nobody
// waits for a slow caller: what it misses is told as such.
func (c *Client) Watch(ctx context.Context, all bool, show func(Event) error) error {
	path := "/v1/watch"
	if all {
		path += "?all=1"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://nftfw"+path, nil)
	if err != nil {
		return fmt.Errorf("make request %s: %w", path, err)
	}
	resp, err := c.do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return failureOf(resp, path)
	}
	for lines := json.NewDecoder(resp.Body); ; {
		var e Event
		switch err := lines.Decode(&e); {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return Failedf("the daemon has ended")
		case err != nil:
			return fmt.Errorf("read %s: %w", path, err)
		case e.Verdict == Failed:
			return Failedf("%s", e.Why)
		}
		if err := show(e); err != nil {
			return err
		}
	}
}
