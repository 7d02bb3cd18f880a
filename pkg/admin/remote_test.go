// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/keys"
)

// gateway is a Control that notes what was done.
type gateway struct {
	mu       sync.Mutex
	reloads  int
	confirms int
	drains   int
	levels   int
	held     []Verdict
	events   *Events
}

func (g *gateway) Reload(confirm time.Duration) (Reloaded, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.reloads++
	return Reloaded{Generation: 7, Took: time.Millisecond, ConfirmWithin: confirm}, nil
}

func (g *gateway) Confirm() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.confirms++
	return ErrNothingWaits
}

func (g *gateway) Verdicts() []Verdict { return g.held }

func (g *gateway) AddVerdict(v AddVerdict) (Verdict, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if v.Source == "" {
		return Verdict{}, ErrInvalid
	}
	g.held = append(g.held, Verdict{Source: v.Source, Step: v.Step, Reason: "operator", Since: time.Now(), Until: time.Now().Add(v.TTL)})
	return g.held[len(g.held)-1], nil
}

func (g *gateway) SetServer(ServerSetting) error { return ErrNotFound }

func (g *gateway) Keys(_ context.Context, r *keys.Request) (keys.Reply, error) {
	switch r.Op {
	case "add":
		return keys.Reply{Key: "xgw_a_b", Record: &keys.Record{ID: "a", Consumer: "c", Created: time.Now()}}, nil
	case "revoke":
		return keys.Reply{}, keys.ErrUnknown
	}
	return keys.Reply{}, ErrInvalid
}

func (g *gateway) Purge(kind string) error {
	if kind != "all" {
		return ErrInvalid
	}
	return nil
}

func (g *gateway) RemoveVerdict(string) error { return ErrImpossible }

func (g *gateway) Status() Status {
	return Status{Generation: 7, Capacity: Capacity{Verdict: "helps"}, Servers: []Server{{Upstream: "back", Address: "127.0.0.1:1", Weight: 1, State: "up", Since: time.Now()}}}
}

func (g *gateway) Live() any {
	return map[string]any{
		"time": time.Now(), "interval_ns": 1, "totals": map[string]any{}, "panes": []any{map[string]any{"name": "routes", "rows": []any{}}},
		"gateway": map[string]any{"supervisor": "running", "generation": 7, "workers_ready": 1, "workers": 1},
	}
}

func (g *gateway) Doctor() (any, error) {
	return map[string]any{"findings": []any{map[string]any{"check": "link", "object": "eth0", "severity": "error", "title": "there is no link", "evidence": "carrier false"}}, "checks": 38}, nil
}

func (g *gateway) Limits() ([]Limit, error) {
	return []Limit{{Name: "clients", Plane: "workers", Of: "requests", Key: "address", Rate: "100r/s", Burst: 200, Scope: "all workers together", Total: 100, Bound: "nothing", Counts: map[string]uint64{"passed": 7}}}, nil
}

func (g *gateway) Configuration() any { return map[string]any{"workers": 1} }

func (g *gateway) Datapath() (any, error) {
	return []any{map[string]any{
		"interface": "eth0", "attached": true, "generation": 7, "programs": []any{map[string]any{"name": "xdp_ingress", "id": 5}},
		"maps": []any{map[string]any{"name": "verdicts", "id": 6, "type": "Array", "entries": 65536, "used": 1}}, "outcomes": map[string]any{"pass_other": 5},
	}}, nil
}

func (g *gateway) Certificates() (Certificates, error) {
	return Certificates{Certificates: []Certificate{{Listener: ":443", Names: []string{"a.example"}, NotAfter: time.Now()}}, Handshakes: map[string]uint64{"full": 1}}, nil
}

func (g *gateway) Explain(ask ExplainRequest) (Explained, error) {
	if ask.Path == "" {
		return Explained{}, ErrInvalid
	}
	return Explained{Route: "all", Ends: "it goes to an upstream", Upstream: []string{"back"}, Servers: g.Status().Servers, Packets: map[string]ExplainedPacket{"eth0": {Outcome: "pass_other"}}}, nil
}

