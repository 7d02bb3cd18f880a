// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/datapath"
	"github.com/xgw-project/xgw/pkg/host"
)

// runPlan predicts an attach; it fails when something blocks it.
func runPlan(e *env, name, mode string) error {
	i, err := host.ReadInterface(name)
	if err != nil {
		return err
	}
	m, err := host.ReadMachine("/")
	if err != nil {
		return err
	}
	w := host.Wanted{Mode: mode, Frags: true, Instance: e.instance}
	if w.Own, err = ownProgram(name, e.instance); err != nil {
		w.Obstacle = err.Error()
	}
	p := host.MakePlan(i, m, w)
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

// ownProgram is the id of this instance's program on the interface, 0 for none; its error
// is why the attach would be refused. Opening a datapath mounts bpffs where it is not, which
// a plan must not.
func ownProgram(name, instance string) (uint32, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs("/sys/fs/bpf", &fs); err != nil || fs.Type != unix.BPF_FS_MAGIC {
		return 0, datapath.CheckMount()
	}
	d, err := datapath.Open(datapath.Options{Interface: name, Instance: instance})
	if errors.Is(err, datapath.ErrElsewhere) || errors.Is(err, datapath.ErrLayout) {
		return 0, err
	}
	if err != nil {
		return 0, nil //nolint:nilerr // nothing is there, or it is replaced by an attach
	}
	defer d.Close()
	return d.Status().Program, nil
}
