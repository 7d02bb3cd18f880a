// SPDX-License-Identifier: Apache-2.0

package proxy

import "strings"

// A row is what a client sends on a connection of HTTP/1.1: a request that is valid, or broken
// in one way. want is what it gets: statuses, outcomes where they are not those that go with
// the status, and whether the connection lives on. up is what the upstream gets, byte for
// byte, "" for nothing at all; behind "cut " a request that must not be whole.
type http1Row struct{ name, send, want, up string }

// The valid requests that rows bend or break.
const (
	aGet  = "GET /p HTTP/1.1\r\nHost: a.test\r\n\r\n"
	aPost = "POST /p HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2\r\n\r\nhi"
	aSend = "POST /p HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
)

// upGet, upPost and upSend are what becomes of them, with more fields.
func upTo(host, line, fields, framing, body string) string {
	return line + " HTTP/1.1\r\nHost: " + host + "\r\n" + fields + framing + "X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: " + host +
		"\r\nX-Request-Id: ID\r\nTraceparent: TRACE\r\n\r\n" + body
}

func upGet(target, fields string) string { return upTo("a.test", "GET "+target, fields, "", "") }

func upPost(fields string) string {
	return upTo("a.test", "POST /p", fields, "Content-Length: 2\r\n", "hi")
}

func upSend(body string) string {
	return upTo("a.test", "POST /p", "", "Transfer-Encoding: chunked\r\n", body)
}

// bend replaces the one place where old stands.
func bend(request, old, new string) string {
	if strings.Count(request, old) != 1 {
		panic(old + " does not stand in the request once")
	}
	return strings.Replace(request, old, new, 1)
}

func postOf(old, new string) string { return bend(aPost, old, new) }

func getOf(target string) string { return bend(aGet, "/p", target) }

func getFrom(host string) string { return bend(aGet, "a.test", host) }

func postWith(field string) string { return bend(aPost, "\r\n\r\n", "\r\n"+field+"\r\n\r\n") }

func getWith(field string) string { return bend(aGet, "\r\n\r\n", "\r\n"+field+"\r\n\r\n") }

// sendOf is a chunked request with another body.
func sendOf(body string) string { return bend(aSend, "2\r\nhi\r\n0\r\n\r\n", body) }

func coded(coding string) string { return bend(aSend, ": chunked", ":"+coding) }

