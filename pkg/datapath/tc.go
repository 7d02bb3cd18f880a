// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The filters' place among those of the clsact qdisc, where there is no tcx.
const (
	filterPriority = 47
	filterHandle   = 1
)

// tcHook is one direction of tc: tcx (Linux 6.6), or a filter of the clsact qdisc.
type tcHook struct {
	name   string // of the program, the filter and, with _link, the pin
	attach ebpf.AttachType
	parent uint32
}

var (
	tcIngress = tcHook{"tc_ingress", ebpf.AttachTCXIngress, netlink.HANDLE_MIN_INGRESS}
	tcEgress  = tcHook{"tc_egress", ebpf.AttachTCXEgress, netlink.HANDLE_MIN_EGRESS}
)

func (h *tcHook) pinName() string { return h.name + "_link" }

func (h *tcHook) pin(d *Datapath) string { return filepath.Join(d.dir, h.pinName()) }

func (h *tcHook) program(d *Datapath) *ebpf.Program { return *d.objects.programs()[h.name] }

// filterName marks our filters.
func (h *tcHook) filterName() string { return "xgw " + h.name }

func (d *Datapath) attachTC(h *tcHook) error {
	if !d.options.Netlink && !d.options.Old {
		err := d.attachTCX(h)
		if !errors.Is(err, ebpf.ErrNotSupported) {
			return err
		}
	}
	return d.attachFilter(h)
}

func (d *Datapath) attachTCX(h *tcHook) error {
	l, err := link.AttachTCX(link.TCXOptions{
		Program: h.program(d), Attach: h.attach, Interface: d.link.Attrs().Index,
	})
	if err != nil {
		return fmt.Errorf("attach %s to tcx: %w", h.name, err)
	}
	defer l.Close()
	err = d.options.step("pin " + h.name + " link")
	if err == nil {
		err = l.Pin(h.pin(d))
	}
	if err != nil {
		return fmt.Errorf("pin %s link: %w", h.name, err)
	}
	return nil
}

func (d *Datapath) clsact() *netlink.Clsact {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: d.link.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
}

func (d *Datapath) filter(h *tcHook, fd int) *netlink.BpfFilter {
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: d.link.Attrs().Index, Parent: h.parent,
			Handle: filterHandle, Priority: filterPriority, Protocol: unix.ETH_P_ALL,
		},
		Fd: fd, Name: h.filterName(), DirectAction: true,
	}
}

func (d *Datapath) attachFilter(h *tcHook) error {
	mark := filepath.Join(d.dir, markClsact)
	err := netlink.QdiscAdd(d.clsact())
	switch {
	case err == nil:
		if err := os.Mkdir(mark, 0o700); err != nil {
			return errors.Join(fmt.Errorf("mark clsact qdisc as ours: %w", err), netlink.QdiscDel(d.clsact()))
		}
	case !errors.Is(err, unix.EEXIST):
		return fmt.Errorf("add clsact qdisc: this kernel needs CONFIG_NET_CLS_ACT and CONFIG_NET_SCH_INGRESS: %w", err)
	}
	err = d.options.step("add filter " + h.name)
	if err == nil {
		err = netlink.FilterAdd(d.filter(h, h.program(d).FD()))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("add filter %s: %w", h.name, err), d.removeClsact())
	}
	return nil
}

// removeClsact removes the qdisc if this product made it and nobody else uses it.
func (d *Datapath) removeClsact() error {
	if err := d.EndTrials(); err != nil {
		return err
	}
	mark := filepath.Join(d.dir, markClsact)
	if _, err := os.Stat(mark); err != nil {
		return nil
	}
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		left, err := netlink.FilterList(d.link, parent)
		if err != nil {
			continue
		}
		for _, f := range left {
			if b, ok := f.(*netlink.BpfFilter); ok && (b.Name == tcIngress.filterName() || b.Name == tcEgress.filterName()) {
				return nil // the other direction of ours: it will come here, too
			}
		}
		if len(left) > 0 {
			return os.Remove(mark)
		}
	}
	if err := netlink.QdiscDel(d.clsact()); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("remove clsact qdisc: %w", err)
	}
	return os.Remove(mark)
}

func (d *Datapath) detachTC(h *tcHook) error {
	l, err := openPin(d, h.pinName(), link.LoadPinnedLink)
	if err == nil {
		defer l.Close()
		_ = l.Detach() // a severed link, whose device is gone, cannot be detached
		return os.Remove(h.pin(d))
	}
	if !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("open %s link: %w", h.name, err)
	}
	f, err := d.ownFilter(h)
	if err != nil || f == nil {
		return err
	}
	if err := netlink.FilterDel(d.filter(h, -1)); err != nil {
		return fmt.Errorf("remove filter %s: %w", h.name, err)
	}
	return d.removeClsact()
}

// ownFilter finds our filter in the direction; nil when there is none.
func (d *Datapath) ownFilter(h *tcHook) (*netlink.BpfFilter, error) {
	filters, err := netlink.FilterList(d.link, h.parent)
	if err != nil {
		return nil, nil //nolint:nilerr // no clsact qdisc, so no filter
	}
	for _, f := range filters {
		if b, ok := f.(*netlink.BpfFilter); ok && b.Name == h.filterName() {
			return b, nil
		}
	}
	return nil, nil
}

// runsTC tells whether our program is on the interface in that direction, and how.
func (d *Datapath) runsTC(h *tcHook) (program uint32, hook string) {
	id, ok := programID(h.program(d))
	if !ok {
		return 0, ""
	}
	if l, err := openPin(d, h.pinName(), link.LoadPinnedLink); err == nil {
		defer l.Close()
		info, err := l.Info()
		if err != nil || info.TCX() == nil || int(info.TCX().Ifindex) != d.link.Attrs().Index || uint32(info.Program) != id || !d.listsTCX(h, id) {
			return 0, ""
		}
		return id, "link"
	}
	if f, err := d.ownFilter(h); err == nil && f != nil && uint32(f.Id) == id {
		return id, "netlink"
	}
	return 0, ""
}

// listsTCX asks the interface itself: an index means another one in another network
// namespace, and a program's id does not.
func (d *Datapath) listsTCX(h *tcHook, id uint32) bool {
	r, err := link.QueryPrograms(link.QueryOptions{Target: d.link.Attrs().Index, Attach: h.attach})
	return err == nil && slices.ContainsFunc(r.Programs, func(p link.AttachedProgram) bool { return uint32(p.ID) == id })
}

func programID(p *ebpf.Program) (uint32, bool) {
	if p == nil {
		return 0, false
	}
	info, err := p.Info()
	if err != nil {
		return 0, false
	}
	id, ok := info.ID()
	return uint32(id), ok
}
