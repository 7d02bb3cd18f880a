// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// File is a store in a file: a line of JSON for each record, and the last line of an id
// holds. A change appends, so that it costs the same with a million keys; when more than half
// of the lines no longer count, the file is written anew and takes the old one's place by
// rename. A change is on disk when Change returns. What a writer that died left unfinished, a
// line without an end, counts for nothing.
//
// In memory are ids and places alone, some 100 bytes for each key. Who writes holds the lock of
// a file beside it; readers hold none and see what was written last.
type File struct {
	path string

	mu    sync.RWMutex
	f     *os.File // nil: there is no file yet
	read  int64    // bytes of it that are in the index
	lines int      // that were read
	index map[string]int64
}

var _ Store = (*File)(nil)

const (
	maxLine = 16 << 10
	// fewLines are not worth being written anew.
	fewLines = 1000
	lockTime = 10 * time.Second
	// pollTime is how often a file is looked at for what others changed: a revocation there
	// must hold within a second.
	pollTime = 250 * time.Millisecond
)

// OpenFile opens the store. The file need not be there yet, but what is there must be whole,
// and nobody else may have a right to it.
func OpenFile(path string) (*File, error) {
	s := &File{path: path, index: map[string]int64{}}
	if _, _, err := s.refresh(); err != nil {
		s.Close()
		return nil, fmt.Errorf("open API keys: %w", err)
	}
	return s, nil
}

// Close lets go of the file.
func (s *File) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.f == nil {
		return nil
	}
	f := s.f
	s.f = nil
	return f.Close()
}

// refresh reads what is new: ids of the lines, or anything, where the file is another one.
// The lock is held, or nobody has the store yet.
func (s *File) refresh() (ids []string, anything bool, err error) {
	named, err := os.Stat(s.path)
	if errors.Is(err, os.ErrNotExist) {
		anything = s.f != nil
		if anything {
			s.f.Close()
		}
		s.f, s.read, s.lines, s.index = nil, 0, 0, map[string]int64{}
		return nil, anything, nil
	}
	if err != nil {
		return nil, false, err
	}
	if s.f != nil {
		opened, err := s.f.Stat()
		if err != nil {
			return nil, false, err
		}
		if os.SameFile(opened, named) && opened.Size() >= s.read {
			ids, err = s.readLines()
			return ids, false, err
		}
	}
	fresh := &File{path: s.path, index: map[string]int64{}}
	if fresh.f, err = openPrivate(s.path, os.O_RDONLY); err != nil {
		return nil, false, err
	}
	if _, err = fresh.readLines(); err != nil {
		fresh.f.Close()
		return nil, false, err
	}
	if s.f != nil {
		s.f.Close()
	}
	s.f, s.read, s.lines, s.index = fresh.f, fresh.read, fresh.lines, fresh.index
	return nil, true, nil
}

