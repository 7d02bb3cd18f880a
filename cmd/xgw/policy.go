// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/xgw-project/xgw/pkg/admin"
)

func policyCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "policy",
		Short:   "Try rules and limits before they hold",
		Example: "  sudo xgw policy try /etc/gateway/new/gateway.yaml",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q: `xgw policy --help` lists them", args[0])}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(policyTryCommand(e))
	return cmd
}

func policyTryCommand(e *env) *cobra.Command {
	ask := admin.TryPolicy{}
	cmd := &cobra.Command{
		Use:   "try FILE",
		Short: "Tell whom another policy would hurt, on the present traffic",
		Long: `FILE is another gateway.yaml, with a ratelimit.lua beside it, or another ratelimit.lua alone. Its rules and
limits, of packets and of requests, are tried beside those that hold, with buckets of their own. Nothing is
dropped or refused for them. At the end the command tells how many packets they would have dropped and of
which addresses, which requests they would have refused, and whose: addresses, API keys, and the share of
replies with a 2xx that nobody would have got.

The trial ends after --for, at ^C (and then tells, too), when the command is killed, and by a reload. Routes,
upstreams and verdicts are those that hold. Each trial is a generation of its own.`,
		Example: `  sudo xgw policy try new/gateway.yaml
  sudo xgw policy try ./stricter.lua --for 1h --json | jq '.clients[] | select(.key)'`,
		Args: exactly("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if ask.For < admin.ShortestTrial || ask.For > admin.LongestTrial {
				return usageError{fmt.Errorf("--for %s: want from %s to %s", ask.For, admin.ShortestTrial, admin.LongestTrial)}
			}
			var err error
			if ask.Path, err = filepath.Abs(args[0]); err != nil {
				return err
			}
			client := admin.NewClient(admin.SocketPath(e.instance))
			// ^C asks for the end, and the report still comes.
			asking, leave := context.WithCancel(context.WithoutCancel(cmd.Context()))
			defer leave()
			stop := context.AfterFunc(cmd.Context(), func() {
				if client.EndTrial() != nil {
					leave() // it has not begun
				}
			})
			defer stop()
			t, err := client.Try(asking, ask)
			switch {
			case errors.Is(err, admin.ErrConfiguration):
				return usageError{err}
			case err != nil:
				return err
			case e.json:
				return json.NewEncoder(e.out).Encode(t)
			}
			return tellTrial(e.out, &t)
		},
	}
	cmd.Flags().DurationVar(&ask.For, "for", 10*time.Minute, "how long it is tried")
	jsonFlag(cmd, e)
	return cmd
}

var trialEnds = map[string]string{
	"time": "", "asked": ", ended when asked to", "reload": ", ended by a reload", "stop": ", ended since the gateway stopped",
}

// tellTrial prints the report.
func tellTrial(w io.Writer, t *admin.Tried) error {
	share := func(n uint64) string {
		if t.OK == 0 {
			return "0 %"
		}
		return fmt.Sprintf("%.2f %%", 100*float64(n)/float64(t.OK))
	}
	p := &t.Packets
	fmt.Fprintf(w, "tried for %s%s; nothing was dropped or refused for it\n\n", t.Took.Round(100*time.Millisecond), trialEnds[t.Ended])
	fmt.Fprintf(w, "packets      %d of %d would have been dropped, of %d addresses\n", p.Dropped, p.Tried, p.Addresses)
	fmt.Fprintf(w, "requests     %d of %d would have been refused, and %d connections\n", t.Refused, t.Requests, t.Connections)
	fmt.Fprintf(w, "clients      %d would have been hurt, %d of them with an API key; %d would not\n", t.Hurt, t.AuthenticatedHit, t.Unhurt)
	fmt.Fprintf(w, "2xx replies  %s would have been lost (%d of %d)", share(t.Lost), t.Lost, t.OK)
	if t.AtRisk > 0 {
		fmt.Fprintf(w, ", up to %s with those of addresses that lose packets", share(t.Lost+t.AtRisk))
	}
	fmt.Fprintln(w)
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if len(t.Limits)+len(p.Reasons) > 0 {
		fmt.Fprintln(out, "\nLIMIT OR REASON\tWOULD STOP")
	}
	for _, l := range t.Limits {
		fmt.Fprintf(out, "%s\t%d %s\n", l.Name, l.Over, l.Unit)
	}
	for _, r := range p.Reasons {
		fmt.Fprintf(out, "%s on %s\t%d packets\n", r.Reason, r.Interface, r.Packets)
	}
	if len(t.Clients) > 0 {
		fmt.Fprintln(out, "\nADDRESS\tKEY\tCONSUMER\tPACKETS DROPPED\tREQUESTS\tREFUSED\t2XX\t2XX LOST\tAT RISK\t")
	}
	for i := range t.Clients {
		c := &t.Clients[i]
		said := "not hurt"
		if c.IsHurt() {
			said = ""
		}
		fmt.Fprintf(out, "%s\t%s\t%s\t%d\t%d\t%d\t%d\t%d\t%d\t%s\n", c.Address, c.Key, c.Consumer, c.Packets, c.Requests, c.Refused+c.Connections, c.OK, c.Lost, c.AtRisk, said)
	}
	if err := out.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	for _, b := range t.Bounds {
		fmt.Fprintln(w, "note:", b)
	}
	return nil
}
