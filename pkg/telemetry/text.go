// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// syntax is one of those of text. What is around the numbers is the library's, and kept: to
// write 23,000 lines of 1,000 routes anew takes it five times as long as all the rest of a scrape.
type syntax int

const (
	classicText syntax = iota
	openMetrics
	syntaxes
)

var formats = [syntaxes]expfmt.Format{expfmt.NewFormat(expfmt.TypeTextPlain), expfmt.NewFormat(expfmt.TypeOpenMetrics)}

// syntaxOf is false for protobuf, and for names that are escaped though they need not be.
func syntaxOf(f expfmt.Format) (syntax, bool) {
	if f.ToEscapingScheme() == model.DotsEscaping {
		return 0, false
	}
	switch f.FormatType() {
	case expfmt.TypeTextPlain:
		return classicText, true
	case expfmt.TypeOpenMetrics:
		return openMetrics, true
	}
	return 0, false
}

// appendFloat writes a number as the library does.
func (x syntax) appendFloat(b []byte, v float64) []byte {
	from := len(b)
	if whole := uint64(v); v >= 0 && v < 1e6 && float64(whole) == v {
		b = strconv.AppendUint(b, whole, 10)
	} else {
		b = strconv.AppendFloat(b, v, 'g', -1, 64)
	}
	if x == openMetrics && !bytes.ContainsAny(b[from:], "e.IN") { // a number, and whole
		b = append(b, ".0"...)
	}
	return b
}

func (x syntax) appendCount(b []byte, n uint64) []byte {
	if x == openMetrics {
		return strconv.AppendUint(b, n, 10)
	}
	return x.appendFloat(b, float64(n))
}

// appendText writes all of the family that can be told.
func (f *familyBuffer) appendText(b []byte, x syntax) ([]byte, error) {
	from, head := len(b), true
	for _, s := range f.ordered {
		traced := x == openMetrics && s.traced()
		if head || traced || s.lines[x] == nil {
			comments, lines, err := f.libraryText(s, x)
			if err != nil {
				return b[:from], err
			}
			if head {
				b = append(b, comments...)
				head = false
			}
			if traced {
				b = append(b, lines...)
				continue
			}
			s.lines[x] = beforeValues(lines)
		}
		b = s.appendText(b, x)
	}
	return b, nil
}

// libraryText is the family with one of its series, as the library has it.
func (f *familyBuffer) libraryText(s *series, x syntax) (comments, lines []byte, err error) {
	var text bytes.Buffer
	one := &dto.MetricFamily{Name: f.out.Name, Help: f.out.Help, Type: f.out.Type, Metric: []*dto.Metric{&s.metric}}
	if err := expfmt.NewEncoder(&text, formats[x]).Encode(one); err != nil {
		return nil, nil, err
	}
	lines = text.Bytes()
	for bytes.HasPrefix(lines, []byte{'#'}) {
		_, lines, _ = bytes.Cut(lines, []byte{'\n'})
	}
	return text.Bytes()[:text.Len()-len(lines)], lines, nil
}

// beforeValues is of each line what is before its value, the last word.
func beforeValues(lines []byte) (all [][]byte) {
	for line := range bytes.Lines(lines) {
		all = append(all, line[:bytes.LastIndexByte(line, ' ')+1])
	}
	return all
}

// traced: there is an exemplar.
func (s *series) traced() bool {
	for _, b := range s.metric.GetHistogram().GetBucket() {
		if b.Exemplar != nil {
			return true
		}
	}
	return false
}

// appendText writes the series' lines; those of a histogram are its buckets, that above all
// bounds if it is not among them, sum and count.
func (s *series) appendText(b []byte, x syntax) []byte {
	h := s.metric.Histogram
	lines := s.lines[x]
	for i, line := range lines {
		b = append(b, line...)
		switch {
		case h == nil:
			b = x.appendFloat(b, s.number)
		case i < len(h.Bucket):
			b = x.appendCount(b, *h.Bucket[i].CumulativeCount)
		case i == len(lines)-2:
			b = x.appendFloat(b, *h.SampleSum)
		default:
			b = x.appendCount(b, *h.SampleCount)
		}
		b = append(b, '\n')
	}
	return b
}

