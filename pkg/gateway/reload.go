// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/xgw-project/xgw/pkg/admin"
	"github.com/xgw-project/xgw/pkg/config"
	"github.com/xgw-project/xgw/pkg/datapath"
	"github.com/xgw-project/xgw/pkg/policy"
)

var _ admin.Control = (*supervisor)(nil)

// pending is a reload that waits to be confirmed.
type pending struct {
	by             time.Time
	previous       *policy.Policy
	previousConfig *config.Config
	previousLoaded time.Time
}

// Reload reads the configuration anew and makes it the generation of both planes: every
// worker gets it ready, the kernel plane changes over, the workers change over. Any
// error leaves everything as it was. With confirm both planes go back by themselves
// unless Confirm comes within that time.
func (s *supervisor) Reload(confirm time.Duration) (admin.Reloaded, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return admin.Reloaded{}, fmt.Errorf("reload: %w: %w", admin.ErrImpossible, errHanded)
	}
	began := time.Now()
	s.endTrial("reload")
	s.notify(reloading())
	defer s.notify(daemon.SdNotifyReady)
	r, err := s.reload(confirm)
	s.servers.Keep(s.policy.Snapshot.Upstreams) // of what holds now, the new or the old
	if err != nil {
		s.log.Error("reload failed: the gateway goes on as before", "generation", s.policy.Generation, "error", err)
		return r, fmt.Errorf("reload: %w", err)
	}
	r.Took = time.Since(began)
	s.log.Info("reloaded", "generation", r.Generation, "took", r.Took.Round(time.Microsecond))
	return r, nil
}

func (s *supervisor) reload(confirm time.Duration) (r admin.Reloaded, err error) {
	if s.pending != nil {
		return r, fmt.Errorf("%w: `gateway-ctl confirm`, or wait %s", admin.ErrUnconfirmed, time.Until(s.pending.by).Round(time.Second))
	}
	began := time.Now()
	c, err := s.options.Load()
	if err != nil {
		return r, errors.Join(admin.ErrConfiguration, err)
	}
	c.Instance = s.config.Instance
	if keys := fixed(s.config, c); len(keys) > 0 {
		return r, fmt.Errorf("%w: %s: changed, and a start of the gateway settles it: restart, or change it back",
			admin.ErrConfiguration, strings.Join(keys, ", "))
	}
	p, err := policy.Compile(c, s.policy.Generation+1)
	if err != nil {
		return r, errors.Join(admin.ErrConfiguration, err)
	}
	was, wasConfig, wasLoaded := s.policy, s.config, s.loaded
	if err := s.enact(c, p, confirm); err != nil {
		return r, err
	}
	s.loaded = began
	if confirm > 0 {
		s.pending = &pending{by: time.Now().Add(confirm), previous: was, previousConfig: wasConfig, previousLoaded: wasLoaded}
		s.log.Warn("the new configuration is undone unless it is confirmed", "within", confirm, "with", "gateway-ctl confirm")
	}
	return admin.Reloaded{Generation: p.Generation, ConfirmWithin: confirm}, nil
}

// enact makes the configuration and its policy hold: sockets, secrets, and then the
// transaction. With an error nothing has changed.
func (s *supervisor) enact(c *config.Config, p *policy.Policy, confirm time.Duration) (err error) {
	listeners, opened, err := s.listenersOf(c)
	defer func() {
		if err != nil {
			closeAll(opened)
		}
	}()
	if err = errors.Join(err, s.options.fault("listeners")); err != nil {
		return err
	}
	tickets, err := s.tickets.configured(c.Tickets)
	if err != nil {
		return err
	}
	now := stamps(s.vault.paths(c.Listeners))
	m, err := s.message(c, p, listeners, true)
	if err = errors.Join(err, s.options.fault("secrets")); err != nil {
		return err
	}
	if err := s.changeOver(m, p, confirm); err != nil {
		return err
	}
	for _, l := range s.listeners {
		if !slices.Contains(listeners, l) {
			l.close()
		}
	}
	s.config, s.listeners, s.tickets, s.renewed = c, listeners, tickets, time.Now()
	s.held.Store(&holding{c, p})
	s.events.Tell(admin.Event{Kind: "generation", About: strconv.FormatUint(p.Generation, 10), What: "in force", Note: c.Path})
	s.watch.using(now)
	s.crew.setTicketKeys(tickets.keys())
	s.escalator.follow(c, p)
	s.member.follow(c, p)
	s.tune(&c.TCP)
	return nil
}

