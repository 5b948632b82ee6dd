package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"
)

// rest measures what the daemon takes while nothing happens.
func rest(ctx context.Context, b *bench) error {
	boxes := pick(b, 10, 100)
	s, err := newStage(ctx, b, boxes*portsEach)
	if err != nil {
		return err
	}
	err = errors.Join(s.startFirewall(ctx, b, trustedPolicy(portsEach)), s.check(ctx, true))
	if err == nil {
		err = s.rest(ctx, b, boxes)
	}
	return closeAll(err, s)
}

func (s *stage) rest(ctx context.Context, b *bench, boxes int) error {
	pid := s.firewall.PID()
	wait := func(d time.Duration) error {
		select {
		case <-time.After(d):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	// By then the daemon has given back what its start took.
	if err := wait(pick(b, 100*time.Millisecond, 15*time.Second)); err != nil {
		return err
	}
	while := pick(b, 500*time.Millisecond, 5*time.Minute) // has a list of all containers, as each five minutes
	before := processorTime(pid)
	if err := wait(while); err != nil {
		return err
	}
	hourly := (processorTime(pid) - before).Seconds() * float64(time.Hour) / float64(while)
	resident := memory(pid, "status", "VmRSS:")
	what := fmt.Sprintf("daemon at rest, %d containers: ", boxes)
	b.add(row{What: what + "memory", Figure: resident, Unit: "MB", Reach: "at most 25 MB"}, resident <= 25)
	b.add(row{What: what + "processor", Figure: hourly, Unit: "s an hour", Reach: "at most 1 s"}, hourly <= 1)
	return nil
}

// processorTime is what a process has had so far. schedstat counts nanoseconds
// for each thread, where stat counts ticks.
func processorTime(pid int) time.Duration {
	out, err := exec.Command("sh", "-c", fmt.Sprintf("cat /proc/%d/task/*/schedstat", pid)).Output()
	if err != nil {
		return 0
	}
	var sum time.Duration
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) > 0 {
			ns, _ := strconv.ParseInt(f[0], 10, 64)
			sum += time.Duration(ns)
		}
	}
	return sum
}

// reload measures a change of the policy on a large host, beside nft loading
// the same text, and whether a connection notices.
func reload(ctx context.Context, b *bench) error {
	boxes, entries := pick(b, 10, 1000), pick(b, 500, 100_000)
	s, err := newStage(ctx, b, portsEach)
	if err != nil {
		return err
	}
	policy := trustedPolicy(entries)
	err = s.prepareFirewall(b, policy, boxes, 1)
	if err == nil {
		err = s.firewall.Start(ctx)
	}
	if err == nil {
		err = s.reload(ctx, b, policy, fmt.Sprintf("policy reload, %d containers and %d entries", boxes, entries))
	}
	return closeAll(err, s)
}

func (s *stage) reload(ctx context.Context, b *bench, policy, what string) error {
	p, err := s.openPipe(ctx)
	if err != nil {
		return err
	}
	defer p.close()
	text := s.firewall.Exec(ctx, "render")
	if text.Status != 0 {
		return errors.New(text.String())
	}
	script := "table inet nftfw {}\ndelete table inet nftfw\n" + text.Stdout
	round := 0
	stop := s.keepTalking(p)
	figures, err := inTurn(pick(b, 1, 9), []variant{
		{"nftfw", func() (float64, error) {
			round++
			changed := policy + fmt.Sprintf("    - %s\nhost: {ping: %v}\n", netip.AddrFrom4([4]byte{110, 0, 0, byte(2 * round)}), round%2 == 0)
			if err := s.firewall.WritePolicy(changed); err != nil {
				return 0, err
			}
			t := s.timed(ctx, s.lab.Host, s.command("reload"))
			return t.wall.Seconds(), t.err
		}},
		{"nft -f", func() (float64, error) {
			cmd := exec.Command("nft", "-f", "-")
			cmd.Stdin = strings.NewReader(script)
			t := s.timed(ctx, s.stranger, cmd)
			return t.wall.Seconds(), t.err
		}},
	})
	lost, talkErr := stop()
	if err = errors.Join(err, talkErr); err != nil {
		return err
	}
	r := row{
		What: what, Figure: median(figures[0]), Unit: "s", Than: "nft -f of the text", Yardstick: median(figures[1]),
		Ratio: ratio(figures[0], figures[1]), Reach: fmt.Sprintf("faster, no packet lost: %d sent again", lost),
	}
	b.add(r, r.Ratio < 1 && lost == 0)
	return nil
}

// keepTalking sends over p every millisecond until stop is called, which tells
// how many segments had to be sent again.
func (s *stage) keepTalking(p *pipe) (stop func() (uint32, error)) {
	done := make(chan struct{})
	var talking sync.WaitGroup
	var err error
	talking.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for err == nil {
			select {
			case <-done:
				return
			case <-tick.C:
				err = p.pass(1000)
			}
		}
	})
	return func() (uint32, error) {
		close(done)
		talking.Wait()
		if err != nil {
			return 0, fmt.Errorf("the connection broke: %w", err)
		}
		return p.retransmits()
	}
}
