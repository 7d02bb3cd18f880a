// SPDX-License-Identifier: Apache-2.0

package top

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/xgw-project/xgw/pkg/ledger"
)

// MarshalJSON gives rows as objects by the columns' keys. Numbers that are not known are null.
func (t Table) MarshalJSON() ([]byte, error) {
	rows := make([]map[string]any, len(t.Rows))
	for i, cells := range t.Rows {
		rows[i] = make(map[string]any, len(cells))
		for c, cell := range cells {
			switch {
			case t.Columns[c].Format == nil:
				rows[i][t.Columns[c].Key] = cell.Text
			case math.IsNaN(cell.Number):
				rows[i][t.Columns[c].Key] = nil
			case math.IsInf(cell.Number, 0):
				rows[i][t.Columns[c].Key] = math.MaxFloat64
			default:
				rows[i][t.Columns[c].Key] = cell.Number
			}
		}
	}
	return json.Marshal(struct {
		Name string           `json:"name"`
		Rows []map[string]any `json:"rows"`
	}{t.Name, rows})
}

// Print writes the frame as text, every pane that has rows.
func (f *Frame) Print(w io.Writer) {
	for _, line := range f.head() {
		fmt.Fprintln(w, line)
	}
	for i := range f.Panes {
		t := &f.Panes[i]
		if len(t.Rows) == 0 {
			continue
		}
		fmt.Fprintf(w, "\n%s\n", t.Name)
		for _, line := range t.lines() {
			fmt.Fprintln(w, strings.TrimRight(line, " "))
		}
	}
}

// head is what stands above every pane.
func (f *Frame) head() []string {
	g, t := &f.Gateway, &f.Totals
	var state string
	switch g.Supervisor {
	case ledger.Absent:
		state = "no gateway runs; the kernel plane, where attached, counts on"
	case ledger.Gone:
		state = fmt.Sprintf("SUPERVISOR GONE; workers serve on for a while: %d of %d there", g.Ready, g.Workers)
	case ledger.Hanging:
		state = fmt.Sprintf("SUPERVISOR HANGS for %s; workers serve on: %d of %d ready", g.Beat.Round(time.Second), g.Ready, g.Workers)
	default:
		state = fmt.Sprintf("up %s, generation %d, workers %d of %d ready", g.Uptime.Round(time.Second), g.Generation, g.Ready, g.Workers)
	}
	lines := []string{
		fmt.Sprintf("xgw %s  %s", f.Time.Format(time.TimeOnly), state),
		fmt.Sprintf("packets/s  pass %-5s drop %-5s   requests/s %-5s 4xx %-5s 5xx %-5s", count(t.Passed), count(t.Dropped), count(t.Requests), count(t.ClientFault), count(t.ServerFault)),
		fmt.Sprintf("connections %-5s under way %-5s TLS/s %-5s unexplained %d", count(float64(t.Connections)), count(float64(t.UnderWay)), count(t.Handshakes), t.Unexplained),
	}
	for _, trouble := range f.Trouble {
		lines = append(lines, "! "+strings.ReplaceAll(trouble, "\n", "; "))
	}
	return lines
}

// lines lays the table out, its titles first: text to the left, numbers to the right.
func (t *Table) lines() []string {
	widths := make([]int, len(t.Columns))
	cells := make([][]string, len(t.Rows)+1)
	for c := range t.Columns {
		cells[0] = append(cells[0], t.Columns[c].Title)
		for r, row := range t.Rows {
			cells[r+1] = append(cells[r+1], t.show(row, c))
		}
		for r := range cells {
			widths[c] = max(widths[c], utf8.RuneCountInString(cells[r][c]))
		}
	}
	lines := make([]string, len(cells))
	for r := range cells {
		var b strings.Builder
		for c, cell := range cells[r] {
			pad := strings.Repeat(" ", widths[c]-utf8.RuneCountInString(cell))
			if c > 0 {
				b.WriteString("  ")
			}
			if t.Columns[c].Format == nil {
				b.WriteString(cell + pad)
			} else {
				b.WriteString(pad + cell)
			}
		}
		lines[r] = b.String()
	}
	return lines
}
