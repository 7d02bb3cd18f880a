// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/xgw-project/xgw/pkg/policy"
)

// message goes over the control socket between supervisor and worker, as JSON
// behind its length in four bytes, most significant first. One struct serves all
// kinds; Kind says which fields count.
type message struct {
	Kind kind `json:"kind"`

	// apply: the whole L7 plane of one generation. Certificates and ticket keys
	// go this way because workers may not read the files.
	Snapshot     *policy.Snapshot `json:"snapshot,omitempty"`
	Certificates []certificate    `json:"certificates,omitempty"`

	// hello: who the worker is.
	Worker     int        `json:"worker,omitempty"`
	Core       int        `json:"core,omitempty"`
	TicketKeys [][32]byte `json:"ticket_keys,omitempty"`

	// apply, prepare, servers: what is known of upstreams' servers
	Servers []policy.Servers `json:"servers,omitempty"`

	// applied, prepared, commit
	Generation uint64 `json:"generation,omitempty"`
	// refused
	Error string `json:"error,omitempty"`
}

// generation that the message is about.
func (m *message) generation() uint64 {
	if m.Snapshot != nil {
		return m.Snapshot.Generation
	}
	return m.Generation
}

type kind string

const (
	kindHello    kind = "hello"    // supervisor: first message
	kindApply    kind = "apply"    // supervisor: serve this generation from now on
	kindPrepare  kind = "prepare"  // supervisor: get this generation ready
	kindCommit   kind = "commit"   // supervisor: serve what was prepared from now on
	kindServers  kind = "servers"  // supervisor: upstreams' servers are these from now on; no answer
	kindShutdown kind = "shutdown" // supervisor: finish and exit
	kindApplied  kind = "applied"  // worker: it serves; the first one means ready
	kindPrepared kind = "prepared" // worker: it could serve the generation
	kindRefused  kind = "refused"  // worker: it goes on with the generation before
)

// certificate is a chain and its key, both PEM.
type certificate struct {
	Chain []byte `json:"chain"`
	Key   []byte `json:"key"`
}

// maxMessage bounds what either end believes of a length.
const maxMessage = 64 << 20

// control is one end of the socket. Sends may come from any goroutine.
type control struct {
	conn net.Conn
	mu   sync.Mutex
}

func (c *control) send(m *message) error {
	body, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("send %s: %w", m.Kind, err)
	}
	frame := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, err := c.conn.Write(append(frame, body...)); err != nil {
		return fmt.Errorf("send %s: %w", m.Kind, err)
	}
	return nil
}

// receive waits for the next message; io.EOF when the other end is gone.
func (c *control) receive() (*message, error) {
	var length [4]byte
	if _, err := io.ReadFull(c.conn, length[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(length[:])
	if n > maxMessage {
		return nil, fmt.Errorf("receive: message of %d bytes, at most %d are sent", n, maxMessage)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(c.conn, body); err != nil {
		return nil, err
	}
	m := new(message)
	if err := json.Unmarshal(body, m); err != nil {
		return nil, fmt.Errorf("receive: %w", err)
	}
	return m, nil
}

func (c *control) close() error { return c.conn.Close() }
