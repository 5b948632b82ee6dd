package main

import "github.com/spf13/cobra"

func newRender(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "render [FILE]",
		Short: "Print the complete ruleset as nft text",
		Long: `Print the complete ruleset that the policy file, the saved sets and the running
containers make, as text for nft -f. Nothing is changed.`,
		Example: `  nftfw render
  nftfw render ./policy.yaml | nft -c -f -`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			path := a.policy
			if len(args) == 1 {
				path = args[0]
			}
			if a.json {
				return usageError("render prints nft text, not JSON; `nft -j -f -` converts it")
			}
			return a.direct().Render(cmd.Context(), path, a.stdout)
		},
	}
}
