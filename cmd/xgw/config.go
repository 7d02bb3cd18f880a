// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/xgw-project/xgw/pkg/admin"
	"github.com/xgw-project/xgw/pkg/cluster"
	"github.com/xgw-project/xgw/pkg/config"
	"github.com/xgw-project/xgw/pkg/gateway"
	"github.com/xgw-project/xgw/pkg/host"
	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/script"
	"github.com/xgw-project/xgw/pkg/zone"
)

func configCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "config",
		Short:   "What the configuration says, without a gateway",
		Example: "  xgw config check -c gateway.yaml",
		Args:    exactly(),
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(checkCommand(e))
	return cmd
}

func checkCommand(e *env) *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check the configuration and say what it comes to",
		Long: `Reads gateway.yaml, buffers.conf and ratelimit.lua as xgw run would, and changes
nothing. Faults are told with file and line, and end it with status 2. Else it prints
the limits of both planes: whom each bucket is for, what all of it comes to, and by how much
more may pass.`,
		Example: `  xgw config check
  xgw config check -c gateway.yaml`,
		Args: exactly(),
		RunE: func(*cobra.Command, []string) error {
			c, err := config.Load(path, script.Run)
			if err != nil {
				return usageError{err}
			}
			p, err := policy.Compile(c, 1)
			if err != nil {
				return usageError{fmt.Errorf("%s: %w", path, err)}
			}
			workers := c.Workers
			if cores, err := host.AllowedCores(); err == nil && workers == 0 {
				workers = len(cores)
			}
			layout, err := zone.Layout{Size: c.Buffers.SharedMemoryZone, Workers: max(workers, 1), AccessRing: int(c.Buffers.AccessRing)}.Complete()
			if err != nil {
				return usageError{fmt.Errorf("buffers.conf: %w", err)}
			}
			fmt.Fprintf(e.out, "%s: %d routes, %d upstreams, %d rules by prefix: no fault\n", path, len(c.Routes), len(c.Upstreams), len(p.Tables.Prefixes))
			fmt.Fprintf(e.out, "shared zone: %d MiB, %d workers, room for the buckets of %d clients at once\n", layout.Size>>20, layout.Workers, layout.Buckets/2)
			if err := printLimits(e.out, c); err != nil {
				return err
			}
			return printEscalations(e.out, c, layout.Workers)
		},
	}
	cmd.Flags().StringVarP(&path, "config", "c", "/etc/gateway/gateway.yaml", "configuration file")
	return cmd
}

// printLimits tells what each limit comes to: scope and error bound are what operators are
// most often wrong about.
func printLimits(w io.Writer, c *config.Config) error {
	if len(c.RequestLimits)+len(c.ConnectionLimits)+len(c.PacketLimits) == 0 {
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\nlimit\tof\ta bucket for each\trate\tburst\tscope\tmay pass beyond rate x t + burst")
	for _, l := range gateway.Limits(c) {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", dry(l.Name, l.DryRun), l.Of, l.Key, cmp.Or(l.Rate, "-"), burstOf(&l), l.Scope, l.Bound)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if slices.ContainsFunc(c.RequestLimits, func(l config.RequestLimit) bool { return l.Cluster }) {
		fmt.Fprintf(w, "note: a limit of all gateways comes to its rate over all of them together while redis answers within 25 ms (a burst and %s of the rate\n"+
			"are each further gateway's bound); while it does not answer, each gateway holds the whole rate and burst for itself, and refuses nobody for it\n", cluster.Window)
	}
	return nil
}

// burstOf is what may come at once, or be open.
func burstOf(l *admin.Limit) string {
	switch {
	case l.Max > 0:
		return fmt.Sprintf("%d at once", l.Max)
	case l.AtOnce > 0:
		return fmt.Sprintf("%d, %d of it at once", l.Burst, l.AtOnce)
	}
	return fmt.Sprint(l.Burst)
}

func dry(name string, is bool) string {
	if is {
		return name + " (dry run)"
	}
	return name
}
