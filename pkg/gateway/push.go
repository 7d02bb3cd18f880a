// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/xgw-project/xgw/pkg/ledger"
	"github.com/xgw-project/xgw/pkg/telemetry"
)

// push is what goes to a Collector, and how to end it.
type push struct {
	*telemetry.Push
	stop context.CancelFunc
}

// openPush starts to send metrics and spans; nil where there is no Collector.
func (s *supervisor) openPush(ctx context.Context, side *telemetry.Server) (*telemetry.Push, error) {
	c := &s.config.Telemetry.OTLP
	if c.Endpoint == "" {
		return nil, nil
	}
	scheme, address, _ := strings.Cut(c.Endpoint, "://")
	name, _ := os.Hostname() // "" where there is none
	o := telemetry.PushOptions{
		Endpoint: address, Interval: c.Interval, Instance: cmp.Or(s.config.Instance, name), Route: s.zone.RouteName, Upstream: s.zone.UpstreamName,
	}
	if scheme == "https" {
		host, _, _ := net.SplitHostPort(address) // as the configuration checked
		o.TLS = &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}
		var err error
		if o.TLS.RootCAs, err = authorities(c.CA); err != nil {
			return nil, fmt.Errorf("authorities of the Collector: %w", err)
		}
	}
	p, err := side.NewPush(ctx, o)
	if err != nil {
		return nil, err
	}
	// It goes on until workers, who end with ctx, have written their last.
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	go p.Run(running)
	s.push.Store(&push{p, stop})
	return p, nil
}

// closePush sends what is left; afterwards nothing reads what the metrics are made of.
func (s *supervisor) closePush() {
	if p := s.push.Load(); p != nil {
		p.stop()
		p.Wait()
	}
}

// pushedCounts tells the ledger.
func (s *supervisor) pushedCounts() ledger.Pushed {
	if p := s.push.Load(); p != nil {
		return p.Counts()
	}
	return ledger.Pushed{}
}
