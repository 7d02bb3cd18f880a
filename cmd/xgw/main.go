// SPDX-License-Identifier: Apache-2.0

// Command xgw is the gateway: one binary, one file a command. Called by another of
// its names it is that command: gateway-engine is `xgw run`.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/xgw-project/xgw/pkg/script"
)

// Exit statuses, as the commands' help states them.
const (
	exitFailure = 1
	exitUsage   = 2
)

// instanceName is what may stand in the names of pins and of the zone.
var instanceName = regexp.MustCompile(`^[a-zA-Z0-9_-]{0,32}$`)

// usageError is what the caller of the command has to mend.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// env is what commands touch of the outside, so that tests can run them in process.
type env struct {
	out, err io.Writer
	in       io.Reader // of answers; nil: the terminal
	instance string
	json     bool
	fault    func(step string) error // of reloads, for tests
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	status := run(ctx, os.Args, &env{out: os.Stdout, err: os.Stderr})
	stop()
	os.Exit(status)
}

// run executes the command line and returns the exit status.
func run(ctx context.Context, args []string, e *env) int {
	if len(args) == 3 && args[1] == script.Command {
		return script.Main(args[2], os.Stdin, e.out) // no command for people
	}
	root := rootCommand(e)
	root.SetArgs(byName(args))
	root.SetOut(e.out)
	root.SetErr(e.err)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintln(e.err, "xgw:", strings.ReplaceAll(err.Error(), "\n", "\nxgw: "))
	var usage usageError
	if errors.As(err, &usage) {
		return exitUsage
	}
	return exitFailure
}

// aliases are the binary's other names, and the command that each stands for.
var aliases = map[string]string{"gateway-engine": "run", "gateway-ctl": "ctl", "gateway-top": "top"}

// byName puts in front the command that the binary's own name stands for. What shells ask for
// completions by comes before it.
func byName(args []string) []string {
	command, rest := aliases[filepath.Base(args[0])], args[1:]
	switch {
	case command == "":
		return rest
	case len(rest) > 0 && (rest[0] == cobra.ShellCompRequestCmd || rest[0] == cobra.ShellCompNoDescRequestCmd):
		return append([]string{rest[0], command}, rest[1:]...)
	}
	return append([]string{command}, rest...)
}

func rootCommand(e *env) *cobra.Command {
	root := &cobra.Command{
		Use:   "xgw",
		Short: "An API gateway that starts at the NIC queue",
		Long: `xgw counts and limits packets at the NIC queue with XDP, and serves TLS, HTTP/2
and HTTP/1.1 with one worker process pinned to each core.

Exit status: 0 done, 1 failed, 2 the command line or the configuration is wrong.`,
		Example: `  sudo xgw attach eth0         # count and limit packets on eth0
  sudo xgw run -c gateway.yaml # serve
  sudo xgw demo                # all of it in a lab of its own, no NIC touched`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q: `xgw help` lists them", args[0])}
			}
			return nil
		},
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if !instanceName.MatchString(e.instance) {
				return usageError{fmt.Errorf("--instance %q: want at most 32 letters, digits, - and _, such as blue", e.instance)}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w: `%s --help` shows what it takes", err, cmd.CommandPath())}
	})
	root.PersistentFlags().StringVar(&e.instance, "instance", "", "name of this gateway, where a machine runs several")
	root.AddCommand(
		attachCommand(e),
		detachCommand(e),
		confirmCommand(e),
		upgradeCommand(e),
		statusCommand(e),
		explainCommand(e),
		dropsCommand(e),
		topCommand(e),
		doctorCommand(e),
		tuneCommand(e),
		queuesCommand(e),
		firewallCommand(e),
		runCommand(e),
		configCommand(e),
		importCommand(e),
		ctlCommand(e),
		keysCommand(e),
		policyCommand(e),
		demoCommand(e),
		versionCommand(e),
		manualCommand(e),
		workerCommand(e),
		prepareCommand(e),
		upstreamCommand(e),
	)
	return root
}

// exactly wants n arguments, whose names the error says.
func exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != len(names) {
			what := strings.Join(names, " ")
			if what == "" {
				what = "flags alone"
			}
			return usageError{fmt.Errorf("%s takes %s, not %d arguments: for example %s",
				cmd.CommandPath(), what, len(args), firstExample(cmd))}
		}
		return nil
	}
}

func firstExample(cmd *cobra.Command) string {
	line, _, _ := strings.Cut(strings.TrimSpace(cmd.Example), "\n")
	command, _, _ := strings.Cut(line, "#")
	return "`" + strings.TrimSpace(command) + "`"
}

func jsonFlag(cmd *cobra.Command, e *env) {
	cmd.Flags().BoolVar(&e.json, "json", false, "print JSON")
}
