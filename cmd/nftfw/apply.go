package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/nftfw/nftfw/pkg/api"
	"github.com/nftfw/nftfw/pkg/daemon"
	"github.com/nftfw/nftfw/policy"
)

func newApply(a *app) *cobra.Command {
	var (
		dryRun, force bool
		confirm       string
	)
	cmd := &cobra.Command{
		Use:   "apply",
		Short: "Put the policy file in force",
		Long: `Put the policy file in force, through the daemon where one runs, else directly.

Nothing is changed when the file has a mistake. Without a policy file the
embedded default is put in force: the ports of sshd open to any, all else to
the set trusted only.

With --confirm the former policy comes back by itself unless you call nftfw
confirm in time: also when your connection, or the daemon, dies meanwhile. A
change that would cut an SSH connection of this host is refused without
--confirm or --force.`,
		Example: `  nftfw apply
  nftfw apply --confirm 60s
  nftfw apply --dry-run --policy ./policy.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			within, err := parseTimeout("confirm", confirm)
			switch asked := cmd.Flags().Changed("confirm"); {
			case err != nil:
				return err
			case asked && dryRun:
				return usageError("--dry-run changes nothing, so there is nothing to --confirm")
			case asked && within < time.Second:
				return usageError("--confirm %s: give yourself a second at least", within)
			}
			request, err := a.applyRequest(dryRun)
			if err != nil {
				return err
			}
			request.Force, request.Confirm = force, within
			change, err := do(cmd.Context(), a, func(c control) (api.Change, error) { return c.Apply(cmd.Context(), request) })
			if dryRun {
				return a.printPlan(change, err)
			}
			done := "policy applied"
			if within > 0 {
				done = fmt.Sprintf("policy applied; the former one is back in %s unless you call `nftfw confirm`", confirm)
				return a.report(change, err, done)
			}
			if !change.Changed {
				done = "policy in force; the kernel's rules are those that it asks for already"
			}
			return a.report(change, err, done)
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only say what would change in the kernel")
	cmd.Flags().StringVar(&confirm, "confirm", "", "put the former policy back after `DURATION` (30s, 5m, 1h) unless nftfw confirm is called")
	forceFlag(cmd, &force)
	return cmd
}

// forceFlag adds the flag that overrides the guard of SSH connections.
func forceFlag(cmd *cobra.Command, force *bool) {
	cmd.Flags().BoolVar(force, "force", false, "do it even if it cuts an SSH connection of this host")
}

func newConfirm(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "confirm",
		Short: "Keep the policy that was applied with --confirm",
		Long:  "Keep the policy that was applied with --confirm.\n\nExit status: 0 kept, 1 none was waiting, 3 no daemon.",
		Example: `  nftfw apply --confirm 60s
  nftfw confirm`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			change, err := a.client().Confirm(cmd.Context())
			if err == nil && !change.Changed {
				return &exitError{status: exitNo, err: errors.New("nothing waits for a confirmation")}
			}
			return a.report(change, err, "confirmed: the policy stays in force")
		},
	}
}

func newPlan(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "plan",
		Short: "Show what an apply would change in the kernel",
		Long:  "Show what an apply would change in the kernel now. Nothing is changed.\n\nExit status: 0 nothing, 4 something.",
		Example: `  nftfw plan
  nftfw plan --policy ./policy.yaml && echo nothing to do`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			request, err := a.applyRequest(true)
			if err != nil {
				return err
			}
			change, err := do(cmd.Context(), a, func(c control) (api.Change, error) { return c.Apply(cmd.Context(), request) })
			if err := a.printPlan(change, err); err != nil {
				return err
			}
			if change.Changed {
				return &exitError{status: exitChanges}
			}
			return nil
		},
	}
}

// applyRequest reads the policy file for an apply.
func (a *app) applyRequest(dryRun bool) (api.Apply, error) {
	path, err := filepath.Abs(a.policy)
	if err != nil {
		return api.Apply{}, err
	}
	text, err := daemon.ReadPolicyFile(path)
	if err != nil {
		return api.Apply{}, &exitError{status: exitUsage, err: err}
	}
	if text == nil {
		a.warn(noPolicyFile(path))
	}
	delete(a.given, "policy") // the daemon gets its text
	return api.Apply{Path: path, Source: text, DryRun: dryRun}, nil
}

func noPolicyFile(path string) string {
	return fmt.Sprintf("no policy file at %s: the embedded default", path)
}

func (a *app) printPlan(change api.Change, err error) error {
	for _, w := range change.Warnings {
		a.warn(w)
	}
	if err != nil {
		return err
	}
	if a.json {
		change.Lines = append([]string{}, change.Lines...)
		change.Plan = append([]api.PlanLine{}, change.Plan...)
		change.Ports = append([]api.PortChange{}, change.Ports...)
		return a.printJSON(change)
	}
	for _, l := range change.Plan {
		fmt.Fprintln(a.stdout, a.paint(signColour(l.Line), l.Line)+a.paint(faint, behind(l)))
	}
	return a.printPortChanges(change)
}

// signColour is the colour of a line that begins with + or -.
func signColour(line string) string {
	if line[0] == '+' {
		return green
	}
	return red
}

// behind says who asked for a line: nft reads it as a comment.
func behind(l api.PlanLine) string {
	switch {
	case l.Origin != "" && (l.Container == "" || strings.Contains(l.Origin, l.Container)):
		return "  # " + l.Origin
	case l.Origin != "":
		return fmt.Sprintf("  # %s, for container %s", l.Origin, l.Container)
	case l.Container != "":
		return "  # container " + l.Container
	}
	return ""
}

// printPortChanges says what a plan means for published ports.
func (a *app) printPortChanges(change api.Change) error {
	if len(change.Ports) == 0 {
		return nil
	}
	words := "what that means for published ports:"
	if change.Mode == string(policy.Observe) {
		words = "mode: observe refuses nothing; enforced, the policy would mean for published ports:"
	}
	fmt.Fprintln(a.stdout, "\n"+words)
	var rows [][]cell
	for _, p := range change.Ports {
		verb, code := portVerb(p)
		rows = append(rows, []cell{
			{verb, code},
			{text: p.Container},
			{text: composeName(p.Port)},
			{text: hostSide(p.Port)},
			{text: fmt.Sprintf("%d/%s", p.ContainerPort, p.Proto)},
			{text: strings.Join(p.Before, ",")},
			{strings.Join(p.From, ","), code},
			{text: decided(p.Port)},
		})
	}
	return a.printCells([]string{"", "CONTAINER", "COMPOSE", "HOST", "PORT", "FROM NOW", "FROM THEN", "DECIDED BY"}, rows)
}

// portVerb says in a word what becomes of a port, and in which colour.
func portVerb(p api.PortChange) (verb, colour string) {
	is := func(from []string, word string) bool { return len(from) == 1 && from[0] == word }
	switch {
	case is(p.Before, "any") || is(p.From, "none"):
		return "closes", red
	case is(p.From, "any") || is(p.Before, "none"):
		return "opens", green
	}
	return "changes", yellow
}

func newReload(a *app) *cobra.Command {
	var reload api.Reload
	cmd := &cobra.Command{
		Use:     "reload",
		Short:   "Have the daemon read its policy file again",
		Long:    "Have the daemon read its policy file again. A file with a mistake changes nothing.",
		Example: "  nftfw reload",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			change, err := a.client().Reload(cmd.Context(), reload)
			done := "policy reloaded"
			if !change.Changed {
				done = "policy reloaded, nothing changed"
			}
			return a.report(change, err, done)
		},
	}
	forceFlag(cmd, &reload.Force)
	return cmd
}

func newDown(a *app) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Stop enforcing: remove the table",
		Long: `Stop enforcing: remove the table, and tell the daemon not to put it back until
the next apply or a restart of the daemon. Every published port is open to the
world from then on, as Docker leaves it.`,
		Example: `  nftfw down
  nftfw down --yes`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !yes {
				if err := a.confirm("Remove the firewall, leaving every published port open to all?"); err != nil {
					return err
				}
			}
			change, err := do(cmd.Context(), a, func(c control) (api.Change, error) { return c.Down(cmd.Context()) })
			done := "table removed; nothing is enforced until `nftfw apply` or a restart of the daemon"
			if !change.Changed {
				done = "there was no table; nothing is enforced until `nftfw apply` or a restart of the daemon"
			}
			return a.report(change, err, done)
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}
