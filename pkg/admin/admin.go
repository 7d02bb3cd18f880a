// SPDX-License-Identifier: Apache-2.0

// Package admin is how an operator's tools reach a running gateway: JSON over HTTP, on a
// socket of the file system that only its owner and a group may open. Errors are problems as of
// RFC 9457.
package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/keys"
)

// Control is what a gateway lets its operator do.
type Control interface {
	// Reload makes the configuration file's present content the generation of both
	// planes, or changes nothing. With confirm above 0 it is undone unless Confirm comes
	// within that time.
	Reload(confirm time.Duration) (Reloaded, error)
	// Confirm makes the last reload stay.
	Confirm() error
	// Status is what is in force.
	Status() Status
	// Live is what `xgw top --json` prints: rates of this moment. It is for encoding/json.
	Live() any
	// Doctor is what `xgw doctor --json` prints; it takes a second or so. It is for encoding/json.
	Doctor() (any, error)
	// History is the last hour, the oldest first.
	History() []Moment
	// Verdicts are those that are held in the kernel plane, by source.
	Verdicts() []Verdict
	// AddVerdict holds one; what it returns may be milder than what was asked for.
	AddVerdict(AddVerdict) (Verdict, error)
	// RemoveVerdict ends what is held against the source.
	RemoveVerdict(source string) error
	// SetServer decides on a server of an upstream, by its address, until that is undone or
	// the gateway is started anew.
	SetServer(ServerSetting) error
	KeyControl
	Inspection
}

// Verdict is what is held against a source.
type Verdict struct {
	Source string    `json:"source"` // an IPv4 address or an IPv6 /64
	Step   string    `json:"step"`   // thin, syns, new or all
	Reason string    `json:"reason"` // an offence, operator, or unknown
	Rule   string    `json:"rule,omitempty"`
	Note   string    `json:"note,omitempty"` // the operator's
	Since  time.Time `json:"since"`
	Until  time.Time `json:"until"`                     // then it decays by a step, where a rule gave it
	Capped bool      `json:"capped,omitempty"`          // the guard kept it at thin
	Good   int       `json:"good_identities,omitempty"` // others at the address, when it was given
}

// AddVerdict is what an operator may ask for.
type AddVerdict struct {
	Source string        `json:"source"` // an address; of IPv6 it stands for its /64
	Step   string        `json:"step"`
	TTL    time.Duration `json:"ttl_ns"` // 1 s to 30 days
	Note   string        `json:"note,omitempty"`
	Force  bool          `json:"force,omitempty"` // whoever shares the address
}

// Status is a gateway's present state.
type Status struct {
	PID        int    `json:"pid"` // of the supervisor
	Generation uint64 `json:"generation"`
	// ConfirmWithin is the time until what is in force is undone; 0: nothing waits.
	ConfirmWithin time.Duration `json:"confirm_within_ns,omitempty"`
	Capacity      Capacity      `json:"capacity"`
	Servers       []Server      `json:"servers"` // of all upstreams, in the order of the configuration
	// Configuration is the file that what is in force was read from, and Loaded when.
	Configuration string    `json:"configuration,omitempty"`
	Loaded        time.Time `json:"loaded,omitzero"`
	Steering      []Steered `json:"steering,omitempty"`
	// Drained: whoever balances over gateways is told to leave this one out.
	Drained bool `json:"drained,omitempty"`
	// Listeners are how many listen to events, and how many were dropped for being slow.
	Listeners        int    `json:"event_listeners"`
	ListenersDropped uint64 `json:"event_listeners_dropped"`
}

// Steered is where a listener's connections were placed since it was made.
type Steered struct {
	Listener string `json:"listener"`
	Local    uint64 `json:"local"`    // the worker of the CPU that received them
	Fallback uint64 `json:"fallback"` // another one: that CPU has none, or it was away
	Refused  uint64 `json:"refused"`  // no worker was there
}

