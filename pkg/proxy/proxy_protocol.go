// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"strconv"
)

// The PROXY protocol, versions 1 and 2, as HAProxy's proxy-protocol.txt has it: what a
// proxy in front says of a connection before its first byte.

// errProxyHeader: the connection does not begin as the protocol says.
var errProxyHeader = errors.New("no valid PROXY header")

const (
	proxyV1Longest = 107 // with its line end
	proxyV2Longest = 4096
)

var proxyV2Signature = []byte("\r\n\r\n\x00\r\nQUIT\n")

// readProxyHeader reads exactly one header, and not a byte of what follows. The address
// is not valid where the proxy speaks for itself (LOCAL, UNKNOWN) or of no TCP client.
func readProxyHeader(r io.Reader) (netip.AddrPort, error) {
	var b [proxyV1Longest]byte
	// The shortest header of either version is longer than the signature of the second.
	n := len(proxyV2Signature)
	if _, err := io.ReadFull(r, b[:n]); err != nil {
		return netip.AddrPort{}, err
	}
	if bytes.Equal(b[:n], proxyV2Signature) {
		return readProxyV2(r)
	}
	if !bytes.HasPrefix(b[:n], []byte("PROXY ")) {
		return netip.AddrPort{}, errProxyHeader
	}
	for ; n < len(b); n++ {
		if _, err := io.ReadFull(r, b[n:n+1]); err != nil {
			return netip.AddrPort{}, err
		}
		if b[n] == '\n' {
			return parseProxyV1(b[len("PROXY "):n])
		}
	}
	return netip.AddrPort{}, errProxyHeader
}

// parseProxyV1 parses what is between PROXY and the line feed.
func parseProxyV1(line []byte) (none netip.AddrPort, err error) {
	text, ok := bytes.CutSuffix(line, []byte("\r"))
	if !ok {
		return none, errProxyHeader
	}
	if bytes.Equal(text, []byte("UNKNOWN")) || bytes.HasPrefix(text, []byte("UNKNOWN ")) {
		return none, nil
	}
	parts := bytes.Split(text, []byte(" "))
	if len(parts) != 5 {
		return none, errProxyHeader
	}
	from, err1 := netip.ParseAddr(string(parts[1]))
	to, err2 := netip.ParseAddr(string(parts[2]))
	fromPort, ok1 := proxyPort(parts[3])
	_, ok2 := proxyPort(parts[4])
	if err1 != nil || err2 != nil || !ok1 || !ok2 || from.Zone() != "" {
		return none, errProxyHeader
	}
	switch family := string(parts[0]); {
	case family == "TCP4" && from.Is4() && to.Is4():
	case family == "TCP6" && from.Is6() && to.Is6():
	default:
		return none, errProxyHeader
	}
	return netip.AddrPortFrom(from.Unmap(), fromPort), nil
}

func proxyPort(text []byte) (uint16, bool) {
	n, err := strconv.ParseUint(string(text), 10, 16)
	return uint16(n), err == nil && strconv.FormatUint(n, 10) == string(text)
}

// readProxyV2 reads what follows the signature.
func readProxyV2(r io.Reader) (none netip.AddrPort, err error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return none, err
	}
	n := int(binary.BigEndian.Uint16(head[2:]))
	version, command := head[0]>>4, head[0]&0xf
	if version != 2 || command > 1 || n > proxyV2Longest {
		return none, errProxyHeader
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return none, err
	}
	const local = 0
	if command == local {
		return none, nil
	}
	switch family := head[1]; family {
	case 0x11: // TCP over IPv4
		if n < 12 {
			return none, errProxyHeader
		}
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(body)), binary.BigEndian.Uint16(body[8:])), nil
	case 0x21: // TCP over IPv6
		if n < 36 {
			return none, errProxyHeader
		}
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(body)).Unmap(), binary.BigEndian.Uint16(body[32:])), nil
	case 0x00: // unspecified
		return none, nil
	}
	return none, errProxyHeader // datagrams and local sockets do not come here
}
