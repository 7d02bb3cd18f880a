// SPDX-License-Identifier: Apache-2.0

package top

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/prometheus/procfs"

	"github.com/xgw-project/xgw/pkg/datapath"
	"github.com/xgw-project/xgw/pkg/host"
	"github.com/xgw-project/xgw/pkg/ledger"
	"github.com/xgw-project/xgw/pkg/zone"
)

// Source reads a gateway again and again. It is not safe for concurrent use.
type Source struct {
	zonePath, instance string

	zone    *zone.Zone // nil for none
	planes  []*plane
	ledger  *ledger.Ledger // over zone and planes; nil: to be made
	now     sample
	before  sample
	sources map[netip.Addr]*dropped
}

// sample is what was read at one moment.
type sample struct {
	at       time.Time
	ledger   ledger.Snapshot
	cpu      []float64 // seconds of CPU, by worker
	verdicts []held
	clients  []zone.Busy
	keys     []zone.Busy
}

// held is a verdict of an interface.
type held struct {
	Interface string
	datapath.Verdict
}

// plane is one interface's pins.
type plane struct {
	*datapath.Datapath
	drops *datapath.Drops
}

// Open reads the zone at the path and all interfaces of the instance. What is not there
// may come later.
func Open(zonePath, instance string) *Source {
	return &Source{zonePath: zonePath, instance: instance, sources: map[netip.Addr]*dropped{}}
}

// Close lets go of what was opened.
func (s *Source) Close() error {
	var errs []error
	for _, p := range s.planes {
		errs = append(errs, p.Close())
	}
	s.planes, s.ledger = nil, nil
	if s.zone != nil {
		errs = append(errs, s.zone.Close())
		s.zone = nil
	}
	return errors.Join(errs...)
}

// Read takes a frame. What cannot be read is in its Trouble.
func (s *Source) Read() *Frame {
	f := &Frame{Time: time.Now()}
	say := func(err error) {
		if err != nil {
			f.Trouble = append(f.Trouble, err.Error())
		}
	}
	say(s.openZone())
	say(s.openPlanes())
	s.before, s.now = s.now, s.before
	s.now.at = f.Time
	read := func() { say(s.take(f)) }
	if s.zone == nil {
		read()
	} else {
		say(s.zone.Guard(read))
	}
	if !s.before.at.IsZero() {
		f.Interval = f.Time.Sub(s.before.at)
	}
	s.fill(f)
	return f
}

// openZone opens the zone, or the one that is in its place by now.
func (s *Source) openZone() error {
	if s.zone != nil {
		if s.zone.InPlace() {
			return nil
		}
		if err := s.zone.Close(); err != nil {
			return err
		}
		s.zone, s.ledger, s.before, s.now = nil, nil, sample{}, sample{}
	}
	z, err := zone.Open(s.zonePath)
	if errors.Is(err, os.ErrNotExist) {
		return nil // Gateway.Supervisor says so
	}
	s.zone, s.ledger = z, nil
	return err
}

// openPlanes opens interfaces that came, and lets go of those that went or were attached anew.
func (s *Source) openPlanes() error {
	names, err := datapath.Interfaces(datapath.Options{Instance: s.instance})
	if err != nil {
		return err
	}
	var errs []error
	s.planes = slices.DeleteFunc(s.planes, func(p *plane) bool {
		if slices.Contains(names, p.Interface()) && p.Status().Attached {
			return false
		}
		errs = append(errs, p.Close())
		s.ledger = nil
		return true
	})
	for _, name := range names {
		if slices.ContainsFunc(s.planes, func(p *plane) bool { return p.Interface() == name }) {
			continue
		}
		p, err := openPlane(datapath.Options{Interface: name, Instance: s.instance})
		errs = append(errs, err)
		if err == nil {
			s.planes = append(s.planes, p)
			s.ledger = nil
		}
	}
	return errors.Join(errs...)
}

func openPlane(o datapath.Options) (*plane, error) {
	d, err := datapath.Open(o)
	if err != nil {
		return nil, err
	}
	drops, err := d.NewDrops()
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return &plane{d, drops}, nil
}

// reader is the ledger over what is open. It stays while that does: it remembers how counts
// that should agree differed at first.
func (s *Source) reader() *ledger.Ledger {
	if s.ledger == nil {
		sources := ledger.Sources{Zone: s.zone, Stack: host.ReadStack}
		for _, p := range s.planes {
			name := p.Interface()
			sources.Interfaces = append(sources.Interfaces, ledger.Interface{
				Name: name, Status: p.Status, Counters: p.Counters,
				Receive: func() (host.Receive, error) { return host.ReadReceive(name) },
			})
		}
		s.ledger = ledger.New(sources)
	}
	return s.ledger
}

// take reads everything into s.now.
func (s *Source) take(f *Frame) error {
	errs := []error{s.reader().Snapshot(&s.now.ledger)}
	s.now.cpu = s.now.cpu[:0]
	for i := range s.now.ledger.Workers {
		s.now.cpu = append(s.now.cpu, cpuTime(s.now.ledger.Workers[i].PID))
	}
	s.now.clients, s.now.keys = s.now.clients[:0], s.now.keys[:0]
	if s.zone != nil {
		s.now.clients = s.zone.BusyAddresses().All(s.now.clients, f.Time)
		s.now.keys = s.zone.BusyKeys().All(s.now.keys, f.Time)
	}
	s.now.verdicts = s.now.verdicts[:0]
	for _, p := range s.planes {
		verdicts, err := p.Verdicts()
		errs = append(errs, err)
		for _, v := range verdicts {
			s.now.verdicts = append(s.now.verdicts, held{p.Interface(), v})
		}
		drops, err := p.drops.Read()
		errs = append(errs, err)
		s.note(drops, f.Time)
	}
	s.processes(&f.Gateway)
	return errors.Join(errs...)
}

// processes tells how the supervisor is, by its process and its beat.
func (s *Source) processes(g *Gateway) {
	g.Supervisor, g.Beat = ledger.Supervisor(s.zone)
	if s.zone == nil {
		return
	}
	g.Generation, g.Uptime = s.zone.Generation(), time.Since(s.zone.Created())
	g.Workers = len(s.now.ledger.Workers)
	for i := range s.now.ledger.Workers {
		w := &s.now.ledger.Workers[i]
		if w.State == zone.StateReady && ledger.Runs(w.PID) {
			g.Ready++
		}
	}
}

// cpuTime is what a process has used, in seconds; 0 for one that is gone.
func cpuTime(pid int) float64 {
	p, err := procfs.NewProc(pid)
	if err != nil {
		return 0
	}
	stat, err := p.Stat()
	if err != nil {
		return 0
	}
	return stat.CPUTime()
}
