package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Mischief is what a Meddler does to what its engine says.
type Mischief struct {
	// Hang takes requests and never answers; streams that are open fall silent
	// and are not closed.
	Hang bool
	// Alter changes the body of every answer that is no stream; nil leaves it.
	Alter func(path string, body []byte) []byte
	// Flood is how many events a second are made up in each event stream.
	Flood int
}

// Meddler stands between nftfw and an engine, and misbehaves on demand.
type Meddler struct {
	engine *http.Transport
	path   string

	mu       sync.Mutex
	mischief Mischief
	changed  chan struct{} // closed when mischief is another
	server   *http.Server  // nil while it is away
	serving  sync.WaitGroup
}

// Meddle starts a Meddler that behaves.
func (e *Engine) Meddle() (*Meddler, error) {
	m := &Meddler{
		engine: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "unix", e.socket())
			},
		},
		path: filepath.Join(e.dir, "meddler.sock"), changed: make(chan struct{}),
	}
	return m, m.Return()
}

// Host is the URL at which it poses as the engine.
func (m *Meddler) Host() string { return "unix://" + m.path }

// Behave sets what it does from now on.
func (m *Meddler) Behave(how Mischief) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mischief = how
	close(m.changed)
	m.changed = make(chan struct{})
}

func (m *Meddler) now() (Mischief, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mischief, m.changed
}

// Leave ends every connection and removes the socket.
func (m *Meddler) Leave() {
	m.mu.Lock()
	server := m.server
	m.server = nil
	m.mu.Unlock()
	if server != nil {
		_ = server.Close() // nothing can go wrong that matters
		m.serving.Wait()
	}
}

// Return makes the socket again after Leave.
func (m *Meddler) Return() error {
	if err := os.Remove(m.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	l, err := net.Listen("unix", m.path)
	if err != nil {
		return fmt.Errorf("listen as an engine: %w", err)
	}
	server := &http.Server{Handler: m, ReadHeaderTimeout: time.Minute}
	m.mu.Lock()
	m.server = server
	m.mu.Unlock()
	m.serving.Go(func() { _ = server.Serve(l) }) // ends with Leave
	return nil
}

// ServeHTTP passes a request on to the engine.
func (m *Meddler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	how, changed := m.now()
	if how.Hang {
		select {
		case <-changed:
		case <-r.Context().Done():
		}
		panic(http.ErrAbortHandler) // there is no answer
	}
	out := r.Clone(r.Context())
	out.URL.Scheme, out.URL.Host = "http", "docker"
	resp, err := m.engine.RoundTrip(out)
	if err != nil {
		panic(http.ErrAbortHandler) // as if the engine had ended
	}
	defer resp.Body.Close()
	for k, v := range resp.Header {
		if k != "Content-Length" {
			w.Header()[k] = v
		}
	}
	w.WriteHeader(resp.StatusCode)
	if strings.HasSuffix(r.URL.Path, "/events") {
		m.stream(r.Context(), w, resp.Body)
		return
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if how.Alter != nil {
		body = how.Alter(r.URL.Path, body)
	}
	_, _ = w.Write(body) // the client may be gone
}

// floodTick is how often made up events are written.
const floodTick = 10 * time.Millisecond

// stream passes events on, and makes some up.
func (m *Meddler) stream(ctx context.Context, w http.ResponseWriter, from io.Reader) {
	events := make(chan json.RawMessage)
	go func() {
		defer close(events)
		for d := json.NewDecoder(from); ; {
			var event json.RawMessage
			if d.Decode(&event) != nil {
				return
			}
			select {
			case events <- event:
			case <-ctx.Done():
				return
			}
		}
	}()
	tick := time.NewTicker(floodTick)
	defer tick.Stop()
	_ = http.NewResponseController(w).Flush()
	for number := 0; ; {
		var buf bytes.Buffer
		select {
		case event, ok := <-events:
			if !ok {
				return
			}
			buf.Write(event)
		case <-tick.C:
			how, _ := m.now()
			for range how.Flood * int(floodTick) / int(time.Second) {
				number++
				fmt.Fprintf(&buf, madeUp[number%len(madeUp)]+"\n", number)
			}
		case <-ctx.Done():
			return
		}
		if how, changed := m.now(); how.Hang {
			select {
			case <-changed:
			case <-ctx.Done():
			}
		}
		if _, err := w.Write(buf.Bytes()); err != nil {
			return
		}
		_ = http.NewResponseController(w).Flush() // fails as the next Write does
	}
}

// madeUp are events of containers that do not exist, each with a number.
var madeUp = []string{
	`{"Type":"container","Action":"start","Actor":{"ID":"%064x","Attributes":{"name":"x"}},"scope":"local"}`,
	`{"Type":"container","Action":"die","Actor":{"ID":"%064x","Attributes":{"name":"x"}},"scope":"local"}`,
	`{"Type":"network","Action":"connect","Actor":{"ID":"%[1]064x","Attributes":{"container":"%[1]064x","type":"bridge"}}}`,
	`{"Type":"container","Action":"exec_start: x","Actor":{"ID":"%064x","Attributes":{}}}`,
	`{"Type":"container","Action":"health_status: healthy","Actor":{"ID":"%064x","Attributes":{}}}`,
	`{"Type":"image","Action":"pull","Actor":{"ID":"%x"}}`,
	`{"Type":"nonsense","Action":"%d"}`,
}
