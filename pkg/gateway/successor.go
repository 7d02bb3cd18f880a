// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/admin"
	"github.com/xgw-project/xgw/pkg/datapath"
	"github.com/xgw-project/xgw/pkg/host"
	"github.com/xgw-project/xgw/pkg/zone"
)

// An upgrade is a handover from this supervisor to one that it starts from another binary.
// The sockets, the zone and the pins are the same all the time; what differs is who uses them.
//
//	old                                 new
//	offer, listener..., offered  ->     makes all ready, starts workers, who accept beside the old ones
//	                             <-     ready, or refused
//	ends its lead
//	lead                         ->     takes zone and kernel plane, begins its lead
//	                             <-     leading
//	check, again and again       ->     well, or refused
//	settled                      ->
//	its workers finish what is under way, and it goes
//
// With lead goes what was set by hand since the offer, and with each answer to check and with
// returned what was set by hand at the new one.
//
// Whenever the new one refuses, dies or is silent for too long, the old one says return, ends
// it if need be, and leads again. Its workers have accepted connections all the time.

// Times of a handover.
const (
	startTime  = 10 * time.Second // from the start of the new one until it is ready, and until it leads
	returnTime = 5 * time.Second  // until it has let go
	checkTime  = 2 * time.Second  // until it says that it is well
	checkPause = 200 * time.Millisecond
)

// HandoverEnv names the environment variable that has Run take over on the descriptor that it
// tells.
const HandoverEnv = "XGW_HANDOVER"

// offer is what there is to take over; its descriptors come with it, and those of listeners
// in messages of their own.
type offer struct {
	PID        int      `json:"pid"`
	Workers    int      `json:"workers"`
	Interfaces []string `json:"interfaces,omitempty"`
	Generation uint64   `json:"generation"`
	byHand
	TicketKeys     [][32]byte `json:"ticket_keys"`
	TicketsRotated time.Time  `json:"tickets_rotated"`
	// Names are those of the sides that come with it, as configured, by kind.
	Names map[string]string `json:"names"`
}

// Names of descriptors that are no socket's.
const (
	offerZone    = "zone"
	offerSignals = "signals"
	// Of a listener, behind its workers' sockets: its steering's arrays.
	offerArrays = "arrays"
)

// successor is a supervisor that takes over from this one.
type successor struct {
	cmd     *exec.Cmd
	control *control
	answers chan *message   // closed when it is gone
	stop    <-chan struct{} // closed when the gateway is to stop
	byHand  *byHand         // as it has told last; nil: it has not
}

// hears notes what comes with a message.
func (n *successor) hears(m *message) {
	if m != nil && m.ByHand != nil {
		n.byHand = m.ByHand
	}
}

// Upgrade hands over to a new process of the binary. It returns when that has led for as long
// as was asked and this one is about to go, or when this one leads again.
func (s *supervisor) Upgrade(ask admin.Upgrade) (done admin.Upgraded, err error) {
	if !s.mu.TryLock() {
		return done, fmt.Errorf("%w: a reload or an upgrade is under way: try again when it is over", admin.ErrImpossible)
	}
	defer s.mu.Unlock()
	if err := s.mayUpgrade(); err != nil {
		return done, fmt.Errorf("upgrade: %w: %w", admin.ErrImpossible, err)
	}
	began := time.Now()
	s.endTrial("upgrade")
	n, err := s.startSuccessor(ask.Binary)
	if err != nil {
		return done, fmt.Errorf("upgrade: %w", err)
	}
	pid := n.cmd.Process.Pid
	s.log.Info("upgrade: another supervisor starts", "pid", pid, "binary", n.cmd.Path)
	if err := s.handOver(n, ask.Watch); err != nil {
		s.log.Error("upgrade failed: this supervisor goes on", "error", err)
		return done, fmt.Errorf("upgrade: %w: the gateway goes on as before", err)
	}
	s.log.Info("upgraded", "pid", pid, "took", time.Since(began).Round(time.Millisecond))
	return admin.Upgraded{PID: pid, Took: time.Since(began)}, nil
}

var errHanded = errors.New("this supervisor has handed over to another: ask again")

