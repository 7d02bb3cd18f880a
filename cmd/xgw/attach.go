// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/xgw-project/xgw/pkg/datapath"
	"github.com/xgw-project/xgw/pkg/gateway"
)

func attachCommand(e *env) *cobra.Command {
	var mode string
	var plan bool
	cmd := &cobra.Command{
		Use:   "attach INTERFACE",
		Short: "Attach the kernel plane to a network interface",
		Long: `Loads the programs, pins them with their maps under /sys/fs/bpf/xgw/INTERFACE and
attaches them. They count from then on, without any process, until detach.

All packets pass until limits or denied prefixes are configured. Another owner's
XDP program is never replaced. Native mode is what is attached unless --mode says
otherwise; where the driver has none, nothing is attached and the reason is said.

With --plan nothing is changed: it says what would be attached and what stands in
the way, each with the command that mends it. Exit status 0: it would attach.`,
		Example: `  sudo xgw attach eth0
  sudo xgw attach eth0 --plan --mode auto
  sudo xgw attach wlan0 --mode generic # slower, for drivers without native XDP`,
		Args: exactly("INTERFACE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if plan {
				return runPlan(e, args[0], mode)
			}
			m, err := datapath.ParseMode(mode)
			if err != nil {
				return usageError{err}
			}
			d, err := gateway.Attach(datapath.Options{Interface: args[0], Instance: e.instance}, m)
			if err != nil {
				return err
			}
			defer d.Close()
			return printStatus(e, []datapath.Status{d.Status()})
		},
	}
	cmd.Flags().StringVar(&mode, "mode", string(datapath.ModeNative), "native or generic")
	cmd.Flags().BoolVar(&plan, "plan", false, "say what would be done, and do nothing; knows the modes tc and auto too")
	jsonFlag(cmd, e)
	return cmd
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

func printStatus(e *env, all []datapath.Status) error {
	if e.json {
		return json.NewEncoder(e.out).Encode(all)
	}
	for _, s := range all {
		fmt.Fprintf(e.out, "%s: attached, %s mode by %s, program %d, %d receive queues\n  bpftool map dump pinned %s/ingress_counts\n",
			s.Interface, s.Mode, s.Hook, s.Program, s.Queues, s.Directory)
	}
	return nil
}
