package sources

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/sources/spec"
)

// decisionStream is the path of the stream in CrowdSec's local API, v1.
const decisionStream = "/v1/decisions/stream"

// decision is one decision of CrowdSec. The stream has more keys than these.
type decision struct {
	Duration  string `json:"duration"` // as Go writes it, below zero for what ended
	Scenario  string `json:"scenario"`
	Scope     string `json:"scope"` // Ip, Range, Country, AS or one of the user's
	Type      string `json:"type"`  // ban, captcha or one of the user's
	Value     string `json:"value"`
	Simulated bool   `json:"simulated"`
}

// decisions is an answer of the stream.
type decisions struct {
	New     []decision `json:"new"`
	Deleted []decision `json:"deleted"`
}

// bouncer follows the decisions of a local API.
type bouncer struct {
	spec    spec.CrowdSec
	source  addrset.Source
	client  *http.Client
	timeout time.Duration

	banned  map[addrset.Range]addrset.Entry
	ignored map[string]int // decisions passed over, by why
	whole   bool           // the next question is for everything there is
}

// followCrowdSec tells of whom CrowdSec bans.
func (r Reader) followCrowdSec(ctx context.Context, s spec.CrowdSec, source addrset.Source, emit func(Update)) {
	b := &bouncer{spec: s, source: source, client: r.httpClient(), timeout: fetchTimeout, whole: true}
	if r.Timeout > 0 {
		b.timeout = r.Timeout
	}
	p := pause{jitter: r.jitter, every: s.Every}
	for wait := time.Duration(0); sleep(ctx, wait); {
		u := b.ask(ctx)
		if ctx.Err() != nil {
			return
		}
		emit(u)
		wait = p.after(u.Err)
	}
}

// ask asks for what happened since the last question. An answer that was lost
// would be missed, for the server believes it sent: after a failure everything
// is asked for.
func (b *bouncer) ask(ctx context.Context) Update {
	whole := b.whole
	b.whole = true
	answer, err := b.fetch(ctx, whole)
	if err != nil {
		return Update{Err: err}
	}
	u := b.take(answer, whole, time.Now())
	b.whole = false
	return u
}

func (b *bouncer) fetch(ctx context.Context, whole bool) (decisions, error) {
	var out decisions
	key, err := readSecret(b.spec.KeyFile)
	if err != nil {
		return out, err
	}
	ctx, cancel := context.WithTimeout(ctx, b.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("%s%s?startup=%t", b.spec.URL, decisionStream, whole), nil)
	if err != nil {
		return out, err
	}
	req.Header.Set("User-Agent", "nftfw")
	req.Header.Set("X-Api-Key", key)
	resp, err := b.client.Do(req)
	if err != nil {
		return out, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		hint := ""
		if resp.StatusCode == http.StatusForbidden || resp.StatusCode == http.StatusUnauthorized {
			hint = fmt.Sprintf(": is the key in %s one of `cscli bouncers add`?", b.spec.KeyFile)
		}
		return out, fmt.Errorf("CrowdSec answered %s%s", resp.Status, hint)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	switch {
	case err != nil:
		return out, fmt.Errorf("read the decisions: %w", err)
	case len(body) > maxBody:
		return out, fmt.Errorf("the decisions have more than %d bytes", maxBody)
	case !bytes.HasPrefix(bytes.TrimSpace(body), []byte("{")):
		return out, errors.New("the answer is no JSON object: is this CrowdSec's local API?")
	}
	if err := json.Unmarshal(body, &out); err != nil {
		return out, fmt.Errorf("read the decisions: %w", err)
	}
	var keys struct{ New, Deleted json.RawMessage } // null is there, nil is not
	if err := json.Unmarshal(body, &keys); err != nil || keys.New == nil && keys.Deleted == nil {
		return out, fmt.Errorf("the answer has no decisions, neither `new` nor `deleted`: %.100q", body)
	}
	return out, nil
}

// take joins an answer with what is known. What was deleted goes first, as in
// CrowdSec's own bouncers: a decision may end and be made again in one answer.
func (b *bouncer) take(answer decisions, whole bool, now time.Time) Update {
	if whole {
		b.banned, b.ignored = map[addrset.Range]addrset.Entry{}, map[string]int{}
	}
	changed := map[addrset.Range]bool{}
	if !whole { // everything that there is needs nothing taken away
		for _, d := range answer.Deleted {
			if rng, err := d.bans(); err == nil {
				delete(b.banned, rng)
				changed[rng] = true
			}
		}
	}
	for _, d := range answer.New {
		rng, err := d.bans()
		if err != nil {
			b.ignored[err.Error()]++
			continue
		}
		left, err := time.ParseDuration(d.Duration)
		if err != nil {
			b.ignored["without a duration"]++
			continue
		}
		e := addrset.Entry{Range: rng, Source: b.source, Comment: oneLine(d.Scenario), Expires: now.Add(left)}
		if have, ok := b.banned[rng]; left <= 0 || ok && have.Expires.After(e.Expires) {
			continue // the longest of several counts
		}
		b.banned[rng] = e
		changed[rng] = true
	}
	u := Update{Whole: whole, Note: b.note()}
	for rng := range changed {
		if e, ok := b.banned[rng]; ok {
			u.Add = append(u.Add, e)
		} else {
			u.Del = append(u.Del, rng)
		}
	}
	for rng, e := range b.banned {
		if !e.Expires.After(now) {
			delete(b.banned, rng) // the set has dropped it by itself
		}
	}
	return u
}

// bans gives the addresses that a decision bans, or why it bans none.
func (d decision) bans() (addrset.Range, error) {
	scope := strings.ToLower(d.Scope)
	switch {
	case d.Simulated:
		return addrset.Range{}, errors.New("simulated")
	case !strings.EqualFold(d.Type, "ban"):
		return addrset.Range{}, fmt.Errorf("of type %.30q", d.Type)
	case scope != "ip" && scope != "range":
		return addrset.Range{}, fmt.Errorf("of scope %.30q", d.Scope)
	}
	rng, err := addrset.ParseRange(strings.TrimSpace(d.Value))
	if err != nil {
		return addrset.Range{}, errors.New("without an address")
	}
	return rng, nil
}

// note says which decisions were passed over since everything was asked for.
func (b *bouncer) note() string {
	if len(b.ignored) == 0 {
		return ""
	}
	var parts []string
	sum := 0
	for _, why := range slices.Sorted(maps.Keys(b.ignored)) {
		sum += b.ignored[why]
		parts = append(parts, fmt.Sprintf("%d %s", b.ignored[why], why))
	}
	return fmt.Sprintf("%d decisions are passed over: %s", sum, strings.Join(parts, ", "))
}