// mayUpgrade says what stands against an upgrade now.
func (s *supervisor) mayUpgrade() error {
	switch {
	case s.pending != nil:
		return fmt.Errorf("%w: `gateway-ctl confirm`, or wait", admin.ErrUnconfirmed)
	case s.predecessor.alive():
		return errors.New("the supervisor before this one is not gone yet: its workers finish what is under way")
	case s.gone:
		return errHanded
	case os.Getpid() == 1:
		return errors.New("this process is the first of its machine or container, which would end with it: start a new one beside it")
	}
	s.sweepSlots()
	for i := range s.cores {
		if state := stateOf(s.zone.Worker(s.zone.OtherShift() + i)); state != zone.StateNone && state != zone.StateDead {
			return fmt.Errorf("a worker of another supervisor is still there (%s): wait until it has finished", state)
		}
	}
	return nil
}

func stateOf(slab *zone.Slab) zone.State { return zone.State(slab.LoadGauge(zone.GaugeState)) }

// sweepSlots notes which workers of the other shift are gone, where their supervisor is, too.
func (s *supervisor) sweepSlots() {
	for i := range s.cores {
		slab := s.zone.Worker(s.zone.OtherShift() + i)
		if state := stateOf(slab); state == zone.StateNone || state == zone.StateDead {
			continue
		}
		pid := int(slab.LoadGauge(zone.GaugePID))
		// A service may be shown no processes of other users, who are there all the same.
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		stranger := err == nil && !strings.HasPrefix(string(name), "xgw")
		if stranger || pid <= 0 || errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
			slab.Set(zone.GaugeState, uint64(zone.StateDead))
		}
	}
}

// binary is the file to start: by default where this process's was, which may hold another
// version by now.
func upgradeBinary(asked string) (string, error) {
	path, err := asked, error(nil)
	if path == "" {
		if path, err = os.Executable(); err != nil {
			return "", err
		}
		path = strings.TrimSuffix(path, " (deleted)")
	}
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("%w: binary %s: name it by its absolute path", admin.ErrInvalid, path)
	}
	info, err := os.Stat(path)
	if err == nil && (!info.Mode().IsRegular() || info.Mode()&0o111 == 0) {
		err = errors.New("it is no program")
	}
	if err != nil {
		return "", fmt.Errorf("%w: binary %s: %w", admin.ErrInvalid, path, err)
	}
	return path, nil
}

// startSuccessor starts the binary as this process was started.
func (s *supervisor) startSuccessor(binary string) (*successor, error) {
	path, err := upgradeBinary(binary)
	if err != nil {
		return nil, err
	}
	ours, theirs, err := socketpair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	ours.patience = startTime
	cmd := exec.Command(path)
	cmd.Args = os.Args
	// The service manager's watchdog is told by the process, whichever that is.
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "WATCHDOG_PID=") })
	cmd.Env = append(cmd.Env, HandoverEnv+"=3")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if os.Getenv("NOTIFY_SOCKET") != "" {
		// A child of the service manager, as this one is: it waits for no other to stop.
		cmd.SysProcAttr.Cloneflags = unix.CLONE_PARENT
	}
	if os.Geteuid() != 0 {
		held, err := host.Held()
		if err != nil {
			ours.close()
			return nil, err
		}
		for _, c := range held { // no other child gets any
			cmd.SysProcAttr.AmbientCaps = append(cmd.SysProcAttr.AmbientCaps, uintptr(c))
		}
	}
	if err := s.threads.successors.do(cmd.Start); err != nil {
		ours.close()
		return nil, fmt.Errorf("start %s: %w", path, err)
	}
	n := &successor{cmd: cmd, control: ours, answers: make(chan *message, 1), stop: s.ctx.Done()}
	go func() {
		defer close(n.answers)
		for {
			m, err := ours.receive()
			if err != nil {
				return
			}
			n.answers <- m
		}
	}()
	go func() { _ = cmd.Wait() }() // that it ends shows on the socket
	return n, nil
}

var errEnded = errors.New("the new supervisor ended: its log says why")

