// SPDX-License-Identifier: Apache-2.0

package sandbox

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_X86_64

// here are the calls that only this architecture has.
var here = map[int]rule{unix.SYS_POLL: allowed, unix.SYS_EPOLL_WAIT: allowed}
