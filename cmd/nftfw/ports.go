package main

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nftfw/nftfw/pkg/api"
	"github.com/nftfw/nftfw/policy"
)

func newPorts(a *app) *cobra.Command {
	var openTo, picture string
	cmd := &cobra.Command{
		Use:   "ports",
		Short: "List every published port and who may reach it",
		Long: `List every published port, who may reach it, the label, rule or default that
says so, and how many connections were let in and refused since the port has
that permission. Without a daemon it lists what would be open and closed under
the policy file.

In observe mode nothing is refused: the numbers say what would have been, and
the sources who asked.

With --open-to it lists what one source reaches instead: published ports at each
address of the host, and the host's own ports.`,
		Example: `  nftfw ports
  nftfw ports --json
  nftfw ports --open-to 203.0.113.9
  nftfw ports --picture ports.svg`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case openTo != "" && picture != "":
				return usageError("--open-to and --picture do not go together: a picture is of all ports")
			case openTo != "":
				return a.openTo(cmd.Context(), openTo)
			}
			ports, err := do(cmd.Context(), a, func(c control) (api.Ports, error) { return c.Ports(cmd.Context()) })
			if err == nil && picture != "" {
				err = a.drawPorts(cmd.Context(), ports, picture)
			}
			switch {
			case err != nil:
				return err
			case a.json:
				return a.printJSON(ports)
			case picture != "":
				return nil
			}
			return a.printPorts(ports)
		},
	}
	cmd.Flags().StringVar(&openTo, "open-to", "", "list what this source address reaches")
	cmd.Flags().StringVar(&picture, "picture", "", "draw sources, ports and containers into this file, as SVG")
	completeWith(cmd, "picture", files)
	return cmd
}

// openTo prints what one source reaches.
func (a *app) openTo(ctx context.Context, from string) error {
	reach, err := do(ctx, a, func(c control) (api.Reach, error) { return c.Reach(ctx, api.Source{From: from}) })
	switch {
	case err != nil:
		return err
	case a.json:
		return a.printJSON(reach)
	}
	var rows [][]string
	for _, p := range reach.Ports {
		rows = append(rows, []string{
			net.JoinHostPort(p.Address, strconv.Itoa(int(p.Port))) + "/" + p.Proto,
			p.Container, fmt.Sprintf("%d/%s", p.ContainerPort, p.Proto), p.DecidedBy,
		})
	}
	for _, h := range reach.Host {
		ports := h.Ports
		if ports == "*" {
			ports = "all other ports"
		}
		rows = append(rows, []string{ports, "the host", "", h.DecidedBy})
	}
	if len(rows) == 0 {
		fmt.Fprintf(a.stdout, "%s reaches nothing\n", reach.From)
	} else if err := a.printTable([]string{"ADDRESS", "CONTAINER", "PORT", "DECIDED BY"}, rows); err != nil {
		return err
	}
	switch {
	case reach.Down:
		fmt.Fprintln(a.stdout, a.paint(yellow, isDown))
	case reach.Mode == string(policy.Observe):
		fmt.Fprintln(a.stdout, a.paint(yellow, observesOnly+", so all of this is reached whatever the policy says"))
	}
	if reach.In == "" {
		fmt.Fprintln(a.stdout, a.paint(yellow, "this host has no route back to "+reach.From))
	}
	return nil
}

func (a *app) printPorts(ports api.Ports) error {
	refused := "REFUSED"
	if ports.Mode == string(policy.Observe) {
		refused = "WOULD BE REFUSED"
	}
	rows := make([][]cell, 0, len(ports.Ports))
	for _, p := range ports.Ports {
		rows = append(rows, []cell{
			{text: p.Container},
			{text: composeName(p)},
			{text: hostSide(p)},
			{text: fmt.Sprintf("%d/%s", p.ContainerPort, p.Proto)},
			{strings.Join(p.From, ","), fromColour(p)},
			{text: number(p.Accepted)},
			{text: number(p.Refused)},
			{text: decided(p)},
		})
	}
	if err := a.printCells([]string{"CONTAINER", "COMPOSE", "HOST", "PORT", "FROM", "ACCEPTED", refused, "DECIDED BY"}, rows); err != nil {
		return err
	}
	a.printProblems(ports.Problems)
	a.printReasons(ports)
	if err := a.printObserved(ports.Observed); err != nil {
		return err
	}
	if !ports.Enforced {
		fmt.Fprintln(a.stdout, a.paint(yellow, notEnforced(ports)))
	}
	return nil
}

