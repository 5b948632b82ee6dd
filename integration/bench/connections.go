package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nftfw/nftfw/integration/lab"
)

// connections measures what a firewall costs a new connection to a published
// port, by the number of published ports and of trusted sources.
func connections(ctx context.Context, b *bench) error {
	for _, size := range pick(b, []int{10}, []int{10, 1000, 10000}) {
		if err := connectionsAt(ctx, b, size); err != nil {
			return fmt.Errorf("%d ports: %w", size, err)
		}
	}
	flat(b)
	return nil
}

// flat adds what becomes of nftfw's own figure from the smallest to the largest
// size.
func flat(b *bench) {
	var first, last *row
	for i := range b.rows {
		r := &b.rows[i]
		if r.Than != withoutFirewall || r.Size == 0 {
			continue
		}
		if first == nil {
			first = r
		}
		last = r
	}
	if first == nil || first == last {
		return
	}
	b.add(row{
		What: fmt.Sprintf("the same, %d by %d ports", last.Size, first.Size), Figure: last.Ratio, Unit: "of no firewall",
		Than: fmt.Sprintf("%d ports", first.Size), Yardstick: first.Ratio, Ratio: last.Ratio / first.Ratio, Reach: "flat: at least 0.97",
	}, last.Ratio/first.Ratio >= 0.97)
}

const (
	withoutFirewall = "no firewall"
	emptyChain      = "an empty chain"
	rulePerPort     = "a rule per port"
	withIPSet       = "iptables, ipset"
)

// connectionsAt measures all ways on one stage, so that they differ in their
// rules and in nothing else: two namespaces made alike differ by two percent.
func connectionsAt(ctx context.Context, b *bench, size int) error {
	s, err := newStage(ctx, b, size)
	if err != nil {
		return err
	}
	ways := []struct {
		name string
		put  func(context.Context) error
	}{
		{"nftfw", s.enforce},
		{rulePerPort, s.putRulePerPort},
		{withIPSet, s.putIPSet},
		{withoutFirewall, s.nothing},
	}
	var variants []variant
	err = errors.Join(s.startFirewall(ctx, b, trustedPolicy(size)), s.makeIPSet(ctx))
	for _, w := range ways {
		if err != nil {
			break
		}
		put := func() error { return errors.Join(s.clear(ctx), w.put(ctx)) }
		if err = errors.Join(put(), s.check(ctx, w.name != withoutFirewall)); err != nil {
			err = fmt.Errorf("%s: %w", w.name, err)
		}
		if w.name != withoutFirewall {
			variants = append(variants, variant{w.name, after(put, pick(b, 0, quiet), s.connectRate(pick(b, 50, 2000)))})
		}
	}
	var figures, bare [][]float64
	if err == nil {
		figures, err = inTurn(pick(b, 1, 9), variants)
	}
	if err == nil {
		err = errors.Join(s.clear(ctx), s.enforce(ctx))
	}
	if err == nil {
		bare, err = s.scripts(ctx, b,
			noChain+"add table inet nftfw",
			noChain+"add table inet nftfw { flags dormant; }",
			"add table inet nftfw { flags dormant; }\n"+hookedChain)
	}
	if err = closeAll(err, s); err != nil {
		return err
	}
	what := fmt.Sprintf("new connections, %d ports and trusted", size)
	r := row{
		What: what, Size: size, Unit: "/s of one core", Figure: median(bare[0]),
		Than: withoutFirewall, Yardstick: median(bare[1]), Ratio: ratio(bare[0], bare[1]), Reach: "at least 0.97",
	}
	b.add(r, r.Ratio >= 0.97)
	b.add(row{
		What: what, Size: size, Unit: r.Unit, Figure: r.Figure,
		Than: emptyChain, Yardstick: median(bare[2]), Ratio: ratio(bare[0], bare[2]),
	}, false)
	for i, v := range variants[1:] {
		r := row{
			What: what, Size: size, Unit: "/s of one core", Figure: median(figures[0]),
			Than: v.name, Yardstick: median(figures[i+1]), Ratio: ratio(figures[0], figures[i+1]),
		}
		reached := false
		if v.name == rulePerPort && size == 10000 {
			r.Reach, reached = "at least 3", r.Ratio >= 3
		}
		b.add(r, reached)
	}
	return nil
}

// hookedChain is a chain where nftfw's stands that has no rules: what the kernel takes
// to come to a chain at all. noChain takes it away again.
const (
	hookedChain = "table inet empty { chain forward { type filter hook forward priority filter - 10; policy accept; }; }"
	noChain     = "add table inet empty\ndelete table inet empty\n"
)

