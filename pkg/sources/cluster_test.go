package sources

import (
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nftfw/nftfw/pkg/sources/spec"
)

// way leads to a member of etcd, not always well.
type way struct {
	url string

	mu     sync.Mutex
	open   map[net.Conn]bool
	silent bool // nothing comes through, in either direction
	// cut is asked before each HTTP/2 frame of the member whether the way
	// breaks in the middle of it.
	cut  func(kind byte, size int) bool
	cuts int
}

// newWay makes a way to a member without TLS.
func newWay(m *member) *way {
	m.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		m.Fatal(err)
	}
	w := &way{url: "http://" + l.Addr().String(), open: map[net.Conn]bool{}}
	var busy sync.WaitGroup
	busy.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", strings.TrimPrefix(m.url, "http://"))
			if err != nil {
				_ = client.Close()
				continue
			}
			w.mu.Lock()
			w.open[client] = true
			w.mu.Unlock()
			end := func() {
				_ = client.Close()
				_ = server.Close()
				w.mu.Lock()
				delete(w.open, client)
				w.mu.Unlock()
			}
			busy.Go(func() { defer end(); _, _ = io.Copy(&mouth{w, server}, client) })
			busy.Go(func() { defer end(); w.answers(client, server) })
		}
	})
	m.Cleanup(func() {
		_ = l.Close()
		w.breakAll()
		busy.Wait()
	})
	return w
}

// mouth says what is written to it, unless the way is silent.
type mouth struct {
	*way
	to net.Conn
}

func (m *mouth) Write(b []byte) (int, error) {
	m.mu.Lock()
	silent := m.silent
	m.mu.Unlock()
	if silent {
		return len(b), nil
	}
	return m.to.Write(b)
}

// answers hands over what the member sends, frame by frame.
func (w *way) answers(client, server net.Conn) {
	to := &mouth{w, client}
	for {
		frame := make([]byte, 9) // RFC 9113, 4.1
		if _, err := io.ReadFull(server, frame); err != nil {
			return
		}
		size := int(binary.BigEndian.Uint32(frame) >> 8)
		frame = append(frame, make([]byte, size)...)
		if _, err := io.ReadFull(server, frame[9:]); err != nil {
			return
		}
		w.mu.Lock()
		cut := w.cut != nil && w.cut(frame[3], size)
		if cut {
			w.cuts++
			frame = frame[:9+size/2]
		}
		w.mu.Unlock()
		if _, err := to.Write(frame); err != nil || cut {
			return
		}
	}
}

func (w *way) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func (w *way) used() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.open) > 0
}

// breakAll ends the connections that there are.
func (w *way) breakAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for conn := range w.open {
		_ = conn.Close()
	}
}

// through gives the spec of a member behind some ways.
func through(m *member, urls ...string) spec.Etcd {
	s := m.spec
	s.Endpoints = urls
	return s
}

// once says that everything was read once, and that nothing failed on the way.
func (f *follower) once() {
	f.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.wholes != 1 || f.errs != 0 {
		f.Errorf("everything was read %d times, with %d errors, the last update is %+v; want once and none", f.wholes, f.errs, f.last)
	}
}

// Frames of HTTP/2.
const (
	frameData    = 0
	frameHeaders = 1
)

