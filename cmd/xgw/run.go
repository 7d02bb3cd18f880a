// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/xgw-project/xgw/pkg/config"
	"github.com/xgw-project/xgw/pkg/gateway"
	"github.com/xgw-project/xgw/pkg/host"
	"github.com/xgw-project/xgw/pkg/logging"
	"github.com/xgw-project/xgw/pkg/sandbox"
	"github.com/xgw-project/xgw/pkg/script"
)

func runCommand(e *env) *cobra.Command {
	var path string
	var confirm time.Duration
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the gateway: supervisor, workers, metrics",
		Long: `Reads gateway.yaml (and buffers.conf and ratelimit.lua beside it), attaches the kernel plane to the
interfaces named there unless it is attached already, and starts one worker on
each core. On SIGTERM and SIGINT it lets the workers finish what is under way and
takes off what it attached itself; what xgw attach made stays. On SIGHUP it reloads, as
gateway-ctl reload does. On SIGUSR1 it opens its logs anew, for logrotate.

With --confirm the rules and limits of the kernel plane undo themselves unless xgw
confirm comes in time: an interface that had others before has those again, any other
passes everything.`,
		Example: `  sudo xgw run -c /etc/gateway/gateway.yaml
  sudo xgw run --confirm 60s   # then, from another session: xgw confirm eth0
  sudo gateway-engine -c /etc/gateway/gateway.yaml # the same`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkConfirm(cmd, confirm); err != nil {
				return err
			}
			if err := sandbox.Keep(); err != nil { // before it starts anything or reads a key
				return err
			}
			load := func() (*config.Config, error) { return config.Load(path, script.Run) }
			c, err := load()
			if err != nil {
				return usageError{err}
			}
			c.Instance = e.instance
			if os.Getenv(gateway.HandoverEnv) != "" {
				confirm = 0 // that was for the process before
			}
			log, errorLog, err := openErrorLog(c.Log, e.err)
			if err != nil {
				return err
			}
			defer errorLog.Close()
			offerPinholes(c, log)
			err = gateway.Run(cmd.Context(), gateway.Options{
				Config: c, Log: log, ErrorLog: errorLog, Version: version(), Load: load, LoadOther: loadOther(path), Confirm: confirm, Fault: e.fault,
				Ready: func(a gateway.Addresses) {
					fmt.Fprintf(e.out, "xgw: serving on %s, metrics on %s\n", strings.Join(a.Listeners, ", "), a.Telemetry)
				},
			})
			var mistaken *gateway.ConfigError
			if errors.As(err, &mistaken) {
				return usageError{err}
			}
			return err
		},
	}
	cmd.Flags().StringVarP(&path, "config", "c", "/etc/gateway/gateway.yaml", "configuration file")
	cmd.Flags().DurationVar(&confirm, "confirm", 0, "undo rules and limits unless xgw confirm comes within this time")
	return cmd
}

// openErrorLog gives the logger of the supervisor, and what writes its lines.
func openErrorLog(c config.Log, stderr io.Writer) (*slog.Logger, *logging.Queue, error) {
	level, err := logging.ParseLevel(c.Level)
	if err != nil {
		return nil, nil, err
	}
	out := stderr
	if c.Error != "-" {
		if out, err = logging.Open(c.Error, os.Stderr); err != nil {
			return nil, nil, err
		}
	}
	q := logging.NewQueue(out)
	return slog.New(logging.NewHandler(q, level)), q, nil
}

// loadOther reads what is to be tried beside the configuration at the path.
func loadOther(path string) func(string) (*config.Config, error) {
	return func(other string) (*config.Config, error) {
		if strings.HasSuffix(other, ".lua") {
			return config.LoadWith(path, other, script.Run)
		}
		return config.Load(other, script.Run)
	}
}

// offerPinholes names the session that the gateway is started from, when packets may be
// dropped and no pinhole keeps that session open.
func offerPinholes(c *config.Config, log *slog.Logger) {
	if len(c.Interfaces) == 0 {
		return
	}
	for _, want := range host.Pinholes("/", os.Getenv("SSH_CONNECTION")) {
		covered := slices.ContainsFunc(c.Admin, func(have config.Pinhole) bool {
			return have.Port == want.Port && have.Source.Bits() <= want.Source.Bits() && have.Source.Contains(want.Source.Addr())
		})
		if !covered {
			log.Warn("no pinhole keeps this open whatever the rules say", "why", want.Why,
				"add", fmt.Sprintf("admin: [{source: %s, port: %d}]", want.Source, want.Port))
		}
	}
}

func workerCommand(e *env) *cobra.Command {
	var slot int
	cmd := &cobra.Command{
		Use:    "worker",
		Short:  "A worker process; the supervisor starts it",
		Hidden: true,
		Args:   exactly(),
		RunE: func(*cobra.Command, []string) error {
			if slot < 0 {
				return usageError{errors.New("worker is for the supervisor: `xgw run` starts workers")}
			}
			return gateway.RunWorker(slot, e.err)
		},
	}
	cmd.Flags().IntVar(&slot, "slot", -1, "slot of this worker")
	return cmd
}