func (g *gateway) Busiest(kind string, k int) ([]Busy, error) {
	if kind != "sources" {
		return nil, ErrNotFound
	}
	return []Busy{{Name: "192.0.2.7", PerSecond: 5, Requests: 50, Since: time.Now()}, {Name: "192.0.2.8", Since: time.Now()}}[:min(k, 2)], nil
}

func (g *gateway) Events() *Events { return g.events }

func (g *gateway) Logging() Logging { return Logging{Level: "info", Until: time.Now(), Back: "warn"} }

func (g *gateway) SetLogging(ask SetLogging) error {
	if ask.Level == "" {
		return ErrInvalid
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.levels++
	return nil
}

func (g *gateway) SetDrained(bool) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.drains++
	return nil
}

func (g *gateway) History() []Moment {
	var all []Moment
	for i := range 700 {
		all = append(all, Moment{Time: time.Now().Add(time.Duration(i-700) * 5 * time.Second), Passed: float64(i), Requests: [5]float64{0, float64(i)}, Median: float64(i%3) / 1000})
	}
	return all
}

// served is a Remote with a token of each role.
type served struct {
	gateway                *gateway
	tokens                 *Tokens
	url                    string
	log                    *lockedLog
	client                 *http.Client
	viewer, operator, boss string
}

type lockedLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedLog) lines() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), "admin audit")
}

func serveRemote(t *testing.T) *served {
	t.Helper()
	s := &served{gateway: &gateway{events: NewEvents()}, log: &lockedLog{}}
	dir := t.TempDir()
	var first string
	var err error
	if s.tokens, first, err = OpenTokens(dir); err != nil || first != filepath.Join(dir, firstFile) {
		t.Fatalf("first token in %q: %v", first, err)
	}
	text, err := os.ReadFile(first)
	if err != nil {
		t.Fatal(err)
	}
	s.boss = strings.TrimSpace(string(text))
	for role, into := range map[Role]*string{Viewer: &s.viewer, Operator: &s.operator} {
		if _, *into, err = s.tokens.Add(role.String(), role, time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
	pair := httptest.NewUnstartedServer(nil)
	pair.StartTLS()
	certificate := pair.TLS.Certificates[0]
	pair.Close()
	r := NewRemote(s.gateway, RemoteOptions{
		Tokens: s.tokens, Names: []string{"gateway.example"}, Log: slog.New(slog.NewTextHandler(s.log, nil)),
		Certificate: func() (*tls.Certificate, error) { return &certificate, nil },
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = r.Serve(l) }()
	t.Cleanup(func() { r.Close() })
	s.url = "https://" + l.Addr().String()
	s.client = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}}
	t.Cleanup(s.client.CloseIdleConnections)
	return s
}

// ask sends a request, with header fields as "Name: value".
func (s *served) ask(t *testing.T, method, path, token, body string, fields ...string) (int, string) {
	t.Helper()
	q, err := http.NewRequestWithContext(t.Context(), method, s.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		q.Header.Set("Authorization", "Bearer "+token)
	}
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		if q.Header.Set(name, value); name == "Host" {
			q.Host = value
		}
	}
	r, err := s.client.Do(q)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(text)
}

