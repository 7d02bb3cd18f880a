// SPDX-License-Identifier: Apache-2.0

package logging

import (
	"context"
	"errors"
	"io"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/zone"
)

const (
	pollInterval = 50 * time.Millisecond
	batchBytes   = 256 << 10
)

// Drainer moves access records from all workers' rings to a writer. While the
// writer is slow, records wait in the rings, and workers drop what does not fit.
type Drainer struct {
	zone  *zone.Zone
	names Names
	out   io.Writer
	batch []byte
	lines int
	done  chan struct{}

	lostFull, lostOther atomic.Uint64
}

// NewDrainer makes a drainer; the caller owns out.
func NewDrainer(z *zone.Zone, out io.Writer, names Names) *Drainer {
	return &Drainer{zone: z, names: names, out: out, done: make(chan struct{})}
}

// Run drains until ctx ends, and then what is left once more at Wait.
func (d *Drainer) Run(ctx context.Context) {
	defer close(d.done)
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			d.drain()
		}
	}
}

// Wait returns when Run has; it drains what workers wrote meanwhile.
func (d *Drainer) Wait() {
	<-d.done
	d.drain()
}

// Lost counts lines that the writer refused, by cause.
func (d *Drainer) Lost() (diskFull, other uint64) { return d.lostFull.Load(), d.lostOther.Load() }

func (d *Drainer) drain() {
	for i := range d.zone.Workers() {
		d.zone.Worker(i).Access.Drain(func(r *zone.AccessRecord) {
			d.batch = d.names.AppendLine(d.batch, r)
			d.lines++
			if len(d.batch) >= batchBytes {
				d.flush()
			}
		})
	}
	d.flush()
}

func (d *Drainer) flush() {
	if len(d.batch) == 0 {
		return
	}
	if _, err := d.out.Write(d.batch); err != nil && !errors.Is(err, os.ErrClosed) {
		if errors.Is(err, unix.ENOSPC) {
			d.lostFull.Add(uint64(d.lines))
		} else {
			d.lostOther.Add(uint64(d.lines))
		}
	}
	d.batch, d.lines = d.batch[:0], 0
}
