// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/xgw-project/xgw/pkg/admin"
	"github.com/xgw-project/xgw/pkg/lab"
)

// The story of an API client that does not heed its limit.
const (
	demoKeyRate = 100 // requests a second under a key
	demoLua     = `limit_req{name = "keys", key = "header:X-Key", rate = "%dr/s", burst = 50, nodelay = true}
escalate{name = "loud", on = "429", count = 200, within = "5s", step = "syns", ttl = "1s"}
`
	demoPatience = 20 * time.Second // for each turn of the story
	demoQuiet    = 1500 * time.Millisecond
)

// escalation shows the loop: an API client is limited, dropped at the NIC, and forgiven, beside
// one that keeps to its limit.
func (d *demo) escalation(ctx context.Context) error {
	d.say("5. Two API clients, each of whom may make %d requests a second. One keeps to it, the other makes as many as go:", demoKeyRate)
	good := d.lab.APIClient(lab.Client, "good", true, 5*time.Second)
	stopGood := good.Run(1, 20*time.Millisecond)
	defer stopGood()
	before, err := d.counts()
	if err != nil {
		return err
	}
	abuser := d.lab.APIClient(lab.Attacker, "abuser", false, 500*time.Millisecond)
	stopAbuser := abuser.Run(4, 0)
	defer func() { stopAbuser() }()
	began := time.Now()
	tell := func(format string, args ...any) {
		d.say("   after %4.1f s  %s", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}
	if err := d.until(ctx, "the abuser is held to all", func(v *admin.Verdict, changed bool) bool {
		if changed && v != nil {
			tell("verdict on %s: %s, since %s; it had %s", v.Source, v.Step, v.Reason, abuser)
		}
		return v != nil && v.Step == "all"
	}); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(demoQuiet):
	}
	after, err := d.counts()
	if err != nil {
		return err
	}
	dropped := after.dropped("verdict_") - before.dropped("verdict_")
	tell("%d packets of it were dropped at the NIC; it gives up", dropped)
	stopAbuser()
	stopAbuser = func() {}
	if err := d.until(ctx, "the abuser is forgiven", func(v *admin.Verdict, changed bool) bool {
		if changed && v != nil {
			tell("quiet for a while: %s", v.Step)
		}
		return v == nil
	}); err != nil {
		return err
	}
	again := d.lab.APIClient(lab.Attacker, "again", false, 5*time.Second)
	defer again.Close()
	again.Call(ctx)
	tell("forgiven: its next request has %s", again)
	stopGood()
	d.say("   the good one  %s", good)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case dropped == 0:
		return errors.New("nothing of the abuser was dropped at the NIC")
	case abuser.Limited.Load() == 0 || again.OK.Load() != 1 || good.OK.Load() == 0:
		return errors.New("the clients did not fare as they should")
	case good.Failed.Load()+good.Limited.Load() > 0:
		return errors.New("the good client had errors")
	}
	return nil
}

// until follows the verdict, if there is one, until it is as wanted.
func (d *demo) until(ctx context.Context, what string, is func(v *admin.Verdict, changed bool) bool) error {
	ctl := admin.NewClient(admin.SocketPath(demoInstance))
	step := ""
	for end := time.Now().Add(demoPatience); time.Now().Before(end); {
		list, err := ctl.Verdicts()
		if err != nil {
			return err
		}
		var v *admin.Verdict
		now := ""
		if len(list) > 0 {
			v, now = &list[0], list[0].Step
		}
		if is(v, now != step) {
			return nil
		}
		step = now
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
	return fmt.Errorf("%s: not within %s", what, demoPatience)
}
