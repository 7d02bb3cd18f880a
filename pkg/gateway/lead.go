// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"net"
	"os"
	"os/signal"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/admin"
	"github.com/xgw-project/xgw/pkg/ledger"
	"github.com/xgw-project/xgw/pkg/logging"
	"github.com/xgw-project/xgw/pkg/telemetry"
	"github.com/xgw-project/xgw/pkg/zone"
)

// aside is how a supervisor that leads is made to step aside, and what becomes of it then.
type aside struct {
	mu      sync.Mutex
	step    context.CancelFunc // ends the lead
	stepped chan struct{}      // closed when it has ended
	handed  chan bool          // true: another supervisor has all; false: lead again
	called  bool
	over    bool // the gateway ends
}

// begin is for a lead that begins.
func (a *aside) begin(ctx context.Context) (context.Context, func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	ctx, step := context.WithCancel(ctx)
	stepped := make(chan struct{})
	a.step, a.stepped, a.handed, a.called = step, stepped, make(chan bool, 1), false
	return ctx, func() { step(); close(stepped) }
}

// call ends the lead, waits until it has ended, and returns where to say what becomes of
// the supervisor; the caller must, soon.
func (a *aside) call() (handed chan<- bool, err error) {
	a.mu.Lock()
	if a.over {
		a.mu.Unlock()
		return nil, errors.New("the gateway is stopping")
	}
	a.called = true
	a.step()
	stepped, handed := a.stepped, a.handed
	a.mu.Unlock()
	<-stepped
	return handed, nil
}

func (a *aside) isCalled() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.called
}

// mayEnd tells whether nobody has called; then nobody can any more.
func (a *aside) mayEnd() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.over = !a.called
	return a.over
}

// serve leads until ctx ends, or another supervisor has taken over.
func (s *supervisor) serve(ctx context.Context, stop context.CancelFunc) error {
	if s.predecessor != nil {
		if err := s.takeLead(); err != nil {
			return err
		}
	} else if err := s.escalator.govern(s.planes); err != nil {
		return err
	}
	s.escalator.follow(s.config, s.policy)
	for again := false; ; again = true {
		leading, end := s.aside.begin(ctx)
		if !again && s.predecessor.waits() {
			go s.heed(ctx, s.predecessor, s.restarts())
		}
		err := s.lead(ctx, leading)
		if err != nil && s.predecessor.waits() {
			_ = s.tellPredecessor(err)
		}
		end()
		if err != nil && again && ctx.Err() == nil {
			// It has led before: what has changed since must not end a gateway that serves.
			s.log.Error("this supervisor cannot lead again yet: it tries on", "error", err)
			time.Sleep(beatInterval)
			continue
		}
		if (err != nil || ctx.Err() != nil) && s.aside.mayEnd() {
			return err
		}
		if s.handed = <-s.aside.handed; s.handed { // it takes as long as a handover at most
			s.log.Info("another supervisor has taken over: workers finish what is under way")
			return errors.Join(err, s.finish(stop))
		}
		if ctx.Err() != nil {
			return err
		}
		if err != nil {
			s.log.Warn("not all of the lead could be ended well", "error", err)
		}
	}
}

// finish lets the workers finish what is under way and writes what they log, where another
// supervisor does not.
func (s *supervisor) finish(stop context.CancelFunc) error {
	stop()
	// A supervisor that gives back what it took may have made a zone, which nobody else knows.
	if own := s.predecessor.waits() && !s.predecessor.adopted; !own && s.zone.InPlace() {
		return nil // the other one reads the rings of this zone
	}
	drainer := logging.NewDrainer(s.zone, s.accessLog, nil, s.names())
	drainer.Configure(&s.config.Log)
	draining, drained := context.WithCancel(context.Background())
	go drainer.Run(draining)
	s.crew.wait()
	drained()
	drainer.Wait()
	return nil
}

// lead runs what one supervisor alone may run, until leading ends: its readers of the zone's
// rings, its side services, its place in the cluster. Where ctx ends, too, the workers end
// first.
func (s *supervisor) lead(ctx, leading context.Context) (err error) {
	if s.member, err = newMember(s.config, s.zone, s.log); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.member.close()) }() // before what it tells, and reads
	s.member.join(s.escalator)
	s.member.follow(s.config, s.policy)
	syslog, err := s.openSyslog()
	if err != nil {
		return err
	}
	defer s.closeSyslog(syslog)
	drainer := logging.NewDrainer(s.zone, s.accessLog, syslog, s.names())
	drainer.Configure(&s.config.Log)
	if err := s.makeMeter(); err != nil {
		return err
	}
	view, err := s.ledger(drainer)
	if err != nil {
		return err
	}
	past, err := s.ledger(nil)
	if err != nil {
		return err
	}
	metrics, err := s.observe(leading, drainer, view)
	if err != nil {
		return err
	}
	endAdmin, err := s.serveSides(metrics)
	defer endAdmin()
	if err != nil {
		s.closePush()
		return errors.Join(err, shutDown(metrics))
	}
	// It drains until the workers, who end with ctx, have written their last.
	draining, drained := context.WithCancel(context.Background())
	defer drained()
	if file := s.config.Telemetry.File; file != "" {
		go metrics.KeepFile(leading, file, fileInterval)
	}
	go drainer.Run(draining)
	if s.predecessor.waits() {
		_ = s.predecessor.tell(kindLeading) // if it is gone by now, heed says so
	}
	s.log.Info("serving", "listeners", len(s.listeners), "workers", len(s.cores), "generation", s.policy.Generation)
	if s.options.Ready != nil {
		s.options.Ready(s.addresses())
		s.options.Ready = nil
	}
	s.notify(daemon.SdNotifyReady)
	escalating := make(chan struct{})
	go func() {
		defer close(escalating)
		_ = s.threads.signals.do(func() error { s.escalator.run(leading); return nil })
	}()
	s.idle(leading, drainer, ledger.NewHistorian(past))
	<-escalating
	if ctx.Err() != nil {
		s.predecessor.stopping()
		if s.aside.mayEnd() {
			s.stopTrials()
		} // else an upgrade has ended them, and waits for this with the lock of both
		s.notify(daemon.SdNotifyStopping)
		s.log.Info("stopping: workers finish what is under way")
		s.crew.wait()
		s.predecessor.linger(s.policy.Snapshot.Timeouts.Drain + time.Second)
	}
	drained()
	drainer.Wait()
	s.closePush()
	return shutDown(metrics)
}

