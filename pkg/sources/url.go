package sources

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/sources/spec"
)

const (
	// maxBody is the size of the largest answer that is read, in bytes,
	// unpacked. Lists of a million addresses have 16 MB.
	maxBody = 64 << 20
	// fetchTimeout bounds one question and its whole answer.
	fetchTimeout = time.Minute
	// retryFirst and retryMost bound the pause after a failure.
	retryFirst = time.Second
	retryMost  = 5 * time.Minute
	// spread is the share of an interval by which hosts are kept apart.
	spread = 0.1
	// startSpread is how long a host with a saved list waits at the most
	// before it asks for the first time.
	startSpread = 10 * time.Second
)

// urlResume is what lets a server say that nothing changed.
type urlResume struct {
	Format       string `json:"format"` // how the list was read, see format
	ETag         string `json:"etag,omitempty"`
	LastModified string `json:"last_modified,omitempty"`
}

// urlFollower asks for one list again and again.
type urlFollower struct {
	spec    spec.URL
	source  addrset.Source
	client  *http.Client
	timeout time.Duration

	have   int // entries of the last good list; 0 for none
	resume urlResume
}

// followURL tells of the list behind a URL.
func (r Reader) followURL(ctx context.Context, s spec.URL, source addrset.Source, last Last, emit func(Update)) {
	f := &urlFollower{spec: s, source: source, client: r.httpClient(), timeout: fetchTimeout, have: last.Entries.Len()}
	if r.Timeout > 0 {
		f.timeout = r.Timeout
	}
	if last.Resume != nil {
		// What cannot be read is as good as nothing: the list is fetched whole.
		_ = json.Unmarshal(last.Resume, &f.resume)
	}
	if f.have == 0 || f.resume.Format != f.format() {
		f.resume = urlResume{}
	}
	wait := time.Duration(0)
	if f.have > 0 {
		wait = time.Duration(r.jitter() * float64(min(startSpread, s.Every)))
	}
	p := pause{jitter: r.jitter, every: s.Every}
	for sleep(ctx, wait) {
		u := f.fetch(ctx)
		if ctx.Err() != nil {
			return
		}
		emit(u)
		wait = p.after(u.Err)
	}
}

// format tells the way in which the list is read from others. It is written
// down, and the URL may hold a password: so it is a SHA-256.
func (f *urlFollower) format() string {
	way := fmt.Sprintf("%s json=%s csv=%s", f.spec.URL, strings.Join(f.spec.JSON, ","), f.spec.Column)
	return fmt.Sprintf("%x", sha256.Sum256([]byte(way)))
}

// fetch asks once.
func (f *urlFollower) fetch(ctx context.Context) Update {
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.spec.URL, nil)
	if err != nil {
		return Update{Err: err}
	}
	req.Header.Set("User-Agent", "nftfw")
	if f.resume.ETag != "" {
		req.Header.Set("If-None-Match", f.resume.ETag)
	}
	if f.resume.LastModified != "" {
		req.Header.Set("If-Modified-Since", f.resume.LastModified)
	}
	resp, err := f.client.Do(req)
	if err != nil {
		return Update{Err: err}
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusNotModified && f.have > 0:
		return Update{}
	case resp.StatusCode != http.StatusOK:
		return Update{Err: fmt.Errorf("the server answered %s", resp.Status)}
	}
	set, err := f.read(resp)
	if err != nil {
		return Update{Err: err}
	}
	return f.took(resp, set)
}

// took makes set the last good list.
func (f *urlFollower) took(resp *http.Response, set *addrset.Set) Update {
	f.have = set.Len()
	f.resume = urlResume{Format: f.format(), ETag: resp.Header.Get("ETag"), LastModified: resp.Header.Get("Last-Modified")}
	resume, err := json.Marshal(f.resume)
	if err != nil {
		return Update{Err: err}
	}
	return Update{Whole: true, Add: set.Entries(), Resume: resume}
}

// read reads an answer that is a list, whole and not suspiciously short.
func (f *urlFollower) read(resp *http.Response) (*addrset.Set, error) {
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return nil, fmt.Errorf("the answer is cut short after %d bytes", len(body))
	case err != nil:
		return nil, fmt.Errorf("read the answer: %w", err)
	case len(body) > maxBody:
		return nil, fmt.Errorf("the answer has more than %d bytes", maxBody)
	}
	entries, err := f.parse(body)
	if err != nil {
		return nil, err
	}
	set := addrset.New(entries...)
	switch {
	case set.Len() == 0:
		return nil, errors.New("the list is empty")
	case unbounded(resp) && f.spec.JSON == nil && !bytes.HasSuffix(body, []byte("\n")):
		// Nothing says where such an answer ends: its last address may be
		// half of one.
		return nil, errors.New("the answer may be cut short: it has neither a length nor a line end after the last entry")
	case !f.spec.Shrink && 2*set.Len() < f.have:
		return nil, fmt.Errorf("the list has %d entries and had %d: less than half, so it is not believed (`shrink: allow` at the source believes it)", set.Len(), f.have)
	}
	return set, nil
}

// unbounded tells whether the end of the connection alone ended the answer
// (RFC 9112, 6.3, item 8).
func unbounded(resp *http.Response) bool {
	return resp.ContentLength < 0 && len(resp.TransferEncoding) == 0 && resp.ProtoMajor < 2 && !resp.Uncompressed
}

func (f *urlFollower) parse(body []byte) ([]addrset.Entry, error) {
	switch {
	case f.spec.JSON != nil:
		return readJSON(body, f.spec.JSON, f.source)
	case f.spec.Column != "":
		return readCSV(body, f.spec.Column, f.source)
	default:
		return readLines(bytes.NewReader(body), "", f.source)
	}
}

// httpClient gives the client for URLs.
func (r Reader) httpClient() *http.Client {
	if r.HTTP != nil {
		return r.HTTP
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DisableKeepAlives = true // the next question is an hour away
	return &http.Client{Transport: transport, CheckRedirect: checkRedirect}
}

// maxRedirects is what net/http follows by itself.
const maxRedirects = 10

// checkRedirect keeps a list that was asked for in safety from coming over an
// open line.
func checkRedirect(req *http.Request, via []*http.Request) error {
	switch {
	case len(via) >= maxRedirects:
		return fmt.Errorf("more than %d redirects", maxRedirects)
	case via[len(via)-1].URL.Scheme == "https" && req.URL.Scheme != "https":
		return fmt.Errorf("redirected from https to %s", req.URL.Scheme)
	}
	return nil
}

// jitter is a number from 0 to 1.
func (r Reader) jitter() float64 {
	if r.Jitter != nil {
		return r.Jitter()
	}
	return rand.Float64()
}

// pause tells how long to wait before a source is asked again.
type pause struct {
	jitter  func() float64
	every   time.Duration
	backoff time.Duration
}

// after gives the time to the next question after one that ended in err.
func (p *pause) after(err error) time.Duration {
	if err == nil {
		p.backoff = 0
		return p.around(p.every)
	}
	p.backoff = min(max(2*p.backoff, retryFirst), retryMost)
	return p.around(min(p.backoff, p.every))
}

// around is d, up to a tenth more or less.
func (p *pause) around(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (1 - spread + 2*spread*p.jitter()))
}

// sleep waits, and reports whether ctx still lives.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
