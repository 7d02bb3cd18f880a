// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/admin"
	"github.com/xgw-project/xgw/pkg/config"
	"github.com/xgw-project/xgw/pkg/datapath"
	"github.com/xgw-project/xgw/pkg/escalate"
	"github.com/xgw-project/xgw/pkg/ledger"
	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/servers"
	"github.com/xgw-project/xgw/pkg/zone"
)

// escalator takes the workers' signals to the kernel plane: zone -> book -> verdicts. It is
// woken by an eventfd that all workers write to, which is the supervisor's.
type escalator struct {
	log     *slog.Logger
	zone    *zone.Zone
	planes  []*plane
	servers *servers.Watcher
	event   *os.File // of all workers; the escalator reads it
	cores   []int    // by worker; -1: any
	pressed []bool   // by worker; the run's own

	mu       sync.Mutex
	book     *escalate.Book
	trusted  []netip.Prefix
	sessions []zone.Session
	conducts []escalate.Conduct
	lanes    map[netip.Addr][]datapath.Lane // that are open, by source
	spread   bool                           // workers are on other CPUs than the queue that feeds them
	events   *admin.Events
}

// reasonCodes are the reasons in the kernel plane's map, by number.
var reasonCodes = func() []string {
	out := []string{escalate.Unknown, escalate.ByOperator}
	for _, o := range zone.Offences() {
		out = append(out, o.String())
	}
	return out
}()

func newEscalator(z *zone.Zone, event *os.File, cores []int, w *servers.Watcher, log *slog.Logger) *escalator {
	e := &escalator{
		log: log, zone: z, cores: cores, pressed: make([]bool, z.Slots()), servers: w,
		event: event, lanes: map[netip.Addr][]datapath.Lane{},
	}
	e.book = escalate.NewBook(e, log, e.goodOthers)
	return e
}

// govern gives it the kernel plane, with the verdicts that are held there.
func (e *escalator) govern(planes []*plane) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.planes = planes
	for _, pl := range planes {
		held, err := pl.verdicts()
		if err != nil {
			return err
		}
		for _, v := range held {
			// Of a supervisor before this one. The kernel plane will have them end by themselves.
			now := time.Now()
			e.book.Adopt(escalate.Verdict{Source: v.Source, Step: v.Step, Reason: reason(v.Reason), Since: now, Until: now.Add(v.TTL)})
		}
	}
	return nil
}

func newEvent() (*os.File, error) {
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make eventfd: %w", err)
	}
	return os.NewFile(uintptr(fd), "signals"), nil
}

func reason(code uint8) string {
	if int(code) < len(reasonCodes) {
		return reasonCodes[code]
	}
	return escalate.Unknown
}