// wait is for an answer of this kind.
func (n *successor) wait(want kind, patience time.Duration) error {
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case m, ok := <-n.answers:
		switch {
		case !ok:
			return errEnded
		case m.Kind == kindRefused:
			return fmt.Errorf("the new supervisor: %s", m.Error)
		case m.Kind != want:
			return fmt.Errorf("the new supervisor says %q where %q is due: its version does not know this handover", m.Kind, want)
		}
		return nil
	case <-late.C:
		return fmt.Errorf("the new supervisor did not say %q within %s", want, patience)
	case <-n.stop:
		return errStopping
	}
}

var errStopping = errors.New("the gateway is stopping")

// errStopped: the successor was told to stop, and the gateway with it.
var errStopped = errors.New("the new supervisor was stopped")

// handOver goes through all steps; with an error this supervisor leads.
func (s *supervisor) handOver(n *successor, watch time.Duration) error {
	old := s.zonePath() + zoneBefore
	_ = os.Remove(old) // of an upgrade in which this process was killed
	if err := os.Link(s.zonePath(), old); err != nil {
		s.endSuccessor(n)
		return err
	}
	defer os.Remove(old)
	for _, l := range s.listeners {
		l.shared.Store(true)
	}
	err := s.makeOffer(n)
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		err = errEnded
	}
	if err == nil {
		err = n.wait(kindReady, startTime)
	}
	if err == nil {
		err = s.options.fault("ready")
	}
	if err != nil {
		s.endSuccessor(n)
		return errors.Join(err, s.takeBack(false))
	}
	handed, err := s.aside.call()
	if err != nil {
		s.endSuccessor(n)
		return errors.Join(err, s.takeBack(false))
	}
	if err = n.control.send(&message{Kind: kindLead, ByHand: s.byHand()}); err == nil {
		err = n.wait(kindLeading, startTime)
	}
	if err == nil {
		err = s.watchSuccessor(n, watch)
	}
	if err == nil {
		err = s.options.fault("settle")
	}
	if err == nil {
		err = n.control.send(&message{Kind: kindSettled})
	}
	if err == nil || errors.Is(err, errStopped) {
		s.notify(fmt.Sprintf("MAINPID=%d", n.cmd.Process.Pid))
		s.gone = true
		s.letGo()
		handed <- true
		return nil
	}
	s.endSuccessor(n)
	s.takeByHand(n.byHand)
	err = errors.Join(err, s.takeBack(true))
	handed <- false
	return err
}

// watchSuccessor asks it how it is, for so long.
func (s *supervisor) watchSuccessor(n *successor, watch time.Duration) error {
	watchdog := s.watchdog() // this is the service manager's main process until it is settled
	for end := time.Now().Add(watch); ; {
		if watchdog != "" {
			s.notify(watchdog)
		}
		if err := n.control.send(&message{Kind: kindCheck}); err != nil {
			return errEnded
		}
		select {
		case m, ok := <-n.answers:
			n.hears(m)
			switch {
			case ok && m.Kind == kindSettled: // it was told to stop
				return errStopped
			case !ok:
				return errEnded
			case m.Kind != kindWell:
				return fmt.Errorf("the new supervisor is not well: %s", m.Error)
			}
		case <-n.stop:
			return errStopping
		case <-time.After(checkTime):
			return fmt.Errorf("the new supervisor does not answer within %s", checkTime)
		}
		left := time.Until(end)
		if left <= 0 {
			return nil
		}
		time.Sleep(min(left, checkPause))
	}
}

// endSuccessor has it let go of everything, or makes it. Its workers finish what is under way.
func (s *supervisor) endSuccessor(n *successor) {
	defer n.control.close()
	if n.control.send(&message{Kind: kindReturn}) == nil {
		late := time.NewTimer(returnTime)
		defer late.Stop()
		for {
			select {
			case m, ok := <-n.answers:
				n.hears(m)
				if !ok || m.Kind == kindReturned {
					return
				}
				continue
			case <-late.C:
			}
			break
		}
	}
	_ = n.cmd.Process.Kill()
	gone := time.After(time.Second)
	for {
		select {
		case _, ok := <-n.answers:
			if !ok {
				return
			}
		case <-gone:
			return
		}
	}
}

