// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

// route is a compiled policy.Route. It does not change.
type route struct {
	name    string
	index   int // in Snapshot.Routes
	slot    int
	methods []string // none: any
	headers []headerCondition
	// listeners are addresses by which it is reached; none: all.
	listeners []string

	upstream *upstream // nil: the gateway answers by itself
	split    *split    // chooses among routes that differ in their upstream
	own      *ownReply // nil: there is an upstream
	closed   *ownReply // while under maintenance

	rewrite        *rewriting
	request, reply *edits
	cors           *cors
	mirror         *mirror    // nil: no copies
	keys           *routeKeys // nil: it looks for no API key
	limits         []*requestLimit
	atOnce         []*connectionLimit

	headerTime time.Duration // 0: the upstream's
	bodyTime   time.Duration // 0: the general one
	totalTime  time.Duration // 0: the upstream's
	bodyBytes  int64         // 0: no limit; -1: the general one
	webSocket  time.Duration // of silence; 0: none is opened
}

// newRoute compiles the one at the index. Upstreams and limits are those of the snapshot.
func (s *snapshot) newRoute(at int, p *policy.Route) (*route, error) {
	r := &route{
		name: p.Name, index: at, slot: p.Slot, limits: s.limitsOf(at), atOnce: s.concurrencyOf(at), methods: p.Methods, listeners: p.Listeners, request: newEdits(p.RequestHeaders), reply: newEdits(p.ReplyHeaders),
		cors: newCORS(p.CORS, p.Methods), bodyBytes: -1, webSocket: p.WebSocket, keys: newRouteKeys(p.Keys, p.Name),
	}
	r.headers = newHeaderConditions(p.Headers)
	if p.Timeouts != nil {
		r.headerTime, r.bodyTime, r.totalTime = p.Timeouts.Header, p.Timeouts.Body, p.Timeouts.Total
	}
	if p.BodyBytes != nil {
		r.bodyBytes = *p.BodyBytes
	}
	var err error
	if r.rewrite, err = newRewriting(p.Rewrite); err != nil {
		return nil, err
	}
	if r.mirror, err = s.newMirror(r, p.Mirror); err != nil {
		return nil, err
	}
	if p.Maintenance != nil {
		r.closed = newMaintenance(p.Maintenance)
	}
	switch {
	case p.Redirect != nil:
		r.own, err = newRedirect(p.Redirect)
	case p.Reply != nil:
		r.own = newReply(p.Reply)
	case len(p.Split) > 0:
		r.split, err = s.newSplit(r, p.Split)
	default:
		r.upstream, err = s.upstreamAt(p.Upstream)
	}
	return r, err
}

func (s *snapshot) upstreamAt(i int) (*upstream, error) {
	if i < 0 || i >= len(s.upstreams) {
		return nil, fmt.Errorf("upstream %d of %d", i, len(s.upstreams))
	}
	return s.upstreams[i], nil
}

// split spreads requests over upstreams by weight.
type split struct {
	routes []*route      // the split route, with an upstream
	upTo   []uint64      // sums of the weights up to each of them
	turn   atomic.Uint64 // of this worker
}

func (s *snapshot) newSplit(r *route, shares []policy.Share) (*split, error) {
	out := &split{}
	out.turn.Store(rand.Uint64())
	sum := uint64(0)
	for _, share := range shares {
		up, err := s.upstreamAt(share.Upstream)
		if err != nil {
			return nil, err
		}
		if share.Weight < 0 {
			return nil, fmt.Errorf("weight %d", share.Weight)
		}
		sum += uint64(share.Weight)
		one := *r
		one.upstream = up
		out.routes, out.upTo = append(out.routes, &one), append(out.upTo, sum)
	}
	if sum == 0 {
		return nil, errors.New("no share has a weight")
	}
	return out, nil
}

// pick takes the upstreams' turns. Steps of the golden ratio spread evenly over the
// sum of the weights, so that also of a few requests each gets about its part.
func (s *split) pick() *route {
	at, _ := bits.Mul64(s.turn.Add(0x9e3779b97f4a7c15), s.upTo[len(s.upTo)-1])
	for i, upTo := range s.upTo {
		if at < upTo {
			return s.routes[i]
		}
	}
	return s.routes[len(s.routes)-1]
}

