// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/admin"
	"github.com/xgw-project/xgw/pkg/lab"
)

// trialLab is a gateway whose clients are an abuser and a good one with an API key.
type trialLab struct {
	*verdictLab
	key, id string
	fault   string // file with the step that is to fail
}

// tried is a command that tries a policy.
type tried struct {
	stop      context.CancelFunc // ^C
	out, errs bytes.Buffer
	status    chan int
}

// try starts `xgw policy try` and returns when the trial has begun.
func (v *trialLab) try(t *testing.T, args ...string) *tried {
	t.Helper()
	before := v.generation(t)
	ctx, stop := context.WithCancel(context.Background())
	c := &tried{stop: stop, status: make(chan int, 1)}
	t.Cleanup(stop)
	go func() {
		c.status <- run(ctx, append([]string{"xgw", "--instance", v.instance, "policy", "try"}, args...), &env{out: &c.out, err: &c.errs})
	}()
	eventually(t, "the trial begins", func() bool {
		select {
		case status := <-c.status:
			t.Fatalf("status %d: %s%s", status, &c.out, &c.errs)
		default:
		}
		return v.generation(t) > before
	})
	return c
}

func (v *trialLab) generation(t *testing.T) uint64 {
	t.Helper()
	s, err := v.ctl.Status()
	if err != nil {
		t.Fatal(err)
	}
	return s.Generation
}

