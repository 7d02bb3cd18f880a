// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/xgw-project/xgw/pkg/datapath"
	"github.com/xgw-project/xgw/pkg/gateway"
)

// prepareCommand is for the service manager: what root has to do before a supervisor that is
// not root can start.
func prepareCommand(e *env) *cobra.Command {
	var user string
	cmd := &cobra.Command{
		Use:    "prepare --user NAME",
		Short:  "Give a user what the supervisor needs to run as that user; the unit runs it",
		Hidden: true,
		Args:   exactly(),
		RunE: func(*cobra.Command, []string) error {
			if user == "" {
				return usageError{errors.New("prepare: --user says whom the supervisor runs as")}
			}
			err := gateway.Give(e.instance, user)
			if errors.Is(err, datapath.ErrNoPins) {
				// Without interfaces it needs none; with some, it will refuse to start.
				fmt.Fprintf(e.err, "xgw: note: %v\n", err)
				return nil
			}
			return err
		},
	}
	cmd.Flags().StringVar(&user, "user", "", "whom the supervisor runs as: a name or a number")
	return cmd
}
