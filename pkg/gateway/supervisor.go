// SPDX-License-Identifier: Apache-2.0

// Package gateway wires the rooms into processes: the supervisor, the workers it
// starts, and the way a new configuration takes effect. It holds no logic of
// packets or requests.
package gateway

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/admin"
	"github.com/xgw-project/xgw/pkg/config"
	"github.com/xgw-project/xgw/pkg/host"
	"github.com/xgw-project/xgw/pkg/ledger"
	"github.com/xgw-project/xgw/pkg/logging"
	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/servers"
	"github.com/xgw-project/xgw/pkg/telemetry"
	"github.com/xgw-project/xgw/pkg/zone"
)

// fileInterval is how often the metrics are written to their file.
const fileInterval = 15 * time.Second

// beatInterval is how often the supervisor says in the zone that it is alive.
const beatInterval = time.Second

// Options are what the command line adds to the configuration.
type Options struct {
	Config *config.Config
	Log    *slog.Logger
	// ErrorLog, when not nil, writes what Log says; it is opened anew with the access log.
	ErrorLog *logging.Queue
	// Load reads the configuration anew, for a reload.
	Load func() (*config.Config, error)
	// LoadOther reads another one, to try it: a gateway.yaml, or a ratelimit.lua beside the
	// present one.
	LoadOther func(path string) (*config.Config, error)
	// Confirm, when not 0, is the time within which what the configuration says of the
	// kernel plane must be confirmed; else it is undone.
	Confirm time.Duration
	// Ready, when not nil, is called once when every worker serves.
	Ready func(Addresses)
	// Zone is the file of the shared zone, by default ZonePath(instance).
	Zone string
	// Fault, when not nil, is asked at each step of a reload for the error that it meets:
	// tests hold reloads to leaving everything as it was.
	Fault func(step string) error
	// Version for the metrics.
	Version string
}

func (o *Options) fault(step string) error {
	if o.Fault == nil {
		return nil
	}
	return o.Fault(step)
}

// Addresses are those really listened on, with ports settled.
type Addresses struct {
	Listeners []string
	Telemetry string // the URL of the metrics
}

// ConfigError is a configuration that cannot be put in force, whatever the machine is like.
type ConfigError struct {
	Path string
	Err  error
}

func (e *ConfigError) Error() string { return e.Path + ": " + e.Err.Error() }
func (e *ConfigError) Unwrap() error { return e.Err }

// ZonePath is the zone's file of an instance.
func ZonePath(instance string) string {
	if instance == "" {
		return "/dev/shm/xgw.zone"
	}
	return "/dev/shm/xgw-" + instance + ".zone"
}

// supervisor owns everything that outlives a worker.
type supervisor struct {
	options              Options
	config               *config.Config
	log                  *slog.Logger
	policy               *policy.Policy
	cores                []int
	zone                 *zone.Zone
	planes               []*plane
	listeners            []*listener
	telemetry            net.Listener
	telemetryCertificate func() (*tls.Certificate, error) // nil: in the clear
	control              net.Listener                     // nil where there is no right to make it
	remote               *admin.Remote                    // nil where there is none, as its listener
	remoteListener       net.Listener
	view                 view
	checkup              checkup
	accessLog            *logging.File
	crew                 *crew
	servers              *servers.Watcher
	vault                *vault
	watch                fileWatch
	renewed              time.Time // when certificates were last looked at
	tickets              *ticketRing
	syslog               atomic.Pointer[logging.Syslog] // nil for none
	push                 atomic.Pointer[push]           // nil for none
	escalator            *escalator
	keys                 *keyring
	meter                *ledger.Meter
	member               *member
	adminCertificate     func() (*tls.Certificate, error) // nil where remote is
	held                 atomic.Pointer[holding]
	events               *admin.Events
	drained              atomic.Bool // others should be sent what comes
	level                levelChange

	mu      sync.Mutex // among reloads; policy, config, loaded, listeners and secrets are theirs
	loaded  time.Time  // when the configuration was read
	pending *pending
	trial   *trial // nil: none is under way
	stopped bool   // no more trials
}

