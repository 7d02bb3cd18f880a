// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/xgw-project/xgw/pkg/admin"
	"github.com/xgw-project/xgw/pkg/datapath/packettest"
	"github.com/xgw-project/xgw/pkg/keys"
	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/proxy"
)

// Explain tells what would become of a request, and of the packet that begins its connection.
func (s *supervisor) Explain(ask admin.ExplainRequest) (out admin.Explained, err error) {
	q := &proxy.Question{Method: cmp.Or(ask.Method, "GET"), Host: ask.Host, Path: ask.Path, Fields: ask.Fields}
	if !strings.HasPrefix(ask.Path, "/") && ask.Path != "*" {
		return out, fmt.Errorf("%w: path %q: want one that begins with /", admin.ErrInvalid, ask.Path)
	}
	if ask.Client != "" {
		if q.Client, err = netip.ParseAddr(ask.Client); err != nil {
			return out, fmt.Errorf("%w: client %q: want an address such as 192.0.2.7", admin.ErrInvalid, ask.Client)
		}
		q.Client = q.Client.Unmap().WithZone("")
	}
	_, p := s.inForce()
	standing := "none is shown"
	var record *keys.Record
	if ask.Key != "" {
		record, standing = s.standing(ask.Key)
		if record != nil {
			q.Key = keys.NewKey(record)
		}
	}
	if ask.Listener != "" && !slices.ContainsFunc(p.Snapshot.Listeners, func(l policy.Listener) bool { return l.Address == ask.Listener }) {
		return out, fmt.Errorf("%w: listener %q: there is none with that address: name one as it is in the configuration", admin.ErrInvalid, ask.Listener)
	}
	q.Listener = ask.Listener
	x, err := proxy.Explain(&p.Snapshot, q)
	if err != nil {
		return out, err
	}
	out.Packets = map[string]admin.ExplainedPacket{}
	for _, l := range x.Limits {
		out.Limits = append(out.Limits, admin.ExplainedLimit{Name: l.Name, Value: l.Value})
	}
	if x.Route < 0 {
		out.Ends = "404: no route takes it"
	} else {
		s.explainRoute(&out, &p.Snapshot, &p.Snapshot.Routes[x.Route], record, standing)
	}
	if q.Client.IsValid() {
		err = s.explainSource(&out, &p.Snapshot, q.Client)
	}
	return out, err
}

// standing is a key's record, where it opens anything, and how it stands.
func (s *supervisor) standing(id string) (*keys.Record, string) {
	switch a := s.keys.lookup([]string{id})[0]; {
	case a.Failed:
		return nil, "its store does not answer: 503, unless a worker knows it"
	case a.Record == nil:
		return nil, "there is no such key"
	case !a.Record.Revoked.IsZero():
		return nil, "it is revoked"
	case !a.Record.Expires.IsZero() && time.Now().After(a.Record.Expires):
		return nil, "it has expired"
	default:
		return a.Record, "it is good, of " + a.Record.Consumer
	}
}

func (s *supervisor) explainRoute(out *admin.Explained, snap *policy.Snapshot, r *policy.Route, key *keys.Record, standing string) {
	out.Route = r.Name
	if r.Keys != nil {
		out.Key = standing
		lacks := key != nil && slices.ContainsFunc(r.Keys.Scopes, func(scope string) bool { return !slices.Contains(key.Scopes, scope) })
		switch {
		case lacks:
			out.Ends = "403: the API key has not the scopes " + strings.Join(r.Keys.Scopes, " ")
			return
		case key == nil && (!r.Keys.Optional || standing != "none is shown"):
			out.Ends = "401: it needs an API key, and " + standing
			return
		}
	}
	switch {
	case r.Maintenance != nil:
		out.Ends = "503: the route is under maintenance"
	case r.Redirect != nil:
		out.Ends = fmt.Sprintf("%d: a redirect to %s", r.Redirect.Status, r.Redirect.Location)
	case r.Reply != nil:
		out.Ends = fmt.Sprintf("%d: a reply of the gateway's own", r.Reply.Status)
	default:
		out.Ends = "it goes to an upstream"
		shares := r.Split
		if len(shares) == 0 {
			shares = []policy.Share{{Upstream: r.Upstream, Weight: 1}}
		}
		for _, share := range shares {
			if share.Weight > 0 {
				out.Upstream = append(out.Upstream, snap.Upstreams[share.Upstream].Name)
			}
		}
		for _, v := range s.Status().Servers {
			if slices.Contains(out.Upstream, v.Upstream) {
				out.Servers = append(out.Servers, v)
			}
		}
	}
}

// explainSource tells what is held against a client, and what becomes of its SYN.
func (s *supervisor) explainSource(out *admin.Explained, snap *policy.Snapshot, client netip.Addr) error {
	for _, v := range s.Verdicts() {
		if p, err := netip.ParsePrefix(v.Source); v.Source == client.String() || err == nil && p.Contains(client) {
			out.Verdict = &v
		}
	}
	to := ownAddress(snap, client)
	var errs []error
	for _, pl := range s.planes {
		x, err := pl.explain(packettest.TCPSegment(netip.AddrPortFrom(client, 40000), to, packettest.SYN))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out.Packets[pl.options.Interface] = admin.ExplainedPacket{Outcome: x.Outcome, Rule: x.Rule, Verdict: x.Verdict, Over: x.Over}
	}
	return errors.Join(errs...)
}

// ownAddress is where a client of the family would connect to: the first listener's port, and
// its address, where it has one.
func ownAddress(snap *policy.Snapshot, client netip.Addr) netip.AddrPort {
	own := netip.AddrFrom4([4]byte{198, 51, 100, 1}) // for documentation: RFC 5737 and 3849
	if client.Is6() {
		own = netip.MustParseAddr("2001:db8::1")
	}
	port := uint16(443)
	for _, l := range snap.Listeners {
		a, err := netip.ParseAddrPort(l.Address)
		if err == nil && a.Addr().Is4() == client.Is4() {
			return a
		}
		if at := strings.LastIndexByte(l.Address, ':'); at == 0 {
			if p, err := netip.ParseAddrPort("0.0.0.0" + l.Address); err == nil {
				port = p.Port()
			}
		}
	}
	return netip.AddrPortFrom(own, port)
}
