package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nftfw/nftfw/integration/lab"
)

// How much TestDifferential does. With $NFTFW_DIFFERENTIAL, a time such as
// 5m, it goes on with new containers until that has passed.
const (
	differentialPackets  = 240 // asked under each policy
	differentialPool     = 400 // from which they are taken
	differentialPolicies = 3   // before and after the containers swap their addresses
	differentialShrink   = 90 * time.Second
)

// closedAfter is how long silence is waited for; patience is how long it is
// where it would be a mistake.
const (
	closedAfter = 300 * time.Millisecond
	patience    = 700 * time.Millisecond
)

// fixedSeed makes what the tests ask by themselves the same every time.
const fixedSeed = 20261121

// Whatever the policy, the containers and the packet: what explain says is
// what the kernel does, and where the manual's plain words suffice (see
// expected) it is what they say: explain evaluates the rules in force, and
// would find a wrong rule right. Where Docker itself closes a way, explain may call it
// open, for it speaks of nftfw.
//
// A run of the tests always asks the same; $NFTFW_DIFFERENTIAL (see make fuzz)
// asks something new. $NFTFW_SEED repeats the policies, containers and packets of a run, though not
// the addresses that Docker hands out.
func TestDifferential(t *testing.T) {
	needRoot(t)
	seed := uint64(fixedSeed)
	if os.Getenv("NFTFW_DIFFERENTIAL") != "" {
		seed = rand.Uint64()
	}
	if text := os.Getenv("NFTFW_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("NFTFW_SEED: %v", err)
		}
	}
	var until time.Time
	if text := os.Getenv("NFTFW_DIFFERENTIAL"); text != "" {
		more, err := time.ParseDuration(text)
		if err != nil {
			t.Fatalf("NFTFW_DIFFERENTIAL: %v", err)
		}
		until = time.Now().Add(more)
	}
	for i, engine := range []struct {
		name  string
		flags []string
	}{{"proxied IPv6", nil}, {"forwarded IPv6", dualStack}} {
		t.Run(engine.name, func(t *testing.T) {
			t.Logf("repeat with NFTFW_SEED=%d", seed)
			d := newDifferential(bare(t, engine.flags...), maker{rand.New(rand.NewPCG(seed, uint64(i)))})
			d.generation()
			for !t.Failed() && time.Now().Before(until) {
				d.generation()
			}
			t.Logf("%d packets under %d policies: %d let through, %d refused, %d judged by the manual as well; Docker itself closed %d of the ways", d.asked, d.policies, d.passed, d.refused, d.foretold, d.mute)
			if strings.Contains(d.fw.Log(), "connections not cut") {
				t.Error("the daemon could not cut connections: see its log")
			}
			if d.asked > 0 && (d.passed < d.asked/10 || d.refused < d.asked/10) {
				t.Error("too few packets of one kind: this run has tested little")
			}
		})
	}
}

// differential is the state of one differential test.
type differential struct {
	*set
	maker
	daemon  *http.Client
	nodes   map[string]lab.Namespace
	now     world          // what is in place
	made    map[string]box // the containers that were started
	running map[string]*lab.Container
	touched map[string]bool // sets with entries that were added by command

	asked, policies, passed, refused, mute, foretold int
}

