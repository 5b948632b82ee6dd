package sources

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/sources/etcdpb"
	"github.com/nftfw/nftfw/pkg/sources/spec"
)

// member is a real etcd of one member, on the loopback.
type member struct {
	*testing.T
	url, peer string
	dir       string
	flags     []string
	cmd       *exec.Cmd
	client    []string // of etcdctl: how to log in with all rights
	spec      spec.Etcd
}

// etcdTestTimeout is how long etcd has for an answer on a busy machine.
const etcdTestTimeout = 2 * time.Second

// etcdPatience is one that no answer needs, for tests in which nothing is to
// fail.
const etcdPatience = 15 * time.Second

const prefix = "/nftfw/sets/trusted/"

// newMember starts etcd. tls is spec.TLS{} for none.
func newMember(t *testing.T, tls spec.TLS, flags ...string) *member {
	t.Helper()
	for _, tool := range []string{"etcd", "etcdctl"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatal(err)
			}
			t.Skipf("needs %s: integration/install-deps.sh installs it", tool)
		}
	}
	scheme := "http"
	if tls.CA != "" {
		scheme = "https"
	}
	m := &member{
		T: t, dir: t.TempDir(), flags: flags,
		url: scheme + "://127.0.0.1:" + freePort(t), peer: "http://127.0.0.1:" + freePort(t),
	}
	m.spec = spec.Etcd{Endpoints: []string{m.url}, Prefix: prefix, TLS: tls}
	m.start()
	t.Cleanup(m.stop)
	if tls.CA != "" {
		m.client = []string{"--cacert", tls.CA, "--cert", tls.Cert, "--key", tls.Key}
	}
	m.ready()
	return m
}

