package sources

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/sources/spec"
)

const (
	// resolverFile names the host's resolvers, resolv.conf(5).
	resolverFile = "/etc/resolv.conf"
	// answerTimeout is how long one resolver has for an answer.
	answerTimeout = 3 * time.Second
	// udpSize is the largest answer that is asked for over UDP, in bytes: it
	// passes everywhere in one piece (DNS flag day 2020).
	udpSize = 1232
	// maxAliases is how many CNAMEs are followed within an answer.
	maxAliases = 16
	// dnsRetryMost bounds the pause after a failure: an address that moved is
	// shut out for so long at the most.
	dnsRetryMost = time.Minute
)

// nameFollower asks for the addresses of one name again and again.
type nameFollower struct {
	spec   spec.DNS
	source addrset.Source
	reader Reader
	// known are the addresses that are told of, with the time at which one
	// that is no longer answered goes; zero for those that are answered.
	known map[netip.Addr]time.Time
	told  []addrset.Entry // the last time
}

// followDNS tells of the addresses of a name.
func (r Reader) followDNS(ctx context.Context, s spec.DNS, source addrset.Source, last Last, emit func(Update)) {
	f := &nameFollower{spec: s, source: source, reader: r, known: map[netip.Addr]time.Time{}, told: last.Entries.Entries()}
	for _, e := range last.Entries.Entries() {
		f.known[e.Range.From] = e.Expires
	}
	p := pause{jitter: r.jitter, every: dnsRetryMost}
	for wait := time.Duration(0); sleep(ctx, wait); {
		var err error
		wait, err = f.ask(ctx, emit)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			emit(Update{Err: err})
			wait = min(p.after(err), f.spec.MaxTTL)
			continue
		}
		p.backoff = 0
	}
}

// ask asks for both families and tells of what was answered. It gives the time
// for which the answers may be believed.
func (f *nameFollower) ask(ctx context.Context, emit func(Update)) (time.Duration, error) {
	ttl := f.spec.MaxTTL
	var failed []error
	answered := 0
	for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
		a, err := f.reader.lookup(ctx, f.spec.Name, kind)
		if err != nil {
			failed = append(failed, fmt.Errorf("ask for %s of %s: %w", dns.TypeToString[kind], f.spec.Name, err))
			continue
		}
		answered++
		ttl = min(ttl, a.ttl)
		f.note(kind, a.addrs, time.Now())
	}
	if answered == 0 {
		return 0, together(failed)
	}
	entries := addrset.New(f.entries()...).Entries()
	nobody := len(failed) == 0 && !slices.Contains(slices.Collect(maps.Values(f.known)), time.Time{})
	if nobody {
		failed = append(failed, fmt.Errorf("%s has no addresses", f.spec.Name))
	}
	// An error that lasts is told of alone: nothing is well in between.
	if changed := !slices.Equal(entries, f.told); len(failed) == 0 || changed && (nobody || len(entries) > 0) {
		f.told = entries
		emit(Update{Whole: true, Add: entries})
	}
	return max(ttl, f.spec.MinTTL), together(failed)
}

// note joins the answer for one family with what is known.
func (f *nameFollower) note(kind uint16, answer []netip.Addr, now time.Time) {
	for a, expires := range f.known {
		switch {
		case a.Is4() != (kind == dns.TypeA):
		case !expires.IsZero() && !expires.After(now):
			delete(f.known, a)
		case expires.IsZero() && f.spec.Grace <= 0:
			delete(f.known, a)
		case expires.IsZero():
			f.known[a] = now.Add(f.spec.Grace)
		}
	}
	for _, a := range answer {
		f.known[a] = time.Time{}
	}
}

func (f *nameFollower) entries() []addrset.Entry {
	var out []addrset.Entry
	for a, expires := range f.known {
		out = append(out, addrset.Entry{Range: addrset.Range{From: a, To: a}, Source: f.source, Expires: expires})
	}
	return out
}

// answer is what a resolver says of a name.
type answer struct {
	addrs []netip.Addr // none: the name has no such addresses
	ttl   time.Duration
}

