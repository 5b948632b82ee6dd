package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
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

// watched is one line of nftfw watch --json.
type watched struct {
	Time                                            time.Time
	Verdict, Reason, Why, Source, Container, To, In string
	Proto                                           string
	DecidedBy                                       string `json:"decided_by"`
	Port                                            uint16
	Missed                                          uint64
}

// view collects what nftfw watch prints.
type view struct {
	t     testing.TB
	lines chan watched
	seen  []watched
}

// watch runs nftfw watch until the test ends.
func (s *set) watch(args ...string) *view {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(s.ctx()))
	line := s.fw.CommandLine(append([]string{"watch", "--json"}, args...)...)
	cmd := s.Host.Command(ctx, line[0], line[1:]...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	out, err := cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	v := &view{t: s.t, lines: make(chan watched, 10000)}
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer close(v.lines)
		for lines := json.NewDecoder(out); ; {
			var w watched
			if lines.Decode(&w) != nil {
				return
			}
			v.lines <- w
		}
	}()
	s.t.Cleanup(func() {
		cancel()
		<-read
		// Told to end, it exits with 0: then the error is that of the context.
		if err := cmd.Wait(); err != nil && !errors.Is(err, context.Canceled) {
			s.t.Errorf("watch ends with %v", err)
		}
	})
	return v
}

// until gives a line that ok likes, one that has been shown or one that comes.
func (v *view) until(what string, ok func(watched) bool) watched {
	v.t.Helper()
	if i := slices.IndexFunc(v.seen, ok); i >= 0 {
		return v.seen[i]
	}
	deadline := time.After(20 * time.Second)
	for {
		select {
		case w, more := <-v.lines:
			if !more {
				v.t.Fatalf("watch ended before it showed %s: %+v", what, v.seen)
			}
			v.seen = append(v.seen, w)
			if ok(w) {
				return w
			}
		case <-deadline:
			v.t.Fatalf("watch does not show %s: %+v", what, v.seen)
		}
	}
}

// ready waits until what is refused is shown: watch does not say when it
// begins to watch.
func (v *view) ready(s *set) {
	v.t.Helper()
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				s.stranger.Probe(s.ctx(), lab.Probe{Network: "tcp", To: netip.AddrPortFrom(lab.HostV4, 9999), Timeout: 200 * time.Millisecond})
			}
		}
	}()
	v.until("anything", func(w watched) bool { return w.Port == 9999 })
	close(stop)
	<-done
}

func TestWatch(t *testing.T) {
	s := scene(t, fmt.Sprintf(countPolicy, "enforce", "trusted"))
	web := s.run("web", "-p", "8080:80")
	s.run("mute", "-p", "8085:80", "--label", "nftfw.egress=none")
	s.open(s.permitted.Namespace, "web", hostPorts("8080"))
	v := s.watch()
	all := s.watch("--all")
	v.ready(s)
	all.ready(s)

	s.closed(s.stranger.Namespace, hostPorts("8080", "9100"))
	s.closed(s.routed.Namespace, addrPorts(lab.HostV4, "8080"))
	s.closed(s.stranger.Namespace, addrPorts(lab.HostV4, "9101/udp"))
	for _, want := range []watched{
		{Reason: "from", Container: "web", To: web.Addr4("bridge").String(), Port: 80, Proto: "tcp", Source: s.stranger.V4.String(), DecidedBy: "containers.default"},
		{Reason: "from", Container: "web", To: lab.HostV6.String(), Port: 8080, Proto: "tcp", Source: s.stranger.V6.String(), DecidedBy: "containers.default"},
		{Reason: "host", To: lab.HostV4.String(), Port: 9100, Proto: "tcp", Source: s.stranger.V4.String(), DecidedBy: "host.default"},
		{Reason: "host", To: lab.HostV4.String(), Port: 9101, Proto: "udp", Source: s.stranger.V4.String(), DecidedBy: "host.default"},
		{Reason: "blocked", Container: "web", To: lab.HostV4.String(), Port: 8080, Proto: "tcp", Source: s.routed.V4.String(), DecidedBy: s.fw.PolicyPath() + ":3"},
	} {
		for name, view := range map[string]*view{"watch": v, "watch --all": all} {
			got := view.until(fmt.Sprintf("%s: %+v", name, want), func(w watched) bool {
				return w.Verdict == "refused" && w.Reason == want.Reason && w.Source == want.Source && w.Port == want.Port
			})
			if got.Container != want.Container || got.To != want.To || got.Proto != want.Proto || got.DecidedBy != want.DecidedBy || got.In != "eth0" || got.Why == "" {
				t.Errorf("%s shows %+v, want %+v on eth0", name, got, want)
			}
		}
	}
	t.Log("accepted ones, where asked for")
	s.open(s.permitted.Namespace, "web", addrPorts(lab.HostV4, "8080"))
	got := all.until("an accepted connection", func(w watched) bool { return w.Verdict == "accepted" && w.Source == s.permitted.V4.String() })
	if got.Container != "web" || got.Port != 80 || got.To != web.Addr4("bridge").String() {
		t.Errorf("accepted: %+v", got)
	}
	for _, w := range v.seen {
		if w.Verdict == "accepted" {
			t.Errorf("watch without --all shows %+v", w)
		}
	}
	if log := s.fw.Log(); !strings.Contains(log, "reason=from source="+s.stranger.V4.String()+" container=web") {
		t.Error("the daemon's log does not tell of what is refused")
	}
}

