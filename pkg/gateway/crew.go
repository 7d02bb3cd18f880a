// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/admin"
	"github.com/xgw-project/xgw/pkg/keys"
	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

const (
	firstBackOff = 50 * time.Millisecond
	lastBackOff  = 5 * time.Second
	// A worker that lived this long starts again at the first back-off.
	steadyAfter = 10 * time.Second
	// A worker that is away for longer has its sockets served by another.
	lendAfter = time.Second
)

// crew is the workers, one to a slot. Each slot has a goroutine that starts its
// worker again when it dies.
type crew struct {
	log        *slog.Logger
	zone       *zone.Zone
	shift      int   // the first slot in the zone
	cores      []int // by slot; -1 for not pinned
	memory     int64 // of each worker, bytes; 0: any
	credential *syscall.Credential
	starts     *steady  // workers
	signals    *os.File // an eventfd
	events     *admin.Events
	servers    func() []policy.Servers // what is known of upstreams' servers now
	keys       func(ids []string) []keys.Answer

	retire atomic.Bool // workers end as those who are replaced, see proxy.Worker.Retire
	// drained tells whether clients go elsewhere, which has workers end so, too.
	drained func() bool

	mu         sync.Mutex
	ticketKeys [][32]byte
	logLevel   string
	current    *message   // what new workers start with
	live       []*process // by slot; nil while its worker is away
	heard      []*process // by slot: those that have had their configuration
	lent       []*process // by slot; who serves its sockets meanwhile, nil for nobody
	wg         sync.WaitGroup
}

// run keeps the workers alive until ctx ends, then lets them drain.
func (c *crew) run(ctx context.Context, first *message) error {
	c.mu.Lock()
	c.current = first
	c.live = make([]*process, len(c.cores))
	c.heard = make([]*process, len(c.cores))
	c.lent = make([]*process, len(c.cores))
	c.mu.Unlock()
	ready := make(chan error, len(c.cores))
	for slot := range c.cores {
		c.wg.Go(func() { c.keep(ctx, slot, ready) })
	}
	for range c.cores {
		if err := <-ready; err != nil {
			return err
		}
	}
	return nil
}

// keep runs one slot: start, wait for the end, back off, again. The outcome of
// the first start goes to ready; only that one can end the supervisor.
func (c *crew) keep(ctx context.Context, slot int, ready chan<- error) {
	slab := c.slab(slot)
	backOff := firstBackOff
	for attempt := 0; ; attempt++ {
		began := time.Now()
		err := c.runOnce(ctx, slot, func() {
			if ready != nil {
				ready <- nil
				ready = nil
			}
		})
		slab.Set(zone.GaugeState, uint64(zone.StateDead))
		if ready != nil {
			ready <- errors.Join(ctx.Err(), fmt.Errorf("worker %d did not start: %w", slot, err))
			return
		}
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > steadyAfter {
			backOff = firstBackOff
		}
		c.log.Error("worker exited", "worker", slot, "core", c.cores[slot], "cause", err, "restart_in", backOff)
		c.events.Tell(admin.Event{Kind: "worker", About: strconv.Itoa(slot), What: "exited", Note: err.Error()})
		if backOff > lendAfter {
			c.lend(slot)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(backOff):
		}
		backOff = min(2*backOff, lastBackOff)
		slab.Set(zone.GaugeRestarts, slab.LoadGauge(zone.GaugeRestarts)+1)
	}
}

