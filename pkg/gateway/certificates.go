// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/xgw-project/xgw/pkg/config"
	"github.com/xgw-project/xgw/pkg/proxy"
)

// Files of the certificate that is made when none is configured.
const (
	madeChain = "made.crt"
	madeKey   = "made.key"
)

// expiryNotice is how long before its end a certificate is complained of, once a day.
const expiryNotice = 14 * 24 * time.Hour

// vault reads what listeners prove themselves with, which nobody but the supervisor may.
// Of each file it knows what was good last, for files are written while it reads.
type vault struct {
	state string // directory of the certificate that is made
	log   *slog.Logger
	now   func() time.Time

	good      map[config.Certificate]certificate
	goodCA    map[string][]byte
	said      map[string]string // the last complaint about a file, said once
	warned    map[string]time.Time
	nextCheck time.Time // when a staple in use ends; zero for never
	reported  bool      // that the made certificate is in use
}

func newVault(state string, log *slog.Logger) *vault {
	return &vault{
		state: state, log: log, now: time.Now, good: map[config.Certificate]certificate{}, goodCA: map[string][]byte{},
		said: map[string]string{}, warned: map[string]time.Time{},
	}
}

// read gives each listener its secrets. Where strict, a certificate that cannot be used is
// an error; else what was good last stays in use, which is said.
func (v *vault) read(listeners []config.Listener, strict bool) ([]secrets, error) {
	v.nextCheck = time.Time{}
	out := make([]secrets, len(listeners))
	for i := range listeners {
		l := &listeners[i]
		if !l.TLS {
			continue
		}
		files, err := v.files(l)
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			c, err := v.certificate(f, strict)
			if err != nil {
				return nil, err
			}
			out[i].Certificates = append(out[i].Certificates, c)
		}
		if out[i].ClientCA, err = v.clientCA(l.ClientCA, strict); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// files are those of the listener's certificates; where it names none, of one that is made.
func (v *vault) files(l *config.Listener) ([]config.Certificate, error) {
	if len(l.Certificates) > 0 {
		return l.Certificates, nil
	}
	made := config.Certificate{Chain: filepath.Join(v.state, madeChain), Key: filepath.Join(v.state, madeKey)}
	return []config.Certificate{made}, v.ensureMade(made, l.ServerNames)
}

// paths are all files that the listeners are read from.
func (v *vault) paths(listeners []config.Listener) (out []string) {
	for i := range listeners {
		l := &listeners[i]
		for _, c := range l.Certificates {
			out = append(out, c.Chain, c.Key, c.OCSP)
		}
		out = append(out, l.ClientCA)
	}
	return out
}

func (v *vault) certificate(f config.Certificate, strict bool) (certificate, error) {
	c, leaf, err := readCertificate(f)
	if err != nil {
		last, known := v.good[f]
		if strict || !known {
			return c, err
		}
		v.complain(f.Chain, "certificate cannot be used: the last good one stays in use", err)
		c = last
		if leaf, err = x509.ParseCertificate(firstBlock(c.Chain)); err != nil {
			return c, err
		}
	} else {
		v.good[f] = c
		delete(v.said, f.Chain)
	}
	v.warnOfExpiry(f.Chain, leaf)
	c.OCSP = v.staple(f, &c, leaf)
	return c, nil
}

func readCertificate(f config.Certificate) (c certificate, leaf *x509.Certificate, err error) {
	if c.Chain, err = os.ReadFile(f.Chain); err != nil {
		return c, nil, fmt.Errorf("read certificate: %w", err)
	}
	if c.Key, err = os.ReadFile(f.Key); err != nil {
		return c, nil, fmt.Errorf("read key: %w", err)
	}
	pair, err := tls.X509KeyPair(c.Chain, c.Key)
	if err != nil {
		return c, nil, fmt.Errorf("certificate %s and key %s: %w", f.Chain, f.Key, err)
	}
	return c, pair.Leaf, nil
}

// staple reads the OCSP reply to send with the certificate. One that clients would refuse
// is not sent, and said.
func (v *vault) staple(f config.Certificate, c *certificate, leaf *x509.Certificate) []byte {
	if f.OCSP == "" {
		return nil
	}
	raw, reply, err := readStaple(f.OCSP, c.Chain, leaf, v.now())
	if err != nil {
		v.complain(f.OCSP, "OCSP staple is refused: the certificate is sent without", err)
		return nil
	}
	delete(v.said, f.OCSP)
	if !reply.NextUpdate.IsZero() && (v.nextCheck.IsZero() || reply.NextUpdate.Before(v.nextCheck)) {
		v.nextCheck = reply.NextUpdate
	}
	return raw
}

func readStaple(path string, chain []byte, leaf *x509.Certificate, now time.Time) ([]byte, *ocsp.Response, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, fmt.Errorf("read OCSP staple: %w", err)
	}
	// Without its issuer in the chain, the signature is for clients to check.
	var issuer *x509.Certificate
	if ders := blocks(chain); len(ders) > 1 {
		if issuer, err = x509.ParseCertificate(ders[1]); err != nil {
			return nil, nil, fmt.Errorf("issuer of the certificate: %w", err)
		}
	}
	r, err := ocsp.ParseResponseForCert(raw, leaf, issuer)
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("OCSP staple %s is not for this certificate, or not by its issuer: %w", path, err)
	case r.SerialNumber.Cmp(leaf.SerialNumber) != 0:
		return nil, nil, fmt.Errorf("OCSP staple %s is for another certificate, serial number %x", path, r.SerialNumber)
	case r.Status != ocsp.Good:
		return nil, nil, fmt.Errorf("OCSP staple %s does not call the certificate good: renew the certificate", path)
	case now.Before(r.ThisUpdate):
		return nil, nil, fmt.Errorf("OCSP staple %s is not valid before %s: see to the clock", path, r.ThisUpdate.Format(time.RFC3339))
	case !r.NextUpdate.IsZero() && now.After(r.NextUpdate):
		return nil, nil, fmt.Errorf("OCSP staple %s expired at %s: fetch another", path, r.NextUpdate.Format(time.RFC3339))
	}
	return raw, r, nil
}

