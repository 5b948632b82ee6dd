package integration

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nftfw/nftfw/integration/lab"
)

// soakEnv says how long TestSoak lasts, as a duration: see `make soak`.
const soakEnv = "NFTFW_SOAK"

// soakTime is how long it lasts where nothing is said: enough to see that it
// works, and too short to see a slow leak.
const soakTime = 10 * time.Second

// Containers, sets, reloads, a table that is deleted, and clients: after any
// time of it the daemon takes what it took before, and the kernel holds what
// it held.
func TestSoak(t *testing.T) {
	length := soakTime
	if text := os.Getenv(soakEnv); text != "" {
		var err error
		if length, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	const policy = "version: 1" + trust + "  office: []\n"
	s := scene(t, policy)
	s.run("plain", "-p", "8082:80")
	s.open(s.permitted.Namespace, "plain", hostPorts("8082"))
	fresh := s.goroutines() // of a daemon that has done nothing yet
	if err := s.fw.Start(s.ctx()); err != nil {
		t.Fatal(err)
	}
	s.soak(length/10, policy) // what is made once is made
	before, table := s.sample(), s.settled()
	samples := []sample{before}
	counts := map[string]int{}
	for range 8 {
		for what, n := range s.soak(length/8, policy) {
			counts[what] += n
		}
		samples = append(samples, s.sample())
		if t.Failed() {
			return
		}
	}
	after := samples[len(samples)-1]
	t.Logf("%s: %v\n%s", length, counts, report(samples))
	if diff := cmp.Diff(table, s.settled()); diff != "" {
		t.Errorf("the kernel does not hold what it held (-before +after):\n%s", diff)
	}
	if after.files > before.files+5 {
		t.Errorf("%d file descriptors, before %d", after.files, before.files)
	}
	// The heap of a Go program breathes: what it takes after half of the time
	// is the yardstick.
	if half := samples[len(samples)/2]; length >= time.Minute && after.memory > half.memory*5/4+4<<10 {
		t.Errorf("%d kB of memory, after half of the time %d", after.memory, half.memory)
	}
	for _, what := range []string{"containers", "sets", "reloads", "deletions", "connections", "questions"} {
		if counts[what] == 0 {
			t.Errorf("no %s: that was not tested", what)
		}
	}
	if now := s.goroutines(); now > fresh+5 {
		t.Errorf("%d goroutines, of a fresh daemon %d:\n%s", now, fresh, tail(s.fw.Log(), 300))
	}
}

// sample is what the daemon takes at a moment.
type sample struct {
	at      time.Time
	memory  int // kB resident
	files   int
	threads int
}

func (s *set) sample() sample {
	s.t.Helper()
	dir := fmt.Sprintf("/proc/%d", s.fw.PID())
	text, err := os.ReadFile(filepath.Join(dir, "status"))
	files, dirErr := os.ReadDir(filepath.Join(dir, "fd"))
	if err := errors.Join(err, dirErr); err != nil {
		s.t.Fatal(err)
	}
	out := sample{at: time.Now(), files: len(files)}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		switch f[0] {
		case "VmRSS:":
			out.memory, _ = strconv.Atoi(f[1]) // zero shows in the report
		case "Threads:":
			out.threads, _ = strconv.Atoi(f[1])
		}
	}
	return out
}

func report(samples []sample) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "AFTER\tMEMORY kB\tFILES\tTHREADS\t")
	for _, m := range samples {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t\n", m.at.Sub(samples[0].at).Round(time.Second), m.memory, m.files, m.threads)
	}
	_ = w.Flush()
	return b.String()
}

// settled is the kernel's table once nothing is under way: all of it but flows
// that were cut.
func (s *set) settled() []string {
	s.t.Helper()
	var out []string
	s.eventually(recoverWithin, func() error {
		list, err := tryListing(s.ctx(), s.Host)
		if err != nil {
			return err
		}
		out = out[:0]
		for _, object := range list {
			if strings.Contains(object, "10.9.") || strings.Contains(object, "172.17.0.3") {
				return fmt.Errorf("something is still there that was removed:\n%s", object)
			}
			if len(strings.Fields(object)) > 1 && !isCut(object) {
				out = append(out, object)
			}
		}
		if o := s.fw.Exec(s.ctx(), "plan"); o.Status != 0 {
			return errors.New(o.String())
		}
		return nil
	})
	return out
}

