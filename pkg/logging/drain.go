// SPDX-License-Identifier: Apache-2.0

package logging

import (
	"bytes"
	"context"
	"io"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/config"
	"github.com/xgw-project/xgw/pkg/zone"
)

const (
	pollInterval = 50 * time.Millisecond
	batchBytes   = 64 << 10
	ringTurn     = 64 // records of one ring before the next has its turn
	batches      = 3  // one filling, one waiting, one being written
	// While less of a ring waits than this, workers go before its lines.
	patient = 0.5
	// lastWait is how long the end waits for a writer that does not take the rest.
	lastWait = 2 * time.Second
)

// Drainer moves access records from all workers' rings to a writer. One goroutine
// empties the rings and never waits; another one writes. While the writer is slow,
// records wait in the rings, and workers drop and count what does not fit; what
// the writer refuses is lost, and counted here.
type Drainer struct {
	zone     *zone.Zone
	format   *Access
	out      io.Writer
	syslog   *Syslog // nil for none
	off      bool
	lastWait time.Duration
	// Observe, when not nil, sees each record, those that are not logged, too; it is set
	// before Run.
	Observe func(*zone.AccessRecord)

	appendLine func(b []byte, r *zone.AccessRecord) []byte
	sampling   []samplingRule
	redaction  *redaction // nil: nothing is left out

	giveWay func() // lets a worker that waits for this CPU go on; the test's to change

	batch   *batch
	full    chan *batch
	free    chan *batch
	done    chan struct{} // Run has returned
	written chan struct{} // the writing goroutine has ended

	torn     bool        // the writer's: the last line went out in part
	reopened atomic.Bool // a new file has no part of a line

	lines, diskFull, slow, other, sampledOut atomic.Uint64
}

type batch struct {
	text  []byte
	lines int
}

// NewDrainer makes a drainer. The caller owns out and syslog, nil for none, and closes
// them after Wait; a *File that is off costs no formatting.
func NewDrainer(z *zone.Zone, out io.Writer, syslog *Syslog, names Names) *Drainer {
	d := &Drainer{
		zone: z, format: NewAccess(names), out: out, syslog: syslog, off: out == io.Discard, lastWait: lastWait,
		batch: new(batch), full: make(chan *batch, 1), free: make(chan *batch, batches),
		done: make(chan struct{}), written: make(chan struct{}),
	}
	d.appendLine, d.giveWay = d.format.AppendLine, giveWay
	if f, ok := out.(*File); ok {
		d.off = f.Off()
	}
	for range batches - 1 {
		d.free <- new(batch)
	}
	return d
}

// Configure says what is logged of a record, and how; call it before Run.
func (d *Drainer) Configure(c *config.Log) {
	d.appendLine = d.format.AppendLine
	if c.Format == "json" {
		d.appendLine = d.format.AppendJSON
	}
	d.sampling, d.redaction = samplingRules(c.Sampling), newRedaction(c.Redact)
}

// Run drains until ctx ends. Call it once, and Wait after it.
func (d *Drainer) Run(ctx context.Context) {
	defer close(d.done)
	go d.write()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			for d.turn(d.offer) && ctx.Err() == nil {
			}
			if d.batch.lines > 0 {
				d.offer()
			}
		}
	}
}

// Wait returns when Run has and the last records are written, those of workers
// that ended meanwhile included. For a writer that takes nothing it waits two
// seconds and counts the rest as lost. Afterwards the drainer touches neither the
// zone nor, unless the writer hangs, the writer.
func (d *Drainer) Wait() {
	<-d.done
	end := time.NewTimer(d.lastWait)
	defer end.Stop()
	late := false
	hand := func() bool {
		if !late {
			select {
			case d.full <- d.batch:
				d.batch = <-d.free
				return true
			case <-end.C:
				late = true
			}
		}
		d.slow.Add(uint64(d.batch.lines))
		d.batch.reset()
		return true
	}
	// Workers are gone by now; were one not, it would not keep us.
	for hard := time.Now().Add(2 * d.lastWait); d.turn(hand) && time.Now().Before(hard); {
	}
	if d.batch.lines > 0 {
		hand()
	}
	close(d.full)
	if late {
		return // what the writer sits on is counted when it gives up, if ever
	}
	select {
	case <-d.written:
	case <-end.C:
	}
}

