// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// desc is what a family of metrics is.
type desc struct {
	name, help string
	labels     []string // in the order in which the emitter gets their values
	order      []int    // of labels, by their names
	at         int      // among all
}

func newDesc(at int, name, help string, labels []string) *desc {
	d := &desc{name: name, help: help, labels: labels, order: make([]int, len(labels)), at: at}
	for i := range d.order {
		d.order[i] = i
	}
	slices.SortFunc(d.order, func(a, b int) int { return cmp.Compare(labels[a], labels[b]) })
	return d
}

// buffers are all that one reading tells, and are used again for the next one. The series of 1,000
// routes are made once: client_golang's constant metrics would be 150,000 allocations each time.
type buffers struct {
	of     []familyBuffer // by desc.at
	byName []int
	out    []*dto.MetricFamily
	shown  []*familyBuffer // those that out is of
}

type familyBuffer struct {
	out     *dto.MetricFamily // nil until there is a series
	series  []*series         // in the order in which they are told, which hardly ever changes
	ordered []*series         // those in out
	told    int               // of them, in this reading
	changed bool              // others than in the one before
}

// series is one metric. The number is its counter's or gauge's.
type series struct {
	labels []string
	number float64
	metric dto.Metric
	lines  [syntaxes][][]byte // as text, each up to its value; nil until it was asked for
	err    error
}

func newBuffers(all []*desc) *buffers {
	f := &buffers{of: make([]familyBuffer, len(all)), byName: make([]int, len(all))}
	for i := range all {
		f.byName[i] = i
	}
	slices.SortFunc(f.byName, func(a, b int) int { return cmp.Compare(all[a].name, all[b].name) })
	return f
}

// begin is for another reading.
func (f *buffers) begin() {
	for i := range f.of {
		f.of[i].told = 0
	}
}

// next is the series that is told now, that of the last reading if its labels are these.
func (f *buffers) next(d *desc, kind dto.MetricType, labels []string) *series {
	fam := &f.of[d.at]
	if fam.out == nil {
		fam.out = &dto.MetricFamily{Name: &d.name, Help: &d.help, Type: kind.Enum()}
	}
	at := fam.told
	fam.told++
	if at < len(fam.series) && slices.Equal(fam.series[at].labels, labels) {
		return fam.series[at]
	}
	fam.changed = true
	s := newSeries(d, kind, append([]string(nil), labels...))
	if at < len(fam.series) {
		fam.series[at] = s
	} else {
		fam.series = append(fam.series, s)
	}
	return s
}

func newSeries(d *desc, kind dto.MetricType, labels []string) *series {
	s := &series{labels: labels}
	if len(labels) != len(d.labels) {
		s.err = fmt.Errorf("%s: %d labels instead of %d", d.name, len(labels), len(d.labels))
		return s
	}
	for _, i := range d.order {
		if !utf8.ValidString(labels[i]) {
			s.err = fmt.Errorf("%s: label %s: %q is not UTF-8", d.name, d.labels[i], labels[i])
		}
		s.metric.Label = append(s.metric.Label, &dto.LabelPair{Name: &d.labels[i], Value: &labels[i]})
	}
	switch kind {
	case dto.MetricType_COUNTER:
		s.metric.Counter = &dto.Counter{Value: &s.number}
	case dto.MetricType_GAUGE:
		s.metric.Gauge = &dto.Gauge{Value: &s.number}
	default:
		s.metric.Histogram = &dto.Histogram{}
	}
	return s
}

// end is the reading. Series that cannot be told are missing, and in the error.
func (f *buffers) end() (all []*dto.MetricFamily, err error) {
	var errs []error
	f.out, f.shown = f.out[:0], f.shown[:0]
	for _, at := range f.byName {
		fam := &f.of[at]
		if fam.told < len(fam.series) {
			fam.series, fam.changed = fam.series[:fam.told], true
		}
		if fam.changed {
			fam.sort()
		}
		fam.changed = false
		for _, s := range fam.series {
			if s.err != nil {
				errs = append(errs, s.err)
			}
		}
		if fam.told > 0 && len(fam.out.Metric) > 0 {
			f.out, f.shown = append(f.out, fam.out), append(f.shown, fam)
		}
	}
	return f.out, errors.Join(errs...)
}

// sort orders the metrics as client_golang's registry does, and finds those told twice.
func (f *familyBuffer) sort() {
	ordered := slices.Clone(f.series)
	slices.SortStableFunc(ordered, func(a, b *series) int { return compareLabels(&a.metric, &b.metric) })
	f.out.Metric, f.ordered = f.out.Metric[:0], f.ordered[:0]
	for i, s := range ordered {
		if s.err == nil && i > 0 && compareLabels(&ordered[i-1].metric, &s.metric) == 0 {
			s.err = fmt.Errorf("%s %v is told twice", f.out.GetName(), s.labels)
		}
		if s.err == nil {
			f.out.Metric, f.ordered = append(f.out.Metric, &s.metric), append(f.ordered, s)
		}
	}
}

func compareLabels(a, b *dto.Metric) int {
	return slices.CompareFunc(a.Label, b.Label, func(x, y *dto.LabelPair) int { return cmp.Compare(x.GetValue(), y.GetValue()) })
}

// reader reads all metrics: the ledger's, and those of this process.
type reader struct {
	collector *collector
	process   prometheus.Gatherer

	mu   sync.Mutex
	idle *buffers // nil: another reading has it
}

// take is buffers for a reading, and put has them used again for another.
func (r *reader) take() *buffers {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := r.idle
	r.idle = nil
	if f == nil {
		f = newBuffers(r.collector.metrics.all)
	}
	return f
}

func (r *reader) put(f *buffers) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.idle = f
}

// Gather is a reading in buffers that are used again after done.
func (r *reader) Gather() (all []*dto.MetricFamily, done func(), err error) {
	f := r.take()
	all, err = r.gather(f)
	return all, func() { r.put(f) }, err
}

func (r *reader) gather(f *buffers) ([]*dto.MetricFamily, error) {
	all, err := r.process.Gather() // go_ and process_ are before xgw_
	ours, ourErr := r.collector.collect(f)
	return append(all, ours...), errors.Join(err, ourErr)
}

var _ prometheus.TransactionalGatherer = (*reader)(nil)

// kept is readings in buffers of their own, for who keeps them.
type kept struct{ *reader }

// Gather is one.
func (k kept) Gather() ([]*dto.MetricFamily, error) {
	return k.gather(newBuffers(k.collector.metrics.all))
}

var _ prometheus.Gatherer = kept{}

// collect tells the families what the ledger says.
func (c *collector) collect(f *buffers) (all []*dto.MetricFamily, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer func() {
		if fault := recover(); fault != nil { // must cost a reading at most
			all, err = nil, fmt.Errorf("read metrics: %v", fault)
		}
	}()
	if !c.read(&c.snapshot) {
		return nil, nil
	}
	f.begin()
	c.tell(emitter{f}, &c.snapshot)
	return f.end()
}
