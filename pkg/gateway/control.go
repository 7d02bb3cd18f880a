// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/keys"
	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/proxy"
)

// message goes over the control socket between supervisor and worker, and between a
// supervisor and the one that takes over from it, as JSON
// behind its length in four bytes, most significant first. One struct serves all
// kinds; Kind says which fields count.
type message struct {
	Kind kind `json:"kind"`

	// apply, prepare: the whole L7 plane of one generation. Certificates and ticket keys
	// go this way because workers may not read the files. Sockets are those of the
	// listeners, which the worker takes where it has none of that name yet.
	Snapshot *policy.Snapshot `json:"snapshot,omitempty"`
	Secrets  []secrets        `json:"secrets,omitempty"` // by Snapshot.Listeners
	Sockets  []string         `json:"sockets,omitempty"` // their names

	// shutdown: another worker has taken over, see proxy.Worker.Retire
	Retire bool `json:"retire,omitempty"`

	// offer: see successor.go
	Offer *offer `json:"offer,omitempty"`

	// lead, well, refused, returned, between two supervisors
	ByHand *byHand `json:"by_hand,omitempty"`

	// hello: who the worker is.
	Worker int `json:"worker,omitempty"`
	Slot   int `json:"slot,omitempty"` // in the zone
	Core   int `json:"core,omitempty"`
	// hello, tickets
	TicketKeys [][32]byte `json:"ticket_keys,omitempty"`

	// apply, prepare, servers: what is known of upstreams' servers
	Servers []policy.Servers `json:"servers,omitempty"`

	// ask_keys: ids of API keys; keys: what the store says of them
	IDs  []string      `json:"ids,omitempty"`
	Keys []keys.Answer `json:"keys,omitempty"`

	// hello, log_level: from which level on it logs
	LogLevel string `json:"log_level,omitempty"`

	// tried: what the worker knows of the trial; nil: it knows of none
	Tried *proxy.TriedAll `json:"tried,omitempty"`

	// applied, prepared, commit, tried
	Generation uint64 `json:"generation,omitempty"`
	// refused
	Error string `json:"error,omitempty"`

	listeners []*listener // supervisor: those of the generation
	files     []*os.File  // what came for Sockets, or copies that go; the message owns them
	fds       []int       // supervisor: what goes for Sockets
}

// closeFiles gives back descriptors that nobody took.
func (m *message) closeFiles() {
	for _, f := range m.files {
		f.Close()
	}
	m.files = nil
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
	kindHello    kind = "hello"     // supervisor: first message
	kindApply    kind = "apply"     // supervisor: serve this generation from now on
	kindPrepare  kind = "prepare"   // supervisor: get this generation ready
	kindCommit   kind = "commit"    // supervisor: serve what was prepared from now on
	kindServers  kind = "servers"   // supervisor: upstreams' servers are these from now on; no answer
	kindTickets  kind = "tickets"   // supervisor: ticket keys from now on; there is no answer
	kindLogLevel kind = "log_level" // supervisor: log from this level on; no answer
	kindShutdown kind = "shutdown"  // supervisor: finish and exit
	kindAdopt    kind = "adopt"     // supervisor: accept what comes to the Sockets of a worker that is away, too; no answer
	kindRelease  kind = "release"   // supervisor: it is back; no answer
	kindApplied  kind = "applied"   // worker: it serves; the first one means ready
	kindPrepared kind = "prepared"  // worker: it could serve the generation
	kindAskKeys  kind = "ask_keys"  // worker: who these API keys are; the answers come at any time
	kindKeys     kind = "keys"      // supervisor: these
	kindTried    kind = "tried"     // supervisor: what comes of the trial; worker: this
	kindRefused  kind = "refused"   // worker: it goes on with the generation before

	// Between two supervisors, see successor.go.
	kindOffer    kind = "offer"    // old: what there is to take over
	kindListener kind = "listener" // old: sockets of a listener
	kindOffered  kind = "offered"  // old: that was all
	kindReady    kind = "ready"    // new: its workers serve
	kindLead     kind = "lead"     // old: it has let go of what one alone may have
	kindLeading  kind = "leading"  // new: it has all of it
	kindCheck    kind = "check"    // old: is everything well?
	kindWell     kind = "well"     // new: yes
	kindSettled  kind = "settled"  // old: it ends its workers and goes
	kindReturn   kind = "return"   // old: it takes all back
	kindReturned kind = "returned" // new: it has let go
)

