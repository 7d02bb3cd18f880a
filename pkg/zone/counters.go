// SPDX-License-Identifier: Apache-2.0

package zone

// Counter is one count of a worker. It never goes down while the zone lives: a
// restarted worker counts on.
type Counter int

// Counters of a worker. Outcomes of requests and handshakes have ranges of their
// own. New ones go to the end: their order is part of the zone's layout.
const (
	ConnectionsAccepted Counter = iota
	ConnectionsClosed
	ConnectionsRejected // worker_connections are not enough
	RequestsHTTP1
	RequestsHTTP2
	BytesReceived // of requests, heads and bodies as clients sent them, without TLS
	BytesSent     // likewise
	AccessRecordsDropped
	UpstreamConnectionsOpened
	UpstreamConnectionsReused
	UpstreamRetries
	HTTP2Misuse   // connections ended for what their client did: see Misuse
	Mirrored      // copies of requests that were sent on their way
	MirrorDropped // copies for which there was no room
	UpstreamEjections
	LimitBucketsEvicted // of request limits, while they held something
	// What TLS clients offered, each of them once under each property ...
	OfferedTLS13
	OfferedTLS12
	OfferedOlder
	OfferedHTTP2
	OfferedHTTP1
	OfferedNoProtocol
	OfferedOtherProtocol
	ServerNameKnown
	ServerNameUnknown
	ServerNameAbsent
	// ... and what was agreed on with those whose handshake succeeded.
	AgreedTLS13
	AgreedTLS12
	AgreedHTTP2
	AgreedHTTP1
	AgreedHybrid       // a post-quantum key exchange, such as X25519MLKEM768
	AgreedClassical    // any other
	Panics             // at the root of a goroutine: each cost one exchange or connection
	ConnectionsDrained // idle ones that were closed to make room for others
	CancelsHeld        // exchanges whose client went away while their upstream had too many cancelled
	OffencesUnkeyed    // offences whose TCP peer is a trusted proxy: no verdict is for it
	SignalsDropped     // streaks that the ring to the supervisor had no room for
	ConnectionsLimited // closed at once: their client has as many open as a limit_conn allows
	KeysCached         // look-ups of API keys that the worker answered from memory ...
	KeysAsked          // ... that went to the store, one for all who waited for it
	KeysStale          // ... that were answered by a key older than it should be: the store did not answer
	KeysUnanswered     // ... for which there was none: 503
	KeysEvicted        // API keys that others pushed out of the worker's memory
	KeyBudgets         // key functions that took too many steps: the address was the key
	KeyFaults          // key functions that failed in another way; likewise
	SharesUntold       // requests under a limit over several gateways of which these do not hear: no room
	HandshakeTime      // ns that TLS handshakes were at work, their waits left out
	LuaTime            // ns in key functions
	CollectorTime      // ns of CPU in the collector of garbage, as the runtime estimates
	ErrorLinesDropped  // lines of the error log for which the supervisor was too slow
	// Exchanges with a status of 4xx, then of 5xx, by Source.
	Errors4xxClient
	Errors4xxGateway
	Errors4xxUpstream
	Errors5xxClient
	Errors5xxGateway
	Errors5xxUpstream
	PlainCounters // how many there are
)

var counterNames = [PlainCounters]string{
	"connections_accepted", "connections_closed", "connections_rejected", "requests_http1", "requests_http2",
	"bytes_received", "bytes_sent", "access_records_dropped", "upstream_connections_opened",
	"upstream_connections_reused", "upstream_retries", "http2_misuse", "mirrored", "mirror_dropped", "upstream_ejections",
	"limit_buckets_evicted",
	"offered_tls13", "offered_tls12", "offered_older", "offered_http2", "offered_http1", "offered_no_protocol", "offered_other_protocol",
	"server_name_known", "server_name_unknown", "server_name_absent",
	"agreed_tls13", "agreed_tls12", "agreed_http2", "agreed_http1", "agreed_hybrid", "agreed_classical",
	"panics", "connections_drained", "cancels_held", "offences_unkeyed", "signals_dropped", "connections_limited",
	"keys_cached", "keys_asked", "keys_stale", "keys_unanswered", "keys_evicted", "key_budgets", "key_faults",
	"shares_untold", "handshake_time", "lua_time", "collector_time", "error_lines_dropped",
	"errors_4xx_client", "errors_4xx_gateway", "errors_4xx_upstream", "errors_5xx_client", "errors_5xx_gateway", "errors_5xx_upstream",
}

func (c Counter) String() string { return word(counterNames[:], int(c)) }

// Counters lists all.
func Counters() []Counter { return upTo(PlainCounters) }

// RequestOutcome is why an exchange ended. Each exchange has exactly one.
type RequestOutcome int

