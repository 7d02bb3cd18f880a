// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"

	"github.com/cilium/ebpf"
)

const filterName = "xdp-filter"

// filter is xdp-filter's object with all of its features, as xdp-tools installs it: what
// is in its tables is dropped, all else passes.
type filter struct {
	*lane
	collection *ebpf.Collection
	records    []filterCount // one of each CPU
}

// filterCount is a record of its statistics: struct datarec of xdp-tools.
type filterCount struct{ Packets, Bytes uint64 }

// filterPaths is where distributions, and xdp-tools itself, put the object.
var filterPaths = []string{"/usr/lib/*/bpf/xdpfilt_alw_all.o", "/usr/lib*/bpf/xdpfilt_alw_all.o", "/usr/local/lib/bpf/xdpfilt_alw_all.o"}

const filterSource = 1 // MAP_FLAG_SRC: the entry is meant as a packet's source

func newFilter(addresses []netip.Addr) (*filter, error) {
	f, err := loadFilter()
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", filterName, err)
	}
	if err := f.fill(addresses); err != nil {
		f.Close()
		return nil, fmt.Errorf("fill tables of %s: %w", filterName, err)
	}
	return f, nil
}

func loadFilter() (*filter, error) {
	var paths []string
	for _, pattern := range filterPaths {
		found, _ := filepath.Glob(pattern) // the patterns are well-formed
		paths = append(paths, found...)
	}
	if len(paths) == 0 {
		return nil, errors.New("xdpfilt_alw_all.o is not installed: `apt-get install xdp-tools`")
	}
	spec, err := ebpf.LoadCollectionSpec(paths[0])
	if err != nil {
		return nil, err
	}
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinNone
	}
	for _, name := range []string{"filter_ipv4", "filter_ipv6"} {
		if spec.Maps[name] == nil {
			return nil, fmt.Errorf("%s has no map %s", paths[0], name)
		}
		spec.Maps[name].MaxEntries = maxPrefixes
	}
	c, err := ebpf.NewCollection(spec)
	if err != nil {
		return nil, err
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, err
	}
	f := &filter{collection: c, records: make([]filterCount, cpus)}
	program := c.Programs["xdpfilt_alw_all"]
	if program == nil || c.Maps["xdp_stats_map"] == nil {
		c.Close()
		return nil, fmt.Errorf("%s is not the version that is known here", paths[0])
	}
	if f.lane, err = newLane(filterName, program, f.read); err != nil {
		c.Close()
		return nil, err
	}
	return f, nil
}

func (f *filter) fill(addresses []netip.Addr) error {
	flags := make([]uint64, len(f.records))
	for i := range flags {
		flags[i] = filterSource
	}
	for _, a := range addresses {
		m := f.collection.Maps["filter_ipv4"]
		if a.Is6() {
			m = f.collection.Maps["filter_ipv6"]
		}
		if err := m.Put(a.AsSlice(), flags); err != nil {
			return err
		}
	}
	return nil
}

func (f *filter) read() (map[string]uint64, error) {
	counts := map[string]uint64{}
	for action, name := range []string{"aborted", "drop", "pass", "tx", "redirect"} {
		if err := f.collection.Maps["xdp_stats_map"].Lookup(uint32(action), f.records); err != nil {
			return nil, fmt.Errorf("read statistics of %s: %w", filterName, err)
		}
		for _, c := range f.records {
			counts[name] += c.Packets
		}
	}
	return counts, nil
}

func (f *filter) Close() error {
	err := f.lane.Close()
	f.collection.Close()
	return err
}
