package main

import (
	"net"
	"slices"

	"github.com/spf13/cobra"

	"github.com/nftfw/nftfw/pkg/api"
)

// completeNames tells a shell which arguments and flags of root's commands name
// files. All others do not, unless they have a function of their own.
func completeNames(root *cobra.Command) {
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	for _, flag := range []string{"policy", "socket"} {
		completeWith(root, flag, files)
	}
	_ = root.MarkPersistentFlagDirname("state-dir") // it fails only where the flag is not there
}

// files lets the shell offer files.
func files(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveDefault
}

// complete gives the values of a flag to a shell.
func complete(cmd *cobra.Command, flag string, values ...string) {
	completeWith(cmd, flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
}

func completeWith(cmd *cobra.Command, flag string, f cobra.CompletionFunc) {
	// It fails only where the flag is not there, or has a function already.
	_ = cmd.RegisterFlagCompletionFunc(flag, f)
}

// completeInterfaces gives the names of the host's links to a shell.
func completeInterfaces(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	var names []string
	list, _ := net.Interfaces() // without them nothing is offered
	for _, i := range list {
		names = append(names, i.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeSets gives the names of sets to a shell, for the first argument, and
// what can be deleted of one for the others of `sets del`.
func (a *app) completeSets(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	const noFiles = cobra.ShellCompDirectiveNoFileComp
	ofEntries := cmd.Name() == "del" && len(args) > 0
	if cmd.Name() == "list" || len(args) > 0 && !ofEntries || a.globals(cmd) != nil {
		return nil, noFiles
	}
	sets, err := do(cmd.Context(), a, func(c control) (api.Sets, error) { return c.Sets(cmd.Context()) })
	if err != nil {
		return nil, noFiles
	}
	var names []string
	for _, s := range sets.Sets {
		switch {
		case !ofEntries:
			names = append(names, s.Name)
		case s.Name == args[0] && s.Runtime > 0 && s.Entries <= mostCompleted:
			return a.completeEntries(cmd, args), noFiles
		}
	}
	return names, noFiles
}

// mostCompleted is the size of the largest set whose entries a shell is given: more
// are of no use to anybody, and take their time.
const mostCompleted = 1000

// completeEntries gives the runtime entries of the set that args begins with, but
// those that follow there.
func (a *app) completeEntries(cmd *cobra.Command, args []string) []string {
	set, err := do(cmd.Context(), a, func(c control) (api.Set, error) { return c.Set(cmd.Context(), args[0]) })
	if err != nil {
		return nil
	}
	var entries []string
	for _, e := range set.Entries {
		if e.Source == "runtime" && !slices.Contains(args[1:], e.Entry) {
			entries = append(entries, e.Entry)
		}
	}
	return entries
}
