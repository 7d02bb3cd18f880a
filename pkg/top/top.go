// SPDX-License-Identifier: Apache-2.0

// Package top is a terminal's view of a gateway, in the manner of top(1). It reads the
// shared zone and the pinned maps itself and asks the supervisor nothing: it works, and
// says so, when the supervisor hangs or is gone.
package top

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// Frame is what is shown at one moment. Rates are over the time since the frame before,
// or since counting began in the first one of a Source.
type Frame struct {
	Time     time.Time     `json:"time"`
	Interval time.Duration `json:"interval_ns"`
	Gateway  Gateway       `json:"gateway"`
	Totals   Totals        `json:"totals"`
	Panes    []Table       `json:"panes"`
	Trouble  []string      `json:"trouble,omitempty"` // what could not be read, and why
}

// Gateway is how the processes are.
type Gateway struct {
	Supervisor string        `json:"supervisor"` // ledger.Running and so on
	Beat       time.Duration `json:"beat_ns"`    // since the supervisor's last sign of life
	Generation uint64        `json:"generation"`
	Uptime     time.Duration `json:"uptime_ns"` // since counting in the zone began
	Ready      int           `json:"workers_ready"`
	Workers    int           `json:"workers"`
}

// Totals are rates a second over the whole gateway, and present values.
type Totals struct {
	Passed      float64 `json:"packets_passed_per_second"`
	Dropped     float64 `json:"packets_dropped_per_second"`
	Requests    float64 `json:"requests_per_second"`
	ClientFault float64 `json:"status_4xx_per_second"`
	ServerFault float64 `json:"status_5xx_per_second"`
	Handshakes  float64 `json:"handshakes_per_second"`
	Connections uint64  `json:"connections"`
	UnderWay    uint64  `json:"requests_under_way"`
	// Unexplained are packets, requests and connections whose counts should agree and do not;
	// small ones come and go under load.
	Unexplained int64 `json:"unexplained"`
}

// Column is one of a table. Format is nil where cells are text.
type Column struct {
	Key    string
	Title  string
	Format func(float64) string
}

// Cell is text, or a number, as its column says.
type Cell struct {
	Text   string
	Number float64
}

// Table is one pane.
type Table struct {
	Name    string
	Columns []Column
	Rows    [][]Cell
}

// Pane finds one by name; nil for none.
func (f *Frame) Pane(name string) *Table {
	for i := range f.Panes {
		if f.Panes[i].Name == name {
			return &f.Panes[i]
		}
	}
	return nil
}

// show is the cell as a person reads it.
func (t *Table) show(row []Cell, column int) string {
	if format := t.Columns[column].Format; format != nil {
		return format(row[column].Number)
	}
	return row[column].Text
}

// Sort orders rows by a column: numbers from the largest down, text from A on.
// Rows that are equal there keep their order.
func (t *Table) Sort(column int, reverse bool) {
	slices.SortStableFunc(t.Rows, func(a, b []Cell) int {
		way := cmp.Compare(b[column].Number, a[column].Number)
		if t.Columns[column].Format == nil {
			way = strings.Compare(a[column].Text, b[column].Text)
		}
		if reverse {
			way = -way
		}
		return way
	})
}

// Filter leaves the rows in which the text occurs, in any column, whatever its case.
func (t *Table) Filter(text string) {
	text = strings.ToLower(text)
	t.Rows = slices.DeleteFunc(t.Rows, func(row []Cell) bool {
		for c := range t.Columns {
			if strings.Contains(strings.ToLower(t.show(row, c)), text) {
				return false
			}
		}
		return true
	})
}

// count shows a rate or a number in four digits at most: 0, 0.12, 3.4, 120, 1.2k, 35M.
func count(v float64) string {
	sign := ""
	if v < 0 {
		sign, v = "-", -v
	}
	for _, suffix := range []string{"", "k", "M", "G", "T"} {
		switch {
		case v == 0:
			return "0"
		case v < 0.095 && suffix == "":
			return sign + fmt.Sprintf("%.2f", v)
		case v < 9.95:
			return sign + strings.TrimSuffix(fmt.Sprintf("%.1f", v), ".0") + suffix
		case v < 999.5:
			return sign + fmt.Sprintf("%.0f", v) + suffix
		}
		v /= 1000
	}
	return sign + fmt.Sprintf("%.0fP", v)
}

// seconds shows a duration; one that is not known is NaN.
func seconds(v float64) string {
	switch {
	case math.IsNaN(v):
		return "-"
	case math.IsInf(v, 1):
		return ">64s"
	case v < 1e-3:
		return count(v*1e6) + "us"
	case v < 1:
		return count(v*1e3) + "ms"
	}
	return count(v) + "s"
}

// percent shows a share of 100.
func percent(v float64) string {
	if math.IsNaN(v) {
		return "-"
	}
	return fmt.Sprintf("%.0f%%", v)
}
