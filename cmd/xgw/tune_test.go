// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/lab"
	"github.com/xgw-project/xgw/pkg/mend"
)

// Settings of a network namespace are shown, made and undone; those of the host are not there.
func TestTune(t *testing.T) {
	needRoot(t, "makes a lab")
	w := &ward{Lab: mustLab(t, "xgwtune"), t: t, instance: "tune"}
	w.setting("net.core.somaxconn", "128")
	w.setting("net.ipv4.tcp_tw_reuse", "2")
	before := map[string]string{}
	for i := range mend.Settings {
		if name := mend.Settings[i].Name; !strings.HasPrefix(name, "net.core.") || name == "net.core.somaxconn" {
			before[name] = w.setting(name)
		}
	}
	read := func() map[string]tuned {
		var all []tuned
		if err := json.Unmarshal([]byte(w.must("tune", "--json")), &all); err != nil {
			t.Fatal(err)
		}
		out := map[string]tuned{}
		for _, s := range all {
			out[s.Name] = s
		}
		return out
	}
	if s := read()["net.core.somaxconn"]; s.Good || s.Now != "128" || s.Want != "4096" || s.Reason == "" {
		t.Errorf("%+v", s)
	}
	if text := w.must("tune", "--sysctl"); !strings.Contains(text, "net.core.somaxconn = 4096\n") || !strings.Contains(text, "net.ipv4.tcp_syncookies = 1\n") {
		t.Errorf("%s", text) // also what is as it should be: it is to stay so
	}
	out := w.must("tune", "--apply", "--yes")
	for name, s := range read() {
		if !s.Good {
			t.Errorf("%s is still %s\n%s", name, s.Now, out)
		}
	}
	if s := w.setting("net.core.somaxconn"); s != "4096" {
		t.Errorf("somaxconn %s", s)
	}
	out = w.must("tune", "--undo")
	for name, was := range before {
		if now := w.setting(name); now != was {
			t.Errorf("%s is %s, it was %s\n%s", name, now, was, out)
		}
	}
	if status, _, errs := w.xgw("tune", "--apply", "--undo"); status != exitUsage || !strings.Contains(errs, "one of") {
		t.Errorf("status %d, %s", status, errs)
	}
}

// What somaxconn is worth: how many of a burst of connections get in while nobody accepts.
func TestEffectOfSomaxconn(t *testing.T) {
	needRoot(t, "makes a lab")
	w := &ward{Lab: mustLab(t, "xgwburst"), t: t}
	const burst = 200
	got := func(somaxconn string) (in int) {
		w.setting("net.core.somaxconn", somaxconn)
		ln, err := w.Listen(lab.Gateway, "tcp", "198.51.100.2:7000")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		raw, err := ln.(*net.TCPListener).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		// Anew, as Go's library reads somaxconn once in a process.
		var listened error
		err = raw.Control(func(fd uintptr) { listened = unix.Listen(int(fd), 4096) })
		if err := errors.Join(err, listened); err != nil {
			t.Fatal(err)
		}
		answers := make(chan net.Conn, burst)
		for range burst {
			go func() {
				var c net.Conn
				_ = w.In(lab.Client, func() (err error) {
					c, err = net.DialTimeout("tcp", "198.51.100.2:7000", 700*time.Millisecond)
					return err
				})
				answers <- c
			}()
		}
		var open []net.Conn
		for range burst {
			if c := <-answers; c != nil {
				open = append(open, c)
			}
		}
		for _, c := range open {
			c.Close()
		}
		return len(open)
	}
	few := got("16")
	all := 0
	for range 3 { // a busy machine may let some run into the timeout
		if all = got("4096"); all == burst {
			break
		}
	}
	t.Logf("of %d connections %d get in with somaxconn 16, %d with 4096", burst, few, all)
	if few > 40 || all < burst*9/10 {
		t.Errorf("of %d connections %d get in with 16, %d with 4096", burst, few, all)
	}
	i := slices.IndexFunc(mend.Settings, func(s mend.Setting) bool { return s.Name == "net.core.somaxconn" })
	if reason := mend.Settings[i].Reason; !strings.Contains(reason, fmt.Sprintf("of %d that come at once, 17 get in with 16", burst)) {
		t.Errorf("the reason says something else: %s", reason)
	}
}