// Reopen opens the writer's file anew, where it has one.
func (d *Drainer) Reopen() error {
	r, ok := d.out.(interface{ Reopen() error })
	if !ok {
		return nil
	}
	if err := r.Reopen(); err != nil {
		return err
	}
	d.reopened.Store(true)
	return nil
}

// Lines counts those written.
func (d *Drainer) Lines() uint64 { return d.lines.Load() }

// Lost counts lines that were taken from the rings and not written: the disk or the
// quota was full; anything else, the writer's slowness at the end included.
func (d *Drainer) Lost() (diskFull, other uint64) {
	return d.diskFull.Load(), d.other.Load() + d.slow.Load()
}

// SampledOut counts records that the configuration's rules of sampling left out.
func (d *Drainer) SampledOut() uint64 { return d.sampledOut.Load() }

// turn takes some records out of each ring and hands a full batch on. It is true
// when more may wait: a ring gave all that it was asked for.
func (d *Drainer) turn(hand func() bool) (more bool) {
	for i := range d.zone.Slots() {
		if len(d.batch.text) >= batchBytes && !hand() {
			return false
		}
		ring := d.zone.Worker(i).Access
		n := ring.DrainUpTo(ringTurn, d.add)
		if n == ringTurn {
			more = true
		}
		if n > 0 && ring.Filled() < patient {
			d.giveWay()
		}
	}
	return more
}

// giveWay lets a worker go on that waits for this CPU. The kernel asks who is to run when somebody wakes, but then not again before the next
// tick, and of one that has just run finds that it may wait: the lines of 50 ms at once made a hundredth of all requests wait for a millisecond.
// Where the worker never sleeps, it costs the rest of a time slice of a thread that has few: half of the lines were lost.
func giveWay() {
	_, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) // cannot fail
}

func (d *Drainer) add(r *zone.AccessRecord) {
	if d.redaction != nil {
		d.redaction.apply(r) // before anybody sees it
	}
	if d.Observe != nil {
		d.Observe(r)
	}
	if len(d.sampling) > 0 && !keeps(d.sampling, r, d.format.routes.name(r.Route)) {
		d.sampledOut.Add(1)
		return
	}
	if d.syslog != nil {
		d.syslog.Record(r)
	}
	if d.off {
		return
	}
	d.batch.text = d.appendLine(d.batch.text, r)
	d.batch.lines++
}

// offer hands the batch to the writing goroutine, if that is ready for it once it had its turn,
// which on one core it may not have had.
func (d *Drainer) offer() bool {
	for range 3 { // the scheduler may prefer this one once
		select {
		case d.full <- d.batch:
			d.batch = <-d.free // of three batches one is free now
			return true
		default:
			runtime.Gosched()
		}
	}
	return false
}

func (b *batch) reset() { b.text, b.lines = b.text[:0], 0 }

func (d *Drainer) write() {
	defer close(d.written)
	for b := range d.full {
		d.writeOut(b)
		b.reset()
		d.free <- b
	}
}

// writeOut counts each line as written or lost. A line that went out in part (the
// disk filled up) is ended before the next, so that it spoils no other.
func (d *Drainer) writeOut(b *batch) {
	if d.reopened.Swap(false) {
		d.torn = false
	}
	if d.torn {
		if _, err := d.out.Write([]byte{'\n'}); err != nil {
			d.lose(b.lines, err)
			return
		}
		d.torn = false
	}
	n, err := d.out.Write(b.text)
	n = max(0, min(n, len(b.text)))
	if err == nil && n < len(b.text) {
		err = io.ErrShortWrite
	}
	whole := b.lines
	if err != nil {
		whole = bytes.Count(b.text[:n], []byte{'\n'})
		d.torn = n > 0 && b.text[n-1] != '\n'
	}
	d.lines.Add(uint64(whole))
	d.lose(b.lines-whole, err)
}

func (d *Drainer) lose(lines int, cause error) {
	if isFull(cause) {
		d.diskFull.Add(uint64(lines))
	} else {
		d.other.Add(uint64(lines))
	}
}
