// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/xgw-project/xgw/pkg/admin"
)

func ctlUpstreamsCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "upstreams",
		Short: "Drain, enable or weight a server of an upstream",
		Long: `Decides on one server, by its address as gateway-ctl status shows it. A drained server gets no
new requests, whatever becomes of the others; those under way end, and its idle connections are
closed. What is decided holds over reloads and until the gateway is started anew.`,
		Example: `  sudo gateway-ctl upstreams drain backend 127.0.0.1:8080
  sudo gateway-ctl upstreams weight backend 127.0.0.1:8080 10
  sudo gateway-ctl upstreams enable backend 127.0.0.1:8080`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	set := func(name, short, done, example string, args []string, change func(*admin.ServerSetting, []string) error) {
		cmd.AddCommand(&cobra.Command{
			Use:     name + " " + strings.Join(args, " "),
			Short:   short,
			Long:    short + ". The command returns when the gateway has it, and its workers are being told.",
			Example: "  sudo gateway-ctl upstreams " + example,
			Args:    exactly(args...),
			RunE: func(_ *cobra.Command, given []string) error {
				s := admin.ServerSetting{Upstream: given[0], Address: given[1]}
				if err := change(&s, given); err != nil {
					return err
				}
				if err := admin.NewClient(admin.SocketPath(e.instance)).SetServer(s); err != nil {
					return err
				}
				fmt.Fprintf(e.out, "%s %s: %s\n", given[0], given[1], done)
				return nil
			},
		})
	}
	yes, no, own := true, false, 0
	set("drain", "Send a server no more requests", "drained", "drain backend 127.0.0.1:8080", []string{"UPSTREAM", "SERVER"}, func(s *admin.ServerSetting, _ []string) error {
		s.Drained = &yes
		return nil
	})
	set("enable", "Send a server requests again, with the weight of the configuration", "enabled", "enable backend 127.0.0.1:8080", []string{"UPSTREAM", "SERVER"}, func(s *admin.ServerSetting, _ []string) error {
		s.Drained, s.Weight = &no, &own
		return nil
	})
	set("weight", "Give a server another share of the requests, 1 to 1000", "weighted", "weight backend 127.0.0.1:8080 10", []string{"UPSTREAM", "SERVER", "WEIGHT"}, func(s *admin.ServerSetting, given []string) error {
		n, err := strconv.Atoi(given[2])
		if err != nil || n < 1 || n > 1000 {
			return usageError{fmt.Errorf("weight %q: want a whole number from 1 to 1000", given[2])}
		}
		s.Weight = &n
		return nil
	})
	return cmd
}
