// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// Bounds of the listener for people and their tools: nobody who asks too much or too
// slowly costs the gateway its memory or descriptors.
const (
	readTime    = 10 * time.Second
	writeTime   = 30 * time.Second
	idleTime    = 2 * time.Minute
	headerBytes = 16 << 10

	maxSessions   = 256
	sessionTime   = 12 * time.Hour
	sessionCookie = "__Host-xgw"

	certificateID = "certificate " // begins the ID of who has shown one; no token has a space

	maxFailures  = 10 // of an address within failureTime: then it is not listened to
	failureTime  = time.Minute
	maxAddresses = 1024

	// maxRefusalLines bounds what strangers can write into the audit log in a second.
	maxRefusalLines = 200
)

// RemoteOptions are those of a Remote.
type RemoteOptions struct {
	Tokens *Tokens
	// Names that the gateway goes by, beside localhost and any IP address. A request to another
	// name is refused: a page of somebody else may have made a browser send it.
	Names []string
	// Certificate is asked at each handshake.
	Certificate func() (*tls.Certificate, error)
	// Clients are the authorities that clients' certificates may be from, asked at each handshake,
	// and Roles what who has one may do, by the subject's common name. Nil: no certificate helps.
	Clients func() (*x509.CertPool, error)
	Roles   map[string]Role
	Log     *slog.Logger
	// Audit is where it is noted who changes something, whatever Log leaves out; nil: Log.
	Audit *slog.Logger
}

// Remote is the admin API over TLS, with the dashboard. Who asks shows a token, in the field
// Authorization or by a session that was opened with one.
type Remote struct {
	options   RemoteOptions
	api       *api
	http      *http.Server
	mux       *http.ServeMux
	crossSite *http.CrossOriginProtection
	mu        sync.Mutex
	sessions  map[string]session // by cookie
	failures  map[netip.Addr]failures
	second    time.Time // that refusals are counted in
	refusals  int
	leftOut   int // of the audit log
}

type session struct {
	token Token
	until time.Time
}

// valid tells whether a right that was shown still is one. A certificate is one until its end: from
// which authority it is was looked at in the handshake.
func (r *Remote) valid(who Token) bool {
	if strings.HasPrefix(who.ID, certificateID) {
		return who.good()
	}
	return r.options.Tokens.valid(who.ID)
}

type failures struct {
	n     int
	since time.Time
}

// NewRemote serves the Control and the dashboard.
func NewRemote(c Control, o RemoteOptions) *Remote {
	if o.Audit == nil {
		o.Audit = o.Log
	}
	r := &Remote{
		options: o, api: &api{c, o.Log, o.Audit}, mux: http.NewServeMux(), crossSite: http.NewCrossOriginProtection(),
		sessions: map[string]session{}, failures: map[netip.Addr]failures{},
	}
	for _, e := range append(r.api.endpoints(), r.endpoints()...) {
		r.mux.Handle(e.pattern, r.allow(e.role, e.serve))
	}
	r.mux.HandleFunc("GET /openapi.yaml", static("openapi.yaml", "application/yaml"))
	for path, file := range pages {
		r.mux.HandleFunc("GET "+path, static(file.name, file.kind))
	}
	certificate := func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return o.Certificate() }
	r.http = &http.Server{
		Handler:           http.HandlerFunc(r.serve),
		TLSConfig:         &tls.Config{GetConfigForClient: r.handshake, GetCertificate: certificate},
		ReadHeaderTimeout: headerTime,
		ReadTimeout:       readTime,
		WriteTimeout:      writeTime,
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    headerBytes,
		ConnContext:       withConnection,
		ErrorLog:          slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug),
	}
	return r
}

// Serve answers on the listener, in TLS, until Close, and closes it.
func (r *Remote) Serve(l net.Listener) error {
	if err := r.http.ServeTLS(&gate{Listener: l}, "", ""); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve admin API: %w", err)
	}
	return nil
}

// Close ends all connections.
func (r *Remote) Close() error { return r.http.Close() }

// endpoints are those that the control socket has no need of.
func (r *Remote) endpoints() []endpoint {
	return []endpoint{
		{"GET /v1/whoami", Viewer, r.whoami},
		{"POST /v1/session", Viewer, r.login},
		{"DELETE /v1/session", Viewer, r.logout},
		{"GET /v1/tokens", Admin, r.listTokens},
		{"POST /v1/tokens", Admin, r.addToken},
		{"DELETE /v1/tokens/{id}", Admin, r.revokeToken},
	}
}

// answer notes what was answered, for the audit log, and by whose right.
type answer struct {
	http.ResponseWriter
	status int
	who    Token
}

