// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"sync"
	"time"

	"github.com/xgw-project/xgw/pkg/admin"
	"github.com/xgw-project/xgw/pkg/doctor"
)

// Times of the doctor of the admin API: a report younger than reportAge is shown again, so
// that many who ask cost one examination.
const (
	doctorInterval = time.Second
	reportAge      = 5 * time.Second
)

// checkup is the last report.
type checkup struct {
	mu     sync.Mutex
	report *doctor.Report
	made   time.Time
}

// Doctor examines the machine and this gateway, as `xgw doctor` does.
func (s *supervisor) Doctor() (any, error) {
	c := &s.checkup
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.report != nil && time.Since(c.made) < reportAge {
		return c.report, nil
	}
	status := s.Status()
	live := doctor.Live{
		Instance: s.options.Config.Instance, ZonePath: s.zonePath(), Path: status.Configuration, Loaded: status.Loaded,
		Servers: func() []doctor.Server { return DoctorServers(s.Status()) },
	}
	if live.Path != "" { // else a reload is under way
		live.Load = s.options.Load
	}
	report, err := live.Examine(doctorInterval)
	if err != nil {
		return nil, err
	}
	c.report, c.made = report, time.Now()
	return report, nil
}

// DoctorServers are the servers of a status, as the doctor takes them.
func DoctorServers(s admin.Status) []doctor.Server {
	var all []doctor.Server
	for _, v := range s.Servers {
		all = append(all, doctor.Server{Upstream: v.Upstream, Address: v.Address, State: v.State, Cause: v.Cause, Drained: v.Drained})
	}
	return all
}
