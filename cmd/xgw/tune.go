// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/xgw-project/xgw/pkg/gateway"
	"github.com/xgw-project/xgw/pkg/mend"
	"github.com/xgw-project/xgw/pkg/zone"
)

const byTune = "tune"

// tuned is one setting as it is and as it is wanted.
type tuned struct {
	Name   string `json:"name"`
	Now    string `json:"now"`
	Want   string `json:"want"`
	Good   bool   `json:"good"`
	Reason string `json:"reason"`
	change mend.Change
}

func tuneCommand(e *env) *cobra.Command {
	var apply, yes, undo bool
	cmd := &cobra.Command{
		Use:   "tune",
		Short: "Show the settings of the machine that a gateway wants, and make them",
		Long: `Shows each setting as it is and as a gateway wants it, with the reason. The open files of a
running gateway's workers are among them.

--apply makes those that are not so yet, after asking, and notes in /run/xgw-changes what was there
before; --undo puts it back, but for what others have changed since. Both end with a reboot:
what is printed with --sysctl, in /etc/sysctl.d/60-xgw.conf, stays.`,
		Example: `  xgw tune
  sudo xgw tune --apply
  xgw tune --sysctl | sudo tee /etc/sysctl.d/60-xgw.conf`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			lasting, _ := cmd.Flags().GetBool("sysctl")
			switch {
			case undo && (apply || lasting), apply && lasting:
				return usageError{errors.New("want one of --apply, --undo and --sysctl")}
			case yes && !apply:
				return usageError{errors.New("--yes answers what --apply asks: want both")}
			case undo:
				return undoChanges(e, byTune)
			}
			all := readTuned(e)
			if lasting {
				return printSysctls(e)
			}
			if err := printTuned(e, all); err != nil || !apply {
				return err
			}
			var changes []mend.Change
			for _, s := range all {
				if !s.Good {
					changes = append(changes, s.change)
				}
			}
			_, err := change(e, byTune, changes, yes, "xgw tune --undo")
			return err
		},
	}
	cmd.Flags().BoolVar(&apply, "apply", false, "make the settings what they should be")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask before")
	cmd.Flags().BoolVar(&undo, "undo", false, "put back what --apply changed")
	cmd.Flags().Bool("sysctl", false, "print them as a file of sysctl.d")
	jsonFlag(cmd, e)
	return cmd
}

// readTuned reads all that can be read here: some are not in each network namespace.
func readTuned(e *env) (all []tuned) {
	m := mend.Here(e.instance)
	for i := range mend.Settings {
		s := &mend.Settings[i]
		now, err := m.Read(s.Change())
		if err != nil {
			continue
		}
		good, _ := s.Satisfied(now)
		all = append(all, tuned{s.Name, now, s.Want, good, s.Reason, s.Change()})
	}
	z, err := zone.Open(gateway.ZonePath(e.instance))
	if err != nil {
		return all // no gateway runs
	}
	defer z.Close()
	_ = z.Guard(func() {
		for i := range z.Workers() {
			if t, ok := openFiles(m, i, int(z.Worker(z.Shift()+i).LoadGauge(zone.GaugePID))); ok {
				all = append(all, t)
			}
		}
	})
	return all
}

// openFiles is the limit of a worker; false when its process is not there.
func openFiles(m *mend.Machine, worker, pid int) (tuned, bool) {
	start, err := mend.StartOf(pid)
	if err != nil {
		return tuned{}, false
	}
	c := mend.Change{Kind: mend.Limit, Object: fmt.Sprintf("%d/%s", pid, start)}
	now, err := m.Read(c)
	var soft, hard uint64
	if n, _ := fmt.Sscanf(now, "%d:%d", &soft, &hard); err != nil || n != 2 {
		return tuned{}, false
	}
	c.Value = fmt.Sprintf("%d:%d", mend.Files, max(hard, mend.Files))
	return tuned{
		Name: fmt.Sprintf("open files of worker %d", worker), Now: now, Want: fmt.Sprint(mend.Files), Good: soft >= mend.Files,
		Reason: "each connection takes one, and one more to its upstream; LimitNOFILE in the unit makes it last", change: c,
	}, true
}

func printTuned(e *env, all []tuned) error {
	if e.json {
		return json.NewEncoder(e.out).Encode(all)
	}
	w := tabwriter.NewWriter(e.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\tSETTING\tNOW\tWANTED\tREASON")
	for _, s := range all {
		mark := " "
		if !s.Good {
			mark = "*"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", mark, s.Name, s.Now, s.Want, s.Reason)
	}
	return w.Flush()
}

// printSysctls prints all that is wanted; what is better already keeps its value.
func printSysctls(e *env) error {
	var b strings.Builder
	b.WriteString("# What xgw wants of the machine: `xgw tune` says why.\n")
	m := mend.Here(e.instance)
	for i := range mend.Settings {
		s := &mend.Settings[i]
		now, err := m.Read(s.Change())
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		value := s.Want
		if good, _ := s.Satisfied(now); err == nil && good {
			value = strings.Join(strings.Fields(now), " ")
		}
		fmt.Fprintf(&b, "%s = %s\n", s.Name, value)
	}
	_, err := fmt.Fprint(e.out, b.String())
	return err
}