// Run is the supervisor: it returns when ctx ends and everything is wound up, or
// when it could not start, and then it leaves nothing behind.
func Run(ctx context.Context, o Options) (err error) {
	s := &supervisor{options: o, config: o.Config, loaded: time.Now(), log: o.Log, servers: servers.New(o.Log), events: admin.NewEvents()}
	s.servers.Turned = s.tellServer
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.prepare(); err != nil {
		return fmt.Errorf("start gateway: %w", err)
	}
	s.held.Store(&holding{s.config, s.policy})
	s.watch.using(stamps(s.vault.paths(s.config.Listeners)))
	s.renewed = time.Now()
	first, err := s.message(s.config, s.policy, s.listeners, true)
	if err != nil {
		return fmt.Errorf("start gateway: %w", err)
	}
	s.servers.Keep(s.policy.Snapshot.Upstreams)
	credential, said := workerCredential(s.config.WorkerUser)
	if said != "" {
		s.log.Warn(said)
	}
	if s.escalator, err = newEscalator(s.zone, s.planes, s.cores, s.servers, s.log); err != nil {
		return fmt.Errorf("start gateway: %w", err)
	}
	s.escalator.events = s.events
	s.escalator.follow(s.config, s.policy)
	s.member.join(s.escalator)
	s.member.follow(s.config, s.policy)
	s.crew = &crew{
		log: s.log, zone: s.zone, signals: s.escalator.event, cores: s.cores, logLevel: s.LogLevel(), memory: s.workerMemory(),
		credential: credential, ticketKeys: s.tickets.keys(), servers: s.servers.Lists, keys: s.keys.lookup, events: s.events,
	}
	go s.crew.tellChanges(s.servers.Changed())
	serving, stop := context.WithCancel(ctx)
	defer s.crew.wait()
	defer stop()
	if err := s.crew.run(serving, first); err != nil {
		return fmt.Errorf("start gateway: %w", err)
	}
	return s.serve(serving)
}

// serve runs the side services until ctx ends.
func (s *supervisor) serve(ctx context.Context) error {
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
	exemplars := telemetry.NewExemplars(s.zone.Layout().Routes)
	drainer.Observe = func(r *zone.AccessRecord) {
		exemplars.Note(r)
		s.zone.BusyAddresses().Note(r)
		s.zone.BusyKeys().Note(r)
	}
	side := telemetry.New(view, telemetry.Options{Certificate: s.telemetryCertificate, Exemplars: exemplars, Drained: s.drained.Load, Log: s.log})
	go func() {
		if err := side.Serve(s.telemetry); err != nil {
			s.log.Error("metrics listener ended", "error", err)
		}
	}()
	pushed, err := s.openPush(ctx, side)
	if err != nil {
		return err
	}
	if pushed != nil {
		observe := drainer.Observe
		drainer.Observe = func(r *zone.AccessRecord) { observe(r); pushed.Note(r) }
	}
	// It drains until the workers, who end with ctx, have written their last.
	draining, drained := context.WithCancel(context.Background())
	defer drained()
	if file := s.config.Telemetry.File; file != "" {
		go side.KeepFile(ctx, file, fileInterval)
	}
	go drainer.Run(draining)
	s.log.Info("serving", "listeners", len(s.listeners), "workers", len(s.cores), "generation", s.policy.Generation)
	if s.options.Ready != nil {
		s.options.Ready(s.addresses())
	}
	s.notify(daemon.SdNotifyReady)
	if s.control != nil {
		server := admin.NewServer(s, s.log)
		defer server.Close()
		go func() { _ = server.Serve(s.control) }()
	}
	past, err := s.ledger(nil)
	if err != nil {
		return err
	}
	if s.remote != nil {
		defer s.remote.Close()
		go func() {
			if err := s.remote.Serve(s.remoteListener); err != nil {
				s.log.Error("admin API ended", "error", err)
			}
		}()
	}
	escalating := make(chan struct{})
	go func() { defer close(escalating); s.escalator.run(ctx) }()
	s.idle(ctx, drainer, ledger.NewHistorian(past))
	s.stopTrials()
	<-escalating
	s.notify(daemon.SdNotifyStopping)
	s.log.Info("stopping: workers finish what is under way")
	s.crew.wait()
	drained()
	drainer.Wait()
	s.closePush()
	last, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return side.Shutdown(last)
}

