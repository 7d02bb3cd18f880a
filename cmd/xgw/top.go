// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/xgw-project/xgw/pkg/admin"
	"github.com/xgw-project/xgw/pkg/gateway"
	"github.com/xgw-project/xgw/pkg/top"
)

func topCommand(e *env) *cobra.Command {
	var once bool
	var interval time.Duration
	var pane string
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Watch queues, cores, routes, upstreams, limits, drops, sources and keys on the terminal",
		Long: `Reads the shared zone and the pinned maps directly, so it works while the supervisor
hangs, and after it died: the first line says so. Keys: ? shows them.

--once prints all panes after one interval and ends; --json prints a frame as JSON each
interval (with --once, one).`,
		Example: `  sudo xgw top
  sudo xgw top --pane drops --interval 500ms
  sudo xgw top --once --json | jq '.panes[] | select(.name == "routes")'`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if interval < 100*time.Millisecond || interval > time.Minute {
				return usageError{fmt.Errorf("--interval %s: 100ms to 1m are possible", interval)}
			}
			if pane != "" && !slices.Contains(top.PaneNames, pane) {
				return usageError{fmt.Errorf("--pane %s: want one of %s", pane, strings.Join(top.PaneNames, ", "))}
			}
			source := top.Open(gateway.ZonePath(e.instance), e.instance)
			defer source.Close()
			if !once && !e.json {
				return top.Run(cmd.Context(), source, top.Options{Interval: interval, Pane: pane, In: os.Stdin, Out: e.out, Verdict: thin(e)})
			}
			source.Read() // rates need two
			for {
				select {
				case <-cmd.Context().Done():
					return nil
				case <-time.After(interval):
				}
				if err := printFrame(e, source.Read(), pane); err != nil || once {
					return err
				}
			}
		},
	}
	cmd.Flags().BoolVar(&once, "once", false, "print one frame and end")
	cmd.Flags().DurationVarP(&interval, "interval", "i", time.Second, "between frames")
	cmd.Flags().StringVar(&pane, "pane", "", "the pane to begin with; with --once or --json, the only one")
	jsonFlag(cmd, e)
	return cmd
}

// thin holds a source at the first step for ten minutes.
func thin(e *env) func(string) error {
	return func(source string) error {
		_, err := admin.NewClient(admin.SocketPath(e.instance)).AddVerdict(admin.AddVerdict{Source: source, Step: "thin", TTL: 10 * time.Minute, Note: "top"})
		return err
	}
}

func printFrame(e *env, f *top.Frame, pane string) error {
	if pane != "" {
		f.Panes = []top.Table{*f.Pane(pane)}
	}
	if e.json {
		return json.NewEncoder(e.out).Encode(f)
	}
	f.Print(e.out)
	return nil
}
