// SPDX-License-Identifier: Apache-2.0

package top

import (
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/xgw-project/xgw/pkg/datapath"
	"github.com/xgw-project/xgw/pkg/ledger"
	"github.com/xgw-project/xgw/pkg/zone"
)

func TestNumbersForPeople(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", 0.02: "0.02", 0.2: "0.2", 1: "1", 9.94: "9.9", 9.96: "10", 999.4: "999", 999.6: "1k", 1234: "1.2k", 35.4e6: "35M", -1500: "-1.5k", 2e15: "2P",
	} {
		if got := count(v); got != want {
			t.Errorf("count(%v) is %q, want %q", v, got, want)
		}
	}
	for v, want := range map[float64]string{1.5e-6: "1.5us", 2.5e-3: "2.5ms", 3: "3s", math.Inf(1): ">64s", math.NaN(): "-"} {
		if got := seconds(v); got != want {
			t.Errorf("seconds(%v) is %q, want %q", v, got, want)
		}
	}
}

func TestSourceOfFrames(t *testing.T) {
	v4 := append([]byte{0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 192, 0, 2, 7, 198, 51, 100, 1}, make([]byte, 20)...)
	v6 := append([]byte{0x60, 0, 0, 0, 0, 20, 6, 64}, append(netip.MustParseAddr("2001:db8::7").AsSlice(), make([]byte, 36)...)...)
	ether := func(kinds ...byte) []byte { return append(make([]byte, 12), kinds...) }
	for name, row := range map[string]struct {
		frame []byte
		want  string
	}{
		"IPv4":           {append(ether(8, 0), v4...), "192.0.2.7"},
		"VLAN":           {append(ether(0x81, 0, 0, 5, 8, 0), v4...), "192.0.2.7"},
		"QinQ":           {append(ether(0x88, 0xa8, 0, 5, 0x81, 0, 0, 6, 8, 0), v4...), "192.0.2.7"},
		"three tags":     {append(ether(0x88, 0xa8, 0, 5, 0x81, 0, 0, 6, 0x81, 0, 0, 7, 8, 0), v4...), "none"},
		"IPv6":           {append(ether(0x86, 0xdd), v6...), "2001:db8::7"},
		"ARP":            {append(ether(8, 6), v4...), "none"},
		"cut":            {append(ether(8, 0), v4[:15]...), "none"},
		"cut IPv6":       {append(ether(0x86, 0xdd), v6[:20]...), "none"},
		"cut in the tag": {ether(0x81), "none"},
		"nothing":        {nil, "none"},
	} {
		got, ok := sourceOf(row.frame)
		if said := got.String(); !ok && row.want != "none" || ok && said != row.want {
			t.Errorf("%s: %s, %v; want %s", name, said, ok, row.want)
		}
	}
}

// Forged sources are without number: what is remembered of them is not, and who is seen
// most is not forgotten for them.
func TestSourcesAreBounded(t *testing.T) {
	s := Open("", "")
	frame := func(n uint32) datapath.Drop {
		f := make([]byte, 54)
		f[12] = 8
		f[26], f[27], f[28], f[29] = byte(n>>24), byte(n>>16), byte(n>>8), byte(n)
		return datapath.Drop{Head: f, Outcome: "drop_deny"}
	}
	for n := range uint32(3 * sourcesKept) {
		s.note([]datapath.Drop{frame(n + 1<<24), frame(0x0a000001)}, time.Now())
	}
	if len(s.sources) > sourcesKept {
		t.Errorf("%d sources are remembered", len(s.sources))
	}
	if d := s.sources[netip.MustParseAddr("10.0.0.1")]; d == nil || d.samples != 3*sourcesKept || d.outcome != "drop_deny" {
		t.Errorf("the loudest source: %+v", d)
	}
}

// newZone has one worker that served three requests of a route in a known way.
func newZone(t *testing.T) (*zone.Zone, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "zone")
	z, err := zone.Create(path, zone.Layout{Workers: 1, Size: 32 << 20, Routes: 16, Upstreams: 16})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { z.Close() })
	return z, path
}

// troubled tells whether something could not be read that this user may read: pins are root's.
func troubled(f *Frame) bool {
	for _, trouble := range f.Trouble {
		if os.Getuid() == 0 || !strings.HasPrefix(trouble, "list pins: not permitted") {
			return true
		}
	}
	return false
}

