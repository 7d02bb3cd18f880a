// SPDX-License-Identifier: Apache-2.0

// Package mend changes settings of the machine so that each change can be undone: what was
// there before is written down before anything is changed, and undoing leaves alone what
// somebody else has changed since.
package mend

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Kind is where a setting is.
type Kind string

// Kinds of settings.
const (
	Sysctl  Kind = "sysctl"  // Object is its name, net.core.somaxconn
	File    Kind = "file"    // Object is a path of /proc or /sys
	Ring    Kind = "ring"    // Object is an interface: descriptors of its receive ring
	Feature Kind = "feature" // Object is an interface, Name a feature as ethtool -K takes it: on or off
	RSS     Kind = "rss"     // Object is an interface: the queue of each entry of its table
	Limit   Kind = "limit"   // Object is a process and its start, "PID/START": open files, "SOFT:HARD"
)

// Change is one setting and what it is to be.
type Change struct {
	Kind   Kind   `json:"kind"`
	Object string `json:"object"`
	Name   string `json:"name,omitempty"`
	Value  string `json:"value"`

	// Filled when it is made.
	Was       string    `json:"was,omitempty"`
	By        string    `json:"by,omitempty"`
	At        time.Time `json:"at,omitzero"`
	Namespace uint64    `json:"network_namespace,omitempty"` // inode; settings of a network are each namespace's own
}

// Command is what an operator would type for it.
func (c Change) Command() string {
	switch c.Kind {
	case Sysctl:
		return fmt.Sprintf("sysctl -w %s=%q", c.Object, c.Value)
	case File:
		return fmt.Sprintf("echo %s > %s", c.Value, c.Object)
	case Ring:
		return fmt.Sprintf("ethtool -G %s rx %s", c.Object, c.Value)
	case Feature:
		return fmt.Sprintf("ethtool -K %s %s %s", c.Object, c.Name, c.Value)
	case RSS:
		return fmt.Sprintf("ethtool -X %s equal %d", c.Object, queuesOf(c.Value))
	case Limit:
		pid, _, _ := strings.Cut(c.Object, "/")
		return fmt.Sprintf("prlimit --pid %s --nofile=%s", pid, c.Value)
	}
	return ""
}

// ParseCommand reads `ethtool -K INTERFACE FEATURE on|off`, the command that plans of package
// host name; false for any other.
func ParseCommand(command string) (Change, bool) {
	w := strings.Fields(command)
	if len(w) != 5 || w[0] != "ethtool" || w[1] != "-K" || w[4] != "on" && w[4] != "off" {
		return Change{}, false
	}
	return Change{Kind: Feature, Object: w[2], Name: w[3], Value: w[4]}, true
}

// Same tells whether both change the same setting.
func (c *Change) Same(o Change) bool {
	return c.Kind == o.Kind && c.Object == o.Object && c.Name == o.Name && c.Namespace == o.Namespace
}

// Device reads and writes settings that are no files.
type Device interface {
	Read(c Change) (string, error)
	Write(c Change, value string) error
}

// Machine is where settings are changed.
type Machine struct {
	Root    string // of /proc and /sys; / on a real machine
	Device  Device
	Journal string // the file where changes are written down
}

// JournalPath is the journal of an instance. It is gone after a reboot, as the settings are. Root
// writes it, so its directory is not the one of a gateway that may run as another user.
func JournalPath(instance string) string {
	if instance == "" {
		return "/run/xgw-changes/changes.json"
	}
	return "/run/xgw-changes/changes-" + instance + ".json"
}

// Here is this machine.
func Here(instance string) *Machine {
	return &Machine{Root: "/", Device: Devices{}, Journal: JournalPath(instance)}
}

func (m *Machine) path(c Change) string {
	if c.Kind == Sysctl {
		return filepath.Join(m.Root, "proc/sys", strings.ReplaceAll(c.Object, ".", "/"))
	}
	return filepath.Join(m.Root, c.Object)
}

// Read is the present value. Spaces and the commas of CPU masks are as the kernel writes them.
func (m *Machine) Read(c Change) (string, error) {
	if c.Kind != Sysctl && c.Kind != File {
		return m.Device.Read(c)
	}
	text, err := os.ReadFile(m.path(c))
	if err != nil {
		return "", err
	}
	return strings.Join(strings.Fields(string(text)), " "), nil
}

func (m *Machine) write(c Change, value string) error {
	if c.Kind != Sysctl && c.Kind != File {
		return m.Device.Write(c, value)
	}
	f, err := os.OpenFile(m.path(c), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value + "\n")
	return errors.Join(err, f.Close())
}

// Result is what became of one change.
type Result struct {
	Change
	Error string `json:"error,omitempty"` // why it was not made, or not undone
}

