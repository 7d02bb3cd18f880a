// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/xgw-project/xgw/pkg/datapath"
)

// dropsInterval is how often samples are fetched: each CPU keeps 128.
const dropsInterval = 100 * time.Millisecond

func dropsCommand(e *env) *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use:   "drops INTERFACE",
		Short: "Show samples of dropped packets, with the reason",
		Long: `What XDP drops, tcpdump never sees. The kernel plane keeps a sample of it: for each CPU,
queue and outcome the first dropped frame and then each 64th, 128 at a time, so that a
flood costs nothing more. OF is how many that CPU, queue and outcome had dropped by then;
xgw status has the exact sums.`,
		Example: `  sudo xgw drops eth0
  sudo xgw drops eth0 --follow --json`,
		Args: exactly("INTERFACE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := datapath.Open(datapath.Options{Interface: args[0], Instance: e.instance})
			if err != nil {
				return err
			}
			defer d.Close()
			samples, err := d.NewDrops()
			if err != nil {
				return err
			}
			tick := time.NewTicker(dropsInterval)
			defer tick.Stop()
			for n := 1; ; n++ {
				drops, err := samples.Read()
				if err != nil {
					return err
				}
				if err := writeDrops(e, drops); err != nil {
					return err
				}
				if !follow {
					if len(drops) == 0 && !e.json {
						fmt.Fprintf(e.out, "%s: no samples: no frame was dropped since the attach\n", args[0])
					}
					return nil
				}
				if n%10 == 0 && !d.Status().Attached {
					return fmt.Errorf("drops of %s: it was taken off meanwhile", args[0])
				}
				select {
				case <-cmd.Context().Done():
					return nil
				case <-tick.C:
				}
			}
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until interrupted")
	jsonFlag(cmd, e)
	return cmd
}

func writeDrops(e *env, drops []datapath.Drop) error {
	for i := range drops {
		d := &drops[i]
		if e.json {
			if err := json.NewEncoder(e.out).Encode(d); err != nil {
				return err
			}
			continue
		}
		fmt.Fprintf(e.out, "%14.6f  queue %s  %-21s of %-8d %5d bytes  %s\n",
			d.Time.Seconds(), (&datapath.QueueCount{Queue: d.Queue}).QueueName(), d.Outcome, d.Ordinal, d.Length, hex.EncodeToString(d.Head[:min(len(d.Head), 54)]))
	}
	return nil
}
