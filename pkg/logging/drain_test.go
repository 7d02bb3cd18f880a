// SPDX-License-Identifier: Apache-2.0

package logging

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/zone"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func mustZone(tb testing.TB) *zone.Zone {
	tb.Helper()
	l := zone.Layout{Workers: 3, Routes: 4, Upstreams: 4, AccessRing: 64 << 10}
	l.Size = l.Need()
	z, err := zone.Create(filepath.Join(tb.TempDir(), "xgw.zone"), l)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { z.Close() })
	return z
}

func zoneNames(z *zone.Zone) Names { return Names{Route: z.RouteName, Upstream: z.UpstreamName} }

// putNumbered puts a record of the worker; its generation is its number.
func putNumbered(z *zone.Zone, worker int, n uint64) bool {
	r := record()
	r.Worker, r.Generation = worker, n
	return z.Worker(worker).Access.Put(&r)
}

// start runs the drainer; the returned function stops and waits.
func start(d *Drainer) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	go d.Run(ctx)
	return func() { cancel(); d.Wait() }
}

var numbered = regexp.MustCompile(` worker=(\d+) .* gen=(\d+) `)

// numbers are the lines' generations by worker; each line must be whole.
func numbers(tb testing.TB, log []byte) map[string][]string {
	tb.Helper()
	out := map[string][]string{}
	for _, line := range strings.SplitAfter(string(log), "\n") {
		if line == "" {
			continue
		}
		m := numbered.FindStringSubmatch(line)
		if m == nil || !lineShape.MatchString(line) {
			tb.Fatalf("a spoiled line: %q", line)
		}
		out[m[1]] = append(out[m[1]], m[2])
	}
	return out
}

func upTo(n int) (out []string) {
	for i := range n {
		out = append(out, fmt.Sprint(i))
	}
	return out
}

// Every record of every worker comes out once, in its worker's order, those put
// after the end of Run included.
func TestDrainer(t *testing.T) {
	z := mustZone(t)
	z.RouteSlot("api")
	var out bytes.Buffer
	d := NewDrainer(z, &out, nil, zoneNames(z))
	ctx, cancel := context.WithCancel(context.Background())
	go d.Run(ctx)
	const each = 3000
	var wg sync.WaitGroup
	for w := range z.Workers() {
		wg.Go(func() {
			for n := uint64(0); n < each; {
				if putNumbered(z, w, n) {
					n++
				} else {
					time.Sleep(time.Millisecond)
				}
			}
		})
	}
	wg.Wait()
	waitFor(t, func() bool { return d.Lines() >= 3*each-64 }) // so that there is room
	cancel()
	<-d.done
	if !putNumbered(z, 1, each) {
		t.Fatal("the ring is full")
	}
	d.Wait()
	got := numbers(t, out.Bytes())
	for w, want := range map[string]int{"0": each, "1": each + 1, "2": each} {
		if !slices.Equal(got[w], upTo(want)) {
			t.Errorf("worker %s has %d lines, want %d, or not in order", w, len(got[w]), want)
		}
	}
	if full, other := d.Lost(); full+other != 0 || d.Lines() != 3*each+1 {
		t.Errorf("%d lines, lost %d and %d", d.Lines(), full, other)
	}
}

func TestDrainerReopen(t *testing.T) {
	z := mustZone(t)
	path := filepath.Join(t.TempDir(), "access.log")
	f := mustOpen(t, path)
	d := NewDrainer(z, f, nil, zoneNames(z))
	stop := start(d)
	putNumbered(z, 0, 0)
	waitFor(t, func() bool { return d.Lines() == 1 })
	if err := errors.Join(os.Rename(path, path+".1"), d.Reopen()); err != nil {
		t.Fatal(err)
	}
	putNumbered(z, 0, 1)
	stop()
	if got := numbers(t, mustRead(t, path+".1"))["0"]; !slices.Equal(got, []string{"0"}) {
		t.Errorf("old file has %v", got)
	}
	if got := numbers(t, mustRead(t, path))["0"]; !slices.Equal(got, []string{"1"}) {
		t.Errorf("new file has %v", got)
	}
	if err := NewDrainer(z, new(bytes.Buffer), nil, zoneNames(z)).Reopen(); err != nil {
		t.Errorf("a writer without file: %v", err)
	}
}

func TestDrainerOff(t *testing.T) {
	z := mustZone(t)
	d := NewDrainer(z, mustOpen(t, "off"), nil, zoneNames(z))
	stop := start(d)
	for n := range uint64(5000) {
		for !putNumbered(z, 0, n) {
			time.Sleep(time.Millisecond)
		}
	}
	stop()
	if full, other := d.Lost(); full+other+d.Lines() != 0 {
		t.Errorf("lines %d, lost %d, %d", d.Lines(), full, other)
	}
}