// Apply makes the changes, each written down before it is made. What is so already is left
// out of the results; one that fails does not stop the others, and is in the error.
func (m *Machine) Apply(by string, changes []Change) ([]Result, error) {
	unlock, err := m.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	journal, err := m.read()
	if err != nil {
		return nil, err
	}
	var out []Result
	var errs []error
	for _, c := range changes {
		made, err := m.apply(&journal, by, c)
		if err != nil {
			err = fmt.Errorf("%s: %w", c.Command(), err)
			errs = append(errs, err)
			out = append(out, Result{made, err.Error()})
		} else if made.By != "" {
			out = append(out, Result{Change: made})
		}
	}
	return out, errors.Join(errs...)
}

// apply makes one change; what it returns has no By when it was so already.
func (m *Machine) apply(journal *[]Change, by string, c Change) (Change, error) {
	was, err := m.Read(c)
	if err != nil || Equal(was, c.Value) {
		return c, err
	}
	before := slices.Clone(*journal)
	c.Was, c.By, c.At, c.Namespace = was, by, time.Now(), namespace()
	if i := slices.IndexFunc(*journal, c.Same); i >= 0 {
		if o := (*journal)[i]; o.By == by || Equal(o.Value, was) {
			c.Was = o.Was // undone to what it was before the first change
		}
		*journal = slices.Delete(*journal, i, i+1)
	}
	*journal = append(*journal, c)
	if err := m.save(*journal); err != nil {
		return c, err
	}
	if err := m.write(c, c.Value); err != nil {
		*journal = before
		return c, errors.Join(err, m.save(before))
	}
	return c, nil
}

// Undo puts back what by has changed, the last first ("": all, whoever it was by). What was
// changed by others since stays, which its result says.
func (m *Machine) Undo(by string) ([]Result, error) {
	unlock, err := m.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	journal, err := m.read()
	if err != nil {
		return nil, err
	}
	here := namespace()
	var out []Result
	var errs []error
	for i := len(journal) - 1; i >= 0; i-- {
		c := journal[i]
		if by != "" && c.By != by || c.Namespace != here {
			continue
		}
		r := Result{Change: c}
		switch now, err := m.Read(c); {
		case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ESRCH):
			r.Error = "it is there no more"
		case err == nil && !Equal(now, c.Value):
			r.Error = fmt.Sprintf("left as it is: somebody has set it to %s since", now)
		case err == nil:
			err = m.write(c, c.Was)
			fallthrough
		default:
			if err != nil {
				err = fmt.Errorf("set %s back to %s: %w", strings.TrimSpace(c.Object+" "+c.Name), c.Was, err)
				errs, r.Error = append(errs, err), err.Error()
				out = append(out, r)
				continue // it stays in the journal
			}
		}
		out = append(out, r)
		journal = slices.Delete(journal, i, i+1)
	}
	return out, errors.Join(append(errs, m.save(journal))...)
}

// Changes are those that could be undone.
func (m *Machine) Changes() ([]Change, error) { return m.read() }

func (m *Machine) read() ([]Change, error) {
	text, err := os.ReadFile(m.Journal)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var all []Change
	if err == nil {
		err = json.Unmarshal(text, &all)
	}
	if err != nil {
		return nil, fmt.Errorf("read changes: %s: %w", m.Journal, err)
	}
	return all, nil
}

func (m *Machine) save(all []Change) error {
	if len(all) == 0 {
		if err := os.Remove(m.Journal); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("write changes down: %w", err)
		}
		return nil
	}
	text, err := json.MarshalIndent(all, "", " ")
	if err == nil {
		err = os.WriteFile(m.Journal+".new", text, 0o600)
	}
	if err == nil {
		err = os.Rename(m.Journal+".new", m.Journal)
	}
	if err != nil {
		return fmt.Errorf("write changes down: %w", err)
	}
	return nil
}

// lock keeps two commands from changing at once.
func (m *Machine) lock() (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(m.Journal), 0o755); err != nil {
		return nil, fmt.Errorf("write changes down: %w", err)
	}
	f, err := os.OpenFile(m.Journal+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("write changes down: %w: run it as root", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("write changes down: lock: %w", err)
	}
	return func() { f.Close() }, nil
}

// namespace is the inode of this thread's network namespace; 0 for unknown.
func namespace() uint64 {
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		return 0
	}
	return st.Ino
}

// maskForm is how the kernel writes sets of CPUs as masks; lists of them, such as 0,8, are none.
var maskForm = regexp.MustCompile(`^[0-9a-fA-F]{1,8}(,[0-9a-fA-F]{8})*$`)

// Equal compares values as the kernel may write them: 0000,00000003 is 3.
func Equal(a, b string) bool {
	if a == b {
		return true
	}
	if !maskForm.MatchString(a) || !maskForm.MatchString(b) {
		return false
	}
	a, b = strings.TrimLeft(strings.ReplaceAll(a, ",", ""), "0"), strings.TrimLeft(strings.ReplaceAll(b, ",", ""), "0")
	return a == b && !strings.ContainsAny(a, " -")
}
