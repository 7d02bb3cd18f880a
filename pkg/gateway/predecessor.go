// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/xgw-project/xgw/pkg/config"
	"github.com/xgw-project/xgw/pkg/datapath"
	"github.com/xgw-project/xgw/pkg/zone"
)

// predecessor is the supervisor that hands over to this one: see successor. A nil one is none,
// and all its methods say so.
type predecessor struct {
	control   *control
	offer     offer
	files     map[string]*os.File   // what came with the offer and is not taken yet
	listeners map[string][]*os.File // by name: sockets by worker, then the steering's arrays
	arrays    map[string][]*os.File
	adopted   bool // its zone is this one's

	mu      sync.Mutex
	settled bool // it will not lead again
	gone    bool
}

// meetPredecessor takes the offer of the supervisor that has started this process; nil where
// none has.
func meetPredecessor() (*predecessor, error) {
	at := os.Getenv(HandoverEnv)
	if at == "" {
		return nil, nil
	}
	os.Unsetenv(HandoverEnv)
	fd, err := strconv.Atoi(at)
	if err != nil {
		return nil, fmt.Errorf("%s=%s is for supervisors among each other: `gateway-ctl upgrade` sets it", HandoverEnv, at)
	}
	f := os.NewFile(uintptr(fd), "handover")
	conn, err := net.FileConn(f)
	f.Close() // conn has a descriptor of its own
	if err != nil {
		return nil, fmt.Errorf("meet the supervisor before: %w", err)
	}
	unix, ok := conn.(*net.UnixConn)
	if !ok {
		conn.Close()
		return nil, fmt.Errorf("meet the supervisor before: descriptor %d is no socket of it", fd)
	}
	p := &predecessor{
		control: &control{conn: unix}, files: map[string]*os.File{}, listeners: map[string][]*os.File{}, arrays: map[string][]*os.File{},
	}
	if err := p.hear(); err != nil {
		p.close()
		return nil, fmt.Errorf("meet the supervisor before: %w", err)
	}
	return p, nil
}

// hear takes everything that is offered.
func (p *predecessor) hear() error {
	name := ""
	for {
		m, err := p.control.receive()
		if err != nil {
			return err
		}
		switch m.Kind {
		case kindOffer:
			if m.Offer == nil {
				return errors.New("it offers nothing")
			}
			p.offer = *m.Offer
			for i, f := range m.files {
				p.files[m.Sockets[i]] = f
			}
		case kindListener:
			for i, f := range m.files {
				if m.Sockets[i] == offerArrays {
					p.arrays[name] = append(p.arrays[name], f)
					continue
				}
				name = m.Sockets[i]
				p.listeners[name] = append(p.listeners[name], f)
			}
		case kindOffered:
			return nil
		default:
			m.closeFiles()
			return fmt.Errorf("it says %q: its version does not know this handover", m.Kind)
		}
	}
}

func (p *predecessor) generation() uint64 {
	if p == nil {
		return 0
	}
	return p.offer.Generation
}

// refuse says what of the configuration differs that a handover cannot change.
func (p *predecessor) refuse(c *config.Config) error {
	if p == nil {
		return nil
	}
	for _, name := range p.offer.Interfaces { // nobody would take the kernel plane off
		if !slices.ContainsFunc(c.Interfaces, func(i config.Interface) bool { return i.Name == name }) {
			return fmt.Errorf("the kernel plane is on interface %s, which the configuration no longer has: that takes a restart", name)
		}
	}
	return nil
}

func (p *predecessor) giveTickets(t *ticketRing) {
	if p != nil && t.path == "" && len(p.offer.TicketKeys) > 0 {
		t.ring, t.rotated = p.offer.TicketKeys, p.offer.TicketsRotated
	}
}

// take is what came under the name, once.
func (p *predecessor) take(name string) *os.File {
	f := p.files[name]
	delete(p.files, name)
	return f
}

// side is the one of that kind, if it has the same address; else nil.
func (p *predecessor) side(kind, name string) *side {
	if p == nil || p.offer.Names[kind] != name || p.files[kind] == nil {
		return nil
	}
	d, err := inheritSide(name, p.take(kind))
	if err != nil {
		return nil // a new one is opened, which says why it cannot be
	}
	return d
}

// takeSignals is the eventfd that workers of both write to, or a new one.
func (p *predecessor) takeSignals() (*os.File, error) {
	if p != nil && p.adopted {
		return p.take(offerSignals), nil
	}
	return newEvent()
}

// adoptZone takes the zone over, or makes another in its place and says why; nil where there
// is no predecessor.
func (p *predecessor) adoptZone(path string, l zone.Layout, log *slog.Logger) (*zone.Zone, error) {
	if p == nil {
		return nil, nil
	}
	if p.offer.Workers != l.Workers {
		return nil, fmt.Errorf("there are %d workers, and the configuration wants %d: that takes a restart", p.offer.Workers, l.Workers)
	}
	z, err := zone.Adopt(p.take(offerZone), path, l)
	if err == nil {
		p.adopted = true
		return z, nil
	}
	log.Warn("the zone of the supervisor before is not taken over: counters begin anew, and the buckets of limits are full again", "error", err)
	return zone.Supersede(path, l, p.offer.PID)
}

// shift is which slots of the zone this supervisor's workers have.
func (p *predecessor) shift(z *zone.Zone) int {
	if p.adopted {
		return z.OtherShift()
	}
	return z.Shift()
}