func (a *answer) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(b []byte) (int, error) {
	if a.status == 0 {
		a.status = http.StatusOK
	}
	return a.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// serve is what every request passes. What changes something and what is refused goes to the
// audit log.
func (r *Remote) serve(w http.ResponseWriter, q *http.Request) {
	a := &answer{ResponseWriter: w}
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", "default-src 'self'; style-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	switch err := r.crossSite.Check(q); {
	case !r.named(q.Host):
		fail(a, http.StatusMisdirectedRequest, fmt.Errorf("this gateway does not go by the name %q: list it in admin_api.server_names", q.Host))
	case err != nil:
		fail(a, http.StatusForbidden, fmt.Errorf("sent by a page of another site: %w", err))
	default:
		r.mux.ServeHTTP(a, q)
	}
	reads := q.Method == http.MethodGet || q.Method == http.MethodHead
	if reads && a.status < http.StatusBadRequest {
		return
	}
	if write, kept := r.audits(a.who.ID != ""); write {
		r.options.Audit.Info("admin audit", "method", q.Method, "path", q.URL.Path, "status", a.status,
			"from", q.RemoteAddr, "token", a.who.ID, "name", a.who.Name, "host", q.Host, "left_out_before", kept)
	}
}

// audits tells whether a line is written, and how many were not since the last. Whoever has
// a token is always noted.
func (r *Remote) audits(known bool) (write bool, kept int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := time.Now(); now.Sub(r.second) >= time.Second {
		r.second, r.refusals = now, 0
	}
	if r.refusals++; !known && r.refusals > maxRefusalLines {
		r.leftOut++
		return false, 0
	}
	kept, r.leftOut = r.leftOut, 0
	return true, kept
}

// named tells whether the host of a request is this gateway: a name that it goes by, or an
// address, which no name of a stranger's can stand for.
func (r *Remote) named(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	for _, name := range append(r.options.Names, "localhost") {
		if strings.EqualFold(host, name) {
			return true
		}
	}
	return false
}

// whoKey is for who asks, and stillKey for a function that tells whether they still may.
type whoKey struct{}
type stillKey struct{}

// allow lets those through who have the role.
func (r *Remote) allow(role Role, next http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		who, status, err := r.identify(q)
		if a, ok := w.(*answer); ok {
			a.who = who
		}
		switch {
		case err != nil:
			if status == http.StatusUnauthorized {
				w.Header().Set("WWW-Authenticate", `Bearer realm="xgw"`)
			}
			fail(w, status, err)
		case who.Role < role:
			fail(w, http.StatusForbidden, fmt.Errorf("the token %s has the role %s, and this takes %s", who.Name, who.Role, role))
		default:
			prove(q.Context())
			ctx := context.WithValue(q.Context(), whoKey{}, who)
			next(w, q.WithContext(context.WithValue(ctx, stillKey{}, func() bool { return r.valid(who) })))
		}
	})
}

// handshake is what TLS is made of for a client.
func (r *Remote) handshake(*tls.ClientHelloInfo) (*tls.Config, error) {
	own, err := r.options.Certificate()
	if err != nil {
		return nil, err
	}
	c := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*own}, NextProtos: []string{"h2", "http/1.1"}, SessionTicketsDisabled: true}
	if r.options.Clients != nil {
		if c.ClientCAs, err = r.options.Clients(); err != nil {
			return nil, err
		}
		c.ClientAuth = tls.VerifyClientCertIfGiven
	}
	return c, nil
}

// certified is who shows a certificate whose subject has a role.
func (r *Remote) certified(q *http.Request) (Token, bool) {
	if q.TLS == nil || len(q.TLS.VerifiedChains) == 0 {
		return Token{}, false
	}
	leaf := q.TLS.VerifiedChains[0][0]
	role, known := r.options.Roles[leaf.Subject.CommonName]
	// It was good at the handshake; a connection may outlive it.
	if !known || time.Now().After(leaf.NotAfter) {
		return Token{}, false
	}
	return Token{ID: certificateID + leaf.SerialNumber.Text(16), Name: leaf.Subject.CommonName, Role: role, Created: leaf.NotBefore, Expires: leaf.NotAfter}, true
}

