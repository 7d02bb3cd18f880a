// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/xgw-project/xgw/pkg/datapath"
)

// interfaceStatus is what `xgw status --json` prints for each interface.
type interfaceStatus struct {
	datapath.Status
	datapath.State
	Error  string                `json:"error,omitempty"`
	Counts []directedCount       `json:"counts,omitempty"` // outcomes that have counted something
	Limits []datapath.LimitCount `json:"limits,omitempty"` // those that some packet was over
	Tables datapath.TableCounts  `json:"tables"`
}

// directedCount tells what was received from what was sent, which has no queue.
type directedCount struct {
	Direction string `json:"direction"` // ingress or egress
	datapath.QueueCount
}

func (c *directedCount) place() string {
	if c.Direction == "egress" {
		return c.Direction
	}
	return c.QueueName()
}

func statusCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status [INTERFACE...]",
		Short: "Show what is attached, and what it has counted",
		Long: `Reads the pinned maps directly, so it needs no running gateway. Without a name it
shows every interface that has pins. What was received is counted by receive queue;
what was sent, egress, is counted before it has a queue.`,
		Example: `  sudo xgw status
  sudo xgw status eth0 --json | jq '.[0].counts'`,
		RunE: func(cmd *cobra.Command, args []string) error {
			names := args
			if len(names) == 0 {
				var err error
				if names, err = datapath.Interfaces(datapath.Options{Instance: e.instance}); err != nil {
					return err
				}
			}
			return reportStatus(e, names, len(args) > 0)
		},
	}
	jsonFlag(cmd, e)
	return cmd
}

// reportStatus prints a report for each; an interface that was asked for by name
// and cannot be read fails the command.
func reportStatus(e *env, names []string, named bool) error {
	all := make([]interfaceStatus, 0, len(names))
	for _, name := range names {
		s, err := readStatus(datapath.Options{Interface: name, Instance: e.instance})
		if err != nil && named {
			return err
		}
		all = append(all, s)
	}
	if e.json {
		return json.NewEncoder(e.out).Encode(all)
	}
	if len(all) == 0 {
		o := datapath.Options{Interface: "INTERFACE", Instance: e.instance}
		fmt.Fprintf(e.out, "nothing is attached: `%s` does it\n", o.Command("attach"))
	}
	for _, s := range all {
		writeStatus(e, s)
	}
	return nil
}

func readStatus(o datapath.Options) (interfaceStatus, error) {
	s := interfaceStatus{Status: datapath.Status{Interface: o.Interface}}
	d, err := datapath.Open(o)
	if err != nil {
		s.Error = err.Error()
		return s, err
	}
	defer d.Close()
	s.Status = d.Status()
	var c datapath.Counters
	err = d.Counters(&c)
	if err == nil {
		s.State, err = d.State()
	}
	if err == nil {
		s.Limits, err = d.LimitCounts()
	}
	if err == nil {
		s.Tables, err = d.TableCounts()
	}
	if err != nil {
		s.Error = err.Error()
		return s, err
	}
	for i, rows := range [][]datapath.QueueCount{c.Ingress, c.Egress} {
		for _, row := range rows {
			if row.Packets > 0 {
				s.Counts = append(s.Counts, directedCount{[]string{"ingress", "egress"}[i], row})
			}
		}
	}
	return s, nil
}

func writeStatus(e *env, s interfaceStatus) {
	if s.Error != "" {
		fmt.Fprintf(e.out, "%s: %s\n", s.Interface, s.Error)
		return
	}
	o := datapath.Options{Interface: s.Interface, Instance: e.instance}
	fmt.Fprintf(e.out, "%s: %s mode by %s, program %d, generation %d, pins in %s\n", s.Interface, s.Mode, s.Hook, s.Program, s.Generation, s.Directory)
	switch {
	case s.Expired:
		fmt.Fprintf(e.out, "  not confirmed in time: everything passes: `%s`, then attach again\n", o.Command("detach"))
	case s.Waits > 0:
		fmt.Fprintf(e.out, "  undone in %s unless `%s` comes\n", s.Waits.Round(time.Second), o.Command("confirm"))
	}
	w := tabwriter.NewWriter(e.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "  QUEUE\tVERDICT\tREASON\tPACKETS\tBYTES")
	for _, c := range s.Counts {
		fmt.Fprintf(w, "  %s\t%s\t%s\t%d\t%d\n", c.place(), c.Verdict, c.Reason, c.Packets, c.Bytes)
	}
	for _, l := range s.Limits {
		fmt.Fprintf(w, "  \tlimit\t%s\t%d dropped\t%d in dry run\n", l.Name, l.Dropped, l.DryRun)
	}
	w.Flush()
}
