// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/user"
	"strconv"

	"golang.org/x/sys/unix"
)

// Group is whose members may use the control socket of a gateway that serves the machine, where
// there is such a group: they may do with the gateway what root may.
const Group = "gateway_admin"

// groupID is the group's number; -1: there is none, or it has no business with a socket there.
func groupID(dir string) int {
	if os.Geteuid() != 0 && dir != runDirectory {
		return -1
	}
	g, err := user.LookupGroup(Group)
	if err != nil {
		return -1
	}
	id, err := strconv.Atoi(g.Gid)
	if err != nil {
		return -1
	}
	return id
}

// share lets the group open the socket at the path; the kernel holds everybody else off.
func share(path string, group int) error {
	if group < 0 {
		return os.Chmod(path, 0o600)
	}
	err := os.Chown(path, -1, group)
	if errors.Is(err, unix.EPERM) { // without CAP_CHOWN, and no member: then for the owner alone
		return os.Chmod(path, 0o600)
	}
	return errors.Join(err, os.Chmod(path, 0o660))
}

type peerKey struct{}

// withPeer notes who is at the other end of the socket.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	s, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return ctx
	}
	var peer *unix.Ucred
	if err := raw.Control(func(fd uintptr) { peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil || peer == nil {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, peer)
}

// audited notes in the log who changes something over the control socket.
func (a *api) audited(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.Method == http.MethodGet {
			next.ServeHTTP(w, q)
			return
		}
		done := &answer{ResponseWriter: w}
		next.ServeHTTP(done, q)
		if peer, ok := q.Context().Value(peerKey{}).(*unix.Ucred); ok {
			a.audit.Info("control socket audit", "path", q.URL.Path, "status", done.status, "uid", peer.Uid, "pid", peer.Pid)
		}
	})
}

// ownerOnly is for what reads files by the gateway's rights: an error quotes them.
func ownerOnly(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, q *http.Request) {
		peer, ok := q.Context().Value(peerKey{}).(*unix.Ucred)
		if !ok || peer.Uid != 0 && int(peer.Uid) != os.Geteuid() {
			fail(w, http.StatusForbidden, fmt.Errorf("only root may have the gateway read another file"))
			return
		}
		next(w, q)
	}
}