// listener is the one of that name; nil where there is none.
func (p *predecessor) listener(name string, cpus []int) (*listener, error) {
	if p == nil || len(p.listeners[name]) != len(cpus) {
		return nil, nil
	}
	l := &listener{name: name, sockets: p.listeners[name]}
	delete(p.listeners, name)
	for _, f := range l.sockets {
		fd, err := descriptor(f)
		if err != nil {
			l.close()
			return nil, fmt.Errorf("take over listener %s: %w", name, err)
		}
		l.fds = append(l.fds, fd)
	}
	one, err := net.FileListener(l.sockets[0])
	if err != nil {
		l.close()
		return nil, fmt.Errorf("take over listener %s: %w", name, err)
	}
	l.address = one.Addr().String()
	one.Close()
	if arrays := p.arrays[name]; len(arrays) == 2 {
		if l.steering, err = datapath.InheritSteering(cpus, [2]*os.File(arrays)); err != nil {
			l.close()
			return nil, fmt.Errorf("take over listener %s: %w", name, err)
		}
	}
	return l, nil
}

// tell says something to it; one that is gone hears nothing.
func (p *predecessor) tell(k kind) error {
	if p == nil {
		return nil
	}
	return p.control.send(&message{Kind: k})
}

// alive tells whether it still has workers.
func (p *predecessor) alive() bool {
	if p == nil {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.gone
}

// waits tells whether it would lead again if this one did not.
func (p *predecessor) waits() bool {
	if p == nil {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.settled && !p.gone
}

// drop gives back what was not taken: the predecessor has descriptors of its own.
func (p *predecessor) drop() {
	for _, f := range p.files {
		f.Close()
	}
	for _, some := range [...]map[string][]*os.File{p.listeners, p.arrays} {
		for _, files := range some {
			for _, f := range files {
				f.Close()
			}
		}
		clear(some)
	}
	clear(p.files)
}

// linger waits until it is gone, for so long at most: a service manager would end it with this
// process.
func (p *predecessor) linger(patience time.Duration) {
	for end := time.Now().Add(patience); p.alive() && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
}

// close ends the conversation, and gives back what was not taken.
func (p *predecessor) close() {
	if p == nil {
		return
	}
	p.mu.Lock()
	p.settled = true
	p.mu.Unlock()
	p.control.close()
	p.drop()
}

// tellPredecessor why this one does not take over.
func (s *supervisor) tellPredecessor(err error) error {
	if s.predecessor != nil {
		_ = s.predecessor.control.send(&message{Kind: kindRefused, Error: err.Error()})
	}
	return err
}

// takeLead takes over what only one may have.
func (s *supervisor) takeLead() error {
	p := s.predecessor
	if err := p.tell(kindReady); err != nil {
		return fmt.Errorf("take over: %w", err)
	}
	m, err := p.control.receive()
	if err != nil {
		return fmt.Errorf("take over: the supervisor before is gone: %w", err)
	}
	if m.Kind != kindLead {
		return errors.New("take over: the supervisor before takes all back")
	}
	s.takeByHand(m.ByHand)
	s.zone.Own()
	s.zone.SetShift(s.crew.shift)
	s.zone.SetGeneration(s.policy.Generation)
	err = errors.Join(s.options.fault("lead"), s.govern())
	if err == nil {
		err = s.escalator.govern(s.planes)
	}
	if err != nil {
		s.letGo()
		err = s.tellPredecessor(fmt.Errorf("take over: %w", err))
		_ = p.tell(kindReturned)
	}
	return err
}

// heed answers the supervisor before until it is gone.
func (s *supervisor) heed(ctx context.Context, p *predecessor, restarts uint64) {
	for {
		m, err := p.control.receive()
		if err != nil {
			p.mu.Lock()
			if !p.settled {
				s.log.Warn("the supervisor before is gone in the midst of its handover: this one leads")
			}
			p.settled, p.gone = true, true
			p.mu.Unlock()
			return
		}
		switch m.Kind {
		case kindCheck:
			answer := &message{Kind: kindWell, ByHand: s.byHand()}
			err := s.unwell(restarts)
			if ctx.Err() != nil { // that is why they are as they are
				p.stopping()
				continue
			}
			if err != nil {
				answer.Kind, answer.Error = kindRefused, err.Error()
			}
			_ = p.control.send(answer) // that it is gone shows above
		case kindSettled:
			p.mu.Lock()
			p.settled = true
			p.mu.Unlock()
			s.log.Info("this supervisor has taken over: workers of the one before finish what is under way")
		case kindReturn:
			s.log.Warn("the supervisor before takes all back")
			handed, err := s.aside.call()
			s.letGo()
			_ = p.control.send(&message{Kind: kindReturned, ByHand: s.byHand()})
			if err == nil {
				handed <- true
			}
			return
		}
	}
}

// unwell is what is wrong with the workers, who had restarted so often.
func (s *supervisor) unwell(restarts uint64) error {
	if err := s.options.fault("check"); err != nil {
		return err
	}
	for i := range s.cores {
		if state := stateOf(s.zone.Worker(s.crew.shift + i)); state != zone.StateReady {
			return fmt.Errorf("worker %d is %s", i, state)
		}
	}
	if n := s.restarts(); n != restarts {
		return errors.New("workers die and are started again")
	}
	return nil
}

// stopping tells the supervisor before that the gateway is to stop: it need not lead again.
func (p *predecessor) stopping() {
	if p.waits() {
		_ = p.tell(kindSettled)
		p.mu.Lock()
		p.settled = true
		p.mu.Unlock()
	}
}
