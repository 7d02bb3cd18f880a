// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/xgw-project/xgw/pkg/config"
	"github.com/xgw-project/xgw/pkg/datapath"
	"github.com/xgw-project/xgw/pkg/policy"
)

// plane is the kernel plane of one interface for as long as the gateway runs, through
// whatever becomes of the device. Its methods are safe for concurrent use.
type plane struct {
	options datapath.Options
	mode    datapath.Mode
	policy  *policy.Policy
	confirm time.Duration // that the policy must be confirmed within; 0: it stays
	log     *slog.Logger
	fault   func(step string) error // nil: none

	mu        sync.Mutex
	d         *datapath.Datapath
	index     int            // of the device that d is attached to
	wanted    uint64         // the generation that waits to be confirmed
	inForce   *policy.Policy // that the kernel has last changed over to
	undone    bool           // it was not, and the kernel has gone back
	said      string         // the last trouble, said once
	fresh     bool           // d is another than it was, without its verdicts
	transient bool
}

// newPlane adopts what is attached, or attaches, and puts the policy in force. What is taken
// over from another supervisor gets this version's programs.
func newPlane(ic config.Interface, instance string, p *policy.Policy, confirm time.Duration, takeOver bool, log *slog.Logger) (*plane, error) {
	mode, err := datapath.ParseMode(ic.Mode)
	if err != nil {
		return nil, err
	}
	pl := &plane{options: datapath.Options{Interface: ic.Name, Instance: instance}, mode: mode, policy: p, confirm: confirm, log: log}
	if pl.d, err = adopt(pl.options, mode); err != nil {
		return nil, err
	}
	pl.transient = pl.d.Transient()
	if takeOver {
		if err := pl.d.Upgrade(); err != nil {
			return pl, err
		}
	}
	if err := pl.enforce(); err != nil {
		return pl, err
	}
	s := pl.d.Status()
	log.Info("kernel plane attached", "interface", ic.Name, "mode", s.Mode, "hook", s.Hook, "queues", s.Queues, "until_stop", pl.transient)
	return pl, nil
}

