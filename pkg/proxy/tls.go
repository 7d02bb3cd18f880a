// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

// tlsConfig is what handshakes under this snapshot go by. Certificates are chosen
// by server name; the first is for names that none has.
func (w *Worker) tlsConfig(s *policy.Snapshot, certs []tls.Certificate) (*tls.Config, error) {
	if len(certs) == 0 {
		return nil, errors.New("apply TLS: no certificate")
	}
	c := &tls.Config{
		Certificates: certs,
		NextProtos:   []string{"h2", "http/1.1", "http/1.0"},
		MinVersion:   tls.VersionTLS13,
		// A full record for each write: the small first records of the default cost
		// system calls.
		DynamicRecordSizingDisabled: true,
	}
	switch s.MinTLS {
	case "", "1.3":
	case "1.2":
		c.MinVersion = tls.VersionTLS12
	default:
		return nil, fmt.Errorf("apply TLS: minimum version %q: it is 1.2 or 1.3", s.MinTLS)
	}
	if len(w.ticketKeys) > 0 {
		c.SetSessionTicketKeys(w.ticketKeys)
	}
	return c, nil
}

// handshakeOutcome names the cause of a failed handshake. crypto/tls has types for
// few of them; for the others its texts are matched, and a test holds them to that.
func (c *conn) handshakeOutcome(err error) zone.HandshakeOutcome {
	var record tls.RecordHeaderError
	var op *net.OpError
	switch text := err.Error(); {
	case c.expired.Load():
		return zone.HandshakeTimeout
	case errors.As(err, &record):
		return zone.HandshakeNotTLS
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, unix.ECONNRESET), errors.Is(err, net.ErrClosed):
		return zone.HandshakeEOF
	case errors.As(err, &op) && op.Op == "remote error":
		return zone.HandshakeAlert
	case strings.Contains(text, "unsupported versions"):
		return zone.HandshakeVersion
	case strings.Contains(text, "cipher suite"), strings.Contains(text, "curves"), strings.Contains(text, "key share"):
		return zone.HandshakeCipher
	case strings.Contains(text, "application protocol"):
		return zone.HandshakeProtocol
	}
	return zone.HandshakeOther
}
