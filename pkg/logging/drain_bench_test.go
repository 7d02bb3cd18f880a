// SPDX-License-Identifier: Apache-2.0

package logging

import (
	"os"
	"path/filepath"
	"testing"
)

// BenchmarkDrain is a record's way from a ring to the disk's cache, without the worker's part.
func BenchmarkDrain(b *testing.B) {
	for _, path := range []string{"off", filepath.Join(b.TempDir(), "access.log")} {
		b.Run(filepath.Base(path), func(b *testing.B) {
			z := mustZone(b)
			f, err := Open(path, os.Stdout)
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			d := NewDrainer(z, f, nil, testNames())
			r := record()
			n := 0
			for b.Loop() {
				b.StopTimer()
				put := 0
				for put < 200 && z.Worker(0).Access.Put(&r) {
					put++
				}
				b.StartTimer()
				d.turn(func() bool { return true })
				if len(d.batch.text) > batchBytes/4 {
					d.writeOut(d.batch)
					d.batch.reset()
				}
				n += put
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/record")
		})
	}
}
