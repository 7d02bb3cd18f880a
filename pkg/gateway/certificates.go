// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/xgw-project/xgw/pkg/config"
	"github.com/xgw-project/xgw/pkg/proxy"
)

// Files of the certificate that is made when none is configured.
const (
	madeChain = "made.crt"
	madeKey   = "made.key"
)

// certificates reads what the listener names, or what was made at the first
// start, or makes that now. Only the supervisor reads keys; workers get bytes.
func certificates(l *config.Listener, state string, log *slog.Logger) ([]certificate, error) {
	chain, key := l.Certificate, l.Key
	if chain == "" {
		chain, key = filepath.Join(state, madeChain), filepath.Join(state, madeKey)
		if err := ensureMade(chain, key, l.ServerNames, log); err != nil {
			return nil, err
		}
	}
	c, err := readCertificate(chain, key)
	if err != nil {
		return nil, err
	}
	return []certificate{c}, nil
}

func readCertificate(chain, key string) (certificate, error) {
	var c certificate
	var err error
	if c.Chain, err = os.ReadFile(chain); err != nil {
		return c, fmt.Errorf("read certificate: %w", err)
	}
	if c.Key, err = os.ReadFile(key); err != nil {
		return c, fmt.Errorf("read key: %w", err)
	}
	if _, err := tls.X509KeyPair(c.Chain, c.Key); err != nil {
		return c, fmt.Errorf("certificate %s and key %s: %w", chain, key, err)
	}
	return c, nil
}

// ensureMade makes a self-signed certificate unless both files are there.
func ensureMade(chain, key string, names []string, log *slog.Logger) error {
	_, errChain := os.Stat(chain)
	_, errKey := os.Stat(key)
	if errChain == nil && errKey == nil {
		log.Info("no certificate configured: using the self-signed one made before", "file", chain)
		return nil
	}
	if len(names) == 0 {
		names = []string{"localhost"}
	}
	chainPEM, keyPEM, err := proxy.MakeCertificate(names, time.Now())
	if err != nil {
		return fmt.Errorf("make certificate: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(chain), 0o700); err != nil {
		return fmt.Errorf("make certificate: set `state:` to a directory that can be written: %w", err)
	}
	// The key first: a chain without its key would look like an operator's mistake.
	if err := errors.Join(os.WriteFile(key, keyPEM, 0o600), os.WriteFile(chain, chainPEM, 0o644)); err != nil {
		return fmt.Errorf("make certificate: %w", err)
	}
	log.Warn("no certificate configured: made a self-signed one, kept for later starts", "file", chain, "names", names)
	return nil
}