// Capacity is how busy the machine is, and whether another node would help.
type Capacity struct {
	Known   bool               `json:"known"`      // there was time enough to tell
	Busy    float64            `json:"busy_ratio"` // of the CPUs, mean over 5 minutes
	Causes  map[string]float64 `json:"causes"`     // shares of the CPUs' time
	Attack  float64            `json:"attack_ratio"`
	Slowed  float64            `json:"throttled_ratio"` // share of the time
	Verdict string             `json:"verdict"`         // helps, or why not
	Why     string             `json:"why"`
}

// Moment is one step of the history: rates a second over the step, and quantiles of the
// time that its requests took.
type Moment struct {
	Time             time.Time  `json:"time"` // of its end
	Passed           float64    `json:"packets_passed_per_second"`
	Dropped          float64    `json:"packets_dropped_per_second"`
	Requests         [5]float64 `json:"requests_per_second_by_class"` // 1xx to 5xx
	Full             float64    `json:"full_handshakes_per_second"`
	Resumed          float64    `json:"resumed_handshakes_per_second"`
	HandshakesFailed float64    `json:"failed_handshakes_per_second"`
	Connections      uint64     `json:"connections"`
	UnderWay         uint64     `json:"requests_under_way"`
	Median           float64    `json:"p50_seconds"` // 0: no request ended
	Percentile99     float64    `json:"p99_seconds"`
	Received         float64    `json:"received_bits_per_second"`
	Sent             float64    `json:"sent_bits_per_second"`
}

// Server is one server of an upstream.
type Server struct {
	Upstream string    `json:"upstream"`
	Address  string    `json:"address"`
	Name     string    `json:"name,omitempty"` // that it was resolved from
	Weight   int       `json:"weight"`
	Drained  bool      `json:"drained,omitempty"` // by hand: it gets no requests
	State    string    `json:"state"`             // up or down by its health checks, or unchecked
	Since    time.Time `json:"since"`
	Cause    string    `json:"cause,omitempty"` // of being down
}

// ServerSetting is what somebody decides on a server by hand.
type ServerSetting struct {
	Upstream string `json:"upstream"`
	Address  string `json:"address"`           // as in Status
	Drained  *bool  `json:"drained,omitempty"` // true: no new requests; nil: as it is
	Weight   *int   `json:"weight,omitempty"`  // 1 to 1000, or 0: the configuration's; nil: as it is
}

// Reloaded is a reload that was done.
type Reloaded struct {
	Generation    uint64        `json:"generation"`
	Took          time.Duration `json:"took_ns"`
	ConfirmWithin time.Duration `json:"confirm_within_ns,omitempty"`
}

// Errors of a Control.
var (
	// ErrConfiguration: the file is wrong, and what is joined to this says where.
	ErrConfiguration = errors.New("the configuration is not taken")
	ErrUnconfirmed   = errors.New("a reload waits to be confirmed")
	ErrNothingWaits  = errors.New("nothing waits to be confirmed")
	// ErrInvalid: what was asked for is wrong in itself; ErrImpossible: it is as things are.
	ErrInvalid    = errors.New("invalid")
	ErrImpossible = errors.New("not possible")
	ErrNotFound   = errors.New("not found")
	// ErrNoGateway: none answers at the socket.
	ErrNoGateway = errors.New("no gateway runs there")
)

// runDirectory holds the sockets of gateways that serve the machine.
const runDirectory = "/run/xgw"

// SocketPath is where a gateway's control socket is: in /run/xgw, or for a plain user in a
// directory of that user, unless the one in /run/xgw, or /run/xgw itself, is that user's, too.
func SocketPath(instance string) string {
	if instance == "" {
		instance = "xgw"
	}
	dir := runDirectory
	uid := os.Geteuid()
	if uid != 0 && unix.Access(filepath.Join(dir, instance+".sock"), unix.W_OK) != nil && unix.Access(dir, unix.W_OK) != nil {
		dir = filepath.Join(os.TempDir(), fmt.Sprintf("xgw-%d", uid))
		if own := os.Getenv("XDG_RUNTIME_DIR"); own != "" {
			dir = filepath.Join(own, "xgw")
		}
	}
	return filepath.Join(dir, instance+".sock")
}

