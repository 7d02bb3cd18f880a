// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/bpf"
	"github.com/xgw-project/xgw/pkg/policy"
)

// Explanation is what the program would do with a packet now, and why.
type Explanation struct {
	Outcome string `json:"outcome"`
	// Stopped is the outcome before the packet was spared, when that is another one.
	Stopped    string   `json:"stopped,omitempty"`
	Rule       string   `json:"rule,omitempty"`    // "deny 192.0.2.0/24"
	Verdict    string   `json:"verdict,omitempty"` // the step held against its source
	Over       []string `json:"over,omitempty"`    // limits that the packet is over, by name
	Generation uint64   `json:"generation"`        // of the tables; 0: there are none
}

// Explain runs the program on the frame, as often as it says, with the live tables,
// verdicts and pinholes but with counters, buckets and sources of its own: nothing that is
// counted or limited moves. The explanation is that of the last run, so that "the
// hundredth SYN" can be asked for.
func (d *Datapath) Explain(frame []byte, times int) (*Explanation, error) {
	e, err := d.explain(frame, times)
	if err != nil {
		return nil, fmt.Errorf("explain a packet to %s: %w", d.options.Interface, err)
	}
	return e, nil
}

func (d *Datapath) explain(frame []byte, times int) (*Explanation, error) {
	if len(frame) < 14 {
		return nil, errors.New("a frame has 14 bytes at least: an Ethernet header")
	}
	spec, err := bpf.LoadGateway()
	if err != nil {
		return nil, err
	}
	if err := d.fit(spec); err != nil {
		return nil, err
	}
	// Places in the live tables depend on the seed that they were filled with.
	if err := setSeed(spec, d.seed); err != nil {
		return nil, err
	}
	var o struct {
		Program   *ebpf.Program `ebpf:"xdp_explain"`
		Explained *ebpf.Map     `ebpf:"explained"`
	}
	live := &ebpf.CollectionOptions{MapReplacements: map[string]*ebpf.Map{
		bpf.GatewayMapControl: d.objects.Control, bpf.GatewayMapHeartbeat: d.objects.Heartbeat,
		bpf.GatewayMapGenTables: d.objects.GenTables, bpf.GatewayMapGenPorts: d.objects.GenPorts,
		bpf.GatewayMapGenRows: d.objects.GenRows, bpf.GatewayMapGenBuckets: d.objects.GenBuckets,
		bpf.GatewayMapVerdicts: d.objects.Verdicts, bpf.GatewayMapPinholes: d.objects.Pinholes,
		bpf.GatewayMapLanes: d.objects.Lanes, bpf.GatewayMapPressure: d.objects.Pressure,
	}}
	if err := spec.LoadAndAssign(&o, live); err != nil {
		return nil, loadError(err)
	}
	defer o.Program.Close()
	defer o.Explained.Close()
	_, err = o.Program.Run(&ebpf.RunOptions{Data: frame, Repeat: uint32(max(times, 1))})
	if errors.Is(err, unix.EINVAL) && len(frame) > 3000 {
		return nil, fmt.Errorf("the kernel runs programs on one page, and this frame has %d bytes: leave out some of its payload, and say so in its IP header: %w", len(frame), err)
	}
	if err != nil {
		return nil, fmt.Errorf("run the program: %w", err)
	}
	var out bpf.GatewayExplanation
	if err := o.Explained.Lookup(uint32(0), &out); err != nil {
		return nil, fmt.Errorf("read the explanation: %w", err)
	}
	return d.word(frame, &out)
}

