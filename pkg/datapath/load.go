// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/bpf"
)

// fixedBuckets is the size of the prefix table where it cannot be chosen for each
// generation (Linux before 5.10): 4 MiB, room for some 200,000 IPv4 prefixes.
const fixedBuckets = 65536

// fit adapts the spec to the machine: sizes, facts, and what stands in for helpers
// that this kernel does not have.
func (d *Datapath) fit(spec *ebpf.CollectionSpec) error {
	if err := resize(spec, d.queues); err != nil {
		return err
	}
	if err := fitMaps(spec, d.options.Old); err != nil {
		return err
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("count possible CPUs: %w", err)
	}
	spec.Maps[bpf.GatewayMapCpus].MaxEntries = uint32(cpus)
	spec.Maps[bpf.GatewayMapPressure].MaxEntries = uint32(cpus)
	frags := !d.options.Old && features.HaveProgramHelper(ebpf.XDP, asm.FnXdpGetBuffLen) == nil
	if frags {
		spec.Programs["xdp_ingress"].Flags |= unix.BPF_F_XDP_HAS_FRAGS
		if err := spec.Variables[bpf.GatewayVarFrags].Set(uint32(1)); err != nil {
			return fmt.Errorf("set frags: %w", err)
		}
	}
	none := bpf.GatewayControlState{Current: noGeneration, Fallback: noGeneration}
	spec.Maps[bpf.GatewayMapControl].Contents = []ebpf.MapKV{{Key: uint32(0), Value: &none}}
	standIn(spec, d.options.Old)
	return nil
}

// resize gives the tables a row for each receive queue and one for queues that may come
// later.
func resize(spec *ebpf.CollectionSpec, queues int) error {
	spec.Maps[bpf.GatewayMapIngressCounts].MaxEntries = uint32(queues) + 1
	spec.Maps[bpf.GatewayMapQueueBuckets].MaxEntries = uint32(queues) + 1
	if err := spec.Variables[bpf.GatewayVarQueueRows].Set(uint32(queues)); err != nil {
		return fmt.Errorf("set queue_rows: %w", err)
	}
	return setSeed(spec, rand.Uint64())
}

// setSeed gives it to the programs, and to those who open their maps later.
func setSeed(spec *ebpf.CollectionSpec, seed uint64) error {
	if err := spec.Variables[bpf.GatewayVarHashSeed].Set(seed); err != nil {
		return fmt.Errorf("set hash_seed: %w", err)
	}
	spec.Maps[bpf.GatewayMapSeed].Contents = []ebpf.MapKV{{Key: uint32(0), Value: seed}}
	return nil
}

// align makes values start at a page: otherwise they start behind the kernel's own header,
// and each that was laid out to fill a cache line lies in two. (Linux 5.5; that the maps
// could be mapped is of no use here.)
func align(spec *ebpf.CollectionSpec, old bool) {
	if old || !haveMapFlag(unix.BPF_F_MMAPABLE) {
		return
	}
	for _, m := range []*ebpf.MapSpec{
		spec.Maps[bpf.GatewayMapGenBuckets].InnerMap, spec.Maps[bpf.GatewayMapVerified], spec.Maps[bpf.GatewayMapVerifiedStates], spec.Maps[bpf.GatewayMapVerdicts],
		spec.Maps[bpf.GatewayMapSourceSketch], spec.Maps[bpf.GatewayMapPrefixSketch], spec.Maps[bpf.GatewayMapOwnFlows],
	} {
		m.Flags |= unix.BPF_F_MMAPABLE
	}
}

