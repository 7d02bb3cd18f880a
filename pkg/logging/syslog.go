// SPDX-License-Identifier: Apache-2.0

package logging

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/zone"
)

// Sizes of a syslog message in bytes: what every receiver takes, what most should
// (RFC 5424, 6.1), and the most that may be configured.
const (
	LeastSyslogSize = 480
	SyslogSize      = 2048
	MostSyslogSize  = 8192
)

const (
	syslogQueue   = 4096 // messages that wait to be sent
	syslogDial    = 5 * time.Second
	syslogWrite   = 2 * time.Second
	syslogBackOff = time.Second
	// Structured data is named by an enterprise number. 32473 is IANA's for those who have none
	// (RFC 5612).
	syslogElement = "xgw@32473"
)

// Facilities by name, as of RFC 5424, 6.2.1: those that a gateway could be.
var Facilities = map[string]int{
	"user": 1, "daemon": 3, "local0": 16, "local1": 17, "local2": 18, "local3": 19, "local4": 20, "local5": 21, "local6": 22, "local7": 23,
}

// SyslogOptions say whom messages go to.
type SyslogOptions struct {
	Transport string // udp, tcp or tls
	Address   string // HOST:PORT
	Facility  int
	Size      int         // of a message, LeastSyslogSize to MostSyslogSize
	TLS       *tls.Config // of the transport tls
	Names     Names
}

// Syslog sends messages as of RFC 5424: datagrams (RFC 5426), or a stream with octet counts
// (RFC 6587, and RFC 5425 in TLS). It waits for nobody: what does not fit into its queue,
// or cannot be sent, is dropped and counted. It is safe for concurrent use.
type Syslog struct {
	options SyslogOptions
	head    string // host, program, process
	queue   chan *[]byte
	free    sync.Pool
	stop    context.CancelFunc
	done    chan struct{}

	mu     sync.Mutex // of format
	format *Access
	text   []byte

	sent, full, unreachable atomic.Uint64
}

// NewSyslog starts to send; Close ends it.
func NewSyslog(o SyslogOptions) *Syslog {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "-"
	}
	ctx, stop := context.WithCancel(context.Background())
	s := &Syslog{
		options: o, queue: make(chan *[]byte, syslogQueue), stop: stop, done: make(chan struct{}), format: NewAccess(o.Names),
		head: " " + string(syslogName(host, 255)) + " xgw " + strconv.Itoa(os.Getpid()) + " ",
	}
	s.free.New = func() any { return new([]byte) }
	go s.run(ctx)
	return s
}

// Close sends what waits, for two seconds at most, and ends.
func (s *Syslog) Close() error {
	late := time.AfterFunc(lastWait, s.stop)
	defer late.Stop()
	close(s.queue)
	<-s.done
	return nil
}

// Counts are messages sent, dropped since the queue was full, and dropped since the receiver
// could not be reached.
func (s *Syslog) Counts() (sent, full, unreachable uint64) {
	return s.sent.Load(), s.full.Load(), s.unreachable.Load()
}

// syslogName is a header field: printable ASCII without spaces, so long at most.
func syslogName(s string, most int) []byte {
	var out []byte
	for i := 0; i < len(s) && len(out) < most; i++ {
		if c := s[i]; c > ' ' && c <= '~' {
			out = append(out, c)
		}
	}
	return out
}

// Severities of RFC 5424.
const (
	severityCritical = 2
	severityError    = 3
	severityWarning  = 4
	severityInfo     = 6
	severityDebug    = 7
)

func severity(l slog.Level) int {
	switch {
	case l >= LevelCrit:
		return severityCritical
	case l >= slog.LevelError:
		return severityError
	case l >= slog.LevelWarn:
		return severityWarning
	case l >= slog.LevelInfo:
		return severityInfo
	}
	return severityDebug
}

// Record sends one exchange.
func (s *Syslog) Record(r *zone.AccessRecord) {
	m := s.free.Get().(*[]byte)
	s.mu.Lock()
	*m = s.appendRecord((*m)[:0], r)
	s.mu.Unlock()
	s.put(m)
}

// Event sends a line of the error log.
func (s *Syslog) Event(at time.Time, level slog.Level, text []byte) {
	m := s.free.Get().(*[]byte)
	b := s.appendHead((*m)[:0], severity(level), at, "error")
	b = append(b, "- "...)
	*m = appendFitting(b, text, s.options.Size)
	s.put(m)
}

// put queues the message, or drops it.
func (s *Syslog) put(m *[]byte) {
	select {
	case s.queue <- m:
	default:
		s.full.Add(1)
		s.free.Put(m)
	}
}

func (s *Syslog) appendHead(b []byte, severity int, at time.Time, kind string) []byte {
	b = append(b, '<')
	b = strconv.AppendInt(b, int64(8*s.options.Facility+severity), 10)
	b = append(b, ">1 "...)
	b = at.UTC().AppendFormat(b, "2006-01-02T15:04:05.000000Z")
	b = append(b, s.head...)
	b = append(b, kind...)
	return append(b, ' ')
}