const (
	RequestOK                 RequestOutcome = iota // the upstream's reply was passed on whole, whatever its status
	RequestBad                                      // 400: the request breaks HTTP
	RequestHeaderTooLarge                           // 431
	RequestURITooLong                               // 414
	RequestBodyTooLarge                             // 413
	RequestNoRoute                                  // 404: no route matches
	RequestMethodRefused                            // 501, 405
	RequestUpstreamRefused                          // 502: no connection to a server
	RequestUpstreamReset                            // 502, or cut: the server broke off
	RequestUpstreamInvalid                          // 502: the server does not speak HTTP
	RequestUpstreamSaturated                        // 503: all connections are in use
	RequestUpstreamTimeout                          // 504: no reply in time
	RequestConnectTimeout                           // 504: no connection in time
	RequestClientReset                              // the client went away
	RequestClientTimeout                            // 408, or cut: the client was too slow
	RequestHTTP2Error                               // the stream broke HTTP/2
	RequestPanic                                    // a fault of this program
	RequestRouteReply                               // the route's own: a redirect, a reply, or one to a CORS preflight
	RequestMaintenance                              // 503: the route is under maintenance
	RequestLimited                                  // 429, or the limit's own status: over a request limit
	RequestOverload                                 // 503: the worker has more to do than it can
	RequestConcurrencyLimited                       // 429, or the limit's own status: as many are under way as a limit_conn allows
	RequestKeyMissing                               // 401: the route wants an API key and there is none
	RequestKeyRefused                               // 401: the API key is unknown, wrong, revoked or expired
	RequestKeyScope                                 // 403: the API key lacks a scope of the route
	RequestKeyUnanswered                            // 503: the store of API keys does not answer for one that is not known
	requestOutcomes
)

var requestOutcomeNames = [requestOutcomes]string{
	"ok", "bad_request", "header_too_large", "uri_too_long", "body_too_large", "no_route", "method_refused",
	"upstream_refused", "upstream_reset", "upstream_invalid", "upstream_saturated", "upstream_timeout",
	"connect_timeout", "client_reset", "client_timeout", "http2_error", "panic",
	"route_reply", "maintenance", "limited", "overload", "concurrency_limited",
	"key_missing", "key_refused", "key_scope", "key_unanswered",
}

func (o RequestOutcome) String() string { return word(requestOutcomeNames[:], int(o)) }

// RequestOutcomes lists all.
func RequestOutcomes() []RequestOutcome { return upTo(requestOutcomes) }

// Source is who decided how an exchange ended.
type Source int

const (
	SourceClient   Source = iota // it broke HTTP, was too slow, or went away
	SourceGateway                // its policy refused or answered, or it could do no more
	SourceUpstream               // it answered, or failed to
	sources
)

var sourceNames = [sources]string{"client", "gateway", "upstream"}

func (s Source) String() string { return word(sourceNames[:], int(s)) }

// Sources lists all.
func Sources() []Source { return upTo(sources) }

// Source of exchanges with the outcome.
func (o RequestOutcome) Source() Source {
	switch o {
	case RequestBad, RequestHeaderTooLarge, RequestURITooLong, RequestBodyTooLarge, RequestMethodRefused,
		RequestClientReset, RequestClientTimeout, RequestHTTP2Error:
		return SourceClient
	case RequestOK, RequestUpstreamRefused, RequestUpstreamReset, RequestUpstreamInvalid, RequestUpstreamSaturated,
		RequestUpstreamTimeout, RequestConnectTimeout:
		return SourceUpstream
	}
	return SourceGateway
}

// Errors is the counter of exchanges of the source with a status of 4xx, or of 5xx.
func Errors(server bool, s Source) Counter {
	if server {
		return Errors5xxClient + Counter(s)
	}
	return Errors4xxClient + Counter(s)
}

// HandshakeOutcome is how a TLS handshake ended.
type HandshakeOutcome int

const (
	HandshakeFull HandshakeOutcome = iota
	HandshakeResumed
	HandshakeTimeout
	HandshakeEOF      // the client closed before it was done
	HandshakeVersion  // no common protocol version
	HandshakeCipher   // no common cipher suite or curve
	HandshakeProtocol // no common application protocol
	HandshakeNotTLS   // the first record is not TLS
	HandshakeAlert    // the client sent an alert: it may distrust the certificate
	HandshakeOther    // any other error
	HandshakeProxy    // a trusted proxy sent no valid PROXY header
	HandshakeBudget   // the worker's handshake budget was used up
	HandshakeClient   // the client's certificate is missing, or nobody known vouches for it
	handshakeOutcomes
)

var handshakeNames = [handshakeOutcomes]string{
	"full", "resumed", "timeout", "eof", "version", "cipher", "protocol", "not_tls", "alert", "other", "proxy_header",
	"handshake_budget", "client_certificate",
}

func (o HandshakeOutcome) String() string { return word(handshakeNames[:], int(o)) }

// Failed is false for full and resumed handshakes.
func (o HandshakeOutcome) Failed() bool { return o > HandshakeResumed }

// HandshakeOutcomes lists all.
func HandshakeOutcomes() []HandshakeOutcome { return upTo(handshakeOutcomes) }

// Misuse is what a client did for which its HTTP/2 connection was ended.
type Misuse int