func waitFor(tb testing.TB, done func() bool) {
	tb.Helper()
	for range 2000 {
		if done() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	tb.Fatal("it did not happen")
}

// hangingWriter takes nothing until it is released.
type hangingWriter struct {
	entered chan struct{}
	release chan struct{}
	bytes.Buffer
}

func (w *hangingWriter) Write(b []byte) (int, error) {
	select {
	case w.entered <- struct{}{}:
	default:
	}
	<-w.release
	return w.Buffer.Write(b)
}

// A writer that hangs does not hold up a worker, nor the end of the supervisor.
// What waits in the rings stays there and what does not fit is dropped by the
// worker; when the writer goes on, so does the log.
func TestDrainerHangingWriter(t *testing.T) {
	z := mustZone(t)
	w := &hangingWriter{entered: make(chan struct{}, 1), release: make(chan struct{})}
	d := NewDrainer(z, w, nil, zoneNames(z))
	stop := start(d)
	n, dropped := uint64(0), 0
	put := func() {
		if putNumbered(z, 0, n) {
			n++
		} else {
			dropped++
		}
	}
	put()
	<-w.entered
	// More than all buffers hold. A Put that waited for the writer would hang here.
	waitFor(t, func() bool {
		for range 2000 {
			put()
		}
		return dropped > 100_000
	})
	close(w.release)
	before := n
	waitFor(t, func() bool { put(); return n > before+10 })
	stop()
	got := numbers(t, w.Bytes())["0"]
	if !slices.Equal(got, upTo(int(n))) {
		t.Errorf("%d lines of %d records", len(got), n)
	}
	if full, other := d.Lost(); full+other != 0 {
		t.Errorf("lost %d and %d", full, other)
	}
}

func TestDrainerEndsWithHangingWriter(t *testing.T) {
	z := mustZone(t)
	w := &hangingWriter{entered: make(chan struct{}, 1), release: make(chan struct{})}
	d := NewDrainer(z, w, nil, zoneNames(z))
	d.lastWait = 20 * time.Millisecond
	stop := start(d)
	putNumbered(z, 0, 0)
	<-w.entered
	var put uint64 = 1
	for range 20 {
		for putNumbered(z, 0, put) {
			put++
		}
		time.Sleep(2 * pollInterval / 10)
	}
	stop() // returns
	// The zone can go: nobody touches it any more.
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	close(w.release)
	<-d.written
	_, lost := d.Lost()
	got := uint64(len(numbers(t, w.Bytes())["0"]))
	if got != d.Lines() || got+lost != put || got == 0 || lost == 0 {
		t.Errorf("%d records, %d lines, %d lost", put, got, lost)
	}
}

// failingWriter takes so many bytes, then fails until it is mended.
type failingWriter struct {
	room int
	err  error
	bytes.Buffer
}

func (w *failingWriter) Write(b []byte) (int, error) {
	if w.err == nil {
		return w.Buffer.Write(b)
	}
	n := min(w.room, len(b))
	w.room -= n
	w.Buffer.Write(b[:n])
	if n < len(b) {
		return n, w.err
	}
	return n, nil
}

// Lines that are refused are counted by cause, and one that went out in part
// spoils no other.
func TestDrainerFailingWriter(t *testing.T) {
	lineSize := func() int {
		r := record()
		return len(NewAccess(testNames()).AppendLine(nil, &r))
	}()
	for _, tt := range []struct {
		name      string
		room      int
		err       error
		diskFull  uint64
		other     uint64
		wantWhole int
		wantPart  bool
	}{
		{"disk full at once", 0, unix.ENOSPC, 10, 0, 0, false},
		{"disk full within a line", lineSize*2 + 30, &os.PathError{Op: "write", Err: unix.ENOSPC}, 8, 0, 2, true},
		{"quota", 10, unix.EDQUOT, 10, 0, 0, true},
		{"broken pipe", 0, unix.EPIPE, 0, 10, 0, false},
		{"short write", lineSize, nil, 0, 0, 10, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := &failingWriter{room: tt.room, err: tt.err}
			d := &Drainer{giveWay: giveWay, out: w, appendLine: NewAccess(testNames()).AppendLine}
			lines := func(from, n int) *batch {
				for i := range n {
					r := record()
					r.Generation = uint64(from + i)
					if d.batch == nil {
						d.batch = new(batch)
					}
					d.add(&r)
				}
				b := d.batch
				d.batch = nil
				return b
			}
			d.writeOut(lines(0, 10))
			if full, other := d.Lost(); full != tt.diskFull || other != tt.other || d.Lines() != 10-full-other {
				t.Errorf("written %d, lost %d and %d", d.Lines(), full, other)
			}
			if tt.wantPart {
				d.writeOut(lines(10, 3)) // still full
				if full, other := d.Lost(); full != tt.diskFull+3 || other != tt.other {
					t.Errorf("lost %d and %d", full, other)
				}
			}
			w.err = nil // there is room again
			d.writeOut(lines(20, 5))
			got := strings.Split(strings.TrimSuffix(w.String(), "\n"), "\n")
			parts := 0
			var whole bytes.Buffer
			for _, line := range got {
				if lineShape.MatchString(line + "\n") {
					whole.WriteString(line + "\n")
				} else {
					parts++
				}
			}
			want := append(upTo(tt.wantWhole), "20", "21", "22", "23", "24")
			if all := numbers(t, whole.Bytes())["1"]; !slices.Equal(all, want) {
				t.Errorf("lines %v, want %v", all, want)
			}
			if (parts == 1) != tt.wantPart || parts > 1 {
				t.Errorf("%d lines in part", parts)
			}
		})
	}
}

