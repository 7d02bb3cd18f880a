// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/xgw-project/xgw/pkg/admin"
	"github.com/xgw-project/xgw/pkg/datapath"
	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/proxy"
	"github.com/xgw-project/xgw/pkg/zone"
)

var _ admin.Trials = (*supervisor)(nil)

// triedTime is how long a worker may take to tell what it knows.
const triedTime = 2 * time.Second

// trial is another policy's rules and limits, tried beside those that hold: in the kernel plane
// by a program of its own, in the workers by a generation that has them.
type trial struct {
	began    time.Time
	kernel   []*datapath.Trial // by plane
	notes    []string
	restarts uint64 // of workers, before it began

	over   chan struct{} // closed when it has ended; the rest is settled then
	result admin.Tried
}

// Try as of admin.Trials.
func (s *supervisor) Try(ctx context.Context, ask admin.TryPolicy) (admin.Tried, error) {
	t, err := s.beginTrial(ask)
	if err != nil {
		return admin.Tried{}, fmt.Errorf("try policy: %w", err)
	}
	s.log.Info("another policy is tried: nothing is dropped or refused for it", "path", ask.Path, "for", ask.For)
	end := time.NewTimer(ask.For)
	defer end.Stop()
	why := "time"
	select {
	case <-end.C:
	case <-ctx.Done():
		why = "gone"
	case <-t.over:
	}
	s.mu.Lock()
	if s.trial == t {
		s.endTrial(why)
	}
	s.mu.Unlock()
	<-t.over
	s.log.Info("the trial of a policy is over", "ended", t.result.Ended, "took", t.result.Took.Round(time.Millisecond))
	return t.result, nil
}

// EndTrial as of admin.Trials.
func (s *supervisor) EndTrial() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.trial == nil {
		return fmt.Errorf("%w: no policy is tried", admin.ErrImpossible)
	}
	s.endTrial("asked")
	return nil
}

// beginTrial makes the trial the one under way. With an error nothing has changed.
func (s *supervisor) beginTrial(ask admin.TryPolicy) (_ *trial, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case ask.For < admin.ShortestTrial || ask.For > admin.LongestTrial || !filepath.IsAbs(ask.Path) || s.options.LoadOther == nil:
		return nil, fmt.Errorf("%w: want an absolute path, and from %s to %s", admin.ErrInvalid, admin.ShortestTrial, admin.LongestTrial)
	case s.gone:
		return nil, fmt.Errorf("%w: %w", admin.ErrImpossible, errHanded)
	case s.stopped:
		return nil, fmt.Errorf("%w: the gateway stops", admin.ErrImpossible)
	case s.trial != nil:
		return nil, fmt.Errorf("%w: another policy is tried", admin.ErrImpossible)
	case s.pending != nil:
		return nil, admin.ErrUnconfirmed
	}
	c, err := s.options.LoadOther(ask.Path)
	if err != nil {
		return nil, errors.Join(admin.ErrConfiguration, err)
	}
	candidate, err := policy.Compile(c, s.policy.Generation+1)
	if err != nil {
		return nil, errors.Join(admin.ErrConfiguration, err)
	}
	tables, limits, notes := policy.NewTrial(s.policy, candidate, s.policy.Generation+1)
	t := &trial{notes: notes, over: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.close())
		}
	}()
	for _, pl := range s.planes {
		k, err := pl.try(tables)
		if err != nil {
			return nil, err
		}
		t.kernel = append(t.kernel, k)
	}
	if err = s.options.fault("trial"); err != nil {
		return nil, err
	}
	t.restarts, t.began = s.restarts(), time.Now()
	if err = s.enactTrial(limits); err != nil {
		return nil, err
	}
	s.trial = t
	return t, nil
}

// enactTrial makes the policy that holds the next generation, with or without a trial.
func (s *supervisor) enactTrial(limits *policy.Trial) error {
	next := *s.policy
	next.Generation++
	next.Snapshot.Generation, next.Snapshot.Trial = next.Generation, limits
	err := s.enact(s.config, &next, 0)
	s.servers.Keep(s.policy.Snapshot.Upstreams)
	return err
}

// endTrial ends the one under way, if any. The lock is held.
func (s *supervisor) endTrial(why string) {
	t := s.trial
	if t == nil {
		return
	}
	s.trial = nil
	r := &t.result
	r.Began, r.Took, r.Ended = t.began, time.Since(t.began), why
	t.tell(s.readTrial(t))
	err := t.close()
	if why != "stop" {
		err = errors.Join(err, s.enactTrial(nil))
	}
	if err != nil {
		s.log.Error("the trial of a policy is over, but something of it is left", "error", err)
		r.Bounds = append(r.Bounds, "something of the trial is left: the gateway's log says what")
	}
	close(t.over)
}

