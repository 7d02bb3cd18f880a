// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sock is a TCP connection that is read and written with as few system calls as there
// can be, and cheap ones. It differs from the net.TCPConn below it in three ways:
//
// Its calls never block, so the runtime is not told of them; told, it would have a
// thread look every 20 µs whether the core could be lent to somebody meanwhile.
//
// A reader that has taken everything lets other goroutines run before it asks for more.
// Under load that is time enough for the peer to answer, which spares a call that finds
// nothing, and the wait.
//
// What is written while it is corked goes out at once, by uncork: crypto/tls writes each
// record by itself.
//
// One goroutine reads at a time. The methods of TCPConn that read or write in another way
// (ReadFrom, WriteTo) must not be used.
type sock struct {
	*net.TCPConn
	raw               syscall.RawConn
	receive, transmit func(fd uintptr) bool // receiveNow and transmitNow, bound once

	in    []byte // of the read under way
	got   int
	inErr error
	dry   bool       // there may be nothing to read
	watch *stopwatch // of a handshake under way; else nil
	// waits, when not nil, is called by the reader before it waits, and when that is over, before it reads what it waited for.
	waits  func(over bool)
	waited bool

	mu     sync.Mutex // among writers
	out    []byte     // of the write under way: what is left of it
	outErr error
	corked bool
	held   []byte
	last   atomic.Bool // see ending
}

var _ net.Conn = (*sock)(nil)

// newSock wraps a TCP connection; nil for any other.
func newSock(nc net.Conn) *sock {
	tcp, ok := nc.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil
	}
	s := &sock{TCPConn: tcp, raw: raw, dry: true}
	s.receive, s.transmit = s.receiveNow, s.transmitNow
	return s
}

func (s *sock) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if s.watch != nil {
		s.watch.pause()
		defer s.watch.resume()
	}
	if s.dry {
		runtime.Gosched()
	}
	s.in, s.got, s.inErr, s.waited = p, 0, nil, false
	err := s.raw.Read(s.receive)
	s.in = nil
	s.dry = s.got < len(p)
	switch {
	case err != nil:
		return 0, err
	case s.inErr != nil:
		return 0, s.inErr
	case s.got == 0:
		return 0, io.EOF
	}
	return s.got, nil
}

// receiveNow reads what is there; false: nothing is.
func (s *sock) receiveNow(fd uintptr) bool {
	if s.waited && s.waits != nil {
		s.waits(true)
	}
	for {
		n, _, errno := syscall.RawSyscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&s.in[0])), uintptr(len(s.in)), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			s.got = int(n)
			return true
		case unix.EAGAIN:
			if s.waited = true; s.waits != nil {
				s.waits(false)
			}
			return false
		case unix.EINTR:
		default:
			s.inErr = &net.OpError{Op: "read", Net: "tcp", Source: s.LocalAddr(), Addr: s.RemoteAddr(), Err: os.NewSyscallError("recvfrom", errno)}
			return true
		}
	}
}

func (s *sock) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.corked {
		s.held = append(s.held, p...)
		return len(p), nil
	}
	return s.send(p)
}

// send writes all of p. The lock is held.
func (s *sock) send(p []byte) (int, error) {
	s.out, s.outErr = p, nil
	err := s.raw.Write(s.transmit)
	if err == nil {
		err = s.outErr
	}
	sent := len(p) - len(s.out)
	s.out = nil
	return sent, err
}

// transmitNow writes what the kernel takes; false: it takes no more for now.
func (s *sock) transmitNow(fd uintptr) bool {
	flags := uintptr(unix.MSG_NOSIGNAL | unix.MSG_DONTWAIT)
	if s.last.Load() {
		flags |= unix.MSG_MORE // goes out together with the FIN
	}
	for len(s.out) > 0 {
		n, _, errno := syscall.RawSyscall6(unix.SYS_SENDTO, fd, uintptr(unsafe.Pointer(&s.out[0])), uintptr(len(s.out)), flags, 0, 0)
		switch errno {
		case 0:
			s.out = s.out[n:]
		case unix.EAGAIN:
			return false
		case unix.EINTR:
		default:
			s.outErr = &net.OpError{Op: "write", Net: "tcp", Source: s.LocalAddr(), Addr: s.RemoteAddr(), Err: os.NewSyscallError("sendto", errno)}
			return true
		}
	}
	return true
}

// SetWriteDeadline does nothing from ending on: crypto/tls bounds the write of its last
// alert, which is held back then, and forbids others.
func (s *sock) SetWriteDeadline(t time.Time) error {
	if s.last.Load() {
		return nil
	}
	return s.TCPConn.SetWriteDeadline(t)
}

// ending says that nothing but the end of the connection follows what is held back now.
func (s *sock) ending() {
	if s != nil {
		s.last.Store(true)
	}
}

// cork holds back what is written until uncork, in the buffer, which the sock has till
// then. A nil sock does neither.
func (s *sock) cork(b *buffer) {
	if s == nil {
		return
	}
	s.mu.Lock()
	s.corked, s.held = true, b.b[:0]
	s.mu.Unlock()
}

// uncork writes what was held back, and gives the buffer back in b. After ending the
// connection must be closed: some of it may go out only then.
func (s *sock) uncork(b *buffer) error {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	held := s.held
	s.corked, s.held = false, nil
	b.b = held
	if len(held) == 0 {
		return nil
	}
	_, err := s.send(held)
	return err
}
