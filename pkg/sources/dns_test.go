package sources

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/sources/spec"
)

// resolver is a name server of its own on the loopback.
type resolver struct {
	addr netip.AddrPort
	mu   sync.Mutex
	zone map[uint16]string // by type: records one a line, or an rcode
	tcp  int               // questions over TCP
	all  int
}

func newResolver(t *testing.T) *resolver {
	t.Helper()
	s := &resolver{zone: map[uint16]string{}}
	packets, stream := listenBoth(t)
	s.addr = packets.LocalAddr().(*net.UDPAddr).AddrPort()
	for _, server := range []*dns.Server{{PacketConn: packets, Handler: s}, {Listener: stream, Handler: s}} {
		go func() { _ = server.ActivateAndServe() }()
		t.Cleanup(func() { _ = server.Shutdown() })
	}
	return s
}

// listenBoth listens on one port over UDP and TCP. A port that is free for the
// one may be a connection's for the other.
func listenBoth(t *testing.T) (net.PacketConn, net.Listener) {
	t.Helper()
	var failed error
	for range 100 {
		packets, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		stream, err := net.Listen("tcp", packets.LocalAddr().String())
		if err == nil {
			return packets, stream
		}
		_ = packets.Close()
		failed = err
	}
	t.Fatal(failed)
	return nil, nil
}

func (s *resolver) answer(a, aaaa string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.zone[dns.TypeA], s.zone[dns.TypeAAAA] = a, aaaa
}

func (s *resolver) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	s.mu.Lock()
	records := s.zone[q.Question[0].Qtype]
	s.all++
	_, overTCP := w.RemoteAddr().(*net.TCPAddr)
	if overTCP {
		s.tcp++
	}
	s.mu.Unlock()
	m := new(dns.Msg)
	m.SetReply(q)
	for line := range strings.Lines(records) {
		switch line = strings.TrimSpace(line); line {
		case "truncated":
			m.Truncated = !overTCP
			if m.Truncated {
				_ = w.WriteMsg(m)
				return
			}
		case "other":
			m.Question[0].Name = "other.example.net."
		case "silence":
			return
		default:
			if code, ok := dns.StringToRcode[line]; ok {
				m.Rcode = code
				continue
			}
			record, err := dns.NewRR(line)
			if err != nil {
				panic(err)
			}
			if record.Header().Rrtype == dns.TypeSOA {
				m.Ns = append(m.Ns, record)
			} else {
				m.Answer = append(m.Answer, record)
			}
		}
	}
	_ = w.WriteMsg(m)
}

const (
	home4  = "home.example.net. 0 A 192.0.2.1\n"
	home6  = "home.example.net. 0 AAAA 2001:db8::1\n"
	noHome = "NXDOMAIN"
)

func nameSource(grace time.Duration) spec.Source {
	return spec.Source{DNS: &spec.DNS{Name: "home.example.net", MinTTL: quick, MaxTTL: time.Minute, Grace: grace}}
}