func TestEtcdUsersOfCertificates(t *testing.T) {
	t.Parallel()
	issue := newAuthority(t)
	server := issue("", x509.ExtKeyUsageServerAuth) // etcd's gateway does not work with such a one
	m := newMember(t, issue("", x509.ExtKeyUsageClientAuth),
		"--client-cert-auth", "--trusted-ca-file", server.CA, "--cert-file", server.Cert, "--key-file", server.Key)
	m.put("192.0.2.1", "")
	m.auth()
	password := filepath.Join(t.TempDir(), "password")
	write(t, password, "password\n")
	for i, test := range []struct {
		name, certificate, user, failure string
	}{
		{"a certificate with a user's name", "nftfw", "", ""},
		{"and with a password", "nftfw", "nftfw", ""},
		{"a password beside another name", "stranger", "nftfw", ""},
		{"a name that is no user's", "stranger", "", "permission denied"},
	} {
		s := m.spec
		s.TLS = issue(test.certificate, x509.ExtKeyUsageClientAuth)
		if s.User = test.user; test.user != "" {
			s.PasswordFile = password
		}
		f := follow(t, Reader{Timeout: etcdPatience}, spec.Source{Etcd: &s}, Last{})
		t.Log(test.name)
		if test.failure != "" {
			f.until(test.failure)
			continue
		}
		f.until("", "192.0.2.1")
		address := fmt.Sprint("192.0.2.1", i)
		if _, err := (Reader{Timeout: etcdPatience}).Put(t.Context(), s, ranges(t, address), "", time.Hour); err != nil {
			t.Error(err)
		}
		f.until("", "192.0.2.1", address)
		f.once()
		if n, _, err := (Reader{Timeout: etcdPatience}).Delete(t.Context(), s, ranges(t, address), false); n != 1 || err != nil {
			t.Errorf("%d removed, %v", n, err)
		}
		s.Prefix = "/others/"
		if _, err := (Reader{Timeout: etcdPatience}).Put(t.Context(), s, ranges(t, address), "", 0); err == nil || err.Error() != "write to etcd: etcdserver: permission denied" {
			t.Errorf("error %v for the prefix of others", err)
		}
	}
}

// A token that is no longer good is asked for again, unnoticed.
func TestEtcdTokensAreRenewed(t *testing.T) {
	t.Parallel()
	m := newMember(t, spec.TLS{}, "--auth-token", "simple", "--auth-token-ttl", "2")
	w := newWay(m)
	s := through(m, w.url)
	s.User, s.PasswordFile = "nftfw", filepath.Join(t.TempDir(), "password")
	write(t, s.PasswordFile, "password\n")
	m.put("192.0.2.1", "")
	f := follow(t, Reader{Timeout: etcdPatience}, spec.Source{Etcd: &s}, Last{})
	f.until("", "192.0.2.1")

	t.Log("users are turned on")
	m.auth()
	m.put("192.0.2.2", "", "--lease="+m.lease(3600)) // is asked about
	f.until("", "192.0.2.1", "192.0.2.2")

	t.Log("tokens end by themselves; the stream of changes breaks while they do")
	want := []string{"192.0.2.1", "192.0.2.2"}
	for i := range 3 {
		<-time.After(3500 * time.Millisecond) // etcd looks once a second
		w.breakAll()
		address := fmt.Sprint("192.0.2.2", i)
		m.put(address, "", "--lease="+m.lease(3600))
		want = append(want, address)
		f.until("", want...)
	}

	t.Log("users are turned off and on")
	m.ctl("auth", "disable")
	m.put("192.0.2.30", "")
	f.until("", append(want, "192.0.2.30")...)
	m.ctl("auth", "enable")
	m.put("192.0.2.31", "", "--lease="+m.lease(3600))
	f.until("", append(want, "192.0.2.30", "192.0.2.31")...)
	f.once()
}

// Members that are not there, or that hang, keep nobody waiting.
func TestEtcdPassesOverMembers(t *testing.T) {
	t.Parallel()
	m := newMember(t, spec.TLS{})
	m.put("192.0.2.1", "")
	hangs := newWay(m)
	hangs.set(func() { hangs.silent = true })
	refuses := "http://127.0.0.1:" + freePort(t)
	r := Reader{Timeout: etcdPatience}
	for range 6 { // by chance they come first
		s := through(m, hangs.url, m.url, refuses)
		f := follow(t, r, spec.Source{Etcd: &s}, Last{})
		f.until("", "192.0.2.1")
		f.once()
		f.stop()
		if _, err := r.Put(t.Context(), s, ranges(t, "192.0.2.1"), "", time.Hour); err != nil {
			t.Error(err)
		}
	}

	t.Log("with nobody there it is said why")
	_, err := (Reader{Timeout: etcdTestTimeout}).Put(t.Context(), through(m, hangs.url, refuses), ranges(t, "192.0.2.1"), "", 0)
	if err == nil || !strings.Contains(err.Error(), "connection refused") || !strings.Contains(err.Error(), hangs.url+": no answer within 2s") {
		t.Errorf("error %v", err)
	}
}

