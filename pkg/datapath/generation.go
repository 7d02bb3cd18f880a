// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/bpf"
	"github.com/xgw-project/xgw/pkg/policy"
)

// noGeneration is the slot that holds none: all packets pass.
const noGeneration = 2

// ErrUnconfirmed: a change waits for its confirmation, or its deadline.
var ErrUnconfirmed = errors.New("a change waits to be confirmed")

// Apply makes the tables the generation that holds, at one moment for all packets:
// each sees the old tables or the new ones. Buckets keep their state. With an error
// everything is as it was.
func (d *Datapath) Apply(t *policy.Tables) error { return d.ApplyUntil(t, 0) }

// ApplyUntil is Apply, undone by the kernel plane itself unless Confirm comes within the
// time; 0 needs no confirmation.
func (d *Datapath) ApplyUntil(t *policy.Tables, confirm time.Duration) error {
	if err := d.apply(t, confirm); err != nil {
		return fmt.Errorf("apply tables to %s: %w", d.options.Interface, err)
	}
	return nil
}

func (d *Datapath) apply(t *policy.Tables, confirm time.Duration) error {
	unlock, err := d.lock()
	if err != nil {
		return err
	}
	defer unlock()
	state, err := d.settleLocked()
	if err != nil {
		return err
	}
	if now := monotonic(); state.Deadline > now {
		return fmt.Errorf("%w: `%s`, or wait %s", ErrUnconfirmed, d.options.Command("confirm"),
			time.Duration(state.Deadline-now).Round(time.Second))
	} else if state.Deadline != 0 {
		// settle undoes any other change
		return fmt.Errorf("the attach was not confirmed in time, so everything passes: `%s`, then attach again", d.options.Command("detach"))
	}
	live, err := d.liveTables(state.Current)
	if err != nil {
		return err
	}
	g, err := encode(t, live, d.seed, d.encoding)
	if err != nil {
		return err
	}
	idle := uint32(0)
	if state.Current == 0 {
		idle = 1
	}
	if err := d.awaitPackets(idle); err != nil {
		return err
	}
	if err := d.fill(idle, g); err != nil {
		return err
	}
	if err := d.prepareSpread(t.Spread); err != nil {
		return err
	}
	if err := d.options.step("flip"); err != nil {
		return err
	}
	next := bpf.GatewayControlState{Current: idle, Fallback: state.Current}
	if confirm > 0 {
		next.Deadline = monotonic() + uint64(confirm)
	}
	// From here on packets see the new generation.
	if err := d.objects.Control.Put(uint32(0), &next); err != nil {
		return fmt.Errorf("flip generation: %w", err)
	}
	// None of these allocates, so none fails.
	return errors.Join(d.settleShared(g, live), d.spread(t.Spread), d.settleOwner())
}

// awaitPackets returns when no packet is left that read the control word while the slot
// was the one that held. The kernel waits for them whenever an element of an outer map is
// replaced, even by itself.
func (d *Datapath) awaitPackets(slot uint32) error {
	inner, err := d.openInner(d.tablesMap(), slot)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil // the slot has never held
	}
	if err == nil {
		err = errors.Join(d.objects.GenTables.Put(slot, inner), inner.Close())
	}
	if err != nil {
		return fmt.Errorf("wait for packets in flight: %w", err)
	}
	return nil
}

// lock keeps other processes, and other holders of these pins in this one, from changing
// which generation holds, until the function that it returns is called. Readers need none.
func (d *Datapath) lock() (unlock func(), err error) {
	if d.dir == "" {
		return func() {}, nil // without pins nobody else has the maps
	}
	dir, err := os.Open(d.dir)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", d.dir, err)
	}
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		err = unix.Flock(int(dir.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		dir.Close()
		return nil, fmt.Errorf("lock %s: %w", d.dir, err)
	}
	return func() { dir.Close() }, nil
}

// Confirm makes the last change stay. Without one that waits it does nothing.
func (d *Datapath) Confirm() error {
	return d.decide("confirm", func(s bpf.GatewayControlState) bpf.GatewayControlState {
		s.Deadline = 0
		return s
	})
}

// Undo takes the last change back at once, while it waits to be confirmed. Without one that
// waits it does nothing.
func (d *Datapath) Undo() error {
	return d.decide("undo change of", func(s bpf.GatewayControlState) bpf.GatewayControlState {
		return bpf.GatewayControlState{Current: s.Fallback, Fallback: s.Fallback}
	})
}

// decide writes what becomes of a change that waits.
func (d *Datapath) decide(verb string, next func(bpf.GatewayControlState) bpf.GatewayControlState) error {
	unlock, err := d.lock()
	if err != nil {
		return fmt.Errorf("%s %s: %w", verb, d.options.Interface, err)
	}
	defer unlock()
	state, err := d.settleLocked()
	if err == nil && state.Deadline > 0 {
		state = next(state)
		err = d.objects.Control.Put(uint32(0), &state)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", verb, d.options.Interface, err)
	}
	return nil
}

