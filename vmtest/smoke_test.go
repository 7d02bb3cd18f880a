// SPDX-License-Identifier: Apache-2.0

// Package vmtest has what the kernel matrix asks of each kernel before anything
// of the gateway runs on it, and what the tree is asked for as a whole.
package vmtest

import (
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// TestSmoke tells a broken virtual machine from a broken gateway.
func TestSmoke(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: it loads a BPF program")
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	t.Logf("kernel %s", unix.ByteSliceToString(name.Release[:]))
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Logf("go on with the limit there is: %v", err)
	}
	counts, err := ebpf.NewMap(&ebpf.MapSpec{Name: "smoke", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatalf("create map: %v", err)
	}
	defer counts.Close()
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "smoke", Type: ebpf.XDP, License: "Dual BSD/GPL", Instructions: countAndDrop(counts.FD())})
	if err != nil {
		t.Fatalf("load program: %+v", err)
	}
	defer program.Close()

	const frames = 3
	for range frames {
		verdict, _, err := program.Test(make([]byte, 64))
		if err != nil {
			t.Fatalf("run program: %v", err)
		}
		if drop := uint32(1); verdict != drop {
			t.Errorf("verdict %d, want %d (XDP_DROP)", verdict, drop)
		}
	}
	var got uint64
	if err := counts.Lookup(uint32(0), &got); err != nil {
		t.Fatal(err)
	}
	if got != frames {
		t.Errorf("the map counted %d frames, want %d", got, frames)
	}
}

// countAndDrop adds one to the map's first value and drops the frame.
func countAndDrop(fd int) asm.Instructions {
	return asm.Instructions{
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, fd),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.Mov.Imm(asm.R1, 1),
		asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, 1).WithSymbol("out"),
		asm.Return(),
	}
}