// runOnce is one life of a worker. applied is called when it serves.
func (c *crew) runOnce(ctx context.Context, slot int, applied func()) error {
	p, err := start(c.starts, slot, c.cores[slot], c.memory, []*os.File{c.zone.File(), c.signals}, c.credential)
	if err != nil {
		return err
	}
	slab := c.slab(slot)
	slab.Set(zone.GaugePID, uint64(p.cmd.Process.Pid))
	slab.Set(zone.GaugeStarted, uint64(time.Now().UnixNano()))
	slab.Set(zone.GaugeCore, uint64(c.cores[slot]+1))
	slab.Set(zone.GaugeState, uint64(zone.StateStarting))
	done := make(chan struct{})
	go c.converse(ctx, slot, p, applied, done)
	relayed := make(chan struct{})
	go func() {
		defer close(relayed)
		relay(p.lines, p.cmd.Process.Pid, c.log)
	}()
	select {
	case <-ctx.Done():
		slab.Set(zone.GaugeState, uint64(zone.StateDraining))
		c.end(slot, p)
	case <-done: // the control socket ended: so will the worker, or it is made to
		c.dismiss(slot)
		time.AfterFunc(time.Second, func() { _ = p.cmd.Process.Kill() })
	}
	err = p.cmd.Wait()
	<-relayed // its last words come before what is said of its end
	p.lines.Close()
	c.dismiss(slot)
	p.control.close()
	<-done
	if p.refused != nil {
		return fmt.Errorf("it refused its configuration: %w", p.refused)
	}
	if err == nil {
		err = errors.New("exited with status 0")
	}
	return err
}

// converse sends hello and the current generation, and follows the answers until
// the socket ends.
func (c *crew) converse(ctx context.Context, slot int, p *process, applied func(), done chan<- struct{}) {
	defer close(done)
	defer close(p.gone)
	admitted := false
	c.mu.Lock()
	hello := &message{Kind: kindHello, Worker: slot, Slot: c.shift + slot, Core: c.cores[slot], TicketKeys: c.ticketKeys, LogLevel: c.logLevel}
	c.mu.Unlock()
	err := p.control.send(hello)
	var sent *message
	if err == nil {
		sent, err = c.sendCurrent(slot, p)
	}
	if err != nil {
		c.log.Error("worker did not take its configuration", "worker", slot, "error", err)
		return
	}
	go c.follow(slot, p)
	for {
		m, err := p.control.receive()
		if err != nil {
			if !errors.Is(err, io.EOF) && ctx.Err() == nil {
				c.log.Warn("control socket failed", "worker", slot, "error", err)
			}
			return
		}
		switch {
		case m.Kind == kindAskKeys:
			go func() { // a store may take its time
				_ = p.control.send(&message{Kind: kindKeys, Keys: c.keys(m.IDs)}) // one that is gone asks no more
			}()
		case admitted:
			select {
			case p.answers <- m:
			default: // an answer that nobody asked for
			}
		case m.Kind == kindRefused:
			p.refused = errors.New(m.Error)
			return
		case m.Kind == kindApplied:
			if admitted = c.admit(slot, p, sent); admitted {
				applied()
			} else if sent, err = c.sendCurrent(slot, p); err != nil {
				return
			}
		}
	}
}

// sendCurrent sends a worker that comes up the generation that holds, which it returns.
func (c *crew) sendCurrent(slot int, p *process) (sent *message, err error) {
	sent, out, err := c.currentFor(slot)
	defer out.closeFiles()
	if err != nil {
		return nil, err
	}
	return sent, p.control.send(c.withServers(out))
}

// currentFor is the generation that holds, and what a worker that comes up is sent of it. Its sockets are copies, the
// message's, for a reload may close the others before it is sent.
func (c *crew) currentFor(slot int) (current, out *message, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	out = c.current.to(slot, kindApply)
	err = out.copySockets()
	return c.current, out, err
}

// copySockets makes the sockets copies, the message's. Whose they are must not close them meanwhile.
func (m *message) copySockets() error {
	for i, fd := range m.fds {
		own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("copy socket of %s: %w", m.Sockets[i], err)
		}
		m.fds[i], m.files = own, append(m.files, os.NewFile(uintptr(own), m.Sockets[i]))
	}
	return nil
}

// to is the message with the sockets of one worker.
func (m *message) to(slot int, k kind) *message {
	out := *m
	out.Kind = k
	for _, l := range m.listeners {
		out.Sockets = append(out.Sockets, l.name)
		out.fds = append(out.fds, l.fds[slot])
	}
	return &out
}

// listeners are those of the generation that holds.
func (c *crew) listeners() []*listener {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current.listeners
}