func freePort(t *testing.T) string {
	t.Helper()
	for range 100 {
		// Below those that the kernel gives to connections (32768 and up, see
		// net.ipv4.ip_local_port_range): one would take it while a member is away.
		port := strconv.Itoa(10000 + mathrand.N(20000))
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", port))
		if err == nil {
			_ = l.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return ""
}

func (m *member) start() {
	m.Helper()
	m.cmd = exec.Command("etcd", append([]string{
		"--name", "one", "--data-dir", m.dir, "--log-level", "error", "--unsafe-no-fsync",
		"--listen-client-urls", m.url, "--advertise-client-urls", m.url,
		"--listen-peer-urls", m.peer, "--initial-advertise-peer-urls", m.peer, "--initial-cluster", "one=" + m.peer,
	}, m.flags...)...)
	m.cmd.Stderr = os.Stderr
	if err := m.cmd.Start(); err != nil {
		m.Fatal(err)
	}
}

func (m *member) stop() {
	_ = m.cmd.Process.Kill()
	_ = m.cmd.Wait()
}

func (m *member) ready() {
	m.Helper()
	m.ctl("get", "x")
}

// ctl repeats etcdctl until it succeeds, and gives what it says.
func (m *member) ctl(args ...string) string {
	m.Helper()
	args = append(append([]string{"--endpoints", m.url, "--command-timeout", "2s"}, m.client...), args...)
	ctx, cancel := context.WithTimeout(m.Context(), 20*time.Second)
	defer cancel()
	for {
		cmd := exec.CommandContext(ctx, "etcdctl", args...)
		cmd.Env = append(os.Environ(), "ETCDCTL_API=3")
		out, err := cmd.CombinedOutput()
		if err == nil {
			return string(out)
		}
		if ctx.Err() != nil {
			m.Fatalf("etcdctl %q: %v: %s", args, err, out)
		}
		<-time.After(20 * time.Millisecond)
	}
}

func (m *member) put(key, value string, options ...string) {
	m.Helper()
	m.ctl(append(options, "put", "--", prefix+key, value)...)
}

func (m *member) del(key string) {
	m.Helper()
	m.ctl("del", prefix+key)
}

// compact forgets what was before the newest revision.
func (m *member) compact() {
	m.Helper()
	var got struct {
		Header struct {
			Revision int64 `json:"revision"`
		} `json:"header"`
	}
	if err := json.Unmarshal([]byte(m.ctl("get", prefix, "-w", "json")), &got); err != nil {
		m.Fatal(err)
	}
	m.ctl("compact", "--physical", strconv.FormatInt(got.Header.Revision, 10))
}

// lease gives the number of a new lease, as etcdctl writes it.
func (m *member) lease(seconds int) string {
	m.Helper()
	out := m.ctl("lease", "grant", strconv.Itoa(seconds)) // lease 32695410dcc0ca06 granted with TTL(3s)
	words := strings.Fields(out)
	if len(words) < 2 {
		m.Fatal(out)
	}
	return words[1]
}

// auth lets only two users in: root, and nftfw, which may read and write the
// prefix. From now on etcdctl is root.
func (m *member) auth() {
	m.Helper()
	m.ctl("role", "add", "fleet")
	m.ctl("role", "grant-permission", "--prefix=true", "fleet", "readwrite", prefix)
	m.ctl("user", "add", "root:secret")
	m.ctl("user", "grant-role", "root", "root")
	m.ctl("user", "add", "nftfw:password")
	m.ctl("user", "grant-role", "nftfw", "fleet")
	m.ctl("auth", "enable")
	m.client = append(m.client, "--user", "root:secret")
}

func (m *member) follow() *follower {
	m.Helper()
	return follow(m.T, Reader{Timeout: etcdTestTimeout}, spec.Source{Etcd: &m.spec}, Last{})
}

func (f *follower) entry(text string) (addrset.Entry, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range f.entries.Entries() {
		if e.Range.String() == text {
			return e, true
		}
	}
	return addrset.Entry{}, false
}

func TestEtcdIsFollowed(t *testing.T) {
	t.Parallel()
	m := newMember(t, spec.TLS{})
	m.put("192.0.2.0/24", "office\n")
	m.put("nonsense", "")
	m.ctl("put", "/nftfw/sets/trustedX", "")
	f := m.follow()
	f.until("", "192.0.2.0/24")
	if e, _ := f.entry("192.0.2.0/24"); e.Comment != "office" || e.Source != "etcd:"+prefix || !e.Expires.IsZero() {
		t.Errorf("entry %+v", e)
	}
	f.wait(func() bool { return f.last.Note == `a key is no address and is passed over: "nonsense"` }, func() string { return "a note" })
	m.put("2001:db8::1", "")
	m.put("198.51.100.1-198.51.100.9", "")
	f.until("", "192.0.2.0/24", "198.51.100.1-198.51.100.9", "2001:db8::1")
	m.del("192.0.2.0/24")
	m.del("nonsense")
	f.until("", "198.51.100.1-198.51.100.9", "2001:db8::1")
	f.wait(func() bool { return f.last.Note == "" }, func() string { return "no note" })

	t.Log("one entry, written in two ways, goes with the second key")
	m.put("192.0.2.1", "")
	m.put("192.0.2.1/32", "")
	m.del("192.0.2.1")
	m.put("192.0.2.2", "")
	f.until("", "192.0.2.1", "192.0.2.2", "198.51.100.1-198.51.100.9", "2001:db8::1")
	m.del("192.0.2.1/32")
	f.until("", "192.0.2.2", "198.51.100.1-198.51.100.9", "2001:db8::1")
}

func TestEtcdLeasesAreTimeouts(t *testing.T) {
	t.Parallel()
	m := newMember(t, spec.TLS{})
	m.put("192.0.2.3", "", "--lease="+m.lease(3600))
	short, kept := m.lease(5), m.lease(6)
	m.put("192.0.2.1", "", "--lease="+short)
	m.put("192.0.2.2", "", "--lease="+kept)
	f := m.follow()
	f.until("", "192.0.2.1", "192.0.2.2", "192.0.2.3")
	if e, _ := f.entry("192.0.2.3"); time.Until(e.Expires) < 3590*time.Second || time.Until(e.Expires) > 3602*time.Second {
		t.Errorf("an entry with a lease of an hour expires at %s", e.Expires)
	}
	first, _ := f.entry("192.0.2.2")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	alive := exec.CommandContext(ctx, "etcdctl", "--endpoints", m.url, "lease", "keep-alive", kept)
	alive.Env = append(os.Environ(), "ETCDCTL_API=3")
	if err := alive.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = alive.Wait() }()
	f.until("", "192.0.2.2", "192.0.2.3") // etcd ended the lease of the first
	f.wait(func() bool {
		e, ok := f.entries.Lookup(first.Range, first.Source)
		return ok && e.Expires.After(first.Expires.Add(leaseSlack/2))
	}, func() string { return "a renewed timeout" })

	t.Log("a key that loses its lease stays")
	m.put("192.0.2.3", "")
	f.wait(func() bool {
		e, ok := f.entries.Lookup(addrset.Range{From: first.Range.From.Next(), To: first.Range.From.Next()}, first.Source)
		return ok && e.Expires.IsZero()
	}, func() string { return "no timeout" })
}

// While etcd is away the last known state stays; a host catches up with what it
// missed, also with what was compacted meanwhile.
func TestEtcdAwayAndBack(t *testing.T) {
	t.Parallel()
	m := newMember(t, spec.TLS{})
	for i := range 3 {
		m.put(fmt.Sprintf("192.0.2.%d", i), "")
	}
	f := m.follow()
	f.until("", "192.0.2.0", "192.0.2.1", "192.0.2.2")
	m.stop()
	f.until("connection refused", "192.0.2.0", "192.0.2.1", "192.0.2.2")
	m.start()
	m.ready()
	m.del("192.0.2.0")
	m.put("192.0.2.9", "")
	m.compact()
	f.until("", "192.0.2.1", "192.0.2.2", "192.0.2.9")
	m.put("192.0.2.10", "")
	f.until("", "192.0.2.1", "192.0.2.2", "192.0.2.9", "192.0.2.10")
}

// An etcd that goes back, because its data were lost or a backup was put in
// their place, is read anew, whether its revisions are lower by then or not.
func TestEtcdGoesBack(t *testing.T) {
	t.Parallel()
	m := newMember(t, spec.TLS{})
	m.put("192.0.2.1", "")
	f := m.follow()
	f.until("", "192.0.2.1")
	backup := t.TempDir()
	m.stop()
	must(t, os.CopyFS(backup, os.DirFS(m.dir)))
	m.start()
	m.put("192.0.2.2", "")
	m.put("192.0.2.3", "")
	f.until("", "192.0.2.1", "192.0.2.2", "192.0.2.3")
	for _, test := range []struct {
		name   string
		backup string
		put    []string
		want   []string
	}{
		{"a backup", backup, nil, []string{"192.0.2.1"}},
		{"a backup, as many revisions", backup, []string{"192.0.2.4"}, []string{"192.0.2.1", "192.0.2.4"}},
		{"nothing", t.TempDir(), nil, nil},
		{"nothing, more revisions", t.TempDir(), []string{"192.0.2.5", "192.0.2.6", "192.0.2.7", "192.0.2.8"}, []string{"192.0.2.5", "192.0.2.6", "192.0.2.7", "192.0.2.8"}},
	} {
		t.Log(test.name)
		m.stop()
		must(t, os.RemoveAll(m.dir))
		must(t, os.CopyFS(m.dir, os.DirFS(test.backup)))
		m.start()
		for _, address := range test.put {
			m.put(address, "")
		}
		f.until("", test.want...)
		m.put("192.0.2.9", "")
		f.until("", append(test.want, "192.0.2.9")...)
	}
}

// So is one that goes back behind a way that is never broken, once it is asked
// whether it lives.
func TestEtcdStoreIsCompared(t *testing.T) {
	t.Parallel()
	h := func(cluster uint64, revision int64, term uint64) *etcdpb.ResponseHeader {
		return &etcdpb.ResponseHeader{ClusterId: cluster, Revision: revision, RaftTerm: term}
	}
	seen := h(1, 7, 3)
	for _, test := range []struct {
		name string
		now  *etcdpb.ResponseHeader
		same bool
	}{
		{"nothing happened", h(1, 7, 3), true},
		{"it went on", h(1, 9, 4), true},
		{"another cluster", h(2, 9, 4), false},
		{"a lower revision", h(1, 6, 3), false},
		{"a lower term", h(1, 9, 2), false},
	} {
		if err := goneBack(seen, test.now); (err == nil) != test.same || err != nil && !errors.Is(err, errReload) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func ranges(t *testing.T, texts ...string) []addrset.Range {
	t.Helper()
	var out []addrset.Range
	for _, text := range texts {
		rng, err := addrset.ParseRange(text)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, rng)
	}
	return out
}

func TestEtcdPutAndDelete(t *testing.T) {
	t.Parallel()
	m := newMember(t, spec.TLS{})
	f := m.follow()
	f.until("")
	r := Reader{}
	if _, err := r.Put(t.Context(), m.spec, ranges(t, "192.0.2.1", "192.0.2.0/30"), "plumber", 0); err != nil {
		t.Fatal(err)
	}
	revision, err := r.Put(t.Context(), m.spec, ranges(t, "192.0.2.2"), "", 90*time.Second+1)
	if err != nil {
		t.Fatal(err)
	}
	f.until("", "192.0.2.0/30", "192.0.2.1", "192.0.2.2")
	if e, _ := f.entry("192.0.2.1"); e.Comment != "plumber" {
		t.Errorf("comment %q", e.Comment)
	}
	if e, _ := f.entry("192.0.2.2"); time.Until(e.Expires) < 85*time.Second || time.Until(e.Expires) > 92*time.Second {
		t.Errorf("expires at %s", e.Expires)
	}
	f.wait(func() bool { return f.revision >= revision }, func() string { return fmt.Sprint("revision ", revision) })

	var missing *MissingError
	if _, _, err := r.Delete(t.Context(), m.spec, ranges(t, "192.0.2.1", "192.0.2.9"), false); !errors.As(err, &missing) || missing.Range.String() != "192.0.2.9" {
		t.Errorf("error %v, want 192.0.2.9 missing", err)
	}
	m.put("192.0.2.1/32", "the same in other words")
	n, revision, err := r.Delete(t.Context(), m.spec, ranges(t, "192.0.2.1", "192.0.2.9"), true)
	if n != 1 || err != nil {
		t.Errorf("%d removed, %v; want 1", n, err)
	}
	f.until("", "192.0.2.0/30", "192.0.2.2")
	f.wait(func() bool { return f.revision >= revision }, func() string { return fmt.Sprint("revision ", revision) })

	t.Log("more than one transaction, and more than one page")
	var many []addrset.Range
	for i := range etcdPage + 10 {
		many = append(many, ranges(t, fmt.Sprintf("10.0.%d.%d", i/256, i%256))...)
	}
	if _, err := r.Put(t.Context(), m.spec, many, "", 0); err != nil {
		t.Fatal(err)
	}
	f.wait(func() bool { return f.entries.Len() == len(many)+2 }, func() string { return "all" })
	other := m.follow()
	other.wait(func() bool { return other.entries.Len() == len(many)+2 }, func() string { return "all at once" })
	if n, _, err := r.Delete(t.Context(), m.spec, many, false); n != len(many) || err != nil {
		t.Errorf("%d removed, %v", n, err)
	}
	f.until("", "192.0.2.0/30", "192.0.2.2")
}

func TestEtcdWithUsersAndTLS(t *testing.T) {
	t.Parallel()
	files := certificates(t)
	m := newMember(t, files, "--client-cert-auth", "--trusted-ca-file", files.CA, "--cert-file", files.Cert, "--key-file", files.Key)
	m.put("192.0.2.1", "")
	m.auth()
	password := filepath.Join(t.TempDir(), "password")
	write(t, password, "wrong\n")
	m.spec.User, m.spec.PasswordFile = "nftfw", password
	f := m.follow()
	f.until("authentication failed")
	write(t, password, "password\n")
	f.until("", "192.0.2.1")
	if _, err := (Reader{}).Put(t.Context(), m.spec, ranges(t, "192.0.2.2"), "", time.Hour); err != nil {
		t.Error(err)
	}
	f.until("", "192.0.2.1", "192.0.2.2")

	for name, test := range map[string]struct {
		change func(s *spec.Etcd)
		want   string
	}{
		"no certificate of its own": {func(s *spec.Etcd) { s.TLS.Cert, s.TLS.Key = "", "" }, "certificate"},
		"another authority":         {func(s *spec.Etcd) { s.TLS.CA = certificates(t).CA }, "certificate"},
		"no such file":              {func(s *spec.Etcd) { s.TLS.CA = "/nowhere" }, "/nowhere does not exist"},
		"no key in the file":        {func(s *spec.Etcd) { s.TLS.Key = password }, "read "},
		"no password":               {func(s *spec.Etcd) { s.PasswordFile = "/nowhere" }, "/nowhere does not exist"},
		"a prefix of others":        {func(s *spec.Etcd) { s.Prefix = "/others/" }, "permission denied"},
		"nobody":                    {func(s *spec.Etcd) { s.User, s.PasswordFile = "", "" }, "permission denied"},
	} {
		s := m.spec
		test.change(&s)
		follow(t, Reader{Timeout: etcdTestTimeout}, spec.Source{Etcd: &s}, Last{}).until(test.want)
		t.Log(name)
	}
}

// certificates makes an authority and one certificate for both sides. etcd
// reads its users from names of certificates; this has none.
func certificates(t *testing.T) spec.TLS {
	t.Helper()
	return newAuthority(t)("", x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth)
}

// newAuthority makes an authority, and gives what makes certificates of it.
func newAuthority(t *testing.T) func(name string, usage ...x509.ExtKeyUsage) spec.TLS {
	t.Helper()
	dir := t.TempDir()
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	save := func(name, kind string, text []byte) string {
		path := filepath.Join(dir, name)
		write(t, path, string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: text})))
		return path
	}
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true,
		NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	caKey := key()
	ca, err := x509.CreateCertificate(rand.Reader, authority, authority, &caKey.PublicKey, caKey)
	if err != nil {
		t.Fatal(err)
	}
	files := spec.TLS{CA: save("ca.pem", "CERTIFICATE", ca)}
	number := int64(1)
	return func(name string, usage ...x509.ExtKeyUsage) spec.TLS {
		t.Helper()
		number++
		leaf := &x509.Certificate{
			SerialNumber: big.NewInt(number), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
			IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: usage,
		}
		leafKey := key()
		cert, err := x509.CreateCertificate(rand.Reader, leaf, authority, &leafKey.PublicKey, caKey)
		if err != nil {
			t.Fatal(err)
		}
		text, err := x509.MarshalECPrivateKey(leafKey)
		if err != nil {
			t.Fatal(err)
		}
		files.Cert = save(fmt.Sprintf("%d.pem", number), "CERTIFICATE", cert)
		files.Key = save(fmt.Sprintf("%d.key", number), "EC PRIVATE KEY", text)
		return files
	}
}

