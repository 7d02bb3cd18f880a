// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/xgw-project/xgw/pkg/datapath"
	"github.com/xgw-project/xgw/pkg/gateway"
)

func attachCommand(e *env) *cobra.Command {
	var mode string
	var plan bool
	var confirm time.Duration
	cmd := &cobra.Command{
		Use:   "attach INTERFACE",
		Short: "Attach the kernel plane to a network interface",
		Long: `Loads the programs, pins them with their maps under /sys/fs/bpf/xgw/INTERFACE and
attaches them. They count from then on, without any process, until detach.

All packets but malformed ones pass until xgw run gives it rules and limits. Another
owner's XDP program is never replaced. Mode auto is native where the driver can, else tc,
and says which; generic is taken only when asked for.

With --confirm the attach undoes itself unless xgw confirm comes in time: from then on
everything passes, whatever becomes of this terminal.

With --plan nothing is changed: it says which mode would be got, what stands in the way
or deserves a look, with the command that mends it, and whether the link may be down for
a while. It fails when the attach would be refused.`,
		Example: `  sudo xgw attach eth0 --plan
  sudo xgw attach eth0 --confirm 60s
  sudo xgw attach wlan0 --mode generic # slower, and blind to merged packets`,
		Args: exactly("INTERFACE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := datapath.ParseMode(mode)
			if err != nil {
				return usageError{err}
			}
			if err := checkConfirm(cmd, confirm); err != nil {
				return err
			}
			if plan {
				return runPlan(e, args[0], mode)
			}
			return attach(e, args[0], m, confirm)
		},
	}
	cmd.Flags().StringVar(&mode, "mode", string(datapath.ModeAuto), "native, generic, tc or auto")
	cmd.Flags().BoolVar(&plan, "plan", false, "say what would happen, and change nothing")
	cmd.Flags().DurationVar(&confirm, "confirm", 0, "undo it unless xgw confirm comes within this time")
	jsonFlag(cmd, e)
	return cmd
}

func attach(e *env, name string, mode datapath.Mode, confirm time.Duration) error {
	o := datapath.Options{Interface: name, Instance: e.instance}
	d, err := gateway.Attach(o, mode, confirm)
	if err != nil {
		return err
	}
	defer d.Close()
	s := d.Status()
	if err := printStatus(e, "attached", s); err != nil || e.json {
		return err
	}
	if mode == datapath.ModeAuto && s.Mode == datapath.ModeTC {
		fmt.Fprintf(e.out, "  no native XDP here, so it is at tc, which costs more for each packet: `%s` says why\n", o.Command("attach --plan"))
	}
	if confirm > 0 {
		fmt.Fprintf(e.out, "  undone in %s unless `%s` comes\n", confirm, o.Command("confirm"))
	}
	return nil
}

func checkConfirm(cmd *cobra.Command, d time.Duration) error {
	if cmd.Flags().Changed("confirm") && (d < time.Second || d > 24*time.Hour) {
		return usageError{fmt.Errorf("--confirm %s: want a time from 1s to 24h, such as 60s", d)}
	}
	return nil
}

func confirmCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:     "confirm INTERFACE",
		Short:   "Keep what was attached or changed with --confirm",
		Long:    "Ends the time after which the kernel plane would undo the last attach or change. When nothing waits any longer, because it was confirmed before or was undone, the command fails.",
		Example: "  sudo xgw confirm eth0",
		Args:    exactly("INTERFACE"),
		RunE: func(_ *cobra.Command, args []string) error {
			o := datapath.Options{Interface: args[0], Instance: e.instance}
			d, err := datapath.Open(o)
			if err != nil {
				return err
			}
			defer d.Close()
			s, err := d.State()
			if err != nil {
				return err
			}
			if s.Expired {
				return fmt.Errorf("confirm %s: too late, the attach is undone and everything passes: `%s`, then attach again", args[0], o.Command("detach"))
			}
			if s.Waits == 0 {
				return fmt.Errorf("confirm %s: nothing waits to be confirmed: a change that was not confirmed in time is undone by now, see `%s`", args[0], o.Command("status"))
			}
			if err := d.Confirm(); err != nil {
				return err
			}
			fmt.Fprintf(e.out, "%s: confirmed\n", args[0])
			return nil
		},
	}
}

func upgradeCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "upgrade INTERFACE",
		Short: "Put this version's programs in the place of those attached",
		Long: `Replaces the programs under the live link: no packet goes by unseen, and counters,
tables and limits' state stay. If anything fails, the old programs run on. When the maps
of the attached version have another layout, nothing is changed and that is said.`,
		Example: "  sudo xgw upgrade eth0",
		Args:    exactly("INTERFACE"),
		RunE: func(_ *cobra.Command, args []string) error {
			d, err := datapath.Open(datapath.Options{Interface: args[0], Instance: e.instance})
			if err != nil {
				return err
			}
			defer d.Close()
			if err := d.Upgrade(); err != nil {
				return err
			}
			return printStatus(e, "upgraded", d.Status())
		},
	}
}

func detachCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:     "detach INTERFACE",
		Short:   "Take the kernel plane off an interface and remove its pins",
		Long:    "Takes off what xgw attached, with all its counts, and nothing else.",
		Example: "  sudo xgw detach eth0",
		Args:    exactly("INTERFACE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := datapath.Detach(datapath.Options{Interface: args[0], Instance: e.instance}); err != nil {
				return err
			}
			fmt.Fprintf(e.out, "%s: detached\n", args[0])
			return nil
		},
	}
}

// printStatus says what was done, and what is there now.
func printStatus(e *env, done string, s datapath.Status) error {
	if e.json {
		return json.NewEncoder(e.out).Encode([]datapath.Status{s})
	}
	queues := "queues"
	if s.Queues == 1 {
		queues = "queue"
	}
	fmt.Fprintf(e.out, "%s: %s, %s mode by %s, program %d, %d receive %s\n  bpftool map dump pinned %s/ingress_counts\n",
		s.Interface, done, s.Mode, s.Hook, s.Program, s.Queues, queues, s.Directory)
	return nil
}
