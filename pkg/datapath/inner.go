// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/cilium/ebpf"
)

// An outer map tells its inner ones' numbers, and only CAP_SYS_ADMIN may open a map by its
// number. So those of either slot are pinned, too, under the name and the slot.

// outerMap holds a part of a generation.
type outerMap struct {
	*ebpf.Map
	name string // of its inner maps
}

func (d *Datapath) tablesMap() outerMap  { return outerMap{d.objects.GenTables, "tables"} }
func (d *Datapath) portsMap() outerMap   { return outerMap{d.objects.GenPorts, "ports"} }
func (d *Datapath) rowsMap() outerMap    { return outerMap{d.objects.GenRows, "prefix_rows"} }
func (d *Datapath) bucketsMap() outerMap { return outerMap{d.objects.GenBuckets, "prefix_buckets"} }

func (d *Datapath) innerPin(o outerMap, slot uint32) string {
	return filepath.Join(d.dir, o.name+"_"+strconv.FormatUint(uint64(slot), 10))
}

// newInner ends the name of a pin whose map may not be in its slot yet.
const newInner = "-new"

// openInner opens the slot's map, which the caller closes; ebpf.ErrKeyNotExist where there is none.
func (d *Datapath) openInner(o outerMap, slot uint32) (*ebpf.Map, error) {
	var id uint32
	if err := o.Lookup(slot, &id); err != nil {
		return nil, err
	}
	if m := d.pinnedInner(o, slot, id); m != nil {
		return m, nil
	}
	m, err := ebpf.NewMapFromID(ebpf.MapID(id))
	if errors.Is(err, os.ErrPermission) {
		return nil, fmt.Errorf("map %d has no pin in %s, and without CAP_SYS_ADMIN there is no other way to it: `systemctl restart` the gateway: %w", id, d.dir, err)
	}
	return m, err
}

// pinnedInner is the map of that number, if it has a pin. A process that was killed, or one of
// a version that pins none, may have left pins of others.
func (d *Datapath) pinnedInner(o outerMap, slot, id uint32) *ebpf.Map {
	if d.dir == "" {
		return nil
	}
	for _, ending := range []string{"", newInner} {
		m, err := openPin(d, filepath.Base(d.innerPin(o, slot))+ending, ebpf.LoadPinnedMap)
		if err != nil {
			continue
		}
		if info, err := m.Info(); err == nil {
			if got, ok := info.ID(); ok && uint32(got) == id {
				return m
			}
		}
		m.Close()
	}
	return nil
}

// putInner makes m the slot's map, and its pin the slot's pin.
func (d *Datapath) putInner(o outerMap, slot uint32, m *ebpf.Map) error {
	if d.dir == "" {
		return o.Put(slot, m)
	}
	pin := d.innerPin(o, slot)
	_ = os.Remove(pin + newInner) // of a process that was killed here
	if err := m.Pin(pin + newInner); err != nil {
		return err
	}
	if err := o.Put(slot, m); err != nil {
		return errors.Join(err, os.Remove(pin+newInner))
	}
	return os.Rename(pin+newInner, pin)
}

// pinInner pins what a version that pinned no inner maps left; it needs CAP_SYS_ADMIN.
func (d *Datapath) pinInner() error {
	unlock, err := d.lock()
	if err != nil {
		return err
	}
	defer unlock()
	for _, o := range []outerMap{d.tablesMap(), d.portsMap(), d.rowsMap(), d.bucketsMap()} {
		for slot := range uint32(noGeneration) {
			m, err := d.openInner(o, slot)
			if errors.Is(err, ebpf.ErrKeyNotExist) {
				continue
			}
			if err == nil && !m.IsPinned() {
				_ = os.Remove(d.innerPin(o, slot))
				err = m.Pin(d.innerPin(o, slot))
			}
			if err != nil {
				return fmt.Errorf("pin %s of slot %d: %w", o.name, slot, err)
			}
			m.Close()
		}
	}
	return nil
}