// settle reads the control word, and settles first what is overdue.
func (d *Datapath) settle() (bpf.GatewayControlState, error) {
	var s bpf.GatewayControlState
	if err := d.objects.Control.Lookup(uint32(0), &s); err != nil {
		return s, fmt.Errorf("read control: %w", err)
	}
	if s.Deadline == 0 || monotonic() <= s.Deadline {
		return s, nil
	}
	unlock, err := d.lock()
	if err != nil {
		return s, err
	}
	defer unlock()
	return d.settleLocked()
}

// settleLocked makes a change whose deadline has passed undone in the control word, too, as
// the program has treated it all along.
func (d *Datapath) settleLocked() (bpf.GatewayControlState, error) {
	var s bpf.GatewayControlState
	if err := d.objects.Control.Lookup(uint32(0), &s); err != nil {
		return s, fmt.Errorf("read control: %w", err)
	}
	if s.Deadline == 0 || monotonic() <= s.Deadline {
		return s, nil
	}
	if s.Fallback == noGeneration && d.expiredAttach(s) {
		return s, nil
	}
	s = bpf.GatewayControlState{Current: s.Fallback, Fallback: s.Fallback}
	if err := d.objects.Control.Put(uint32(0), &s); err != nil {
		return s, fmt.Errorf("undo unconfirmed change: %w", err)
	}
	return s, nil
}

// expiredAttach tells whether it was the attach itself that was not confirmed: then the
// program goes on to pass everything until it is detached.
func (d *Datapath) expiredAttach(s bpf.GatewayControlState) bool { return s.Current == noGeneration }

// AttachUntil sets the deadline of an attach: without Confirm by then, everything passes.
func (d *Datapath) AttachUntil(confirm time.Duration) error {
	s := bpf.GatewayControlState{Current: noGeneration, Fallback: noGeneration, Deadline: monotonic() + uint64(confirm)}
	if err := d.objects.Control.Put(uint32(0), &s); err != nil {
		return fmt.Errorf("set deadline of %s: %w", d.options.Interface, err)
	}
	return nil
}

func (d *Datapath) liveTables(slot uint32) (*bpf.GatewayTables, error) {
	t := &bpf.GatewayTables{}
	if slot == noGeneration {
		return t, nil
	}
	inner, err := d.openInner(d.tablesMap(), slot)
	if err != nil {
		return nil, fmt.Errorf("open live tables: %w", err)
	}
	defer inner.Close()
	if err := inner.Lookup(uint32(0), t); err != nil {
		return nil, fmt.Errorf("read live tables: %w", err)
	}
	return t, nil
}

// fill makes new inner maps for the slot. Those that were there before may still be in
// use by a packet that read the control word just now; they are never written, and the
// kernel waits for such packets whenever an outer map's element is replaced.
func (d *Datapath) fill(slot uint32, g *generation) error {
	fills := []struct {
		outer   outerMap
		entries int
		put     func(*ebpf.Map) error
	}{
		{d.tablesMap(), 1, func(m *ebpf.Map) error { return m.Put(uint32(0), g.tables) }},
		{d.portsMap(), len(g.ports), func(m *ebpf.Map) error { return putSparse(d, m, g.ports) }},
		{d.rowsMap(), len(g.prefixes.Rows), func(m *ebpf.Map) error { return putSparse(d, m, g.prefixes.Rows) }},
		{d.bucketsMap(), len(g.prefixes.Buckets), func(m *ebpf.Map) error { return putSparse(d, m, g.prefixes.Buckets) }},
	}
	for _, f := range fills {
		if err := d.options.step("fill " + f.outer.name); err != nil {
			return err
		}
		spec := d.inner[f.outer.Map].Copy()
		if d.encoding.fixed && uint32(f.entries) > spec.MaxEntries {
			return fmt.Errorf("%s: %d entries, and before Linux 5.10 there is room for %d, chosen at attach", f.outer.name, f.entries, spec.MaxEntries)
		}
		if !d.encoding.fixed {
			spec.MaxEntries = uint32(f.entries)
		}
		m, err := ebpf.NewMap(spec)
		if err != nil {
			return fmt.Errorf("make %s of %d entries: %w", f.outer.name, f.entries, err)
		}
		err = f.put(m)
		if err == nil {
			err = d.putInner(f.outer, slot, m)
		}
		m.Close()
		if err != nil {
			return fmt.Errorf("fill %s: %w", f.outer.name, err)
		}
	}
	return nil
}

// batchSize keeps a batch's system call short, so that nothing else waits for it.
const batchSize = 4096

