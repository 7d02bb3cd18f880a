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
	"golang.org/x/sys/unix"
)

// The filter's place among those of the clsact qdisc, where there is no tcx.
const (
	filterName     = "xgw tc_egress"
	filterPriority = 47
	filterHandle   = 1
)

// attachEgress uses tcx (Linux 6.6), or a filter of the clsact qdisc.
func (d *Datapath) attachEgress() error {
	if !d.options.Netlink && !d.options.Old {
		err := d.attachTCX()
		if !errors.Is(err, ebpf.ErrNotSupported) {
			return err
		}
	}
	return d.attachFilter()
}

func (d *Datapath) attachTCX() error {
	l, err := link.AttachTCX(link.TCXOptions{
		Program: d.objects.TcEgress, Attach: ebpf.AttachTCXEgress, Interface: d.link.Attrs().Index,
	})
	if err != nil {
		return fmt.Errorf("attach to tcx egress: %w", err)
	}
	defer l.Close()
	err = d.options.step("pin egress link")
	if err == nil {
		err = l.Pin(filepath.Join(d.dir, pinEgressLink))
	}
	if err != nil {
		return fmt.Errorf("pin egress link: %w", err)
	}
	return nil
}

func (d *Datapath) clsact() *netlink.Clsact {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: d.link.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
}

func (d *Datapath) filter(fd int) *netlink.BpfFilter {
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: d.link.Attrs().Index, Parent: netlink.HANDLE_MIN_EGRESS,
			Handle: filterHandle, Priority: filterPriority, Protocol: unix.ETH_P_ALL,
		},
		Fd: fd, Name: filterName, DirectAction: true,
	}
}

func (d *Datapath) attachFilter() error {
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
	err = d.options.step("add filter")
	if err == nil {
		err = netlink.FilterAdd(d.filter(d.objects.TcEgress.FD()))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("add egress filter: %w", err), d.removeClsact())
	}
	return nil
}

// removeClsact removes the qdisc if this product made it and nobody else uses it.
func (d *Datapath) removeClsact() error {
	mark := filepath.Join(d.dir, markClsact)
	if _, err := os.Stat(mark); err != nil {
		return nil
	}
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		if left, err := netlink.FilterList(d.link, parent); err == nil && len(left) > 0 {
			return os.Remove(mark)
		}
	}
	if err := netlink.QdiscDel(d.clsact()); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("remove clsact qdisc: %w", err)
	}
	return os.Remove(mark)
}

func (d *Datapath) detachEgress() error {
	l, err := link.LoadPinnedLink(filepath.Join(d.dir, pinEgressLink), nil)
	if err == nil {
		defer l.Close()
		_ = l.Detach() // a severed link, whose device is gone, cannot be detached
		return l.Unpin()
	}
	if !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("open egress link: %w", err)
	}
	filters, err := netlink.FilterList(d.link, netlink.HANDLE_MIN_EGRESS)
	if err != nil {
		return nil // no clsact qdisc, so no filter
	}
	for _, f := range filters {
		if b, ok := f.(*netlink.BpfFilter); ok && b.Name == filterName {
			if err := netlink.FilterDel(d.filter(-1)); err != nil {
				return fmt.Errorf("remove egress filter: %w", err)
			}
		}
	}
	return d.removeClsact()
}
