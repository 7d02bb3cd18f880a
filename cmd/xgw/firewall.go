// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/xgw-project/xgw/pkg/config"
	"github.com/xgw-project/xgw/pkg/firewall"
	"github.com/xgw-project/xgw/pkg/host"
	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/script"
)

func firewallCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "firewall",
		Short: "The port guard as an nftables table, on all interfaces",
		Long: `Makes a table of nftables, inet xgw (or xgw-INSTANCE), of the configuration: what this host
receives is admitted if it is for a port that the port guard lets pass (those of listeners and
metrics, but on loopback, and port_guard.tcp and udp, whatever its mode), or for whom a pinhole
names (admin). So are packets of TCP that open no connection, replies over UDP to what was sent
in the last 30 seconds, echo and errors of ICMP, neighbour discovery, DHCP, and all on loopback.
The rest is dropped and counted: nft list counter inet xgw dropped. What is dropped by another
table stays dropped, and what is forwarded is not looked at.

Protocols without ports are dropped, too, such as VRRP or IPsec: where they are used, add a rule
to what xgw firewall show prints, and load that with nft -f.

Nothing but these commands touches nftables, and these no other table. The rules are gone after
a reboot, and do not follow a reload of the gateway: apply them again.`,
		Example: "  sudo xgw firewall apply --confirm 60s",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q: `xgw firewall --help` lists them", args[0])}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(firewallShowCommand(e), firewallApplyCommand(e), firewallConfirmCommand(e), firewallUndoCommand(e))
	return cmd
}

// readFirewall is that of a configuration.
func readFirewall(e *env, path string) (*firewall.Firewall, error) {
	c, err := config.Load(path, script.Run)
	if err != nil {
		return nil, usageError{err}
	}
	p, err := policy.Compile(c, 1)
	if err != nil {
		return nil, usageError{fmt.Errorf("%s: %w", path, err)}
	}
	return firewall.New(e.instance, p), nil
}

func configFlag(cmd *cobra.Command, path *string) {
	cmd.Flags().StringVarP(path, "config", "c", "/etc/gateway/gateway.yaml", "configuration file")
}

func firewallShowCommand(e *env) *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Print the table that the configuration comes to",
		Long: `Prints the table as nft -f takes it, and changes nothing. What apply makes is the same. A file
with it, included by /etc/nftables.conf, makes it last over a reboot.`,
		Example: `  xgw firewall show
  xgw firewall show | sudo nft -c -f -`,
		Args: exactly(),
		RunE: func(*cobra.Command, []string) error {
			f, err := readFirewall(e, path)
			if err == nil {
				_, err = fmt.Fprint(e.out, f.Text())
			}
			return err
		},
	}
	configFlag(cmd, &path)
	return cmd
}

func firewallApplyCommand(e *env) *cobra.Command {
	var path string
	var confirm time.Duration
	cmd := &cobra.Command{
		Use:   "apply",
		Short: "Put the table in force",
		Long: `Puts the rules in force, in one transaction, in the place of those that it has put there before.
It refuses to when a session of ssh from where there is one now could not be opened again.

With --confirm it warns of that only, and the rules hold until the time is over: then those
that held before hold again, unless xgw firewall confirm comes. The kernel keeps that time,
whatever becomes of this terminal. Connections that are open live on whatever the rules say: try
a new one before you confirm.

It warns, too, of ports of UDP on which somebody receives and that stay shut: packets of a tunnel
that ends on this host, such as WireGuard's, get in there for 30 seconds after this host has sent
one, and so do new sessions within it, but none later. Add a tunnel's port to port_guard.udp.`,
		Example: `  sudo xgw firewall apply --confirm 60s
  sudo xgw firewall apply -c gateway.yaml`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkConfirm(cmd, confirm); err != nil {
				return err
			}
			f, err := readFirewall(e, path)
			if err != nil {
				return err
			}
			return applyFirewall(e, f, confirm)
		},
	}
	configFlag(cmd, &path)
	cmd.Flags().DurationVar(&confirm, "confirm", 0, "undo it unless xgw firewall confirm comes within this time")
	return cmd
}