func (v *vault) clientCA(path string, strict bool) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	text, err := os.ReadFile(path)
	if err == nil && !x509.NewCertPool().AppendCertsFromPEM(text) {
		err = fmt.Errorf("%s has no certificate in PEM", path)
	}
	if err != nil {
		last, known := v.goodCA[path]
		if strict || !known {
			return nil, fmt.Errorf("read authorities of clients: %w", err)
		}
		v.complain(path, "authorities of clients cannot be used: the last good ones stay in use", err)
		return last, nil
	}
	delete(v.said, path)
	v.goodCA[path] = text
	return text, nil
}

// complain says what is wrong with a file once.
func (v *vault) complain(path, what string, err error) {
	if v.said[path] != err.Error() {
		v.said[path] = err.Error()
		v.log.Error(what, "error", err)
	}
}

func (v *vault) warnOfExpiry(path string, leaf *x509.Certificate) {
	now := v.now()
	left := leaf.NotAfter.Sub(now)
	if left > expiryNotice || now.Sub(v.warned[path]) < 24*time.Hour {
		return
	}
	v.warned[path] = now
	if left <= 0 {
		v.log.Error("certificate has expired: renew it", "file", path, "expired", leaf.NotAfter)
		return
	}
	v.log.Warn("certificate expires soon: renew it", "file", path, "expires", leaf.NotAfter, "days", int(left.Hours()/24))
}

// ensureMade makes a self-signed certificate unless both files are there.
func (v *vault) ensureMade(f config.Certificate, names []string) error {
	_, errChain := os.Stat(f.Chain)
	_, errKey := os.Stat(f.Key)
	if errChain == nil && errKey == nil {
		if !v.reported {
			v.log.Info("no certificate configured: using the self-signed one made before", "file", f.Chain)
		}
		v.reported = true
		return nil
	}
	if len(names) == 0 {
		names = []string{"localhost"}
	}
	chainPEM, keyPEM, err := proxy.MakeCertificate(names, v.now())
	if err != nil {
		return fmt.Errorf("make certificate: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(f.Chain), 0o700); err != nil {
		return fmt.Errorf("make certificate: set `state:` to a directory that can be written: %w", err)
	}
	// The key first: a chain without its key would look like an operator's mistake.
	if err := errors.Join(writeAnew(f.Key, keyPEM, 0o600), writeAnew(f.Chain, chainPEM, 0o644)); err != nil {
		return fmt.Errorf("make certificate: %w", err)
	}
	v.reported = true
	v.log.Warn("no certificate configured: made a self-signed one, kept for later starts", "file", f.Chain, "names", names)
	return nil
}

// writeAnew puts a file in the place of what is there. It follows no link: the directory may be
// another user's than the writer.
func writeAnew(path string, text []byte, mode os.FileMode) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Close())
}