// enforce checks the mode and applies the policy to what pl.d is.
func (pl *plane) enforce() error {
	name := pl.options.Interface
	got := pl.d.Status().Mode
	if got != pl.mode && (pl.mode != datapath.ModeAuto || got == datapath.ModeGeneric) {
		return fmt.Errorf("interface %s is attached in %s mode, the configuration says %s: `%s` first, or change the configuration",
			name, got, pl.mode, pl.options.Command("detach"))
	}
	if got == datapath.ModeTC && pl.mode == datapath.ModeAuto {
		pl.log.Warn("no native XDP here: attached at tc, which costs more for each packet", "interface", name,
			"why", fmt.Sprintf("`%s` says", pl.options.Command("attach --plan")))
	}
	link, err := net.InterfaceByName(name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	pl.index = link.Index
	return pl.apply()
}

// apply puts the policy in force.
func (pl *plane) apply() error {
	name := pl.options.Interface
	// Until a change is confirmed it shuts out nobody: it may be undone without this process.
	set := pl.d.SetPinholes
	if pl.confirm > 0 {
		set = pl.d.AddPinholes
	}
	if err := pl.meets("pinholes", set(pl.policy.Pinholes)); err != nil {
		return err
	}
	if err := pl.d.ApplyUntil(&pl.policy.Tables, pl.confirm); err != nil {
		return err
	}
	pl.inForce, pl.undone = pl.policy, false
	if err := pl.meets("tables", nil); err != nil {
		return err
	}
	if pl.confirm > 0 {
		s, err := pl.d.State()
		if err != nil {
			return err
		}
		pl.wanted = s.Generation
		pl.log.Warn("rules and limits are undone unless they are confirmed", "interface", name,
			"within", pl.confirm, "with", fmt.Sprintf("xgw confirm %s", name))
	}
	return pl.d.Beat()
}

// meets is the error of a step, or the one that a test wants there.
func (pl *plane) meets(step string, err error) error {
	if err == nil && pl.fault != nil {
		err = pl.fault(step + " " + pl.options.Interface)
	}
	return err
}

// tend says that verdicts are tended, and attaches anew to a device that was made anew.
func (pl *plane) tend() {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	err := errors.Join(pl.d.Beat(), pl.settle())
	link, linkErr := net.InterfaceByName(pl.options.Interface)
	switch {
	case linkErr != nil:
		err = fmt.Errorf("interface %s is gone: the kernel plane waits for it: %w", pl.options.Interface, linkErr)
	case link.Index != pl.index:
		if err = pl.reattach(); err == nil {
			pl.log.Info("device was made anew: kernel plane attached again", "interface", pl.options.Interface, "mode", pl.d.Status().Mode)
		}
	case !pl.d.Status().Attached:
		err = fmt.Errorf("interface %s no longer runs the kernel plane: somebody took it off: `%s` puts it on, then start the gateway again",
			pl.options.Interface, pl.options.Command("attach"))
	}
	said := ""
	if err != nil {
		said = err.Error()
	}
	if said != "" && said != pl.said {
		pl.log.Error("kernel plane", "error", err)
	}
	pl.said = said
}

// replace puts another policy in force, or leaves everything as it was.
func (pl *plane) replace(p *policy.Policy, confirm time.Duration) error {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	old, oldConfirm := pl.policy, pl.confirm
	pl.policy, pl.confirm = p, confirm
	err := pl.apply()
	if err == nil {
		return nil
	}
	if pl.inForce == p { // the kernel has changed over already
		return errors.Join(err, pl.goBack(old))
	}
	pl.policy, pl.confirm = old, oldConfirm
	return errors.Join(err, pl.d.SetPinholes(old.Pinholes))
}

// await says whether the policy still waits to be confirmed, or is undone for want of it.
func (pl *plane) await() (waits, undone bool) {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	return pl.confirm > 0, pl.undone
}

func (pl *plane) confirmNow() error {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	if err := pl.settle(); err != nil || pl.confirm == 0 {
		return err
	}
	pl.confirm = 0
	return errors.Join(pl.d.Confirm(), pl.d.SetPinholes(pl.policy.Pinholes))
}

// revert takes back what replace has done, whether or not it was to be confirmed.
func (pl *plane) revert(p *policy.Policy) error {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	return pl.goBack(p)
}

// goBack makes a policy hold again, whether or not the present one was to be confirmed.
func (pl *plane) goBack(p *policy.Policy) error {
	pl.policy, pl.confirm = p, 0
	return errors.Join(pl.d.Undo(), pl.apply())
}

// settle learns what became of the policy that was to be confirmed.
func (pl *plane) settle() error {
	if pl.confirm == 0 {
		return nil
	}
	s, err := pl.d.State()
	if err != nil || s.Waits > 0 {
		return err
	}
	if s.Generation != pl.wanted {
		pl.undone = true
		return fmt.Errorf("interface %s: the rules and limits were not confirmed in time and are undone", pl.options.Interface)
	}
	pl.confirm = 0
	return pl.d.SetPinholes(pl.policy.Pinholes)
}

// reattach replaces what is left of the old device. Counters begin anew.
func (pl *plane) reattach() error {
	if err := datapath.Detach(pl.options); err != nil && !errors.Is(err, datapath.ErrNotAttached) {
		return err
	}
	d, err := Attach(pl.options, pl.mode, 0)
	if err != nil {
		return err
	}
	if pl.transient {
		if err := d.MarkTransient(); err != nil {
			return errors.Join(err, d.Detach(), d.Close())
		}
	}
	old := pl.d
	pl.d, pl.fresh = d, true
	return errors.Join(pl.enforce(), old.Close())
}

func (pl *plane) status() datapath.Status {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	return pl.d.Status()
}

// takeFresh tells, once, that the plane has forgotten its verdicts.
func (pl *plane) takeFresh() (fresh bool) {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	fresh, pl.fresh = pl.fresh, false
	return fresh
}

func (pl *plane) setVerdict(v datapath.Verdict) (lost datapath.Verdict, full bool, err error) {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	return pl.d.SetVerdict(v)
}

func (pl *plane) clearVerdict(source netip.Addr) error {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	return pl.d.ClearVerdict(source)
}

func (pl *plane) openLane(l datapath.Lane) error {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	return pl.d.OpenLane(l)
}

func (pl *plane) closeLane(l datapath.Lane) error {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	return pl.d.CloseLane(l)
}

func (pl *plane) press(cpu int, wait time.Duration) error {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	return pl.d.Press(cpu, wait)
}

// try begins a trial of the tables; its Close may come before or after that of the plane.
func (pl *plane) try(t *policy.Tables) (*datapath.Trial, error) {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	return pl.d.Try(t)
}

func (pl *plane) verdicts() ([]datapath.Verdict, error) {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	return pl.d.Verdicts()
}

func (pl *plane) counters(dst *datapath.Counters) error {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	return pl.d.Counters(dst)
}

// renew makes sure that this version's programs and this policy are those that hold, whatever
// another supervisor has done meanwhile.
func (pl *plane) renew() error {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	d, err := datapath.Open(pl.options)
	if err != nil {
		return err
	}
	old := pl.d
	pl.d = d
	return errors.Join(old.Close(), d.Upgrade(), pl.apply())
}

// leave lets go of the plane, which another supervisor has now.
func (pl *plane) leave() error {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	return pl.d.Close()
}

// close takes off what was attached for the time the gateway runs.
func (pl *plane) close() error {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	var err error
	if pl.d.Transient() {
		err = pl.d.Detach()
	}
	return errors.Join(err, pl.d.Close())
}
