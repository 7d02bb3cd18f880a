// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// Of what lies in the zone's place, the supervisor's user gets what was root's alone: a stranger
// still has what a stranger made.
func TestGiveZone(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: makes files of other users")
	}
	const engine, stranger = 61234, 61235
	file := func(owner int) func(string) error {
		return func(path string) error {
			return errors.Join(os.WriteFile(path, []byte("zone"), 0o600), os.Chown(path, owner, owner))
		}
	}
	tests := map[string]struct {
		make   func(path string) error
		ending string
		owner  int // of what is left; -1: nothing is
	}{
		"zone of root":         {file(0), "", engine},
		"zone of the user":     {file(engine), "", engine},
		"zone of a stranger":   {file(stranger), "", -1},
		"new one of root":      {file(0), ".new", -1},
		"new one of the user":  {file(engine), ".new", engine},
		"new one of strangers": {file(stranger), ".new", -1},
		"old one of the user":  {file(engine), zoneBefore, engine},
		"old one of strangers": {file(stranger), zoneBefore, -1},
		"link of root": {func(path string) error {
			return os.Symlink("secret", path)
		}, "", -1},
		"second name of root's secret": {func(path string) error {
			return os.Link(filepath.Join(filepath.Dir(path), "secret"), path)
		}, "", -1},
		"directory of a stranger": {func(path string) error {
			return errors.Join(os.Mkdir(path, 0o700), os.Symlink("../secret", filepath.Join(path, "in")), os.Chown(path, stranger, stranger))
		}, ".new", -1},
		"zone of root that has an old name": {func(path string) error {
			return errors.Join(file(0)(path), os.Link(path, path+zoneBefore))
		}, "", engine},
	}
	for name, tt := range tests {
		dir := t.TempDir()
		secret, path := filepath.Join(dir, "secret"), filepath.Join(dir, "xgw.zone")
		if err := errors.Join(file(0)(secret), tt.make(path+tt.ending)); err != nil {
			t.Fatal(err)
		}
		if err := giveZone(path, engine, engine); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := ownerOf(t, path+tt.ending); got != tt.owner {
			t.Errorf("%s: what is left is of %d; want %d", name, got, tt.owner)
		}
		if got := ownerOf(t, secret); got != 0 {
			t.Errorf("%s: root's secret is of %d now", name, got)
		}
	}
}

// ownerOf is -1 for what is not there.
func ownerOf(t *testing.T, path string) int {
	t.Helper()
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return -1
	}
	if err != nil {
		t.Fatal(err)
	}
	return int(info.Sys().(*syscall.Stat_t).Uid)
}