// idle is what the supervisor does while workers work: its heartbeat, reloads that HUP
// asks for, and opening the log anew when logrotate sends USR1.
func (s *supervisor) idle(ctx context.Context, drainer *logging.Drainer, past *ledger.Historian) {
	watchdog := s.watchdog()
	beat := time.NewTicker(beatInterval)
	defer beat.Stop()
	reopen := make(chan os.Signal, 1)
	signal.Notify(reopen, unix.SIGUSR1)
	defer signal.Stop(reopen)
	reload := make(chan os.Signal, 1) // one that comes while another waits is the same
	signal.Notify(reload, unix.SIGHUP)
	defer signal.Stop(reload)
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
		s.settle()
		s.tendSecrets()
		if err := past.Record(time.Now()); err != nil {
			s.log.Warn("a row of the history lacks a part", "error", err)
		}
		if err := s.meter.Sample(time.Now()); err != nil {
			s.log.Warn("how busy the machine is cannot be told", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-beat.C:
		case <-reload:
			go func() { _, _ = s.Reload(0) }() // it logs how it went
		case <-reopen:
			s.reopen(drainer)
		}
	}
}

func monotonic() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // cannot fail for this clock
	return ts.Nano()
}

// leastBacklog is the bound of a listening queue below which a burst of connections
// is cut.
const leastBacklog = 4096

// tune sets options of the listening sockets. Without one the gateway goes on.
func (s *supervisor) tune(t *config.TCP) {
	for _, l := range s.listeners {
		if err := l.tune(t); err != nil {
			s.log.Warn("socket option is not set", "error", err)
		}
	}
	if n, err := host.FastOpen("/"); t.FastOpen > 0 && err == nil && n&host.FastOpenServers == 0 {
		s.log.Warn(fmt.Sprintf("tcp.fastopen is of no use: `sysctl net.ipv4.tcp_fastopen=%d` lets servers have it", n|host.FastOpenServers))
	}
}

// workerMemory is what each worker may use.
func (s *supervisor) workerMemory() int64 {
	if s.config.WorkerMemory > 0 {
		return s.config.WorkerMemory
	}
	return host.Memory("/") / 2 / int64(len(s.cores))
}

// warn says what the machine lacks; the gateway goes on without.
func (s *supervisor) warn() {
	connections := uint64(s.config.Connections)
	for _, u := range s.config.Upstreams {
		connections += uint64(u.MaxConnections)
	}
	if lack := host.RaiseOpenFiles(s.config.OpenFiles); lack != "" {
		s.log.Warn(lack)
	}
	if files, err := host.ReadOpenFiles(); err == nil {
		if lack := files.Lack(connections); lack != "" {
			s.log.Warn(lack)
		}
	}
	if n, err := host.Backlog("/"); err == nil && n < leastBacklog {
		s.log.Warn(fmt.Sprintf("listening queues hold %d connections: `sysctl net.core.somaxconn=%d` makes room for bursts", n, leastBacklog))
	}
}

