package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/api"
)

func newSets(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "sets",
		Short: "List and change the named address sets",
		Long: `List and change the named address sets. An address is a single one, a CIDR or a
range a-b, IPv4 or IPv6. Entries added here outlive restarts and reboots.`,
		Example: `  nftfw sets list
  nftfw sets add trusted 192.0.2.10 --timeout 8h`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newSetsList(a), newSetsShow(a), newSetsAdd(a), newSetsDel(a), newSetsFlush(a), newSetsTest(a))
	for _, sub := range cmd.Commands() {
		sub.ValidArgsFunction = a.completeSets
	}
	return cmd
}

func newSetsList(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the sets", Example: "  nftfw sets list", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			sets, err := do(cmd.Context(), a, func(c control) (api.Sets, error) { return c.Sets(cmd.Context()) })
			switch {
			case err != nil:
				return err
			case a.json:
				return a.printJSON(sets)
			}
			var rows [][]string
			for _, s := range sets.Sets {
				rows = append(rows, []string{s.Name, strconv.Itoa(s.Entries), strconv.Itoa(s.Policy), strconv.Itoa(s.Runtime), strconv.Itoa(s.Sources), s.Comment})
			}
			return a.printTable([]string{"SET", "ENTRIES", "POLICY", "RUNTIME", "SOURCES", "COMMENT"}, rows)
		},
	}
}

func newSetsShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "Show the entries of a set", Example: "  nftfw sets show trusted", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			set, err := do(cmd.Context(), a, func(c control) (api.Set, error) { return c.Set(cmd.Context(), args[0]) })
			switch {
			case err != nil:
				return err
			case a.json:
				return a.printJSON(set)
			}
			return a.printEntries(set.Entries)
		},
	}
}

func (a *app) printEntries(entries []api.Entry) error {
	rows := make([][]string, 0, len(entries))
	for _, e := range entries {
		expires := "never"
		if e.ExpiresAt != nil {
			expires = e.ExpiresAt.Local().Format(time.RFC3339)
		}
		rows = append(rows, []string{e.Entry, cmp.Or(e.Origin, e.Source), expires, e.Comment})
	}
	return a.printTable([]string{"ENTRY", "SOURCE", "EXPIRES", "COMMENT"}, rows)
}

func newSetsAdd(a *app) *cobra.Command {
	var (
		timeout string
		file    string
		fleet   bool
		change  api.SetChange
	)
	cmd := &cobra.Command{
		Use:   "add NAME ADDR…",
		Short: "Add entries to a set, in force and on disk at once",
		Long: `Add entries to a set: all of them, or none when one is wrong. They are in force
and on disk when the command ends. Adding an entry that is there renews its
timeout and comment.

With --fleet they are written into the set's etcd, and every host that follows
it enforces them.`,
		Example: `  nftfw sets add trusted 192.0.2.10
  nftfw sets add trusted 203.0.113.0/24 2001:db8::/32 --timeout 8h --comment "on call"
  nftfw sets add blocked --file drop.txt
  nftfw sets add trusted 192.0.2.10 --fleet`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if change.Timeout, err = parseTimeout("timeout", timeout); err != nil {
				return err
			}
			if change.Entries, err = a.gather(args[1:], file); err != nil {
				return err
			}
			if len(change.Entries) == 0 {
				return a.nothingToDo(cmd.Context(), args[0], file)
			}
			out, err := do(cmd.Context(), a, func(c control) (api.Change, error) {
				if fleet {
					return c.AddToFleet(cmd.Context(), args[0], change)
				}
				return c.AddToSet(cmd.Context(), args[0], change)
			})
			return a.report(out, err, "")
		},
	}
	forceFlag(cmd, &change.Force)
	cmd.Flags().StringVar(&timeout, "timeout", "", "remove the entries by themselves after `DURATION` (30s, 1h, 7d)")
	cmd.Flags().StringVar(&change.Comment, "comment", "", "`TEXT` to keep with the entries")
	cmd.Flags().BoolVar(&fleet, "fleet", false, "change the set's etcd, for every host that follows it")
	cmd.Flags().StringVar(&file, "file", "", "read entries from `FILE` too, one a line, # begins a comment (- is standard input)")
	completeWith(cmd, "file", files)
	return cmd
}