func TestRoles(t *testing.T) {
	s := serveRemote(t)
	for _, row := range []struct {
		method, path           string
		viewer, operator, boss int
	}{
		{"GET", "/v1/status", 200, 200, 200},
		{"GET", "/v1/live", 200, 200, 200},
		{"GET", "/v1/doctor", 200, 200, 200},
		{"GET", "/v1/history", 200, 200, 200},
		{"GET", "/v1/charts/packets", 200, 200, 200},
		{"GET", "/v1/charts/none", 404, 404, 404},
		{"GET", "/v1/charts/packets?width=9", 400, 400, 400},
		{"GET", "/v1/whoami", 200, 200, 200},
		{"GET", "/v1/limits", 200, 200, 200},
		{"GET", "/v1/config", 200, 200, 200},
		{"GET", "/v1/datapath", 200, 200, 200},
		{"GET", "/v1/certificates", 200, 200, 200},
		{"GET", "/v1/top/sources?k=1", 200, 200, 200},
		{"GET", "/v1/top/none", 404, 404, 404},
		{"GET", "/v1/top/sources?k=0", 400, 400, 400},
		{"POST", "/v1/explain", 400, 400, 400},
		{"POST", "/v1/drain", 403, 400, 400},
		{"GET", "/v1/log", 200, 200, 200},
		{"POST", "/v1/log", 403, 400, 400},
		{"POST", "/v1/reload", 403, 403, 200},
		{"POST", "/v1/confirm", 403, 403, 409},
		{"GET", "/v1/verdicts", 200, 200, 200},
		{"POST", "/v1/verdicts", 403, 400, 400},
		{"POST", "/v1/verdicts/remove", 403, 409, 409},
		{"POST", "/v1/servers", 403, 404, 404},
		{"POST", "/v1/keys", 403, 403, 400},
		{"POST", "/v1/cache/purge", 403, 400, 400},
		{"GET", "/v1/tokens", 403, 403, 200},
		{"DELETE", "/v1/tokens/none", 403, 403, 404},
		{"GET", "/v1/none", 404, 404, 404},
		{"PUT", "/v1/reload", 405, 405, 405},
	} {
		for token, want := range map[string]int{s.viewer: row.viewer, s.operator: row.operator, s.boss: row.boss} {
			if got, text := s.ask(t, row.method, row.path, token, ""); got != want {
				t.Errorf("%s %s: %d, want %d: %s", row.method, row.path, got, want, text)
			}
		}
	}
	if s.gateway.reloads != 1 || s.gateway.confirms != 1 {
		t.Errorf("%d reloads, %d confirms", s.gateway.reloads, s.gateway.confirms)
	}
}

func TestSessions(t *testing.T) {
	s := serveRemote(t)
	q, _ := http.NewRequestWithContext(t.Context(), "POST", s.url+"/v1/session", nil)
	q.Header.Set("Authorization", "Bearer "+s.boss)
	r, err := s.client.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	if len(r.Cookies()) != 1 {
		t.Fatalf("%d, cookies %v", r.StatusCode, r.Cookies())
	}
	c := r.Cookies()[0]
	if c.Name != sessionCookie || !c.Secure || !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || c.Path != "/" {
		t.Errorf("cookie %+v", c)
	}
	cookie := "Cookie: " + c.Name + "=" + c.Value
	if got, _ := s.ask(t, "POST", "/v1/reload", "", "", cookie); got != 200 {
		t.Errorf("reload by session: %d", got)
	}
	if got, _ := s.ask(t, "POST", "/v1/reload", "", "", cookie, "Origin: https://evil.example"); got != 403 || s.gateway.reloads != 1 {
		t.Errorf("reload by session from another site: %d", got)
	}
	if got, _ := s.ask(t, "POST", "/v1/reload", "", "", cookie, "Sec-Fetch-Site: cross-site"); got != 403 || s.gateway.reloads != 1 {
		t.Errorf("reload by session from another site: %d", got)
	}
	if got, _ := s.ask(t, "DELETE", "/v1/session", "", "", cookie); got != 200 {
		t.Errorf("logout: %d", got)
	}
	if got, _ := s.ask(t, "GET", "/v1/status", "", "", cookie); got != 401 {
		t.Errorf("status after logout: %d", got)
	}
}

