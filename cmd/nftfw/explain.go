package main

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nftfw/nftfw/pkg/api"
	"github.com/nftfw/nftfw/policy"
)

func newExplain(a *app) *cobra.Command {
	var from, to, expect, in string
	cmd := &cobra.Command{
		Use:   "explain --from ADDR --to ADDR[:PORT][/PROTO]",
		Short: "Say what becomes of a packet, and which line or label decides",
		Long: `Follow the first packet of a connection step by step, against what is in force
now. The last line is the verdict; for a drop the command that would open it, or the
place to change, stands before it. In observe mode the verdict is accept, and what it
would be stands there as well. PROTO is tcp unless given; a protocol without ports
stands behind the address alone, and with neither it is a ping.

Exit status: 0, or 1 when the verdict is not the one that --expect names.`,
		Example: `  nftfw explain --from 203.0.113.9 --to 198.51.100.2:8080
  nftfw explain --from 2001:db8::9 --to '[2001:db8::1]:53/udp' --expect drop
  nftfw explain --from 203.0.113.9 --to 198.51.100.2/esp`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if expect != "" && expect != "accept" && expect != "drop" {
				return usageError("--expect %q: want accept or drop", expect)
			}
			if from == "" || to == "" {
				return usageError("--from and --to are needed (see nftfw explain --help)")
			}
			question, err := parseQuestion(from, to, in)
			if err != nil {
				return err
			}
			answer, err := do(cmd.Context(), a, func(c control) (api.Explanation, error) { return c.Explain(cmd.Context(), question) })
			if err != nil {
				return err
			}
			if a.json {
				err = a.printJSON(answer)
			} else {
				err = a.printExplanation(answer)
			}
			if err == nil && expect != "" && expect != answer.Verdict {
				return answerNo()
			}
			return err
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "source `ADDR`")
	cmd.Flags().StringVar(&to, "to", "", "destination `ADDR[:PORT][/PROTO]`, IPv6 with a port in brackets")
	cmd.Flags().StringVar(&in, "in", "", "`IFACE` on which it arrives (default: the one towards the source)")
	cmd.Flags().StringVar(&expect, "expect", "", "exit 1 unless the verdict is `accept|drop`")
	complete(cmd, "expect", "accept", "drop")
	completeWith(cmd, "in", completeInterfaces)
	return cmd
}

// IANA numbers of the protocols of a ping.
const (
	protoICMP   = 1
	protoICMPv6 = 58
)

// parseQuestion reads the source and the destination.
func parseQuestion(from, to, in string) (api.Question, error) {
	q := api.Question{From: from, In: in}
	address, proto, hasProto := strings.Cut(to, "/")
	if a, err := netip.ParseAddr(address); err == nil {
		q.To, q.Proto = a.String(), protoICMP
		if a.Is6() {
			q.Proto = protoICMPv6
		}
		if hasProto {
			spec, err := policy.ParsePort(proto)
			if err != nil || !spec.Portless {
				return q, usageError("--to %q: %q is no protocol without ports; one that has them needs one, as in %s/tcp", to, proto, netip.AddrPortFrom(a, 80))
			}
			q.Proto = spec.Proto
		}
		return q, nil
	}
	ap, err := netip.ParseAddrPort(address)
	if err != nil || ap.Port() == 0 {
		return q, usageError("--to %q: want ADDR, ADDR:PORT, ADDR:PORT/PROTO or ADDR/PROTO, an IPv6 address with a port in brackets", to)
	}
	q.To, q.Port = ap.Addr().String(), ap.Port()
	text := fmt.Sprint(ap.Port())
	if hasProto {
		text += "/" + proto
	}
	spec, err := policy.ParsePort(text)
	if err != nil {
		return q, usageError("--to %q: %w", to, err)
	}
	q.Proto = spec.Proto
	return q, nil
}

func (a *app) printExplanation(e api.Explanation) error {
	rows := make([][]string, 0, len(e.Steps))
	for _, s := range e.Steps {
		rows = append(rows, []string{s.Where, s.What, s.Result})
	}
	if err := a.printTable([]string{"WHERE", "WHAT", "RESULT"}, rows); err != nil {
		return err
	}
	if e.DecidedBy != "" {
		fmt.Fprintln(a.stdout, "decided by:", e.DecidedBy)
	}
	if e.Remedy != "" {
		fmt.Fprintln(a.stdout, "to open it:", e.Remedy)
	}
	if e.Enforced != "" {
		fmt.Fprintln(a.stdout, a.paint(yellow, "in observe mode; enforced, it would be: "+e.Enforced))
	}
	code := green
	if e.Verdict == "drop" {
		code = red
	}
	fmt.Fprintln(a.stdout, a.paint(code, "verdict: "+e.Verdict))
	return nil
}
