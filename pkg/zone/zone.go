// SPDX-License-Identifier: Apache-2.0

package zone

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Zone is a mapping of the file.
type Zone struct {
	file     *os.File // the supervisor's only
	info     os.FileInfo
	path     string
	mem      []byte
	layout   Layout
	off      offsets
	header   words
	slabs    []*Slab
	buckets  *LimitBuckets
	shares   *Shares
	history  words
	busy     [2]*Busiest // addresses, API keys
	replaced int
}

// Open maps the file for reading only. A file that is not a whole zone of this
// layout version is ErrNotZone, ErrVersion or ErrDamaged. Writing to what Open
// returns is a fault of the program.
func Open(path string) (*Zone, error) {
	f, err := openRegular(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("open zone: %w: is the gateway running, and is this its --instance?", err)
	}
	if err != nil {
		return nil, fmt.Errorf("open zone %s: %w", path, err)
	}
	return openFile(f, path, unix.PROT_READ)
}

// OpenFile maps a zone for writing from a descriptor that the supervisor handed
// over, and closes the descriptor: with it a worker that is taken over by an
// intruder could cut the file short under all the others.
func OpenFile(f *os.File) (*Zone, error) {
	return openFile(f, f.Name(), unix.PROT_READ|unix.PROT_WRITE)
}

func openFile(f *os.File, path string, protection int) (*Zone, error) {
	defer f.Close() // a mapping needs no descriptor
	l, info, err := inspect(f)
	if err != nil {
		return nil, fmt.Errorf("open zone %s: %w", path, err)
	}
	z, err := mapFile(f, l, protection)
	if err != nil {
		return nil, fmt.Errorf("open zone %s: %w", path, err)
	}
	z.path, z.info = path, info
	return z, nil
}

// inspect reads a copy of the header, without mapping: the file may be shorter
// than it was a moment ago.
func inspect(f *os.File) (Layout, os.FileInfo, error) {
	info, err := f.Stat()
	if err != nil {
		return Layout{}, nil, err
	}
	if !info.Mode().IsRegular() {
		return Layout{}, nil, fmt.Errorf("%w: not a regular file", ErrNotZone)
	}
	h := make(words, pageSize/8)
	if n, err := f.ReadAt(bytesOf(h), 0); errors.Is(err, io.EOF) {
		return Layout{}, nil, fmt.Errorf("%w: %d bytes are less than a header: name the file of a gateway", ErrNotZone, n)
	} else if err != nil {
		return Layout{}, nil, fmt.Errorf("read header: %w", err)
	}
	l, err := readLayout(h, info.Size())
	return l, info, err
}

// mapFile maps a file whose layout was checked.
func mapFile(f *os.File, l Layout, protection int) (*Zone, error) {
	mem, err := mapMemory(f, l.Size, protection)
	if err != nil {
		return nil, err
	}
	o := l.offsets()
	z := &Zone{mem: mem, layout: l, off: o, header: wordsOf(mem[:pageSize])}
	for i := range int64(l.slots()) {
		ringAt := o.rings + i*o.ringSize
		slabAt := o.slabs + i*o.slabSize
		slab := newSlab(mem[slabAt:slabAt+o.slabSize], l, o, newRing(mem[ringAt:ringAt+o.ringSize]))
		signalsAt, sessionsAt := o.signals+i*signalBytes, o.sessions+i*l.sessionSize()
		slab.Signals = newSignals(mem[signalsAt : signalsAt+signalBytes])
		slab.Sessions = newSessions(mem[sessionsAt : sessionsAt+l.sessionSize()])
		slab.holds = z.holdTable(int(i))
		z.slabs = append(z.slabs, slab)
	}
	z.history = wordsOf(mem[o.history:o.buckets])
	z.buckets = newLimitBuckets(mem[o.buckets:o.holds], z.header.load(headSecret), z.header.load(headSecret+1))
	z.shares = newShares(mem[o.shares:o.busy])
	z.busy[0] = &Busiest{mem: wordsOf(mem[o.busy : o.busy+busyBytes]), buckets: z.buckets, addresses: true}
	z.busy[1] = &Busiest{mem: wordsOf(mem[o.busy+busyBytes : o.end]), buckets: z.buckets}
	return z, nil
}

