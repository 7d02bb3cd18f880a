// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Mode is how the ingress program runs on an interface.
type Mode string

const (
	// ModeNative runs XDP in the driver, before the kernel makes an skb.
	ModeNative Mode = "native"
	// ModeGeneric runs XDP after it: works anywhere, costs as much as tc, and sees
	// packets that GRO has merged as one.
	ModeGeneric Mode = "generic"
	// ModeTC runs at tc ingress: works anywhere, and beside another owner's XDP program.
	ModeTC Mode = "tc"
	// ModeAuto is native where the driver can, else tc; never generic.
	ModeAuto Mode = "auto"
)

// ParseMode reads a mode's name.
func ParseMode(s string) (Mode, error) {
	switch m := Mode(s); m {
	case ModeNative, ModeGeneric, ModeTC, ModeAuto:
		return m, nil
	}
	return "", fmt.Errorf("unknown mode %q: it is native, generic, tc or auto", s)
}

// Status is what the kernel says of an interface's hook.
type Status struct {
	Interface string `json:"interface"`
	Directory string `json:"directory"`
	Attached  bool   `json:"attached"`         // our program is on the hook
	Mode      Mode   `json:"mode,omitempty"`   // of what is attached, ours or not
	Hook      string `json:"hook,omitempty"`   // link or netlink
	Program   uint32 `json:"program_id"`       // of what is attached, 0 for none
	Queues    int    `json:"queues,omitempty"` // receive queues with counters of their own
}

// Attach puts the programs on the interface's hooks: all of them or, with an
// error, none. ErrForeign when the XDP hook has an owner, ErrNoNative when the
// driver refuses native mode; a slower mode is taken only when asked for, and auto is
// asking for tc. Status tells what was got.
func (d *Datapath) Attach(mode Mode) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("attach %s: %w", d.options.Interface, err)
		}
	}()
	if mode != ModeTC {
		if err := d.refuseForeign(); err != nil {
			return err
		}
	}
	// The ingress program comes last: where a killed process left it attached, the other one
	// is there as well.
	if err := d.options.step("attach egress"); err != nil {
		return err
	}
	if err := d.attachTC(&tcEgress); err != nil {
		return err
	}
	if err := d.attachIngress(mode); err != nil {
		return errors.Join(err, d.detachTC(&tcEgress))
	}
	return d.settleOwner()
}

func (d *Datapath) attachIngress(mode Mode) error {
	if err := d.options.step("attach ingress"); err != nil {
		return err
	}
	switch mode {
	case ModeTC:
		return d.attachTCIngress()
	case ModeAuto:
		err := d.attachXDP(ModeNative)
		if errors.Is(err, ErrNoNative) {
			return d.attachTCIngress()
		}
		return err
	default:
		return d.attachXDP(mode)
	}
}

func (d *Datapath) attachTCIngress() error {
	if err := d.needTCIngress(); err != nil {
		return err
	}
	return d.attachTC(&tcIngress)
}

func (d *Datapath) detachIngress() error { return errors.Join(d.detachXDP(), d.detachTC(&tcIngress)) }

// Detach takes the programs off the interface and removes their pins, with all
// counts. It does so also for pins that are stale. What others attached stays.
func (d *Datapath) Detach() error {
	err := errors.Join(d.detachIngress(), d.detachTC(&tcEgress))
	if err != nil {
		return fmt.Errorf("detach %s: %w", d.options.Interface, err)
	}
	return d.removePins()
}

// Detach removes what Open would open, and what it would call stale or of another
// layout, also from an interface that has another name by now. ErrNotAttached when there is
// nothing, ErrElsewhere when another network namespace has it.
func Detach(o Options) error {
	d, err := prepare(o)
	if errors.Is(err, ErrStale) {
		d, err = prepareGone(o)
	}
	if err != nil {
		return fmt.Errorf("detach %s: %w", o.Interface, err)
	}
	if _, err := os.Stat(d.dir); err != nil {
		return fmt.Errorf("detach %s: %w", o.Interface, ErrNotAttached)
	}
	// Programs may be missing when the pins are broken; then nothing of ours can be
	// told to be on the hook, and links go with their pins.
	for name, place := range d.objects.programs() {
		*place, _ = openPin(d, name, ebpf.LoadPinnedProgram)
	}
	defer d.Close()
	if !d.Status().Attached {
		switch where := d.findOther(); where.is {
		case otherName:
			d.link = where.link
		case otherNamespace:
			return fmt.Errorf("detach %s: %w", o.Interface, d.elsewhere(where))
		}
	}
	return d.Detach()
}

// Status reads the hook; it is never an error, an unreadable one is not attached.
func (d *Datapath) Status() Status {
	s := Status{Interface: d.options.Interface, Directory: d.dir, Queues: d.queues}
	if id, hook := d.runsTC(&tcIngress); id != 0 {
		s.Program, s.Hook, s.Mode, s.Attached = id, hook, ModeTC, true
		return s
	}
	x := d.hook()
	if x == nil {
		return s
	}
	s.Program = x.ProgId
	s.Mode = modeOf(x)
	s.Attached = d.ownsXDP(x)
	s.Hook = "netlink"
	if _, err := os.Stat(filepath.Join(d.dir, pinXDPLink)); err == nil {
		s.Hook = "link"
	}
	return s
}