// goroutines ends the daemon, and counts what it had.
func (s *set) goroutines() int {
	s.t.Helper()
	logged := s.fw.Log()
	if err := s.fw.Abort(s.ctx()); err != nil {
		s.t.Fatal(err)
	}
	return strings.Count(strings.TrimPrefix(s.fw.Log(), logged), "\ngoroutine ")
}

// soak does everything at once for a time, and leaves nothing of it behind. It
// counts what it did.
func (s *set) soak(length time.Duration, policy string) map[string]int {
	ctx, stop := context.WithTimeout(s.ctx(), length)
	defer stop()
	jobs := map[string]func(i int) error{
		"containers": func(int) error {
			if _, err := s.engine.Run(s.ctx(), lab.Spec{Name: "soak", Options: []string{"-p", "8083:80", "--label", "nftfw.expose=any"}}); err != nil {
				return err
			}
			_, err := s.engine.Docker(s.ctx(), "rm", "-f", "soak")
			return err
		},
		"sets": func(i int) error {
			entry := fmt.Sprintf("10.9.%d.%d", i/250%250, i%250)
			return errors.Join(
				s.command("sets", "add", "office", entry, "--timeout", "1h", "--comment", "soak"),
				s.command("sets", "del", "office", entry))
		},
		"reloads": func(i int) error {
			text := policy
			if i%2 == 0 {
				text += "host: {ping: false}\n"
			}
			return errors.Join(s.fw.WritePolicy(text), s.command("reload"), s.pause(ctx, 200*time.Millisecond))
		},
		"deletions": func(int) error {
			// Not Docker's rules: it would not make them again.
			err := s.Host.NFT(s.ctx(), "table inet nftfw {}\ndelete table inet nftfw\n")
			return errors.Join(err, s.pause(ctx, time.Second))
		},
		"connections": func(int) error {
			c, err := s.permitted.Dial(s.ctx(), "tcp", netip.AddrPortFrom(lab.HostV4, 8082), netip.Addr{})
			if err != nil {
				return err
			}
			return c.Close()
		},
		"questions": func(i int) error {
			args := [][]string{{"status"}, {"ports"}, {"sets", "list"}, {"explain", "--from", "198.18.0.66", "--to", "198.18.0.1:8082"}}[i%4]
			if o := s.fw.Exec(s.ctx(), args...); o.Status != 0 && args[0] != "status" {
				return errors.New(o.String())
			}
			return nil
		},
		"idle clients": func(int) error {
			c, err := net.Dial("unix", s.fw.SocketPath())
			if err != nil {
				return err
			}
			return errors.Join(s.pause(ctx, time.Duration(rand.N(50))*time.Millisecond), c.Close())
		},
	}
	var all sync.WaitGroup
	counts := map[string]*atomic.Int64{}
	for what, job := range jobs {
		n := &atomic.Int64{}
		counts[what] = n
		all.Go(func() {
			for ctx.Err() == nil && !s.t.Failed() {
				if err := job(int(n.Add(1))); err != nil {
					s.t.Errorf("%s: %v", what, err)
				}
			}
		})
	}
	all.Wait()
	if err := errors.Join(s.fw.WritePolicy(policy), s.command("reload"), s.command("sets", "flush", "office")); err != nil {
		s.t.Error(err)
	}
	out := map[string]int{}
	for what, n := range counts {
		out[what] = int(n.Load())
	}
	return out
}

// command runs nftfw.
func (s *set) command(args ...string) error {
	if o := s.fw.Exec(s.ctx(), args...); o.Status != 0 {
		return errors.New(o.String())
	}
	return nil
}

// pause waits, or until ctx is done.
func (s *set) pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
	return nil
}
