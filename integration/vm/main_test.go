package vm

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/nftfw/nftfw/integration/lab"
)

// programs are what the machines of the tests run, built once by TestMain.
var programs Programs

func TestMain(m *testing.M) {
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	flag.Parse()
	if !wanted() {
		fmt.Println("NOT RUN: the tests of whole machines: make test-vm runs them, as root")
		return m.Run() // each test skips itself
	}
	dir, err := lab.TempDir()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if programs, err = BuildPrograms(context.Background(), dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

func wanted() bool { return os.Getenv("NFTFW_VM") != "" && os.Geteuid() == 0 }

// site is a wire with one machine on it and what a test needs to ask it.
type site struct {
	*Machine
	lab *lab.Lab
	t   *testing.T
}

// newSite gives a test a machine of a suite, with the addresses of a lab's
// host, on a wire of its own. It is off.
func newSite(t *testing.T, suite string) *site {
	t.Helper()
	image := imageOf(t, suite)
	l := newWire(t)
	return newMachine(t, l, Options{Image: image, Name: "host", V4: lab.HostV4, V6: lab.HostV6})
}

// part is a part of a test that goes on where the one before ended.
type part struct {
	name string
	run  func()
}

// inParts runs the parts of a test until one fails. in runs one as a test of its
// own.
func inParts(t *testing.T, in func(*testing.T, func()), parts []part) {
	t.Helper()
	for _, p := range parts {
		if !t.Run(p.name, func(t *testing.T) { in(t, p.run) }) {
			return
		}
	}
}

// newWire gives a test a wire to join machines by.
func newWire(t *testing.T) *lab.Lab {
	t.Helper()
	l, err := lab.NewWire(t.Context(), slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// imageOf gives the image of a suite. It skips the test where whole machines
// are not asked for.
func imageOf(t *testing.T, suite string) Image {
	t.Helper()
	if !wanted() {
		t.Skip("needs root and NFTFW_VM: make test-vm")
	}
	image, err := BuildImage(t.Context(), suite)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("Debian's %s, kernel %s", image.Suite, image.Kernel)
	return image
}

// newMachine puts a machine on the wire of a lab. It is off.
func newMachine(t *testing.T, l *lab.Lab, o Options) *site {
	t.Helper()
	m, err := New(t.Context(), l, o)
	if err != nil {
		t.Fatal(err)
	}
	s := &site{Machine: m, lab: l, t: t}
	t.Cleanup(s.tell)
	return s
}

// tell shows what a failed test's machine has to say.
func (s *site) tell() {
	if !s.t.Failed() {
		return
	}
	s.t.Logf("console of %s:\n%s", s.Name, s.Console())
	if !s.Running() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	out, err := s.Do(ctx, "journalctl", "-b", "-o", "short-monotonic", "--no-pager", "-n", "300")
	s.t.Logf("journal (err %v):\n%s", err, out.Stdout)
}

func (s *site) ctx() context.Context { return s.t.Context() }

// must ends the test on an error.
func (s *site) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// sh runs a script on the machine.
func (s *site) sh(script string) string {
	s.t.Helper()
	out, err := s.Shell(s.ctx(), script)
	s.must(err)
	return out
}

// nftfwJSON runs a reading command of nftfw and decodes what it says.
func (s *site) nftfwJSON(into any, args ...string) {
	s.t.Helper()
	s.must(s.tryJSON(into, args...))
}

func (s *site) tryJSON(into any, args ...string) error {
	out, err := s.Do(s.ctx(), append([]string{"nftfw", "--json"}, args...)...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out.Stdout), into); err != nil {
		return fmt.Errorf("nftfw %s: %w: %s%s", args, err, out.Stdout, out.Stderr)
	}
	return nil
}

// neighbour attaches a client to the wire. It knows the machine's link address
// beforehand, so that what it sends waits for no answer of the machine.
func (s *site) neighbour(name string, id uint8) *lab.Node {
	s.t.Helper()
	n, err := s.lab.Client(s.ctx(), name, id)
	s.must(err)
	s.introduce(n)
	return n
}

// introduce lets a client know the machine's link address for good.
func (s *site) introduce(n *lab.Node) {
	s.t.Helper()
	s.must(n.IP(s.ctx(),
		fmt.Sprintf("neigh replace %s lladdr %s dev eth0 nud permanent", s.V4, s.MAC),
		fmt.Sprintf("neigh replace %s lladdr %s dev eth0 nud permanent", s.V6, s.MAC)))
}

// at are the machine's two addresses with a port.
func (s *site) at(port uint16) []netip.AddrPort {
	return []netip.AddrPort{netip.AddrPortFrom(s.V4, port), netip.AddrPortFrom(s.V6, port)}
}

// soon is how long what is under way may take on an emulated machine.
const soon = time.Minute

// eventually polls until check returns nil, and ends the test if it never does.
func (s *site) eventually(check func() error) {
	s.t.Helper()
	s.within(soon, check)
}

// within is eventually with a time limit of one's own.
func (s *site) within(limit time.Duration, check func() error) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx(), limit)
	defer cancel()
	s.must(lab.Poll(ctx, 100*time.Millisecond, check))
}

// answers demands that the probe is answered, soon.
func (s *site) answers(from *lab.Node, p lab.Probe) {
	s.t.Helper()
	s.eventually(func() error {
		if r := from.Probe(s.ctx(), p); r.Outcome != lab.Answered {
			return fmt.Errorf("%s: %s, want an answer", p, r)
		}
		return nil
	})
}