// openPrivate refuses what others may read or change.
func openPrivate(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && (!info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0) {
		err = fmt.Errorf("%s: others may use it (%s): `chmod 600 %s`", path, info.Mode(), path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// makePrivate makes the file unless it is there.
func makePrivate(path string) error {
	f, err := openPrivate(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(settleOwner(f), f.Close())
}

// settleOwner gives what root made to the user whose the directory is: the gateway does not run
// as root, and could not change it.
func settleOwner(f *os.File) error {
	if os.Geteuid() != 0 {
		return nil
	}
	var dir unix.Stat_t
	if err := unix.Stat(filepath.Dir(f.Name()), &dir); err != nil {
		return fmt.Errorf("%s: %w", filepath.Dir(f.Name()), err)
	}
	return f.Chown(int(dir.Uid), int(dir.Gid))
}

// readLines puts whole lines behind s.read into the index.
func (s *File) readLines() (ids []string, err error) {
	r := bufio.NewReaderSize(io.NewSectionReader(s.f, s.read, 1<<62), 1<<16)
	initial := s.read == 0
	for {
		line, err := r.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF):
			return ids, nil // what is left has no end: its writer is at it, or died
		case err != nil && !errors.Is(err, bufio.ErrBufferFull):
			return ids, fmt.Errorf("%s: %w", s.path, err)
		}
		id, ok := lineID(line)
		if !ok || err != nil {
			return ids, fmt.Errorf("%s: %w: line %d is no record: restore the file from a copy, or take that line out", s.path, ErrDamaged, s.lines+1)
		}
		s.index[id] = s.read
		s.read += int64(len(line))
		s.lines++
		if !initial {
			ids = append(ids, id)
		}
	}
}

// A line begins so; json.Marshal writes fields in the order of the struct.
var lineStart = []byte(`{"id":"`)

func lineID(line []byte) (string, bool) {
	rest, ok := bytes.CutPrefix(line, lineStart)
	id, _, found := bytes.Cut(rest, []byte{'"'})
	return string(id), ok && found && ValidID(id)
}

// at reads the record whose line is there.
func (s *File) at(offset int64) (*Record, []byte, error) {
	room := make([]byte, 512)
	for {
		n, err := s.f.ReadAt(room, offset)
		if end := bytes.IndexByte(room[:n], '\n'); end >= 0 {
			line := room[:end+1]
			r := &Record{}
			if err := json.Unmarshal(line, r); err != nil {
				return nil, nil, fmt.Errorf("%s: %w: the record at byte %d: %w", s.path, ErrDamaged, offset, err)
			}
			return r, line, r.Check()
		}
		if err != nil || len(room) > maxLine {
			return nil, nil, fmt.Errorf("%s: %w: no record at byte %d: %w", s.path, ErrDamaged, offset, err)
		}
		room = make([]byte, 4*len(room))
	}
}

// Lookup reads from the file, which is usually in the kernel's memory.
func (s *File) Lookup(_ context.Context, ids []string) ([]*Record, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.lookup(ids)
}

func (s *File) lookup(ids []string) ([]*Record, error) {
	out := make([]*Record, len(ids))
	for i, id := range ids {
		offset, ok := s.index[id]
		if !ok {
			continue
		}
		r, _, err := s.at(offset)
		if err != nil {
			return nil, err
		}
		out[i] = r
	}
	return out, nil
}

// lock keeps other writers out, other processes among them.
func (s *File) lock(ctx context.Context) (release func(), err error) {
	if err := os.MkdirAll(filepath.Dir(s.path), 0o700); err != nil {
		return nil, err
	}
	if err := makePrivate(s.path + ".lock"); err != nil {
		return nil, err
	}
	f, err := openPrivate(s.path+".lock", os.O_RDWR)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, lockTime)
	defer cancel()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil // which unlocks
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("%s.lock: another process changes keys for too long: %w", s.path, err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Change appends lines.
func (s *File) Change(ctx context.Context, ids []string, change func([]*Record) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	release, err := s.lock(ctx)
	if err != nil {
		return fmt.Errorf("change API keys: %w", err)
	}
	defer release()
	if _, _, err = s.refresh(); err != nil {
		return fmt.Errorf("change API keys: %w", err)
	}
	records, err := s.lookup(ids)
	if err != nil {
		return fmt.Errorf("change API keys: %w", err)
	}
	if err := change(records); err != nil {
		return err
	}
	var text []byte
	for _, r := range records {
		if r == nil {
			continue
		}
		line, err := json.Marshal(r)
		if err != nil {
			return fmt.Errorf("change API keys: %w", err)
		}
		text = append(append(text, line...), '\n')
	}
	if err := s.append(text); err != nil {
		return fmt.Errorf("change API keys: %w", err)
	}
	if s.lines > fewLines && s.lines > 2*len(s.index) {
		if err := s.rewrite(); err != nil {
			return fmt.Errorf("the change is kept, but writing API keys anew failed: %w", err)
		}
	}
	return nil
}

// append writes behind what was read, and over what a writer that died left there.
func (s *File) append(text []byte) error {
	if err := makePrivate(s.path); err != nil {
		return err
	}
	f, err := openPrivate(s.path, os.O_WRONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	if err = f.Truncate(s.read); err == nil {
		_, err = f.WriteAt(text, s.read)
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil && s.f == nil {
		err = syncDirectory(s.path)
	}
	if err != nil {
		return errors.Join(err, f.Truncate(s.read))
	}
	_, _, err = s.refresh()
	return err
}

func syncDirectory(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// rewrite leaves a file with the lines that count.
func (s *File) rewrite() error {
	fresh := s.path + ".new"
	_ = os.Remove(fresh) // of one that died
	f, err := openPrivate(fresh, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return err
	}
	defer f.Close()
	offsets := make([]int64, 0, len(s.index))
	for _, offset := range s.index {
		offsets = append(offsets, offset)
	}
	slices.Sort(offsets)
	w := bufio.NewWriter(f)
	for _, offset := range offsets {
		_, line, err := s.at(offset)
		if err != nil {
			return err
		}
		if _, err := w.Write(line); err != nil {
			return err
		}
	}
	if err := errors.Join(w.Flush(), settleOwner(f), f.Sync()); err != nil {
		return err
	}
	if err := os.Rename(fresh, s.path); err != nil { // it holds from here on
		return err
	}
	_, _, err = s.refresh()
	return errors.Join(err, syncDirectory(s.path))
}

// List goes through the file. A place is the file's number and an offset in it: when the file
// was written anew in between, the list has to be begun again.
func (s *File) List(_ context.Context, from string, n int) (list []Record, next string, err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.f == nil {
		return nil, "", nil
	}
	info, err := s.f.Stat()
	if err != nil {
		return nil, "", fmt.Errorf("list API keys: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(s.f.Fd()), &st); err != nil {
		return nil, "", fmt.Errorf("list API keys: %w", err)
	}
	file, offset := strconv.FormatUint(st.Ino, 10), int64(0)
	if from != "" {
		of, at, _ := strings.Cut(from, ":")
		if offset, err = strconv.ParseInt(at, 10, 62); err != nil || of != file || offset > info.Size() {
			return nil, "", errors.New("list API keys: the file was written anew meanwhile: list again")
		}
	}
	r := bufio.NewReaderSize(io.NewSectionReader(s.f, offset, s.read-offset), 1<<16)
	for len(list) < n {
		line, err := r.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			return list, "", nil
		}
		if err != nil {
			return nil, "", fmt.Errorf("list API keys: %w", err)
		}
		if id, _ := lineID(line); s.index[id] == offset {
			var one Record
			if err := json.Unmarshal(line, &one); err != nil {
				return nil, "", fmt.Errorf("list API keys: %w: %w", ErrDamaged, err)
			}
			list = append(list, one)
		}
		offset += int64(len(line))
	}
	return list, file + ":" + strconv.FormatInt(offset, 10), nil
}

// Watch looks at the file again and again.
func (s *File) Watch(ctx context.Context, changed func(ids []string)) {
	tick := time.NewTicker(pollTime)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if !s.differs() {
			continue
		}
		s.mu.Lock()
		ids, anything, err := s.refresh()
		s.mu.Unlock()
		switch {
		case err != nil: // what was read before holds, and Change will tell
		case anything:
			changed(nil)
		case len(ids) > 0:
			changed(ids)
		}
	}
}

// differs tells, without keeping readers out, whether there is something to read.
func (s *File) differs() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	named, err := os.Stat(s.path)
	if s.f == nil || err != nil {
		return (err == nil) != (s.f != nil)
	}
	opened, err := s.f.Stat()
	return err != nil || !os.SameFile(opened, named) || opened.Size() != s.read
}