// A member that falls silent is left for another one. Nothing is missed by that
// and nothing is read again.
func TestEtcdMemberFallsSilent(t *testing.T) {
	t.Parallel()
	m := newMember(t, spec.TLS{})
	m.put("192.0.2.1", "")
	one, two := newWay(m), newWay(m)
	s := through(m, one.url, two.url)
	f := follow(t, Reader{Timeout: etcdTestTimeout}, spec.Source{Etcd: &s}, Last{})
	f.until("", "192.0.2.1")
	if two.used() {
		one, two = two, one
	}
	if !one.used() || two.used() {
		t.Fatalf("ways used: %v, %v; want one", one.used(), two.used())
	}
	one.set(func() { one.silent = true })
	m.put("192.0.2.2", "")
	m.del("192.0.2.1")
	since := time.Now()
	f.until("", "192.0.2.2")
	// A question comes within one timeout and fails after another. Pings would
	// notice after 12 s.
	if took := time.Since(since); took > 5*etcdTestTimeout {
		t.Errorf("it took %s", took)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.wholes != 1 || f.errs > 1 {
		t.Errorf("everything was read %d times, with %d errors; want once and one at the most", f.wholes, f.errs)
	}
}

// A stream that breaks in the middle of what it says goes on with the next
// change: none is missed and none comes late.
func TestEtcdStreamBreaks(t *testing.T) {
	t.Parallel()
	m := newMember(t, spec.TLS{})
	w := newWay(m)
	s := through(m, w.url)
	f := follow(t, Reader{Timeout: etcdPatience}, spec.Source{Etcd: &s}, Last{})
	f.until("")
	frames := 0
	w.set(func() {
		w.cut = func(kind byte, size int) bool {
			if kind == frameData && size > 0 {
				frames++
			}
			return kind == frameData && frames%5 == 0
		}
	})
	// What happens while the watch is away comes in one frame, so that it takes
	// more changes the quicker the machine is.
	broken := func() (n int) {
		w.set(func() { n = w.cuts })
		return n
	}
	var want []string
	for i := 0; i < 100 || i < 5000 && broken() < 5; i++ {
		address := fmt.Sprintf("10.0.%d.%d", i/250, i%250)
		if _, err := (Reader{Timeout: etcdPatience}).Put(t.Context(), m.spec, ranges(t, address), fmt.Sprint(i), 0); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			want = append(want, address)
			continue
		}
		if _, _, err := (Reader{Timeout: etcdPatience}).Delete(t.Context(), m.spec, ranges(t, address), false); err != nil {
			t.Fatal(err)
		}
	}
	f.until("", want...)
	f.once()
	w.set(func() {
		if w.cuts < 5 {
			t.Errorf("the stream broke %d times", w.cuts)
		}
	})
}

// What may have been done already is not done again.
func TestEtcdWritesOnce(t *testing.T) {
	t.Parallel()
	m := newMember(t, spec.TLS{})
	w := newWay(m)
	s := through(m, w.url)
	breakOnce := func() {
		w.set(func() {
			cuts := w.cuts
			w.cut = func(kind byte, _ int) bool { return kind == frameHeaders && w.cuts == cuts }
		})
	}
	breakOnce()
	_, err := (Reader{Timeout: etcdPatience}).Put(t.Context(), s, ranges(t, "192.0.2.1"), "", 0)
	var part *PartialError
	if err == nil || errors.As(err, &part) || !strings.HasPrefix(err.Error(), "write to etcd: "+w.url+": ") {
		t.Errorf("error %v where the answer was lost", err)
	}
	var got struct {
		Kvs []struct {
			Version int `json:"version"`
		} `json:"kvs"`
	}
	if err := json.Unmarshal([]byte(m.ctl("get", prefix+"192.0.2.1", "-w", "json")), &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Kvs) != 1 || got.Kvs[0].Version != 1 {
		t.Errorf("%+v; want it written once", got)
	}

	t.Log("what only reads is asked again")
	breakOnce()
	if n, _, err := (Reader{Timeout: etcdPatience}).Delete(t.Context(), s, ranges(t, "192.0.2.1"), false); n != 1 || err != nil {
		t.Errorf("%d removed, %v", n, err)
	}
	if w.cuts != 2 {
		t.Errorf("the way broke %d times", w.cuts)
	}
}