// takeBack makes everything this supervisor's as it was. led: it had stepped aside.
func (s *supervisor) takeBack(led bool) error {
	var errs []error
	if !s.zone.InPlace() {
		errs = append(errs, os.Rename(s.zonePath()+zoneBefore, s.zonePath()))
	}
	if led {
		s.zone.Own()
		s.zone.SetShift(s.crew.shift)
		s.zone.SetGeneration(s.policy.Generation)
		for _, pl := range s.planes {
			errs = append(errs, pl.renew())
		}
		errs = append(errs, s.dropOthers())
		s.tune(&s.config.TCP)
	}
	for _, l := range s.listeners {
		l.shared.Store(false)
		errs = append(errs, s.crew.readmit(l))
	}
	return errors.Join(errs...)
}

// dropOthers takes off what another supervisor attached for as long as it runs.
func (s *supervisor) dropOthers() error {
	names, err := datapath.Interfaces(datapath.Options{Instance: s.config.Instance})
	for _, name := range names {
		if slices.ContainsFunc(s.planes, func(pl *plane) bool { return pl.options.Interface == name }) {
			continue
		}
		d, openErr := datapath.Open(datapath.Options{Interface: name, Instance: s.config.Instance})
		if openErr != nil {
			continue // an operator's, in a state of their own
		}
		if d.Transient() {
			err = errors.Join(err, d.Detach())
		}
		err = errors.Join(err, d.Close())
	}
	return err
}

// zoneBefore ends the name that a zone has while another may take its place.
const zoneBefore = ".old"

// letGo leaves everything to another supervisor.
func (s *supervisor) letGo() {
	for _, l := range s.listeners {
		l.shared.Store(true)
	}
	s.crew.retire.Store(true)
}

// makeOffer sends what there is to take over.
func (s *supervisor) makeOffer(n *successor) error {
	m := &message{Kind: kindOffer, Offer: &offer{
		PID: os.Getpid(), Workers: len(s.cores), Generation: s.policy.Generation, byHand: *s.byHand(), Names: map[string]string{},
	}}
	for _, pl := range s.planes {
		m.Offer.Interfaces = append(m.Offer.Interfaces, pl.options.Interface)
	}
	if s.tickets.path == "" {
		m.Offer.TicketKeys, m.Offer.TicketsRotated = s.tickets.keys(), s.tickets.rotated
	}
	files := map[string]*os.File{offerZone: s.zone.File(), offerSignals: s.signals}
	for kind, d := range map[string]*side{sideTelemetry: s.telemetry, sideControl: s.control, sideAdmin: s.remote} {
		if d != nil {
			m.Offer.Names[kind], files[kind] = d.name, d.file
		}
	}
	for name, f := range files {
		fd, err := descriptor(f)
		if err != nil {
			return fmt.Errorf("hand over %s: %w", name, err)
		}
		m.Sockets, m.fds = append(m.Sockets, name), append(m.fds, fd)
	}
	if err := n.control.send(m); err != nil {
		return err
	}
	for _, l := range s.listeners {
		if err := l.send(n.control); err != nil {
			return err
		}
	}
	return n.control.send(&message{Kind: kindOffered})
}

// descriptor of a file that stays open. Its Fd might make it a blocking one, for everybody who
// has it.
func descriptor(f *os.File) (n int, err error) {
	raw, err := f.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { n = int(fd) })
	}
	return n, err
}

// send hands the listener's sockets and its steering over.
func (l *listener) send(c *control) error {
	fds := slices.Clone(l.fds)
	names := slices.Repeat([]string{l.name}, len(fds))
	if l.steering != nil {
		arrays, err := l.steering.Files()
		if err != nil {
			return err
		}
		for _, f := range arrays {
			defer f.Close()
			fds, names = append(fds, int(f.Fd())), append(names, offerArrays)
		}
	}
	for len(fds) > 0 {
		some := min(len(fds), maxSockets)
		if err := c.send(&message{Kind: kindListener, Sockets: names[:some], fds: fds[:some]}); err != nil {
			return err
		}
		fds, names = fds[some:], names[some:]
	}
	return nil
}
