package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/nftfw/nftfw/pkg/migrate"
)

func newImport(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "import FILE...",
		Short: "Make a policy file of iptables, ipset or ufw rules",
		Long: `Make a policy file of the rules of another firewall, and print it. A FILE holds
what iptables-save, ip6tables-save, ipset save or ufw status verbose print; - is
stdin. Files that belong together are given together; an empty one says that
nothing of its kind is loaded. Rules that do not tell whether they are of IPv4 or
of IPv6, as iptables -S may print them, are in a file called v4 or v6.

The policy opens no more than those rules do. What it cannot express is closed,
and stands at its beginning as a comment. Its mode is observe, so that it refuses
nothing at first. Its place is /etc/nftfw/policy.yaml.

The command itself changes nothing, and needs no root.`,
		Example: `  iptables-save > v4; ip6tables-save > v6; ipset save > sets
  nftfw import v4 v6 sets > policy.yaml
  ufw status verbose | nftfw import -`,
		Args: cobra.MinimumNArgs(1), ValidArgsFunction: files,
		RunE: func(_ *cobra.Command, args []string) error {
			var files []migrate.File
			for _, name := range args {
				f, err := a.readImport(name)
				if err != nil {
					return &exitError{status: exitUsage, err: err}
				}
				files = append(files, f)
			}
			result, err := migrate.Import(files)
			if err != nil {
				return &exitError{status: exitUsage, err: fmt.Errorf("import: %w", err)}
			}
			if _, err := a.stdout.Write(result.Policy); err != nil {
				return err
			}
			if n := len(result.Notes); n > 0 {
				fmt.Fprintf(a.stderr, "nftfw: not as before: %d, listed at the beginning of the policy\n", n)
			}
			return nil
		},
	}
}

// maxImport is the size of the largest file to import, in bytes.
const maxImport = 64 << 20

func (a *app) readImport(name string) (migrate.File, error) {
	if name == "-" {
		text, err := io.ReadAll(io.LimitReader(a.stdin, maxImport))
		return migrate.File{Name: "stdin", Text: string(text)}, err
	}
	info, err := os.Stat(name)
	if err == nil && info.Size() > maxImport {
		return migrate.File{}, fmt.Errorf("%s: %d bytes are too many", name, info.Size())
	}
	text, err := os.ReadFile(name)
	return migrate.File{Name: name, Text: string(text)}, err
}
