// SPDX-License-Identifier: Apache-2.0

package zone

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
)

// overflow is the name of the last slot of each kind, which all names share that
// found no slot of their own: series stay bounded whatever the configuration holds.
const overflow = "overflow"

// NoRoute is the slot of exchanges that reach no route; its name is "none".
const NoRoute = 0

const noRoute = "none"

// nameWords sees the 64 bytes of a slot's name: a length byte, then the name.
func (z *Zone) nameWords(i int) words {
	at := z.off.names + int64(i)*nameSize
	return wordsOf(z.mem[at : at+nameSize])
}

func (z *Zone) nameAt(i int) string {
	var b [nameSize]byte
	for at, w := 0, z.nameWords(i); at < len(w); at++ {
		binary.NativeEndian.PutUint64(b[at*8:], w.load(at))
	}
	name := b[1 : 1+min(int(b[0]), nameSize-1)]
	clean(name)
	return string(name)
}

// clean replaces what no name in a configuration has: whoever wrote it, a name
// cannot forge a log line or a label.
func clean(name []byte) {
	for i, c := range name {
		if c <= ' ' || c > '~' || c == '"' || c == '\\' {
			name[i] = '?'
		}
	}
}

// setName is for the supervisor alone. The length comes last, with the first
// bytes, so that a reader sees no name or a whole one.
func (z *Zone) setName(i int, name string) {
	var b [nameSize]byte
	b[0] = byte(copy(b[1:], name))
	w := z.nameWords(i)
	for at := len(w) - 1; at >= 0; at-- {
		w.store(at, binary.NativeEndian.Uint64(b[at*8:]))
	}
}

// fitName is a name as a slot holds it. Two long ones that begin alike stay two.
func fitName(name string) string {
	if len(name) >= nameSize {
		h := fnv.New32a()
		_, _ = h.Write([]byte(name)) // never fails
		name = fmt.Sprintf("%s~%08x", name[:nameSize-1-9], h.Sum32())
	}
	b := []byte(name)
	clean(b)
	return string(b)
}

// slotOf finds the name among n slots from the first, or takes a free one. A slot
// keeps its name for the zone's life, so counters never change their meaning.
func (z *Zone) slotOf(first, n int, name string) int {
	name = fitName(name)
	if name == "" || name == overflow {
		return n - 1
	}
	for i := range n - 1 {
		switch z.nameAt(first + i) {
		case name:
			return i
		case "":
			z.setName(first+i, name)
			return i
		}
	}
	return n - 1
}

func (z *Zone) names(first, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = z.nameAt(first + i)
	}
	return out
}

// RouteSlot finds or takes the slot of a route's name: 1 to 63 bytes of printable
// ASCII, longer ones are cut. Supervisor only, and not from two goroutines at once.
// A route called none or overflow shares the slot of that name.
func (z *Zone) RouteSlot(name string) int { return z.slotOf(0, z.layout.Routes, name) }

// UpstreamSlot finds or takes the slot of an upstream's name, as RouteSlot does.
func (z *Zone) UpstreamSlot(name string) int {
	return z.slotOf(z.layout.Routes, z.layout.Upstreams, name)
}

// LimitSlot finds or takes the slot of a request limit's name, as RouteSlot does.
func (z *Zone) LimitSlot(name string) int {
	return z.slotOf(z.layout.Routes+z.layout.Upstreams, z.layout.Limits, name)
}

// Routes lists the names by slot; "" is a free one.
func (z *Zone) Routes() []string { return z.names(0, z.layout.Routes) }

// Upstreams lists the names by slot; "" is a free one.
func (z *Zone) Upstreams() []string { return z.names(z.layout.Routes, z.layout.Upstreams) }

// RouteName is the name of a slot: "" for a free one, overflow for one that cannot be.
func (z *Zone) RouteName(slot int) string { return z.nameIn(0, z.layout.Routes, slot) }

// UpstreamName is the name of a slot, as RouteName has it.
func (z *Zone) UpstreamName(slot int) string {
	return z.nameIn(z.layout.Routes, z.layout.Upstreams, slot)
}

// LimitName is the name of a slot, as RouteName has it.
func (z *Zone) LimitName(slot int) string {
	return z.nameIn(z.layout.Routes+z.layout.Upstreams, z.layout.Limits, slot)
}

func (z *Zone) nameIn(first, n, slot int) string {
	if slot < 0 || slot >= n {
		return overflow
	}
	return z.nameAt(first + slot)
}
