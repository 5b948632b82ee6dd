package main

import (
	"errors"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

func newRender(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "render [FILE]",
		Short: "Print the complete ruleset as nft text",
		Long: `Print the complete ruleset that the policy file, the saved sets and the running
containers make, as text for nft -f. Nothing is changed.

nft adds such text to a table that stands. To have it in place of one, or checked
as if there were none, delete that in the same transaction.`,
		Example: `  nftfw render
  nftfw render ./policy.yaml | nft -c -f -
  (echo 'add table inet nftfw; delete table inet nftfw'; nftfw render) | nft -c -f -`,
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: files,
		RunE: func(cmd *cobra.Command, args []string) error {
			path := a.policy
			if len(args) == 1 {
				path = args[0]
			}
			if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
				if len(args) == 1 {
					return &exitError{status: exitUsage, err: noSuchFile(path)}
				}
				a.warn(noPolicyFile(path))
			}
			if !a.json {
				return a.direct().Render(cmd.Context(), path, a.stdout)
			}
			var text strings.Builder
			if err := a.direct().Render(cmd.Context(), path, &text); err != nil {
				return err
			}
			return a.printJSON(map[string]string{"table": a.table, "ruleset": text.String()})
		},
	}
}