// routing is what an exchange keeps for its route's sake.
type routing struct {
	asked    asked
	host     []byte // room for it in lower case
	path     []byte // room for a path whose needless escapes are decoded
	target   []byte // as rewritten; empty: as the client sent it
	text     []byte // fields of replies of the gateway's own
	location []byte
}

// cleared keeps the room alone.
func (r *routing) cleared() routing {
	return routing{host: r.host[:0], path: r.path[:0], target: r.target[:0], text: r.text[:0], location: r.location[:0]}
}

// chooseRoute finds the exchange's route, and of a split one the upstream.
func chooseRoute(ex *Exchange) *refusal {
	a := &ex.routing.asked
	a.method, a.fields = ex.method, ex.fields
	ex.routing.host = appendLower(ex.routing.host[:0], ex.host)
	a.host = ex.routing.host
	target, _, _ := bytes.Cut(ex.target, []byte{'?'})
	a.path, ex.routing.path = plainPath(ex.routing.path, target)
	a.preflight, a.listener = preflightMethod(ex), ex.listener
	r := ex.snap.routes.find(a)
	if r == nil {
		return &refusal{status: 404, outcome: zone.RequestNoRoute, text: "no route"}
	}
	if r.split != nil {
		r = r.split.pick()
	}
	ex.route = r
	if r.bodyBytes >= 0 || r.bodyTime > 0 {
		ex.client.bound(ex.bodyLimit(), ex.bodyTimeout())
	}
	return nil
}

// appendLower appends the host without port and without the dot that may end a name.
func appendLower(b, host []byte) []byte {
	host = bareHost(host)
	if n := len(host); n > 1 && host[n-1] == '.' {
		host = host[:n-1]
	}
	for _, c := range host {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		b = append(b, c)
	}
	return b
}

// bareHost is the host without port.
func bareHost(host []byte) []byte {
	if i := bytes.LastIndexByte(host, ':'); i >= 0 && bytes.IndexByte(host[i:], ']') < 0 {
		return host[:i]
	}
	return host
}

// plainPath decodes what need not be escaped: letters, digits and -._~ mean the same
// with and without (RFC 3986, 6.2.2.2), and a server may decode them, so /%61dmin must
// find the route of /admin. All other bytes stay as they are.
func plainPath(room, path []byte) (plain, grown []byte) {
	if bytes.IndexByte(path, '%') < 0 {
		return path, room
	}
	room = room[:0]
	for i := 0; i < len(path); i++ {
		c := path[i]
		if c == '%' && i+2 < len(path) {
			if d := hexDigit(path[i+1])<<4 | hexDigit(path[i+2]); unreserved(d) {
				c = d
				i += 2
			}
		}
		room = append(room, c)
	}
	return room, room
}

// hexDigit is the value of a digit that ValidTarget has looked at.
func hexDigit(c byte) byte {
	if c >= '0' && c <= '9' {
		return c - '0'
	}
	return (c | 0x20 - 'a' + 10) & 15
}

func unreserved(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '.' || c == '_' || c == '~'
}

// limitBody refuses what is known to be too long; the rest is counted as it comes.
func limitBody(ex *Exchange) *refusal {
	if most := ex.bodyLimit(); most > 0 && ex.body.Length > most {
		return &refusal{status: 413, outcome: zone.RequestBodyTooLarge, text: "the request body is too large"}
	}
	return nil
}

// bodyLimit is how long the request's body may be; 0: any length.
func (ex *Exchange) bodyLimit() int64 {
	if ex.route.bodyBytes >= 0 {
		return ex.route.bodyBytes
	}
	return ex.snap.policy.Sizes.BodyBytes
}

// headerTimeout is how long the upstream may take to begin its reply.
func (ex *Exchange) headerTimeout() time.Duration {
	if ex.route.headerTime > 0 {
		return ex.route.headerTime
	}
	return ex.route.upstream.policy.HeaderTimeout
}

// bodyTimeout is how long a wait for a part of a body may take, either way.
func (ex *Exchange) bodyTimeout() time.Duration {
	if ex.route.bodyTime > 0 {
		return ex.route.bodyTime
	}
	return ex.snap.policy.Timeouts.Body
}