// stopTrials: the gateway stops.
func (s *supervisor) stopTrials() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
	s.endTrial("stop")
}

func (t *trial) close() error {
	var errs []error
	for _, k := range t.kernel {
		errs = append(errs, k.Close())
	}
	return errors.Join(errs...)
}

// restarts of all workers, ever.
func (s *supervisor) restarts() (n uint64) {
	for slot := range s.cores {
		n += s.crew.slab(slot).LoadGauge(zone.GaugeRestarts)
	}
	return n
}

// readTrial asks the kernel plane and the workers what they have counted; what cannot be had
// is among the notes.
func (s *supervisor) readTrial(t *trial) (kernel map[string]*datapath.Tried, workers []*proxy.TriedAll) {
	kernel = map[string]*datapath.Tried{}
	for i, k := range t.kernel {
		name := s.planes[i].options.Interface
		counts, err := k.Counts()
		if err != nil {
			t.notes = append(t.notes, fmt.Sprintf("nothing is known of the packets of %s: %v", name, err))
			continue
		}
		kernel[name] = counts
	}
	var mu sync.Mutex
	question := &message{Kind: kindTried, Generation: s.policy.Generation}
	err := s.crew.askAll(func(_ int, p *process) error {
		a, err := p.answer(question, triedTime)
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		if a.Tried != nil {
			workers = append(workers, a.Tried)
		}
		return nil
	})
	if n := s.restarts() - t.restarts; err != nil || n > 0 || len(workers) < len(s.cores) {
		t.notes = append(t.notes, fmt.Sprintf("%d of %d workers told what they know, %d were replaced meanwhile: requests and clients of the others are missing", len(workers), len(s.cores), n))
	}
	return kernel, workers
}

// triedKey is a client over all workers.
type triedKey struct {
	address netip.Addr
	source  uint64
	key     string
}

// tell joins what the planes say.
func (t *trial) tell(kernel map[string]*datapath.Tried, workers []*proxy.TriedAll) {
	r := &t.result
	sources := t.tellPackets(kernel)
	clients, over := map[triedKey]*admin.TriedClient{}, map[string]uint64{}
	spoke := map[uint64]bool{}
	var others proxy.Tally
	for _, w := range workers {
		for name, n := range w.Refused {
			over[name] += n
		}
		addTally(&others, &w.Others)
		for i := range w.Clients {
			from := &w.Clients[i]
			k := triedKey{from.Address, from.Source, from.Key}
			c := clients[k]
			if c == nil {
				c = &admin.TriedClient{Address: from.Address.String(), Key: from.Key, Consumer: from.Consumer}
				clients[k] = c
			}
			spoke[from.Source] = true
			c.Requests, c.OK, c.Refused, c.Lost, c.Connections = c.Requests+from.Requests, c.OK+from.OK, c.Refused+from.Refused, c.Lost+from.Lost, c.Connections+from.Connections
		}
	}
	for k, c := range clients {
		if s := sources[k.source]; s != nil && k.source != 0 {
			c.Packets, c.Denied = s.Packets, s.Denied
			if rest := c.OK - c.Lost; s.Denied > 0 {
				c.Lost += rest
			} else {
				c.AtRisk = rest
			}
		}
		r.Clients = append(r.Clients, *c)
	}
	for key, s := range sources {
		if !spoke[key] {
			r.Clients = append(r.Clients, admin.TriedClient{Address: sourceText(s.Source), Packets: s.Packets, Denied: s.Denied})
		}
	}
	for name, n := range over {
		r.Limits = append(r.Limits, admin.TriedLimit{Name: name, Unit: "requests", Over: n})
	}
	r.Requests, r.OK, r.Refused, r.Lost, r.Connections = others.Requests, others.OK, others.Refused, others.Lost, others.Connections
	t.sum()
	if others.Requests > 0 {
		r.Bounds = append(r.Bounds, fmt.Sprintf("%d requests are of clients beyond those that workers tell apart: they count in the sums alone", others.Requests))
	}
	r.Bounds = append(r.Bounds, "packets and requests that the policy in force drops or refuses were not tried")
	if len(kernel) > 0 {
		r.Bounds = append(r.Bounds, "packets that the kernel merged before tc (GRO) are one under a limit of packets; what a source loses makes it no slower here, as it would")
	}
	r.Bounds = append(r.Bounds, t.notes...)
}