func TestFramesOfAZone(t *testing.T) {
	z, path := newZone(t)
	route := z.RouteSlot("api")
	w := z.Worker(0)
	w.Set(zone.GaugeState, uint64(zone.StateReady))
	w.Request(route, 200, time.Millisecond, zone.RequestOK)
	s := Open(path, "none-of-this-name")
	defer s.Close()
	s.Read()
	for range 99 {
		w.Request(route, 200, time.Millisecond, zone.RequestOK)
	}
	w.Request(route, 429, 100*time.Millisecond, zone.RequestLimited)
	f := s.Read()
	rate := 1 / f.Interval.Seconds()
	routes := f.Pane("routes")
	if len(routes.Rows) != 1 || routes.Rows[0][0].Text != "api" {
		t.Fatalf("routes: %+v", routes.Rows)
	}
	row := map[string]float64{}
	for c, cell := range routes.Rows[0] {
		row[routes.Columns[c].Key] = cell.Number
	}
	near := func(got, want float64) bool { return math.Abs(got-want) < want/1000 }
	if !near(row["status_2xx_per_second"], 99*rate) || !near(row["status_4xx_per_second"], rate) || !near(row["requests_per_second"], 100*rate) || row["requests"] != 101 {
		t.Errorf("rates %v, one request was %v", row, rate)
	}
	if p50, p99 := row["p50_seconds"], row["p99_seconds"]; p50 < 1e-3 || p50 > 1.1e-3 || p99 < 1e-3 || p99 > 1.1e-3 {
		t.Errorf("p50 %v, p99 %v", p50, p99)
	}
	if f.Gateway.Supervisor != ledger.Hanging || troubled(f) {
		t.Errorf("a supervisor that never beat: %+v, %v", f.Gateway, f.Trouble)
	}
	if len(f.Panes) != len(PaneNames) {
		t.Errorf("%d panes, %d names", len(f.Panes), len(PaneNames))
	}
	for i := range f.Panes {
		if f.Panes[i].Name != PaneNames[i] {
			t.Errorf("pane %d is %s, not %s", i, f.Panes[i].Name, PaneNames[i])
		}
	}
	text, err := json.Marshal(f)
	if err != nil || !strings.Contains(string(text), `"route":"api"`) {
		t.Errorf("as JSON: %s, %v", text, err)
	}
}

// What was shown of one gateway is not taken for what the next one at its place counts.
func TestAnotherZoneInPlace(t *testing.T) {
	z, path := newZone(t)
	z.Worker(0).Request(z.RouteSlot("api"), 200, time.Millisecond, zone.RequestOK)
	s := Open(path, "none-of-this-name")
	defer s.Close()
	s.Read()
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	next, err := zone.Create(path, zone.Layout{Workers: 2, Size: 32 << 20, Routes: 16, Upstreams: 16})
	if err != nil {
		t.Fatal(err)
	}
	f := s.Read()
	if f.Gateway.Workers != 2 || len(f.Pane("routes").Rows) != 0 || f.Totals.Requests != 0 {
		t.Errorf("a new gateway is shown as %+v, %+v, routes %v", f.Gateway, f.Totals, f.Pane("routes").Rows)
	}
	if err := next.Remove(); err != nil {
		t.Fatal(err)
	}
	next.Close()
	if f := s.Read(); f.Gateway.Supervisor != ledger.Absent || troubled(f) {
		t.Errorf("no gateway is shown as %+v, %v", f.Gateway, f.Trouble)
	}
}

// Rates of an interface are its own, whatever other ones came and went.
func TestInterfacesComeAndGo(t *testing.T) {
	counts := func(name string, packets uint64) ledger.InterfaceCounts {
		return ledger.InterfaceCounts{Name: name, Counters: datapath.Counters{Ingress: []datapath.QueueCount{{Verdict: "drop", Reason: "deny", Packets: packets}}}}
	}
	var now, before sample
	before.ledger.Interfaces = []ledger.InterfaceCounts{counts("a", 1000), counts("b", 10)}
	now.ledger.Interfaces = []ledger.InterfaceCounts{counts("b", 30), counts("c", 500)}
	r := rates{now: &now, before: &before, span: 2}
	var got []string
	for _, row := range r.drops().Rows {
		got = append(got, fmt.Sprintf("%s %v", row[0].Text, row[3].Number))
	}
	if fmt.Sprint(got) != "[b 10 c 0]" {
		t.Errorf("%v", got)
	}
}

