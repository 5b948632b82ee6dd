package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/nftfw/nftfw/pkg/api"
	"github.com/nftfw/nftfw/pkg/daemon"
	"github.com/nftfw/nftfw/pkg/sources"
	"github.com/nftfw/nftfw/policy"
)

// app is what the commands share: the streams and the global flags.
type app struct {
	stdin  io.Reader
	stdout *output
	stderr io.Writer

	policy, stateDir, socket, dockerHost, table string
	json                                        bool
	logLevel, logFormat                         string

	// given says by what name each global flag was given that was, as in --table
	// or NFTFW_TABLE.
	given map[string]string
}

const longHelp = `nftfw keeps a Docker host closed until opened.

A published port can be reached only by the sources that the policy file or a
label on the container names. nftfw writes one nftables table of its own and
never touches Docker's rules.

Exit status: 0 done, or yes; 1 the answer is no; 2 wrong usage or invalid
input; 3 the daemon is needed and cannot be reached; 4 plan found changes;
5 the operation failed.

Every global flag can also be given in the environment: --state-dir as
NFTFW_STATE_DIR, and so on.`

func newRoot(a *app) *cobra.Command {
	var askVersion bool
	root := &cobra.Command{
		Use:           "nftfw",
		Short:         "a firewall for Docker hosts, closed until opened",
		Long:          longHelp,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			return a.globals(cmd)
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if askVersion {
				return a.printVersion()
			}
			return cmd.Help()
		},
	}
	root.Flags().BoolVar(&askVersion, "version", false, "print the version")
	flags := root.PersistentFlags()
	flags.StringVar(&a.policy, "policy", "/etc/nftfw/policy.yaml", "policy `FILE`")
	flags.StringVar(&a.stateDir, "state-dir", "/var/lib/nftfw", "`DIR` of saved sets and the last good policy")
	flags.StringVar(&a.socket, "socket", "/run/nftfw/nftfw.sock", "`PATH` of the daemon's control socket")
	flags.StringVar(&a.dockerHost, "docker-host", "", "`URL` of the engine (default $DOCKER_HOST, else unix:///var/run/docker.sock)")
	flags.StringVar(&a.table, "table", policy.TableName, "`NAME` of the nftables table, of family inet")
	flags.BoolVar(&a.json, "json", false, "print one JSON object")
	flags.StringVar(&a.logLevel, "log-level", "info", "debug, info, warn or error")
	flags.StringVar(&a.logFormat, "log-format", "text", "text or json")
	complete(root, "log-level", logLevels...)
	complete(root, "log-format", logFormats...)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		var invalid *pflag.InvalidValueError
		if errors.As(err, &invalid) {
			err = notAValue("--"+invalid.GetFlag().Name, invalid.GetFlag(), invalid.GetValue(), err)
		}
		return usageError("%w (see %s --help)", err, cmd.CommandPath())
	})
	root.AddCommand(
		newRun(a), newApply(a), newConfirm(a), newPlan(a), newReload(a), newCheck(a), newRender(a),
		newSets(a), newPorts(a), newWatch(a), newExplain(a), newStatus(a), newDown(a), newDoctor(a), newImport(a), newVersion(a),
	)
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.InitDefaultHelpCmd() // these two keep the streams of this moment
	root.InitDefaultCompletionCmd()
	addExamples(root)
	completeNames(root)
	wrapArgErrors(root)
	return root
}

// addExamples gives the commands that cobra makes an example as well, and
// takes away the shell that no Docker host has.
func addExamples(root *cobra.Command) {
	for _, cmd := range root.Commands() {
		switch cmd.Name() {
		case "help":
			cmd.Example = "  nftfw help sets add"
			show := cmd.Run
			cmd.Run = nil
			cmd.RunE = func(cmd *cobra.Command, args []string) error {
				if _, rest, err := cmd.Root().Find(args); err != nil || len(rest) > 0 {
					return usageError("no command %q; `nftfw help` lists them", strings.Join(args, " "))
				}
				show(cmd, args)
				return nil
			}
		case "completion":
			cmd.Example = "  source <(nftfw completion bash)"
			cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() } // so that its arguments are checked
			for _, shell := range cmd.Commands() {
				if shell.Name() == "powershell" {
					cmd.RemoveCommand(shell)
				}
				shell.Example = "  " + shell.CommandPath()
			}
		}
	}
}