func newSetsDel(a *app) *cobra.Command {
	var change api.SetChange
	var file string
	var fleet bool
	cmd := &cobra.Command{
		Use:   "del NAME ADDR…",
		Short: "Remove entries from a set",
		Long: `Remove entries from a set: all of them, or none when one is not there. Entries
are removed as they were added; what other entries cover stays. Entries that
the policy file or a source holds are removed there; with --fleet, those in the
set's etcd.`,
		Example: `  nftfw sets del trusted 192.0.2.10
  nftfw sets del trusted 203.0.113.0/24 --exist`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if change.Entries, err = a.gather(args[1:], file); err != nil {
				return err
			}
			if len(change.Entries) == 0 {
				return a.nothingToDo(cmd.Context(), args[0], file)
			}
			out, err := do(cmd.Context(), a, func(c control) (api.Change, error) {
				if fleet {
					return c.DeleteFromFleet(cmd.Context(), args[0], change)
				}
				return c.DeleteFromSet(cmd.Context(), args[0], change)
			})
			return a.report(out, err, "")
		},
	}
	forceFlag(cmd, &change.Force)
	cmd.Flags().BoolVar(&change.Exist, "exist", false, "pass over entries that are not there")
	cmd.Flags().BoolVar(&fleet, "fleet", false, "change the set's etcd, for every host that follows it")
	cmd.Flags().StringVar(&file, "file", "", "read entries from `FILE` too, one a line, # begins a comment (- is standard input)")
	completeWith(cmd, "file", files)
	return cmd
}

func newSetsFlush(a *app) *cobra.Command {
	var flush api.Flush
	cmd := &cobra.Command{
		Use: "flush NAME", Short: "Remove every entry that was added by command", Example: "  nftfw sets flush blocked", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			out, err := do(cmd.Context(), a, func(c control) (api.Change, error) { return c.FlushSet(cmd.Context(), args[0], flush) })
			return a.report(out, err, "")
		},
	}
	forceFlag(cmd, &flush.Force)
	return cmd
}

func newSetsTest(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "test NAME ADDR",
		Short:   "Say whether an address is in a set",
		Long:    "Say whether an address, or every address of a CIDR or range, is in a set.\n\nExit status: 0 in, 1 not in.",
		Example: "  nftfw sets test trusted 192.0.2.10",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := do(cmd.Context(), a, func(c control) (api.Membership, error) { return c.TestSet(cmd.Context(), args[0], args[1]) })
			if err != nil {
				return err
			}
			switch {
			case a.json:
				err = a.printJSON(m)
			case m.In:
				fmt.Fprintf(a.stdout, "%s is in %s\n", m.Address, m.Name)
				err = a.printEntries(m.Entries)
			default:
				fmt.Fprintf(a.stdout, "%s is not in %s\n", m.Address, m.Name)
			}
			if err == nil && !m.In {
				return answerNo()
			}
			return err
		},
	}
}

// nothingToDo ends a change of the set name by a file that holds no entry, as a list
// does on a day without any.
func (a *app) nothingToDo(ctx context.Context, name, file string) error {
	_, err := do(ctx, a, func(c control) (api.Set, error) { return c.Set(ctx, name) })
	if file == "-" {
		file = "standard input"
	}
	return a.report(api.Change{Warnings: []string{file + " holds no entry: nothing to do"}}, err, "")
}

// gather joins the entries of the command line with those of a file. Only a file may
// hold none.
func (a *app) gather(args []string, file string) ([]string, error) {
	out := args
	if file != "" {
		source, name := a.stdin, "standard input"
		if file != "-" {
			f, err := os.Open(file)
			if err != nil {
				return nil, &exitError{status: exitUsage, err: err}
			}
			defer f.Close()
			source, name = f, file
		}
		read, err := readEntries(source, name)
		if err != nil {
			return nil, err
		}
		out = append(out, read...)
	}
	if len(out) == 0 && file == "" {
		return nil, usageError("no address given")
	}
	return out, nil
}

// readEntries reads one entry a line, and names the line of one that is none.
func readEntries(r io.Reader, name string) ([]string, error) {
	var out []string
	lines := bufio.NewScanner(r)
	n := 1
	for ; lines.Scan(); n++ {
		text := lines.Text()
		if n == 1 {
			text = strings.TrimPrefix(text, "\ufeff") // as editors on Windows begin a file
		}
		text, _, _ = strings.Cut(text, "#")
		text = strings.TrimSpace(text)
		if text == "" {
			continue
		}
		if _, err := addrset.ParseRange(text); err != nil {
			return nil, usageError("%s:%d: %w", name, n, err)
		}
		out = append(out, text)
	}
	if err := lines.Err(); errors.Is(err, bufio.ErrTooLong) {
		return nil, usageError("%s:%d: a line of more than %d bytes; one entry a line", name, n, bufio.MaxScanTokenSize)
	} else if err != nil {
		return nil, usageError("read %s: %w", name, err)
	}
	return out, nil
}
