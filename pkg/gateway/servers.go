// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"errors"
	"fmt"
	"os"

	"github.com/xgw-project/xgw/pkg/admin"
	"github.com/xgw-project/xgw/pkg/ledger"
	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/servers"
)

// withServers is the message with what is known of upstreams' servers at this moment.
func (c *crew) withServers(m *message) *message {
	now := *m
	now.Servers = c.servers()
	return &now
}

// follow tells a worker of changes for as long as it lives. It is a goroutine for each, so
// that one that hangs keeps nothing from the others.
func (c *crew) follow(slot int, p *process) {
	c.mu.Lock()
	c.heard[slot] = p
	c.mu.Unlock()
	told := map[uint64]uint64{} // by watch: the version
	for {
		var news []policy.Servers
		for _, l := range c.servers() {
			if l.Version > told[l.Watch] {
				told[l.Watch] = l.Version
				news = append(news, l)
			}
		}
		if len(news) > 0 {
			if err := p.control.send(&message{Kind: kindServers, Servers: news}); err != nil {
				return // it is gone, and its replacement gets everything
			}
		}
		select {
		case <-p.gone:
			return
		case <-p.changed:
		}
	}
}

// tellChanges wakes whoever follows, until the channel is closed.
func (c *crew) tellChanges(changed <-chan struct{}) {
	for range changed {
		c.mu.Lock()
		for _, p := range c.heard {
			if p != nil {
				select {
				case p.changed <- struct{}{}:
				default: // it has not yet looked at the change before
				}
			}
		}
		c.mu.Unlock()
	}
}

// Status tells operators what is in force.
func (s *supervisor) Status() admin.Status {
	out := admin.Status{
		PID: os.Getpid(), Generation: s.zone.Generation(), ConfirmWithin: s.confirmWithin(), Capacity: s.capacity(), Servers: []admin.Server{},
		Drained: s.drain.is(),
	}
	out.Listeners, out.ListenersDropped = s.events.Counts()
	for _, v := range s.servers.Status() {
		a := admin.Server{Upstream: v.Upstream, Address: v.Address, Name: v.Host, Weight: v.Weight, Drained: v.Drained, State: "unchecked", Since: v.Since}
		switch {
		case !v.Up:
			a.State, a.Cause = "down", v.Cause
		case v.Checked:
			a.State = "up"
		}
		out.Servers = append(out.Servers, a)
	}
	if s.mu.TryLock() { // a reload is not waited for
		out.Configuration, out.Loaded = s.config.Path, s.loaded
		s.mu.Unlock()
	}
	for _, l := range s.crew.listeners() {
		if c, steered := l.counts(); steered {
			out.Steering = append(out.Steering, admin.Steered{Listener: l.address, Local: c.Local, Fallback: c.Fallback, Refused: c.Refused})
		}
	}
	return out
}

// tellServer tells of a server whose health checks turned.
func (s *supervisor) tellServer(upstream, address, cause string) {
	what := "up"
	if cause != "" {
		what = "down"
	}
	s.events.Tell(admin.Event{Kind: "server", About: upstream + " " + address, What: what, Note: cause})
}

// SetServer decides on a server by hand; all workers hear of it at once.
func (s *supervisor) SetServer(ask admin.ServerSetting) error {
	if s.aside.isCalled() {
		return fmt.Errorf("%w: %w", admin.ErrImpossible, errHanded)
	}
	return s.setServer(ask)
}

func (s *supervisor) setServer(ask admin.ServerSetting) error {
	if ask.Weight != nil && (*ask.Weight < 0 || *ask.Weight > 1000) {
		return fmt.Errorf("weight %d: %w: want 1 to 1000, or 0 for the configuration's", *ask.Weight, admin.ErrInvalid)
	}
	h := s.servers.Hand(ask.Upstream, ask.Address)
	if ask.Drained != nil {
		h.Drained = *ask.Drained
	}
	if ask.Weight != nil {
		h.Weight = *ask.Weight
	}
	switch err := s.servers.Set(ask.Upstream, ask.Address, h); {
	case errors.Is(err, servers.ErrNoServer):
		return fmt.Errorf("%w: %w", admin.ErrNotFound, err)
	case errors.Is(err, servers.ErrLastServer):
		return fmt.Errorf("%w: %w", admin.ErrImpossible, err)
	default:
		return err
	}
}

// serverCounts tells the ledger.
func (s *supervisor) serverCounts(out []ledger.Server) []ledger.Server {
	for _, v := range s.servers.Status() {
		out = append(out, ledger.Server{Upstream: v.Upstream, Address: v.Address, Checked: v.Checked, Up: v.Up, Good: v.Good, Bad: v.Bad})
	}
	return out
}
