// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"math/bits"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// text is a value that check accepts.
func text(dst *string, want, example string, check func(string) bool) scalar {
	return scalar{want: want, example: example, set: func(s string) error {
		if !check(s) {
			return errWant
		}
		*dst = s
		return nil
	}}
}

// added reads like s and appends what it read: the items of a list of values.
func added(dst *[]string, make func(*string) scalar) func() reader {
	return func() reader {
		var v string
		s := make(&v)
		set := s.set
		s.set = func(text string) error {
			if err := set(text); err != nil {
				return err
			}
			if slices.Contains(*dst, v) {
				return fmt.Errorf("given twice")
			}
			*dst = append(*dst, v)
			return nil
		}
		return s
	}
}

func oneOf(dst *string, words ...string) scalar {
	s := text(dst, strings.Join(words, " or "), "", func(s string) bool { return slices.Contains(words, s) })
	s.closed = true
	return s
}

func boolean(dst *bool) scalar {
	return scalar{want: "true or false", closed: true, set: func(s string) error {
		if s != "true" && s != "false" {
			return errWant
		}
		*dst = s == "true"
		return nil
	}}
}

// whole is a whole number in [low, high].
func whole[T int | uint64](dst *T, low, high T) scalar {
	return scalar{want: fmt.Sprintf("a whole number from %d to %d", low, high), set: func(s string) error {
		v, err := strconv.ParseUint(s, 10, 63)
		if err != nil || v < uint64(low) || v > uint64(high) {
			return errWant
		}
		*dst = T(v)
		return nil
	}}
}

// ratio is a number in [0, 1].
func ratio(dst *float64) scalar {
	return scalar{want: "a number from 0 to 1", example: "0.1", set: func(s string) error {
		v, err := strconv.ParseFloat(s, 64)
		if err != nil || !(v >= 0 && v <= 1) { // not a number is neither
			return errWant
		}
		*dst = v
		return nil
	}}
}

// size is bytes in [low, high], with k, m or g for powers of 1024.
func size[T int | int64](dst *T, low, high T) scalar {
	want := fmt.Sprintf("a size from %s to %s bytes", SizeText(int64(low)), SizeText(int64(high)))
	return scalar{want: want, set: func(s string) error {
		v, ok := parseSize(s)
		if !ok || v < int64(low) || v > int64(high) {
			return errWant
		}
		*dst = T(v)
		return nil
	}}
}

func parseSize(s string) (int64, bool) {
	shift := 0
	if n := len(s) - 1; n > 0 {
		switch s[n] {
		case 'k', 'K':
			shift = 10
		case 'm', 'M':
			shift = 20
		case 'g', 'G':
			shift = 30
		}
		if shift > 0 {
			s = s[:n]
		}
	}
	v, err := strconv.ParseUint(s, 10, 63)
	if err != nil || bits.Len64(v)+shift > 63 {
		return 0, false
	}
	return int64(v) << shift, true
}

// SizeText writes a size, in bytes, as briefly as gateway.yaml reads it.
func SizeText(n int64) string {
	suffix := ""
	for _, s := range []string{"k", "m", "g"} {
		if n == 0 || n%1024 != 0 {
			break
		}
		n, suffix = n/1024, s
	}
	return strconv.FormatInt(n, 10) + suffix
}

// duration is a time with its unit in [low, high].
func duration(dst *time.Duration, low, high time.Duration) scalar {
	want := fmt.Sprintf("a time with its unit from %s to %s", TimeText(low), TimeText(high))
	return scalar{want: want, set: func(s string) error {
		v, err := time.ParseDuration(s)
		if err != nil || v < low || v > high {
			return errWant
		}
		*dst = v
		return nil
	}}
}

// TimeText is a time as one writes it in gateway.yaml: 1m, 1m30s, 1h.
func TimeText(d time.Duration) string {
	s := d.String()
	for _, none := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(s, none) {
			s = s[:len(s)-2]
		}
	}
	return s
}