// follow makes a configuration's rules the ones that hold.
func (e *escalator) follow(c *config.Config, p *policy.Policy) {
	rules := p.Snapshot.Escalations
	if len(rules) > 0 {
		for _, said := range Unenforced(c) {
			e.log.Warn(said)
		}
	}
	if len(e.planes) == 0 {
		rules = nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.trusted, e.spread = slices.Clone(c.Client.Trusted), c.Spread
	e.book.SetRules(slices.Clone(rules), c.Verdicts.Guard, e.exempt)
}

// Unenforced says for whom the configuration's escalations do nothing.
func Unenforced(c *config.Config) (out []string) {
	if len(c.Interfaces) == 0 {
		out = append(out, "escalate gives no verdicts: no interface is configured, so there is no kernel plane to hold them")
	}
	if len(c.Client.Trusted) > 0 {
		var list []string
		for _, p := range c.Client.Trusted {
			list = append(list, p.String())
		}
		out = append(out, fmt.Sprintf("escalate is off for what comes through trusted proxies (client_address: %s): a verdict on a proxy would hit all its clients", strings.Join(list, ", ")))
	}
	return out
}

// exempt tells whether no verdict may be given on the source. What the kernel plane's own
// tables exempt, it finds itself.
func (e *escalator) exempt(source netip.Addr) bool {
	of := netip.PrefixFrom(source, 32)
	if source.Is6() {
		of = netip.PrefixFrom(source, 64)
	}
	for _, p := range e.trusted {
		if p.Overlaps(of) {
			return true
		}
	}
	for _, v := range e.servers.Status() {
		if a, err := netip.ParseAddrPort(v.Address); err == nil && of.Contains(a.Addr().Unmap().WithZone("")) {
			return true
		}
	}
	return source.IsLoopback() || source.IsUnspecified()
}

// goodOthers asks the workers' sessions.
func (e *escalator) goodOthers(source netip.Addr, except uint64) int {
	e.sessions = e.zone.Sessions(e.sessions[:0], policy.AddressKey(source), monotonic())
	e.conducts = e.conducts[:0]
	for _, s := range e.sessions {
		e.conducts = append(e.conducts, escalate.Conduct{Who: s.Who, Good: s.Good, Bad: s.Bad})
	}
	return escalate.GoodOthers(e.conducts, except)
}

// Hold gives a verdict to every interface, or to none.
func (e *escalator) Hold(v *escalate.Verdict, ttl time.Duration) error {
	d := datapath.Verdict{Source: v.Source, Step: v.Step, TTL: ttl, Reason: uint8(max(slices.Index(reasonCodes, v.Reason), 0)), Generation: uint16(e.zone.Generation())}
	e.openLanes(v)
	for i, pl := range e.planes {
		lost, full, err := pl.setVerdict(d)
		if err != nil {
			for _, done := range e.planes[:i] {
				err = errors.Join(err, done.clearVerdict(v.Source))
			}
			if errors.Is(err, datapath.ErrExempt) {
				err = fmt.Errorf("%w: %w", escalate.ErrExempt, err)
			}
			return err
		}
		if full {
			e.book.Lost(lost.Source)
		}
	}
	e.events.Tell(admin.Event{Kind: "verdict", About: source(v.Source), What: v.Step.String(), Note: v.Reason})
	return nil
}

// Release takes it off again.
func (e *escalator) Release(source netip.Addr) error {
	about := source.String()
	if source.Is6() {
		about = netip.PrefixFrom(source, 64).String()
	}
	errs := e.closeLanes(source, nil)
	for _, pl := range e.planes {
		errs = append(errs, pl.clearVerdict(source))
	}
	e.events.Tell(admin.Event{Kind: "verdict", About: about, What: "ended"})
	return errors.Join(errs...)
}

// pace is how soon after one look at the signals the next one is: a worker that floods the
// eventfd must not keep the supervisor busy.
const pace = time.Millisecond

// run acts on signals as they come and on verdicts whose time is over, until ctx ends.
func (e *escalator) run(ctx context.Context) {
	defer context.AfterFunc(ctx, e.rouse)()
	fd, err := descriptor(e.event)
	if err != nil {
		e.log.Error("signals of workers cannot be waited for: no verdicts are given", "error", err)
		return
	}
	var count [8]byte
	pause := unix.NsecToTimespec(int64(pace))
	event := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for ctx.Err() == nil {
		e.mu.Lock()
		now := time.Now()
		e.drain(now)
		next := e.book.Tick(now)
		for _, pl := range e.planes {
			if pl.takeFresh() {
				e.book.Renew(now)
			}
		}
		wait := beatInterval
		if e.press() {
			wait = pressLook
		}
		e.mu.Unlock()
		by := now.Add(wait)
		if !next.IsZero() && next.Before(by) {
			by = next
		}
		// Both by the kernel: the runtime would have another thread wake this one.
		_ = unix.Nanosleep(&pause, nil)
		wait = max(time.Until(by)+time.Millisecond, time.Millisecond)
		if _, err := unix.Poll(event, int(wait/time.Millisecond)); err != nil && !errors.Is(err, unix.EINTR) {
			e.log.Error("signals of workers cannot be waited for: no verdicts are given", "error", err)
			return
		}
		_, _ = unix.Read(fd, count[:]) // a signal, or the time is over
	}
}

func (e *escalator) drain(now time.Time) {
	for i := range e.zone.Slots() {
		e.zone.Worker(i).Signals.Drain(func(s zone.Signal) {
			e.book.Streak(escalate.Streak{
				Source: policy.KeyAddress(s.Source), Who: s.Who, Rule: s.Rule, Reason: s.Offence.String(), Age: time.Duration(monotonic() - s.At),
			}, now)
		})
	}
}

// verdictCounts tells the ledger.
func (e *escalator) verdictCounts() (counts []ledger.VerdictCount, held [4]int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.book.Counts(func(c escalate.Count, n uint64) {
		counts = append(counts, ledger.VerdictCount{Fate: c.Fate.String(), Step: c.Step.String(), Reason: c.Reason, Count: n})
	})
	for _, v := range e.book.List() {
		held[v.Step-policy.ThinSYNs]++
	}
	return counts, held
}

func (e *escalator) list() []admin.Verdict {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := []admin.Verdict{}
	for _, v := range e.book.List() {
		out = append(out, told(v))
	}
	return out
}

func told(v escalate.Verdict) admin.Verdict {
	return admin.Verdict{
		Source: source(v.Source), Step: v.Step.String(), Reason: v.Reason, Rule: v.Rule, Note: v.Note,
		Since: v.Since, Until: v.Until, Capped: v.Capped, Good: v.Good,
	}
}

// source is an IPv6 verdict's /64, or an address.
func source(a netip.Addr) string {
	if a.Is4() {
		return a.String()
	}
	return netip.PrefixFrom(a, 64).String()
}

// Verdicts are those that are held.
func (s *supervisor) Verdicts() []admin.Verdict { return s.escalator.list() }

// AddVerdict gives one that an operator asks for.
func (s *supervisor) AddVerdict(ask admin.AddVerdict) (admin.Verdict, error) {
	a, step, err := parseVerdict(ask)
	if err != nil {
		return admin.Verdict{}, err
	}
	e := s.escalator
	if len(e.planes) == 0 {
		return admin.Verdict{}, fmt.Errorf("%w: no interface is configured, so there is no kernel plane to hold verdicts", admin.ErrImpossible)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	v, err := e.book.Add(escalate.Verdict{Source: a, Step: step, Note: ask.Note}, ask.TTL, ask.Force, time.Now())
	if err != nil {
		return admin.Verdict{}, fmt.Errorf("%w: verdict on %s: %w", admin.ErrImpossible, a, err)
	}
	e.rouse()
	return told(v), nil
}

// rouse has run look at what has changed, as a worker does.
func (e *escalator) rouse() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, _ = e.event.Write(one[:])
}

func parseVerdict(ask admin.AddVerdict) (netip.Addr, policy.Step, error) {
	a, err := parseSource(ask.Source)
	if err != nil {
		return a, 0, err
	}
	step, err := policy.ParseStep(ask.Step)
	switch {
	case err != nil:
		return a, 0, fmt.Errorf("%w: %w", admin.ErrInvalid, err)
	case ask.TTL < time.Second || ask.TTL > 30*24*time.Hour:
		return a, 0, fmt.Errorf("%w: a time of %s: want 1s to 720h", admin.ErrInvalid, ask.TTL)
	case len(ask.Note) > 200:
		return a, 0, fmt.Errorf("%w: a reason of %d bytes: want at most 200", admin.ErrInvalid, len(ask.Note))
	}
	return a, step, nil
}

// parseSource reads an address, or the /64 that list prints.
func parseSource(text string) (netip.Addr, error) {
	a, err := netip.ParseAddr(strings.TrimSuffix(text, "/64"))
	wrong := err != nil || a.Zone() != ""
	a = a.Unmap()
	wrong = wrong || !a.IsGlobalUnicast() && !a.IsLinkLocalUnicast() || a.Is4() && strings.HasSuffix(text, "/64")
	// The kernel plane has no word for ::/64, and that of 0:ffff::/32 is IPv4's.
	if key := policy.AddressKey(a); wrong || key == 0 || a.Is6() && key>>32 == 0xffff {
		return a, fmt.Errorf("%w: %q is no address of a client: want one such as 192.0.2.7 or 2001:db8::7, which stands for its /64", admin.ErrInvalid, text)
	}
	return a, nil
}

// RemoveVerdict ends what is held against a source.
func (s *supervisor) RemoveVerdict(source string) error {
	a, err := parseSource(source)
	if err != nil {
		return err
	}
	s.escalator.mu.Lock()
	defer s.escalator.mu.Unlock()
	if err := s.escalator.book.Remove(a); err != nil {
		return fmt.Errorf("%w: %w", admin.ErrImpossible, err)
	}
	return nil
}
