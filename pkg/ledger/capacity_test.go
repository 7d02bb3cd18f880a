// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/datapath"
	"github.com/xgw-project/xgw/pkg/zone"
)

// machine is a fixture of /proc and /sys that time passes on.
type machine struct {
	root                                         string
	user, system, idle, iowait, softirq, steal   int // ticks of 10 ms, all CPUs
	throttled, workerTicks, passed, dropped, pid int
}

func (m *machine) write(t *testing.T) {
	t.Helper()
	files := map[string]string{
		"proc/stat":                        fmt.Sprintf("cpu  %d 0 %d %d %d 0 %d %d 0 0\nctxt 1\nbtime 1\nprocesses 1\n", m.user, m.system, m.idle, m.iowait, m.softirq, m.steal),
		fmt.Sprintf("proc/%d/stat", m.pid): fmt.Sprintf("%d (xgw) S 1 1 1 0 -1 0 0 0 0 0 %d 0 0 0 20 0 1 0 1 1 1 1 1 1 1 1 1 0 0 0 0 0 0 0 17 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n", m.pid, m.workerTicks),
		"sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_total_time_ms": fmt.Sprint(m.throttled),
	}
	for name, text := range files {
		path := filepath.Join(m.root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// What a machine of two cores did in five minutes, and whether another node would help.
func TestCapacity(t *testing.T) {
	const minutes5 = 2 * 300 * 100 // ticks of two cores
	pct := func(p int) int { return minutes5 / 100 * p }
	for _, row := range []struct {
		name   string
		passes func(m *machine, w *zone.Slab)
		scale  Scale
		shares map[Cause]float64
		busy   float64
		attack float64
	}{
		{"quiet", func(m *machine, _ *zone.Slab) { m.idle += pct(90); m.user += pct(10); m.workerTicks += pct(10) }, ScaleEnough, map[Cause]float64{CauseProxying: 0.1, CauseIdle: 0.9}, 0.1, 0},
		{"serving", func(m *machine, w *zone.Slab) {
			m.user, m.softirq, m.idle, m.workerTicks = m.user+pct(60), m.softirq+pct(20), m.idle+pct(20), m.workerTicks+pct(55)
			w.Add(zone.HandshakeTime, uint64(60*time.Second)) // a tenth of two cores
			w.Add(zone.LuaTime, uint64(30*time.Second))
			w.Add(zone.CollectorTime, uint64(12*time.Second))
			m.passed += 1000
			w.Request(0, 200, time.Millisecond, zone.RequestOK)
		}, ScaleHelps, map[Cause]float64{CauseHandshakes: 0.1, CauseLua: 0.05, CauseCollector: 0.02, CauseProxying: 0.38, CauseSoftIRQ: 0.2, CauseOthers: 0.05, CauseIdle: 0.2}, 0.8, 0},
		{"a flood of packets", func(m *machine, _ *zone.Slab) {
			m.softirq, m.user, m.idle, m.workerTicks = m.softirq+pct(60), m.user+pct(10), m.idle+pct(30), m.workerTicks+pct(10)
			m.passed, m.dropped = m.passed+100, m.dropped+900
		}, ScaleAttack, map[Cause]float64{CauseSoftIRQ: 0.6}, 0.7, 0.54},
		{"a flood of requests", func(m *machine, w *zone.Slab) {
			m.user, m.idle, m.workerTicks = m.user+pct(70), m.idle+pct(30), m.workerTicks+pct(70)
			for range 9 {
				w.Request(0, 429, 0, zone.RequestLimited)
			}
			w.Request(0, 200, 0, zone.RequestOK)
		}, ScaleAttack, nil, 0.7, 0.63},
		{"too hot", func(m *machine, _ *zone.Slab) {
			m.user += pct(80)
			m.workerTicks += pct(80)
			m.idle += pct(20)
			m.throttled += 30_000
		}, ScaleThrottled, nil, 0.8, 0},
		{"waits for a disk", func(m *machine, _ *zone.Slab) { m.iowait += pct(50); m.user += pct(10); m.idle += pct(40) }, ScaleIOWait, map[Cause]float64{CauseIOWait: 0.5}, 0.1, 0},
		{"stolen from", func(m *machine, _ *zone.Slab) {
			m.steal += pct(30)
			m.user += pct(40)
			m.workerTicks += pct(40)
			m.idle += pct(30)
		}, ScaleSteal, map[Cause]float64{CauseSteal: 0.3}, 0.7, 0},
		{"others", func(m *machine, _ *zone.Slab) { m.user += pct(70); m.idle += pct(30); m.workerTicks += pct(10) }, ScaleOthers, map[Cause]float64{CauseOthers: 0.6}, 0.7, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			z := mustZone(t, 1)
			m := &machine{root: t.TempDir(), pid: 4711, user: 500, idle: 900, iowait: 7, workerTicks: 100}
			z.Worker(0).Set(zone.GaugePID, uint64(m.pid))
			meter := NewMeter(New(Sources{Zone: z, Interfaces: []Interface{{
				Name: "eth0", Status: func() datapath.Status { return datapath.Status{} },
				Counters: func(dst *datapath.Counters) error {
					dst.Ingress = append(dst.Ingress[:0], datapath.QueueCount{Verdict: "pass", Packets: uint64(m.passed)}, datapath.QueueCount{Verdict: "drop", Packets: uint64(m.dropped)})
					return nil
				},
			}}}), m.root)
			now := time.Unix(1_700_000_000, 0)
			sample := func() {
				m.write(t)
				if err := meter.Sample(now); err != nil {
					t.Fatal(err)
				}
			}
			sample()
			if c := meter.Capacity(); c.Known || c.Scale != ScaleUnknown {
				t.Errorf("known at once: %+v", c)
			}
			row.passes(m, z.Worker(0))
			now = now.Add(CapacityWindow)
			sample()
			c := meter.Capacity()
			if !c.Known || c.Scale != row.scale || !near(c.Busy, row.busy) || !near(c.Attack, row.attack) {
				t.Errorf("%+v (%s), want %s, busy %v, attack %v", c, c.Scale, row.scale, row.busy, row.attack)
			}
			for cause, want := range row.shares {
				if !near(c.Shares[cause], want) {
					t.Errorf("%s: %v, want %v", cause, c.Shares[cause], want)
				}
			}
			// Another process in the worker's place begins at 0, and no cause goes down.
			before := c.Seconds
			z.Worker(0).Set(zone.GaugePID, 1)
			now = now.Add(capacityStep)
			sample()
			for cause, s := range meter.Capacity().Seconds {
				if s < before[cause] {
					t.Errorf("%s went from %v to %v", Cause(cause), before[cause], s)
				}
			}
		})
	}
}

func near(a, b float64) bool { return a-b < 0.005 && b-a < 0.005 }

// The window slides: what was long ago is forgotten.
func TestCapacityWindow(t *testing.T) {
	m := &machine{root: t.TempDir(), pid: 4711}
	meter := NewMeter(New(Sources{Zone: mustZone(t, 1)}), m.root)
	now := time.Unix(1_700_000_000, 0)
	step := func(idle bool) {
		if idle {
			m.idle += 1000
		} else {
			m.user += 1000
		}
		m.write(t)
		if err := meter.Sample(now); err != nil {
			t.Fatal(err)
		}
		now = now.Add(capacityStep)
	}
	for range 100 {
		step(false)
	}
	if c := meter.Capacity(); !near(c.Busy, 1) {
		t.Errorf("busy %v", c.Busy)
	}
	for range 61 {
		step(true)
	}
	if c := meter.Capacity(); !near(c.Busy, 0) || len(meter.samples) > 62 {
		t.Errorf("busy %v, %d samples", c.Busy, len(meter.samples))
	}
}