// A revoked token opens nothing any more, nor does the session that it opened; the last one
// that may do all stays.
func TestTokens(t *testing.T) {
	s := serveRemote(t)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := errors.Join(os.WriteFile(secret, []byte("secret"), 0o600), os.Symlink(secret, filepath.Join(s.tokens.dir, tokensFile+".new"))); err != nil {
		t.Fatal(err)
	}
	code, text := s.ask(t, "POST", "/v1/tokens", s.boss, `{"name":"ops@example","role":"operator"}`)
	var made struct{ ID, Token string }
	if err := json.Unmarshal([]byte(text), &made); code != 200 || err != nil || made.Token == "" {
		t.Fatalf("%d %s", code, text)
	}
	if got, text := s.ask(t, "GET", "/v1/whoami", made.Token, ""); got != 200 || !strings.Contains(text, `"role":"operator"`) {
		t.Errorf("%d %s", got, text)
	}
	stored, err := os.ReadFile(filepath.Join(s.tokens.dir, tokensFile))
	if err != nil || strings.Contains(string(stored), made.Token[len("xgwadm_")+9:]) {
		t.Errorf("the secret is on disk, or %v", err)
	}
	if info, err := os.Stat(filepath.Join(s.tokens.dir, tokensFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the file: %v, %v", info.Mode(), err)
	}
	if text, err := os.ReadFile(secret); err != nil || string(text) != "secret" {
		t.Errorf("a link was followed: %q, %v", text, err)
	}
	if got, _ := s.ask(t, "DELETE", "/v1/tokens/"+made.ID, s.boss, ""); got != 200 {
		t.Errorf("revoke: %d", got)
	}
	if got, _ := s.ask(t, "GET", "/v1/whoami", made.Token, ""); got != 401 {
		t.Errorf("a revoked token: %d", got)
	}
	if got, text := s.ask(t, "DELETE", "/v1/tokens/"+s.tokens.List()[0].ID, s.boss, ""); got != 409 {
		t.Errorf("revoke the last: %d %s", got, text)
	}
	again, first, err := OpenTokens(s.tokens.dir)
	if err != nil || first != "" || len(again.List()) != 3 {
		t.Errorf("read again: %q, %v, %v", first, again.List(), err)
	}
	if _, ok := again.Check(s.viewer); !ok {
		t.Error("a token is not known after a new start")
	}
	for _, name := range []string{"", "a b", "x\n", strings.Repeat("x", 64)} {
		if _, _, err := again.Add(name, Viewer, time.Time{}); !errors.Is(err, ErrTokenName) {
			t.Errorf("a token called %q: %v", name, err)
		}
	}
}

// Forged requests change nothing, and each is in the audit log.
func TestForgedRequests(t *testing.T) {
	s := serveRemote(t)
	revoked, err := s.revoked()
	if err != nil {
		t.Fatal(err)
	}
	_, expired, err := s.tokens.Add("over", Admin, time.Now().Add(-time.Second))
	if err != nil {
		t.Fatal(err)
	}
	before := s.log.lines()
	dribbled := s.dribble(t)
	type forged struct {
		method, path, token, body string
		fields                    []string
	}
	var all []forged
	for _, path := range []string{"/v1/reload", "/v1/confirm", "/v1/tokens", "/v1/session", "/v1/drain", "/v1/log", "/v1/servers"} {
		for _, token := range []string{"", "x", "xgwadm_", "xgwadm_a_b", s.boss + "x", s.boss[:len(s.boss)-1], strings.ToUpper(s.boss), expired, revoked} {
			all = append(all, forged{"POST", path, token, `{"name":"x","role":"admin"}`, nil})
		}
		all = append(all,
			forged{"POST", path, s.boss, "", []string{"Host: evil.example"}},
			forged{"POST", path, s.boss, "", []string{"Host: gateway.example.evil.example"}},
			forged{"POST", path, s.boss, "", []string{"Origin: https://evil.example"}},
			forged{"POST", path, s.boss, "", []string{"Origin: null"}},
			forged{"POST", path, s.boss, "", []string{"Sec-Fetch-Site: same-site"}},
		)
	}
	for _, path := range []string{"/v1/config", "/v1/limits", "/v1/datapath", "/v1/certificates", "/v1/top/keys", "/v1/events", "/v1/tokens"} {
		all = append(all, forged{"GET", path, "", "", nil}, forged{"GET", path, expired, "", nil}, forged{"GET", path, s.boss, "", []string{"Host: evil.example"}})
	}
	all = append(all,
		forged{"POST", "/v1/drain", s.viewer, `{"drained":true}`, nil},
		forged{"POST", "/v1/log", s.viewer, `{"level":"debug"}`, nil},
		forged{"POST", "/v1/log", s.boss, `{"level":"debug","for_ns":"1"}`, nil},
		forged{"GET", "/v1/drain", s.boss, `{"drained":true}`, []string{"X-HTTP-Method: POST"}},
		forged{"POST", "/v1/limits/../drain", s.viewer, `{"drained":true}`, nil},
		forged{"POST", "/v1/drain", s.boss, `{"drained":"yes"}`, nil},
		forged{"POST", "/v1/drain", s.boss, `{"drained":true` + strings.Repeat(" ", 10<<20) + `}`, nil},
		forged{"POST", "/v1/explain", s.boss, `{"path":"` + strings.Repeat("x", 10<<20), nil},
		forged{"POST", "/v1/reload", s.viewer, "", nil},
		forged{"POST", "/v1/status", s.viewer, "", []string{"X-HTTP-Method-Override: POST", "X-Original-URL: /v1/reload"}},
		forged{"POST", "/v1/status/../reload", s.operator, "", nil},
		forged{"POST", "/v1/%72eload", s.operator, "", nil},
		forged{"POST", "//v1/reload", s.viewer, "", nil},
		forged{"POST", "/v1/reload", s.boss, `{"confirm_within_ns":"1"}`, nil},
		forged{"POST", "/v1/reload", s.boss, `{"evil":1}`, nil},
		forged{"POST", "/v1/verdicts", s.viewer, `{"source":"192.0.2.7","step":"all","ttl_ns":60000000000}`, nil},
		forged{"POST", "/v1/tokens", s.boss, `{"name":"x","role":"root"}`, nil},
		forged{"POST", "/v1/tokens", s.boss, `{"name":"x\n","role":"admin"}`, nil},
		forged{"POST", "/v1/tokens", s.boss, `{"name":"` + strings.Repeat("x", 10<<20), nil},
	)
	for i, f := range all {
		s.forgive()
		got, text := s.ask(t, f.method, f.path, f.token, f.body, f.fields...)
		if got < 400 && got != http.StatusTemporaryRedirect && got != http.StatusMovedPermanently {
			t.Errorf("%d: %s %s: %d %s", i, f.method, f.path, got, text)
		}
	}
	if len(all) < 60 || s.gateway.reloads+s.gateway.confirms+s.gateway.drains+s.gateway.levels+len(s.gateway.held) > 0 || len(s.tokens.List()) != 4 {
		t.Errorf("%d forged requests: %d reloads, %d confirms, tokens %v", len(all), s.gateway.reloads, s.gateway.confirms, s.tokens.List())
	}
	// Whom a dribbled body belonged to is known when the client has gone; a line may come late.
	for end := time.Now().Add(20 * time.Second); s.log.lines()-before < len(all)+dribbled && time.Now().Before(end); {
		time.Sleep(20 * time.Millisecond)
	}
	// One that is sent on to a cleaner path is there with that.
	if lines := s.log.lines() - before; lines < len(all)+dribbled {
		t.Errorf("%d of %d are in the audit log", lines, len(all)+dribbled)
	}
	if got := s.gateway.reloads + s.gateway.drains; got > 0 {
		t.Errorf("half a body changes something: %d", got)
	}
}

// dribble sends bodies a byte at a time, with a good token, and goes before they end.
func (s *served) dribble(t *testing.T) (n int) {
	for _, path := range []string{"/v1/reload", "/v1/drain", "/v1/tokens", "/v1/explain"} {
		c, err := tls.Dial("tcp", strings.TrimPrefix(s.url, "https://"), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nContent-Length: 100\r\n\r\n", path, s.boss)
		for _, b := range `{"drained": true, ` {
			fmt.Fprintf(c, "%c", b)
			time.Sleep(5 * time.Millisecond)
		}
		c.Close()
		n++
	}
	return n
}

// revoked is a token that was good.
func (s *served) revoked() (string, error) {
	token, text, err := s.tokens.Add("gone", Admin, time.Time{})
	if err == nil {
		err = s.tokens.Revoke(token.ID)
	}
	return text, err
}

// forgive goes on from another address of loopback, of which no wrong token is known.
var forgiven atomic.Uint32

func (s *served) forgive() {
	s.client.CloseIdleConnections()
	n := forgiven.Add(1)
	s.client.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 1, byte(n>>8), byte(n))}}
		return d.DialContext(ctx, network, address)
	}
}

