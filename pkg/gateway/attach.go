// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"errors"
	"time"

	"github.com/xgw-project/xgw/pkg/datapath"
)

// Attach makes the interface's datapath and puts it on the hooks; with an error
// nothing is left. Pins of an interface that is gone, or that no longer runs them,
// are removed first. With confirm, everything passes after that time unless it is confirmed.
// The caller owns what is returned.
func Attach(o datapath.Options, mode datapath.Mode, confirm time.Duration) (*datapath.Datapath, error) {
	d, err := datapath.Create(o)
	if errors.Is(err, datapath.ErrExists) {
		switch openErr := tryOpen(o); {
		case errors.Is(openErr, datapath.ErrElsewhere):
			return nil, openErr
		case errors.Is(openErr, datapath.ErrStale):
			if err := datapath.Detach(o); err != nil {
				return nil, err
			}
			d, err = datapath.Create(o)
		}
	}
	if err != nil {
		return nil, err
	}
	// The deadline comes first: what follows may be what cuts the operator off.
	if confirm > 0 {
		err = d.AttachUntil(confirm)
	}
	if err == nil {
		err = d.Attach(mode)
	}
	if err != nil {
		return nil, errors.Join(err, d.Detach(), d.Close())
	}
	return d, nil
}

// adopt opens what is attached already, or attaches for as long as the gateway runs.
func adopt(o datapath.Options, mode datapath.Mode) (*datapath.Datapath, error) {
	d, err := datapath.Open(o)
	if err == nil {
		return d, nil
	}
	if !errors.Is(err, datapath.ErrStale) && !errors.Is(err, datapath.ErrNotAttached) {
		return nil, err
	}
	if d, err = Attach(o, mode, 0); err != nil {
		return nil, err
	}
	if err := d.MarkTransient(); err != nil {
		return nil, errors.Join(err, d.Detach(), d.Close())
	}
	return d, nil
}

// tryOpen tells what is wrong with what is pinned for the interface, if anything is.
func tryOpen(o datapath.Options) error {
	d, err := datapath.Open(o)
	if err == nil {
		err = d.Close()
	}
	return err
}