// A key that went is told of although nobody says how long another one lasts.
func TestEtcdTellsOfWhatWentWithoutLeases(t *testing.T) {
	var told []Update
	f := &etcdFollower{
		cluster: cluster{spec: spec.Etcd{Endpoints: []string{"http://127.0.0.1:1"}, Prefix: prefix}, timeout: time.Second},
		source:  "etcd:x", fleet: newFleet(), emit: func(u Update) { told = append(told, u) },
	}
	if err := f.dial(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer f.close()
	f.fleet.put("192.0.2.1", "", 0)
	f.fleet.changes(f.source, time.Now())
	f.fleet.put("192.0.2.2", "", 77) // with a lease that is due
	deleted := change{revision: 9, events: []*etcdpb.Event{{
		Type: etcdpb.Event_DELETE, Kv: &etcdpb.KeyValue{Key: []byte(prefix + "192.0.2.1"), ModRevision: 9},
	}}}
	if err := f.take(t.Context(), deleted, nil); err == nil {
		t.Error("a lease was asked for, and nobody was there")
	}
	if len(told) != 1 || len(told[0].Add) != 0 || len(told[0].Del) != 1 || told[0].Del[0].String() != "192.0.2.1" {
		t.Errorf("told of: %+v, want that 192.0.2.1 went", told)
	}
}