func http1Rows() []http1Row {
	xs := func(n int) string { return strings.Repeat("x", n) }
	rows := []http1Row{
		{"GET", aGet, "200 open", upGet("/p", "")}, {"POST", aPost, "200 open", upPost("")}, {"chunked", aSend, "200 open", upSend("2\r\nhi\r\n0\r\n\r\n")},
		{"HEAD", bend(aGet, "GET", "HEAD"), "200 open", upTo("a.test", "HEAD /p", "", "", "")}, {"PUT", postOf("POST", "PUT"), "200 open", upTo("a.test", "PUT /p", "", "Content-Length: 2\r\n", "hi")},
		{"PATCH", postOf("POST", "PATCH"), "200 open", upTo("a.test", "PATCH /p", "", "Content-Length: 2\r\n", "hi")},
		{"DELETE", bend(aGet, "GET", "DELETE"), "200 open", upTo("a.test", "DELETE /p", "", "", "")}, {"OPTIONS", bend(aGet, "GET", "OPTIONS"), "200 open", upTo("a.test", "OPTIONS /p", "", "", "")},
		{"GET with a body", bend(aPost, "POST", "GET"), "200 open", upTo("a.test", "GET /p", "", "Content-Length: 2\r\n", "hi")},
		{"POST without length", bend(aGet, "GET", "POST"), "200 open", upTo("a.test", "POST /p", "", "Content-Length: 0\r\n", "")},
		{"TRACE", bend(aGet, "GET", "TRACE"), "501 close", ""}, {"CONNECT", "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n", "501 close", ""},
		{"CONNECT with a path", bend(aGet, "GET", "CONNECT"), "501 close", ""}, {"PRI", bend(aGet, "GET", "PRI"), "501 close", ""}, {"unknown method", postOf("POST", "BREW"), "501 close", ""},
		{"method in lower case", postOf("POST", "post"), "501 close", ""}, {"method in mixed case", postOf("POST", "Post"), "501 close", ""}, {"method of DAV", bend(aGet, "GET", "PROPFIND"), "501 close", ""},
		{"method with colon", postOf("POST", "PO:ST"), "400 close", ""}, {"no method", postOf("POST ", " "), "400 close", ""}, {"NUL in method", postOf("POST", "PO\x00ST"), "400 close", ""},
		{"preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "505 close", ""}, {"TLS within TLS", "\x16\x03\x01\x02\x00\r\n\r\n", "400 close", ""}, {"SSH", "SSH-2.0-OpenSSH\r\n\r\n", "400 close", ""},

		{"empty line before", "\r\n" + aPost, "200 open", upPost("")}, {"two empty lines before", "\r\n\r\n" + aPost, "400 close", ""}, {"LF before", "\n" + aPost, "400 close", ""}, {"space before", " " + aPost, "400 close", ""},
		{"no version", postOf(" HTTP/1.1", ""), "400 close", ""}, {"version 0.9", postOf("1.1", "0.9"), "505 close", ""}, {"version 1.2", postOf("1.1", "1.2"), "505 close", ""}, {"version 2.0", postOf("1.1", "2.0"), "505 close", ""},
		{"version 1.10", postOf("1.1", "1.10"), "400 close", ""}, {"version in lower case", postOf("HTTP", "http"), "400 close", ""}, {"space in version", postOf("HTTP/", "HTTP /"), "400 close", ""}, {"other protocol", postOf("HTTP", "ICAP"), "400 close", ""},
		{"space behind version", postOf("1.1", "1.1 "), "400 close", ""}, {"two spaces", postOf("POST /", "POST  /"), "400 close", ""}, {"tab for space", postOf("POST /", "POST\t/"), "400 close", ""}, {"space in target", postOf("/p", "/p q"), "400 close", ""},
		{"vertical tab for space", postOf("POST /", "POST\v/"), "400 close", ""}, {"CR in request line", postOf("/p", "/\rp"), "400 close", ""}, {"two versions", postOf("1.1", "1.1 HTTP/1.1"), "400 close", ""},

		{"query", getOf("/p?a=b&c[]=%20|%zz?/"), "200 open", upGet("/p?a=b&c[]=%20|%zz?/", "")}, {"escapes", getOf("/p/%41%2f%7e"), "200 open", upGet("/p/%41%2f%7e", "")}, {"empty segments", getOf("//p//"), "200 open", upGet("//p//", "")},
		{"fragment", getOf("/p#f"), "400 close", ""}, {"fragment in query", getOf("/p?q#f"), "400 close", ""}, {"no slash", getOf("p"), "400 close", ""}, {"broken escape", getOf("/p%4"), "400 close", ""}, {"no escape", getOf("/%zz"), "400 close", ""},
		{"NUL escaped", getOf("/p%00.png"), "400 close", ""}, {"NUL in target", getOf("/p\x00"), "400 close", ""}, {"control byte in target", getOf("/p\x01"), "400 close", ""}, {"DEL in target", getOf("/p\x7f"), "400 close", ""},
		{"high byte in target", getOf("/\xc3\xa4"), "400 close", ""}, {"backslash in path", getOf("/p\\q"), "400 close", ""}, {"dot segment", getOf("/p/../q"), "400 open", ""}, {"escaped dot segment", getOf("/p/%2e%2E/q"), "400 open", ""},
		{"dot segment with parameter", getOf("/p/..;x/q"), "400 open", ""}, {"dots in query", getOf("/p?/../"), "200 open", upGet("/p?/../", "")}, {"three dots", getOf("/p/..."), "200 open", upGet("/p/...", "")},
		{"asterisk", "OPTIONS * HTTP/1.1\r\nHost: a.test\r\n\r\n", "200 open", upTo("a.test", "OPTIONS *", "", "", "")}, {"asterisk of GET", getOf("*"), "400 close", ""}, {"asterisk and more", "OPTIONS *p HTTP/1.1\r\nHost: a.test\r\n\r\n", "400 close", ""},
		{"absolute", getOf("https://a.test/p?q"), "200 open", upGet("/p?q", "")}, {"absolute in other case", getOf("HTTP://A.test/p"), "200 open", upGet("/p", "")}, {"absolute elsewhere", getOf("https://b.test/p"), "400 close", ""},
		{"absolute without path", getOf("https://a.test"), "400 close", ""}, {"absolute with userinfo", getOf("https://u:p@a.test/"), "400 close", ""}, {"absolute with port", getOf("https://a.test:443/"), "400 close", ""},
		{"absolute with query only", getOf("https://a.test?q"), "400 close", ""}, {"absolute without Host", bend(getOf("https://a.test/p"), "Host: a.test\r\n", ""), "400 close", ""}, {"other scheme", getOf("ftp://a.test/p"), "400 close", ""},
		{"scheme without slashes", getOf("https:/p"), "400 close", ""}, {"authority", getOf("a.test:443"), "400 close", ""}, {"no route", getOf("/q"), "404 open", ""}, {"longest line", getOf("/p" + xs(1000-len("GET /p HTTP/1.1"))), "200 open", upGet("/p"+xs(1000-len("GET /p HTTP/1.1")), "")},
		{"line too long", getOf("/p" + xs(1001-len("GET /p HTTP/1.1"))), "414 close", ""}, {"line without end", "GET /" + xs(2000), "414 close", ""}, {"long method", xs(1100) + " / HTTP/1.1\r\n\r\n", "414 close", ""},

		{"no Host", bend(aGet, "Host: a.test\r\n", "X: y\r\n"), "400 close", ""}, {"two Hosts", postWith("Host: a.test"), "400 close", ""}, {"two Hosts, other case", postWith("hOST: b.test"), "400 close", ""}, {"empty Host", getFrom(""), "400 close", ""},
		{"port", getFrom("a.test:8443"), "200 open", upTo("a.test:8443", "GET /p", "", "", "")}, {"dot at the end", getFrom("a.test."), "200 open", upTo("a.test.", "GET /p", "", "", "")}, {"IPv4", getFrom("192.0.2.1"), "200 open", upTo("192.0.2.1", "GET /p", "", "", "")},
		{"IPv6", getFrom("[2001:db8::1]:443"), "200 open", upTo("[2001:db8::1]:443", "GET /p", "", "", "")}, {"Host in upper case", getFrom("A.TEST"), "200 open", upTo("A.TEST", "GET /p", "", "", "")},
		{"Host with path", getFrom("a.test/x"), "400 close", ""}, {"Host with space", getFrom("a test"), "400 close", ""}, {"Host list", getFrom("a.test, b.test"), "400 close", ""}, {"Host with userinfo", getFrom("u@a.test"), "400 close", ""},
		{"Host with query", getFrom("a.test?x"), "400 close", ""}, {"port of letters", getFrom("a.test:x"), "400 close", ""}, {"empty port", getFrom("a.test:"), "400 close", ""}, {"large port", getFrom("a.test:65536"), "400 close", ""}, {"two ports", getFrom("a.test:1:2"), "400 close", ""},
		{"no IPv6", getFrom("[::1::]"), "400 close", ""}, {"IPv6 without end", getFrom("[::1"), "400 close", ""}, {"IPv6 with zone", getFrom("[fe80::1%25eth0]"), "400 close", ""}, {"text behind IPv6", getFrom("[::1]x"), "400 close", ""}, {"IPv4 in brackets", getFrom("[192.0.2.1]"), "400 close", ""},
		{"only a port", getFrom(":443"), "400 close", ""}, {"empty label", getFrom("a..test"), "400 close", ""}, {"only a dot", getFrom("."), "400 close", ""}, {"dot in front", getFrom(".a.test"), "400 close", ""}, {"escape in Host", getFrom("%61.test"), "400 close", ""},
		{"high byte in Host", getFrom("\xc3\xa4.test"), "400 close", ""}, {"long Host", getFrom(xs(256)), "400 close", ""}, {"Host by Connection", postWith("Connection: host"), "400 close", ""}, {"space before Host", bend(aGet, "Host", " Host"), "400 close", ""},

		{"LF ends request line", postOf(" HTTP/1.1\r\n", " HTTP/1.1\n"), "400 close", ""}, {"LF ends field", postOf("a.test\r\n", "a.test\n"), "400 close", ""}, {"LF ends head", postOf("\r\n\r\n", "\r\n\n"), "400 close", ""}, {"all LF", strings.ReplaceAll(aPost, "\r", ""), "400 close", ""},
		{"CR ends field", postOf("a.test\r\n", "a.test\r"), "400 close", ""}, {"CR CR LF", postOf("a.test\r\n", "a.test\r\r\n"), "400 close", ""}, {"CR in value", postWith("X: a\rb"), "400 close", ""}, {"LF in value", postWith("X: a\nb: c"), "400 close", ""},
		{"folded", postWith("X: a\r\n b"), "400 close", ""}, {"folded by tab", postWith("X: a\r\n\tb"), "400 close", ""}, {"folded without text", postWith("X: a\r\n "), "400 close", ""}, {"folded length", postOf("Length: 2", "Length:\r\n 2"), "400 close", ""},
		{"space before colon", postOf("Host:", "Host :"), "400 close", ""}, {"tab before colon", postWith("X\t: a"), "400 close", ""}, {"no colon", postWith("X"), "400 close", ""}, {"no name", postWith(": a"), "400 close", ""}, {"space in name", postWith("X Y: a"), "400 close", ""},
		{"quote in name", postWith("X\"Y: a"), "400 close", ""}, {"high byte in name", postWith("X\xc3: a"), "400 close", ""}, {"NUL in name", postWith("X\x00: a"), "400 close", ""}, {"CR in name", postWith("X\r: a"), "400 close", ""}, {"parentheses in name", postWith("X(): a"), "400 close", ""},
		{"NUL in value", postWith("X: a\x00b"), "400 close", ""}, {"control byte in value", postWith("X: \x01"), "400 close", ""}, {"DEL in value", postWith("X: \x7f"), "400 close", ""}, {"vertical tab in value", postWith("X: a\vb"), "400 close", ""},
		{"tab in value", postWith("X: a\tb"), "200 open", upPost("X: a\tb\r\n")}, {"high bytes in value", postWith("X: \xc3\xa4\xff"), "200 open", upPost("X: \xc3\xa4\xff\r\n")}, {"empty value", postWith("X:"), "200 open", upPost("X: \r\n")},
		{"white space around value", postWith("X: \t a b \t"), "200 open", upPost("X: a b\r\n")}, {"field twice", postWith("X: a\r\nX: b"), "200 open", upPost("X: a\r\nX: b\r\n")}, {"names in odd case", postWith("x-OdD: a"), "200 open", upPost("x-OdD: a\r\n")},
		{"most fields", getWith(strings.Repeat("X: y\r\n", 48) + "X: z"), "200 open", upGet("/p", strings.Repeat("X: y\r\n", 48)+"X: z\r\n")}, {"too many fields", getWith(strings.Repeat("X: y\r\n", 49) + "X: z"), "431 close", ""},
		{"largest head", getWith("X: " + xs(4000-len(aGet)-5)), "200 open", upGet("/p", "X: "+xs(4000-len(aGet)-5)+"\r\n")}, {"head too large", getWith("X: " + xs(4001-len(aGet)-5)), "431 close", ""}, {"head without end", aGet[:len(aGet)-2] + "X: " + xs(6000), "431 close", ""},

		{"empty length", postOf(" 2", ""), "400 close", ""}, {"negative length", postOf(" 2", " -2"), "400 close", ""}, {"length with plus", postOf(" 2", " +2"), "400 close", ""}, {"hexadecimal length", postOf(" 2", " 0x2"), "400 close", ""}, {"decimal point", postOf(" 2", " 2.0"), "400 close", ""},
		{"two numbers", postOf(" 2", " 2 2"), "400 close", ""}, {"length list", postOf(" 2", " 2, 2"), "400 close", ""}, {"length and comma", postOf(" 2", " 2,"), "400 close", ""}, {"length twice", postWith("Content-Length: 2"), "400 close", ""}, {"two lengths", postWith("content-length: 0"), "400 close", ""},
		{"length overflows", postOf(" 2", " 18446744073709551618"), "400 close", ""}, {"length of 19 digits", postOf(" 2", " 9999999999999999999"), "400 close", ""}, {"length quoted", postOf(" 2", " \"2\""), "400 close", ""}, {"length in other digits", postOf(" 2", " \xd9\xa2"), "400 close", ""},
		{"leading zeros", postOf(" 2", " 0002"), "200 open", upPost("")}, {"no space", postOf(" 2", "2"), "200 open", upPost("")}, {"space behind length", postOf(" 2", " 2 \t"), "200 open", upPost("")}, {"length 0", bend(aPost, " 2\r\n\r\nhi", " 0\r\n\r\n"), "200 open", upTo("a.test", "POST /p", "", "Content-Length: 0\r\n", "")},
		{"space before length's colon", postOf("Length:", "Length :"), "400 close", ""}, {"length by Connection", postWith("Connection: content-length"), "400 close", ""}, {"length with underscore", postWith("Content_Length: 9"), "200 open", upPost("")},
		{"largest body", postOf(" 2\r\n\r\nhi", " 1000\r\n\r\n"+xs(1000)), "200 open", upTo("a.test", "POST /p", "", "Content-Length: 1000\r\n", xs(1000))}, {"body too large", postOf(" 2\r\n\r\nhi", " 1001\r\n\r\n"+xs(1001)), "413 close", ""}, {"body much too large", postOf(" 2\r\n\r\nhi", " 999999999999999999\r\n\r\nhi"), "413 close", ""},
	}
	return append(rows, http1BodyRows()...)
}

// http1BodyRows are about codings, the life of a connection and what is hop by hop.
func http1BodyRows() []http1Row {
	xs := func(n int) string { return strings.Repeat("x", n) }
	hi := upSend("2\r\nhi\r\n0\r\n\r\n")
	cut := "cut " + upSend("")
	return []http1Row{
		{"both", postWith("Transfer-Encoding: chunked"), "400 close", ""}, {"both, coding first", postOf("Content-Length", "Transfer-Encoding: chunked\r\nContent-Length"), "400 close", ""}, {"both, length 0", bend(aSend, "chunked", "chunked\r\nContent-Length: 0"), "400 close", ""},
		{"both, unknown coding", postWith("Transfer-Encoding: x"), "501 close", ""}, {"Chunked", coded(" Chunked"), "200 open", hi}, {"no space before chunked", coded("chunked"), "200 open", hi}, {"tab before chunked", coded("\tchunked"), "200 open", hi}, {"gzip", coded(" gzip"), "501 close", ""},
		{"gzip, chunked", coded(" gzip, chunked"), "501 close", ""}, {"chunked, gzip", coded(" chunked, gzip"), "501 close", ""}, {"chunked twice", coded(" chunked, chunked"), "501 close", ""}, {"chunked and comma", coded(" chunked,"), "501 close", ""}, {"identity", coded(" identity"), "501 close", ""},
		{"chunked, identity", coded(" chunked, identity"), "501 close", ""}, {"empty coding", coded(""), "400 close", ""}, {"coding twice", coded(" chunked\r\nTransfer-Encoding: chunked"), "400 close", ""}, {"coding twice, other", coded(" chunked\r\nTransfer-encoding: identity"), "400 close", ""},
		{"coding with parameter", coded(" chunked;q=1"), "501 close", ""}, {"coding quoted", coded(" \"chunked\""), "501 close", ""}, {"xchunked", coded(" xchunked"), "501 close", ""}, {"coding with vertical tab", coded(" \vchunked"), "400 close", ""}, {"coding with NUL", coded(" chunked\x00"), "400 close", ""},
		{"coding folded", coded("\r\n chunked"), "400 close", ""}, {"space before coding's colon", bend(aSend, "Encoding:", "Encoding :"), "400 close", ""}, {"coding by Connection", bend(aSend, "chunked", "chunked\r\nConnection: transfer-encoding"), "400 close", ""},
		{"coding with underscore", postWith("Transfer_Encoding: chunked"), "200 open", upPost("")}, {"coding in HTTP/1.0", bend(aSend, "1.1", "1.0"), "400 close", ""},

		{"two chunks", sendOf("2\r\nhi\r\n1\r\n!\r\n0\r\n\r\n"), "200 open", upSend("3\r\nhi!\r\n0\r\n\r\n")}, {"no chunk", sendOf("0\r\n\r\n"), "200 open", upSend("0\r\n\r\n")}, {"zeros", sendOf("0002\r\nhi\r\n000\r\n\r\n"), "200 open", hi},
		{"upper-case size", sendOf("A\r\n0123456789\r\n0\r\n\r\n"), "200 open", upSend("a\r\n0123456789\r\n0\r\n\r\n")}, {"extension", sendOf("2;a=b;c=\"d;e\"\r\nhi\r\n0;x\r\n\r\n"), "200 open", hi}, {"extension too long", sendOf("2;" + xs(300) + "\r\nhi\r\n0\r\n\r\n"), "400 close", cut},
		{"extensions without bound", sendOf(strings.Repeat("1;"+xs(250)+"\r\nx\r\n", 17) + "0\r\n\r\n"), "400 close", cut}, {"CR in extension", sendOf("2;\ra\r\nhi\r\n0\r\n\r\n"), "400 close", cut}, {"LF in extension", sendOf("2;a\nb\r\nhi\r\n0\r\n\r\n"), "400 close", cut}, {"NUL in extension", sendOf("2;\x00\r\nhi\r\n0\r\n\r\n"), "400 close", cut},
		{"no size", sendOf("\r\nhi\r\n0\r\n\r\n"), "400 close", cut}, {"size of letters", sendOf("g\r\nhi\r\n0\r\n\r\n"), "400 close", cut}, {"negative size", sendOf("-2\r\nhi\r\n0\r\n\r\n"), "400 close", cut}, {"size with plus", sendOf("+2\r\nhi\r\n0\r\n\r\n"), "400 close", cut}, {"size with 0x", sendOf("0x2\r\nhi\r\n0\r\n\r\n"), "400 close", cut},
		{"size overflows", sendOf("10000000000000002\r\nhi\r\n0\r\n\r\n"), "400 close", cut}, {"size without end", sendOf(strings.Repeat("0", 300)), "400 close", cut}, {"space before size", sendOf(" 2\r\nhi\r\n0\r\n\r\n"), "400 close", cut}, {"space behind size", sendOf("2 \r\nhi\r\n0\r\n\r\n"), "400 close", cut}, {"underscore in size", sendOf("0_2\r\nhi\r\n0\r\n\r\n"), "400 close", cut},
		{"LF ends size", sendOf("2\nhi\r\n0\r\n\r\n"), "400 close", cut}, {"LF ends data", sendOf("2\r\nhi\n0\r\n\r\n"), "400 close", cut}, {"CR ends data", sendOf("2\r\nhi\r0\r\n\r\n"), "400 close", cut}, {"data too long", sendOf("2\r\nhi!\r\n0\r\n\r\n"), "400 close", cut}, {"data too short", sendOf("3\r\nhi\r\n0\r\n\r\n"), "400 close", cut}, {"LF ends body", sendOf("2\r\nhi\r\n0\n\n"), "400 close", cut},
		{"largest chunked body", sendOf("3e8\r\n" + xs(1000) + "\r\n0\r\n\r\n"), "200 open", upSend("3e8\r\n" + xs(1000) + "\r\n0\r\n\r\n")}, {"chunked body too large", sendOf("3e9\r\n" + xs(1001) + "\r\n0\r\n\r\n"), "413 close", cut},
		{"Host in trailer", sendOf("2\r\nhi\r\n0\r\nHost: b\r\n\r\n"), "400 close", cut}, {"length in trailer", sendOf("2\r\nhi\r\n0\r\nContent-Length: 1\r\n\r\n"), "400 close", cut}, {"coding in trailer", sendOf("2\r\nhi\r\n0\r\nTransfer-Encoding: x\r\n\r\n"), "400 close", cut},
		{"folded trailer", sendOf("2\r\nhi\r\n0\r\nX: y\r\n z\r\n\r\n"), "400 close", cut}, {"trailer without colon", sendOf("2\r\nhi\r\n0\r\nX\r\n\r\n"), "400 close", cut}, {"LF in trailer", sendOf("2\r\nhi\r\n0\r\nX: y\n\r\n"), "400 close", cut}, {"trailer without bound", sendOf("2\r\nhi\r\n0\r\nX: " + xs(9000)), "400 close", cut},
		{"trailer", sendOf("2\r\nhi\r\n0\r\nX-End: y\r\n\r\n"), "200 open", upSend("2\r\nhi\r\n0\r\nX-End: y\r\n\r\n")}, {"two trailers", sendOf("2\r\nhi\r\n0\r\nX-A:y\r\nX-B: \t z \r\n\r\n"), "200 open", upSend("2\r\nhi\r\n0\r\nX-A: y\r\nX-B: z\r\n\r\n")},
		{"trailer of no chunk", sendOf("0\r\nX-End: y\r\n\r\n"), "200 open", upSend("0\r\nX-End: y\r\n\r\n")}, {"announced trailer", bend(sendOf("2\r\nhi\r\n0\r\nX-End: y\r\n\r\n"), "chunked\r\n", "chunked\r\nTrailer: X-End\r\n"), "200 open", upTo("a.test", "POST /p", "Trailer: X-End\r\n", "Transfer-Encoding: chunked\r\n", "2\r\nhi\r\n0\r\nX-End: y\r\n\r\n")},
		{"Connection in trailer", sendOf("2\r\nhi\r\n0\r\nConnection: close\r\n\r\n"), "400 close", cut}, {"trailers that had to come before", sendOf("2\r\nhi\r\n0\r\nAuthorization: x\r\nX-Forwarded-For: 6.6.6.6\r\nTE: x\r\nX_Y: z\r\nX-End: y\r\n\r\n"), "200 open", upSend("2\r\nhi\r\n0\r\nX-End: y\r\n\r\n")},
		{"Trailer names framing", bend(aSend, "chunked", "chunked\r\nTrailer: content-length"), "400 close", ""}, {"smuggled request in trailer", sendOf("2\r\nhi\r\n0\r\nGET /p HTTP/1.1\r\n\r\n"), "400 close", cut},

		{"pipelined", aGet + aPost + aSend + aGet, "200 200 200 200 open", upGet("/p", "") + upPost("") + hi + upGet("/p", "")}, {"pipelined, the second broken", aPost + " " + aGet, "200 400 close", upPost("")},
		{"pipelined, the first broken", postOf(" 2", " 2x") + aGet, "400 close", ""}, {"pipelined behind a refused body", bend(aPost, "/p", "/q") + aGet, "404 close", ""}, {"pipelined behind close", getWith("Connection: close") + aGet, "200 close", upGet("/p", "")},
		{"pipelined behind no route", getOf("/q") + aPost, "404 200 open", upPost("")}, {"pipelined behind an empty line", aGet + "\r\n" + aGet, "200 200 open", upGet("/p", "") + upGet("/p", "")}, {"length smuggles nothing", postOf(" 2\r\n\r\nhi", " 33\r\n\r\n"+getOf("/q")), "200 open", upTo("a.test", "POST /p", "", "Content-Length: 33\r\n", getOf("/q"))},
		{"chunk smuggles nothing", sendOf("21\r\n" + getOf("/q") + "\r\n0\r\n\r\n"), "200 open", upSend("21\r\n" + getOf("/q") + "\r\n0\r\n\r\n")},

		{"close", postWith("Connection: close"), "200 close", upPost("")}, {"Close", postWith("connection: keep-alive, Close"), "200 close", upPost("")}, {"keep-alive", postWith("Connection: keep-alive\r\nKeep-Alive: timeout=5"), "200 open", upPost("")}, {"Connection twice", postWith("Connection: x\r\nConnection: close"), "200 close", upPost("")},
		{"Connection of nothing", postWith("Connection: ,, ,"), "200 open", upPost("")}, {"Connection is no name", postWith("Connection: a b"), "400 close", ""}, {"names a field", postWith("X: a\r\nY: b\r\nConnection: x, close\r\nx: c"), "200 close", upPost("Y: b\r\n")}, {"names what the gateway says", postWith("Connection: X-Forwarded-For, X-Request-Id, X-Forwarded-Proto"), "200 open", upPost("")},
		{"names Expect", postWith("Expect: 100-continue\r\nConnection: expect"), "400 close", ""}, {"hop by hop", postWith("TE: gzip\r\nProxy-Connection: keep-alive\r\nKeep-Alive: 5\r\nX: a\r\nProxy-Authorization: Basic eA==\r\nProxy: http://b.test/"), "200 open", upPost("X: a\r\n")},
		{"Upgrade of HTTP/2", getWith("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk"), "200 open", upGet("/p", "")}, {"Upgrade without Connection", getWith("Upgrade: websocket"), "200 open", upGet("/p", "")}, {"WebSocket elsewhere", getWith("Connection: Upgrade\r\nUpgrade: websocket"), "200 open", upGet("/p", "")},
		{"WebSocket", bend(getWith("Connection: Upgrade\r\nUpgrade: websocket"), "/p", "/ws"), "200 open", upTo("a.test", "GET /ws", "", "Connection: Upgrade\r\nUpgrade: websocket\r\n", "")},
		{"two protocols", bend(getWith("Connection: Upgrade\r\nUpgrade: websocket, h2c"), "/p", "/ws"), "200 open", upGet("/ws", "")}, {"WebSocket by POST", bend(postWith("Connection: Upgrade\r\nUpgrade: websocket"), "/p", "/ws"), "200 open", bend(upPost(""), "/p", "/ws")},

		{"100-continue with its body", postWith("Expect: 100-continue"), "200 open", upPost("")}, {"100-continue without", bend(aGet, "\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n"), "200 open", upGet("/p", "")}, {"other expectation", postWith("Expect: 200-ok"), "417 close", ""}, {"two expectations", postWith("Expect: 100-continue, x"), "417 close", ""},
		{"100-continue, refused", bend(postWith("Expect: 100-continue"), "/p", "/q"), "404 close", ""}, {"100-continue in HTTP/1.0", bend(postWith("Expect: 100-continue"), "1.1", "1.0"), "200 close", upPost("")},

		{"HTTP/1.0", bend(aGet, "1.1", "1.0"), "200 close", upGet("/p", "")}, {"HTTP/1.0 without Host", "GET /p HTTP/1.0\r\n\r\n", "200 close", upTo("", "GET /p", "", "", "")}, {"HTTP/1.0 keep-alive", bend(getWith("Connection: Keep-Alive"), "1.1", "1.0"), "200 open", upGet("/p", "")}, {"HTTP/1.0 with a body", postOf("1.1", "1.0"), "200 close", upPost("")},
		{"HTTP/1.0 keep-alive and close", bend(getWith("Connection: keep-alive, close"), "1.1", "1.0"), "200 close", upGet("/p", "")}, {"HTTP/1.0 two Hosts", bend(getWith("Host: b.test"), "1.1", "1.0"), "400 close", ""}, {"HTTP/1.0 WebSocket", bend(bend(getWith("Connection: Upgrade\r\nUpgrade: websocket"), "/p", "/ws"), "1.1", "1.0"), "200 close", upGet("/ws", "")},

		{"underscore", postWith("X_Forwarded_For: 6.6.6.6\r\n_: x\r\nX: a"), "200 open", upPost("X: a\r\n")}, {"forged address", postWith("X-Forwarded-For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\nx-forwarded-any: x"), "200 open", upPost("")},
		{"forged id", postWith("X-Request-Id: forged\r\ntraceparent: forged\r\ntracestate: a=b"), "200 open", upPost("")}, {"end to end", postWith("Cookie: a=b\r\nCookie: c=d\r\nAuthorization: Bearer x\r\nAccept-Encoding: zstd, gzip\r\nMax-Forwards: 3\r\nVia: 1.1 x"), "200 open", upPost("Cookie: a=b\r\nCookie: c=d\r\nAuthorization: Bearer x\r\nAccept-Encoding: zstd, gzip\r\nMax-Forwards: 3\r\nVia: 1.1 x\r\n")},
	}
}