func TestNameIsFollowed(t *testing.T) {
	s := newResolver(t)
	r := Reader{Resolvers: []netip.AddrPort{s.addr}}
	s.answer("SERVFAIL", "SERVFAIL")
	f := follow(t, r, nameSource(time.Hour), Last{})
	f.until("SERVFAIL")
	s.answer(home4, home6)
	f.until("", "192.0.2.1", "2001:db8::1")

	t.Log("an answer that goes is kept for a while, one that comes back for good")
	s.answer("home.example.net. 0 A 192.0.2.2\n", home6)
	f.until("", "192.0.2.1", "192.0.2.2", "2001:db8::1")
	for _, e := range f.entries.Entries() {
		left := time.Until(e.Expires)
		if gone := e.Range.String() == "192.0.2.1"; gone && (left > time.Hour || left < 59*time.Minute) || !gone && !e.Expires.IsZero() {
			t.Errorf("%s expires at %s", e.Range, e.Expires)
		}
	}
	s.answer(home4, home6)
	f.wait(func() bool {
		e, ok := f.entries.Lookup(f.entries.Entries()[0].Range, "dns:home.example.net")
		return ok && e.Range.String() == "192.0.2.1" && e.Expires.IsZero()
	}, func() string { return "192.0.2.1 for good" })

	for _, failure := range []string{"SERVFAIL", "REFUSED", "other"} {
		t.Log("a resolver that fails changes nothing:", failure)
		s.answer(failure, failure)
		f.wait(func() bool { return f.last.Err != nil }, func() string { return "an error" })
		f.wait(func() bool { return slices.Equal(f.texts(), []string{"192.0.2.1", "192.0.2.2", "2001:db8::1"}) }, func() string { return "all" })
		s.answer(home4, home6)
		f.until("", "192.0.2.1", "192.0.2.2", "2001:db8::1")
	}
}

func TestNameFamiliesFailApart(t *testing.T) {
	s := newResolver(t)
	s.answer(home4, home6)
	f := follow(t, Reader{Resolvers: []netip.AddrPort{s.addr}}, nameSource(0), Last{})
	f.until("", "192.0.2.1", "2001:db8::1")
	s.answer("home.example.net. 0 A 192.0.2.2\n", "SERVFAIL")
	f.until("AAAA of home.example.net", "192.0.2.2", "2001:db8::1")
	s.answer("home.example.net. 0 A 192.0.2.2\n", "") // no such records
	f.until("", "192.0.2.2")
	s.answer(noHome, noHome)
	f.until("home.example.net has no addresses")
}

