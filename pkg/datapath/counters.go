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
