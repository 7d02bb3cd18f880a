// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/xgw-project/xgw/pkg/admin"
	"github.com/xgw-project/xgw/pkg/config"
	"github.com/xgw-project/xgw/pkg/datapath"
	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/top"
	"github.com/xgw-project/xgw/pkg/zone"
)

// holding is the configuration in force and its policy, for who asks and must not wait for a
// reload.
type holding struct {
	config *config.Config
	policy *policy.Policy
}

func (s *supervisor) inForce() (*config.Config, *policy.Policy) {
	h := s.held.Load()
	return h.config, h.policy
}

// Configuration is what is in force.
func (s *supervisor) Configuration() any {
	c, p := s.inForce()
	out := c.Effective()
	out["generation"], out["configuration"] = p.Generation, c.Path
	return out
}

// Datapath tells of each interface.
func (s *supervisor) Datapath() (any, error) {
	out := []*datapath.Description{}
	var errs []error
	for _, pl := range s.planes {
		d, err := pl.describe()
		errs = append(errs, err)
		if err == nil {
			out = append(out, d)
		}
	}
	return out, errors.Join(errs...)
}

func (pl *plane) describe() (*datapath.Description, error) {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	return pl.d.Describe()
}

func (pl *plane) limitCounts() ([]datapath.LimitCount, error) {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	return pl.d.LimitCounts()
}

func (pl *plane) explain(frame []byte) (*datapath.Explanation, error) {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	return pl.d.Explain(frame, 1)
}

// Certificates are those that clients are shown now.
func (s *supervisor) Certificates() (admin.Certificates, error) {
	out := admin.Certificates{Certificates: []admin.Certificate{}, Handshakes: map[string]uint64{}}
	names, all, ticketKeys := s.crew.shown()
	out.TicketKeys = ticketKeys
	for i := range all {
		for _, c := range all[i].Certificates {
			pair, err := tls.X509KeyPair(c.Chain, c.Key)
			if err != nil {
				return out, fmt.Errorf("certificate of %s: %w", names[i], err)
			}
			out.Certificates = append(out.Certificates, describeCertificate(names[i], pair.Leaf, c.OCSP))
		}
	}
	for name, get := range map[string]func() (*tls.Certificate, error){"admin_api": s.adminCertificate, "telemetry": s.telemetryCertificate} {
		if get == nil {
			continue
		}
		pair, err := get()
		if err != nil {
			return out, err
		}
		out.Certificates = append(out.Certificates, describeCertificate(name, pair.Leaf, nil))
	}
	slices.SortStableFunc(out.Certificates, func(a, b admin.Certificate) int { return cmp.Compare(a.Listener, b.Listener) })
	for _, o := range zone.HandshakeOutcomes() {
		for i := range s.zone.Slots() {
			out.Handshakes[o.String()] += s.zone.Worker(i).LoadHandshake(o)
		}
	}
	full, resumed := out.Handshakes[zone.HandshakeFull.String()], out.Handshakes[zone.HandshakeResumed.String()]
	if full+resumed > 0 {
		out.Resumed = float64(resumed) / float64(full+resumed)
	}
	return out, nil
}

// shown are listeners' names with their secrets, and how many ticket keys there are.
func (c *crew) shown() (names []string, all []secrets, ticketKeys int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.current.Snapshot.Listeners {
		names = append(names, l.Address)
	}
	return names, c.current.Secrets, len(c.ticketKeys)
}

func describeCertificate(listener string, leaf *x509.Certificate, staple []byte) admin.Certificate {
	sum := sha256.Sum256(leaf.Raw)
	c := admin.Certificate{
		Listener: listener, Names: append([]string{}, leaf.DNSNames...), Subject: leaf.Subject.String(), Issuer: leaf.Issuer.String(),
		NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter, Days: int(math.Floor(time.Until(leaf.NotAfter).Hours() / 24)),
		Key: leaf.PublicKeyAlgorithm.String(), Fingerprint: hex.EncodeToString(sum[:]),
	}
	for _, a := range leaf.IPAddresses {
		c.Names = append(c.Names, a.String())
	}
	switch k := leaf.PublicKey.(type) {
	case *ecdsa.PublicKey:
		c.Key += " " + k.Curve.Params().Name
	case *rsa.PublicKey:
		c.Key += fmt.Sprintf(" %d", k.N.BitLen())
	}
	if reply, err := ocsp.ParseResponse(staple, nil); err == nil {
		c.OCSPUntil = reply.NextUpdate
	}
	return c
}

// Busiest are those with the most requests lately.
func (s *supervisor) Busiest(kind string, k int) ([]admin.Busy, error) {
	out := []admin.Busy{}
	now := time.Now()
	switch kind {
	case "sources", "keys":
		table := s.zone.BusyAddresses()
		if kind == "keys" {
			table = s.zone.BusyKeys()
		}
		for _, b := range table.All(nil, now) {
			v := admin.Busy{
				Name: b.Name, PerSecond: b.PerSecond, Requests: b.Requests, ClientFault: b.ClientFault, ServerFault: b.ServerFault,
				Limited: b.Limited, Sent: b.Sent, Since: b.Since, Last: b.Last,
			}
			if kind == "keys" && b.From.IsValid() {
				v.From = b.From.String()
			}
			out = append(out, v)
		}
	case "routes":
		out = s.busyRoutes()
	default:
		return nil, fmt.Errorf("%w: top %q: want sources, keys or routes", admin.ErrNotFound, kind)
	}
	slices.SortFunc(out, func(a, b admin.Busy) int {
		return cmp.Or(cmp.Compare(b.PerSecond, a.PerSecond), cmp.Compare(b.Requests, a.Requests), cmp.Compare(a.Name, b.Name))
	})
	return out[:min(len(out), k)], nil
}

// busyRoutes are all routes that had a request: of them the zone knows exactly.
func (s *supervisor) busyRoutes() []admin.Busy {
	out := []admin.Busy{}
	rates := map[string]float64{}
	if f, ok := s.Live().(*top.Frame); ok {
		routes := f.Pane("routes")
		for _, row := range routes.Rows {
			rates[row[0].Text] = row[1].Number
		}
	}
	for slot := range s.zone.Layout().Routes {
		v := admin.Busy{Name: s.zone.RouteName(slot), Since: s.zone.Created()}
		for i := range s.zone.Slots() {
			for class, n := range s.zone.Worker(i).RouteRequests(slot) {
				v.Requests += n
				switch class {
				case 3:
					v.ClientFault += n
				case 4:
					v.ServerFault += n
				}
			}
		}
		if v.Requests > 0 {
			v.PerSecond = rates[v.Name]
			out = append(out, v)
		}
	}
	return out
}

// Events are told as they happen.
func (s *supervisor) Events() *admin.Events { return s.events }