// word puts the program's numbers into words.
func (d *Datapath) word(frame []byte, x *bpf.GatewayExplanation) (*Explanation, error) {
	name := func(outcome uint32) string {
		if int(outcome) >= len(d.reader.outcomes) {
			return fmt.Sprintf("outcome %d", outcome)
		}
		return d.reader.outcomes[outcome].String()
	}
	e := &Explanation{Outcome: name(x.Outcome), Generation: x.Generation}
	if x.Stopped != x.Outcome {
		e.Stopped = name(x.Stopped)
	}
	if x.Verdict != 0 {
		e.Verdict = Step(x.Verdict).String()
	}
	if x.Prefix != 0 {
		e.Rule = policy.Action(x.Prefix).String()
		if source, ok := frameSource(frame); ok {
			if p, err := source.Prefix(int(x.PrefixLength)); err == nil {
				e.Rule += " " + p.String()
			}
		}
	}
	state, err := d.settle()
	if err != nil {
		return nil, err
	}
	live, err := d.liveTables(state.Current)
	if err != nil {
		return nil, err
	}
	if e.Generation == 0 { // a malformed packet meets none
		e.Generation = live.Generation
	}
	for slot := range int(bpf.GatewayLimitSlotSLOT_COUNT) {
		if x.Over>>slot&1 != 0 {
			e.Over = append(e.Over, limitName(live, slot))
		}
	}
	return e, nil
}

// limitName is the name of the limit in a slot of limit_counts.
func limitName(t *bpf.GatewayTables, slot int) string {
	l := limitAt(t, slot)
	switch {
	case slot == int(bpf.GatewayLimitSlotSLOT_GUARD):
		return "port guard"
	case l == nil || l.Cost == 0:
		return fmt.Sprintf("limit %d", slot)
	}
	var name []byte
	for _, c := range l.Name {
		if c == 0 {
			break
		}
		name = append(name, byte(c))
	}
	return string(name)
}

func limitAt(t *bpf.GatewayTables, slot int) *bpf.GatewayLimit {
	groups := [][3]bpf.GatewayLimit{t.Queue, t.Source, t.Prefix, t.Interface}
	for i := range t.Port {
		groups = append(groups, t.Port[i].Limit)
	}
	if slot/3 >= len(groups) {
		return nil
	}
	return &groups[slot/3][slot%3]
}

// frameSource reads the source address of a frame that the program understood.
func frameSource(frame []byte) (netip.Addr, bool) {
	at := 12
	for at+4 < len(frame) && (frame[at] == 0x81 && frame[at+1] == 0 || frame[at] == 0x88 && frame[at+1] == 0xa8) {
		at += 4
	}
	ip := frame[min(at+2, len(frame)):]
	switch {
	case len(ip) >= 20 && ip[0]>>4 == 4:
		return netip.AddrFrom4([4]byte(ip[12:16])), true
	case len(ip) >= 40 && ip[0]>>4 == 6:
		return netip.AddrFrom16([16]byte(ip[8:24])), true
	}
	return netip.Addr{}, false
}

// matchLive finds the rule that decides for the source in the tables that hold, by the
// program's own look-up.
func (d *Datapath) matchLive(source netip.Addr) (policy.PrefixRule, bool, error) {
	state, err := d.settle()
	if err != nil {
		return policy.PrefixRule{}, false, err
	}
	if state.Current == noGeneration {
		return policy.PrefixRule{}, false, nil
	}
	live, err := d.liveTables(state.Current)
	if err != nil {
		return policy.PrefixRule{}, false, err
	}
	rows, err := d.openInner(d.rowsMap(), state.Current)
	if err != nil {
		return policy.PrefixRule{}, false, fmt.Errorf("open prefix rows: %w", err)
	}
	defer rows.Close()
	buckets, err := d.openInner(d.bucketsMap(), state.Current)
	if err != nil {
		return policy.PrefixRule{}, false, fmt.Errorf("open prefix buckets: %w", err)
	}
	defer buckets.Close()
	var heads [2]policy.PrefixHead
	for i, h := range live.Prefixes {
		heads[i] = policy.PrefixHead{Family: h.Family, Entries: h.Entries, First: h.First, Mask: h.Mask, Always: h.Always, Lengths: h.Lengths[:]}
	}
	rule, err := policy.LookUpPrefix(source, heads, d.seed,
		func(i uint32) (uint64, error) {
			var v uint64
			err := rows.Lookup(i, &v)
			return v, err
		},
		func(i uint32) (policy.PrefixBucket, error) {
			var b policy.PrefixBucket
			err := buckets.Lookup(i, &b)
			return b, err
		})
	return rule, rule.Action != 0, err
}