// hook reads what is on the interface's XDP hook now; nil for nothing.
func (d *Datapath) hook() *netlink.LinkXdp {
	l, err := netlink.LinkByIndex(d.link.Attrs().Index)
	if err != nil || l.Attrs().Xdp == nil || !l.Attrs().Xdp.Attached {
		return nil
	}
	return l.Attrs().Xdp
}

func modeOf(x *netlink.LinkXdp) Mode {
	if x.AttachMode == nl.XDP_ATTACHED_SKB {
		return ModeGeneric
	}
	return ModeNative
}

func (d *Datapath) ownsXDP(x *netlink.LinkXdp) bool {
	if x == nil {
		return false
	}
	id, ok := programID(d.objects.XdpIngress)
	return ok && id == x.ProgId
}

func (d *Datapath) refuseForeign() error {
	x := d.hook()
	if x == nil {
		return nil
	}
	if d.ownsXDP(x) {
		return fmt.Errorf("%w (id %d): `%s` shows it", ErrExists, x.ProgId, d.options.Command("status"))
	}
	name := "name unknown"
	if p, err := ebpf.NewProgramFromID(ebpf.ProgramID(x.ProgId)); err == nil {
		if info, err := p.Info(); err == nil {
			name = info.Name
		}
		p.Close()
	}
	mend := "detach it first, its owner knows how, or use --mode tc"
	if name == "xdp_dispatcher" {
		mend = "it is libxdp's dispatcher: `xdp-loader status " + d.options.Interface + "` names the programs it holds, " +
			"`xdp-loader unload " + d.options.Interface + " --all` takes them off; or use --mode tc, beside it"
	}
	return fmt.Errorf("%w (id %d, %s): %s", ErrForeign, x.ProgId, name, mend)
}

func (d *Datapath) attachXDP(mode Mode) error {
	if !d.options.Netlink && !d.options.Old {
		err := d.attachXDPLink(mode)
		// Kernels with links but none for XDP (5.7, 5.8) say EINVAL; netlink tells
		// whether that was the kernel or the driver.
		if !errors.Is(err, ebpf.ErrNotSupported) && !errors.Is(err, unix.EINVAL) {
			return err
		}
	}
	flags := nl.XDP_FLAGS_UPDATE_IF_NOEXIST | nl.XDP_FLAGS_DRV_MODE
	if mode == ModeGeneric {
		flags = nl.XDP_FLAGS_UPDATE_IF_NOEXIST | nl.XDP_FLAGS_SKB_MODE
	}
	if err := netlink.LinkSetXdpFdWithFlags(d.link, d.objects.XdpIngress.FD(), flags); err != nil {
		return d.attachError(mode, err)
	}
	return nil
}

func (d *Datapath) attachXDPLink(mode Mode) error {
	flags := link.XDPDriverMode
	if mode == ModeGeneric {
		flags = link.XDPGenericMode
	}
	l, err := link.AttachXDP(link.XDPOptions{
		Program: d.objects.XdpIngress, Interface: d.link.Attrs().Index, Flags: flags,
	})
	if errors.Is(err, ebpf.ErrNotSupported) {
		return err
	}
	if err != nil {
		return d.attachError(mode, err)
	}
	// The link ends with its descriptor unless it is pinned.
	defer l.Close()
	err = d.options.step("pin xdp link")
	if err == nil {
		err = l.Pin(filepath.Join(d.dir, pinXDPLink))
	}
	if err != nil {
		return fmt.Errorf("pin XDP link: %w", err)
	}
	return nil
}

// attachError says what an operator can do about a refusal of the driver.
func (d *Datapath) attachError(mode Mode, err error) error {
	attrs := d.link.Attrs()
	if mode == ModeGeneric {
		return fmt.Errorf("attach XDP in generic mode: %w", err)
	}
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%w: the driver of this %s device has none: use `--mode tc`, or the slower `--mode generic`: %w",
			ErrNoNative, d.link.Type(), err)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ERANGE):
		return fmt.Errorf("%w: the driver refused; MTU is %d, try `ip link set %s mtu 1500`, `ethtool -K %s lro off`, `--mode tc`, or the slower `--mode generic`: %w",
			ErrNoNative, attrs.MTU, attrs.Name, attrs.Name, err)
	}
	return fmt.Errorf("attach XDP in native mode: %w", err)
}

// detachXDP leaves the hook alone unless our program is on it. Unpinning the
// link would detach as well, but only after the last descriptor is closed.
func (d *Datapath) detachXDP() error {
	l, err := openPin(d, pinXDPLink, link.LoadPinnedLink)
	if err == nil {
		defer l.Close()
		// Detach fails on a link whose device is gone, which is as good.
		_ = l.Detach()
		return os.Remove(filepath.Join(d.dir, pinXDPLink))
	}
	if !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("open XDP link: %w", err)
	}
	x := d.hook()
	if !d.ownsXDP(x) {
		return nil
	}
	flags := nl.XDP_FLAGS_DRV_MODE
	if modeOf(x) == ModeGeneric {
		flags = nl.XDP_FLAGS_SKB_MODE
	}
	if err := netlink.LinkSetXdpFdWithFlags(d.link, -1, flags); err != nil {
		return fmt.Errorf("take XDP program off: %w", err)
	}
	return nil
}