// ended waits for the command's end.
func (c *tried) ended(t *testing.T) {
	t.Helper()
	select {
	case status := <-c.status:
		if status != 0 {
			t.Fatalf("status %d: %s%s", status, &c.out, &c.errs)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the command does not end")
	}
}

// traffic is 60 connections of the abuser with two requests each, and one of the good client
// with 30. All are answered.
func (v *trialLab) traffic(t *testing.T) {
	t.Helper()
	for range 60 {
		abuser := v.APIClient(lab.Attacker, "abuser", false, 10*time.Second)
		abuser.Call(context.Background())
		abuser.Call(context.Background())
		abuser.Close()
		if abuser.OK.Load() != 2 {
			t.Fatal("refused in truth: ", abuser)
		}
	}
	good := v.APIClient(lab.Client, "good", true, 10*time.Second)
	good.Bearer = v.key
	for range 30 {
		good.Call(context.Background())
	}
	good.Close()
	if good.OK.Load() != 30 {
		t.Fatal("refused in truth: ", good)
	}
	// A worker notes an exchange after it was answered.
	eventually(t, "all exchanges are over", func() bool { return strings.Count(grep(v.metrics(t), "xgw_requests_in_flight{"), "} 0\n") == 2 })
}

// nothingDropped in truth.
func (v *trialLab) nothingDropped(t *testing.T) {
	t.Helper()
	for _, c := range statusOf(t, v.Lab, v.instance).Counts {
		if c.Verdict == "drop" && c.Packets > 0 {
			t.Errorf("dropped in truth: %+v", c)
		}
	}
	if text := grep(v.metrics(t), `outcome="rejected"`); strings.Contains(text, "xgw_request_limit_requests_total") && !strings.Contains(text, "} 0") {
		t.Errorf("refused in truth: %s", text)
	}
}

// A policy that is tried says what it would have cost whom, and costs nobody anything: one that
// is right hurts the abuser alone, one that is too strict the good client, whose key it names.
func TestPolicyTry(t *testing.T) {
	fault := filepath.Join(t.TempDir(), "fault")
	rewrite(t, fault, "")
	t.Setenv("XGW_TEST_FAULT", fault)
	v := &trialLab{verdictLab: newVerdictLab(t, "tried", "", ""), fault: fault}
	v.key = mustRun(t, "--instance", v.instance, "keys", "add", "--consumer", "alice")
	v.id = strings.Split(v.key, "_")[1]
	other := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(other, name)
		rewrite(t, path, text)
		return path
	}
	whole := write("gateway.yaml", v.text)
	write("ratelimit.lua", `limit_req{name = "clients", rate = "1r/h", burst = 50, nodelay = true}
packet_limit{name = "syns", key = "source", count = "syns", rate = 1, burst = 20}`)

	began := time.Now()
	c := v.try(t, whole, "--json")
	v.traffic(t)
	took := time.Since(began)
	if err := v.ctl.EndTrial(); err != nil {
		t.Fatal(err)
	}
	c.ended(t)
	v.nothingDropped(t)
	var r admin.Tried
	if err := json.Unmarshal(c.out.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	if r.Requests != 150 || r.OK != 150 || r.Refused != 70 || r.Lost != 70 || r.AtRisk != 50 || r.Hurt != 1 || r.Unhurt != 1 || r.AuthenticatedHit != 0 || r.Ended != "asked" || len(r.Clients) != 2 {
		t.Fatalf("%s", &c.out)
	}
	// Of 60 SYNs 20 pass at once, and one each second.
	least := uint64(max(0, 40-1-int(took.Seconds())))
	abuser, good := r.Clients[0], r.Clients[1]
	if abuser.Address != "192.0.2.18" || abuser.Key != "" || abuser.Requests != 120 || abuser.Refused != 70 || abuser.Packets < least || abuser.Packets > 40 || abuser.Denied != 0 {
		t.Errorf("the abuser: %+v", abuser)
	}
	if good.Address != "192.0.2.2" || good.Key != v.id || good.Consumer != "alice" || good.OK != 30 || good.IsHurt() || good.AtRisk+good.Lost > 0 {
		t.Errorf("the good client: %+v", good)
	}
	if r.Packets.Dropped != abuser.Packets || r.Packets.Addresses != 1 || r.Packets.Unknown != 0 || r.Packets.Tried < 400 || len(r.Limits) != 2 || r.Limits[0].Over != abuser.Packets || r.Limits[1].Over != 70 {
		t.Errorf("packets: %+v, limits: %+v", r.Packets, r.Limits)
	}

	strict := write("strict.lua", `deny{"192.0.2.18/32"}
limit_req{name = "holders", key = "api_key", rate = "1r/h", burst = 10, nodelay = true}`)
	c = v.try(t, strict)
	v.traffic(t)
	c.stop()
	c.ended(t)
	v.nothingDropped(t)
	for _, want := range []string{
		"ended when asked to", "clients      2 would have been hurt, 1 of them with an API key", "2xx replies  93.33 % would have been lost (140 of 150)\n",
		"holders  ", "20 requests", "deny on edge0",
	} {
		if !strings.Contains(c.out.String(), want) {
			t.Errorf("the report has no %q:\n%s", want, &c.out)
		}
	}
	line := strings.Join(strings.Fields(grep(c.out.String(), "192.0.2.2 ")), " ")
	if want := "192.0.2.2 " + v.id + " alice 0 30 20 30 20 0"; line != want {
		t.Errorf("the good client: %q, want %q", line, want)
	}
	t.Log(c.out.String())
	t.Run("ends", func(t *testing.T) { v.endsOfTrials(t, strict, write) })
}

// What ends a trial, and what does not begin one.
func (v *trialLab) endsOfTrials(t *testing.T, strict string, write func(name, text string) string) {
	before := v.generation(t)
	for _, wrong := range []struct {
		status int
		says   string
		args   []string
	}{
		{exitUsage, "bad.lua:1", []string{write("bad.lua", `limit_req{name = "x"}`)}},
		{exitUsage, "no such file", []string{filepath.Join(v.dir, "none.yaml")}},
		{exitUsage, "want from 1s to 24h", []string{strict, "--for", "1ms"}},
		{exitUsage, "FILE", nil},
		{exitUsage, "limit a has this key and count already", []string{write("twice.lua", `for _, n in ipairs{"a", "b"} do packet_limit{name = n, key = "source", count = "syns", rate = 1} end`)}},
	} {
		status, out, errs := inProcess(append([]string{"--instance", v.instance, "policy", "try"}, wrong.args...)...)
		if status != wrong.status || !strings.Contains(errs, wrong.says) {
			t.Errorf("%v: status %d, %s%s; want %d and %q", wrong.args, status, out, errs, wrong.status, wrong.says)
		}
	}
	for _, step := range []string{"trial", "prepared", "tables edge0"} {
		rewrite(t, v.fault, step)
		if status, out, errs := inProcess("--instance", v.instance, "policy", "try", strict); status != exitFailure || !strings.Contains(errs, "made to fail at "+step) {
			t.Errorf("%s: status %d, %s%s", step, status, out, errs)
		}
	}
	rewrite(t, v.fault, "")
	if now := v.generation(t); now != before {
		t.Errorf("generation %d, before %d", now, before)
	}
	if err := v.ctl.EndTrial(); err == nil || !strings.Contains(err.Error(), "no policy is tried") {
		t.Error(err)
	}
	// Its time is over; meanwhile there is no other.
	c := v.try(t, strict, "--for", "1s", "--json")
	if status, _, errs := inProcess("--instance", v.instance, "policy", "try", strict); status != exitFailure || !strings.Contains(errs, "another policy is tried") {
		t.Errorf("a second one: %d, %s", status, errs)
	}
	c.ended(t)
	if !strings.Contains(c.out.String(), `"ended":"time"`) {
		t.Error(c.out.String())
	}
	// A reload ends it.
	c = v.try(t, strict)
	if _, err := v.ctl.Reload(0); err != nil {
		t.Error(err)
	}
	c.ended(t)
	if !strings.Contains(c.out.String(), "ended by a reload") {
		t.Error(c.out.String())
	}
	// Who asks goes away.
	before = v.generation(t)
	ctx, leave := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		_, err := v.ctl.Try(ctx, admin.TryPolicy{Path: strict, For: time.Minute})
		done <- err
	}()
	eventually(t, "the trial begins", func() bool { return v.generation(t) > before })
	leave()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	eventually(t, "the trial is over", func() bool { return v.generation(t) > before+1 })
	if err := v.ctl.EndTrial(); err == nil {
		t.Error("a trial goes on without who asked for it")
	}
}