// Who shows wrong tokens is not listened to for a while, with a good one either; others are.
func TestWrongTokensAreLimited(t *testing.T) {
	s := serveRemote(t)
	for range maxFailures {
		if got, _ := s.ask(t, "GET", "/v1/status", "xgwadm_a_b", ""); got != 401 {
			t.Fatalf("wrong token: %d", got)
		}
	}
	if got, _ := s.ask(t, "GET", "/v1/status", s.boss, ""); got != 429 {
		t.Errorf("after %d wrong tokens: %d", maxFailures, got)
	}
	s.forgive()
	if got, _ := s.ask(t, "GET", "/v1/status", s.boss, ""); got != 200 {
		t.Errorf("from another address: %d", got)
	}
}

// Strangers cannot fill the disk by the audit log: what is left out is counted.
func TestAuditLogIsBounded(t *testing.T) {
	r := NewRemote(&gateway{}, RemoteOptions{Tokens: &Tokens{}, Log: slog.New(slog.DiscardHandler)})
	written := 0
	for range 10 * maxRefusalLines {
		if write, _ := r.audits(false); write {
			written++
		}
	}
	if written < maxRefusalLines || written > 5*maxRefusalLines { // more than a second may have passed
		t.Errorf("%d lines of strangers", written)
	}
	if write, kept := r.audits(true); !write || kept != 10*maxRefusalLines-written {
		t.Errorf("somebody with a token: written %v, %d left out before", write, kept)
	}
}

