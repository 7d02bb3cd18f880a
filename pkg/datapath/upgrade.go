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

	"github.com/xgw-project/xgw/pkg/bpf"
)

// loadPrograms loads programs of this version onto the maps that are there.
func (d *Datapath) loadPrograms(names ...string) (map[string]*ebpf.Program, error) {
	spec, err := bpf.LoadGateway()
	if err != nil {
		return nil, err
	}
	if err := d.fit(spec); err != nil {
		return nil, err
	}
	if err := setSeed(spec, d.seed); err != nil {
		return nil, err
	}
	wanted := map[string]bool{}
	for _, name := range names {
		wanted[name] = true
	}
	for name := range spec.Programs {
		if !wanted[name] {
			delete(spec.Programs, name)
		}
	}
	present := map[string]*ebpf.Map{}
	for name, m := range d.objects.maps() {
		present[name] = *m
	}
	for _, name := range []string{bpf.GatewayMapWorkers, bpf.GatewayMapCpuSlots, bpf.GatewayMapSteered, bpf.GatewayMapExplained} {
		delete(spec.Maps, name)
	}
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: present})
	if err != nil {
		return nil, loadError(err)
	}
	defer c.Close()
	loaded := map[string]*ebpf.Program{}
	for _, name := range names {
		loaded[name] = c.DetachProgram(name)
	}
	return loaded, nil
}

// needTCIngress loads and pins the ingress program of tc, which few interfaces need.
func (d *Datapath) needTCIngress() error {
	if d.objects.TcIngress != nil {
		return nil
	}
	loaded, err := d.loadPrograms(tcIngress.name)
	if err != nil {
		return err
	}
	p := loaded[tcIngress.name]
	err = d.options.step("pin tc_ingress")
	if err == nil {
		err = p.Pin(filepath.Join(d.dir, tcIngress.name))
	}
	if err != nil {
		p.Close()
		return fmt.Errorf("pin tc_ingress: %w", err)
	}
	d.objects.TcIngress = p
	return nil
}

// Upgrade puts this version's programs in the place of those that run on the interface,
// under the live link: not one packet goes by unseen, and counters, tables and buckets
// stay. With an error everything is as it was. ErrLayout when the maps of the version that
// made them have another layout.
func (d *Datapath) Upgrade() error {
	if err := d.upgrade(); err != nil {
		return fmt.Errorf("upgrade %s: %w", d.options.Interface, err)
	}
	return nil
}

func (d *Datapath) upgrade() error {
	unlock, err := d.lock()
	if err != nil {
		return err
	}
	defer unlock()
	status := d.Status()
	if !status.Attached {
		return fmt.Errorf("%w: `%s` attaches this version", ErrNotAttached, d.options.Command("attach"))
	}
	names := []string{"xdp_ingress", tcEgress.name}
	if d.objects.TcIngress != nil {
		names = append(names, tcIngress.name)
	}
	if err := d.options.step("load new programs"); err != nil {
		return err
	}
	loaded, err := d.loadPrograms(names...)
	if err != nil {
		return err
	}
	// Pinned before they run: what a killed process leaves on a hook is known as ours.
	if err := d.pinNew(names, loaded); err != nil {
		closeAll(loaded)
		return err
	}
	if err := d.replaceAll(names, loaded, status.Mode); err != nil {
		d.removeNew(names)
		closeAll(loaded)
		return err
	}
	for _, name := range names {
		place := d.objects.programs()[name]
		(*place).Close()
		*place = loaded[name]
	}
	return d.settleOwner()
}

// replaceAll puts the programs in the place of those that run, and their pins in the place
// of the old ones; with an error the old ones run.
func (d *Datapath) replaceAll(names []string, loaded map[string]*ebpf.Program, mode Mode) error {
	var done []string
	back := func(err error) error {
		for _, name := range done {
			err = errors.Join(err, d.replace(name, *d.objects.programs()[name], mode))
		}
		return err
	}
	for _, name := range names {
		err := d.options.step("replace " + name)
		if err == nil {
			err = d.replace(name, loaded[name], mode)
		}
		if err != nil {
			return back(fmt.Errorf("replace %s: %w", name, err))
		}
		done = append(done, name)
	}
	if err := d.options.step("rename new pins"); err != nil {
		return back(err)
	}
	for _, name := range names {
		if err := os.Rename(d.newPin(name), filepath.Join(d.dir, name)); err != nil {
			return back(fmt.Errorf("rename new pin of %s: %w", name, err))
		}
	}
	return nil
}

