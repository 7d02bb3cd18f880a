// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/xgw-project/xgw/pkg/admin"
)

func ctlCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ctl",
		Short: "Tell a running gateway what to do; also gateway-ctl",
		Long:  "Speaks with the gateway of this machine over its control socket, which the user that runs it may open, and where root does, members of the group gateway_admin.",
		Example: `  sudo xgw ctl reload
  sudo gateway-ctl reload # the same`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q: `xgw ctl --help` lists them", args[0])}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(ctlReloadCommand(e), ctlConfirmCommand(e), ctlStatusCommand(e), ctlCacheCommand(e), ctlVerdictsCommand(e), ctlUpstreamsCommand(e),
		ctlLimitsCommand(e), ctlExplainCommand(e), ctlEventsCommand(e), ctlLogCommand(e), ctlDrainCommand(e, true), ctlDrainCommand(e, false), ctlUpgradeCommand(e))
	return cmd
}

func ctlReloadCommand(e *env) *cobra.Command {
	var confirm time.Duration
	cmd := &cobra.Command{
		Use:   "reload",
		Short: "Take the changed configuration",
		Long: `Reads gateway.yaml, ratelimit.lua and the certificates anew. Both planes change over
together, and connections live on. With any fault nothing changes, and the command says
which one, with file and line. What holds for a gateway's whole life takes a restart, and
that is said: interfaces, telemetry, admin_api, workers and what belongs to their processes,
keys.store, keys.file, redis, log, and buffers.conf.

With --confirm the change undoes itself unless gateway-ctl confirm comes in time.`,
		Example: `  sudo gateway-ctl reload
  sudo gateway-ctl reload --confirm 60s`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkConfirm(cmd, confirm); err != nil {
				return err
			}
			r, err := admin.NewClient(admin.SocketPath(e.instance)).Reload(confirm)
			switch {
			case errors.Is(err, admin.ErrConfiguration):
				return usageError{err}
			case err != nil:
				return err
			case e.json:
				return json.NewEncoder(e.out).Encode(r)
			}
			fmt.Fprintf(e.out, "generation %d, after %s\n", r.Generation, r.Took.Round(10*time.Microsecond))
			if confirm > 0 {
				fmt.Fprintf(e.out, "undone in %s unless `gateway-ctl confirm` comes\n", confirm)
			}
			return nil
		},
	}
	cmd.Flags().DurationVar(&confirm, "confirm", 0, "undo it unless gateway-ctl confirm comes within this time")
	jsonFlag(cmd, e)
	return cmd
}

func ctlConfirmCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:     "confirm",
		Short:   "Keep what was reloaded with --confirm",
		Long:    "Ends the time after which the gateway would go back to the configuration before. When nothing waits, the command fails.",
		Example: "  sudo gateway-ctl confirm",
		Args:    exactly(),
		RunE: func(*cobra.Command, []string) error {
			if err := admin.NewClient(admin.SocketPath(e.instance)).Confirm(); err != nil {
				return err
			}
			fmt.Fprintln(e.out, "confirmed")
			return nil
		},
	}
}

func ctlCacheCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "cache",
		Short:   "What workers keep in memory",
		Example: "  sudo gateway-ctl cache purge --all",
		Args:    exactly(),
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(ctlPurgeCommand(e))
	return cmd
}

func ctlPurgeCommand(e *env) *cobra.Command {
	var all bool
	var kind string
	cmd := &cobra.Command{
		Use:   "purge",
		Short: "Have workers forget what they keep in memory",
		Long: `Of all kinds, or of one: ` + strings.Join(admin.Caches, ", ") + `. It holds for every request from when the command
returns, costs no connection, and may be done again; the metric xgw_cache_purges_total counts it. Nothing
of that kind is believed any more before the store was asked, not even while it does not answer.`,
		Example: `  sudo gateway-ctl cache purge --all
  sudo gateway-ctl cache purge --kind keys`,
		Args: exactly(),
		RunE: func(*cobra.Command, []string) error {
			if all == (kind != "") {
				return usageError{errors.New("want --all, or --kind and one of " + strings.Join(admin.Caches, ", "))}
			}
			if all {
				kind = "all"
			} else if !slices.Contains(admin.Caches, kind) {
				return usageError{fmt.Errorf("--kind %q: want %s", kind, strings.Join(admin.Caches, " or "))}
			}
			if err := admin.NewClient(admin.SocketPath(e.instance)).Purge(kind); err != nil {
				return err
			}
			fmt.Fprintln(e.out, "purged")
			return nil
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "of all kinds")
	cmd.Flags().StringVar(&kind, "kind", "", "of this kind alone: "+strings.Join(admin.Caches, " or "))
	return cmd
}

func ctlStatusCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what a running gateway has in force, and how its upstreams' servers are",
		Long: `Tells the generation of the configuration and, for each server of an upstream, whether its
health checks find it up or down, since when, and why, and whether it was drained by hand. Servers that fail requests are also
left alone for a time by each worker for itself, which is not shown here: the metric
xgw_upstream_ejections_total counts it.`,
		Example: `  sudo xgw ctl status
  sudo gateway-ctl status --json | jq '.servers[] | select(.state == "down")'`,
		Args: exactly(),
		RunE: func(*cobra.Command, []string) error {
			s, err := admin.NewClient(admin.SocketPath(e.instance)).Status()
			switch {
			case err != nil:
				return err
			case e.json:
				return json.NewEncoder(e.out).Encode(s)
			}
			fmt.Fprintf(e.out, "generation %d\n", s.Generation)
			w := tabwriter.NewWriter(e.out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "UPSTREAM\tSERVER\tNAME\tWEIGHT\tSTATE\tFOR\tCAUSE")
			for _, v := range s.Servers {
				state := v.State
				if v.Drained {
					state += ", drained"
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\t%s\n", v.Upstream, v.Address, v.Name, v.Weight, state, time.Since(v.Since).Round(time.Second), v.Cause)
			}
			return w.Flush()
		},
	}
	jsonFlag(cmd, e)
	return cmd
}