// label is the name of a thing in metrics, logs and messages: it needs no quoting
// in any of them and fits a slot of the shared zone.
func label(dst *string) scalar {
	s := text(dst, "a name: 1 to 63 letters, digits and any of -_./@+", "api-v1", func(s string) bool {
		return len(s) > 0 && len(s) <= 63 && !strings.ContainsFunc(s, func(r rune) bool {
			return !letterOrDigit(r) && !strings.ContainsRune("-_./@+", r)
		})
	})
	set := s.set
	s.set = func(text string) error {
		if text == "none" || text == "overflow" {
			return fmt.Errorf("this name stands for something else in metrics: choose another")
		}
		return set(text)
	}
	return s
}

func letterOrDigit(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
}

// account is the name of a user.
func account(dst *string) scalar {
	return text(dst, "the name of a user", "", func(s string) bool {
		return s != "" && len(s) <= 32 && !strings.ContainsFunc(s, func(r rune) bool {
			return !letterOrDigit(r) && r != '_' && r != '-' && r != '.'
		})
	})
}

// device is the name of a network interface, by the kernel's rules.
func device(dst *string) scalar {
	return text(dst, "the name of a network interface", "eth0", func(s string) bool {
		return s != "" && len(s) <= 15 && s != "." && s != ".." &&
			!strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || r == '/' || r == ':' })
	})
}

// certificateName is a DNS name, which may begin with "*.", or an IP address.
func certificateName(dst *string) scalar {
	return text(dst, "a host name or an address", "gateway.example.com", func(s string) bool {
		_, err := netip.ParseAddr(s)
		return err == nil || isHostName(strings.TrimPrefix(s, "*."))
	})
}

// isHostName admits underscores, which names inside a data centre have.
func isHostName(s string) bool {
	if len(s) > 253 {
		return false
	}
	last := ""
	for l := range strings.SplitSeq(s, ".") {
		odd := func(r rune) bool { return !letterOrDigit(r) && r != '-' && r != '_' }
		if l == "" || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' || strings.ContainsFunc(l, odd) {
			return false
		}
		last = l
	}
	if strings.Trim(last, "0123456789") == "" { // as no top-level domain does: an address
		a, err := netip.ParseAddr(s)
		return err == nil && a.Is4()
	}
	return true
}

// listenAddress is where to listen: the host may be left out for every address,
// and port 0 is one that is free.
func listenAddress(dst *string) scalar {
	return text(dst, "HOST:PORT, or :PORT for every address", "", func(s string) bool {
		return isHostPort(s, true, 0)
	})
}

// hostPort is whom to connect to.
func hostPort(dst *string) scalar {
	return text(dst, "HOST:PORT", "", func(s string) bool { return isHostPort(s, false, 1) })
}

// collector is a receiver of OTLP by gRPC.
func collector(dst *string) scalar {
	return text(dst, "http://HOST:PORT, or https://HOST:PORT", "http://127.0.0.1:4317", func(s string) bool {
		scheme, address, _ := strings.Cut(s, "://")
		return (scheme == "http" || scheme == "https") && isHostPort(address, false, 1)
	})
}

func isHostPort(s string, anyHost bool, least uint64) bool {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return false
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n < least {
		return false
	}
	if host == "" {
		return anyHost
	}
	a, err := netip.ParseAddr(host)
	return err == nil || isHostName(host) && !a.IsValid()
}

// prefixes are addresses or prefixes; one with bits set behind it is refused, for
// it is not clear which half was meant.
func prefixes(dst *[]netip.Prefix) func() reader {
	return func() reader {
		return scalar{want: "a prefix or an address", example: "192.0.2.0/24, 198.51.100.7 or 2001:db8::/32", set: func(s string) error {
			p, err := netip.ParsePrefix(s)
			if a, addrErr := netip.ParseAddr(s); addrErr == nil && a.Zone() == "" {
				p, err = netip.PrefixFrom(a, a.BitLen()), nil
			}
			if err != nil {
				return errWant
			}
			if p != p.Masked() {
				return fmt.Errorf("bits are set behind the prefix: did you mean %s, or the address %s alone?", p.Masked(), p.Addr())
			}
			*dst = append(*dst, p)
			return nil
		}}
	}
}