// hostSide is where the port is reached.
func hostSide(p api.Port) string {
	return net.JoinHostPort(cmp.Or(p.HostIP, "*"), strconv.Itoa(int(p.HostPort)))
}

// fromColour is green for a port that all may reach and red for one that
// nobody may, or about which a label is wrong.
func fromColour(p api.Port) string {
	switch {
	case p.Error != "" || len(p.From) == 1 && p.From[0] == "none":
		return red
	case len(p.From) == 1 && p.From[0] == "any":
		return green
	}
	return ""
}

// composeName is how compose calls the container: project/service.
func composeName(p api.Port) string {
	if p.Project == "" {
		return ""
	}
	return p.Project + "/" + p.Service
}

func number(n *uint64) string {
	if n == nil {
		return ""
	}
	return strconv.FormatUint(*n, 10)
}

// Why nothing is refused.
const (
	isDown       = "nothing is enforced since `nftfw down`"
	observesOnly = "mode: observe refuses nothing"
)

// notEnforced says what the list is worth while nothing is refused.
func notEnforced(ports api.Ports) string {
	closes := 0
	for _, p := range ports.Ports {
		if p.HostIP != "127.0.0.1" && p.HostIP != "::1" && !(len(p.From) == 1 && p.From[0] == "any") {
			closes++
		}
	}
	why := "nothing is enforced yet"
	switch {
	case ports.Down:
		why = isDown
	case ports.Mode == string(policy.Observe):
		why = observesOnly
	}
	return fmt.Sprintf("%s: enforcing this policy closes %d of %d published ports to all but their FROM", why, closes, len(ports.Ports))
}

// printReasons prints what was refused at all, the host's own ports and
// containers' connections included.
func (a *app) printReasons(ports api.Ports) {
	var list []string
	for _, why := range policy.Reasons() {
		if n := ports.Refused[string(why)]; n > 0 {
			list = append(list, fmt.Sprintf("%d %s", n, why.Text()))
		}
	}
	if len(list) == 0 {
		return
	}
	word := "refused"
	if !ports.Enforced {
		word = "would have been refused"
	}
	fmt.Fprintf(a.stdout, "packets %s: %s\n", word, strings.Join(list, ", "))
}

// mostSources is how many sources are shown to people.
const mostSources = 20

func (a *app) printObserved(sources []api.Observed) error {
	if len(sources) == 0 {
		return nil
	}
	fmt.Fprintln(a.stdout, "\nwho would have been refused, in the last day:")
	var rows [][]string
	for _, s := range sources[:min(len(sources), mostSources)] {
		from := s.Source
		if s.SourceName != "" {
			from += " (" + s.SourceName + ")"
		}
		rows = append(rows, []string{from, cmp.Or(s.Container, "the host"), fmt.Sprintf("%s/%s", net.JoinHostPort(s.To, strconv.Itoa(int(s.Port))), s.Proto), strconv.FormatUint(s.Refused, 10)})
	}
	if err := a.printTable([]string{"SOURCE", "TO", "ADDRESS", "PACKETS"}, rows); err != nil {
		return err
	}
	if more := len(sources) - mostSources; more > 0 {
		fmt.Fprintf(a.stdout, "and %d more (see --json)\n", more)
	}
	return nil
}

func decided(p api.Port) string {
	if p.DecidedBy == "default" {
		return "default"
	}
	return p.DecidedBy + " " + p.Origin
}