func newDifferential(s *set, m maker) *differential {
	d := &differential{set: s, maker: m, made: map[string]box{}, running: map[string]*lab.Container{}, touched: map[string]bool{}}
	s.lend(s.Host, hostSecond)
	s.lend(s.stranger, lent...)
	aside := s.outsider("side0")
	s.ip(s.Host.Namespace, []string{
		"addr add " + asideHost.v4.String() + "/24 dev side0", "addr add " + asideHost.v6.String() + "/64 dev side0 nodad", "link set side0 up",
	}, nil)
	s.ip(aside.Namespace, []string{
		"addr add " + asideNode.v4.String() + "/24 dev eth0", "addr add " + asideNode.v6.String() + "/64 dev eth0 nodad", "link set eth0 up",
		"route add default via " + asideHost.v4.String(), "route add default via " + asideHost.v6.String(),
	}, nil)
	s.ip(s.routed.Namespace,
		[]string{"route add 198.19.5.0/24 via " + lab.HostV4.String(), "route add fd00:19:5::/64 via " + lab.HostV6.String()},
		[]string{"route del 198.19.5.0/24", "route del fd00:19:5::/64"})
	s.network("red", "172.30.0.0/24", "fd00:d0c:1::/64", "-o", "com.docker.network.bridge.name=brred")
	s.docker("network", "create", "--subnet", "172.30.1.0/24", "-o", "com.docker.network.bridge.name=brblue", "blue")
	s.service("host", servicePorts...)
	d.nodes = map[string]lab.Namespace{"aside": aside.Namespace, "loopback": s.loopback.Namespace}
	for _, n := range []*lab.Node{s.permitted, s.stranger, s.routed} {
		d.nodes[n.Name] = n.Namespace
	}
	for _, n := range []*lab.Node{s.permitted, s.routed, aside} {
		svc, err := s.Service(s.ctx(), n, built.echo, n.Name, outsidePorts...)
		if err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(svc.Stop)
	}
	s.prepare(policyText(nil))
	var dial net.Dialer
	d.daemon = &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: 16,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dial.DialContext(ctx, "unix", s.fw.SocketPath())
		},
	}}
	return d
}

// generation tests one set of containers under several policies, before and
// after they have swapped their addresses.
func (d *differential) generation() {
	d.t.Helper()
	d.now = world{containers: d.containers()}
	d.must(d.realize())
	d.rounds()
	if !d.t.Failed() {
		d.must(d.swap())
		d.rounds()
	}
	if !d.t.Failed() {
		d.docker(append([]string{"rm", "-f"}, d.names()...)...)
		clear(d.made)
	}
}

func (d *differential) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

// rounds asks packets under some policies, and again after changes of sets.
func (d *differential) rounds() {
	d.t.Helper()
	pool := d.questions(d.now, differentialPool)
	d.must(d.disarm())
	bare := d.through(pool, closedAfter)
	var worth []question // those of which Docker alone lets something through
	for i, q := range pool {
		q.server = bare[i].said.Server
		if q.shut = !bare[i].passed; q.shut {
			d.mute++
		}
		if !q.shut || d.chance(10) {
			worth = append(worth, q)
		}
	}
	for range differentialPolicies {
		d.now.policy, d.now.runtime = d.policy(), nil
		d.must(d.enforce())
		d.policies++
		d.round(worth)
		if d.t.Failed() {
			return
		}
		for range 2 {
			d.must(d.changeSets())
			d.round(worth)
			if d.t.Failed() {
				return
			}
		}
	}
}

// round asks packets, and reports where the kernel and explain disagree.
func (d *differential) round(pool []question) {
	d.t.Helper()
	order := d.Perm(len(pool))
	questions := make([]question, 0, differentialPackets/3)
	for _, i := range order[:min(len(order), differentialPackets/3)] {
		if pool[i].server == "two" && d.now.blocksContainers() {
			continue // no engine says to which of its addresses, of which one is blocked
		}
		questions = append(questions, pool[i])
	}
	outcomes := d.through(questions, closedAfter)
	said := d.explained(questions)
	var doubtful []question
	for i, q := range questions {
		d.asked++
		if outcomes[i].passed {
			d.passed++
		} else {
			d.refused++
		}
		if _, known := d.now.expected(q); known {
			d.foretold++
		}
		if !outcomes[i].passed && q.shut {
			continue
		}
		if agree(outcomes[i], said[i]) != nil || d.now.asExpected(q, outcomes[i]) != nil {
			doubtful = append(doubtful, q)
		}
	}
	var wrong []question
	for _, q := range doubtful {
		if err := d.disagreement(q, 3); err != nil {
			d.t.Errorf("%s: %v", q, err)
			wrong = append(wrong, q)
		}
	}
	if len(wrong) > 0 {
		d.report(wrong[0])
	}
}

