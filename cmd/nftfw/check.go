package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/nftfw/nftfw/pkg/daemon"
	"github.com/nftfw/nftfw/policy"
)

// checkResult is the answer of `nftfw check --json`.
type checkResult struct {
	File     string         `json:"file"`
	OK       bool           `json:"ok"`
	Errors   []checkMessage `json:"errors"`
	Warnings []checkMessage `json:"warnings"`
}

type checkMessage struct {
	Line    int    `json:"line"` // 0 where the whole file is meant
	Column  int    `json:"column"`
	Message string `json:"message"`
}

func newCheck(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "check [FILE]",
		Short: "Check a policy file, without root and without the kernel",
		Long: `Check a policy file: every mistake is printed as FILE:LINE:COL: message, with the
line and a caret below it, and the exit status is 2. A FILE of - is standard
input. It needs no root and no kernel.`,
		Example: `  nftfw check
  nftfw check ./policy.yaml
  ssh host cat /etc/nftfw/policy.yaml | nftfw check -`,
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: files,
		RunE: func(_ *cobra.Command, args []string) error {
			path := a.policy
			if len(args) == 1 {
				path = args[0]
			}
			return a.check(path)
		},
	}
}

// readForCheck reads the policy at path, - being standard input. It gives the name
// under which mistakes are reported as well.
func (a *app) readForCheck(path string) (name string, text []byte, err error) {
	if path == "-" {
		text, err = daemon.ReadPolicy(a.stdin, "<stdin>")
		return "<stdin>", text, err
	}
	text, err = daemon.ReadPolicyFile(path)
	if err == nil && text == nil {
		err = noSuchFile(path)
	}
	return path, text, err
}

func noSuchFile(path string) error { return fmt.Errorf("read policy: %s does not exist", path) }

func (a *app) check(path string) error {
	path, text, err := a.readForCheck(path)
	var warnings []policy.Diagnostic
	if err == nil {
		_, warnings, err = policy.Parse(path, text)
	}
	result := checkResult{File: path, OK: err == nil, Errors: []checkMessage{}, Warnings: []checkMessage{}}
	var mistakes policy.Errors
	if errors.As(err, &mistakes) {
		for _, m := range mistakes {
			result.Errors = append(result.Errors, checkMessage{m.Line, m.Column, m.Message})
		}
	} else if err != nil {
		result.Errors = append(result.Errors, checkMessage{Message: err.Error()})
		fmt.Fprintln(a.stderr, "nftfw: "+err.Error())
	}
	for _, w := range warnings {
		result.Warnings = append(result.Warnings, checkMessage{w.Pos.Line, w.Pos.Column, w.Message})
		fmt.Fprintf(a.stderr, "%s:%d:%d: warning: %s\n", path, w.Pos.Line, w.Pos.Column, w.Message)
	}
	if len(mistakes) > 0 {
		fmt.Fprintln(a.stderr, mistakes.Text())
	}
	switch {
	case a.json:
		if printed := a.printJSON(result); printed != nil {
			return printed
		}
	case result.OK:
		fmt.Fprintf(a.stdout, "%s: ok\n", path)
	}
	if !result.OK {
		return &exitError{status: exitUsage}
	}
	return nil
}