// A part of a line stays in the old file; the new one begins with a whole line.
func TestDrainerTornAndReopened(t *testing.T) {
	for _, reopened := range []bool{false, true} {
		var out bytes.Buffer
		d := &Drainer{giveWay: giveWay, out: &out, torn: true}
		d.reopened.Store(reopened)
		d.writeOut(&batch{text: []byte("x\n"), lines: 1})
		d.writeOut(&batch{text: []byte("y\n"), lines: 1})
		if got, want := out.String(), map[bool]string{false: "\nx\ny\n", true: "x\ny\n"}[reopened]; got != want {
			t.Errorf("reopened %v: %q, want %q", reopened, got, want)
		}
	}
}

// A real disk that is full.
func TestDrainerFullDevice(t *testing.T) {
	z := mustZone(t)
	f, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip("needs /dev/full: ", err)
	}
	defer f.Close()
	d := NewDrainer(z, f, nil, zoneNames(z))
	stop := start(d)
	for n := range uint64(10) {
		putNumbered(z, int(n%3), n)
	}
	stop()
	if full, other := d.Lost(); full != 10 || other != 0 || d.Lines() != 0 {
		t.Errorf("written %d, lost %d and %d", d.Lines(), full, other)
	}
}

// On one core, too, a burst goes out in a look or few, however many batches it is: what stays in
// the rings until the next one is lost when they are full.
func TestDrainerOnOneCore(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	l := zone.Layout{Workers: 1, Routes: 4, Upstreams: 4, AccessRing: 4 << 20}
	l.Size = l.Need()
	z, err := zone.Create(filepath.Join(t.TempDir(), "xgw.zone"), l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { z.Close() })
	put := 0
	for putNumbered(z, 0, uint64(put)) {
		put++
	}
	d := NewDrainer(z, new(bytes.Buffer), nil, zoneNames(z))
	go d.write()
	const most = 5 // with -race the scheduler plays dice; without a turn for the writer these took half
	for range most {
		for d.turn(d.offer) {
		}
	}
	if left := z.Worker(0).Access.Drain(func(*zone.AccessRecord) {}); left > 0 {
		t.Errorf("%d of %d records wait after %d looks", left, put, most)
	}
	close(d.full)
	<-d.written
}

// On a CPU that a worker shares it is not kept waiting for longer than a few lines take, unless many are there.
func TestDrainerGivesWay(t *testing.T) {
	z := mustZone(t)
	ring := z.Worker(0).Access
	n := int64(0)
	for putNumbered(z, 0, uint64(n)) {
		n++
	}
	var lines, most, ways atomic.Int64
	d := NewDrainer(z, io.Discard, nil, zoneNames(z))
	d.Observe = func(*zone.AccessRecord) {
		if ring.Filled() < patient {
			most.Store(max(most.Load(), lines.Add(1)))
		}
	}
	d.giveWay = func() {
		if f := ring.Filled(); f >= patient {
			t.Errorf("it gives way though %.2f of the ring waits", f)
		}
		lines.Store(0)
		ways.Add(1)
	}
	stop := start(d)
	waitFor(t, func() bool { return ring.Filled() == 0 })
	stop()
	if most.Load() > ringTurn {
		t.Errorf("%d lines at once, want at most %d", most.Load(), ringTurn)
	}
	if want := max(1, n/2/ringTurn); ways.Load() < want || ways.Load() > want+1 {
		t.Errorf("it gave way %d times for the last half of %d lines, want %d", ways.Load(), n, want)
	}
}