// outcome is what became of a packet.
type outcome struct {
	sent   bool      // the question means something now
	probe  lab.Probe // as it was sent
	passed bool      // nothing dropped it on its way
	said   lab.Result
}

// through sends packets, many at a time.
func (d *differential) through(questions []question, timeout time.Duration) []outcome {
	out := make([]outcome, len(questions))
	d.eachOf(len(questions), 64, func(i int) { out[i] = d.send(questions[i], timeout) })
	return out
}

// eachOf calls fn for the numbers below n, up to width at once.
func (d *differential) eachOf(n, width int, fn func(int)) {
	var wg sync.WaitGroup
	turn := make(chan struct{}, width)
	for i := range n {
		turn <- struct{}{}
		wg.Go(func() {
			defer func() { <-turn }()
			fn(i)
		})
	}
	wg.Wait()
}

// send sends one packet. What answers with a reset or an ICMP port unreachable
// was reached as well: nftfw drops, and so does Docker.
func (d *differential) send(q question, timeout time.Duration) outcome {
	ns, p, ok := d.resolve(q)
	if !ok {
		return outcome{}
	}
	p.Timeout = timeout
	r := ns.Probe(d.ctx(), p)
	return outcome{sent: true, probe: p, said: r, passed: r.Reached() || errors.Is(r.Err, syscall.ECONNREFUSED)}
}

// resolve finds the addresses that stand behind a question's names.
func (d *differential) resolve(q question) (lab.Namespace, lab.Probe, bool) {
	to := q.to
	if q.toName != "" {
		c := d.running[q.toName]
		if c == nil {
			return lab.Namespace{}, lab.Probe{}, false
		}
		if to = c.Addr4(q.network); q.six {
			to = c.Addr6(q.network)
		}
	}
	if !to.IsValid() {
		return lab.Namespace{}, lab.Probe{}, false
	}
	p := lab.Probe{Network: q.proto, To: netip.AddrPortFrom(to, q.port), From: q.source.v4}
	if to.Is6() {
		p.From = q.source.v6
	}
	ns, isNode := d.nodes[q.from]
	if !isNode {
		c := d.running[q.from]
		if c == nil {
			return lab.Namespace{}, lab.Probe{}, false
		}
		ns = c.Namespace
		// Which address a container sends from is its routes' affair. A
		// socket that is connected tells, and sends nothing.
		probe, err := ns.Dial(d.ctx(), "udp", p.To, netip.Addr{})
		if err != nil {
			return lab.Namespace{}, lab.Probe{}, false
		}
		defer probe.Close()
		p.From = probe.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
	}
	return ns, p, true
}

// explanation is the answer of explain --json.
type explanation struct {
	Verdict   string `json:"verdict"`
	Container string `json:"container"`
	DecidedBy string `json:"decided_by"`
	Steps     []struct{ Where, What, Result string }
	err       error
}

// String returns the explanation as the command prints it, more or less.
func (e explanation) String() string {
	if e.err != nil {
		return e.err.Error()
	}
	var b strings.Builder
	for _, s := range e.Steps {
		fmt.Fprintf(&b, "  %s: %s => %s\n", s.Where, s.What, s.Result)
	}
	fmt.Fprintf(&b, "  container %q, decided by %s\n  verdict: %s", e.Container, e.DecidedBy, e.Verdict)
	return b.String()
}

func (d *differential) explained(questions []question) []explanation {
	out := make([]explanation, len(questions))
	d.eachOf(len(questions), 4, func(i int) { out[i] = d.explain(questions[i]) })
	return out
}

