// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/go-analyze/charts"
)

// series is one line of a chart.
type series struct {
	name string
	of   func(*Moment) float64
}

// picture is one chart of the history; the page has its title.
type picture struct {
	unit  func(float64) string
	lines []series
}

// pictures are all charts, by name.
var pictures = map[string]picture{
	"packets": {brief, []series{
		{"passed", func(m *Moment) float64 { return m.Passed }},
		{"dropped", func(m *Moment) float64 { return m.Dropped }},
	}},
	"requests": {brief, []series{
		{"2xx", func(m *Moment) float64 { return m.Requests[1] }},
		{"3xx", func(m *Moment) float64 { return m.Requests[2] }},
		{"4xx", func(m *Moment) float64 { return m.Requests[3] }},
		{"5xx", func(m *Moment) float64 { return m.Requests[4] }},
	}},
	"latency": {span, []series{
		{"median", func(m *Moment) float64 { return orNothing(m.Median) }},
		{"99th percentile", func(m *Moment) float64 { return orNothing(m.Percentile99) }},
	}},
	"handshakes": {brief, []series{
		{"full", func(m *Moment) float64 { return m.Full }},
		{"resumed", func(m *Moment) float64 { return m.Resumed }},
		{"failed", func(m *Moment) float64 { return m.HandshakesFailed }},
	}},
}

// orNothing is a gap in a line where there is no value.
func orNothing(v float64) float64 {
	if v == 0 {
		return charts.GetNullValue()
	}
	return v
}

// brief shows a number in few digits.
func brief(v float64) string {
	switch {
	case v >= 1e6:
		return strconv.FormatFloat(v/1e6, 'g', 3, 64) + "M"
	case v >= 1e3:
		return strconv.FormatFloat(v/1e3, 'g', 3, 64) + "k"
	}
	return strconv.FormatFloat(v, 'g', 3, 64)
}

// span shows seconds.
func span(v float64) string {
	return time.Duration(v * float64(time.Second)).Round(10 * time.Microsecond).String()
}

// Sizes of a chart, in pixels.
const (
	leastWidth, mostWidth = 280, 1600
	chartHeight           = 240
)

// chart draws the last hour, or so many minutes of it, as SVG.
func (a *api) chart(w http.ResponseWriter, r *http.Request) {
	p, known := pictures[r.PathValue("name")]
	width, errWidth := parameter(r, "width", 640, leastWidth, mostWidth)
	minutes, errMinutes := parameter(r, "minutes", 60, 1, 60)
	switch {
	case !known:
		fail(w, http.StatusNotFound, fmt.Errorf("there is no chart of the name %q", r.PathValue("name")))
		return
	case errWidth != nil || errMinutes != nil:
		fail(w, http.StatusBadRequest, errors.Join(errWidth, errMinutes))
		return
	}
	moments := a.control.History()
	for len(moments) > 0 && time.Since(moments[0].Time) > time.Duration(minutes)*time.Minute {
		moments = moments[1:]
	}
	svg, err := p.draw(moments, width, r.URL.Query().Get("theme") == "dark")
	if err != nil {
		fail(w, http.StatusInternalServerError, err)
		return
	}
	w.Header().Set("Content-Type", "image/svg+xml")
	_, _ = w.Write(svg)
}

func parameter(r *http.Request, name string, normal, least, most int) (int, error) {
	text := r.URL.Query().Get(name)
	if text == "" {
		return normal, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < least || n > most {
		return 0, fmt.Errorf("%s: want a number from %d to %d", name, least, most)
	}
	return n, nil
}

func (p *picture) draw(moments []Moment, width int, dark bool) ([]byte, error) {
	values := make([][]float64, len(p.lines))
	names := make([]string, len(p.lines))
	labels := make([]string, len(moments))
	top := 0.0
	for i, line := range p.lines {
		names[i] = line.name
		values[i] = make([]float64, len(moments))
		for m := range moments {
			v := line.of(&moments[m])
			values[i][m] = v
			if v != charts.GetNullValue() {
				top = math.Max(top, v)
			}
		}
	}
	for m := range moments {
		labels[m] = moments[m].Time.Local().Format("15:04:05")
	}
	theme := charts.ThemeLight
	if dark {
		theme = charts.ThemeDark
	}
	painter := charts.NewPainter(charts.PainterOptions{OutputFormat: charts.ChartOutputSVG, Width: width, Height: chartHeight, Theme: charts.GetTheme(theme)})
	o := charts.NewLineChartOptionWithData(values)
	o.Theme = charts.GetTheme(theme)
	o.Legend.SeriesNames = names
	o.Legend.Offset = charts.OffsetRight
	o.XAxis.Labels = labels
	o.XAxis.LabelCount = max(width/110, 2)
	o.XAxis.BoundaryGap = charts.Ptr(false)
	o.Symbol.Shape = charts.SymbolNone
	o.LineStrokeWidth = 1.5
	o.ValueFormatter = p.unit
	if len(o.YAxis) == 0 {
		o.YAxis = make([]charts.YAxisOption, 1)
	}
	o.YAxis[0].Min = charts.Ptr(0.0)
	if top == 0 {
		o.YAxis[0].Max = charts.Ptr(1.0)
	}
	if err := painter.LineChart(o); err != nil {
		return nil, fmt.Errorf("draw chart: %w", err)
	}
	return painter.Bytes()
}
