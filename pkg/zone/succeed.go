// SPDX-License-Identifier: Apache-2.0

package zone

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Adopt maps a zone that another supervisor hands over, if it has the layout that this one
// would make: all counters, buckets and names go on. Own makes it this process's. An
// error that is ErrLayout or ErrVersion says why a fresh one has to be made. The zone owns
// the descriptor, with an error, too.
func Adopt(f *os.File, path string, l Layout) (*Zone, error) {
	z, err := adopt(f, path, l)
	if err != nil {
		return nil, fmt.Errorf("adopt zone %s: %w", path, errors.Join(err, f.Close()))
	}
	return z, nil
}

func adopt(f *os.File, path string, l Layout) (*Zone, error) {
	want, err := l.Complete()
	if err != nil {
		return nil, err
	}
	have, info, err := inspect(f)
	if err != nil {
		return nil, err
	}
	if have != want {
		return nil, fmt.Errorf("%w: it is made for %d workers in %d bytes, this configuration wants %d in %d, or other rings and tables",
			ErrLayout, have.Workers, have.Size, want.Workers, want.Size)
	}
	z, err := mapFile(f, have, unix.PROT_READ|unix.PROT_WRITE)
	if err != nil {
		return nil, err
	}
	z.file, z.path, z.info = f, path, info
	return z, nil
}

// Supersede is Create in the place of a zone whose supervisor, of this process id, lives and
// has agreed: it and its workers keep the old one.
func Supersede(path string, l Layout, pid int) (*Zone, error) { return makeZone(path, l, pid) }

// Own makes this process the zone's supervisor. Who was it must be gone, or have agreed.
func (z *Zone) Own() {
	o := self()
	z.header.store(headPID, uint64(o.pid))
	z.header.store(headStart, o.start)
}

// SetShift says which slots the supervisor's own workers have: Workers() from first on. The
// others are for those of a supervisor before or after it, while they finish what is under
// way: so every slab has one writer.
func (z *Zone) SetShift(first int) { z.header.store(headShift, uint64(first)) }

// Shift is the first slot of the supervisor's own workers: 0 or Workers().
func (z *Zone) Shift() int {
	if z.header.load(headShift) == uint64(z.layout.Workers) {
		return z.layout.Workers
	}
	return 0
}

// OtherShift is the first slot of those that are not.
func (z *Zone) OtherShift() int { return z.layout.Workers - z.Shift() }