// What goes on failing is told of as one failure, in the same words.
func TestNameGoesOnFailing(t *testing.T) {
	for name, answers := range map[string][2]string{
		"one family":   {home4, "SERVFAIL"},
		"no addresses": {noHome, noHome},
	} {
		s := newResolver(t)
		s.answer(home4, home6)
		f := follow(t, Reader{Resolvers: []netip.AddrPort{s.addr}}, nameSource(time.Hour), Last{})
		f.until("", "192.0.2.1", "2001:db8::1")
		s.answer(answers[0], answers[1])
		f.wait(func() bool { return f.errs > 0 }, func() string { return "an error" })
		f.mu.Lock()
		wholes := f.wholes
		f.mu.Unlock()
		f.wait(func() bool { return f.errs > 2 }, func() string { return "more errors" })
		if f.stop(); f.wholes != wholes {
			t.Errorf("%s: read well %d times in between", name, f.wholes-wholes)
		}
	}
	r := Reader{Resolvers: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1")}}
	_, first := r.lookup(t.Context(), "home.example.net", dns.TypeA)
	if _, again := r.lookup(t.Context(), "home.example.net", dns.TypeA); first == nil || again == nil || first.Error() != again.Error() {
		t.Errorf("%v, then %v", first, again)
	}
}

// After the grace period an address goes even where nobody follows any more:
// the kernel does it, by the expiry.
func TestNameGraceEnds(t *testing.T) {
	s := newResolver(t)
	s.answer(home4, "")
	f := follow(t, Reader{Resolvers: []netip.AddrPort{s.addr}}, nameSource(300*time.Millisecond), Last{})
	f.until("", "192.0.2.1")
	s.answer(noHome, noHome)
	f.until("no addresses", "192.0.2.1")
	f.until("no addresses")
}

// What a restart finds saved is kept, and let go of as if it had gone on.
func TestNameBeginsWithTheLastAnswer(t *testing.T) {
	s := newResolver(t)
	s.answer("SERVFAIL", "SERVFAIL")
	rng, _ := addrset.ParseRange("192.0.2.7")
	last := Last{Entries: addrset.New(addrset.Entry{Range: rng, Source: "dns:home.example.net"})}
	f := follow(t, Reader{Resolvers: []netip.AddrPort{s.addr}}, nameSource(time.Hour), last)
	f.until("SERVFAIL", "192.0.2.7")
	s.answer(home4, "")
	f.until("", "192.0.2.1", "192.0.2.7")
	if e := f.entries.Entries()[1]; e.Expires.IsZero() {
		t.Errorf("%s is kept for good", e.Range)
	}
}

func TestNameAnswers(t *testing.T) {
	silent := newResolver(t)
	silent.answer("REFUSED", "REFUSED")
	for _, test := range []struct {
		name    string
		a       string
		want    string
		wantTTL time.Duration
		err     string
	}{
		{"one", "home.example.net. 300 A 192.0.2.1", "192.0.2.1", 300 * time.Second, ""},
		{"several", "home.example.net. 300 A 192.0.2.1\nHOME.example.net. 60 A 192.0.2.2", "192.0.2.1 192.0.2.2", time.Minute, ""},
		{"aliases", "home.example.net. 9 CNAME a.example.com.\na.example.com. 5 CNAME b.example.com.\nb.example.com. 7 A 192.0.2.3", "192.0.2.3", 5 * time.Second, ""},
		{"aliases in a ring", "home.example.net. 9 CNAME a.example.com.\na.example.com. 5 CNAME home.example.net.", "", 5 * time.Second, ""},
		{"records of others", "other.example.net. 9 A 192.0.2.9\nhome.example.net. 30 A 192.0.2.1\nhome.example.net. 1 AAAA 2001:db8::1", "192.0.2.1", 30 * time.Second, ""},
		{"no such name", "NXDOMAIN\nexample.net. 900 SOA ns. m. 1 2 3 4 60", "", time.Minute, ""},
		{"no such records", "example.net. 20 SOA ns. m. 1 2 3 4 60", "", 20 * time.Second, ""},
		{"too long for a datagram", "truncated\nhome.example.net. 300 A 192.0.2.1", "192.0.2.1", 300 * time.Second, ""},
		{"refused", "REFUSED", "", 0, "answered REFUSED"},
		{"an answer to another question", "other\nhome.example.net. 300 A 192.0.2.1", "", 0, "another question"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newResolver(t)
			s.answer(test.a, "")
			r := Reader{Resolvers: []netip.AddrPort{silent.addr, s.addr}}
			got, err := r.lookup(t.Context(), "home.example.net", dns.TypeA)
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Errorf("error %v, want one about %q", err, test.err)
				}
				return
			}
			var addrs []string
			for _, a := range got.addrs {
				addrs = append(addrs, a.String())
			}
			if err != nil || strings.Join(addrs, " ") != test.want || got.ttl != test.wantTTL {
				t.Errorf("%v for %s, %v; want %s for %s", addrs, got.ttl, err, test.want, test.wantTTL)
			}
		})
	}
}

// The time to the next question is that of the answer, within bounds.
func TestNameTTLBounds(t *testing.T) {
	for _, test := range []struct {
		a    string
		want time.Duration
	}{
		{"home.example.net. 300 A 192.0.2.1", 300 * time.Second},
		{"home.example.net. 0 A 192.0.2.1", 30 * time.Second},
		{"home.example.net. 86400 A 192.0.2.1", time.Hour},
	} {
		s := newResolver(t)
		s.answer(test.a, "home.example.net. 7200 AAAA 2001:db8::1")
		f := &nameFollower{
			spec:   spec.DNS{Name: "home.example.net", MinTTL: 30 * time.Second, MaxTTL: time.Hour},
			reader: Reader{Resolvers: []netip.AddrPort{s.addr}}, known: map[netip.Addr]time.Time{},
		}
		got, err := f.ask(t.Context(), func(Update) {})
		if err != nil || got != test.want {
			t.Errorf("%s: asked again after %s, %v; want %s", test.a, got, err, test.want)
		}
	}
}