// A body that comes slowly keeps nobody else out.
func TestSlowAdminBodies(t *testing.T) {
	s := serveRemote(t)
	for range 2 * maxConnections {
		c, err := tls.Dial("tcp", strings.TrimPrefix(s.url, "https://"), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprintf(c, "POST /v1/reload HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nContent-Length: 100\r\n\r\n{", s.boss)
	}
	if got, _ := s.ask(t, "GET", "/v1/status", s.viewer, ""); got != 200 {
		t.Errorf("beside slow bodies: %d", got)
	}
	if s.gateway.reloads > 0 {
		t.Error("half a body reloads")
	}
}

func TestPageAsksNobodyElse(t *testing.T) {
	s := serveRemote(t)
	for path, kind := range map[string]string{"/": "text/html", "/dashboard.js": "text/javascript", "/dashboard.css": "text/css", "/openapi.yaml": "application/yaml"} {
		r, err := s.client.Get(s.url + path)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(r.Body)
		r.Body.Close()
		if r.StatusCode != 200 || !strings.HasPrefix(r.Header.Get("Content-Type"), kind) || !strings.Contains(r.Header.Get("Content-Security-Policy"), "default-src 'self'") {
			t.Errorf("%s: %d %v", path, r.StatusCode, r.Header)
		}
		if path != "/openapi.yaml" && (strings.Contains(string(text), "//") && strings.Contains(string(text), "http://") || strings.Contains(string(text), "https://")) {
			t.Errorf("%s names another host", path)
		}
	}
	if code, _ := s.ask(t, "GET", "/nothing", "", ""); code != 404 {
		t.Errorf("a page that is none: %d", code)
	}
}
