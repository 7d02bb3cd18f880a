// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"slices"
	"time"
)

// wait lets an exchange wait for a connection of an upstream that has all of its own in use:
// in a queue of bounded length, for a bounded time. nil: there is one now, or the right to
// open one, for whoever comes first.
func (u *upstream) wait(by time.Time) error {
	u.mu.Lock()
	if len(u.waiting) >= u.policy.MaxPending {
		u.mu.Unlock()
		return errSaturated
	}
	turn := make(chan struct{}, 1)
	u.waiting = append(u.waiting, turn)
	u.mu.Unlock()
	late := time.NewTimer(time.Until(by))
	defer late.Stop()
	select {
	case <-turn:
		return nil
	case <-late.C:
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if i := slices.Index(u.waiting, turn); i >= 0 {
		u.waiting = slices.Delete(u.waiting, i, i+1)
		return errSaturated
	}
	return nil // its turn came in this very moment
}

// wake calls the one who waits longest. The lock is held.
func (u *upstream) wake() {
	if len(u.waiting) == 0 {
		return
	}
	u.waiting[0] <- struct{}{}
	u.waiting = slices.Delete(u.waiting, 0, 1)
}
