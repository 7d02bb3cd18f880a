// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/xgw-project/xgw/pkg/datapath"
	"github.com/xgw-project/xgw/pkg/datapath/packettest"
)

// asked is the packet that the command line describes.
type asked struct {
	file, from, to, flags, protocol string
	times                           int
}

func explainCommand(e *env) *cobra.Command {
	a := &asked{}
	cmd := &cobra.Command{
		Use:   "explain INTERFACE",
		Short: "Say what would become of a packet, and why",
		Long: `Runs the program itself on one packet, with the rules, limits and verdicts that hold on
the interface now, but with counters and limits' state of its own: nothing moves. It
prints the outcome, the rule that matched, and the limits that the packet is over.

The packet is described by --from and --to, or read from a file: a capture (pcap; its
first packet), or the bytes of a frame in hexadecimal. A limit that is asked about with
state of its own is over only after its burst: --times 1000 asks for the thousandth.`,
		Example: `  sudo xgw explain eth0 --from 192.0.2.7 --to 443
  sudo xgw explain eth0 --from 192.0.2.7:53 --to 40000 --protocol udp
  sudo xgw explain eth0 --from 2001:db8::7 --to 443 --flags ack --times 1000
  sudo xgw explain eth0 --packet dropped.pcap --json`,
		Args: exactly("INTERFACE"),
		RunE: func(_ *cobra.Command, args []string) error {
			frame, err := a.frame(args[0])
			if err != nil {
				return usageError{fmt.Errorf("explain: %w", err)}
			}
			d, err := datapath.Open(datapath.Options{Interface: args[0], Instance: e.instance})
			if err != nil {
				return err
			}
			defer d.Close()
			x, err := d.Explain(frame, a.times)
			if err != nil {
				return err
			}
			return writeExplanation(e, x)
		},
	}
	cmd.Flags().StringVar(&a.file, "packet", "", "file with the packet: pcap, or a frame in hexadecimal")
	cmd.Flags().StringVar(&a.from, "from", "", "source: ADDRESS or ADDRESS:PORT")
	cmd.Flags().StringVar(&a.to, "to", "", "destination: PORT or ADDRESS:PORT")
	cmd.Flags().StringVar(&a.flags, "flags", "syn", "TCP flags: of syn, ack, fin, rst, joined by commas")
	cmd.Flags().StringVar(&a.protocol, "protocol", "tcp", "tcp, udp or echo")
	cmd.Flags().IntVar(&a.times, "times", 1, "explain the last of so many such packets at once")
	jsonFlag(cmd, e)
	return cmd
}

func writeExplanation(e *env, x *datapath.Explanation) error {
	if e.json {
		return json.NewEncoder(e.out).Encode(x)
	}
	fmt.Fprintf(e.out, "outcome     %s\n", x.Outcome)
	if x.Stopped != "" {
		fmt.Fprintf(e.out, "but for     %s\n", x.Stopped)
	}
	if x.Rule != "" {
		fmt.Fprintf(e.out, "rule        %s\n", x.Rule)
	}
	if x.Verdict != "" {
		fmt.Fprintf(e.out, "verdict     %s\n", x.Verdict)
	}
	if len(x.Over) > 0 {
		fmt.Fprintf(e.out, "over limit  %s\n", strings.Join(x.Over, ", "))
	}
	if x.Generation == 0 {
		fmt.Fprintln(e.out, "generation  none: no rules and limits are in force")
		return nil
	}
	fmt.Fprintf(e.out, "generation  %d\n", x.Generation)
	return nil
}

