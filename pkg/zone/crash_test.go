// SPDX-License-Identifier: Apache-2.0

package zone

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"testing"
	"time"
)

// beWriter writes records that carry their own check into ring 0, and counts each
// before it puts the next, until it is killed.
func beWriter() {
	z, err := OpenFile(os.NewFile(3, "zone"))
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	s := z.Worker(0)
	rec := AccessRecord{Generation: 1} // of this life
	text := make([]byte, maxTarget)
	fmt.Println("writing")
	for {
		n := 4 + int(rec.Generation*37%uint64(maxTarget-8))
		fill(text[:n], uint64(os.Getpid()), rec.Generation)
		rec.BytesIn, rec.Target = uint64(os.Getpid()), text[:n]
		rec.UserAgent = text[4:min(n, 200)]
		if s.Access.Put(&rec) {
			s.Request(1, 200, time.Microsecond, RequestOK)
			rec.Generation++
		} else {
			s.Add(AccessRecordsDropped, 1)
		}
	}
}

// fill makes a text with its checksum in front.
func fill(b []byte, pid, n uint64) {
	for i := range b[4:] {
		b[4+i] = byte(pid + n*7 + uint64(i)*13)
	}
	binary.LittleEndian.PutUint32(b, crc32.ChecksumIEEE(b[4:]))
}

// A writer is another process, killed at any point of its work, fifty times over.
// The reader never waits, never gets a torn or foreign record, misses none that was
// counted, and the next writer goes on.
func TestWriterKilled(t *testing.T) {
	rounds := 50
	if testing.Short() {
		rounds = 5
	}
	z := mustCreate(t, zonePath(t), small())
	ring := z.Worker(0).Access
	random := rand.New(rand.NewPCG(3, 4))
	total, before := uint64(0), uint64(0)
	check := make([]byte, maxTarget)
	for round := range rounds {
		cmd, out := role(t, roleWriter, []*os.File{z.File()})
		if line, err := out.ReadString('\n'); err != nil || line != "writing\n" {
			t.Fatalf("round %d: writer says %q, %v", round, line, err)
		}
		pid, seen := uint64(cmd.Process.Pid), uint64(0)
		read := func(rec *AccessRecord) {
			seen++
			if rec.BytesIn != pid || rec.Generation != seen {
				t.Fatalf("round %d: record %d of process %d, want %d of %d", round, rec.Generation, rec.BytesIn, seen, pid)
			}
			want := check[:4+int(seen*37%uint64(maxTarget-8))]
			fill(want, pid, seen)
			if string(rec.Target) != string(want) || string(rec.UserAgent) != string(want[4:min(len(want), 200)]) {
				t.Fatalf("round %d: record %d is torn", round, seen)
			}
		}
		// Sometimes the ring is full when it happens, mostly it is not.
		until := time.Now().Add(time.Duration(random.IntN(4000)) * time.Microsecond)
		for time.Now().Before(until) {
			if round%5 != 0 {
				ring.Drain(read)
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		ring.Drain(read) // while it dies
		_ = cmd.Wait()
		ring.Drain(read)
		total += seen
		counted := z.Worker(0).LoadRequest(RequestOK)
		// The last one may have been put and not yet counted.
		if missing := int64(total) - int64(counted); missing < 0 || missing > int64(round+1) {
			t.Fatalf("round %d: %d records were read, %d counted", round, total, counted)
		}
		if counted < before {
			t.Fatalf("round %d: a counter went down from %d to %d", round, before, counted)
		}
		before = counted
	}
	if ring.Damaged() != 0 || total < uint64(rounds) {
		t.Errorf("%d records, %d damaged", total, ring.Damaged())
	}
	t.Logf("%d rounds, %d records, %d dropped by a full ring", rounds, total, z.Worker(0).Load(AccessRecordsDropped))
}