// wrapArgErrors makes wrong arguments exit with the status of wrong usage.
func wrapArgErrors(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return usageError("%w (see %s --help)", err, cmd.CommandPath())
			}
			return nil
		}
	}
	for _, sub := range cmd.Commands() {
		wrapArgErrors(sub)
	}
}

// Values of the flags for the log.
var (
	logLevels  = []string{"debug", "info", "warn", "error"}
	logFormats = []string{"text", "json"}
)

// globals fills flags that were not given from the environment, and checks
// them.
func (a *app) globals(cmd *cobra.Command) error {
	var failed error
	a.given = map[string]string{}
	cmd.Root().PersistentFlags().VisitAll(func(f *pflag.Flag) {
		if f.Changed {
			a.given[f.Name] = "--" + f.Name
			return
		}
		name := "NFTFW_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		value := os.Getenv(name)
		if value == "" {
			return
		}
		a.given[f.Name] = name
		if err := f.Value.Set(value); err != nil && failed == nil {
			failed = usageError("%w", notAValue(name, f, value, err))
		}
	})
	if failed != nil {
		return failed
	}
	if a.dockerHost != "" && !validDockerHost(a.dockerHost) {
		return usageError("%s %q: want unix:///PATH or tcp://HOST:PORT", a.given["docker-host"], a.dockerHost)
	}
	if a.dockerHost == "" {
		a.dockerHost = os.Getenv("DOCKER_HOST") // Docker's own, which only those look at who ask Docker
	}
	if a.dockerHost == "" {
		a.dockerHost = "unix:///var/run/docker.sock"
	}
	if !policy.ValidTableName(a.table) {
		return usageError("%s %q is no name for a table: letters, digits, _ and -, beginning with a letter, and no keyword of nft", a.given["table"], a.table)
	}
	if !slices.Contains(logLevels, a.logLevel) {
		return usageError("%s %q: want debug, info, warn or error", a.given["log-level"], a.logLevel)
	}
	if !slices.Contains(logFormats, a.logFormat) {
		return usageError("%s %q: want text or json", a.given["log-format"], a.logFormat)
	}
	return nil
}

// notAValue says in place of err what a flag takes, which was given as name.
func notAValue(name string, f *pflag.Flag, value string, err error) error {
	if f.Value.Type() == "bool" {
		return fmt.Errorf("%s %q: want true or false", name, value)
	}
	return err
}

// validDockerHost tells whether an engine's address has one of the forms that the
// client library can dial.
func validDockerHost(host string) bool {
	scheme, rest, _ := strings.Cut(host, "://")
	return rest != "" && slices.Contains([]string{"unix", "tcp", "http", "https"}, scheme)
}

// logger writes to the diagnostics stream.
func (a *app) logger() *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(a.logLevel)) // checked by globals
	options := &slog.HandlerOptions{Level: level}
	if a.logFormat == "json" {
		return slog.New(slog.NewJSONHandler(a.stderr, options))
	}
	return slog.New(slog.NewTextHandler(a.stderr, options))
}

func (a *app) config() daemon.Config {
	return daemon.Config{
		PolicyPath: a.policy, StateDir: a.stateDir, Socket: a.socket,
		DockerHost: a.dockerHost, Table: a.table, Version: version, Log: a.logger(),
		Sources: sources.Reader{},
	}
}

// direct works without a daemon. It logs only what the daemon would be alone
// to say.
func (a *app) direct() daemon.Direct {
	config := a.config()
	if a.logLevel == "info" {
		config.Log = slog.New(slog.DiscardHandler)
	}
	return daemon.Direct{Config: config, LockWait: 250 * time.Millisecond, Warn: a.warn}
}

func (a *app) client() *api.Client {
	c := api.NewClient(a.socket)
	c.Answered = a.compare
	return c
}

// compare warns, once, of flags that were given and at which the daemon that
// answers does not look: it has other ones.
func (a *app) compare(daemon api.Scope) {
	var passed []string
	check := func(flag, given, its string) {
		if name := a.given[flag]; name != "" && its != "" && given != its {
			passed = append(passed, fmt.Sprintf("%s %s (it has %s)", name, given, its))
		}
		delete(a.given, flag)
	}
	mine := api.NewScope(a.policy, a.stateDir, a.table)
	check("policy", mine.Policy, daemon.Policy)
	check("state-dir", mine.StateDir, daemon.StateDir)
	check("table", mine.Table, daemon.Table)
	if len(passed) > 0 {
		a.warn("the daemon that answers does not look at " + strings.Join(passed, ", "))
	}
}
