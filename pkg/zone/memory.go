// SPDX-License-Identifier: Apache-2.0

package zone

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// words is a piece of the mapping seen as 64-bit values, in the machine's byte
// order: a zone never leaves the machine. This file is the only one with unsafe in it.
type words []uint64

// wordsOf sees the bytes as words. They start at a multiple of eight: mappings
// start at a page, and every offset in a layout is a multiple of a cache line.
func wordsOf(mem []byte) words {
	p := unsafe.Pointer(unsafe.SliceData(mem))
	if uintptr(p)%8 != 0 {
		panic("zone: memory is not aligned for 64-bit values")
	}
	return unsafe.Slice((*uint64)(p), len(mem)/8)
}

// bytesOf is the way back.
func bytesOf(w words) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(w))), len(w)*8)
}

func (w words) load(i int) uint64     { return atomic.LoadUint64(&w[i]) }
func (w words) store(i int, v uint64) { atomic.StoreUint64(&w[i], v) }
func (w words) add(i int, v uint64)   { atomic.AddUint64(&w[i], v) }
func (w words) swap(i int, old, next uint64) bool {
	return atomic.CompareAndSwapUint64(&w[i], old, next)
}

func mapMemory(f *os.File, size int64, protection int) ([]byte, error) {
	mem, err := unix.Mmap(int(f.Fd()), 0, int(size), protection, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes: %w", size, err)
	}
	return mem, nil
}

// Guard runs read and turns a memory fault in it into an error. Only who may write
// the file can cause one, by cutting it short under its readers; a reader that
// outlives a gateway, such as a terminal screen, does well to read under Guard.
// Other panics pass through. Memory that read touches in goroutines of its own is
// not guarded.
func (z *Zone) Guard(read func()) (err error) {
	before := debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(before)
	defer func() {
		switch v := recover().(type) {
		case nil:
		case runtime.Error:
			fault, ok := v.(interface{ Addr() uintptr })
			if !ok || !z.covers(fault.Addr()) {
				panic(v)
			}
			err = fmt.Errorf("read zone %s: %w: the file was cut short while it was mapped: open it again", z.path, ErrDamaged)
		default:
			panic(v)
		}
	}()
	read()
	return nil
}

func (z *Zone) covers(addr uintptr) bool {
	first := uintptr(unsafe.Pointer(unsafe.SliceData(z.mem)))
	return addr >= first && addr-first < uintptr(len(z.mem))
}