// explain asks the daemon what nftfw explain asks it, on the same socket.
func (d *differential) explain(q question) (e explanation) {
	_, p, ok := d.resolve(q)
	if !ok {
		return explanation{err: errors.New("nobody to ask about")}
	}
	proto := map[string]int{"tcp": 6, "udp": 17}[p.Network]
	body, err := json.Marshal(map[string]any{"from": p.From.String(), "to": p.To.Addr().String(), "port": p.To.Port(), "proto": proto})
	if err != nil {
		return explanation{err: err}
	}
	req, err := http.NewRequestWithContext(d.ctx(), http.MethodPost, "http://nftfw/v1/explain", bytes.NewReader(body))
	if err != nil {
		return explanation{err: err}
	}
	resp, err := d.daemon.Do(req)
	if err != nil {
		return explanation{err: err}
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&e); err != nil {
		return explanation{err: fmt.Errorf("explain: %s: %w", resp.Status, err)}
	}
	if resp.StatusCode != http.StatusOK {
		e.err = fmt.Errorf("explain: %s", resp.Status)
	}
	return e
}

// agree says how a packet's fate and what explain says of it differ.
func agree(o outcome, e explanation) error {
	switch {
	case !o.sent:
		return nil
	case e.err != nil:
		return e.err
	case o.said.Outcome == lab.Mute:
		return nil // docker-proxy was reached, and it did not reach the container
	case o.passed != (e.Verdict == "accept"):
		return fmt.Errorf("%s: the kernel: %s; explain: %s", o.probe, o.said, e.Verdict)
	case e.Container != "" && o.said.Outcome == lab.Answered && o.said.Server != e.Container:
		return fmt.Errorf("%s: the kernel: %s; explain: container %s", o.probe, o.said, e.Container)
	}
	return nil
}

// disagreement asks again, with time for what comes late, until the two agree.
// Where explain says accept and nothing came through, Docker alone has its say:
// nil is returned if it closes the way too.
func (d *differential) disagreement(q question, tries int) error {
	var err error
	for range tries {
		o := d.send(q, patience)
		if err = errors.Join(agree(o, d.explain(q)), d.now.asExpected(q, o)); err == nil {
			return nil
		}
	}
	if d.explain(q).Verdict != "accept" || d.send(q, closedAfter).passed {
		return err
	}
	if failed := d.disarm(); failed != nil {
		return failed
	}
	alone := d.send(q, patience)
	if failed := d.enforce(); failed != nil {
		return failed
	}
	if !alone.passed {
		return nil
	}
	return fmt.Errorf("%w; without nftfw: %s", err, alone.said)
}

// report prints the smallest world found in which a packet is in dispute.
func (d *differential) report(q question) {
	d.t.Helper()
	began := time.Now()
	least := d.now
	involved := []string{q.from, q.toName, d.explain(q).Container, d.send(q, patience).said.Server}
	bystander := func(b box) bool { return !slices.Contains(involved, b.name) }
	// Containers take the longest to bring back, so that they are not tried in
	// turn unless there is hope.
	candidates := func() []world {
		return slices.DeleteFunc(least.smaller(), func(w world) bool {
			for _, b := range least.containers {
				if !bystander(b) && !slices.ContainsFunc(w.containers, func(o box) bool { return o.name == b.name }) {
					return true
				}
			}
			return false
		})
	}
	alone := least
	alone.containers = slices.DeleteFunc(slices.Clone(least.containers), bystander)
	try := func(w world) bool {
		d.now = w
		// Some of what is left is no whole world: nothing is to be learnt there.
		if d.realize() != nil || d.enforce() != nil || d.disagreement(q, 1) == nil {
			return false
		}
		least = w
		return true
	}
	try(alone)
	for again := true; again && time.Since(began) < differentialShrink; {
		again = slices.ContainsFunc(candidates(), func(w world) bool { return time.Since(began) < differentialShrink && try(w) })
	}
	d.now = least
	why := errors.Join(d.realize(), d.enforce())
	if why == nil {
		why = d.disagreement(q, 3)
	}
	d.t.Errorf("the least case, found in %s:\n%s\npacket: %s\n%v\nexplanation:\n%s",
		time.Since(began).Round(time.Second), least, q, why, d.explain(q))
}
