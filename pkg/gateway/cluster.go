// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/xgw-project/xgw/pkg/cluster"
	"github.com/xgw-project/xgw/pkg/config"
	"github.com/xgw-project/xgw/pkg/ledger"
	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

// member is this gateway among those that share its redis. A nil one is alone.
type member struct {
	client *redis.Client
	node   *cluster.Node
	leases *cluster.Leases
	stop   context.CancelFunc
	runs   sync.WaitGroup
}

// newMember makes the one that the configuration asks for; nil where it names no redis.
func newMember(c *config.Config, z *zone.Zone, log *slog.Logger) (*member, error) {
	if c.Redis.Address == "" {
		return nil, nil
	}
	client, err := newRedis(&c.Redis)
	if err != nil {
		return nil, fmt.Errorf("join cluster: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	m := &member{client: client, node: cluster.New(client, c.Redis.Prefix, log), stop: stop}
	m.leases = cluster.NewLeases(m.node, z, monotonic)
	m.runs.Go(func() { m.leases.Run(ctx) })
	return m, nil
}

// follow makes a configuration's limits the ones that are shared.
func (m *member) follow(p *policy.Policy) {
	if m == nil {
		return
	}
	limits := map[uint64]zone.Rate{}
	for _, l := range p.Snapshot.RequestLimits {
		if l.Cluster {
			limits[l.ID] = zone.NewRate(l.Requests, l.Period, l.Burst)
		}
	}
	m.leases.SetLimits(limits)
}

func (m *member) close() error {
	if m == nil {
		return nil
	}
	m.stop()
	m.runs.Wait()
	return m.client.Close()
}

// counts tells the ledger; nil: nothing.
func (m *member) counts() func() ledger.Cluster {
	if m == nil {
		return nil
	}
	return func() ledger.Cluster {
		s := m.node.Stats()
		out := ledger.Cluster{Answers: s.Answers, Gateways: s.Gateways, Leases: map[string]uint64{}, Verdicts: s.Verdicts}
		for _, o := range cluster.Outcomes() {
			out.Leases[o.String()] = s.Leases[o]
		}
		return out
	}
}
