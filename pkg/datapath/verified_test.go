// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/json"
	"os"
	"regexp"
	"strconv"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/bpf"
)

// What the verifier walked on each kernel when it was last looked at: it grows with a
// compiler, a kernel, a careless branch, and a million is the end. Of another kernel
// version it says nothing.
const verifiedRecord = "testdata/verified.json"

func TestVerifiedInstructions(t *testing.T) {
	needRoot(t)
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(verifiedRecord)
	if err != nil {
		t.Fatal(err)
	}
	record := map[string]map[string]int{}
	if err := json.Unmarshal(text, &record); err != nil {
		t.Fatal(err)
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	series := regexp.MustCompile(`^\d+\.\d+`).FindString(unix.ByteSliceToString(name.Release[:]))
	spec, err := bpf.LoadGateway()
	if err != nil {
		t.Fatal(err)
	}
	d := &Datapath{queues: 4}
	if err := d.fit(spec); err != nil {
		t.Fatal(err)
	}
	processed := regexp.MustCompile(`processed (\d+) insns`)
	for program := range spec.Programs {
		one := spec.Copy()
		for other := range one.Programs {
			if other != program {
				delete(one.Programs, other)
			}
		}
		if program != "select_worker" {
			delete(one.Maps, bpf.GatewayMapWorkers)
		}
		c, err := ebpf.NewCollectionWithOptions(one, ebpf.CollectionOptions{Programs: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats}})
		if err != nil {
			t.Errorf("%s: %v", program, err)
			continue
		}
		m := processed.FindStringSubmatch(c.Programs[program].VerifierLog)
		c.Close()
		if m == nil {
			t.Errorf("%s: the verifier's log says no count", program)
			continue
		}
		got, _ := strconv.Atoi(m[1])
		want, known := record[series][program]
		switch {
		case !known:
			t.Logf("%s on Linux %s: %d instructions verified, no record in %s", program, series, got, verifiedRecord)
		case got > want+want/10:
			t.Errorf("%s on Linux %s: %d instructions verified, the record is %d: more than a tenth above", program, series, got, want)
		default:
			t.Logf("%s on Linux %s: %d instructions verified, record %d", program, series, got, want)
		}
	}
}