// observe makes the server of metrics, and has it and all else that is made of access records
// see each that is drained.
func (s *supervisor) observe(leading context.Context, drainer *logging.Drainer, view *ledger.Ledger) (*telemetry.Server, error) {
	exemplars := telemetry.NewExemplars(s.zone.Layout().Routes)
	drainer.Observe = func(r *zone.AccessRecord) {
		exemplars.Note(r)
		s.zone.BusyAddresses().Note(r)
		s.zone.BusyKeys().Note(r)
	}
	s.heedDrainFile() // before anybody is told
	metrics := telemetry.New(view, telemetry.Options{Certificate: s.telemetryCertificate, Exemplars: exemplars, Drained: s.drain.is, Log: s.log})
	pushed, err := s.openPush(leading, metrics)
	if err != nil {
		return nil, err
	}
	if pushed != nil {
		observe := drainer.Observe
		drainer.Observe = func(r *zone.AccessRecord) { observe(r); pushed.Note(r) }
	}
	return metrics, nil
}

func shutDown(metrics *telemetry.Server) error {
	last, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return metrics.Shutdown(last)
}

// serveSides serves metrics, the control socket and the admin API; end ends the latter two.
func (s *supervisor) serveSides(metrics *telemetry.Server) (end func(), err error) {
	var ends []func()
	end = func() {
		for _, fn := range ends {
			fn()
		}
	}
	serve := func(what string, d *side, fn func(net.Listener) error) error {
		l, err := d.listen()
		if err != nil {
			return err
		}
		go func() {
			if err := fn(l); err != nil {
				s.log.Error(what+" ended", "error", err)
			}
		}()
		return nil
	}
	if err := serve("metrics listener", s.telemetry, metrics.Serve); err != nil {
		return end, err
	}
	if s.control != nil {
		server := admin.NewServer(s, s.log, s.audit())
		if err := serve("control socket", s.control, func(l net.Listener) error { _ = server.Serve(l); return nil }); err != nil {
			return end, err
		}
		ends = append(ends, func() {
			if !s.aside.isCalled() {
				server.Close()
				return
			}
			go func() { _ = server.Shutdown(context.Background()) }() // who asked for the upgrade waits for what comes of it
		})
	}
	if s.remote != nil {
		remote := admin.NewRemote(s, s.remoteOptions)
		if err := serve("admin API", s.remote, remote.Serve); err != nil {
			return end, err
		}
		ends = append(ends, func() { _ = remote.Close() })
	}
	return end, nil
}

// idle is what the supervisor does while workers work: its heartbeat, reloads that HUP
// asks for, and opening the log anew when logrotate sends USR1.
func (s *supervisor) idle(ctx context.Context, drainer *logging.Drainer, past *ledger.Historian) {
	watchdog, warned := s.watchdog(), false
	beat := time.NewTicker(beatInterval)
	defer beat.Stop()
	for ctx.Err() == nil {
		s.zone.Beat(monotonic())
		s.zone.BusyAddresses().Publish()
		s.zone.BusyKeys().Publish()
		if watchdog != "" {
			s.notify(watchdog)
		}
		for _, pl := range s.planes {
			pl.tend()
		}
		if err := s.threads.giveWay(); err != nil && !warned { // not before it serves: a start is waited for
			warned = true
			s.log.Warn("the supervisor competes with its workers", "error", err)
		}
		s.heedDrainFile()
		s.settle()
		s.tendSecrets()
		s.sweepSlots()
		if err := past.Record(time.Now()); err != nil {
			s.log.Warn("a row of the history lacks a part", "error", err)
		}
		if err := s.meter.Sample(time.Now()); err != nil {
			s.log.Warn("how busy the machine is cannot be told", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-beat.C:
		case <-s.wants.reload:
			go func() { _, _ = s.Reload(0) }() // it logs how it went
		case <-s.wants.reopen:
			s.reopen(drainer)
		}
	}
}

// wants are signals of operators. They are caught for the whole life of the process, for a
// supervisor that does not lead must not be ended by them.
type wants struct {
	reload, reopen chan os.Signal // one that comes while another waits is the same
}

func catchSignals() (w wants, end func()) {
	w = wants{make(chan os.Signal, 1), make(chan os.Signal, 1)}
	signal.Notify(w.reload, unix.SIGHUP)
	signal.Notify(w.reopen, unix.SIGUSR1)
	return w, func() { signal.Stop(w.reload); signal.Stop(w.reopen) }
}

func monotonic() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // cannot fail for this clock
	return ts.Nano()
}