// What the limit keeps back is counted: the log of a flood says how long it was.
func TestWatchTellsWhatItDoesNotShow(t *testing.T) {
	s := scene(t, "version: 1\nlog: {rate: 5/minute, drops: true}\nhost: {allow: [{ports: [22/tcp], from: any}]}\n")
	v := s.watch()
	v.ready(s)
	conn, err := s.stranger.Dial(s.ctx(), "udp", netip.AddrPortFrom(lab.HostV4, 9102), netip.Addr{})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const sent = 500
	for range sent {
		if _, err := conn.Write([]byte("flood")); err != nil {
			t.Fatal(err)
		}
	}
	shown, missed := 0, uint64(0)
	v.until("how much is not shown", func(w watched) bool {
		if w.Port == 9102 {
			shown++
		}
		missed += w.Missed
		return shown+int(missed) >= sent
	})
	if shown > 10 {
		t.Errorf("%d packets are shown, 5 in a minute are asked for", shown)
	}
	s.eventually(answerWithin, func() error {
		if !strings.Contains(s.fw.Log(), "refused packets not logged") {
			return errors.New("the daemon's log does not tell how many are missing")
		}
		return nil
	})
}

func TestWatchObserves(t *testing.T) {
	s := observing(t)
	s.run("web", "-p", "8080:80")
	v := s.watch()
	v.ready(s)
	s.open(s.stranger.Namespace, "web", addrPorts(lab.HostV4, "8080"))
	v.until("what would be refused", func(w watched) bool {
		return w.Verdict == "would be refused" && w.Container == "web" && w.Reason == "from"
	})
}

func TestWatchNeedsTheDaemon(t *testing.T) {
	s := bare(t)
	s.prepare("version: 1\n")
	if o := s.fw.Exec(s.ctx(), "watch"); o.Status != 3 {
		t.Errorf("without a daemon: %s", o)
	}
}

// Before the first apply plan and ports say what will close; later plan says
// what a change means, and who asks for it.
func TestPlanTellsWhatCloses(t *testing.T) {
	s := bare(t)
	s.run("web", "-p", "8080:80", "--label", "com.docker.compose.project=shop", "--label", "com.docker.compose.service=front")
	s.run("open", "-p", "8090:80")
	s.prepare(fmt.Sprintf(countPolicy, "observe", "trusted"))
	says := func(what string, o lab.Output, status int, words ...string) {
		t.Helper()
		if o.Status != status {
			t.Errorf("%s: %s, want exit status %d", what, o, status)
		}
		for _, w := range words {
			if !strings.Contains(o.Stdout, w) {
				t.Errorf("%s does not say %q:\n%s", what, w, o.Stdout)
			}
		}
	}
	plan := s.fw.Exec(s.ctx(), "plan")
	says("the first plan", plan, 4, "+ table inet nftfw", "mode: observe refuses nothing", "closes", "shop/front", "trusted")
	if strings.Contains(plan.Stdout, "0.0.0.0:8090") {
		t.Errorf("a port that stays open is listed:\n%s", plan.Stdout)
	}
	says("ports before the first apply", s.fw.Exec(s.ctx(), "ports"), 0, "observe refuses nothing", "closes 2 of 4", "shop/front")

	if err := s.fw.WritePolicy(fmt.Sprintf(countPolicy, "enforce", "trusted")); err != nil {
		t.Fatal(err)
	}
	says("the plan to enforce", s.fw.Exec(s.ctx(), "plan"), 4, "what that means for published ports", "closes")
	if err := s.fw.Start(s.ctx()); err != nil {
		t.Fatal(err)
	}
	s.open(s.stranger.Namespace, "open", hostPorts("8090"))
	says("a plan of nothing", s.fw.Exec(s.ctx(), "plan"), 0)
	if err := s.fw.WritePolicy(fmt.Sprintf(countPolicy, "enforce", "any")); err != nil {
		t.Fatal(err)
	}
	says("a plan to open", s.fw.Exec(s.ctx(), "plan"), 4,
		"  # containers.default, for container web", "- element published4", "+ element published4", "opens", "FROM THEN")
	var change struct {
		Ports []struct {
			Container string
			Before    []string
			From      []string
		}
		Plan []struct{ Line, Origin, Container string }
	}
	o := s.fw.Exec(s.ctx(), "apply", "--dry-run", "--json")
	if err := json.Unmarshal([]byte(o.Stdout), &change); err != nil {
		t.Fatalf("%v: %s", err, o)
	}
	for _, p := range change.Ports {
		if p.Container != "web" || !slices.Equal(p.Before, []string{"trusted"}) || !slices.Equal(p.From, []string{"any"}) {
			t.Errorf("changes %+v", p)
		}
	}
	if len(change.Ports) != 2 || len(change.Plan) == 0 || change.Plan[0].Container != "web" {
		t.Errorf("dry run: %+v", change)
	}
}
