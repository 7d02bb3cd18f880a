// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/xgw-project/xgw/pkg/bpf"
	"github.com/xgw-project/xgw/pkg/policy"
)

// Step is what a verdict does to packets of its source; each does what those before it do.
type Step = policy.Step

// Steps, which are the kernel plane's.
const (
	ThinSYNs = policy.ThinSYNs
	DropSYNs = policy.DropSYNs
	DropNew  = policy.DropNew
	DropAll  = policy.DropAll
)

var _ = [1]struct{}{}[DropAll-Step(bpf.GatewayVerdictStepSTEP_ALL)+ThinSYNs-Step(bpf.GatewayVerdictStepSTEP_THIN)]

// Verdict is what is held against a source for a time.
type Verdict struct {
	Source     netip.Addr // IPv4, or any address of an IPv6 /64
	Step       Step
	Reason     uint8         // the caller's
	TTL        time.Duration // 68 ms to 9 years; given and read in units of 67 ms
	Generation uint16        // of the policy that asked for it
}

// ErrExempt: a rule that allows the source, or a pinhole, speaks against a verdict.
var ErrExempt = errors.New("the source is exempt")

const (
	verdictTick = 26 // expires counts 2^26 ns
	verdictRows = 16384
)

// SetVerdict holds the verdict against its source, in the place of one that is there. The
// kernel plane ends it by itself when its time is over. When the source's row is full
// of live verdicts, the one that ends first makes room, and is returned with true.
//
// Only one process may set verdicts.
func (d *Datapath) SetVerdict(v Verdict) (Verdict, bool, error) {
	if v.Step < ThinSYNs || v.Step > DropAll {
		return Verdict{}, false, fmt.Errorf("set verdict on %s: no such step: %d", v.Source, v.Step)
	}
	now := monotonic() >> verdictTick
	ticks := max(uint64(v.TTL)>>verdictTick, 1)
	if v.TTL <= 0 || now+ticks > 1<<32-1 {
		return Verdict{}, false, fmt.Errorf("set verdict on %s: for %s: 68ms to 9 years are possible", v.Source, v.TTL)
	}
	if err := d.exempt(v.Source); err != nil {
		return Verdict{}, false, fmt.Errorf("set verdict on %s: %w", v.Source, err)
	}
	lost, full, err := d.changeVerdict(v.Source, &bpf.GatewayVerdict{
		Source: policy.AddressKey(v.Source), Expires: uint32(now + ticks),
		Step: uint8(v.Step), Reason: v.Reason, Generation: v.Generation,
	})
	if err == nil {
		err = d.tend(func(h *bpf.GatewayHeartbeatState) { h.Verdicts = max(h.Verdicts, now+ticks) })
	}
	return lost, full, err
}

// Beat tells the kernel plane that verdicts are tended, and not to look for any when the
// last has ended.
func (d *Datapath) Beat() error {
	now := monotonic()
	err := d.tend(func(h *bpf.GatewayHeartbeatState) {
		h.Beat = now
		if h.Verdicts <= now>>verdictTick {
			h.Verdicts = 0
		}
	})
	if err != nil {
		return fmt.Errorf("write heartbeat of %s: %w", d.options.Interface, err)
	}
	return nil
}

// tend changes the heartbeat's state, of which the process that sets verdicts is the only writer.
func (d *Datapath) tend(change func(*bpf.GatewayHeartbeatState)) error {
	var h bpf.GatewayHeartbeatState
	if err := d.objects.Heartbeat.Lookup(uint32(0), &h); err != nil {
		return fmt.Errorf("read heartbeat: %w", err)
	}
	change(&h)
	return d.objects.Heartbeat.Put(uint32(0), &h)
}

// exempt finds what the tables that hold say for the source.
func (d *Datapath) exempt(source netip.Addr) error {
	var holes bpf.GatewayPinholeList
	if err := d.objects.Pinholes.Lookup(uint32(0), &holes); err != nil {
		return fmt.Errorf("read pinholes: %w", err)
	}
	key := policy.AddressKey(source)
	for _, h := range holes.Entry[:min(holes.Count, maxPinholes)] {
		// A verdict is on all of an IPv6 /64, so only the upper half is compared.
		if source.Unmap().Is4() && h.HighMask == ^uint64(0) && key&h.LowMask == h.Low ||
			!source.Unmap().Is4() && h.Low>>32 != 0xffff && key&h.HighMask == h.High {
			return fmt.Errorf("%w: it is in a pinhole for administrators", ErrExempt)
		}
	}
	rule, ok, err := d.matchLive(source)
	if err != nil {
		return err
	}
	if ok && rule.Action == policy.Allow {
		return fmt.Errorf("%w: %s is allowed", ErrExempt, rule.Prefix)
	}
	return nil
}

// ClearVerdict ends what is held against the source, if anything is.
func (d *Datapath) ClearVerdict(source netip.Addr) error {
	_, _, err := d.changeVerdict(source, nil)
	return err
}

// changeVerdict rewrites the source's row: one system call to read it, one to write it.
func (d *Datapath) changeVerdict(source netip.Addr, v *bpf.GatewayVerdict) (Verdict, bool, error) {
	place := policy.AddressHash(source, d.seed) & (verdictRows - 1)
	key := policy.AddressKey(source)
	var row bpf.GatewayVerdictRow
	if err := d.objects.Verdicts.Lookup(place, &row); err != nil {
		return Verdict{}, false, fmt.Errorf("read verdicts: %w", err)
	}
	now := uint32(monotonic() >> verdictTick)
	victim := -1
	for i := range row.Entry {
		e := &row.Entry[i]
		if e.Source == key || e.Expires <= now {
			*e = bpf.GatewayVerdict{}
		}
		if victim < 0 || e.Expires < row.Entry[victim].Expires {
			victim = i
		}
	}
	var lost Verdict
	full := v != nil && row.Entry[victim].Source != 0
	if full {
		lost = decodeVerdict(&row.Entry[victim], now)
	}
	if v != nil {
		row.Entry[victim] = *v
	}
	if err := d.objects.Verdicts.Put(place, &row); err != nil {
		return Verdict{}, false, fmt.Errorf("write verdicts: %w", err)
	}
	return lost, full, nil
}

// Verdicts lists those that hold now.
func (d *Datapath) Verdicts() ([]Verdict, error) {
	var out []Verdict
	now := uint32(monotonic() >> verdictTick)
	var row bpf.GatewayVerdictRow
	for place := range uint32(verdictRows) {
		if err := d.objects.Verdicts.Lookup(place, &row); err != nil {
			return nil, fmt.Errorf("read verdicts of %s: %w", d.options.Interface, err)
		}
		for i := range row.Entry {
			if e := &row.Entry[i]; e.Source != 0 && e.Expires > now {
				out = append(out, decodeVerdict(e, now))
			}
		}
	}
	return out, nil
}

func decodeVerdict(e *bpf.GatewayVerdict, now uint32) Verdict {
	return Verdict{
		Source: policy.KeyAddress(e.Source), Step: Step(e.Step), Reason: e.Reason,
		TTL: time.Duration(e.Expires-now) << verdictTick, Generation: e.Generation,
	}
}