const (
	MisuseEmptyData      Misuse = iota // this and the next ones: too many frames that do no work
	MisusePings                        //
	MisuseSettings                     //
	MisusePriorities                   //
	MisuseWindowUpdates                //
	MisuseResets                       // of its own requests: rapid reset
	MisuseCausedResets                 // by frames and requests that break the protocol
	MisuseContinuations                // header blocks without an end
	MisuseHeaderFloods                 // more header than allowed, again and again
	MisuseClosedStreams                //
	MisuseRefusedStreams               //
	MisuseUnknownFrames                //
	MisuseControlQueue                 // makes answers necessary and does not read them
	MisuseProtocol                     // a connection error of RFC 9113
	MisuseSlowHeader                   // did not end in time what it began
	MisuseUnread                       // did not take what was sent
	MisuseSlow                         // below the least rate
	misuses
)

var misuseNames = [misuses]string{
	"empty_data", "pings", "settings", "priorities", "window_updates", "resets", "caused_resets", "continuations", "header_floods",
	"closed_streams", "refused_streams", "unknown_frames", "control_queue", "protocol", "slow_header", "unread", "slow",
}

func (m Misuse) String() string { return word(misuseNames[:], int(m)) }

// Misuses lists all.
func Misuses() []Misuse { return upTo(misuses) }

// UpstreamOutcome is how one try at an upstream ended.
type UpstreamOutcome int

const (
	UpstreamOK UpstreamOutcome = iota
	UpstreamRefused
	UpstreamConnectTimeout
	UpstreamTimeout
	UpstreamReset
	UpstreamInvalid
	UpstreamSaturated
	UpstreamCancelled // the client went away first
	upstreamOutcomes
)

var upstreamNames = [upstreamOutcomes]string{
	"ok", "refused", "connect_timeout", "timeout", "reset", "invalid", "saturated", "cancelled",
}

func (o UpstreamOutcome) String() string { return word(upstreamNames[:], int(o)) }

// UpstreamOutcomes lists all.
func UpstreamOutcomes() []UpstreamOutcome { return upTo(upstreamOutcomes) }

// LimitOutcome is what a limit did with a request or connection that it is for.
type LimitOutcome int

const (
	LimitPassed      LimitOutcome = iota
	LimitDelayed                  // passed, after a wait
	LimitRejected                 // refused
	LimitWouldReject              // passed, since the limit is tried only (dry_run)
	LimitUncounted                // passed, since there was no room to count it
	limitOutcomes
)

var limitNames = [limitOutcomes]string{"passed", "delayed", "rejected", "would_reject", "uncounted"}

func (o LimitOutcome) String() string { return word(limitNames[:], int(o)) }

// LimitOutcomes lists all.
func LimitOutcomes() []LimitOutcome { return upTo(limitOutcomes) }

func upTo[T ~int](n T) []T {
	all := make([]T, n)
	for i := range all {
		all[i] = T(i)
	}
	return all
}

func word(words []string, i int) string {
	if i < 0 || i >= len(words) {
		return "unknown"
	}
	return words[i]
}

// Words of the counters, in ranges with room for more in each.
const (
	counterRequests   = 8 * lineWords
	counterHandshakes = 16 * lineWords
	counterMisuse     = 20 * lineWords
	counterWords      = 24 * lineWords
)

var (
	_ [counterRequests - int(PlainCounters)]struct{} // each range is long enough
	_ [counterHandshakes - counterRequests - int(requestOutcomes)]struct{}
	_ [counterMisuse - counterHandshakes - int(handshakeOutcomes)]struct{}
	_ [counterWords - counterMisuse - int(misuses)]struct{}
)

// Gauge is one present value of a worker.
type Gauge int

// Gauges of a worker. The supervisor writes those of the process, the worker the
// rest, each on cache lines of their own.
const (
	GaugePID            Gauge = iota // supervisor
	GaugeCore                        // supervisor; the core plus 1, 0 for not pinned
	GaugeState                       // supervisor
	GaugeStarted                     // supervisor; ns since 1970
	GaugeRestarts                    // supervisor
	GaugeGeneration                  // worker
	GaugeConnections                 // worker; open client connections
	GaugeRequests                    // worker; exchanges under way
	GaugeHeartbeat                   // worker; CLOCK_MONOTONIC, ns; 0 before the first
	GaugeHandshakesLeft              // worker; full TLS handshakes that it would begin now
	GaugeHandshakesGone              // worker; CLOCK_MONOTONIC, ns: when it last had none left for somebody
	gaugeCount
)

var gaugeNames = [gaugeCount]string{
	"pid", "core", "state", "started", "restarts", "generation", "connections_active", "requests_active", "heartbeat", "handshakes_left", "handshakes_gone",
}

func (g Gauge) String() string { return word(gaugeNames[:], int(g)) }

// place is the gauge's word.
func (g Gauge) place() int {
	if g < GaugeGeneration {
		return slabGauges + int(g)
	}
	return slabGauges + 2*lineWords + int(g-GaugeGeneration)
}

// State is a worker's, in GaugeState.
type State uint64

const (
	StateNone State = iota // never started
	StateStarting
	StateReady
	StateDraining
	StateDead
	stateCount
)

var stateNames = [stateCount]string{"none", "starting", "ready", "draining", "dead"}

func (s State) String() string { return word(stateNames[:], int(min(s, stateCount))) }