// Shares are those of limits that hold over several gateways.
func (z *Zone) Shares() *Shares { return z.shares }

// LimitBuckets are those of request limits.
func (z *Zone) LimitBuckets() *LimitBuckets { return z.buckets }

// File is the descriptor to hand to a worker; the zone keeps owning it. Nil for
// all but the supervisor.
func (z *Zone) File() *os.File { return z.file }

// Replaced is the process id of the dead supervisor whose zone Create replaced; 0
// for none, or for one that had closed it.
func (z *Zone) Replaced() int { return z.replaced }

// Layout is the zone's, with nothing left to defaults.
func (z *Zone) Layout() Layout { return z.layout }

// Size is that of the file, in bytes.
func (z *Zone) Size() int64 { return z.layout.Size }

// Workers is how many workers a supervisor has.
func (z *Zone) Workers() int { return z.layout.Workers }

// Slots is the number of slabs: two for each worker, see Shift.
func (z *Zone) Slots() int { return len(z.slabs) }

// Worker is the slab of the worker in the slot, 0 to Slots()-1.
func (z *Zone) Worker(slot int) *Slab { return z.slabs[slot] }

// Created is when the zone was made, and its counters began at 0.
func (z *Zone) Created() time.Time { return time.Unix(0, int64(z.header.load(headCreated))) }

// PID is the supervisor's; 0 once it has closed the zone.
func (z *Zone) PID() int { return ownerIn(z.header).pid }

// Alive tells whether the supervisor runs, as this process can see it. One that
// runs but hangs shows in Heartbeat.
func (z *Zone) Alive() bool { return ownerIn(z.header).alive() }

// Beat notes that the supervisor is well; now is CLOCK_MONOTONIC in ns.
func (z *Zone) Beat(now int64) { z.header.store(headBeat, uint64(now)) }

// Heartbeat is the last Beat; 0 before the first.
func (z *Zone) Heartbeat() int64 { return int64(z.header.load(headBeat)) }

// SetGeneration notes the generation in force. Supervisor only.
func (z *Zone) SetGeneration(g uint64) { z.header.store(headGeneration, g) }

// Generation is the one in force.
func (z *Zone) Generation() uint64 { return z.header.load(headGeneration) }

// InPlace tells whether the file is still the one at its path. A reader that outlives a
// gateway opens the zone again when it is not.
func (z *Zone) InPlace() bool {
	now, err := os.Lstat(z.path)
	return err == nil && os.SameFile(now, z.info)
}

// Remove unlinks the file, unless another zone is in its place by now. Mappings
// live on until closed.
func (z *Zone) Remove() error {
	now, err := os.Lstat(z.path)
	if errors.Is(err, os.ErrNotExist) || err == nil && !os.SameFile(now, z.info) {
		return nil
	}
	if err == nil {
		err = os.Remove(z.path)
	}
	if err != nil {
		return fmt.Errorf("remove zone: %w", err)
	}
	return nil
}

// Close unmaps the zone; its slabs and rings must not be touched any more. The
// file stays, with all that was counted. Closed by its supervisor it is nobody's,
// and the next Create replaces it.
func (z *Zone) Close() error {
	if z.mem == nil {
		return nil
	}
	var err error
	if z.file != nil {
		if ownerIn(z.header).pid == os.Getpid() { // else another supervisor has it by now
			z.header.store(headPID, 0)
		}
		err = z.file.Close()
	}
	err = errors.Join(err, unix.Munmap(z.mem))
	z.mem, z.header, z.slabs, z.buckets, z.shares, z.history, z.file, z.busy = nil, nil, nil, nil, nil, nil, nil, [2]*Busiest{}
	if err != nil {
		return fmt.Errorf("close zone: %w", err)
	}
	return nil
}
