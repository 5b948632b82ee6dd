package main

import (
	"cmp"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nftfw/nftfw/pkg/api"
)

func newPorts(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "ports",
		Short: "List every published port and who may reach it",
		Long: `List every published port, who may reach it, and the label, rule or default that
says so. Without a daemon it lists what would be open and closed under the
policy file.`,
		Example: `  nftfw ports
  nftfw ports --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ports, err := do(cmd.Context(), a, func(c control) (api.Ports, error) { return c.Ports(cmd.Context()) })
			switch {
			case err != nil:
				return err
			case a.json:
				return a.printJSON(ports)
			}
			return a.printPorts(ports)
		},
	}
}

func (a *app) printPorts(ports api.Ports) error {
	rows := make([][]string, 0, len(ports.Ports))
	for _, p := range ports.Ports {
		rows = append(rows, []string{
			p.Container,
			net.JoinHostPort(cmp.Or(p.HostIP, "*"), strconv.Itoa(int(p.HostPort))),
			fmt.Sprintf("%d/%s", p.ContainerPort, p.Proto),
			strings.Join(p.From, ","),
			decided(p),
		})
	}
	if err := a.printTable([]string{"CONTAINER", "HOST", "PORT", "FROM", "DECIDED BY"}, rows); err != nil {
		return err
	}
	a.printProblems(ports.Problems)
	return nil
}

func decided(p api.Port) string {
	if p.DecidedBy == "default" {
		return "default"
	}
	return p.DecidedBy + " " + p.Origin
}
