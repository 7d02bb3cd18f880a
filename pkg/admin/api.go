// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"log/slog"
	"net/http"
	"time"
)

// Role is what somebody may do. Each may do what those before it may.
type Role int

// Roles.
const (
	Viewer   Role = iota // look
	Operator             // change how things are for now: verdicts, servers, caches
	Admin                // change what is in force, and who may do what
)

var roleNames = [...]string{"viewer", "operator", "admin"}

func (r Role) String() string { return roleNames[r] }

// endpoint is one thing that can be asked, by whom.
type endpoint struct {
	pattern string // of http.ServeMux
	role    Role
	serve   http.HandlerFunc
}

// api is the Control as HTTP.
type api struct {
	control Control
	log     *slog.Logger
	audit   *slog.Logger // not to be silenced
}

// endpoints are all there are.openapi.yaml describes each.
func (a *api) endpoints() []endpoint {
	return append(a.inspections(), []endpoint{
		{"GET /v1/status", Viewer, a.status},
		{"GET /v1/live", Viewer, a.live},
		{"GET /v1/doctor", Viewer, a.doctor},
		{"GET /v1/history", Viewer, a.history},
		{"GET /v1/charts/{name}", Viewer, a.chart},
		{"POST /v1/reload", Admin, a.reload},
		{"POST /v1/confirm", Admin, a.confirm},
		{"GET /v1/verdicts", Viewer, a.verdicts},
		{"POST /v1/verdicts", Operator, a.addVerdict},
		{"POST /v1/verdicts/remove", Operator, a.removeVerdict},
		{"POST /v1/servers", Operator, a.setServer},
		{"POST /v1/keys", Admin, a.keys},
		{"POST /v1/cache/purge", Operator, a.purge},
	}...)
}

func (a *api) status(w http.ResponseWriter, _ *http.Request) {
	reply(w, a.log, a.control.Status(), nil)
}

func (a *api) live(w http.ResponseWriter, _ *http.Request) {
	reply(w, a.log, a.control.Live(), nil)
}

func (a *api) doctor(w http.ResponseWriter, _ *http.Request) {
	report, err := a.control.Doctor()
	reply(w, a.log, report, err)
}

func (a *api) history(w http.ResponseWriter, _ *http.Request) {
	reply(w, a.log, a.control.History(), nil)
}

func (a *api) reload(w http.ResponseWriter, r *http.Request) {
	var ask struct {
		Confirm time.Duration `json:"confirm_within_ns"`
	}
	if err := decode(w, r, &ask); err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	done, err := a.control.Reload(ask.Confirm)
	reply(w, a.log, done, err)
}

func (a *api) confirm(w http.ResponseWriter, _ *http.Request) {
	reply(w, a.log, struct{}{}, a.control.Confirm())
}

func (a *api) verdicts(w http.ResponseWriter, _ *http.Request) {
	reply(w, a.log, a.control.Verdicts(), nil)
}

func (a *api) addVerdict(w http.ResponseWriter, r *http.Request) {
	var ask AddVerdict
	if err := decode(w, r, &ask); err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	v, err := a.control.AddVerdict(ask)
	reply(w, a.log, v, err)
}

func (a *api) removeVerdict(w http.ResponseWriter, r *http.Request) {
	var ask struct {
		Source string `json:"source"`
	}
	if err := decode(w, r, &ask); err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	reply(w, a.log, struct{}{}, a.control.RemoveVerdict(ask.Source))
}

func (a *api) setServer(w http.ResponseWriter, r *http.Request) {
	var ask ServerSetting
	if err := decode(w, r, &ask); err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	reply(w, a.log, struct{}{}, a.control.SetServer(ask))
}
