package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/nftfw/nftfw/pkg/doctor"
)

// diagnosis is the answer of `nftfw doctor --json`.
type diagnosis struct {
	Findings []doctor.Finding `json:"findings"`
}

func newDoctor(a *app) *cobra.Command {
	var noDocker bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what on this host weakens or breaks the firewall",
		Long: `Say what on this host weakens or breaks the firewall, each with its remedy. It
changes nothing, and works without a daemon. Without root it says what it could
not look at.

Exit status: 0 clean, 1 findings, 5 where nothing could be looked at.`,
		Example: `  nftfw doctor
  nftfw doctor --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			facts := doctor.Look(cmd.Context(), doctor.Options{
				PolicyPath: a.policy, StateDir: a.stateDir, Socket: a.socket,
				DockerHost: a.dockerHost, NoDocker: noDocker, Table: a.table,
			})
			if err := cmd.Context().Err(); err != nil {
				return err
			}
			if err := facts.Blind(); err != nil {
				return err
			}
			findings := doctor.Examine(facts)
			if a.json {
				if err := a.printJSON(diagnosis{findings}); err != nil {
					return err
				}
			} else {
				a.printFindings(findings)
			}
			if len(findings) > 0 {
				return answerNo()
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&noDocker, "no-docker", false, "this host has no Docker")
	return cmd
}

func (a *app) printFindings(list []doctor.Finding) {
	if len(list) == 0 {
		fmt.Fprintln(a.stdout, a.paint(green, "nothing found"))
		return
	}
	for i, f := range list {
		if i > 0 {
			fmt.Fprintln(a.stdout)
		}
		code := yellow
		if f.Severity == doctor.Error {
			code = red
		}
		fmt.Fprintf(a.stdout, "%s: %s\n", a.paint(code, fmt.Sprintf("%s [%s]", f.Severity, f.ID)), f.What)
		fmt.Fprintf(a.stdout, "  why:    %s\n  remedy: %s\n", f.Why, f.Remedy)
	}
}