// lookup asks the resolvers one after the other until one answers.
func (r Reader) lookup(ctx context.Context, name string, kind uint16) (answer, error) {
	servers, err := r.resolvers()
	if err != nil {
		return answer{}, err
	}
	var failed []error
	for _, server := range servers {
		a, err := exchange(ctx, server, name, kind)
		if err == nil {
			return a, nil
		}
		var op *net.OpError // has a port of our own, another one each time
		if errors.As(err, &op) {
			err = op.Err
		}
		failed = append(failed, fmt.Errorf("resolver %s: %w", server, err))
	}
	return answer{}, together(failed)
}

// resolvers gives the addresses of the resolvers.
func (r Reader) resolvers() ([]string, error) {
	var out []string
	for _, a := range r.Resolvers {
		out = append(out, a.String())
	}
	if len(out) > 0 {
		return out, nil
	}
	config, err := dns.ClientConfigFromFile(resolverFile)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", resolverFile, err)
	}
	for _, server := range config.Servers {
		if a, err := netip.ParseAddr(server); err == nil { // with its zone, as in fe80::1%eth0
			out = append(out, netip.AddrPortFrom(a, 53).String())
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s names no resolver", resolverFile)
	}
	return out, nil
}

// exchange asks one resolver, over TCP where the answer does not fit into a
// datagram.
func exchange(ctx context.Context, server, name string, kind uint16) (answer, error) {
	question := new(dns.Msg)
	question.SetQuestion(dns.Fqdn(name), kind)
	question.SetEdns0(udpSize, false)
	var reply *dns.Msg
	for _, network := range []string{"udp", "tcp"} {
		client := dns.Client{Net: network, Timeout: answerTimeout}
		var err error
		if reply, _, err = client.ExchangeContext(ctx, question, server); err != nil {
			return answer{}, err
		}
		if !reply.Truncated {
			break
		}
	}
	switch {
	case reply.Truncated:
		return answer{}, errors.New("the answer is cut short")
	case len(reply.Question) != 1 || !strings.EqualFold(reply.Question[0].Name, question.Question[0].Name) || reply.Question[0].Qtype != kind:
		return answer{}, errors.New("the answer is to another question")
	case reply.Rcode != dns.RcodeSuccess && reply.Rcode != dns.RcodeNameError:
		return answer{}, fmt.Errorf("answered %s", dns.RcodeToString[reply.Rcode])
	}
	return read(reply, kind), nil
}

// read takes the addresses of the name, and of those that it stands for, from
// a reply.
func read(reply *dns.Msg, kind uint16) answer {
	owner := reply.Question[0].Name
	var out answer
	first := true
	live := func(ttl uint32) {
		if d := time.Duration(ttl) * time.Second; first || d < out.ttl {
			out.ttl, first = d, false
		}
	}
	for range maxAliases {
		alias := ""
		for _, record := range reply.Answer {
			if !strings.EqualFold(record.Header().Name, owner) {
				continue
			}
			switch record := record.(type) {
			case *dns.CNAME:
				alias = record.Target
				live(record.Hdr.Ttl)
			case *dns.A:
				if a, ok := netip.AddrFromSlice(record.A); ok && kind == dns.TypeA {
					out.addrs = append(out.addrs, a.Unmap())
					live(record.Hdr.Ttl)
				}
			case *dns.AAAA:
				if a, ok := netip.AddrFromSlice(record.AAAA); ok && kind == dns.TypeAAAA && !a.Is4In6() {
					out.addrs = append(out.addrs, a)
					live(record.Hdr.Ttl)
				}
			}
		}
		if alias == "" || len(out.addrs) > 0 {
			break
		}
		owner = alias
	}
	if len(out.addrs) > 0 {
		return out
	}
	// Nobody there: for how long that holds, see RFC 2308, 5.
	for _, record := range reply.Ns {
		if soa, ok := record.(*dns.SOA); ok {
			live(min(soa.Hdr.Ttl, soa.Minttl))
		}
	}
	return out
}