// Listen makes the socket, for its user alone or for those of Group as well, in the place of one
// that nobody answers at. Its directory is made, and refused if somebody else could put another
// socket into it.
func Listen(path string) (net.Listener, error) { return listen(path, groupID(filepath.Dir(path))) }

func listen(path string, group int) (net.Listener, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make control socket: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return nil, fmt.Errorf("make control socket: %s: %w", dir, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return nil, fmt.Errorf("make control socket: %s is not a directory that this user alone may change: remove it", dir)
	}
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("make control socket: another gateway answers at %s: stop it, or give this one a name by --instance", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("make control socket: %w", err)
	}
	// Under another name until nobody else can open it.
	private := path + ".new"
	_ = os.Remove(private)
	l, err := net.Listen("unix", private)
	if err != nil {
		return nil, fmt.Errorf("make control socket: %w", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := errors.Join(share(private, group), os.Rename(private, path)); err != nil {
		l.Close()
		return nil, fmt.Errorf("make control socket: %w", err)
	}
	return &socket{Listener: l, path: path}, nil
}

// socket is removed when it is closed.
type socket struct {
	net.Listener
	path string
	once sync.Once
}

// File is a descriptor of the socket, which outlives Close.
func (s *socket) File() (*os.File, error) { return s.Listener.(*net.UnixListener).File() }

func (s *socket) Close() error {
	s.once.Do(func() { _ = os.Remove(s.path) })
	return s.Listener.Close()
}

// Limits of the server: its clients are few and near.
const (
	headerTime = 5 * time.Second
	bodyBytes  = 1 << 20
)

// NewServer serves the Control on a listener of Listen: who can open that socket may do all, but for
// what names a file of this machine, which is root's and the gateway's own user's.
// audit notes who changes something, whatever log leaves out.
func NewServer(c Control, log, audit *slog.Logger) *http.Server {
	mux := http.NewServeMux()
	a := &api{c, log, audit}
	for _, e := range a.endpoints() {
		mux.HandleFunc(e.pattern, e.serve)
	}
	// Not for the admin API: they name a file of this machine.
	if t, ok := c.(Trials); ok {
		mux.HandleFunc("POST /v1/policy/try", ownerOnly(a.tryPolicy(t)))
		mux.HandleFunc("POST /v1/policy/try/end", a.endTrial(t))
	}
	if u, ok := c.(Upgrader); ok {
		mux.HandleFunc("POST /v1/upgrade", ownerOnly(a.upgrade(u))) // it names a program to run
	}
	return &http.Server{Handler: a.audited(mux), ConnContext: withPeer, ReadHeaderTimeout: headerTime, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn)}
}

func decode(w http.ResponseWriter, r *http.Request, into any) error {
	if r.ContentLength == 0 {
		return nil
	}
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, bodyBytes))
	d.DisallowUnknownFields()
	return d.Decode(into)
}

func reply(w http.ResponseWriter, log *slog.Logger, done any, err error) {
	switch {
	case err == nil:
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(done); err != nil {
			log.Warn("control socket", "error", err)
		}
	case errors.Is(err, ErrConfiguration):
		fail(w, http.StatusUnprocessableEntity, err)
	case errors.Is(err, ErrNotFound), errors.Is(err, ErrToken):
		fail(w, http.StatusNotFound, err)
	case errors.Is(err, ErrInvalid), errors.Is(err, ErrTokenName):
		fail(w, http.StatusBadRequest, err)
	case errors.Is(err, keys.ErrUnknown):
		fail(w, http.StatusNotFound, err)
	case errors.Is(err, ErrUnconfirmed), errors.Is(err, ErrNothingWaits), errors.Is(err, ErrImpossible), errors.Is(err, ErrLastAdmin), errors.Is(err, keys.ErrExists), errors.Is(err, keys.ErrRevoked):
		fail(w, http.StatusConflict, err)
	default:
		fail(w, http.StatusInternalServerError, err)
	}
}

// problem is the body of an error: RFC 9457.
type problem struct {
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
}

func fail(w http.ResponseWriter, status int, err error) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(problem{Title: http.StatusText(status), Status: status, Detail: err.Error()})
}