// scripts measures new connections under what each of the scripts makes nft do to the
// table, some hundred times in turn, for a difference that is smaller than what a
// machine's pace changes in a second. It returns the figures by script and round.
// The daemon is stopped first: it would put the table right.
func (s *stage) scripts(ctx context.Context, b *bench, scripts ...string) ([][]float64, error) {
	if err := s.firewall.Stop(ctx); err != nil {
		return nil, err
	}
	var variants []variant
	for i, script := range scripts {
		put := func() error { return s.lab.Host.NFT(ctx, script+"\n") }
		measure := after(put, pick(b, 0, quietInTurn), s.connectRate(pick(b, 50, 2000)))
		variants = append(variants, variant{fmt.Sprintf("script %d", i+1), measure})
	}
	return inTurn(pick(b, 1, 151), variants)
}

// quiet is how long what changed the rules, and the kernel that frees the old ones,
// have to come to rest: they share the processors with what is measured.
// quietInTurn is the same where a table is only hooked in and out.
const (
	quiet       = time.Second
	quietInTurn = 20 * time.Millisecond
)

// after measures a while after the rules have been changed.
func after(put func() error, while time.Duration, measure func() (float64, error)) func() (float64, error) {
	return func() (float64, error) {
		if err := put(); err != nil {
			return 0, err
		}
		time.Sleep(while)
		return measure()
	}
}

// enforce has nftfw put its table in place, and clear takes all rules away but
// those that translate.
func (s *stage) enforce(ctx context.Context) error { return s.nftfw(ctx, "apply", "--force") }

func (s *stage) clear(ctx context.Context) error {
	if _, err := s.lab.Host.Run(ctx, "iptables", "-F", "FORWARD"); err != nil {
		return err
	}
	return s.nftfw(ctx, "down", "--yes")
}

func (s *stage) nothing(context.Context) error { return nil }

func (s *stage) nftfw(ctx context.Context, args ...string) error {
	if o := s.firewall.Exec(ctx, args...); o.Status != 0 {
		return errors.New(o.String())
	}
	return nil
}

// putRulePerPort does what ufw-docker does: a rule for every published port, in
// the chain that Docker leaves to its users, behind one for established packets.
func (s *stage) putRulePerPort(ctx context.Context) error {
	var rules strings.Builder
	for i := range s.ports {
		in, _ := boxPort(i)
		fmt.Fprintf(&rules, "-A DOCKER-USER -s %s/32 -d %s/32 -p tcp -m tcp --dport %d -j RETURN\n", s.client.V4, boxAddr(i/portsEach), in)
	}
	return s.dockerUser(ctx, rules.String())
}

// makeIPSet makes an ipset of the trusted sources, and putIPSet lets them in.
func (s *stage) makeIPSet(ctx context.Context) error {
	var text strings.Builder
	text.WriteString("create trusted hash:net maxelem 1048576\n")
	for _, a := range append(randomAddrs(s.ports-1), s.client.V4) {
		fmt.Fprintf(&text, "add trusted %s\n", a)
	}
	cmd := s.lab.Host.Command(ctx, "ipset", "restore")
	cmd.Stdin = strings.NewReader(text.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ipset: %w: %s", err, out)
	}
	return nil
}

func (s *stage) putIPSet(ctx context.Context) error {
	return s.dockerUser(ctx, "-A DOCKER-USER -m set --match-set trusted src -j RETURN\n")
}

func (s *stage) dockerUser(ctx context.Context, rules string) error {
	cmd := s.lab.Host.Command(ctx, "iptables-restore")
	cmd.Stdin = strings.NewReader("*filter\n:FORWARD ACCEPT [0:0]\n:DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\n" +
		"-A DOCKER-USER -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN\n" +
		"-A DOCKER-USER -i " + fakeBridge + " -j RETURN\n" + rules + "-A DOCKER-USER -j DROP\nCOMMIT\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("iptables-restore: %w: %s", err, out)
	}
	return nil
}

// connectRate measures how many connections a second of processor time the
// client makes, to each open port in turn.
func (s *stage) connectRate(n int) func() (float64, error) {
	return func() (rate float64, err error) {
		err = s.client.Do(func() error {
			for i := range len(s.to) { // what is looked up the first time only
				if err := connectOnce(s.to[i]); err != nil {
					return err
				}
			}
			began := threadTime()
			for i := range n {
				if err := connectOnce(s.to[i%len(s.to)]); err != nil {
					return err
				}
			}
			rate = float64(n) / (threadTime() - began).Seconds()
			return nil
		})
		return rate, err
	}
}