func closeAll(programs map[string]*ebpf.Program) {
	for _, p := range programs {
		p.Close()
	}
}

func (d *Datapath) newPin(name string) string { return filepath.Join(d.dir, name+"-new") }

func (d *Datapath) removeNew(names []string) {
	for _, name := range names {
		_ = os.Remove(d.newPin(name))
	}
}

// pinNew pins the programs beside those that run.
func (d *Datapath) pinNew(names []string, loaded map[string]*ebpf.Program) error {
	for _, name := range names {
		err := d.options.step("pin new " + name)
		if err == nil {
			err = loaded[name].Pin(d.newPin(name))
		}
		if err != nil {
			d.removeNew(names)
			return fmt.Errorf("pin new %s: %w", name, err)
		}
	}
	return nil
}

// finishUpgrade makes the pins right where a process was killed in the midst of an upgrade:
// each hook may run the old program or the new one, and both do.
func (d *Datapath) finishUpgrade() error {
	var left []string
	for name := range d.objects.programs() {
		if _, err := os.Stat(d.newPin(name)); err == nil {
			left = append(left, name)
		}
	}
	if len(left) == 0 {
		return nil
	}
	unlock, err := d.lock()
	if err != nil {
		return err
	}
	defer unlock()
	for _, name := range left {
		fresh, err := openPin(d, filepath.Base(d.newPin(name)), ebpf.LoadPinnedProgram)
		if errors.Is(err, os.ErrNotExist) {
			continue // it was another process's, which has ended it meanwhile
		}
		if err != nil {
			return fmt.Errorf("open pinned %s: %w", d.newPin(name), err)
		}
		place := d.objects.programs()[name]
		old := *place
		*place = fresh
		if !d.runs(name) {
			*place, old = old, fresh
			err = os.Remove(d.newPin(name))
		} else {
			err = os.Rename(d.newPin(name), filepath.Join(d.dir, name))
		}
		old.Close()
		if err != nil {
			return fmt.Errorf("finish the upgrade of %s: %w", name, err)
		}
	}
	return nil
}

// runs tells whether the program that is held under the name is on its hook.
func (d *Datapath) runs(name string) bool {
	for _, h := range []*tcHook{&tcIngress, &tcEgress} {
		if h.name == name {
			id, _ := d.runsTC(h)
			return id != 0
		}
	}
	return d.ownsXDP(d.hook())
}

// replace puts the program in the place of what runs under its name.
func (d *Datapath) replace(name string, p *ebpf.Program, mode Mode) error {
	if name == "xdp_ingress" {
		if mode == ModeTC {
			return nil // loaded, but on no hook
		}
		return d.replaceXDP(p, mode)
	}
	h := &tcEgress
	if name == tcIngress.name {
		if mode != ModeTC {
			return nil
		}
		h = &tcIngress
	}
	l, err := openPin(d, h.pinName(), link.LoadPinnedLink)
	if err == nil {
		defer l.Close()
		return l.Update(p)
	}
	if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := netlink.FilterReplace(d.filter(h, p.FD())); err != nil {
		return fmt.Errorf("replace filter: %w", err)
	}
	return nil
}

func (d *Datapath) replaceXDP(p *ebpf.Program, mode Mode) error {
	l, err := openPin(d, pinXDPLink, link.LoadPinnedLink)
	if err == nil {
		defer l.Close()
		return l.Update(p)
	}
	if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	flags := nl.XDP_FLAGS_DRV_MODE
	if mode == ModeGeneric {
		flags = nl.XDP_FLAGS_SKB_MODE
	}
	if err := netlink.LinkSetXdpFdWithFlags(d.link, p.FD(), flags); err != nil {
		return fmt.Errorf("replace XDP program: %w", err)
	}
	return nil
}

// checkLayout compares the maps that are there with those that this version would make.
func (d *Datapath) checkLayout(spec *ebpf.CollectionSpec) error {
	for name, place := range d.objects.maps() {
		want, got := spec.Maps[name], *place
		if got.Type() != want.Type || got.KeySize() != want.KeySize || want.ValueSize != 0 && got.ValueSize() != want.ValueSize {
			return fmt.Errorf("%s: %w: `%s`, then attach again", name, ErrLayout, d.options.Command("detach"))
		}
	}
	return nil
}