// secrets are those that hold.
func (c *crew) secrets() []secrets {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current.Secrets
}

// setTicketKeys gives all workers new keys, and those that are still to come.
func (c *crew) setTicketKeys(keys [][32]byte) {
	c.mu.Lock()
	c.ticketKeys = keys
	c.mu.Unlock()
	c.tellAll(&message{Kind: kindTickets, TicketKeys: keys})
}

// admit opens the slot for new connections; false: there is something newer by now than
// what the worker was sent, which it has to take first.
func (c *crew) admit(slot int, p *process, sent *message) bool {
	c.mu.Lock()
	if c.current != sent {
		c.mu.Unlock()
		return false
	}
	c.live[slot] = p
	c.mu.Unlock()
	if err := c.sendChanges(p); err != nil {
		c.log.Warn("worker did not hear of a change", "worker", slot, "error", err)
	}
	c.reclaim(slot)
	c.slab(slot).Set(zone.GaugeState, uint64(zone.StateReady))
	c.events.Tell(admin.Event{Kind: "worker", About: strconv.Itoa(slot), What: "serves"})
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range sent.listeners {
		if !slices.Contains(c.current.listeners, l) {
			continue // a reload closed it; what is new, commit opens
		}
		if err := l.admit(slot); err != nil {
			c.log.Error("worker gets no connections of its own", "worker", slot, "address", l.address, "error", err)
		}
	}
	return true
}

// sendChanges sends what may have changed since hello, again if it does meanwhile: what tellAll sends of that may come before.
func (c *crew) sendChanges(p *process) error {
	for {
		c.mu.Lock()
		keys, level := c.ticketKeys, c.logLevel
		c.mu.Unlock()
		err := errors.Join(p.control.send(&message{Kind: kindTickets, TicketKeys: keys}), p.control.send(&message{Kind: kindLogLevel, LogLevel: level}))
		c.mu.Lock()
		same := slices.Equal(keys, c.ticketKeys) && level == c.logLevel
		c.mu.Unlock()
		if err != nil || same {
			return err
		}
	}
}

// lend has another worker serve the connections that wait in the sockets of one that will
// be away for a while.
func (c *crew) lend(slot int) {
	m, live, err := c.loan(slot)
	defer m.closeFiles()
	if err != nil {
		c.log.Error("connections that wait are served by nobody yet", "worker", slot, "error", err)
		return
	}
	for i := range live {
		other := (slot + 1 + i) % len(live)
		p := live[other]
		if p == nil || p.control.send(m) != nil { // one that hangs is replaced
			continue
		}
		c.mu.Lock()
		c.lent[slot] = p
		c.mu.Unlock()
		c.log.Info("its connections are served by another worker meanwhile", "worker", slot, "by", other)
		return
	}
}

// loan is what to say for that, and who could hear it. Its sockets are copies, the message's,
// for a reload may close the others before it is said.
func (c *crew) loan(slot int) (m *message, live []*process, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m = (&message{Worker: slot, listeners: c.current.listeners}).to(slot, kindAdopt)
	return m, slices.Clone(c.live), m.copySockets()
}

// reclaim ends that.
func (c *crew) reclaim(slot int) {
	c.mu.Lock()
	p := c.lent[slot]
	c.lent[slot] = nil
	c.mu.Unlock()
	if p != nil {
		_ = p.control.send(&message{Kind: kindRelease, Worker: slot}) // one that is gone has let go
	}
}

// How long workers may take to compile a generation, and to change over to it.
const (
	prepareTime = 5 * time.Second
	commitTime  = time.Second
)

// prepare has every worker get the generation ready; the first refusal is the error, and
// then nothing has changed.
func (c *crew) prepare(m *message) error {
	m = c.withServers(m)
	return c.askAll(func(slot int, p *process) error {
		err := p.ask(m.to(slot, kindPrepare), prepareTime)
		if errors.Is(err, errGone) {
			return nil // its replacement starts with the generation that holds then
		}
		return err
	})
}

