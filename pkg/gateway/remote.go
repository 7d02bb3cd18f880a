// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/xgw-project/xgw/pkg/admin"
	"github.com/xgw-project/xgw/pkg/config"
	"github.com/xgw-project/xgw/pkg/top"
	"github.com/xgw-project/xgw/pkg/zone"
)

// Files of the certificate that the admin API has when none is configured.
const (
	adminChain = "admin.crt"
	adminKey   = "admin.key"
)

// Times of the admin API.
const (
	frameAge       = 500 * time.Millisecond // a frame younger than this is shown again
	certificateAge = 10 * time.Second       // after which its files are looked at again
)

// makeRemote opens the admin API's listener. What stands against it is said, and the gateway
// serves without: the control socket is there, too.
func (s *supervisor) makeRemote() {
	o := s.config.AdminAPI
	if o.Address == "" {
		return
	}
	if err := s.openRemote(&o); err != nil {
		s.log.Error("no admin API", "address", o.Address, "error", err)
	}
}

func (s *supervisor) openRemote(o *config.AdminAPI) error {
	tokens, first, err := admin.OpenTokens(s.config.State)
	if err != nil {
		return err
	}
	files := o.Certificate
	if files.Chain == "" {
		files = config.Certificate{Chain: filepath.Join(s.config.State, adminChain), Key: filepath.Join(s.config.State, adminKey)}
		if err := s.vault.ensureMade(files, append([]string{"localhost", "127.0.0.1", "::1"}, o.ServerNames...)); err != nil {
			return err
		}
	}
	shown := &shownCertificate{files: files}
	if _, err := shown.get(); err != nil {
		return err
	}
	options := admin.RemoteOptions{Tokens: tokens, Names: o.ServerNames, Certificate: shown.get, Roles: map[string]admin.Role{}, Log: s.log, Audit: s.audit()}
	if o.ClientCA != "" {
		clients := &clientAuthorities{path: o.ClientCA}
		if _, err := clients.get(); err != nil {
			return err
		}
		options.Clients = clients.get
	}
	for _, c := range o.Clients {
		var role admin.Role
		if err := role.UnmarshalText([]byte(c.Role)); err != nil {
			return err
		}
		options.Roles[c.Subject] = role
	}
	if s.remote = s.predecessor.side(sideAdmin, o.Address); s.remote == nil {
		if s.remote, err = listenSide(o.Address); err != nil {
			return fmt.Errorf("listen: %w", err)
		}
	}
	s.remoteOptions, s.adminCertificate = options, shown.get
	s.log.Info("admin API", "address", s.remote.address)
	if first != "" {
		s.log.Warn("a first token of the admin API was made: read it, make others, remove the file", "file", first)
	}
	return nil
}

// shownCertificate is that of the admin API or the metrics; a changed file is taken at once, and one that
// cannot be used leaves the last good one.
type shownCertificate struct {
	files config.Certificate

	mu   sync.Mutex
	last *tls.Certificate
	read time.Time
}

func (c *shownCertificate) get() (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.last != nil && time.Since(c.read) < certificateAge {
		return c.last, nil
	}
	pair, err := tls.LoadX509KeyPair(c.files.Chain, c.files.Key)
	switch {
	case err == nil:
		c.last, c.read = &pair, time.Now()
	case c.last == nil:
		return nil, fmt.Errorf("certificate %s: %w", c.files.Chain, err)
	}
	return c.last, nil
}

// clientAuthorities are those that clients' certificates may be from; as with shownCertificate, a
// changed file is taken, and one that cannot be used leaves the last good one.
type clientAuthorities struct {
	path string

	mu   sync.Mutex
	last *x509.CertPool
	read time.Time
}

func (c *clientAuthorities) get() (*x509.CertPool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.last != nil && time.Since(c.read) < certificateAge {
		return c.last, nil
	}
	text, err := os.ReadFile(c.path)
	pool := x509.NewCertPool()
	if err == nil && !pool.AppendCertsFromPEM(text) {
		err = fmt.Errorf("%s has no certificate in PEM", c.path)
	}
	switch {
	case err == nil:
		c.last, c.read = pool, time.Now()
	case c.last == nil:
		return nil, fmt.Errorf("read authorities of clients of the admin API: %w", err)
	}
	return c.last, nil
}

// view is what Live shows: one source for all who look, opened when the first one does.
type view struct {
	mu     sync.Mutex
	source *top.Source
	frame  *top.Frame
}

// Live is the frame of this moment.
func (s *supervisor) Live() any {
	v := &s.view
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.source == nil {
		v.source = top.Open(s.zonePath(), s.config.Instance)
	}
	if v.frame == nil || time.Since(v.frame.Time) > frameAge {
		v.frame = v.source.Read()
	}
	return v.frame
}

func (v *view) close() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.source == nil {
		return nil
	}
	return v.source.Close()
}

// History is the zone's, as rates.
func (s *supervisor) History() []admin.Moment {
	rows := s.zone.History(nil)
	out := make([]admin.Moment, 0, len(rows))
	for i := 1; i < len(rows); i++ {
		if rows[i].Time > rows[i-1].Time {
			out = append(out, moment(&rows[i-1], &rows[i]))
		}
	}
	return out
}

func moment(before, now *zone.Past) admin.Moment {
	seconds := float64(now.Time-before.Time) / float64(time.Second)
	per := func(now, before uint64) float64 {
		// An interface that was taken away took its counts with it.
		return float64(now-min(before, now)) / seconds
	}
	m := admin.Moment{
		Time: time.Unix(0, now.Time), Passed: per(now.Passed, before.Passed), Dropped: per(now.Dropped, before.Dropped),
		Full:    per(now.Handshakes-now.Resumed, before.Handshakes-before.Resumed),
		Resumed: per(now.Resumed, before.Resumed), HandshakesFailed: per(now.HandshakesFailed, before.HandshakesFailed),
		Connections: now.Connections, UnderWay: now.UnderWay,
		Median: now.Median.Seconds(), Percentile99: now.Percentile99.Seconds(),
		Received: 8 * per(now.BytesReceived, before.BytesReceived), Sent: 8 * per(now.BytesSent, before.BytesSent),
	}
	for class := range m.Requests {
		m.Requests[class] = per(now.Classes[class], before.Classes[class])
	}
	return m
}
