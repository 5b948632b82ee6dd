package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/nftfw/nftfw/integration/lab"
)

// million measures a set of a million addresses that is dropped at the door.
func million(ctx context.Context, b *bench) error {
	s, err := newStage(ctx, b, portsEach)
	if err != nil {
		return err
	}
	err = errors.Join(s.startFirewall(ctx, b, trustedPolicy(portsEach)), s.check(ctx, true))
	if err == nil {
		err = s.million(ctx, b)
	}
	return closeAll(err, s)
}

// bigSet is what million measures, by round.
type bigSet struct {
	load, nft, ask, add, nftAdd, peak, steady, nftPeak []float64
}

func (s *stage) million(ctx context.Context, b *bench) error {
	n := pick(b, 2000, 1_000_000)
	list := randomAddrs(n)
	file := filepath.Join(s.lab.Dir(), "blocked.txt")
	if err := os.WriteFile(file, []byte(lines(list)), 0o644); err != nil {
		return err
	}
	script := filepath.Join(s.lab.Dir(), "blocked.nft")
	if err := os.WriteFile(script, []byte(setScript("flags timeout;", list)), 0o644); err != nil {
		return err
	}
	var m bigSet
	for round := range pick(b, 1, 3) {
		if round > 0 {
			if err := s.nftfw(ctx, "sets", "flush", "blocked"); err != nil {
				return err
			}
		}
		if err := s.millionRound(ctx, b, &m, file, script, byte(round)); err != nil {
			return err
		}
	}
	connections, err := s.withAndWithoutBlocked(ctx, b)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("blocked with %d addresses: ", n)
	b.add(row{
		What: what + "file to in force", Figure: median(m.load), Unit: "s", Than: "nft -f of a hash set", Yardstick: median(m.nft),
		Ratio: ratio(m.load, m.nft), Reach: "at most 3 s",
	}, median(m.load) <= 3)
	b.add(row{
		What: what + "peak memory", Figure: median(m.peak), Unit: "MB", Than: "nft -f of a hash set", Yardstick: median(m.nftPeak),
		Ratio: ratio(m.peak, m.nftPeak), Reach: "at most 300 MB",
	}, median(m.peak) <= 300)
	b.add(row{What: what + "steady memory", Figure: median(m.steady), Unit: "MB", Reach: "at most 150 MB"}, median(m.steady) <= 150)
	b.add(row{
		What: what + "one more, from request to answer", Figure: median(m.ask), Unit: "ms", Reach: "at most 5 ms",
	}, median(m.ask) <= 5)
	b.add(row{
		What: what + "one sets add, from the shell", Figure: median(m.add), Unit: "ms", Than: "nft add element, hash set", Yardstick: median(m.nftAdd),
		Ratio: ratio(m.add, m.nftAdd),
	}, true)
	r := row{
		What: what + "new connections", Figure: median(connections[0]), Unit: "/s of one core", Than: "the empty set", Yardstick: median(connections[1]),
		Ratio: ratio(connections[0], connections[1]), Reach: "at least 0.97",
	}
	b.add(r, r.Ratio >= 0.97)
	return nil
}

func (s *stage) millionRound(ctx context.Context, b *bench, m *bigSet, file, script string, round byte) error {
	daemon := s.firewall.PID()
	// 5 makes what was the most so far be forgotten, proc_pid_clear_refs(5).
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", daemon), []byte("5"), 0); err != nil {
		return err
	}
	load := s.timed(ctx, s.lab.Host, s.command("sets", "add", "blocked", "--file", file))
	nft := s.timed(ctx, s.stranger, exec.Command("nft", "-f", script))
	if err := errors.Join(load.err, nft.err); err != nil {
		return err
	}
	m.load, m.nft = append(m.load, load.wall.Seconds()), append(m.nft, nft.wall.Seconds())
	m.peak = append(m.peak, memory(daemon, "status", "VmHWM:"))
	m.nftPeak = append(m.nftPeak, nft.peak)
	for i := range byte(pick(b, 1, 5)) {
		asked, err := s.request(ctx, netip.AddrFrom4([4]byte{111, round, 0, 2 * i}))
		if err != nil {
			return err
		}
		m.ask = append(m.ask, milliseconds(asked))
		a := netip.AddrFrom4([4]byte{110, round, 0, 2 * i})
		add := s.timed(ctx, s.lab.Host, s.command("sets", "add", "blocked", a.String()))
		yard := s.timed(ctx, s.stranger, addElement(a))
		if err := errors.Join(add.err, yard.err); err != nil {
			return err
		}
		m.add, m.nftAdd = append(m.add, milliseconds(add.wall)), append(m.nftAdd, milliseconds(yard.wall))
	}
	select {
	case <-time.After(pick(b, time.Millisecond, 3*time.Second)):
	case <-ctx.Done():
		return ctx.Err()
	}
	m.steady = append(m.steady, memory(daemon, "status", "VmRSS:"))
	return s.stranger.NFT(ctx, "delete table inet yard\n")
}

// withAndWithoutBlocked measures new connections with the chain that asks for
// blocked sources, and without it: where nothing is blocked the table has none.
func (s *stage) withAndWithoutBlocked(ctx context.Context, b *bench) ([][]float64, error) {
	chain, err := s.lab.Host.Run(ctx, "nft", "list", "chain", "inet", "nftfw", "prerouting")
	if err != nil {
		return nil, err
	}
	const without = "add chain inet nftfw prerouting\nflush chain inet nftfw prerouting\ndelete chain inet nftfw prerouting\n"
	return s.scripts(ctx, b, without+chain, without)
}

