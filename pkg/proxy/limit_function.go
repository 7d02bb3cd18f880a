// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

// KeyFunctions make the keys of limits that the configuration leaves to functions. They
// serve all exchanges of a worker.
type KeyFunctions interface {
	Has(limit string) bool
	// Key appends what the limit's function says of the request; nothing means that it is not
	// limited. An error leaves dst as it was.
	Key(limit string, r KeyRequest, dst []byte) (key []byte, overBudget bool, err error)
}

// KeyRequest is a request as a key function sees it.
type KeyRequest interface {
	// AppendField appends the request's method, path, ip, key or route.
	AppendField(dst []byte, name string) []byte
	// AppendHeader appends the first value of a field of the head; nothing for none.
	AppendHeader(dst []byte, name string) []byte
}

// addKeys gives a snapshot the functions that its limits ask for, and its trial those of its own.
func (w *Worker) addKeys(s *snapshot) error {
	err := w.addKeysOf(s.policy.KeyScript, s.requestLimits, s.connectionLimits)
	if now := w.current.Load(); err == nil && s.trial != nil && (now == nil || now.trial != s.trial) { // else they are in use
		err = w.addKeysOf(s.policy.Trial.KeyScript, s.trial.requests, s.trial.connections)
	}
	return err
}

func (w *Worker) addKeysOf(script *policy.KeyScript, requests []*requestLimit, connections []*connectionLimit) (err error) {
	var functions KeyFunctions
	if script != nil {
		if w.functions == nil {
			return errors.New("apply key functions: nobody runs them")
		}
		if functions, err = w.functions(script); err != nil {
			return fmt.Errorf("apply key functions: %w", err)
		}
	}
	give := func(l *limitMatch) error {
		for _, k := range l.key {
			if k.Kind != "function" {
				continue
			}
			if functions == nil || !functions.Has(l.name) {
				return fmt.Errorf("apply limit %s: there is no key function of that name", l.name)
			}
			l.functions = functions
		}
		return nil
	}
	for _, l := range requests {
		err = errors.Join(err, give(&l.limitMatch))
	}
	for _, l := range connections {
		err = errors.Join(err, give(&l.limitMatch))
	}
	return err
}

// appendFunctionKey appends the key that the limit's function makes; the address, where it
// fails.
func (ex *Exchange) appendFunctionKey(b []byte, l *limitMatch) []byte {
	w := ex.worker
	began := w.now()
	key, overBudget, err := l.functions.Key(l.name, (*keyRequest)(ex), b)
	w.slab.Add(zone.LuaTime, uint64(w.now()-began))
	if err == nil {
		return key
	}
	if overBudget {
		w.slab.Add(zone.KeyBudgets, 1)
	} else {
		w.slab.Add(zone.KeyFaults, 1)
	}
	now := w.clock.Load()
	if last := w.lastKeySaid.Load(); now-last >= int64(time.Second) && w.lastKeySaid.CompareAndSwap(last, now) {
		w.log.Error("key function failed: the address is the key", "limit", l.name, "error", err)
	}
	return appendAddress(b, ex.peer.Addr())
}

// keyRequest is an exchange as key functions see it: once its route is known.
type keyRequest Exchange

var _ KeyRequest = (*keyRequest)(nil)

func (r *keyRequest) AppendField(dst []byte, name string) []byte {
	switch name {
	case "method":
		return append(dst, r.method...)
	case "path":
		path, _, _ := bytes.Cut(r.target, []byte("?"))
		return append(dst, path...)
	case "ip":
		return r.peer.Addr().AppendTo(dst)
	case "key":
		if r.apiKey != nil {
			return append(dst, r.apiKey.ID...)
		}
	case "route":
		return append(dst, r.route.name...)
	}
	return dst
}

func (r *keyRequest) AppendHeader(dst []byte, name string) []byte {
	for i := range r.fields {
		if f := &r.fields[i]; len(f.Name) == len(name) && equalFoldString(f.Name, name) {
			return append(dst, f.Value...)
		}
	}
	return dst
}
