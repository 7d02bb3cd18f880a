// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/xgw-project/xgw/pkg/lab"
)

func upstreamCommand(e *env) *cobra.Command {
	var address string
	cmd := &cobra.Command{
		Use:     "upstream",
		Short:   "A small HTTP server to put behind the gateway, for trying it out",
		Example: "  xgw upstream --address 127.0.0.1:8080",
		Hidden:  true,
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := net.Listen("tcp", address)
			if err != nil {
				return err
			}
			fmt.Fprintf(e.out, "xgw: upstream on http://%s\n", l.Addr())
			s := &http.Server{Handler: lab.NewUpstream(), ReadHeaderTimeout: 10 * time.Second}
			go func() {
				<-cmd.Context().Done()
				_ = s.Shutdown(context.Background())
			}()
			if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&address, "address", "127.0.0.1:8080", "where to listen")
	return cmd
}