// sourceText is a source as operators know it.
func sourceText(a netip.Addr) string {
	if a.Is6() {
		return netip.PrefixFrom(a, 64).String()
	}
	return a.String()
}

func addTally(sum, more *proxy.Tally) {
	sum.Requests += more.Requests
	sum.OK += more.OK
	sum.Refused += more.Refused
	sum.Lost += more.Lost
	sum.Connections += more.Connections
}

// tellPackets sums up the interfaces, and returns what sources would have lost, by their keys.
func (t *trial) tellPackets(kernel map[string]*datapath.Tried) map[uint64]*datapath.TriedSource {
	p := &t.result.Packets
	sources, over := map[uint64]*datapath.TriedSource{}, map[string]uint64{}
	for name, k := range kernel {
		p.Tried += k.Packets
		p.Dropped += k.Dropped
		p.Bytes += k.Bytes
		p.Unknown += k.Dropped
		for _, q := range k.Reasons {
			p.Reasons = append(p.Reasons, admin.TriedReason{Interface: name, Reason: q.Reason, Packets: q.Packets, Bytes: q.Bytes})
		}
		for _, l := range k.Limits {
			over[l.Name] += l.Dropped
		}
		for _, s := range k.Sources {
			p.Unknown -= s.Packets
			key := policy.AddressKey(s.Source)
			if had := sources[key]; had != nil {
				s.Packets, s.Bytes, s.Denied = s.Packets+had.Packets, s.Bytes+had.Bytes, s.Denied+had.Denied
			}
			sources[key] = &s
		}
	}
	p.Addresses = len(sources)
	for name, n := range over {
		if n > 0 {
			t.result.Limits = append(t.result.Limits, admin.TriedLimit{Name: name, Unit: "packets", Over: n})
		}
	}
	if p.Unknown > 0 {
		t.result.Bounds = append(t.result.Bounds, fmt.Sprintf("%d of the dropped packets are of no address that is told apart: %d are on each interface, or they have none", p.Unknown, datapath.TriedSources))
	}
	slices.SortFunc(p.Reasons, func(a, b admin.TriedReason) int {
		return cmp.Or(cmp.Compare(b.Packets, a.Packets), cmp.Compare(a.Interface+a.Reason, b.Interface+b.Reason))
	})
	return sources
}

// mostClients of a report that would have been hurt, and of those that would not.
const (
	mostClients = 1000
	mostUnhurt  = 10
)

// sum adds clients up and leaves those in that say something.
func (t *trial) sum() {
	r := &t.result
	keys := map[string]bool{}
	for i := range r.Clients {
		c := &r.Clients[i]
		r.Requests, r.OK, r.Refused, r.Connections = r.Requests+c.Requests, r.OK+c.OK, r.Refused+c.Refused, r.Connections+c.Connections
		r.Lost, r.AtRisk = r.Lost+c.Lost, r.AtRisk+c.AtRisk
		if !c.IsHurt() {
			r.Unhurt++
			continue
		}
		r.Hurt++
		if c.Key != "" {
			keys[c.Key] = true
		}
	}
	r.AuthenticatedHit = len(keys)
	slices.SortFunc(r.Limits, func(a, b admin.TriedLimit) int {
		return cmp.Or(cmp.Compare(a.Unit, b.Unit), cmp.Compare(b.Over, a.Over), cmp.Compare(a.Name, b.Name))
	})
	slices.SortFunc(r.Clients, func(a, b admin.TriedClient) int {
		hurt := func(c *admin.TriedClient) int {
			if c.IsHurt() {
				return 1
			}
			return 0
		}
		return cmp.Or(cmp.Compare(hurt(&b), hurt(&a)), cmp.Compare(b.Lost, a.Lost), cmp.Compare(b.AtRisk, a.AtRisk), cmp.Compare(b.Refused+b.Packets+b.Connections, a.Refused+a.Packets+a.Connections),
			cmp.Compare(b.Requests, a.Requests), cmp.Compare(a.Address+a.Key, b.Address+b.Key))
	})
	if r.Clients == nil {
		r.Clients = []admin.TriedClient{} // a list in JSON, too
	}
	shown := min(r.Hurt, mostClients)
	unhurt := r.Clients[r.Hurt:]
	r.Clients = append(r.Clients[:shown:shown], unhurt[:min(len(unhurt), mostUnhurt)]...)
	if shown < r.Hurt {
		r.Bounds = append(r.Bounds, fmt.Sprintf("of %d clients that would have been hurt, the %d that would have been most are shown", r.Hurt, shown))
	}
}