// putSparse writes the values of a new array that are not zero, in batches where the
// kernel has these (Linux 5.6).
func putSparse[V comparable](d *Datapath, m *ebpf.Map, values []V) error {
	var zero V
	keys := make([]uint32, 0, batchSize)
	some := make([]V, 0, batchSize)
	flush := func() error {
		defer func() { keys, some = keys[:0], some[:0] }()
		if len(keys) == 0 {
			return nil
		}
		if !d.options.Old {
			_, err := m.BatchUpdate(keys, some, nil)
			if !errors.Is(err, ebpf.ErrNotSupported) {
				return err
			}
		}
		for i, k := range keys {
			if err := m.Put(k, &some[i]); err != nil {
				return err
			}
		}
		return nil
	}
	for i, v := range values {
		if v == zero {
			continue
		}
		keys, some = append(keys, uint32(i)), append(some, v)
		if len(keys) == batchSize {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

// settleShared starts the buckets and counts of limits by port that are new in their slot.
func (d *Datapath) settleShared(g *generation, live *bpf.GatewayTables) error {
	for i := range g.tables.Port {
		if g.tables.Port[i].Port == live.Port[i].Port {
			continue
		}
		for count := range 3 {
			slot := uint32(bpf.GatewayLimitSlotSLOT_PORT) + uint32(i*3+count)
			if err := d.objects.SharedBuckets.Put(slot, &bpf.GatewaySharedBucket{}); err != nil {
				return fmt.Errorf("clear bucket of a new limit: %w", err)
			}
			if err := d.objects.LimitCounts.Put(slot, make([]bpf.GatewayOverCounts, len(d.reader.perCPU))); err != nil {
				return fmt.Errorf("clear counts of a new limit: %w", err)
			}
		}
	}
	return nil
}

// SetPinholes replaces who may always reach a port. They are no part of a generation, so
// no rule can close them.
func (d *Datapath) SetPinholes(holes []policy.Pinhole) error {
	list, err := encodePinholes(holes)
	if err == nil {
		err = d.objects.Pinholes.Put(uint32(0), list)
	}
	if err != nil {
		return fmt.Errorf("set pinholes of %s: %w", d.options.Interface, err)
	}
	return nil
}

// AddPinholes is SetPinholes, but for those that are there: they stay.
func (d *Datapath) AddPinholes(holes []policy.Pinhole) error {
	var live bpf.GatewayPinholeList
	list, err := encodePinholes(holes)
	if err == nil {
		err = d.objects.Pinholes.Lookup(uint32(0), &live)
	}
	for i := 0; err == nil && i < int(min(live.Count, maxPinholes)); i++ {
		if slices.Contains(list.Entry[:list.Count], live.Entry[i]) {
			continue
		}
		if list.Count == maxPinholes {
			err = fmt.Errorf("more than %d pinholes, with those that stay until the change is confirmed: leave some out, or change rules and pinholes apart", maxPinholes)
			break
		}
		list.Entry[list.Count] = live.Entry[i]
		list.Count++
	}
	if err == nil {
		err = d.objects.Pinholes.Put(uint32(0), list)
	}
	if err != nil {
		return fmt.Errorf("add pinholes to %s: %w", d.options.Interface, err)
	}
	return nil
}

// State is which generation holds, and how long a change still waits for its
// confirmation.
type State struct {
	Generation uint64        `json:"generation"`        // 0: no tables, all packets pass
	Waits      time.Duration `json:"waits,omitempty"`   // for Confirm; then it is undone
	Expired    bool          `json:"expired,omitempty"` // the attach was not confirmed: all packets pass
}

// State reads it.
func (d *Datapath) State() (State, error) {
	c, err := d.settle()
	if err != nil {
		return State{}, fmt.Errorf("read state of %s: %w", d.options.Interface, err)
	}
	t, err := d.liveTables(c.Current)
	if err != nil {
		return State{}, fmt.Errorf("read state of %s: %w", d.options.Interface, err)
	}
	s := State{Generation: t.Generation}
	if c.Deadline != 0 {
		if now := monotonic(); now < c.Deadline {
			s.Waits = time.Duration(c.Deadline - now)
		} else {
			s.Expired = true
		}
	}
	return s, nil
}

func monotonic() uint64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // cannot fail for this clock
	return uint64(ts.Nano())
}

// tick is how far behind the coarse clock may be: the kernel's own is by as much.
func tick() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &ts); err != nil {
		return 10 * time.Millisecond // the longest there is
	}
	return time.Duration(ts.Nano())
}

// sortedPorts are the ports that have limits.
func sortedPorts(t *policy.Tables) []uint16 {
	var out []uint16
	for _, l := range t.Limits {
		if l.Key == policy.ByPort {
			out = append(out, l.Port)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
