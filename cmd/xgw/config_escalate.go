// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/xgw-project/xgw/pkg/config"
	"github.com/xgw-project/xgw/pkg/gateway"
)

// printEscalations tells what leads to verdicts, up to where, and for whom it does not.
func printEscalations(w io.Writer, c *config.Config, workers int) error {
	if len(c.Escalations) == 0 {
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\nescalation\ton\ta streak\tby each worker, so at most\tsteps\teach for")
	for _, e := range c.Escalations {
		fmt.Fprintf(t, "%s\t%s\t%d within %s\t%d\t%s to %s\t%s\n", dry(e.Name, e.DryRun), strings.Join(e.On, ", "), e.Count, config.TimeText(e.Within),
			workers*(e.Count-1)+1, e.Step, e.Most, config.TimeText(e.TTL))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	guard := "guard: off: verdicts hit all who share an address"
	if c.Verdicts.Guard > 0 {
		guard = fmt.Sprintf("guard: no step beyond thin where %d or more other good identities share the address", c.Verdicts.Guard)
	}
	fmt.Fprintln(w, guard)
	for _, said := range gateway.Unenforced(c) {
		fmt.Fprintln(w, "note: "+said)
	}
	return nil
}
