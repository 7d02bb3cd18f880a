// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"

	"github.com/xgw-project/xgw/pkg/datapath"
)

// Give makes a user the owner of what an instance's supervisor finds when it starts and must be
// able to change: the pins, and the zone of one that was killed. name is the user's, or its
// number. It needs root, and a gateway that does not run.
func Give(instance, name string) error {
	uid, gid, err := lookUp(name)
	if err != nil {
		return err
	}
	if err := datapath.Give(datapath.Options{Instance: instance}, uid, gid); err != nil {
		return err
	}
	zone := ZonePath(instance)
	dir, err := os.OpenRoot(filepath.Dir(zone))
	if err != nil {
		return err
	}
	defer dir.Close()
	for _, ending := range []string{"", ".new", zoneBefore} {
		name := filepath.Base(zone) + ending
		// Not a stranger's link or device, which anybody may put there.
		if info, err := dir.Lstat(name); err != nil || !info.Mode().IsRegular() {
			continue
		}
		if err := dir.Lchown(name, uid, gid); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("give %s away: %w", zone+ending, err)
		}
	}
	return nil
}

func lookUp(name string) (uid, gid int, err error) {
	if uid, err := strconv.Atoi(name); err == nil {
		return uid, uid, nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return 0, 0, fmt.Errorf("%w: `useradd --system %s` makes it", err, name)
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	return uid, gid, errors.Join(err1, err2)
}