// request adds an address to blocked as nftfw's command does, without the start of
// a process.
func (s *stage) request(ctx context.Context, a netip.Addr) (time.Duration, error) {
	client := socketClient(s.firewall.SocketPath())
	body := strings.NewReader(fmt.Sprintf(`{"entries":[%q]}`, a))
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://nftfw/v1/sets/blocked/add", body)
	if err != nil {
		return 0, err
	}
	return wall(func() error {
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		answer, err := io.ReadAll(resp.Body)
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("add %s: %s: %s", a, resp.Status, answer)
		}
		return err
	})
}

// shell measures one change of a set as somebody at a shell waits for it.
func shell(ctx context.Context, b *bench) error {
	s, err := newStage(ctx, b, portsEach)
	if err != nil {
		return err
	}
	err = s.startFirewall(ctx, b, trustedPolicy(portsEach)+"  office: []\n")
	if err == nil {
		err = s.shell(ctx, b)
	}
	return closeAll(err, s)
}

func (s *stage) shell(ctx context.Context, b *bench) error {
	n := pick(b, 1000, 100_000)
	list := randomAddrs(n)
	file := filepath.Join(s.lab.Dir(), "office.txt")
	if err := os.WriteFile(file, []byte(lines(list)), 0o644); err != nil {
		return err
	}
	if err := s.nftfw(ctx, "sets", "add", "office", "--file", file); err != nil {
		return err
	}
	yards := []struct {
		name, flags string
		node        *lab.Node
	}{{"nft add element, hash set", "flags timeout;", s.stranger}, {"nft add element, interval set", "flags interval,timeout;", s.client}}
	for _, y := range yards {
		if err := y.node.NFT(ctx, setScript(y.flags, list)); err != nil {
			return err
		}
	}
	next := 0
	address := func() netip.Addr {
		next++
		return netip.AddrFrom4([4]byte{110, 0, byte(next >> 7), byte(next << 1)})
	}
	took := func(node *lab.Node, command func(netip.Addr) *exec.Cmd) func() (float64, error) {
		return func() (float64, error) {
			t := s.timed(ctx, node, command(address()))
			return milliseconds(t.wall), t.err
		}
	}
	variants := []variant{{"nftfw", took(s.lab.Host, func(a netip.Addr) *exec.Cmd { return s.command("sets", "add", "office", a.String()) })}}
	for _, y := range yards {
		variants = append(variants, variant{y.name, took(y.node, addElement)})
	}
	figures, err := inTurn(pick(b, 1, 31), variants)
	if err != nil {
		return err
	}
	for i, y := range yards {
		r := row{
			What: fmt.Sprintf("sets add from the shell, set of %d", n), Figure: median(figures[0]), Unit: "ms",
			Than: y.name, Yardstick: median(figures[i+1]), Ratio: ratio(figures[0], figures[i+1]), Reach: "at most 1.5",
		}
		b.add(r, r.Ratio <= 1.5)
	}
	return nil
}

// command prepares an nftfw command without a shell or a helper around it.
func (s *stage) command(args ...string) *exec.Cmd {
	cmd := exec.Command(s.firewall.Bin(), args...)
	cmd.Env = append(os.Environ(),
		"NFTFW_SOCKET="+s.firewall.SocketPath(), "NFTFW_STATE_DIR="+s.firewall.StateDir(), "NFTFW_POLICY="+s.firewall.PolicyPath())
	return cmd
}

func addElement(a netip.Addr) *exec.Cmd {
	return exec.Command("nft", "add", "element", "inet", "yard", "s", "{ "+a.String()+" }")
}

// timing is what a command took.
type timing struct {
	wall time.Duration // from before its process started to its end
	peak float64       // memory, in MB
	err  error
}

// timed runs a command in a node's namespace.
func (s *stage) timed(_ context.Context, node *lab.Node, cmd *exec.Cmd) timing {
	var t timing
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	t.err = node.Do(func() (err error) {
		t.wall, err = wall(cmd.Run)
		return err
	})
	if t.err != nil {
		t.err = fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), t.err, stderr.String())
		return t
	}
	if usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		t.peak = float64(usage.Maxrss) / 1024
	}
	return t
}

// memory reads a line of a file of a process, in MB.
func memory(pid int, file, field string) float64 {
	for line := range strings.Lines(readText(fmt.Sprintf("/proc/%d/%s", pid, file))) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == field {
			kb, _ := strconv.ParseFloat(f[1], 64)
			return kb / 1024
		}
	}
	return 0
}

func lines(list []netip.Addr) string {
	var text strings.Builder
	for _, a := range list {
		text.WriteString(a.String())
		text.WriteByte('\n')
	}
	return text.String()
}

// setScript is a table with one set, for nft -f.
func setScript(flags string, list []netip.Addr) string {
	var text strings.Builder
	text.WriteString("table inet yard {\n set s { type ipv4_addr; " + flags + " elements = {\n")
	for _, a := range list {
		text.WriteString(a.String())
		text.WriteString(",\n")
	}
	text.WriteString("}\n}\n}\n")
	return text.String()
}
