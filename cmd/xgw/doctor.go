// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/xgw-project/xgw/pkg/admin"
	"github.com/xgw-project/xgw/pkg/config"
	"github.com/xgw-project/xgw/pkg/doctor"
	"github.com/xgw-project/xgw/pkg/gateway"
	"github.com/xgw-project/xgw/pkg/mend"
	"github.com/xgw-project/xgw/pkg/script"
)

// Who makes changes, in the journal.
const byDoctor = "doctor"

func doctorCommand(e *env) *cobra.Command {
	var fix, yes, undo bool
	var interval time.Duration
	var path string
	cmd := &cobra.Command{
		Use:   "doctor [INTERFACE]",
		Short: "Say what is wrong with the machine and the gateway, and mend it",
		Long: `Reads the machine twice, an interval apart, and says what is wrong, the worst first: what was
seen, the cause, and the command that mends it. Without a name it looks at the interfaces
that are attached, or else at all that are up. What counters have seen before the interval is
not looked at.

--fix makes those changes that can be undone, after asking, and notes in /run/xgw-changes what was
there before; --undo puts it back, but for what others have changed since. A reboot undoes
them, too.

Exit status: 0 no errors found, or all fixed (there may be warnings), 1 errors are left, or it could not look,
2 the command line is wrong.`,
		Example: `  sudo xgw doctor
  sudo xgw doctor eth0 --fix
  sudo xgw doctor --json | jq '.findings[] | select(.severity == "error")'`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageError{fmt.Errorf("doctor takes one interface, not %d: for example `xgw doctor eth0`", len(args))}
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			switch {
			case undo && (fix || len(args) > 0):
				return usageError{errors.New("--undo puts back all that --fix changed: it goes with no interface and no --fix")}
			case undo:
				return undoChanges(e, byDoctor)
			case yes && !fix:
				return usageError{errors.New("--yes answers what --fix asks: want both")}
			case interval < 100*time.Millisecond || interval > time.Minute:
				return usageError{fmt.Errorf("--interval %s: 100ms to 1m are possible", interval)}
			}
			report, err := patient(e, args, path).Examine(interval)
			if err != nil {
				return err
			}
			return treat(e, report, fix, yes)
		},
	}
	cmd.Flags().BoolVar(&fix, "fix", false, "make the changes that can be undone")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask before")
	cmd.Flags().BoolVar(&undo, "undo", false, "put back what --fix changed")
	cmd.Flags().DurationVarP(&interval, "interval", "i", 2*time.Second, "between the readings")
	cmd.Flags().StringVarP(&path, "config", "c", "/etc/gateway/gateway.yaml", "configuration file, where no gateway tells which it has")
	jsonFlag(cmd, e)
	return cmd
}

// patient is this machine and the gateway of the instance. One that answers tells where its
// configuration is.
func patient(e *env, interfaces []string, path string) *doctor.Live {
	l := &doctor.Live{Interfaces: interfaces, Instance: e.instance, ZonePath: gateway.ZonePath(e.instance), Path: path}
	client := admin.NewClient(admin.SocketPath(e.instance))
	if s, err := client.Status(); err == nil && s.Configuration != "" {
		l.Path, l.Loaded = s.Configuration, s.Loaded
	}
	l.Servers = func() []doctor.Server {
		s, _ := client.Status() // without a supervisor nobody knows
		return gateway.DoctorServers(s)
	}
	l.Load = func() (*config.Config, error) { return config.Load(l.Path, script.Run) }
	return l
}

// treat prints the report and, if wanted, fixes; errors that are left fail the command.
func treat(e *env, r *doctor.Report, fix, yes bool) error {
	if e.json {
		if err := json.NewEncoder(e.out).Encode(r); err != nil {
			return err
		}
	} else if _, err := io.WriteString(e.out, r.WriteText()); err != nil {
		return err
	}
	var made []mend.Change
	if fix {
		var err error
		if made, err = change(e, byDoctor, r.Fixes(), yes, "xgw doctor --undo"); err != nil {
			return err
		}
	}
	left := 0
	for _, f := range r.Findings {
		if f.Severity == doctor.Error && (f.Fix == nil || !slices.ContainsFunc(made, f.Fix.Same)) {
			left++
		}
	}
	if left > 0 {
		return fmt.Errorf("%d errors found", left)
	}
	return nil
}

// change makes the changes, each after a question unless yes. It returns those that were wanted;
// without an error they are made.
func change(e *env, by string, changes []mend.Change, yes bool, undo string) (wanted []mend.Change, err error) {
	out := e.out
	if e.json {
		out = e.err // e.out is for one document
	}
	var in io.Reader = os.Stdin
	if e.in != nil {
		in = e.in
	}
	answers := bufio.NewScanner(in)
	for _, c := range changes {
		if !yes {
			fmt.Fprintf(out, "%s ? [y/N] ", c.Command())
			if !answers.Scan() || !strings.HasPrefix(strings.ToLower(strings.TrimSpace(answers.Text())), "y") {
				continue
			}
		}
		wanted = append(wanted, c)
	}
	if len(wanted) == 0 {
		fmt.Fprintln(out, "nothing is changed")
		return nil, nil
	}
	done, err := mend.Here(e.instance).Apply(by, wanted)
	for _, r := range done {
		if r.Error == "" {
			fmt.Fprintf(out, "done: %s (it was %s)\n", r.Command(), r.Was)
		}
	}
	if len(done) > 0 && err == nil {
		fmt.Fprintf(out, "undone by `%s`, or a reboot\n", undo)
	}
	return wanted, err
}

func undoChanges(e *env, by string) error {
	done, err := mend.Here(e.instance).Undo(by)
	for _, r := range done {
		what := strings.TrimSpace(r.Object + " " + r.Name)
		if r.Error != "" {
			fmt.Fprintf(e.out, "%s: %s\n", what, r.Error)
		} else {
			fmt.Fprintf(e.out, "%s: %s again\n", what, r.Was)
		}
	}
	if len(done) == 0 && err == nil {
		fmt.Fprintln(e.out, "nothing is to be undone")
	}
	return err
}
