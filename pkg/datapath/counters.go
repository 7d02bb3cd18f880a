// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"
	"strconv"
	"strings"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/xgw-project/xgw/pkg/bpf"
)

// QueueCount is what one queue counted under one outcome since the datapath was
// created. Bytes are whole frames without FCS.
type QueueCount struct {
	// Queue is the receive queue; Other for queues that did not exist at creation.
	// In egress rows it is All: tc runs before a transmit queue is chosen.
	Queue   int    `json:"queue"`
	Verdict string `json:"verdict"` // pass or drop
	Reason  string `json:"reason"`  // what follows the verdict in the outcome's name
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// QueueName is the queue as a label: its number, "other", or "all" for egress.
func (q *QueueCount) QueueName() string {
	switch q.Queue {
	case Other:
		return "other"
	case All:
		return "all"
	}
	return strconv.Itoa(q.Queue)
}

// Values of QueueCount.Queue that are no queue.
const (
	Other = -1
	All   = -2
)

// Counters are all counts of one interface: every outcome of every row, zeros
// included, in the order of rows and of the outcomes in the object.
type Counters struct {
	Ingress []QueueCount
	Egress  []QueueCount
}

// outcome is a counter's name, as BTF has it, in two parts.
type outcome struct{ verdict, reason string }

func (o outcome) String() string { return o.verdict + "_" + o.reason }

// counterReader reads the per-CPU tables into buffers that it keeps.
type counterReader struct {
	objects  *objects
	outcomes []outcome
	queues   int
	perCPU   []bpf.GatewayQueueCounts
}

func newCounterReader(spec *ebpf.CollectionSpec, o *objects, queues int) (*counterReader, error) {
	names, err := outcomeNames(spec.Types)
	if err != nil {
		return nil, err
	}
	size := uint32(unsafe.Sizeof(bpf.GatewayQueueCounts{}))
	for _, m := range []*ebpf.Map{o.IngressCounts, o.EgressCounts} {
		if m.ValueSize() != size {
			return nil, fmt.Errorf("counters have %d bytes a row, this version's have %d: %w: detach, then attach again",
				m.ValueSize(), size, ErrLayout)
		}
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("count possible CPUs: %w", err)
	}
	return &counterReader{
		objects: o, outcomes: names, queues: queues, perCPU: make([]bpf.GatewayQueueCounts, cpus),
	}, nil
}

// outcomeNames reads the names of struct queue_counts from the object's BTF.
func outcomeNames(types *btf.Spec) ([]outcome, error) {
	var row *btf.Struct
	if err := types.TypeByName("queue_counts", &row); err != nil {
		return nil, fmt.Errorf("read outcome names from BTF: %w", err)
	}
	names := make([]outcome, len(row.Members))
	for i, m := range row.Members {
		verdict, reason, ok := strings.Cut(m.Name, "_")
		if !ok || (verdict != "pass" && verdict != "drop") {
			return nil, fmt.Errorf("outcome %q in BTF: want pass_REASON or drop_REASON", m.Name)
		}
		names[i] = outcome{verdict, reason}
	}
	return names, nil
}

// Counters reads all counts into dst, whose slices are used again. Rows are read
// one after the other while packets arrive: sums are exact at rest.
func (d *Datapath) Counters(dst *Counters) error {
	r := d.reader
	dst.Ingress, dst.Egress = dst.Ingress[:0], dst.Egress[:0]
	var err error
	for row := 0; row <= r.queues; row++ {
		queue := row
		if row == r.queues {
			queue = Other
		}
		if dst.Ingress, err = r.appendRow(dst.Ingress, r.objects.IngressCounts, uint32(row), queue); err != nil {
			return fmt.Errorf("read counters of %s: %w", d.options.Interface, err)
		}
	}
	if dst.Egress, err = r.appendRow(dst.Egress, r.objects.EgressCounts, 0, All); err != nil {
		return fmt.Errorf("read counters of %s: %w", d.options.Interface, err)
	}
	return nil
}

func (r *counterReader) appendRow(dst []QueueCount, m *ebpf.Map, row uint32, queue int) ([]QueueCount, error) {
	if err := m.Lookup(row, r.perCPU); err != nil {
		return dst, fmt.Errorf("look up row %d: %w", row, err)
	}
	first := len(dst)
	for _, o := range r.outcomes {
		dst = append(dst, QueueCount{Queue: queue, Verdict: o.verdict, Reason: o.reason})
	}
	for cpu := range r.perCPU {
		for i, c := range outcomeCounts(&r.perCPU[cpu]) {
			dst[first+i].Packets += c.Packets
			dst[first+i].Bytes += c.Bytes
		}
	}
	return dst, nil
}

// outcomeCounts views a row as the array that the BPF side indexes by outcome.
func outcomeCounts(row *bpf.GatewayQueueCounts) []bpf.GatewayCount {
	const n = unsafe.Sizeof(*row) / unsafe.Sizeof(bpf.GatewayCount{})
	return unsafe.Slice((*bpf.GatewayCount)(unsafe.Pointer(row)), n)
}

// LimitCount is how many packets were over a limit since the datapath was created.
type LimitCount struct {
	Name         string `json:"name"` // of the limit in the tables that hold, or "port guard"
	Dropped      uint64 `json:"dropped"`
	DroppedBytes uint64 `json:"dropped_bytes"`
	// DryRun: would have been dropped.
	DryRun      uint64 `json:"dry_run"`
	DryRunBytes uint64 `json:"dry_run_bytes"`
}

// LimitCounts lists the limits that some packet was over.
func (d *Datapath) LimitCounts() ([]LimitCount, error) {
	state, err := d.settle()
	if err != nil {
		return nil, fmt.Errorf("read limits of %s: %w", d.options.Interface, err)
	}
	live, err := d.liveTables(state.Current)
	if err != nil {
		return nil, fmt.Errorf("read limits of %s: %w", d.options.Interface, err)
	}
	perCPU := make([]bpf.GatewayOverCounts, len(d.reader.perCPU))
	var out []LimitCount
	for slot := range int(bpf.GatewayLimitSlotSLOT_COUNT) {
		if err := d.objects.LimitCounts.Lookup(uint32(slot), perCPU); err != nil {
			return nil, fmt.Errorf("read limits of %s: %w", d.options.Interface, err)
		}
		c := LimitCount{Name: limitName(live, slot)}
		for i := range perCPU {
			c.Dropped += perCPU[i].Dropped.Packets
			c.DroppedBytes += perCPU[i].Dropped.Bytes
			c.DryRun += perCPU[i].DryRun.Packets
			c.DryRunBytes += perCPU[i].DryRun.Bytes
		}
		if c.Dropped+c.DryRun > 0 {
			out = append(out, c)
		}
	}
	return out, nil
}

// TableCounts is what the tables of fixed size had to do since the datapath was created.
type TableCounts struct {
	VerifiedAdded uint64 `json:"verified_added"` // sources that completed a handshake
	VerifiedIdle  uint64 `json:"verified_idle"`  // of these, given up after 5 minutes of silence
	VerifiedLive  uint64 `json:"verified_live"`  // and before that, for others
	SourceBypass  uint64 `json:"source_bypass"`  // strangers not judged, their buckets being full of others
	PrefixBypass  uint64 `json:"prefix_bypass"`  // likewise prefixes
	HandshakeLost uint64 `json:"handshake_lost"` // handshakes that could not be followed
}

// TableCounts reads them.
func (d *Datapath) TableCounts() (TableCounts, error) {
	perCPU := make([]bpf.GatewayTableEvents, len(d.reader.perCPU))
	var c TableCounts
	if err := d.objects.TableCounts.Lookup(uint32(0), perCPU); err != nil {
		return c, fmt.Errorf("read table counts of %s: %w", d.options.Interface, err)
	}
	for i := range perCPU {
		c.VerifiedAdded += perCPU[i].VerifiedAdded
		c.VerifiedIdle += perCPU[i].VerifiedIdle
		c.VerifiedLive += perCPU[i].VerifiedLive
		c.SourceBypass += perCPU[i].SourceBypass
		c.PrefixBypass += perCPU[i].PrefixBypass
		c.HandshakeLost += perCPU[i].HandshakeLost
	}
	return c, nil
}
