package integration

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nftfw/nftfw/integration/lab"
)

// badImage is an image that carries labels which only an operator should give.
const badImage = "bad:1"

// dualStack are the flags with which engines up to 26 do for IPv6 what they do
// for IPv4. Which prefix the default bridge has matters to no test.
var dualStack = []string{"--ipv6", "--fixed-cidr-v6", "fd00:d0c::/64", "--experimental", "--ip6tables"}

// stage is a lab with an engine and the usual clients, for one test at a time.
type stage struct {
	*lab.Lab
	engine *lab.Engine
	flags  []string // the engine's
	spoilt bool     // nothing brings it back to what it was

	// The clients. routed has routes to the containers' networks, and
	// loopback sends 127.0.0.0/8 to the host.
	permitted, stranger, routed, loopback *lab.Node
}

// pool keeps the stages with the machine's engine and its default flags, which
// take seconds to start. Engines with other flags are started for one test.
type pool struct {
	mu   sync.Mutex
	idle []*stage
	all  []*stage
}

func (p *pool) get(tb testing.TB, flags []string) *stage {
	tb.Helper()
	p.mu.Lock()
	i := slices.IndexFunc(p.idle, func(s *stage) bool { return slices.Equal(s.flags, flags) })
	if i >= 0 {
		s := p.idle[i]
		p.idle = slices.Delete(p.idle, i, i+1)
		p.mu.Unlock()
		return s
	}
	p.mu.Unlock()
	s, err := newStage(context.Background(), flags)
	if err != nil {
		noEngine(tb, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all = append(p.all, s)
	return s
}

// put takes a stage back: cleaned where another test can have it, otherwise
// closed, with whatever the test left on it.
func (p *pool) put(tb testing.TB, s *stage) {
	tb.Helper()
	if len(s.flags) == 0 && !s.spoilt {
		ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
		defer cancel()
		err := s.clean(ctx)
		if err == nil {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.idle = append(p.idle, s)
			return
		}
		tb.Errorf("clean stage: %v\nengine: %s", err, s.engine.Log())
	}
	if err := s.Close(); err != nil {
		tb.Errorf("close stage: %v", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all = slices.DeleteFunc(p.all, func(o *stage) bool { return o == s })
}

func (p *pool) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for _, s := range p.all {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}

func newStage(ctx context.Context, flags []string) (*stage, error) {
	return newStageWith(ctx, flags, func(l *lab.Lab) (*lab.Engine, error) {
		return l.Engine(lab.EngineOptions{Flags: flags})
	})
}

// newStageWith is newStage with an engine of another kind.
func newStageWith(ctx context.Context, flags []string, engine func(*lab.Lab) (*lab.Engine, error)) (s *stage, err error) {
	l, err := lab.New(ctx, newLogger())
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	s = &stage{Lab: l, flags: flags}
	if s.engine, err = engine(l); err != nil {
		return nil, err
	}
	if err := s.engine.Launch(ctx); err != nil {
		return nil, err
	}
	for _, c := range []struct {
		node **lab.Node
		name string
		id   uint8
	}{
		{&s.permitted, "permitted", 10},
		{&s.stranger, "stranger", 66},
		{&s.routed, "routed", 77},
		{&s.loopback, "loopback", 127},
	} {
		if *c.node, err = l.Client(ctx, c.name, c.id); err != nil {
			return nil, err
		}
	}
	if err := s.routed.RouteContainers(ctx); err != nil {
		return nil, err
	}
	if err := l.RouteLoopback(ctx, s.loopback); err != nil {
		return nil, err
	}
	if err := s.engine.WaitReady(ctx); err != nil {
		return nil, err
	}
	if err := s.engine.LoadImage(ctx, built.echo, lab.Image); err != nil {
		return nil, err
	}
	return s, s.engine.LoadImage(ctx, built.echo, badImage,
		"LABEL nftfw.expose=any", "LABEL com.docker.compose.project=shop",
		"LABEL com.docker.compose.service=web", "LABEL tier=front")
}

// clean brings the stage back to what newStage made.
func (s *stage) clean(ctx context.Context) error {
	if !s.engine.Running() {
		if err := s.engine.Start(ctx); err != nil {
			return err
		}
	}
	if err := s.engine.RemoveAll(ctx); err != nil {
		return err
	}
	tables, err := s.Host.Run(ctx, "nft", "list", "tables")
	if err != nil {
		return err
	}
	for line := range strings.Lines(tables) {
		if strings.TrimSpace(line) == "table inet nftfw" {
			return s.Host.NFT(ctx, "delete table inet nftfw")
		}
	}
	return nil
}

// set is a test on a stage: the stage, nftfw on it, and what the test needs to
// ask and to tell.
type set struct {
	*stage
	t  testing.TB
	fw *lab.Firewall // nil until start or prepare

	pulse *dialogue // between two clients, past the host: see dialogues
}

// in is the same set, reporting to a subtest.
func (s *set) in(t *testing.T) *set {
	sub := *s
	sub.t = t
	return &sub
}

// bare gives a test a stage of its own with no nftfw on it. Tests with stages
// run in parallel.
func bare(tb testing.TB, engineFlags ...string) *set {
	tb.Helper()
	needRoot(tb)
	if t, ok := tb.(*testing.T); ok {
		t.Parallel()
	}
	s := stages.get(tb, engineFlags)
	tb.Cleanup(func() { stages.put(tb, s) })
	return &set{stage: s, t: tb}
}

// scene gives a test a stage of its own with nftfw running under a policy (""
// for none).
func scene(tb testing.TB, policy string, engineFlags ...string) *set {
	tb.Helper()
	s := bare(tb, engineFlags...)
	s.start(policy)
	return s
}

// start starts nftfw under a policy on a bare set.
func (s *set) start(policy string) {
	s.t.Helper()
	s.prepare(policy)
	if err := s.fw.Start(s.ctx()); err != nil {
		s.t.Fatal(err)
	}
}

// prepare makes a Firewall ready and does not start it.
func (s *set) prepare(policy string) {
	s.t.Helper()
	s.prepareWith(policy, lab.FirewallOptions{Bin: built.nftfw, Engine: s.engine})
}

// prepareWith is prepare with other options.
func (s *set) prepareWith(policy string, o lab.FirewallOptions) {
	s.t.Helper()
	if built.nftfw == "" {
		s.t.Fatal("nftfw was not built")
	}
	fw, err := s.Firewall(o)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := fw.WritePolicy(policy); err != nil {
		s.t.Fatal(err)
	}
	s.fw = fw
	s.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		logged, end := fw.Log(), fw.Kill
		if s.t.Failed() {
			end = fw.Abort
		}
		if err := end(ctx); err != nil {
			s.t.Error(err)
		}
		if s.t.Failed() {
			s.t.Logf("log of nftfw:\n%s\nits goroutines:\n%s", tail(logged, 200), strings.TrimPrefix(fw.Log(), logged))
			rules, err := s.Host.Run(context.Background(), "nft", "list", "table", "inet", "nftfw")
			s.t.Logf("its table (err %v):\n%s", err, rules)
		}
	})
}

// tail returns the last n lines.
func tail(text string, n int) string {
	lines := strings.SplitAfter(text, "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "")
}

func (s *set) ctx() context.Context { return s.t.Context() }

// run starts a container of the echo image with options of docker run.
func (s *set) run(name string, options ...string) *lab.Container {
	s.t.Helper()
	return s.runSpec(lab.Spec{Name: name, Options: options})
}

func (s *set) runSpec(spec lab.Spec) *lab.Container {
	s.t.Helper()
	c, err := s.engine.Run(s.ctx(), spec)
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// docker runs a command of the docker client.
func (s *set) docker(args ...string) string {
	s.t.Helper()
	out, err := s.engine.Docker(s.ctx(), args...)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// nftfw runs a command of nftfw that must succeed.
func (s *set) nftfw(args ...string) string {
	s.t.Helper()
	o := s.fw.Exec(s.ctx(), args...)
	if o.Status != 0 {
		s.t.Fatal(o)
	}
	return o.Stdout
}

// hostPorts are probes of ports of the host, over IPv4 and IPv6. A port is
// written "8080/tcp", or "8080" for tcp.
func hostPorts(ports ...string) []lab.Probe {
	return slices.Concat(addrPorts(lab.HostV4, ports...), addrPorts(lab.HostV6, ports...))
}

// addrPorts are probes of ports of one address.
func addrPorts(a netip.Addr, ports ...string) []lab.Probe {
	var probes []lab.Probe
	for _, p := range ports {
		number, proto, ok := strings.Cut(p, "/")
		if !ok {
			proto = "tcp"
		}
		probes = append(probes, lab.Probe{Network: proto, To: netip.AddrPortFrom(a, parsePort(number))})
	}
	return probes
}

func parsePort(s string) uint16 {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		panic(err) // a port is written wrongly in a test
	}
	return uint16(n)
}

// from gives the probes source addresses: each is asked from the given
// address of its own family.
func from(probes []lab.Probe, sources ...netip.Addr) []lab.Probe {
	var with []lab.Probe
	for _, p := range probes {
		for _, a := range sources {
			if a.Is4() == p.To.Addr().Is4() {
				p.From = a
				with = append(with, p)
			}
		}
	}
	return with
}

// openWithin is how long what should be open may take to open.
const openWithin = 5 * time.Second

// open demands that every probe is answered, by the container (or service)
// named server unless that is "", soon.
func (s *set) open(ns lab.Namespace, server string, probes []lab.Probe) {
	s.t.Helper()
	s.each(probes, func(p lab.Probe) error {
		ctx, cancel := context.WithTimeout(s.ctx(), openWithin)
		defer cancel()
		return lab.Poll(ctx, 20*time.Millisecond, func() error {
			r := ns.Probe(ctx, p)
			if r.Outcome != lab.Answered || server != "" && r.Server != server {
				return fmt.Errorf("%s: %s, want an answer of %q", p, r, server)
			}
			return nil
		})
	})
}

// closed demands that no probe reaches anything. It asks once: what could make
// it wait must be asked for before, by an open.
func (s *set) closed(ns lab.Namespace, probes []lab.Probe) {
	s.t.Helper()
	s.each(probes, func(p lab.Probe) error {
		if r := ns.Probe(s.ctx(), p); r.Reached() {
			return fmt.Errorf("%s: %s, want it closed", p, r)
		}
		return nil
	})
}

// closes demands that the probes stop reaching anything, soon.
func (s *set) closes(ns lab.Namespace, probes []lab.Probe) {
	s.t.Helper()
	s.each(probes, func(p lab.Probe) error {
		ctx, cancel := context.WithTimeout(s.ctx(), openWithin)
		defer cancel()
		return lab.Poll(ctx, 20*time.Millisecond, func() error {
			if r := ns.Probe(ctx, p); r.Reached() {
				return fmt.Errorf("%s: %s, want it closed", p, r)
			}
			return nil
		})
	})
}

// each asks all at once and reports every one that is not as it should be.
func (s *set) each(probes []lab.Probe, ask func(lab.Probe) error) {
	s.t.Helper()
	if len(probes) == 0 {
		s.t.Fatal("no probes: nothing would be tested")
	}
	errs := make([]error, len(probes))
	var wg sync.WaitGroup
	for i, p := range probes {
		wg.Go(func() { errs[i] = ask(p) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			s.t.Error(err)
		}
	}
}

// eventually polls until check returns nil.
func (s *set) eventually(within time.Duration, check func() error) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx(), within)
	defer cancel()
	if err := lab.Poll(ctx, 20*time.Millisecond, check); err != nil {
		s.t.Error(err)
	}
}
