// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/datapath"
	"github.com/xgw-project/xgw/pkg/host"
)

// runPlan predicts an attach; it fails when something blocks it.
func runPlan(e *env, name, mode string) error {
	switch mode {
	case host.ModeNative, host.ModeGeneric, host.ModeTC, host.ModeAuto:
	default:
		return usageError{fmt.Errorf("unknown mode %q: it is native, generic, tc or auto", mode)}
	}
	i, err := host.ReadInterface(name)
	if err != nil {
		return err
	}
	m, err := host.ReadMachine("/")
	if err != nil {
		return err
	}
	p := host.MakePlan(i, m, host.Wanted{Mode: mode, Frags: true, Own: ownProgram(i, e.instance)})
	p.Pinholes = host.Pinholes("/", os.Getenv("SSH_CONNECTION"))
	if e.json {
		err = json.NewEncoder(e.out).Encode(p)
	} else {
		err = p.WriteText(e.out)
	}
	if err == nil && p.Mode == "" {
		err = fmt.Errorf("attach %s in %s mode would be refused", name, mode)
	}
	return err
}

// ownProgram is the id of this instance's program on the hook, 0 for none. Opening a
// datapath mounts bpffs where it is not, which a plan must not.
func ownProgram(i host.Interface, instance string) uint32 {
	var fs unix.Statfs_t
	if err := unix.Statfs("/sys/fs/bpf", &fs); i.XDP == nil || err != nil || fs.Type != unix.BPF_FS_MAGIC {
		return 0
	}
	d, err := datapath.Open(datapath.Options{Interface: i.Name, Instance: instance})
	if err != nil {
		return 0
	}
	defer d.Close()
	if s := d.Status(); s.Attached {
		return s.Program
	}
	return 0
}
