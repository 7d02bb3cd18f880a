// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"bytes"
	"compress/gzip"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"

	"github.com/xgw-project/xgw/pkg/ledger"
	"github.com/xgw-project/xgw/pkg/zone"
)

// Whatever the values, and whatever comes and goes between readings, the text is byte for byte
// what the library makes of the same families.
func TestTextIsAsTheLibrarys(t *testing.T) {
	all := []*desc{
		newDesc(0, "a_total", "A, with \\ and\na line.", []string{"zeta", "alpha"}), newDesc(1, "b", "B.", nil),
		newDesc(2, "c_seconds", "C.", []string{"route"}), newDesc(3, "d", "D.", []string{"l"}),
	}
	seconds, label, id := 0.25, "trace_id", "abc # {} 1"
	exemplar := &dto.Exemplar{Label: []*dto.LabelPair{{Name: &label, Value: &id}}, Value: &seconds}
	values := []float64{
		0, 1, -1, 0.5, 1e-9, 42, 999_999, 1e6, 1_234_567, 123_456.75, 1 << 53, 1e21, math.MaxFloat64, math.NaN(), math.Inf(1), math.Inf(-1),
		math.Copysign(0, -1), -12,
	}
	f := newBuffers(all)
	var h zone.Histogram
	for i := range 3 * len(values) {
		f.begin()
		e := emitter{f}
		e.counter(all[0], uint64(i)*77_777, "quote\" \\ back\n", "sp ace")
		if i%3 > 0 {
			e.counter(all[0], uint64(i), "z", "")
		}
		e.gauge(all[1], values[i%len(values)])
		h.Buckets[3*i]++
		h.Count++
		h.Sum += time.Duration(i) * time.Millisecond
		e.histogram(all[2], &h, "quiet")
		var traces [classicBuckets]*dto.Exemplar
		traces[i%classicBuckets] = exemplar
		e.withExemplars(all[2], &h, &traces, "traced")
		if i%2 == 0 {
			e.gauge(all[3], 1, "comes and goes")
			e.gauge(all[3], 1, "\xff cannot be told")
		}
		families, _ := f.end() // that there is one that cannot be told
		for x := range syntaxes {
			var want bytes.Buffer
			for _, family := range families {
				if err := expfmt.NewEncoder(&want, formats[x]).Encode(family); err != nil {
					t.Fatal(err)
				}
			}
			var got []byte
			for _, family := range f.shown {
				var err error
				if got, err = family.appendText(got, x); err != nil {
					t.Fatal(err)
				}
			}
			if !bytes.Equal(got, want.Bytes()) {
				t.Fatalf("round %d, syntax %d:\n%s\nwant\n%s", i, x, got, want.Bytes())
			}
		}
	}
}

// What is served is the same text as the library serves, in each form, with the process's own
// metrics before ours, and by name where names are asked for.
func TestTextIsServedAsByTheLibrary(t *testing.T) {
	z := mustZone(t, 2, 16)
	src := fill(z)
	s := New(ledger.New(src), Options{Log: slog.New(slog.DiscardHandler)})
	s.reader.process = prometheus.NewRegistry() // its values differ from one reading to the next
	gauge := prometheus.NewGauge(prometheus.GaugeOpts{Name: "go_fixed", Help: "Fixed."})
	gauge.Set(3)
	s.reader.process.(*prometheus.Registry).MustRegister(gauge)
	for _, tt := range []struct {
		name, query, accept, encoding string
		zipped                        bool
	}{
		{"text", "", "", "", false},
		{"text, zipped", "", "", "deflate, gzip;q=0.5", true},
		{"gzip refused", "", "", "gzip; q=0, identity", false},
		{"OpenMetrics", "", "application/openmetrics-text;version=1.0.0", "", false},
		{"dots", "", "text/plain;version=1.0.0;escaping=dots", "", false},
		{"protobuf", "", protobuf, "", false},
		{"names", "?name[]=go_fixed&name[]=xgw_generation", "", "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ask := func(h http.Handler) *httptest.ResponseRecorder {
				r := httptest.NewRequest("GET", "/metrics"+tt.query, nil)
				r.Header.Set("Accept", tt.accept)
				r.Header.Set("Accept-Encoding", tt.encoding)
				w := httptest.NewRecorder()
				h.ServeHTTP(w, r)
				return w
			}
			own := ask(s.http.Handler)
			theirs := ask(s.texts.rest)
			if own.Code != http.StatusOK || own.Header().Get("Content-Type") != theirs.Header().Get("Content-Type") {
				t.Errorf("%d %q, the library's is %q", own.Code, own.Header().Get("Content-Type"), theirs.Header().Get("Content-Type"))
			}
			if zipped := own.Header().Get("Content-Encoding") == "gzip"; zipped != tt.zipped {
				t.Errorf("zipped: %v", zipped)
			}
			if got, want := unzipped(t, own), unzipped(t, theirs); !bytes.Equal(got, want) || len(got) == 0 {
				t.Errorf("text:\n%s\nthe library's:\n%s", got, want)
			}
		})
	}
}

func unzipped(t *testing.T, w *httptest.ResponseRecorder) []byte {
	t.Helper()
	if w.Header().Get("Content-Encoding") != "gzip" {
		return w.Body.Bytes()
	}
	z, err := gzip.NewReader(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