// appendRecord is the message of an exchange: what a program wants of it as structured data,
// the request as text, which is cut where the message is full.
func (s *Syslog) appendRecord(b []byte, r *zone.AccessRecord) []byte {
	level := severityInfo
	if r.Status >= 500 {
		level = severityWarning
	}
	b = s.appendHead(b, level, r.Start.Add(r.Duration), "access")
	b = append(b, '[')
	b = append(b, syslogElement...)
	// The element ends within the size whatever its values are: those that find no room are left out.
	t, room := s.text[:0], s.options.Size-2
	param := func(name string, value []byte) {
		if n := len(name) + len(value) + 4; len(value) > 0 && len(b)+n <= room {
			b = append(append(append(append(b, ' '), name...), '=', '"'), value...)
			b = append(b, '"')
		}
	}
	number := func(v int64) []byte { t = strconv.AppendInt(t[:0], v, 10); return t }
	text := func(v []byte) []byte { t = appendParam(t[:0], v); return t }
	param("id", text(r.ID))
	param("status", number(int64(r.Status)))
	param("outcome", []byte(r.Outcome.String()))
	if r.Client.IsValid() {
		t = r.Client.Addr().AppendTo(t[:0])
		param("client", t)
	}
	t = appendSeconds(t[:0], r.Duration)
	param("time", t)
	param("route", text([]byte(s.format.routes.name(r.Route))))
	if r.Upstream >= 0 {
		param("upstream", text([]byte(s.format.upstreams.name(r.Upstream))))
		t = appendSeconds(t[:0], r.UpstreamDuration)
		param("upstream_time", t)
		param("addr", text(r.UpstreamAddr))
	}
	param("in", number(int64(r.BytesIn)))
	param("out", number(int64(r.BytesOut)))
	param("gen", number(int64(r.Generation)))
	param("worker", number(int64(r.Worker)))
	param("key", text(r.Key))
	param("trace", text(r.Trace))
	param("host", text(r.Host))
	b = append(b, "] "...)
	t = t[:0]
	if len(r.Method) > 0 {
		t = append(appendWord(t, r.Method), ' ')
		t = append(appendWord(t, r.Target), " HTTP/"...)
		t = append(strconv.AppendUint(t, uint64(r.Major), 10), '.')
		t = append(strconv.AppendUint(t, uint64(r.Minor), 10), ' ')
	}
	t = strconv.AppendInt(t, int64(r.Status), 10)
	s.text = t
	return appendFitting(b, t, s.options.Size)
}

// appendParam is a value of structured data (RFC 5424, 6.3.3). What is not printable ASCII is
// written as in the access log, so that no receiver has to guess.
func appendParam(b, v []byte) []byte {
	const hex = "0123456789ABCDEF"
	for _, c := range v {
		switch {
		case classes[c] == escaped:
			b = append(b, '\\', '\\', 'x', hex[c>>4], hex[c&15]) // the backslash is escaped, too
		case c == ']':
			b = append(b, '\\', c)
		default:
			b = append(b, c)
		}
	}
	return b
}

// appendFitting appends as much of the text as the size leaves, whole characters.
func appendFitting(b, text []byte, size int) []byte {
	if room := max(size-len(b), 0); len(text) > room {
		for room > 0 && !utf8.RuneStart(text[room]) {
			room--
		}
		text = text[:room]
	}
	return append(b, text...)
}

// run sends what is queued.
func (s *Syslog) run(ctx context.Context) {
	defer close(s.done)
	c := &sender{options: &s.options}
	defer c.close()
	var frame []byte
	var sent uint64
	for m := range s.queue {
		b := *m
		if s.options.Transport != "udp" {
			frame = append(strconv.AppendInt(frame[:0], int64(len(b)), 10), ' ')
			frame = append(frame, b...)
			b = frame
		}
		refused, err := c.send(ctx, b)
		s.count(&sent, refused, err)
		s.free.Put(m)
	}
	s.sent.Add(sent)
}

// count tells what became of a message; sent is those that are not counted yet, for of a
// datagram the kernel says only when the next one goes out that nobody listened to it.
func (s *Syslog) count(sent *uint64, refused bool, err error) {
	if refused && *sent > 0 {
		*sent--
		s.unreachable.Add(1)
	}
	s.sent.Add(*sent)
	*sent = 0
	if err != nil {
		s.unreachable.Add(1)
	} else {
		*sent = 1
	}
}

// sender is the connection to the receiver; it belongs to one goroutine.
type sender struct {
	options *SyslogOptions
	conn    net.Conn
	failed  time.Time // when it could not be reached last
}

var errBackOff = errors.New("the receiver could not be reached a moment ago")

// send sends a message; refused: nobody listened to the one before, a datagram.
func (c *sender) send(ctx context.Context, b []byte) (refused bool, err error) {
	if c.conn == nil {
		if time.Since(c.failed) < syslogBackOff {
			return false, errBackOff
		}
		if err := c.dial(ctx); err != nil {
			c.failed = time.Now()
			return false, err
		}
	}
	_ = c.conn.SetWriteDeadline(time.Now().Add(syslogWrite))
	_, err = c.conn.Write(b)
	if refused = c.options.Transport == "udp" && errors.Is(err, unix.ECONNREFUSED); refused {
		_, err = c.conn.Write(b) // it was not sent: once more
	}
	if err == nil {
		return refused, nil
	}
	c.close()
	c.failed = time.Now()
	return refused, fmt.Errorf("send to syslog: %w", err)
}

func (c *sender) dial(ctx context.Context) (err error) {
	d := &net.Dialer{Timeout: syslogDial}
	switch c.options.Transport {
	case "tls":
		c.conn, err = (&tls.Dialer{NetDialer: d, Config: c.options.TLS}).DialContext(ctx, "tcp", c.options.Address)
	default:
		c.conn, err = d.DialContext(ctx, c.options.Transport, c.options.Address)
	}
	return err
}

func (c *sender) close() {
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}