// appendText is a reading as text. With an error the rest is there.
func (r *reader) appendText(b []byte, x syntax) (text []byte, err error) {
	f := r.take()
	defer func() {
		if fault := recover(); fault != nil { // must cost a reading at most, and its buffers
			text, err = b, fmt.Errorf("write metrics: %v", fault)
			return
		}
		r.put(f)
	}()
	var errs []error
	process, err := r.process.Gather()
	errs = append(errs, err)
	others := bytes.NewBuffer(b)
	library := expfmt.NewEncoder(others, formats[x])
	for _, family := range process {
		errs = append(errs, library.Encode(family))
	}
	b = others.Bytes()
	ours, err := r.collector.collect(f)
	errs = append(errs, err)
	for _, family := range f.shown[:len(ours)] {
		b, err = family.appendText(b, x)
		errs = append(errs, err)
	}
	if x == openMetrics {
		b = append(b, "# EOF\n"...)
	}
	return b, errors.Join(errs...)
}

// texts answers who asks for text, and leaves others to the rest.
type texts struct {
	reader *reader
	rest   http.Handler
	slots  chan struct{} // of readings under way
	held   chan struct{} // of texts that are made or not all taken yet
	log    *slog.Logger

	mu   sync.Mutex
	idle []byte // what the last one was written to; nil: another one has it
}

func (t *texts) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	format := expfmt.NegotiateAccept(r.Header, expfmt.DefaultOpenMetricsAcceptedFormats()...)
	x, ok := syntaxOf(format)
	if !ok || r.URL.Query().Has("name[]") {
		t.rest.ServeHTTP(w, r)
		return
	}
	const busy = "too many scrapes are under way, try again later"
	select {
	case t.held <- struct{}{}:
		defer func() { <-t.held }()
	default:
		http.Error(w, busy, http.StatusServiceUnavailable)
		return
	}
	select {
	case t.slots <- struct{}{}:
	default:
		http.Error(w, busy, http.StatusServiceUnavailable)
		return
	}
	read := make(chan []byte, 1)
	go func() {
		defer func() { <-t.slots }()
		text, err := t.reader.appendText(t.take(), x)
		if err != nil {
			t.log.Warn("scrape lacks a part", "error", err)
		}
		read <- text
	}()
	late := time.NewTimer(scrapeTimeout)
	defer late.Stop()
	select {
	case text := <-read:
		write(w, r, format, text)
		t.put(text)
	case <-r.Context().Done():
	case <-late.C:
		http.Error(w, "the counters were not read within "+scrapeTimeout.String(), http.StatusServiceUnavailable)
	}
}

func (t *texts) take() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := t.idle
	t.idle = nil
	return b[:0]
}

func (t *texts) put(b []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.idle = b
}

// zips compress as fast as they can: the supervisor's time is taken from the workers.
var zips = sync.Pool{New: func() any {
	z, _ := gzip.NewWriterLevel(io.Discard, gzip.BestSpeed) // there is such a level
	return z
}}

// write sends the text; who asked and is gone is no error of ours.
func write(w http.ResponseWriter, r *http.Request, format expfmt.Format, text []byte) {
	h := w.Header()
	h.Set("Content-Type", string(format))
	h.Set("Vary", "Accept, Accept-Encoding")
	if !takesGzip(r.Header.Get("Accept-Encoding")) {
		h.Set("Content-Length", strconv.Itoa(len(text)))
		writeParts(w, text)
		return
	}
	h.Set("Content-Encoding", "gzip")
	z := zips.Get().(*gzip.Writer)
	defer zips.Put(z)
	z.Reset(w)
	writeParts(z, text)
	_ = z.Close()
}

// writePart is small, since the kernel lets nobody else have the core while it takes it, and a slow client has its time
// for each.
const writePart = 32 << 10

func writeParts(w io.Writer, text []byte) {
	for part := range slices.Chunk(text, writePart) {
		if _, err := w.Write(part); err != nil {
			return
		}
	}
}

// takesGzip reads Accept-Encoding (RFC 9110 section 12.5.3). "*" would do, too, but nobody is owed it.
func takesGzip(accept string) bool {
	for part := range strings.SplitSeq(accept, ",") {
		name, quality, weighted := strings.Cut(strings.ReplaceAll(strings.ToLower(part), " ", ""), ";q=")
		if name == "gzip" {
			q, err := strconv.ParseFloat(quality, 64)
			return !weighted || err == nil && q > 0
		}
	}
	return false
}
