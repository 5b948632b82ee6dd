package main

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/nftfw/nftfw/pkg/api"
)

func newStatus(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Say whether the policy is enforced, and how things stand",
		Long: `Say whether the policy is enforced, and how things stand. Without a daemon the
kernel is read.

Exit status: 0 enforced, 1 not.`,
		Example: `  nftfw status
  nftfw status --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			status, err := do(cmd.Context(), a, func(c control) (api.Status, error) { return c.Status(cmd.Context()) })
			if err != nil {
				return err
			}
			if a.json {
				err = a.printJSON(status)
			} else {
				a.printStatus(status)
			}
			if err == nil && !status.Enforced {
				return answerNo()
			}
			return err
		},
	}
}

func (a *app) printStatus(s api.Status) {
	enforced := a.paint(green, "yes")
	if !s.Enforced {
		enforced = a.paint(red, "no")
		switch {
		case s.Down:
			enforced += " (removed by `nftfw down`; `nftfw apply` puts it back)"
		case s.Mode == "observe":
			enforced += " (mode: observe)"
		}
	}
	line := func(name, value string) { fmt.Fprintf(a.stdout, "%-12s %s\n", name+":", value) }
	line("enforced", enforced)
	line("table", "inet "+s.Table)
	line("policy", policyLine(s.Policy))
	if s.Policy.Error != "" {
		fmt.Fprintf(a.stdout, "%-12s %s\n", "", a.paint(red, s.Policy.Error))
	}
	if by := s.Policy.ConfirmBy; by != nil {
		line("unconfirmed", a.paint(yellow, "put back at "+by.Local().Format(time.RFC3339)+" unless `nftfw confirm` is called"))
	}
	line("daemon", daemonLine(s.Daemon))
	line("docker", dockerLine(s.Docker))
	if w := s.Swarm; w != nil {
		line("swarm", fmt.Sprintf("%s, %d other nodes, %d services", w.Role, len(w.Nodes), w.Services))
	}
	var sets []string
	for _, name := range slices.Sorted(maps.Keys(s.Sets)) {
		sets = append(sets, name+" "+strconv.Itoa(s.Sets[name].Entries))
	}
	line("sets", strings.Join(sets, ", "))
	a.printSources(s.Sources)
	if s.LastChange != nil {
		line("last change", s.LastChange.Local().Format(time.RFC3339))
	}
	restores := strconv.Itoa(s.Restores)
	if r := s.Restored; r != nil {
		restores += fmt.Sprintf(", last at %s after %s", r.At.Local().Format(time.RFC3339), culprit(*r))
	}
	line("restores", restores)
	a.printProblems(s.Problems)
}

// printSources says for each source of a set when it was last read well, and
// what keeps it from being read.
func (a *app) printSources(list []api.SourceStatus) {
	for _, s := range list {
		good := "never read"
		if s.Age != nil {
			good = fmt.Sprintf("%d entries, last good %s ago", s.Entries, time.Duration(*s.Age)*time.Second)
		}
		fmt.Fprintf(a.stdout, "%-12s %s of %s: %s\n", "source:", s.Source, s.Set, good)
		if s.Error != "" {
			fmt.Fprintf(a.stdout, "%-12s %s\n", "", a.paint(red, s.Error))
		}
		if s.Warning != "" {
			fmt.Fprintf(a.stdout, "%-12s %s\n", "", a.paint(yellow, s.Warning))
		}
	}
}

func culprit(r api.Restore) string {
	if r.Process == "" {
		return "an unknown process"
	}
	return fmt.Sprintf("%s (pid %d)", r.Process, r.PID)
}

func policyLine(p api.PolicyStatus) string {
	switch p.Source {
	case "file":
		return fmt.Sprintf("%s (sha256 %.12s)", p.Path, p.Hash)
	case "last-good":
		return fmt.Sprintf("the last good one (sha256 %.12s), for %s", p.Hash, p.Path)
	default:
		return "the embedded default, for " + p.Path
	}
}

func daemonLine(d api.DaemonStatus) string {
	if !d.Running {
		return "not running"
	}
	return fmt.Sprintf("running, pid %d, version %s", d.PID, d.Version)
}

func dockerLine(d api.DockerStatus) string {
	containers := fmt.Sprintf("%d containers", d.Containers)
	switch {
	case d.Absent:
		return "not followed (--no-docker)"
	case d.Connected:
		return fmt.Sprintf("connected, engine %s, %s", d.Version, containers)
	case d.Error != "":
		return fmt.Sprintf("not connected (%s), %s", d.Error, containers)
	default:
		return "not connected, " + containers
	}
}

// printProblems lists what stays closed or does not count.
func (a *app) printProblems(list []api.Problem) {
	for _, p := range list {
		code := yellow
		if p.Severity == "error" {
			code = red
		}
		fmt.Fprintln(a.stdout, a.paint(code, p.Severity+": "+p.Message))
	}
}
