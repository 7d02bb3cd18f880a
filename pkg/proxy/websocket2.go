// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"crypto/rand"
	"crypto/sha1"
	"encoding/base64"
	"time"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/proxy/http1"
	"github.com/xgw-project/xgw/pkg/zone"
)

// A WebSocket within HTTP/2 is a stream that CONNECT opens (RFC 8441). To the upstream it is what
// it is in HTTP/1.1: a GET that asks for an upgrade, whose key and proof are the gateway's own.

// opensWebSockets tells whether any route has them: only then clients are told that CONNECT is served.
func opensWebSockets(p *policy.Snapshot) bool {
	for i := range p.Routes {
		if p.Routes[i].WebSocket > 0 {
			return true
		}
	}
	return false
}

// refuseTunnel refuses a CONNECT whose route has no WebSockets, or whose upstream speaks HTTP/2,
// within which the gateway opens none. It must not become an ordinary
// request: a reply of 200 would tell the client that its tunnel is open.
func refuseTunnel(ex *Exchange) *refusal {
	st, ok := ex.client.(*stream)
	if !ok || !ex.head.WebSocket || ex.opensWebSocket() && string(st.s.Protocol()) == "websocket" {
		return nil
	}
	return &refusal{status: 501, outcome: zone.RequestMethodRefused, text: "this is not opened here"}
}

// opensWebSocket says whether the route has WebSockets and its upstream can.
func (ex *Exchange) opensWebSocket() bool {
	u := ex.route.upstream
	return ex.route.webSocket > 0 && (u == nil || u.policy.Protocol != "http2")
}

// appendWebSocketKey writes a fresh key: RFC 6455, 4.1.
func (ex *Exchange) appendWebSocketKey(b []byte) []byte {
	var nonce [16]byte
	_, _ = rand.Read(nonce[:]) // never fails
	base64.StdEncoding.Encode(ex.webSocketKey[:], nonce[:])
	return appendField(b, []byte("Sec-WebSocket-Key"), ex.webSocketKey[:])
}

func isWebSocketKey(name []byte) bool { return isNamed(name, "sec-websocket-key") }

func isNamed(name []byte, lower string) bool {
	return len(name) == len(lower) && equalFoldString(name, lower)
}

// acceptKey is the proof that belongs to a key: RFC 6455, 4.2.2. SHA-1 is the protocol's; nothing
// is protected by it.
func acceptKey(key []byte) string {
	sum := sha1.Sum(append(key[:len(key):len(key)], "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"...))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// sendUpgrade tells the client by a 200; the proof is for the gateway, who asked for it.
func (st *stream) sendUpgrade(ex *Exchange) error {
	ex.status = 200
	s := st.s
	s.BeginHeaders(200)
	for i := range ex.reply.Fields {
		if f := &ex.reply.Fields[i]; f.Kind == http1.Other && !isNamed(f.Name, "sec-websocket-accept") {
			s.AddHeader(f.Name, f.Value)
			ex.bytesOut += uint64(len(f.Name) + len(f.Value))
		}
	}
	s.AddHeader([]byte("x-request-id"), ex.id[:])
	return s.EndHeaders(false)
}

func (st *stream) readTunnel(p []byte) (int, error) { return st.s.Read(p) }

func (st *stream) writeTunnel(p []byte) error {
	st.conn.sending.Add(1)
	_, err := st.s.Write(p, false)
	st.conn.sending.Add(-1)
	return err
}

func (st *stream) endTunnel() { _, _ = st.s.Write(nil, true) }

// silentUntil leaves silence to the server's side, which is silent, too, while that counts; its own
// is for when the server has ended.
func (st *stream) silentUntil(_ int64, d time.Duration) {
	if d == webSocketClose {
		st.s.SetBodyTimeout(d)
	} else {
		st.s.SetBodyTimeout(tunnelTime)
	}
}

// tunnelTime is longer than any tunnel.
const tunnelTime = 1 << 62 * time.Nanosecond

func (st *stream) wakeTunnel() { st.s.Reset(codeCancel) }

func (st *stream) timedOut() bool { return st.conn.expired.Load() }
