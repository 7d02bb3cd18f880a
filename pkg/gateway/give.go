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
	"syscall"

	"github.com/xgw-project/xgw/pkg/datapath"
)

// Give makes a user the owner of what an instance's supervisor finds when it starts and must be
// able to change: the pins, and the zone of one that was killed. name is the user's, or its
// number. What a stranger has put in the zone's place is removed. It needs root, and a gateway
// that does not run. With datapath.ErrNoPins all but the pins is given.
func Give(instance, name string) error {
	uid, gid, err := lookUp(name)
	if err != nil {
		return err
	}
	if err := giveZone(ZonePath(instance), uid, gid); err != nil {
		return err
	}
	return datapath.Give(datapath.Options{Instance: instance}, uid, gid)
}

// giveZone gives a zone of root's away. Anybody may make a file of these names: what is neither
// root's nor the user's is removed, for with another owner it would still be open to whoever made
// it, and left there it would keep the gateway from starting.
func giveZone(path string, uid, gid int) error {
	dir, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	// The zone comes last: of an upgrade that was killed, .old is a second name of it.
	for _, ending := range []string{".new", zoneBefore, ""} {
		name := filepath.Base(path) + ending
		info, err := dir.Lstat(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("give zone away: %w", err)
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		switch {
		case ok && int(st.Uid) == uid:
			continue
		case ok && st.Uid == 0 && ending == "" && info.Mode().IsRegular() && st.Nlink == 1:
			// Nobody but root can put another file there meanwhile.
			err = dir.Lchown(name, uid, gid)
		default:
			err = dir.RemoveAll(name)
		}
		if err != nil {
			return fmt.Errorf("give %s%s away: %w", path, ending, err)
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