// port is a port number.
func port(dst *uint16) scalar {
	var n uint64
	number := whole(&n, 1, 65535)
	return scalar{want: "a port, 1 to 65535", set: func(s string) error {
		if number.set(s) != nil {
			return errWant
		}
		*dst = uint16(n)
		return nil
	}}
}

// ports adds ports, or a range such as 8000-8010, to a list.
func ports(dst *[]uint16) func() reader {
	return func() reader {
		return scalar{want: "a port or a range of them", example: "443 or 8000-8010", set: func(s string) error {
			low, high, isRange := strings.Cut(s, "-")
			var from, to uint16
			if !isRange {
				high = low
			}
			if port(&from).set(low) != nil || port(&to).set(high) != nil || from > to {
				return errWant
			}
			for p := int(from); p <= int(to); p++ {
				*dst = append(*dst, uint16(p))
			}
			return nil
		}}
	}
}

// packetRate is how much in a second; with a unit, it must be one of what is counted.
func packetRate(dst *uint64, unit *string) scalar {
	s := amount(dst)
	set := s.set
	s.want += "; packets as 2Mpps and bytes as 1Gbit/s or 10MB/s, too"
	s.set = func(text string) error {
		for _, u := range []string{"pps", "bit/s", "B/s", "/s"} {
			if cut, ok := strings.CutSuffix(text, u); ok {
				text, *unit = cut, u
				break
			}
		}
		if err := set(text); err != nil {
			return err
		}
		if *unit == "bit/s" {
			*dst = max(1, *dst/8)
		}
		return nil
	}
	return s
}

// amount is a number per second, of bytes with k, m or g for the powers of 1000.
func amount(dst *uint64) scalar {
	return scalar{want: "a whole number from 1 to 100000000000, with k, m or g for thousands", set: func(s string) error {
		factor := uint64(1)
		for i, suffix := range []string{"k", "m", "g"} {
			if n := len(s) - 1; n > 0 && strings.EqualFold(s[n:], suffix) {
				s, factor = s[:n], []uint64{1e3, 1e6, 1e9}[i]
				break
			}
		}
		var n uint64
		if whole(&n, 1, maxByteRate/factor).set(s) != nil {
			return errWant
		}
		*dst = n * factor
		return nil
	}}
}

// urlPath is the beginning of a path.
func urlPath(dst *string) scalar {
	return text(dst, "the beginning of a path", "/v1", func(s string) bool {
		return strings.HasPrefix(s, "/") && !strings.ContainsFunc(s, func(r rune) bool {
			return r <= ' ' || r > '~' || r == '?' || r == '#'
		})
	})
}

// file is a path; a relative one begins at the directory of gateway.yaml.
func file(dst *string, gateway string) scalar {
	return scalar{want: "the path of a file", example: "/etc/gateway/server.pem", set: func(s string) error {
		if s == "" || strings.ContainsRune(s, 0) {
			return errWant
		}
		if !filepath.IsAbs(s) {
			s = filepath.Join(filepath.Dir(gateway), s)
		}
		*dst = s
		return nil
	}}
}

// absolute is a path from the root; words may stand in its place.
func absolute(dst *string, words ...string) scalar {
	want := strings.Join(append([]string{"a path from the root"}, words...), " or ")
	example := ""
	if len(words) > 0 {
		example = "/var/log/gateway/access.log"
	}
	return text(dst, want, example, func(s string) bool {
		return slices.Contains(words, s) || filepath.IsAbs(s) && !strings.ContainsRune(s, 0)
	})
}