// listenersOf are those of the configuration: those that are open already, and opened new
// ones.
func (s *supervisor) listenersOf(c *config.Config) (all, opened []*listener, err error) {
	for i := range c.Listeners {
		name := c.Listeners[i].Address
		at := slices.IndexFunc(s.listeners, func(l *listener) bool { return l.name == name })
		if at >= 0 {
			all = append(all, s.listeners[at])
			continue
		}
		l, err := listen(name, s.cores, datapath.Allowed() == nil, false)
		if err != nil {
			return nil, opened, err
		}
		all, opened = append(all, l), append(opened, l)
	}
	return all, opened, nil
}

func closeAll(listeners []*listener) {
	for _, l := range listeners {
		l.close()
	}
}

// changeOver is the transaction: with an error nothing has changed.
func (s *supervisor) changeOver(m *message, p *policy.Policy, confirm time.Duration) error {
	if err := errors.Join(s.crew.prepare(m), s.options.fault("prepared")); err != nil {
		return err
	}
	for i, pl := range s.planes {
		if err := pl.replace(p, confirm); err != nil {
			for _, done := range s.planes[:i] {
				err = errors.Join(err, done.revert(s.policy))
			}
			return err
		}
	}
	s.crew.commit(m)
	s.policy = p
	s.zone.SetGeneration(p.Generation)
	return nil
}

// Confirm makes the last reload stay.
func (s *supervisor) Confirm() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return fmt.Errorf("confirm: %w: %w", admin.ErrImpossible, errHanded)
	}
	if s.pending == nil {
		return fmt.Errorf("confirm: %w: a reload that was not confirmed in time is undone by now", admin.ErrNothingWaits)
	}
	for _, pl := range s.planes {
		if err := pl.confirmNow(); err != nil {
			return fmt.Errorf("confirm: %w", err)
		}
	}
	s.pending = nil
	s.log.Info("configuration confirmed", "generation", s.policy.Generation)
	s.events.Tell(admin.Event{Kind: "generation", About: strconv.FormatUint(s.policy.Generation, 10), What: "confirmed"})
	return nil
}

// confirmWithin is what is left of the time to confirm the last reload; 0 when nothing waits,
// or a reload is under way.
func (s *supervisor) confirmWithin() time.Duration {
	if !s.mu.TryLock() {
		return 0
	}
	defer s.mu.Unlock()
	if s.pending == nil {
		return 0
	}
	return max(time.Until(s.pending.by), 1)
}

// settle follows a reload that waits: where the kernel plane has gone back, or the time
// of a gateway without one is over, the rest goes back, too.
func (s *supervisor) settle() {
	if !s.mu.TryLock() {
		return // a reload is under way; the heartbeat must not wait for it
	}
	defer s.mu.Unlock()
	if s.pending == nil {
		return
	}
	waits, undone := len(s.planes) == 0, false
	for _, pl := range s.planes {
		w, u := pl.await()
		waits, undone = waits || w, undone || u
	}
	if !waits {
		s.pending = nil // each interface was confirmed by itself
		return
	}
	if !undone && (len(s.planes) > 0 || time.Now().Before(s.pending.by)) {
		return
	}
	back := *s.pending.previous
	back.Generation = s.policy.Generation + 1
	back.Snapshot.Generation = back.Generation
	err := s.enact(s.pending.previousConfig, &back, 0)
	s.servers.Keep(s.policy.Snapshot.Upstreams)
	if err != nil {
		s.log.Error("the configuration was not confirmed, and going back failed: it is tried again", "error", err)
		return
	}
	s.loaded, s.pending = s.pending.previousLoaded, nil
	s.log.Warn("the configuration was not confirmed in time: gone back to the one before", "generation", back.Generation)
	s.events.Tell(admin.Event{Kind: "generation", About: strconv.FormatUint(back.Generation, 10), What: "gone back", Note: "the one before was not confirmed in time"})
}

// fixed names the keys that differ and hold for a gateway's whole life.
func fixed(old, c *config.Config) (keys []string) {
	for _, k := range []struct {
		name string
		a, b any
	}{
		{"interfaces", old.Interfaces, c.Interfaces},
		{"telemetry", old.Telemetry, c.Telemetry},
		{"admin_api", old.AdminAPI, c.AdminAPI},
		{"workers", old.Workers, c.Workers},
		{"pin", old.Pin, c.Pin},
		{"worker_user", old.WorkerUser, c.WorkerUser},
		{"worker_memory", old.WorkerMemory, c.WorkerMemory},
		{"worker_rlimit_nofile", old.OpenFiles, c.OpenFiles},
		{"keys.store", old.Keys.Store, c.Keys.Store},
		{"keys.file", old.Keys.File, c.Keys.File},
		{"redis", old.Redis, c.Redis},
		{"log", old.Log, c.Log},
		{"buffers.conf", old.Buffers, c.Buffers},
	} {
		if !reflect.DeepEqual(k.a, k.b) {
			keys = append(keys, k.name)
		}
	}
	return keys
}
