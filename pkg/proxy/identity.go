// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/xgw-project/xgw/pkg/proxy/http1"
)

// maxIdentity bounds each field of an identity, in bytes. A longer one is left out: half
// a name could be somebody else's.
const maxIdentity = 4096

// newIdentity is who the client has proved to be, by a certificate that was verified in
// this handshake or in the one that is resumed: nil for nobody.
//
//	X-Client-Cert-Subject      the subject, as of RFC 4514
//	X-Client-Cert-Names        DNS:a.example, URI:spiffe://…, IP:192.0.2.1, email:a@b.example
//	X-Client-Cert-Fingerprint  SHA-256 of the certificate, in hex
func newIdentity(state *tls.ConnectionState) []http1.Field {
	if len(state.VerifiedChains) == 0 || len(state.PeerCertificates) == 0 {
		return nil
	}
	leaf := state.PeerCertificates[0]
	print := sha256.Sum256(leaf.Raw)
	var out []http1.Field
	for _, f := range []struct{ name, value string }{
		{"X-Client-Cert-Subject", leaf.Subject.String()},
		{"X-Client-Cert-Names", alternativeNames(leaf)},
		{"X-Client-Cert-Fingerprint", hex.EncodeToString(print[:])},
	} {
		if value := visible(f.value); value != "" && len(value) <= maxIdentity {
			out = append(out, http1.Field{Name: []byte(f.name), Value: []byte(value), Kind: http1.Other})
		}
	}
	return out
}

// alternativeNames: a comma within a name is written as \2C, so that it ends none.
func alternativeNames(c *x509.Certificate) string {
	var all []string
	add := func(kind, name string) {
		all = append(all, kind+":"+strings.ReplaceAll(strings.ReplaceAll(name, `\`, `\5C`), ",", `\2C`))
	}
	for _, n := range c.DNSNames {
		add("DNS", n)
	}
	for _, u := range c.URIs {
		add("URI", u.String())
	}
	for _, a := range c.IPAddresses {
		add("IP", a.String())
	}
	for _, m := range c.EmailAddresses {
		add("email", m)
	}
	return strings.Join(all, ", ")
}

// visible writes bytes that a field cannot have as RFC 4514 does: \XX.
func visible(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' {
			fmt.Fprintf(&b, `\%02X`, c)
		} else {
			b.WriteByte(c)
		}
	}
	return strings.Trim(b.String(), " ")
}

// clientCertificate tells routes and the upstream who a client has proved to be. What a
// client says of that by itself is http1.Identity, which no route sees and no upstream gets.
func clientCertificate(ex *Exchange) *refusal {
	if ex.identity != nil {
		ex.room = append(append(ex.room[:0], ex.fields...), ex.identity...)
		ex.fields = ex.room
	}
	return nil
}
