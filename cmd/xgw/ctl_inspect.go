// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/xgw-project/xgw/pkg/admin"
)

func ctlLimitsCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "limits",
		Short: "Show the limits in force, what each comes to, and what it did",
		Long: `Lists the limits of both planes: whom each bucket is for, what holds it together, by how much more may pass,
and what became of requests or packets under it since counting began.`,
		Example: `  sudo gateway-ctl limits
  sudo gateway-ctl limits --json | jq '.[] | select(.counts.rejected > 0)'`,
		Args: exactly(),
		RunE: func(*cobra.Command, []string) error {
			list, err := admin.NewClient(admin.SocketPath(e.instance)).Limits()
			switch {
			case err != nil:
				return err
			case e.json:
				return json.NewEncoder(e.out).Encode(list)
			}
			w := tabwriter.NewWriter(e.out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "LIMIT\tOF\tA BUCKET FOR EACH\tRATE\tBURST\tSCOPE\tMAY PASS BEYOND\tDID")
			for _, l := range list {
				var did []string
				for _, name := range slices.Sorted(maps.Keys(l.Counts)) {
					if n := l.Counts[name]; n > 0 {
						did = append(did, fmt.Sprintf("%s %d", name, n))
					}
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", dry(l.Name, l.DryRun), l.Of, l.Key, cmp.Or(l.Rate, "-"), burstOf(&l), l.Scope, l.Bound, strings.Join(did, ", "))
			}
			return w.Flush()
		},
	}
	jsonFlag(cmd, e)
	return cmd
}

func ctlDrainCommand(e *env, drained bool) *cobra.Command {
	name, short, long, done := "undrain", "Have balancers send this gateway clients again",
		"Ends what drain began: /readyz of the metrics' listener says 200 again, and so does the health of gRPC.", "taken back"
	if drained {
		name, short, done = "drain", "Have balancers leave this gateway out", "drained"
		long = `From now on /readyz of the metrics' listener says 503, and so does the health of gRPC, so that what balances over
gateways sends new clients to others. Those who come all the same are served on, until undrain
or a new start; an upgrade keeps it. A gateway that is stopped then closes no connection under a client's
request: an idle one of HTTP/1.1 goes with its next reply, or when timeouts.drain is over. The file xgw.drain
(of an instance: NAME.drain) beside gateway.yaml, whatever is in it, does the same for as long as it is there, within
a second, over new starts and reboots, too. A single server of an upstream is drained by gateway-ctl upstreams drain.`
	}
	var wait time.Duration
	cmd := &cobra.Command{
		Use: name, Short: short, Long: long, Example: "  sudo gateway-ctl " + name, Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := admin.NewClient(admin.SocketPath(e.instance)).SetDrained(drained); err != nil {
				return err
			}
			fmt.Fprintln(e.out, done)
			select {
			case <-cmd.Context().Done():
			case <-time.After(wait):
			}
			return nil
		},
	}
	if drained {
		cmd.Flags().DurationVar(&wait, "wait", 0, "return this much later, when balancers have seen it: before a stop, where there is no shell")
	}
	return cmd
}

func ctlEventsCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Tell what happens, as it does",
		Long: `Prints changes of the generation, verdicts, servers of upstreams that go down and come back, workers that end and
start, and drains, until it is interrupted or the gateway ends.`,
		Example: `  sudo gateway-ctl events
  sudo gateway-ctl events --json | jq 'select(.kind == "verdict")'`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := admin.NewClient(admin.SocketPath(e.instance)).Events(cmd.Context(), func(v admin.Event) {
				if e.json {
					_ = json.NewEncoder(e.out).Encode(v)
					return
				}
				line := fmt.Sprintf("%s  %s %s: %s", v.Time.Local().Format(time.TimeOnly), v.Kind, v.About, v.What)
				if v.Note != "" {
					line += ": " + v.Note
				}
				fmt.Fprintln(e.out, printable(line))
			})
			if cmd.Context().Err() != nil {
				return nil
			}
			return err
		},
	}
	jsonFlag(cmd, e)
	return cmd
}

