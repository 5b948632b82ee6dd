package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nftfw/nftfw/integration/lab"
)

// counted is what nftfw ports --json says of numbers.
type counted struct {
	Mode     string
	Enforced bool
	Ports    []struct {
		Container string
		HostIP    string `json:"host_ip"`
		HostPort  uint16 `json:"host_port"`
		Accepted  *uint64
		Refused   *uint64
	}
	Refused  map[string]uint64
	Observed []struct {
		Source, Container, To, Proto string
		Port                         uint16
		Refused                      uint64
	}
}

func (s *set) counted() counted {
	s.t.Helper()
	var c counted
	if err := json.Unmarshal([]byte(s.nftfw("ports", "--json")), &c); err != nil {
		s.t.Fatal(err)
	}
	return c
}

// port gives what was let in and refused at a host port, over both families.
func (c counted) port(t testing.TB, port uint16) (accepted, refused uint64) {
	t.Helper()
	found := false
	for _, p := range c.Ports {
		if p.HostPort != port {
			continue
		}
		if p.Accepted == nil || p.Refused == nil {
			t.Fatalf("port %d is not counted", port)
		}
		found = true
		accepted, refused = accepted+*p.Accepted, refused+*p.Refused
	}
	if !found {
		t.Fatalf("port %d is not listed", port)
	}
	return accepted, refused
}

const countPolicy = `version: 1
mode: %s
sets: {trusted: [198.18.0.10, "fd00:18::10"], blocked: [198.18.0.77]}
host: {allow: [{ports: [22/tcp], from: any}]}
containers: {default: %s, rules: [{match: {name: open}, expose: {"*": any}}]}
`

// Each published port has its numbers, on the way through DNAT and through
// docker-proxy, and packets of an established connection add nothing.
func TestPortsCount(t *testing.T) {
	s := scene(t, fmt.Sprintf(countPolicy, "enforce", "trusted"))
	s.run("web", "-p", "8080:80", "-p", "8081:80/udp")
	s.run("open", "-p", "8090:80")
	s.service("host", "tcp:9100")
	s.open(s.permitted.Namespace, "web", hostPorts("8080", "8081/udp"))
	s.open(s.stranger.Namespace, "open", hostPorts("8090"))

	before := s.counted()
	accepted, refused := before.port(t, 8080)
	if accepted < 2 || refused != 0 {
		t.Errorf("8080: accepted %d, refused %d after connections over IPv4 and IPv6", accepted, refused)
	}
	if n, no := before.port(t, 8081); n < 2 || no != 0 {
		t.Errorf("8081/udp: accepted %d, refused %d", n, no)
	}

	conn, err := s.permitted.Dial(s.ctx(), "tcp", hostPorts("8080")[0].To, lab.Probe{}.From)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for range 20 {
		if _, err := conn.Write([]byte("a line of a connection that stands\n")); err != nil {
			t.Fatal(err)
		}
	}
	if n, _ := s.counted().port(t, 8080); n != accepted+1 {
		t.Errorf("a connection and its packets count %d times", n-accepted)
	}

	s.closed(s.stranger.Namespace, hostPorts("8080", "9100"))
	after := s.counted()
	if n, no := after.port(t, 8080); n != accepted+1 || no < 2 {
		t.Errorf("8080: accepted %d, refused %d after %d and two attempts of a stranger", n, no, accepted+1)
	}
	if _, no := after.port(t, 8090); no != 0 {
		t.Errorf("8090 refused %d, and is open to all", no)
	}
	s.closed(s.routed.Namespace, addrPorts(lab.HostV4, "8080"))
	after = s.counted()
	for _, why := range []string{"from", "host", "blocked"} {
		if after.Refused[why] <= before.Refused[why] {
			t.Errorf("refused for reason %q: %d, before %d", why, after.Refused[why], before.Refused[why])
		}
	}

	// What does not touch the port leaves its numbers alone; another FROM
	// begins anew.
	s.run("other", "-p", "8070:80")
	s.open(s.permitted.Namespace, "other", hostPorts("8070"))
	s.nftfw("sets", "add", "trusted", "203.0.113.9")
	if n, _ := s.counted().port(t, 8080); n != accepted+1 {
		t.Errorf("8080: accepted %d after other things changed, want %d", n, accepted+1)
	}
	if err := s.fw.WritePolicy(fmt.Sprintf(countPolicy, "enforce", "any")); err != nil {
		t.Fatal(err)
	}
	s.nftfw("apply")
	if n, no := s.counted().port(t, 8080); n != 0 || no != 0 {
		t.Errorf("8080 with another FROM begins with %d and %d", n, no)
	}
	if text := s.nftfw("ports"); !strings.Contains(text, "ACCEPTED") || !strings.Contains(text, "not in FROM") {
		t.Errorf("ports:\n%s", text)
	}
}

// observing gives a test nftfw in observe mode, with Docker's word.
func observing(t *testing.T) *set {
	t.Helper()
	s := bare(t)
	s.prepare(fmt.Sprintf(countPolicy, "observe", "trusted"))
	if err := s.fw.Launch(s.ctx()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(s.ctx(), 20*time.Second)
	defer cancel()
	err := lab.Poll(ctx, 50*time.Millisecond, func() error {
		status, err := s.fw.Status(ctx)
		if err == nil && (!status.Docker.Connected || status.Mode != "observe") {
			err = fmt.Errorf("status %+v", status)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// In observe mode everything gets in, and what would not is counted, for each
// port and each source.
func TestObserveCounts(t *testing.T) {
	s := observing(t)
	web := s.run("web", "-p", "8080:80")
	s.service("host", "tcp:9100")
	s.open(s.stranger.Namespace, "web", addrPorts(lab.HostV4, "8080"))
	s.open(s.stranger.Namespace, "host", addrPorts(lab.HostV4, "9100"))
	s.open(s.routed.Namespace, "web", addrPorts(lab.HostV4, "8080"))

	got := s.counted()
	if got.Enforced || got.Mode != "observe" {
		t.Errorf("enforced %v, mode %s", got.Enforced, got.Mode)
	}
	if n, no := got.port(t, 8080); no == 0 || n != 0 {
		t.Errorf("8080: accepted %d, would be refused %d", n, no)
	}
	want := map[string]bool{
		fmt.Sprintf("%s web %s %d", s.stranger.V4, web.Addr4("bridge"), 80): false,
		fmt.Sprintf("%s  %s %d", s.stranger.V4, lab.HostV4, 9100):           false,
		fmt.Sprintf("%s web %s %d", s.routed.V4, lab.HostV4, 8080):          false, // blocked, before DNAT
	}
	for _, o := range got.Observed {
		want[fmt.Sprintf("%s %s %s %d", o.Source, o.Container, o.To, o.Port)] = true
	}
	for line, seen := range want {
		if !seen {
			t.Errorf("nobody is seen to be refused as %q: %+v", line, got.Observed)
		}
	}
	text := s.nftfw("ports")
	for _, words := range []string{"WOULD BE REFUSED", "who would have been refused", s.stranger.V4.String(), "closes 2 of 2"} {
		if !strings.Contains(text, words) {
			t.Errorf("ports does not say %q:\n%s", words, text)
		}
	}
}