// prepare acquires all that the gateway stands on, in an order in which the most
// likely failures come first and change nothing.
func (s *supervisor) prepare() error {
	p, err := policy.Compile(s.config, 1)
	if err != nil {
		return &ConfigError{s.config.Path, err}
	}
	s.policy = p
	s.warn()
	if s.cores, err = workerCores(s.config); err != nil {
		return err
	}
	s.vault = newVault(s.config.State, s.log)
	if s.tickets, err = newTicketRing(s.config.Tickets, s.log); err != nil {
		return err
	}
	if s.accessLog, err = logging.Open(s.config.Log.Access, os.Stdout); err != nil {
		return err
	}
	if err := s.makeTelemetry(); err != nil {
		return err
	}
	if err := s.makeZone(); err != nil {
		return err
	}
	if s.keys, err = newKeyring(s.config, s.zone.Fence(), s.log); err != nil {
		return err
	}
	if s.member, err = newMember(s.config, s.zone, s.log); err != nil {
		return err
	}
	s.makeControl()
	s.makeRemote()
	for _, lc := range s.config.Listeners {
		// The workers of a supervisor that is gone may still listen.
		l, err := listen(lc.Address, s.cores, os.Geteuid() == 0, s.zone.Replaced() != 0)
		if err != nil {
			return err
		}
		s.listeners = append(s.listeners, l)
	}
	s.tune(&s.config.TCP)
	for _, ic := range s.config.Interfaces {
		if err := s.adopt(ic); err != nil {
			return err
		}
	}
	return nil
}

// makeTelemetry opens the listener of the metrics.
func (s *supervisor) makeTelemetry() (err error) {
	o := &s.config.Telemetry
	if o.Certificate.Chain != "" {
		shown := &shownCertificate{files: o.Certificate}
		if _, err := shown.get(); err != nil {
			return fmt.Errorf("telemetry: %w", err)
		}
		s.telemetryCertificate = shown.get
	}
	if s.telemetry, err = net.Listen("tcp", o.Address); err != nil {
		return fmt.Errorf("listen for metrics: %w", bindError(err))
	}
	return nil
}

func (s *supervisor) makeZone() error {
	path := s.zonePath()
	layout := zone.Layout{
		Size: s.config.Buffers.SharedMemoryZone, Workers: len(s.cores),
		AccessRing: int(s.config.Buffers.AccessRing),
	}
	z, err := zone.Create(path, layout)
	if err != nil {
		return err
	}
	s.zone = z
	if pid := z.Replaced(); pid != 0 {
		s.log.Warn("a supervisor that is gone left its zone: counters begin anew", "pid", pid, "zone", path)
	}
	z.SetGeneration(s.policy.Generation)
	return nil
}

func (s *supervisor) zonePath() string { return cmp.Or(s.options.Zone, ZonePath(s.config.Instance)) }

// makeControl makes the control socket. Without the right to, the gateway goes on:
// SIGHUP reloads, too.
func (s *supervisor) makeControl() {
	l, err := admin.Listen(admin.SocketPath(s.config.Instance))
	if err != nil {
		s.log.Warn("gateway-ctl cannot reach this gateway", "error", err)
		return
	}
	s.control = l
}

func (s *supervisor) adopt(ic config.Interface) error {
	pl, err := newPlane(ic, s.config.Instance, s.policy, s.options.Confirm, s.log)
	if pl != nil {
		pl.fault = s.options.fault
	}
	if pl != nil {
		s.planes = append(s.planes, pl)
	}
	return err
}

// workerCores says which core each worker gets; -1 for none of its own.
func workerCores(c *config.Config) ([]int, error) {
	allowed, err := host.AllowedCores()
	if err != nil {
		return nil, err
	}
	n := c.Workers
	if n == 0 {
		n = len(allowed)
	}
	cores := make([]int, n)
	for i := range cores {
		cores[i] = -1
		if c.Pin {
			cores[i] = allowed[i%len(allowed)]
		}
	}
	return cores, nil
}

