// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/xgw-project/xgw/pkg/admin"
)

func ctlUpgradeCommand(e *env) *cobra.Command {
	var ask admin.Upgrade
	cmd := &cobra.Command{
		Use:   "upgrade",
		Short: "Go on as a new process of the binary, without losing a request",
		Long: `Starts the binary anew, by default the one at the path of the running gateway, which a package
may have replaced. The new process reads the configuration and takes over the listening sockets,
the zone with counters and limits, the kernel plane, whose programs become those of the new version
under the live link, session ticket keys and the sockets of metrics, admin API and gateway-ctl.
Then the old workers finish what is under way: connections are asked to go (Connection: close,
GOAWAY), and WebSockets live until the drain timeout.

When the new process refuses the configuration, does not serve within 10 s, dies or is not well
while it is watched, the old one goes on, and the command says why. A downgrade is the same with
--binary. A zone of another layout is made anew, which begins counters and limits anew. Another
number of workers takes a restart.`,
		Example: `  sudo gateway-ctl upgrade
  sudo gateway-ctl upgrade --binary /opt/xgw-1.2/xgw --watch 1m`,
		Args: exactly(),
		RunE: func(*cobra.Command, []string) error {
			if ask.Watch < 0 || ask.Watch > admin.LongestWatch {
				return usageError{fmt.Errorf("--watch %s: want 0 to %s", ask.Watch, admin.LongestWatch)}
			}
			if ask.Binary != "" {
				path, err := filepath.Abs(ask.Binary)
				if err != nil {
					return err
				}
				ask.Binary = path
			}
			done, err := admin.NewClient(admin.SocketPath(e.instance)).Upgrade(ask)
			switch {
			case err != nil:
				return err
			case e.json:
				return json.NewEncoder(e.out).Encode(done)
			}
			fmt.Fprintf(e.out, "process %d has taken over, after %s\n", done.PID, done.Took.Round(time.Millisecond))
			return nil
		},
	}
	cmd.Flags().StringVar(&ask.Binary, "binary", "", "binary to start, instead of the one at the running gateway's path")
	cmd.Flags().DurationVar(&ask.Watch, "watch", 10*time.Second, "for how long the old process stands ready to go on")
	jsonFlag(cmd, e)
	return cmd
}