func (a *asked) frame(device string) ([]byte, error) {
	switch {
	case a.times < 1 || a.times > 1_000_000:
		return nil, fmt.Errorf("--times %d: 1 to 1000000 are possible", a.times)
	case a.file != "" && a.from+a.to != "":
		return nil, errors.New("--packet is the whole packet: leave --from and --to out")
	case a.file != "":
		return readFrame(a.file)
	case a.from == "" || a.to == "":
		return nil, errors.New("which packet? Give --from and --to, or --packet")
	}
	from, err := endpoint(a.from, 40000)
	if err != nil {
		return nil, fmt.Errorf("--from %q: want ADDRESS or ADDRESS:PORT, such as 192.0.2.7", a.from)
	}
	to, err := destination(a.to, device, from.Addr())
	if err != nil {
		return nil, err
	}
	if from.Addr().Is4() != to.Addr().Is4() {
		return nil, fmt.Errorf("%s and %s are of different families", from.Addr(), to.Addr())
	}
	switch a.protocol {
	case "udp":
		return packettest.UDPDatagram(from, to, nil), nil
	case "echo":
		if from.Addr().Is4() {
			return packettest.ICMPMessage(from.Addr(), to.Addr(), 8, 0), nil
		}
		return packettest.ICMPMessage(from.Addr(), to.Addr(), 128, 0), nil
	case "tcp":
		flags, err := tcpFlags(a.flags)
		return packettest.TCPSegment(from, to, flags), err
	}
	return nil, fmt.Errorf("--protocol %q: it is tcp, udp or echo", a.protocol)
}

func tcpFlags(s string) (flags uint8, err error) {
	known := map[string]uint8{"syn": packettest.SYN, "ack": packettest.ACK, "fin": packettest.FIN, "rst": packettest.RST}
	for word := range strings.SplitSeq(s, ",") {
		bit, ok := known[strings.TrimSpace(word)]
		if !ok {
			return 0, fmt.Errorf("--flags %q: %q is none of syn, ack, fin, rst", s, word)
		}
		flags |= bit
	}
	return flags, nil
}

func endpoint(s string, port uint16) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a.Unmap(), port), nil
	}
	ap, err := netip.ParseAddrPort(s)
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), err
}

// destination takes the interface's own address for a port alone.
func destination(s, device string, from netip.Addr) (netip.AddrPort, error) {
	port, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		to, err := netip.ParseAddrPort(s)
		if err != nil {
			return to, fmt.Errorf("--to %q: want PORT or ADDRESS:PORT, such as 443", s)
		}
		return to, nil
	}
	own := netip.AddrFrom4([4]byte{198, 51, 100, 1}) // for documentation: RFC 5737 and 3849
	if from.Is6() {
		own = netip.MustParseAddr("2001:db8::1")
	}
	i, err := net.InterfaceByName(device)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("interface %s: %w", device, err)
	}
	addresses, _ := i.Addrs()
	for _, a := range addresses {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && p.Addr().Is4() == from.Is4() {
			own = p.Addr()
			break
		}
	}
	return netip.AddrPortFrom(own, uint16(port)), nil
}

// readFrame reads the first packet of a pcap file, or hexadecimal text.
func readFrame(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	const fileHeader, recordHeader = 24, 16
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		if len(data) < fileHeader+recordHeader {
			break
		}
		// In microseconds or nanoseconds: draft-ietf-opsawg-pcap.
		if magic := order.Uint32(data); magic != 0xa1b2c3d4 && magic != 0xa1b23c4d {
			continue
		}
		if order.Uint32(data[20:])&0xffff != 1 {
			return nil, fmt.Errorf("%s: its packets are not Ethernet frames", path)
		}
		n := int(order.Uint32(data[fileHeader+8:]))
		if n < 14 || n > len(data)-fileHeader-recordHeader {
			return nil, fmt.Errorf("%s: its first packet is cut off", path)
		}
		frame := data[fileHeader+recordHeader:][:n]
		// A capture may keep the headers alone; what it left out is not missing on the wire.
		if whole := int(order.Uint32(data[fileHeader+12:])); whole > n && whole <= 65535 {
			frame = append(frame[:n:n], make([]byte, whole-n)...)
		}
		return frame, nil
	}
	text := bytes.Map(func(r rune) rune {
		if unicode.IsSpace(r) || r == ':' {
			return -1
		}
		return r
	}, data)
	frame := make([]byte, hex.DecodedLen(len(text)))
	if _, err := hex.Decode(frame, text); err != nil || len(frame) < 14 || len(frame) > 65535 {
		return nil, fmt.Errorf("%s: want a pcap file, or at least 14 bytes in hexadecimal", path)
	}
	return frame, nil
}
