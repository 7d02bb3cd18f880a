// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/xgw-project/xgw/pkg/admin"
)

func ctlVerdictsCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "verdicts",
		Short: "Show and change what is held against sources in the kernel plane",
		Long: `A verdict drops packets of a source for a time, at the NIC queue: thin drops three SYNs of
four, syns all of them, new all that is not established TCP, and all everything. Rules
give them (escalate in ratelimit.lua), and so may you. Upstreams, trusted proxies, administrators and
what is allowed are exempt, and so are replies to connections that this host opened.`,
		Example: `  sudo gateway-ctl verdicts list
  sudo gateway-ctl verdicts add 192.0.2.7 --step all --ttl 10m --reason "scrapes the shop"
  sudo gateway-ctl verdicts del 192.0.2.7`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q: `xgw ctl verdicts --help` lists them", args[0])}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(verdictsListCommand(e), verdictsAddCommand(e), verdictsDelCommand(e))
	return cmd
}

func verdictsListCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "Show what is held",
		Long: `Lists each source with its step, who or what gave the verdict, and when the step ends; one that a rule
gave then goes back to the step before. GOOD is how many good identities shared the address when
the guard was asked; where it says capped, they kept the step at thin.`,
		Example: `  sudo gateway-ctl verdicts list
  sudo gateway-ctl verdicts list --json | jq '.[] | select(.capped)'`,
		Args: exactly(),
		RunE: func(*cobra.Command, []string) error {
			list, err := admin.NewClient(admin.SocketPath(e.instance)).Verdicts()
			switch {
			case err != nil:
				return err
			case e.json:
				return json.NewEncoder(e.out).Encode(list)
			}
			return writeVerdicts(e.out, list, time.Now())
		},
	}
	jsonFlag(cmd, e)
	return cmd
}

func writeVerdicts(out io.Writer, list []admin.Verdict, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SOURCE\tSTEP\tREASON\tRULE\tHELD FOR\tENDS IN\tGOOD\tNOTE")
	for _, v := range list {
		step := v.Step
		if v.Capped {
			step += " (capped)"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\n", v.Source, step, v.Reason, printable(v.Rule),
			now.Sub(v.Since).Round(time.Second), v.Until.Sub(now).Round(time.Second), v.Good, printable(v.Note))
	}
	return w.Flush()
}

// printable is an operator's text on one line, whatever is in it.
func printable(s string) string {
	out := []rune(s)
	for i, r := range out {
		if r < ' ' || r == 0x7f {
			out[i] = ' '
		}
	}
	return string(out)
}

func verdictsAddCommand(e *env) *cobra.Command {
	var ask admin.AddVerdict
	cmd := &cobra.Command{
		Use:   "add ADDRESS",
		Short: "Hold a verdict against a source",
		Long: `Drops packets of the source from now on, until the time is over or del ends it. An IPv6 address
stands for its /64. Where good clients share the address (a 2xx lately), the guard lets no more
than thin through and says so; --force goes beyond.`,
		Example: `  sudo gateway-ctl verdicts add 192.0.2.7 --reason "scrapes the shop"
  sudo gateway-ctl verdicts add 2001:db8::7 --step syns --ttl 1h --reason probing`,
		Args: exactly("ADDRESS"),
		RunE: func(_ *cobra.Command, args []string) error {
			ask.Source = args[0]
			v, err := admin.NewClient(admin.SocketPath(e.instance)).AddVerdict(ask)
			switch {
			case errors.Is(err, admin.ErrInvalid):
				return usageError{err}
			case err != nil:
				return err
			case e.json:
				return json.NewEncoder(e.out).Encode(v)
			}
			fmt.Fprintf(e.out, "%s: %s until %s\n", v.Source, v.Step, v.Until.Format(time.RFC3339))
			if v.Capped {
				fmt.Fprintf(e.out, "no more than thin: %d good identities share the address; --force goes beyond\n", v.Good)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&ask.Step, "step", "all", "thin, syns, new or all")
	cmd.Flags().DurationVar(&ask.TTL, "ttl", 10*time.Minute, "for how long, 1s to 720h")
	cmd.Flags().StringVar(&ask.Note, "reason", "", "for list and the log")
	cmd.Flags().BoolVar(&ask.Force, "force", false, "whoever shares the address")
	jsonFlag(cmd, e)
	return cmd
}

func verdictsDelCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:     "del ADDRESS",
		Short:   "End what is held against a source",
		Long:    "Ends the verdict at once, whoever gave it. When there is none, the command fails.",
		Example: "  sudo gateway-ctl verdicts del 192.0.2.7",
		Args:    exactly("ADDRESS"),
		RunE: func(_ *cobra.Command, args []string) error {
			err := admin.NewClient(admin.SocketPath(e.instance)).RemoveVerdict(args[0])
			switch {
			case errors.Is(err, admin.ErrInvalid):
				return usageError{err}
			case err != nil:
				return err
			}
			fmt.Fprintln(e.out, "ended")
			return nil
		},
	}
}