func applyFirewall(e *env, f *firewall.Firewall, confirm time.Duration) error {
	var shut []string
	for _, s := range host.Pinholes("/", os.Getenv("SSH_CONNECTION")) {
		if !f.Admits(s.Source.Addr(), s.Port) {
			shut = append(shut, fmt.Sprintf("%s: %s to port %d", s.Why, s.Source.Addr(), s.Port))
		}
	}
	if len(shut) > 0 {
		const mend = "add the source and the port to admin, or the port to port_guard.tcp"
		if confirm == 0 {
			return fmt.Errorf("apply table inet %s: it would shut out who is logged in (%s): %s, or try it with --confirm 60s", f.Table, strings.Join(shut, "; "), mend)
		}
		fmt.Fprintf(e.err, "xgw: WARNING: no new connection of who is logged in gets through (%s): %s\n", strings.Join(shut, "; "), mend)
	}
	warnOfTunnels(e, f)
	k, err := firewall.Open()
	if err != nil {
		return err
	}
	defer k.Close()
	waits, err := k.Apply(f, confirm)
	if err != nil {
		return err
	}
	fmt.Fprintf(e.out, "table inet %s: in force, `nft list table inet %s` shows it\n", f.Table, f.Table)
	switch {
	case waits:
		fmt.Fprintf(e.out, "undone in %s unless `%s` comes: try a new session first, for those that are open live on\n", confirm, firewallWords(e, "confirm"))
	case confirm > 0:
		fmt.Fprintln(e.out, "these rules held already: nothing waits to be confirmed")
	}
	return nil
}

// warnOfTunnels names the ports of UDP that get replies alone. Who is logged in through a tunnel
// that ends at one, as WireGuard's do, opens new sessions during a trial: the tunnel's packets
// are replies as long as this host sends, too.
func warnOfTunnels(e *env, f *firewall.Firewall) {
	var shut []string
	for _, port := range host.UDPPorts("/") {
		if !f.AdmitsUDP(port) {
			shut = append(shut, fmt.Sprint(port))
		}
	}
	if len(shut) > 0 {
		fmt.Fprintf(e.err, "xgw: WARNING: somebody receives over UDP on %s, which stay shut: who comes through a tunnel that ends there is shut out when this host has sent nothing for 30 s, and until then no new session shows it: add the tunnel's port to port_guard.udp\n", strings.Join(shut, ", "))
	}
}

// firewallWords is a command of the same instance.
func firewallWords(e *env, verb string) string {
	if e.instance == "" {
		return "xgw firewall " + verb
	}
	return "xgw --instance " + e.instance + " firewall " + verb
}

func firewallConfirmCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "confirm",
		Short: "Keep what was applied with --confirm",
		Long: `Ends the time after which the rules would go back to those before. When nothing waits any longer,
because it was confirmed before or was undone, the command fails.`,
		Example: "  sudo xgw firewall confirm",
		Args:    exactly(),
		RunE: func(*cobra.Command, []string) error {
			k, err := firewall.Open()
			if err != nil {
				return err
			}
			defer k.Close()
			if err := k.Confirm(firewall.TableName(e.instance)); err != nil {
				return err
			}
			fmt.Fprintf(e.out, "table inet %s: confirmed\n", firewall.TableName(e.instance))
			return nil
		},
	}
}

func firewallUndoCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:     "undo",
		Short:   "Take the table away",
		Long:    "Takes away the table that apply has made, and no other. What it dropped is admitted then.",
		Example: "  sudo xgw firewall undo",
		Args:    exactly(),
		RunE: func(*cobra.Command, []string) error {
			k, err := firewall.Open()
			if err != nil {
				return err
			}
			defer k.Close()
			name := firewall.TableName(e.instance)
			was, err := k.Undo(name)
			switch {
			case err != nil:
				return err
			case was:
				fmt.Fprintf(e.out, "table inet %s: taken away\n", name)
			default:
				fmt.Fprintf(e.out, "table inet %s: not there\n", name)
			}
			return nil
		},
	}
}
