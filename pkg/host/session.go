// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Pinhole is what should stay open so that nobody locks himself out.
type Pinhole struct {
	Source netip.Prefix `json:"source"`
	Port   uint16       `json:"port"`
	Why    string       `json:"why"`
}

const sshPort = 22

// AdminSession reads SSH_CONNECTION ("client port server port"): where the session
// comes from, and the port it came to. sudo does not hand the variable on.
func AdminSession(sshConnection string) (source netip.Addr, port uint16, ok bool) {
	f := strings.Fields(sshConnection)
	if len(f) != 4 {
		return netip.Addr{}, 0, false
	}
	source, err := netip.ParseAddr(f[0])
	if err != nil {
		return netip.Addr{}, 0, false
	}
	p, err := strconv.ParseUint(f[3], 10, 16)
	if err != nil || p == 0 {
		return netip.Addr{}, 0, false
	}
	return source.Unmap().WithZone(""), uint16(p), true
}

// Pinholes suggests what to keep open: this session, and every other that sshd holds
// now. sshd's ports are those it listens on or, where its sockets cannot be seen,
// 22. root is / on a real machine.
func Pinholes(root, sshConnection string) []Pinhole {
	var out []Pinhole
	add := func(source netip.Addr, port uint16, why string) {
		p := Pinhole{Source: netip.PrefixFrom(source, source.BitLen()), Port: port, Why: why}
		same := func(o Pinhole) bool { return o.Source == p.Source && o.Port == p.Port }
		if !source.IsLoopback() && !slices.ContainsFunc(out, same) {
			out = append(out, p)
		}
	}
	if source, port, ok := AdminSession(sshConnection); ok {
		add(source, port, "this session")
	}
	sockets := append(readSockets(root, "tcp"), readSockets(root, "tcp6")...)
	ports := sshdPorts(root, sockets)
	for _, s := range sockets {
		if s.state == tcpEstablished && slices.Contains(ports, s.local.Port()) {
			add(s.remote.Addr(), s.local.Port(), "a connection to sshd")
		}
	}
	return out
}

// UDPPorts are those at which somebody on this host receives from strangers: what is on loopback
// or connected is left out. Tunnels that the kernel ends, such as WireGuard's, are among them.
// root is / on a real machine.
func UDPPorts(root string) (ports []uint16) {
	for _, s := range append(readSockets(root, "udp"), readSockets(root, "udp6")...) {
		if s.state != tcpEstablished && !s.local.Addr().IsLoopback() {
			ports = append(ports, s.local.Port())
		}
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}

// States of sockets; one of UDP that is connected has the first, too.
const (
	tcpEstablished = 1
	tcpListen      = 10
)

type socket struct {
	local, remote netip.AddrPort
	state         int
	inode         string
}

// readSockets reads /proc/net/tcp, tcp6, udp or udp6; lines it cannot read are left out.
func readSockets(root, file string) []socket {
	f, err := os.Open(filepath.Join(root, "proc/net", file))
	if err != nil {
		return nil
	}
	defer f.Close()
	var out []socket
	for in := bufio.NewScanner(f); in.Scan(); {
		// sl local rem st tx:rx tr:when retrnsmt uid timeout inode ...
		w := strings.Fields(in.Text())
		if len(w) < 10 {
			continue
		}
		local, ok1 := parseSocketAddress(w[1])
		remote, ok2 := parseSocketAddress(w[2])
		state, err := strconv.ParseUint(w[3], 16, 8)
		if ok1 && ok2 && err == nil {
			out = append(out, socket{local: local, remote: remote, state: int(state), inode: w[9]})
		}
	}
	return out
}

// parseSocketAddress reads 0100007F:0016: 32-bit words of the address, each in this
// machine's byte order, and the port.
func parseSocketAddress(s string) (netip.AddrPort, bool) {
	a, p, ok := strings.Cut(s, ":")
	raw, err := hex.DecodeString(a)
	if !ok || err != nil || len(raw)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	ip, ok := netip.AddrFromSlice(raw)
	port, err := strconv.ParseUint(p, 16, 16)
	if !ok || err != nil {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(ip.Unmap(), uint16(port)), true
}

// sshdPorts are the ports on which a process called sshd listens. Under socket
// activation none does; then it is 22, if anybody listens there.
func sshdPorts(root string, sockets []socket) []uint16 {
	listens := map[string]uint16{} // by what /proc/PID/fd shows
	on22 := false
	for _, s := range sockets {
		if s.state == tcpListen {
			listens[fmt.Sprintf("socket:[%s]", s.inode)] = s.local.Port()
			on22 = on22 || s.local.Port() == sshPort
		}
	}
	var ports []uint16
	commands, _ := filepath.Glob(filepath.Join(root, "proc/[0-9]*/comm"))
	for _, path := range commands {
		if comm, err := os.ReadFile(path); err != nil || strings.TrimSpace(string(comm)) != "sshd" {
			continue
		}
		fds, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "fd/*"))
		for _, fd := range fds {
			target, _ := os.Readlink(fd)
			if port, ok := listens[target]; ok && !slices.Contains(ports, port) {
				ports = append(ports, port)
			}
		}
	}
	if len(ports) == 0 && on22 {
		ports = []uint16{sshPort}
	}
	return ports
}
