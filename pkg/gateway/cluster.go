// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/xgw-project/xgw/pkg/admin"
	"github.com/xgw-project/xgw/pkg/cluster"
	"github.com/xgw-project/xgw/pkg/config"
	"github.com/xgw-project/xgw/pkg/escalate"
	"github.com/xgw-project/xgw/pkg/ledger"
	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

// member is this gateway among those that share its redis. A nil one is alone.
type member struct {
	client *redis.Client
	node   *cluster.Node
	leases *cluster.Leases
	// verdicts go to the escalators of the others, and theirs to this one's; nil until it is there.
	verdicts *cluster.Bulletin
	context  context.Context
	stop     context.CancelFunc
	runs     sync.WaitGroup
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
	m := &member{client: client, node: cluster.New(client, c.Redis.Prefix, log), context: ctx, stop: stop}
	m.leases = cluster.NewLeases(m.node, z, monotonic)
	m.runs.Go(func() { m.leases.Run(ctx) })
	return m, nil
}

// join has the escalator's verdicts told to the others, and theirs to it.
func (m *member) join(e *escalator) {
	if m == nil {
		return
	}
	m.verdicts = cluster.NewBulletin(m.node, e.judge)
	e.mu.Lock()
	e.book.Tell = func(v escalate.Verdict, ttl time.Duration) {
		m.verdicts.Tell(cluster.Verdict{Source: v.Source, Step: v.Step.String(), Reason: v.Reason, Rule: v.Rule, Note: v.Note, Who: v.Who, TTL: ttl})
	}
	e.mu.Unlock()
	m.runs.Go(func() { m.verdicts.Send(m.context) })
	m.runs.Go(func() { m.verdicts.Follow(m.context) })
}

// follow makes what a configuration says is shared what is.
func (m *member) follow(c *config.Config, p *policy.Policy) {
	if m == nil {
		return
	}
	m.verdicts.Set(c.Verdicts.Share && len(c.Interfaces) > 0)
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
	err := m.client.Close() // a read that waits hears of nothing else
	m.runs.Wait()
	return err
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

// judge gives a verdict that another gateway told of. What it says is believed as far as an
// operator's word is, and no further.
func (e *escalator) judge(v cluster.Verdict) string {
	a, step, err := parseVerdict(admin.AddVerdict{Source: v.Source.String(), Step: v.Step, TTL: max(v.TTL, time.Second), Note: v.Note})
	if err != nil {
		return cluster.Invalid
	}
	if !slices.Contains(reasonCodes, v.Reason) {
		v.Reason = escalate.Unknown
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	fate := e.book.Told(escalate.Verdict{
		Source: a, Step: step, Reason: v.Reason, Rule: v.Rule, Note: cmp.Or(v.Note, "told by gateway "+v.From), Who: v.Who, Until: now.Add(v.TTL),
	}, v.Mark, now)
	e.rouse()
	return fate
}