func ctlExplainCommand(e *env) *cobra.Command {
	ask := admin.ExplainRequest{}
	var fields []string
	cmd := &cobra.Command{
		Use:   "explain PATH",
		Short: "Say what would become of a request, and why",
		Long: `Tells the route that takes a request, where it goes, the limits that it is charged to, and of a client what is held
against it and what becomes of its packets. Nothing is counted or charged. Limits are named, whatever is left of their bursts.`,
		Example: `  sudo gateway-ctl explain /orders --host shop.example
  sudo gateway-ctl explain /orders --method POST --client 192.0.2.7 --key k1
  sudo gateway-ctl explain / --field "X-Tenant: a" --json`,
		Args: exactly("PATH"),
		RunE: func(_ *cobra.Command, args []string) error {
			ask.Path, ask.Fields = args[0], map[string]string{}
			for _, f := range fields {
				name, value, ok := strings.Cut(f, ":")
				if !ok {
					return usageError{fmt.Errorf("--field %q: want \"NAME: VALUE\"", f)}
				}
				ask.Fields[name] = strings.TrimSpace(value)
			}
			x, err := admin.NewClient(admin.SocketPath(e.instance)).Explain(ask)
			switch {
			case errors.Is(err, admin.ErrInvalid):
				return usageError{err}
			case err != nil:
				return err
			case e.json:
				return json.NewEncoder(e.out).Encode(x)
			}
			writeExplained(e, &x)
			return nil
		},
	}
	cmd.Flags().StringVar(&ask.Method, "method", "GET", "of the request")
	cmd.Flags().StringVar(&ask.Host, "host", "", "of the request")
	cmd.Flags().StringVar(&ask.Client, "client", "", "its address")
	cmd.Flags().StringVar(&ask.Listener, "listener", "", "the address by which it comes, such as :80; without it, the first listener's")
	cmd.Flags().StringVar(&ask.Key, "key", "", "the id of its API key")
	cmd.Flags().StringArrayVar(&fields, "field", nil, "of its header, \"NAME: VALUE\"; may be given again")
	jsonFlag(cmd, e)
	return cmd
}

func writeExplained(e *env, x *admin.Explained) {
	fmt.Fprintf(e.out, "ends      %s\n", x.Ends)
	if x.Route != "" {
		fmt.Fprintf(e.out, "route     %s\n", x.Route)
	}
	if len(x.Upstream) > 0 {
		fmt.Fprintf(e.out, "upstream  %s\n", strings.Join(x.Upstream, " or "))
	}
	for _, s := range x.Servers {
		fmt.Fprintf(e.out, "server    %s %s, %s\n", s.Upstream, s.Address, s.State)
	}
	if x.Key != "" {
		fmt.Fprintf(e.out, "key       %s\n", x.Key)
	}
	for _, l := range x.Limits {
		fmt.Fprintf(e.out, "limit     %s, of %s\n", l.Name, printable(l.Value))
	}
	if v := x.Verdict; v != nil {
		fmt.Fprintf(e.out, "verdict   %s, for %s, until %s\n", v.Step, v.Reason, v.Until.Format(time.RFC3339))
	}
	for _, name := range slices.Sorted(maps.Keys(x.Packets)) {
		p := x.Packets[name]
		line := p.Outcome
		if p.Rule != "" {
			line += ", rule " + p.Rule
		}
		fmt.Fprintf(e.out, "packets   %s: %s\n", name, line)
	}
}

func ctlLogCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "log",
		Short:   "The error log of a running gateway",
		Example: "  sudo gateway-ctl log level debug --for 10m",
		Args:    exactly(),
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(ctlLogLevelCommand(e))
	return cmd
}

func ctlLogLevelCommand(e *env) *cobra.Command {
	var lasts time.Duration
	cmd := &cobra.Command{
		Use:   "level [LEVEL]",
		Short: "Show or change from which level on the error log is written",
		Long: `Without LEVEL it shows the level; else it changes that, to debug, info, warn, error or crit, in the supervisor and all workers.
With --for it goes back by itself; without, it stays until the next start, which takes the configuration's.`,
		Example: `  sudo gateway-ctl log level
  sudo gateway-ctl log level debug --for 10m`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return exactly("LEVEL")(cmd, args)
			}
			if len(args) == 0 && cmd.Flags().Changed("for") {
				return usageError{errors.New("--for is for a change: name a level, too")}
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			c := admin.NewClient(admin.SocketPath(e.instance))
			l, err := c.Logging()
			if len(args) == 1 {
				l, err = c.SetLogging(admin.SetLogging{Level: args[0], For: lasts})
			}
			switch {
			case errors.Is(err, admin.ErrInvalid):
				return usageError{err}
			case err != nil:
				return err
			case e.json:
				return json.NewEncoder(e.out).Encode(l)
			case l.Back != "":
				fmt.Fprintf(e.out, "%s until %s, then %s\n", l.Level, l.Until.Local().Format(time.TimeOnly), l.Back)
				return nil
			}
			fmt.Fprintln(e.out, l.Level)
			return nil
		},
	}
	cmd.Flags().DurationVar(&lasts, "for", 0, "then it goes back; up to 24h")
	jsonFlag(cmd, e)
	return cmd
}
