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
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/xgw-project/xgw/pkg/admin"
	"github.com/xgw-project/xgw/pkg/config"
	"github.com/xgw-project/xgw/pkg/datapath"
	"github.com/xgw-project/xgw/pkg/host"
	"github.com/xgw-project/xgw/pkg/ledger"
	"github.com/xgw-project/xgw/pkg/logging"
	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/servers"
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
	telemetry            *side
	telemetryCertificate func() (*tls.Certificate, error) // nil: in the clear
	control              *side                            // nil where there is no right to make it
	remote               *side                            // nil where there is no admin API
	remoteOptions        admin.RemoteOptions
	signals              *os.File // an eventfd that all workers write to
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
	drain                drain
	level                levelChange

	mu      sync.Mutex // among reloads; policy, config, loaded, listeners and secrets are theirs
	loaded  time.Time  // when the configuration was read
	pending *pending
	trial   *trial // nil: none is under way
	stopped bool   // no more trials

	predecessor *predecessor // who has handed over to this one; nil for none
	aside       aside
	handed      bool            // another supervisor has all there is
	gone        bool            // the same, for what waits for mu
	ctx         context.Context // ends when the gateway is to stop
	wants       wants
	threads     *threads
}

// Run is the supervisor: it returns when ctx ends and everything is wound up, or
// when it could not start, and then it leaves nothing behind.
func Run(ctx context.Context, o Options) (err error) {
	s := &supervisor{options: o, config: o.Config, loaded: time.Now(), log: o.Log, servers: servers.New(o.Log), events: admin.NewEvents()}
	s.servers.Turned = s.tellServer
	s.level.configured = s.LogLevel()
	defer func() {
		s.handed = s.handed || s.predecessor.waits()
		err = errors.Join(err, s.close())
	}()
	s.ctx = ctx
	var end func()
	s.wants, end = catchSignals()
	defer end()
	if s.threads, err = newThreads(); err != nil {
		return fmt.Errorf("start gateway: %w", err)
	}
	if s.predecessor, err = meetPredecessor(); err != nil {
		return fmt.Errorf("start gateway: %w", err)
	}
	if err := s.prepare(); err != nil {
		return fmt.Errorf("start gateway: %w", s.tellPredecessor(err))
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
	s.escalator = newEscalator(s.zone, s.signals, s.cores, s.servers, s.log)
	shift := s.zone.Shift()
	if s.predecessor != nil {
		shift = s.predecessor.shift(s.zone)
	}
	s.escalator.events = s.events
	s.crew = &crew{
		log: s.log, zone: s.zone, shift: shift, signals: s.signals, cores: s.cores, logLevel: s.LogLevel(), memory: s.workerMemory(),
		credential: credential, starts: s.threads.workers, ticketKeys: s.tickets.keys(), servers: s.servers.Lists, keys: s.keys.lookup, events: s.events, drained: s.drain.is,
	}
	if s.predecessor != nil {
		s.takeByHand(&s.predecessor.offer.byHand)
	}
	go s.crew.tellChanges(s.servers.Changed())
	serving, stop := context.WithCancel(ctx)
	defer s.crew.wait()
	defer stop()
	defer func() {
		if s.predecessor.waits() {
			s.handed = true
			s.letGo()
		}
	}()
	if err := s.crew.run(serving, first); err != nil {
		return fmt.Errorf("start gateway: %w", s.tellPredecessor(err))
	}
	return s.serve(serving, stop)
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
	p, err := policy.Compile(s.config, s.predecessor.generation()+1)
	if err != nil {
		return &ConfigError{s.config.Path, err}
	}
	s.policy = p
	if err := s.predecessor.refuse(s.config); err != nil {
		return err
	}
	s.warn()
	if s.cores, err = workerCores(s.config); err != nil {
		return err
	}
	s.vault = newVault(s.config.State, s.log)
	if s.tickets, err = newTicketRing(s.config.Tickets, s.log); err != nil {
		return err
	}
	s.predecessor.giveTickets(s.tickets)
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
	s.makeControl()
	if s.drain.path, err = drainPath(s.config.Path, s.config.Instance); err != nil {
		return err
	}
	s.makeRemote()
	for _, lc := range s.config.Listeners {
		l, err := s.predecessor.listener(lc.Address, s.cores)
		if err == nil && l == nil {
			// The workers of a supervisor that is gone may still listen.
			l, err = listen(lc.Address, s.cores, datapath.Allowed() == nil, s.predecessor == nil && s.zone.Replaced() != 0)
		}
		if err != nil {
			return err
		}
		s.listeners = append(s.listeners, l)
	}
	s.tune(&s.config.TCP)
	if s.predecessor != nil {
		s.predecessor.drop()
		return nil // the kernel plane is its own until it steps aside
	}
	return s.govern()
}

// govern puts the policy in force in the kernel plane of every interface.
func (s *supervisor) govern() error {
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
	if s.telemetry = s.predecessor.side(sideTelemetry, o.Address); s.telemetry != nil {
		return nil
	}
	if s.telemetry, err = listenSide(o.Address); err != nil {
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
	z, err := s.predecessor.adoptZone(path, layout, s.log)
	if err == nil && z == nil {
		z, err = zone.Create(path, layout)
	}
	if err != nil {
		return err
	}
	s.zone = z
	if s.signals, err = s.predecessor.takeSignals(); err != nil {
		return err
	}
	if s.predecessor != nil {
		return nil // Own and generation come with the lead
	}
	_ = os.Remove(path + zoneBefore) // of an upgrade in which everybody was killed
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
	path := admin.SocketPath(s.config.Instance)
	if s.control = s.predecessor.side(sideControl, path); s.control != nil {
		return
	}
	l, err := admin.Listen(path)
	if err == nil {
		s.control, err = newSide(path, l)
	}
	if err != nil {
		s.log.Warn("gateway-ctl cannot reach this gateway", "error", err)
	}
}

func (s *supervisor) adopt(ic config.Interface) error {
	pl, err := newPlane(ic, s.config.Instance, s.policy, s.options.Confirm, s.predecessor != nil, s.log)
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
	a := Addresses{Telemetry: "http://" + s.telemetry.address + "/metrics"}
	if s.telemetryCertificate != nil {
		a.Telemetry = "https" + strings.TrimPrefix(a.Telemetry, "http")
	}
	for _, l := range s.listeners {
		a.Listeners = append(a.Listeners, l.address)
	}
	return a
}

// close gives back all that was acquired. What `xgw attach` made stays attached, and what
// another supervisor has been handed stays as it is.
func (s *supervisor) close() error {
	var errs []error
	s.servers.Close()
	for _, l := range s.listeners {
		l.close()
	}
	for _, pl := range s.planes {
		if s.handed {
			errs = append(errs, pl.leave())
		} else {
			errs = append(errs, pl.close())
		}
	}
	if s.keys != nil {
		errs = append(errs, s.keys.close())
	}
	if s.control != nil && !s.handed {
		_ = os.Remove(s.control.name)
	}
	for _, d := range []*side{s.telemetry, s.control, s.remote} {
		d.close()
	}
	errs = append(errs, s.view.close())
	if s.signals != nil {
		errs = append(errs, s.signals.Close())
	}
	if s.zone != nil {
		if !s.handed {
			errs = append(errs, s.zone.Remove())
		}
		errs = append(errs, s.zone.Close())
	}
	if s.accessLog != nil {
		errs = append(errs, s.accessLog.Close())
	}
	s.predecessor.close()
	return errors.Join(errs...)
}