// message is the L7 plane of a generation, for the workers. Where strict, certificates
// that cannot be used are an error.
func (s *supervisor) message(c *config.Config, p *policy.Policy, listeners []*listener, strict bool) (*message, error) {
	for i := range p.Snapshot.Routes {
		r := &p.Snapshot.Routes[i]
		r.Slot = s.zone.RouteSlot(r.Name)
	}
	if slices.ContainsFunc(p.Snapshot.Routes, func(r policy.Route) bool { return r.Keys != nil }) {
		p.Snapshot.KeySlot = s.zone.LimitSlot("api_key")
	}
	for i := range p.Snapshot.Upstreams {
		u := &p.Snapshot.Upstreams[i]
		u.Slot = s.zone.UpstreamSlot(u.Name)
	}
	for i := range p.Snapshot.RequestLimits {
		l := &p.Snapshot.RequestLimits[i]
		l.Slot = s.zone.LimitSlot(l.Name)
	}
	for i := range p.Snapshot.ConnectionLimits {
		l := &p.Snapshot.ConnectionLimits[i]
		l.Slot = s.zone.LimitSlot(l.Name)
	}
	if err := s.servers.Adopt(p.Snapshot.Upstreams); err != nil {
		return nil, err
	}
	s.vault.state = c.State
	all, err := s.vault.read(c.Listeners, strict)
	if err != nil {
		return nil, err
	}
	return &message{Kind: kindApply, Snapshot: &p.Snapshot, Secrets: all, listeners: listeners}, nil
}

// ledger is the read model over all that this supervisor owns.
func (s *supervisor) ledger(drainer *logging.Drainer) (*ledger.Ledger, error) {
	kernel, err := host.ReadKernel()
	if err != nil {
		return nil, err
	}
	src := ledger.Sources{
		Zone: s.zone, Kernel: kernel, Version: s.options.Version, Syslog: s.syslogCounts, Servers: s.serverCounts,
		Keys: s.keys.counts, Verdicts: s.escalator.verdictCounts, Cluster: s.member.counts(),
		Stack: host.ReadStack, Pushed: s.pushedCounts,
	}
	if drainer != nil {
		src.LostLines, src.SampledOut = drainer.Lost, drainer.SampledOut
	}
	if s.options.ErrorLog != nil {
		src.LostErrors = s.options.ErrorLog.Lost
	}
	for _, pl := range s.planes {
		name := pl.options.Interface
		src.Interfaces = append(src.Interfaces, ledger.Interface{
			Name: name, Driver: host.Driver(name), Status: pl.status, Counters: pl.counters,
			Receive: func() (host.Receive, error) { return host.ReadReceive(name) },
		})
	}
	if s.meter != nil {
		src.Capacity = s.meter.Capacity
	}
	src.Listeners = func() (all []ledger.Listener) {
		for _, l := range s.crew.listeners() {
			all = append(all, ledger.Listener{Address: l.address, Counts: l.counts})
		}
		return all
	}
	return ledger.New(src), nil
}

// names of slots for the access log; slots keep their names.
func (s *supervisor) names() logging.Names {
	return logging.Names{Route: s.zone.RouteName, Upstream: s.zone.UpstreamName, Queue: host.ReceiveQueue}
}

func (s *supervisor) addresses() Addresses {
	a := Addresses{Telemetry: "http://" + s.telemetry.Addr().String() + "/metrics"}
	if s.telemetryCertificate != nil {
		a.Telemetry = "https" + strings.TrimPrefix(a.Telemetry, "http")
	}
	for _, l := range s.listeners {
		a.Listeners = append(a.Listeners, l.address)
	}
	return a
}

// close gives back all that was acquired. What `xgw attach` made stays attached.
func (s *supervisor) close() error {
	var errs []error
	s.servers.Close()
	errs = append(errs, s.member.close()) // before what it tells, and reads
	if s.escalator != nil {
		errs = append(errs, s.escalator.close())
	}
	for _, l := range s.listeners {
		l.close()
	}
	for _, pl := range s.planes {
		errs = append(errs, pl.close())
	}
	if s.keys != nil {
		errs = append(errs, s.keys.close())
	}
	if s.telemetry != nil {
		s.telemetry.Close()
	}
	if s.control != nil {
		s.control.Close() // again: its server did, if it ever served
	}
	if s.remoteListener != nil {
		s.remoteListener.Close()
	}
	errs = append(errs, s.view.close())
	if s.zone != nil {
		errs = append(errs, s.zone.Remove(), s.zone.Close())
	}
	if s.accessLog != nil {
		errs = append(errs, s.accessLog.Close())
	}
	return errors.Join(errs...)
}
