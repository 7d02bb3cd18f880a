// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"

	"github.com/xgw-project/xgw/pkg/logging"
)

// openSyslog starts to send both logs to the receiver; nil where there is none.
func (s *supervisor) openSyslog() (*logging.Syslog, error) {
	c := s.config.Log.Syslog
	if c.Address == "" {
		return nil, nil
	}
	o := logging.SyslogOptions{Transport: c.Transport, Address: c.Address, Facility: logging.Facilities[c.Facility], Size: c.Size, Names: s.names()}
	if c.Transport == "tls" {
		host, _, _ := net.SplitHostPort(c.Address) // as the configuration checked
		o.TLS = &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}
		var err error
		if o.TLS.RootCAs, err = authorities(c.CA); err != nil {
			return nil, fmt.Errorf("authorities of the syslog receiver: %w", err)
		}
	}
	out := logging.NewSyslog(o)
	if h, ok := s.log.Handler().(*logging.Handler); ok {
		h.Also(out)
	}
	s.syslog.Store(out)
	return out, nil
}

// authorities are those of a file; nil, the system's, for none.
func authorities(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s has no certificate in PEM", file)
	}
	return pool, nil
}

// closeSyslog ends it, after the last who writes to it.
func (s *supervisor) closeSyslog(out *logging.Syslog) {
	if out == nil {
		return
	}
	if h, ok := s.log.Handler().(*logging.Handler); ok {
		h.Also(nil)
	}
	_ = out.Close()
}

// syslogCounts tells the ledger.
func (s *supervisor) syslogCounts() (sent, full, unreachable uint64) {
	if out := s.syslog.Load(); out != nil {
		return out.Counts()
	}
	return 0, 0, 0
}