// standIn replaces calls of helpers that are newer than the kernel. On Linux 5.4 code
// that is never reached is checked as well, so a switch in the program is not enough.
func standIn(spec *ebpf.CollectionSpec, old bool) {
	ticks := !old && features.HaveProgramHelper(ebpf.XDP, asm.FnJiffies64) == nil
	length := !old && features.HaveProgramHelper(ebpf.XDP, asm.FnXdpGetBuffLen) == nil
	for _, p := range spec.Programs {
		for i := range p.Instructions {
			ins := &p.Instructions[i]
			if !ins.IsBuiltinCall() {
				continue
			}
			switch asm.BuiltinFunc(ins.Constant) {
			case asm.FnJiffies64:
				if !ticks {
					ins.Constant = int64(asm.FnKtimeGetNs)
				}
			case asm.FnXdpGetBuffLen:
				if !length { // the program does not get here: frags is 0
					replacement := asm.Mov.Imm(asm.R0, 0)
					replacement.Metadata = ins.Metadata
					*ins = replacement
				}
			}
		}
	}
}

// innerMapFlag lets inner arrays differ in size from their template (BPF_F_INNER_MAP).
const innerMapFlag = 0x1000

// fitMaps gives the templates of inner maps their types, for bpftool, and sizes of
// their own where the kernel can; and all maps their alignment.
func fitMaps(spec *ebpf.CollectionSpec, old bool) error {
	fixed := old || !haveInnerSizes()
	types := map[string]string{
		bpf.GatewayMapGenTables: "tables", bpf.GatewayMapGenPorts: "port_row", bpf.GatewayMapGenBuckets: "prefix_bucket",
	}
	for _, name := range []string{bpf.GatewayMapGenTables, bpf.GatewayMapGenPorts, bpf.GatewayMapGenRows, bpf.GatewayMapGenBuckets} {
		inner := spec.Maps[name].InnerMap
		inner.Name = name[len("gen_"):]
		if value, ok := types[name]; ok {
			var s *btf.Struct
			if err := spec.Types.TypeByName(value, &s); err != nil {
				return fmt.Errorf("read type of %s from BTF: %w", name, err)
			}
			inner.Key, inner.Value = &btf.Int{Name: "slot", Size: 4}, s
		}
	}
	// Only where sizes differ: of such an array the kernel cannot inline the lookup.
	if buckets := spec.Maps[bpf.GatewayMapGenBuckets].InnerMap; fixed {
		buckets.MaxEntries = fixedBuckets
	} else {
		buckets.Flags |= innerMapFlag
	}
	align(spec, old)
	return nil
}

func haveInnerSizes() bool { return haveMapFlag(innerMapFlag) }

func haveMapFlag(flag uint32) bool {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1, Flags: flag})
	if err != nil {
		return false
	}
	m.Close()
	return true
}

func innerSpecs(spec *ebpf.CollectionSpec, o *objects) map[*ebpf.Map]*ebpf.MapSpec {
	return map[*ebpf.Map]*ebpf.MapSpec{
		o.GenTables:  spec.Maps[bpf.GatewayMapGenTables].InnerMap,
		o.GenPorts:   spec.Maps[bpf.GatewayMapGenPorts].InnerMap,
		o.GenRows:    spec.Maps[bpf.GatewayMapGenRows].InnerMap,
		o.GenBuckets: spec.Maps[bpf.GatewayMapGenBuckets].InnerMap,
	}
}

func newEncoding(o *Options) (encoding, error) {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return encoding{}, fmt.Errorf("count possible CPUs: %w", err)
	}
	e := encoding{cpus: cpus, fixed: o.Old || !haveInnerSizes()}
	if !o.Old && features.HaveProgramHelper(ebpf.XDP, asm.FnJiffies64) == nil {
		e.tick = tick()
	}
	return e, nil
}

// onlineCPUs lists the CPUs that run.
func onlineCPUs() ([]int, error) {
	text, err := os.ReadFile("/sys/devices/system/cpu/online")
	if err != nil {
		return nil, fmt.Errorf("list CPUs: %w", err)
	}
	var cpus []int
	for part := range strings.SplitSeq(strings.TrimSpace(string(text)), ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		from, err1 := strconv.Atoi(first)
		to, err2 := strconv.Atoi(last)
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("list CPUs: %w", err)
		}
		for cpu := from; cpu <= to; cpu++ {
			cpus = append(cpus, cpu)
		}
	}
	return cpus, nil
}