// commit makes every worker serve what it prepared. One that does not is replaced, and
// so is one that has come up since and does not take the generation.
func (c *crew) commit(m *message) {
	c.mu.Lock()
	before := c.current.listeners
	c.current = m
	c.mu.Unlock()
	question := &message{Kind: kindCommit, Generation: m.generation()}
	_ = c.askAll(func(slot int, p *process) error {
		err := p.ask(question, commitTime)
		if err != nil && !errors.Is(err, errGone) {
			err = p.ask(c.withServers(m).to(slot, kindApply), commitTime)
		}
		if err != nil {
			c.log.Error("worker did not take the new generation: it is replaced", "worker", slot, "error", err)
			_ = p.cmd.Process.Kill()
			return nil
		}
		for _, l := range m.listeners { // workers accept there by now
			if slices.Contains(before, l) {
				continue
			}
			if err := l.admit(slot); err != nil {
				c.log.Error("worker gets no connections of its own", "worker", slot, "address", l.address, "error", err)
			}
		}
		return nil
	})
}

// askAll runs fn for all workers that serve, at once.
func (c *crew) askAll(fn func(slot int, p *process) error) error {
	c.mu.Lock()
	live := slices.Clone(c.live)
	c.mu.Unlock()
	errs := make([]error, len(live))
	var wg sync.WaitGroup
	for slot, p := range live {
		if p == nil {
			continue
		}
		wg.Go(func() {
			if err := fn(slot, p); err != nil {
				errs[slot] = fmt.Errorf("worker %d: %w", slot, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// tellAll has all workers hear of something that needs no answer. One that hangs keeps it from
// nobody, nor its caller for long: it hears of it when it reads again, or is replaced.
func (c *crew) tellAll(m *message) {
	told := make(chan struct{})
	go func() {
		defer close(told)
		_ = c.askAll(func(slot int, p *process) error {
			if err := p.control.send(m); err != nil {
				c.log.Warn("worker did not hear of a change", "worker", slot, "of", m.Kind, "error", err)
			}
			return nil
		})
	}()
	late := time.NewTimer(commitTime)
	defer late.Stop()
	select {
	case <-told:
	case <-late.C:
		c.log.Warn("a worker that hangs has not heard of a change yet", "of", m.Kind)
	}
}

// dismiss closes the slot for new connections, unless it was the last: then they
// wait in its socket for the replacement rather than being refused.
func (c *crew) dismiss(slot int) {
	c.mu.Lock()
	c.live[slot] = nil
	others := false
	for _, p := range c.live {
		others = others || p != nil
	}
	c.mu.Unlock()
	if !others {
		return
	}
	for _, l := range c.listeners() {
		if err := l.bar(slot); err != nil {
			c.log.Error("dead worker stays in the socket array", "worker", slot, "error", err)
		}
	}
}

// end asks the worker to drain and makes sure that it is gone in the end.
func (c *crew) end(slot int, p *process) {
	for _, l := range c.listeners() {
		_ = l.bar(slot)
	}
	if err := p.control.send(&message{Kind: kindShutdown, Retire: c.retire.Load() || c.drained()}); err != nil {
		_ = p.cmd.Process.Signal(unix.SIGKILL)
		return
	}
	c.mu.Lock()
	drain := c.current.Snapshot.Timeouts.Drain
	c.mu.Unlock()
	time.AfterFunc(drain+time.Second, func() { _ = p.cmd.Process.Kill() })
}

// slab of the worker in the slot.
func (c *crew) slab(slot int) *zone.Slab { return c.zone.Worker(c.shift + slot) }

// readmit has new connections reach all workers that serve, by this supervisor's steering.
func (c *crew) readmit(l *listener) error {
	if l.steering == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for slot, p := range c.live {
		if p == nil {
			continue
		}
		if err := l.steering.SetWorker(slot, l.fds[slot]); err != nil {
			return err
		}
	}
	return l.steering.Attach(l.fds[0])
}

// wait returns when all workers are gone.
func (c *crew) wait() { c.wg.Wait() }