// secrets are what a listener's TLS is made of.
type secrets struct {
	Certificates []certificate `json:"certificates,omitempty"`
	ClientCA     []byte        `json:"client_ca,omitempty"` // PEM
}

// certificate is a chain and its key, both PEM, and an OCSP reply to send with it.
type certificate struct {
	Chain []byte `json:"chain"`
	Key   []byte `json:"key"`
	OCSP  []byte `json:"ocsp,omitempty"`
}

func (a secrets) equal(b secrets) bool {
	return bytes.Equal(a.ClientCA, b.ClientCA) && slices.EqualFunc(a.Certificates, b.Certificates, func(x, y certificate) bool {
		return bytes.Equal(x.Chain, y.Chain) && bytes.Equal(x.Key, y.Key) && bytes.Equal(x.OCSP, y.OCSP)
	})
}

// maxMessage bounds what either end believes of a length.
const maxMessage = 64 << 20

// takeTime is how long a worker may take to take a message out of a socket that is full.
const takeTime = 10 * time.Second

// takePart is what it must have taken by then: a large message has as much time for each.
const takePart = 64 << 10

// control is one end of the socket. Sends may come from any goroutine.
type control struct {
	conn *net.UnixConn
	// patience with the other end, for each takePart of a message. Of one that takes longer the conversation
	// is over, for it may have half a message. 0: any
	patience time.Duration
	mu       sync.Mutex
}

func (c *control) send(m *message) error {
	body, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("send %s: %w", m.Kind, err)
	}
	frame := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	c.mu.Lock()
	defer c.mu.Unlock()
	frame = append(frame, body...)
	// Descriptors go with the first byte: the reader has them when it has the length.
	c.renew()
	n, _, err := c.conn.WriteMsgUnix(frame[:min(len(frame), takePart)], unix.UnixRights(m.fds...), nil)
	for rest := frame[n:]; err == nil && len(rest) > 0; rest = rest[n:] {
		c.renew()
		n, err = c.conn.Write(rest[:min(len(rest), takePart)])
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.conn.Close()
		err = fmt.Errorf("the other end took nothing for %s", c.patience)
	}
	if err != nil {
		return fmt.Errorf("send %s: %w", m.Kind, err)
	}
	return nil
}

func (c *control) renew() {
	if c.patience > 0 {
		_ = c.conn.SetWriteDeadline(time.Now().Add(c.patience)) // a closed one tells when it is written to
	}
}

// maxSockets is how many descriptors come with a message at most.
const maxSockets = 64

// receiveLength reads the length before a message, and the descriptors that came with it.
func (c *control) receiveLength() (uint32, []*os.File, error) {
	var length [4]byte
	var files []*os.File
	room := make([]byte, unix.CmsgSpace(4*maxSockets))
	n, roomUsed, _, _, err := c.conn.ReadMsgUnix(length[:], room)
	if err != nil {
		return 0, nil, err
	}
	parts, err := unix.ParseSocketControlMessage(room[:roomUsed])
	for i := range parts {
		fds, rightsErr := unix.ParseUnixRights(&parts[i])
		err = errors.Join(err, rightsErr)
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "listener"))
		}
	}
	if err == nil {
		_, err = io.ReadFull(c.conn, length[n:])
	}
	return binary.BigEndian.Uint32(length[:]), files, err
}

// receive waits for the next message; io.EOF when the other end is gone.
func (c *control) receive() (*message, error) {
	n, files, err := c.receiveLength()
	m := &message{files: files}
	defer func() {
		if err != nil {
			m.closeFiles()
		}
	}()
	if err != nil {
		return nil, err
	}
	if n > maxMessage {
		err = fmt.Errorf("receive: message of %d bytes, at most %d are sent", n, maxMessage)
		return nil, err
	}
	body := make([]byte, n)
	if _, err = io.ReadFull(c.conn, body); err != nil {
		return nil, err
	}
	if err = json.Unmarshal(body, m); err != nil {
		err = fmt.Errorf("receive: %w", err)
		return nil, err
	}
	if len(m.files) != len(m.Sockets) {
		err = fmt.Errorf("receive: %d descriptors for %d sockets", len(m.files), len(m.Sockets))
		return nil, err
	}
	return m, nil
}

func (c *control) close() error { return c.conn.Close() }