// connectOnce makes a TCP connection and resets it, so that nothing of it is
// left at the client.
func connectOnce(to netip.AddrPort) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return err
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		return err
	}
	err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
	for errors.Is(err, unix.EINTR) { // a signal of the runtime's; connecting goes on, see connect(2)
		if _, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, 5000); err == nil {
			_, err = unix.Getpeername(fd)
		}
	}
	if err != nil {
		return fmt.Errorf("connect to %s: %w", to, err)
	}
	return nil
}

// throughput measures what a firewall costs the packets of one established
// connection.
func throughput(ctx context.Context, b *bench) error {
	size := pick(b, 10, 1000)
	s, err := newStage(ctx, b, size)
	if err != nil {
		return err
	}
	var p *pipe
	if err = errors.Join(s.startFirewall(ctx, b, trustedPolicy(size)), s.check(ctx, true)); err == nil {
		p, err = s.openPipe(ctx)
	}
	var figures [][]float64
	if err == nil {
		rate := p.rate(pick(b, 1, 1000))
		figures, err = inTurn(pick(b, 1, 41), []variant{
			{"nftfw", after(func() error { return s.enforce(ctx) }, pick(b, 0, quiet), rate)},
			{withoutFirewall, after(func() error { return s.clear(ctx) }, pick(b, 0, quiet), rate)},
		})
		p.close()
	}
	if err = closeAll(err, s); err != nil {
		return err
	}
	r := row{
		What: "bulk throughput of an established connection", Unit: "Gbit/s of one core",
		Figure: median(figures[0]), Than: withoutFirewall, Yardstick: median(figures[1]), Ratio: ratio(figures[0], figures[1]),
		Reach: "at least 0.98",
	}
	b.add(r, r.Ratio >= 0.98)
	return nil
}

// pipe is an established connection through the host of which both ends are
// worked by one thread, so that its processor time is that of the whole way.
type pipe struct {
	out, in int
	buf     []byte
}

func (s *stage) openPipe(ctx context.Context) (*pipe, error) {
	i := s.open()[0]
	in, out := boxPort(i)
	_ = s.listeners[0].Close()
	p := &pipe{out: -1, in: -1, buf: make([]byte, 1<<20)}
	listening := -1
	err := s.box.Do(func() (err error) {
		listening, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if err := unix.SetsockoptInt(listening, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return err
		}
		if err := unix.Bind(listening, &unix.SockaddrInet4{Addr: boxAddr(i / portsEach).As4(), Port: int(in)}); err != nil {
			return err
		}
		return unix.Listen(listening, 1)
	})
	if err != nil {
		return nil, fmt.Errorf("listen in the box: %w", err)
	}
	defer unix.Close(listening)
	err = s.client.Do(func() (err error) {
		if p.out, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Connect(p.out, &unix.SockaddrInet4{Addr: lab.HostV4.As4(), Port: int(out)})
	})
	if err == nil {
		p.in, _, err = unix.Accept4(listening, unix.SOCK_CLOEXEC)
	}
	if err != nil {
		p.close()
		return nil, fmt.Errorf("connect through the host: %w", err)
	}
	return p, ctx.Err()
}

// rate measures the bits a second of processor time, in thousand millions, over
// so many chunks of 64 KiB.
func (p *pipe) rate(chunks int) func() (float64, error) {
	const chunk = 64 << 10
	return func() (gbits float64, err error) {
		err = onThread(func() error {
			began := threadTime()
			for range chunks {
				if err := p.pass(chunk); err != nil {
					return err
				}
			}
			gbits = float64(chunks*chunk*8) / float64(threadTime()-began)
			return nil
		})
		return gbits, err
	}
}

// pass sends n bytes and takes them in at the other end.
func (p *pipe) pass(n int) error {
	for left := n; left > 0; {
		put, err := unix.Write(p.out, p.buf[:left])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("write: %w", err)
		}
		left -= put
	}
	for n > 0 {
		got, err := unix.Read(p.in, p.buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || got == 0 {
			return fmt.Errorf("read: %d bytes, %w", got, err)
		}
		n -= got
	}
	return nil
}

// retransmits is how many segments had to be sent again so far.
func (p *pipe) retransmits() (uint32, error) {
	var sum uint32
	for _, fd := range []int{p.out, p.in} {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return 0, fmt.Errorf("ask about the connection: %w", err)
		}
		sum += info.Total_retrans
	}
	return sum, nil
}

func (p *pipe) close() {
	for _, fd := range []int{p.out, p.in} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// wall measures how long f takes.
func wall(f func() error) (time.Duration, error) {
	began := time.Now()
	err := f()
	return time.Since(began), err
}