// identify finds who asks.
func (r *Remote) identify(q *http.Request) (Token, int, error) {
	bearer, isBearer := strings.CutPrefix(q.Header.Get("Authorization"), "Bearer ")
	if !isBearer {
		if who, ok := r.certified(q); ok {
			return who, 0, nil
		}
		if c, err := q.Cookie(sessionCookie); err == nil {
			if s, ok := r.session(c.Value); ok {
				return s.token, 0, nil
			}
			return Token{}, http.StatusUnauthorized, errors.New("the session is over: log in again")
		}
		return Token{}, http.StatusUnauthorized, errors.New("a token is wanted, as `Authorization: Bearer …`")
	}
	from := addressOf(q)
	if r.shut(from) {
		return Token{}, http.StatusTooManyRequests, fmt.Errorf("too many wrong tokens from %s: wait a minute", from)
	}
	who, ok := r.options.Tokens.Check(bearer)
	if !ok {
		r.failed(from)
		return Token{}, http.StatusUnauthorized, errors.New("the token is not one of this gateway's")
	}
	return who, 0, nil
}

// network is who counts as one client: an address, or the /64 that a host of IPv6 may have
// all of.
func network(a netip.Addr) netip.Addr {
	if a.Is4() {
		return a
	}
	p, err := a.WithZone("").Prefix(64)
	if err != nil {
		return a
	}
	return p.Addr()
}

func addressOf(q *http.Request) netip.Addr {
	a, err := netip.ParseAddrPort(q.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return network(a.Addr().Unmap())
}

// shut tells whether an address has shown too many wrong tokens.
func (r *Remote) shut(from netip.Addr) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := r.failures[from]
	return f.n >= maxFailures && time.Since(f.since) < failureTime
}

func (r *Remote) failed(from netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := r.failures[from]
	if time.Since(f.since) >= failureTime {
		f = failures{since: time.Now()}
	}
	f.n++
	if len(r.failures) >= maxAddresses {
		clear(r.failures)
	}
	r.failures[from] = f
}

func (r *Remote) session(cookie string) (session, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s, ok := r.sessions[cookie]
	if ok && (time.Now().After(s.until) || !r.valid(s.token)) {
		delete(r.sessions, cookie)
		ok = false
	}
	return s, ok
}

// login opens a session, for browsers.
func (r *Remote) login(w http.ResponseWriter, q *http.Request) {
	who := q.Context().Value(whoKey{}).(Token)
	cookie := random(20)
	until := time.Now().Add(sessionTime)
	if !who.Expires.IsZero() && who.Expires.Before(until) {
		until = who.Expires
	}
	r.mu.Lock()
	for name, s := range r.sessions {
		if len(r.sessions) >= maxSessions || time.Now().After(s.until) {
			delete(r.sessions, name)
		}
	}
	r.sessions[cookie] = session{who, until}
	r.mu.Unlock()
	http.SetCookie(w, &http.Cookie{
		Name: sessionCookie, Value: cookie, Path: "/", MaxAge: int(sessionTime.Seconds()),
		Secure: true, HttpOnly: true, SameSite: http.SameSiteStrictMode,
	})
	reply(w, r.options.Log, who, nil)
}

func (r *Remote) logout(w http.ResponseWriter, q *http.Request) {
	if c, err := q.Cookie(sessionCookie); err == nil {
		r.mu.Lock()
		delete(r.sessions, c.Value)
		r.mu.Unlock()
	}
	http.SetCookie(w, &http.Cookie{Name: sessionCookie, Path: "/", MaxAge: -1, Secure: true, HttpOnly: true, SameSite: http.SameSiteStrictMode})
	reply(w, r.options.Log, struct{}{}, nil)
}

func (r *Remote) whoami(w http.ResponseWriter, q *http.Request) {
	reply(w, r.options.Log, q.Context().Value(whoKey{}).(Token), nil)
}

func (r *Remote) listTokens(w http.ResponseWriter, _ *http.Request) {
	reply(w, r.options.Log, r.options.Tokens.List(), nil)
}

func (r *Remote) addToken(w http.ResponseWriter, q *http.Request) {
	var ask struct {
		Name string        `json:"name"`
		Role Role          `json:"role"`
		For  time.Duration `json:"for_ns"`
	}
	err := decode(w, q, &ask)
	if err == nil && (ask.For < 0 || ask.For > 0 && ask.For < time.Second) {
		err = fmt.Errorf("%w: for %s: want 1 s or more, or 0 for ever", ErrInvalid, ask.For)
	}
	if err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	var expires time.Time
	if ask.For > 0 {
		expires = time.Now().UTC().Add(ask.For)
	}
	t, text, err := r.options.Tokens.Add(ask.Name, ask.Role, expires)
	reply(w, r.options.Log, struct {
		Token
		Text string `json:"token"` // told this once
	}{t, text}, err)
}

func (r *Remote) revokeToken(w http.ResponseWriter, q *http.Request) {
	reply(w, r.options.Log, struct{}{}, r.options.Tokens.Revoke(q.PathValue("id")))
}
