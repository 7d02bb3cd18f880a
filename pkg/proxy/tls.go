// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"crypto/rsa"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/zone"
)

// setTLS makes what the listener's handshakes go by. Curves are those of crypto/tls, of
// which a hybrid one with ML-KEM comes first.
func (l *listener) setTLS(secrets *Secrets) error {
	if len(secrets.Certificates) == 0 {
		return errors.New("no certificate")
	}
	l.certificates = newDirectory(secrets.Certificates)
	c := &tls.Config{
		GetConfigForClient: l.hello,
		GetCertificate:     l.certificate,
		NextProtos:         []string{"h2", "http/1.1", "http/1.0"},
		MinVersion:         tls.VersionTLS13,
		// Of TLS 1.2; those of 1.3 cannot be chosen.
		CipherSuites: []uint16{
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		},
		ClientCAs: secrets.ClientCAs,
		// A full record for each write: the small first records of the default cost
		// system calls.
		DynamicRecordSizingDisabled: true,
	}
	if !l.policy.HTTP2 {
		c.NextProtos = c.NextProtos[1:]
	}
	switch l.policy.MinTLS {
	case "", "1.3":
	case "1.2":
		c.MinVersion = tls.VersionTLS12
	default:
		return fmt.Errorf("minimum version %q: it is 1.2 or 1.3", l.policy.MinTLS)
	}
	switch l.policy.ClientCertificates {
	case "", "off":
	case "request":
		c.ClientAuth = tls.VerifyClientCertIfGiven
	case "require":
		c.ClientAuth = tls.RequireAndVerifyClientCert
	default:
		return fmt.Errorf("client certificates %q: off, request or require", l.policy.ClientCertificates)
	}
	if c.ClientAuth != tls.NoClientCert && c.ClientCAs == nil {
		return errors.New("client certificates are asked for, and nobody can vouch for them")
	}
	l.tls = c
	return nil
}

// directory finds certificates by the name that a client asks for.
type directory struct {
	exact    map[string][]*tls.Certificate
	below    map[string][]*tls.Certificate // *.example.com by .example.com
	fallback []*tls.Certificate            // for names that none has, and for none
}

func newDirectory(certs []tls.Certificate) directory {
	d := directory{exact: map[string][]*tls.Certificate{}, below: map[string][]*tls.Certificate{}}
	for i := range certs {
		c := &certs[i]
		for _, name := range c.Leaf.DNSNames {
			in, name := d.exact, strings.ToLower(name)
			if domain, ok := strings.CutPrefix(name, "*"); ok {
				in, name = d.below, domain
			}
			in[name] = append(in[name], c)
		}
	}
	for _, in := range []map[string][]*tls.Certificate{d.exact, d.below} {
		for _, list := range in {
			slices.SortStableFunc(list, func(a, b *tls.Certificate) int { return cost(a) - cost(b) })
		}
	}
	// Those that stand beside the first, for the same name, are for the same clients.
	if names := certs[0].Leaf.DNSNames; len(names) > 0 {
		d.fallback = d.find(names[0])
	}
	if len(d.fallback) == 0 {
		d.fallback = []*tls.Certificate{&certs[0]}
	}
	return d
}

// cost orders by what a signature costs: RSA's are some twenty times dearer.
func cost(c *tls.Certificate) int {
	if _, ok := c.Leaf.PublicKey.(*rsa.PublicKey); ok {
		return 1
	}
	return 0
}

// find gives the certificates for a name: those that have it, else those of *.DOMAIN.
func (d *directory) find(name string) []*tls.Certificate {
	name = strings.ToLower(name) // which allocates where it must
	if list := d.exact[name]; list != nil {
		return list
	}
	if i := strings.IndexByte(name, '.'); i >= 0 {
		return d.below[name[i:]]
	}
	return nil
}

// choose gives the first certificate for the name that the client can verify.
func (d *directory) choose(offer *tls.ClientHelloInfo) *tls.Certificate {
	list := d.find(offer.ServerName)
	if list == nil {
		list = d.fallback
	}
	if len(list) > 1 {
		anyName := *offer
		anyName.ServerName = "" // it was looked at
		for _, c := range list {
			if anyName.SupportsCertificate(c) == nil {
				return c
			}
		}
	}
	return list[0]
}

// handshakeOutcome names the cause of a failed handshake. crypto/tls has types for
// few of them; for the others its texts are matched, and a test holds them to that.
func (c *conn) handshakeOutcome(err error) zone.HandshakeOutcome {
	var record tls.RecordHeaderError
	var op *net.OpError
	var unverified *tls.CertificateVerificationError
	switch text := err.Error(); {
	case errors.Is(err, errProxyHeader):
		return zone.HandshakeProxy
	case errors.Is(err, errHandshakeBudget):
		return zone.HandshakeBudget
	case c.expired.Load():
		return zone.HandshakeTimeout
	case errors.As(err, &record):
		return zone.HandshakeNotTLS
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, unix.ECONNRESET), errors.Is(err, net.ErrClosed):
		return zone.HandshakeEOF
	case errors.As(err, &op) && op.Op == "remote error":
		return zone.HandshakeAlert
	case errors.As(err, &unverified), strings.Contains(text, "client didn't provide a certificate"), strings.Contains(text, "client certificate"):
		return zone.HandshakeClient
	case strings.Contains(text, "unsupported versions"):
		return zone.HandshakeVersion
	case strings.Contains(text, "cipher suite"), strings.Contains(text, "curves"), strings.Contains(text, "key share"):
		return zone.HandshakeCipher
	case strings.Contains(text, "application protocol"):
		return zone.HandshakeProtocol
	}
	return zone.HandshakeOther
}