func press(m *screen, keys ...string) {
	for _, k := range keys {
		p := tea.KeyPressMsg{Code: []rune(k)[0], Text: k}
		switch k {
		case "enter":
			p = tea.KeyPressMsg{Code: tea.KeyEnter}
		case "esc":
			p = tea.KeyPressMsg{Code: tea.KeyEscape}
		case "tab":
			p = tea.KeyPressMsg{Code: tea.KeyTab}
		case "down":
			p = tea.KeyPressMsg{Code: tea.KeyDown}
		}
		_, cmd := m.Update(p)
		if cmd != nil {
			if msg, ok := cmd().(told); ok {
				m.Update(msg)
			}
		}
	}
}

func TestKeys(t *testing.T) {
	s := Open("", "")
	s.sources[netip.MustParseAddr("192.0.2.1")] = &dropped{samples: 5, outcome: "drop_deny"}
	s.sources[netip.MustParseAddr("192.0.2.2")] = &dropped{samples: 9, outcome: "drop_source_limit"}
	var held []string
	m := &screen{source: s, sorted: map[string]order{}, pane: "sources", width: 80, height: 24}
	f := &Frame{Time: time.Now()}
	s.fill(f)
	m.Update(f)
	shown := func() string { return m.View().Content }
	first := func() string { return m.table().Rows[0][0].Text }
	if lines := strings.Count(shown(), "\n") + 1; lines != 24 || first() != "192.0.2.2" {
		t.Errorf("%d lines, first %s:\n%s", lines, first(), shown())
	}
	press(m, "s")
	if first() != "192.0.2.1" {
		t.Errorf("by source, the first is %s", first())
	}
	press(m, "r")
	if first() != "192.0.2.2" {
		t.Errorf("the other way round, the first is %s", first())
	}
	press(m, "/", "d", "e", "n", "y", "enter")
	if len(m.table().Rows) != 1 || first() != "192.0.2.1" || !strings.Contains(shown(), "filter: deny") {
		t.Errorf("filtered:\n%s", shown())
	}
	press(m, "down", "v")
	if m.asking != "" || !strings.Contains(shown(), "no gateway answers") {
		t.Errorf("verdict without a gateway:\n%s", shown())
	}
	m.options.Verdict = func(source string) error { held = append(held, source); return nil }
	press(m, "v", "n", "v", "y")
	if fmt.Sprint(held) != "[192.0.2.1]" || !strings.Contains(shown(), "verdict on 192.0.2.1") {
		t.Errorf("held %v:\n%s", held, shown())
	}
	s.now.keys = []zone.Busy{{Name: "alice", From: netip.MustParseAddr("2001:db8:0:1::7"), Requests: 30}, {Name: "bob", From: netip.MustParseAddr("192.0.2.3"), Requests: 60}}
	s.before.keys = []zone.Busy{{Name: "bob", Requests: 50}} // of bob the last ten are new
	s.fill(f)
	press(m, "esc", "tab", "down", "v", "y")
	if m.pane != "keys" || first() != "alice" || fmt.Sprint(held) != "[192.0.2.1 2001:db8:0:1::]" {
		t.Errorf("pane %s, held %v:\n%s", m.pane, held, shown())
	}
	press(m, "0")
	if m.pane != "ledger" {
		t.Errorf("pane %s", m.pane)
	}
	press(m, "tab")
	if m.pane != "queues" || m.filter != "" {
		t.Errorf("pane %s, filter %q", m.pane, m.filter)
	}
	press(m, "7", "?")
	if m.pane != "drops" || !strings.Contains(shown(), "this help") {
		t.Errorf("pane %s:\n%s", m.pane, shown())
	}
	press(m, " ")
	if _, cmd := m.Update(tick(time.Now())); !m.paused || cmd == nil {
		t.Error("not paused")
	}
	for _, size := range [][2]int{{1, 1}, {10, 3}, {200, 60}} {
		m.Update(tea.WindowSizeMsg{Width: size[0], Height: size[1]})
		for i, line := range strings.Split(shown(), "\n") {
			if i >= size[1] {
				t.Fatalf("%v: more lines than the screen has", size)
			}
			_ = line
		}
	}
}
