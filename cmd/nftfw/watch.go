package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nftfw/nftfw/pkg/api"
)

func newWatch(a *app) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "watch",
		Short: "Show refused connections as they come",
		Long: `Show refused connections as they come: when, from where, to which container or
port of the host, and why. It needs the daemon, and ends with Ctrl-C.

The kernel shows at most log.rate of each reason. How many more there were is
told a little later. In observe mode it shows what would be refused.`,
		Example: `  nftfw watch
  nftfw watch --all --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			show := a.printEvent
			if a.json {
				lines := json.NewEncoder(a.stdout)
				lines.SetEscapeHTML(false)
				show = func(e api.Event) error { return lines.Encode(e) }
			}
			err := a.client().Watch(cmd.Context(), all, show)
			if cmd.Context().Err() != nil && !errors.Is(err, api.ErrNoDaemon) {
				return nil // told to end
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "show accepted connections as well")
	return cmd
}

// printEvent prints one line.
func (a *app) printEvent(e api.Event) error {
	when := e.Time.Local().Format("15:04:05.000")
	if e.Verdict == api.Missed {
		n := "some"
		if e.Missed > 0 {
			n = strconv.FormatUint(e.Missed, 10)
		}
		_, err := fmt.Fprintln(a.stdout, when, a.paint(yellow, n+" more are not shown: "+e.Why))
		return err
	}
	code := red
	switch e.Verdict {
	case api.Accepted:
		code = green
	case api.WouldRefuse:
		code = yellow
	case api.Refused, api.Missed, api.Failed:
	}
	words := []string{when, a.paint(code, string(e.Verdict)), named(e.Source, e.SourceContainer), "to", destination(e)}
	if e.In != "" {
		words = append(words, "in "+e.In)
	}
	if why := because(e); why != "" {
		words = append(words, "-", why)
	}
	_, err := fmt.Fprintln(a.stdout, strings.Join(words, " "))
	return err
}

func named(addr, name string) string {
	if name == "" {
		return addr
	}
	return fmt.Sprintf("%s (%s)", name, addr)
}

// destination says what the packet was for: the container, or the host.
func destination(e api.Event) string {
	at := e.To
	if e.Port != 0 {
		at = net.JoinHostPort(e.To, strconv.Itoa(int(e.Port)))
	}
	return fmt.Sprintf("%s %s (%s)", cmp.Or(e.Container, "the host"), e.Proto, at)
}

func because(e api.Event) string {
	switch {
	case e.DecidedBy == "":
		return e.Why
	case e.Why == "":
		return e.DecidedBy
	}
	return fmt.Sprintf("%s (%s)", e.Why, e.DecidedBy)
}
