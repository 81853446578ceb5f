package proxy

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"sync"
	"time"

	"github.com/invarhq/invar/gateway"
	"github.com/invarhq/invar/instance"
)

// maxReplay is the size up to which the body of an idempotent request is kept, so that it can be sent again.
const maxReplay = 64 << 10

// ServeHTTP forwards a request to an instance of its route's service.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if p.draining.Load() && r.Header.Get("Upgrade") == "" {
		w.Header().Set("Connection", "close") // the next request goes to the process that took over
	}
	v := p.view.Load()
	i := v.routes.Match(gateway.CleanHost(r.Host), r.URL.Path)
	if p.tls != nil && p.tls.intercept(w, r, v, i) {
		return
	}
	x := p.exchanges.Get().(*exchange)
	x.begin(w, r)
	defer x.end(r)
	if i < 0 {
		http.Error(x, fmt.Sprintf("no route for host %q and path %q", r.Host, r.URL.Path), http.StatusNotFound)
		return
	}
	x.route, x.service = &v.table.HTTP[i], v.targets[i]
	if x.route.TLS != "" && r.TLS == nil { // only without HTTPS: else it was redirected
		http.Error(x, noHTTPS, http.StatusServiceUnavailable)
		return
	}
	x.reverse.ServeHTTP(x, r)
}

// noHTTPS is why a route with TLS is not served.
const noHTTPS = "this route has TLS, and the gateway has no HTTPS address"

// exchange is one request and its response. It is the response writer that counts, and the transport that chooses and retries.
type exchange struct {
	http.ResponseWriter
	proxy    *Proxy
	reverse  httputil.ReverseProxy
	route    *gateway.Route
	service  *service
	serving  *backend // holds a count until the exchange ends
	last     instance.ID
	attempts attempts
	start    time.Time
	status   int
	bytes    int64
}

func (p *Proxy) newExchange() any {
	x := &exchange{proxy: p}
	x.reverse = httputil.ReverseProxy{
		Rewrite:      rewrite,
		Transport:    x,
		BufferPool:   &p.buffers,
		ErrorHandler: x.fail,
		ErrorLog:     slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
	}
	return x
}

func (x *exchange) begin(w http.ResponseWriter, r *http.Request) {
	x.ResponseWriter, x.start = w, time.Now()
	if r.Body != nil && r.ProtoMajor == 1 && r.ContentLength < 0 {
		// A client may go on sending while the instance already answers, as it can with HTTP/2.
		http.NewResponseController(w).EnableFullDuplex()
	}
}

// end runs also when the response is aborted by a panic, as ReverseProxy does when a body breaks off.
func (x *exchange) end(r *http.Request) {
	if x.serving != nil {
		x.serving.release()
	}
	x.proxy.access.request(x, r)
	*x = exchange{proxy: x.proxy, reverse: x.reverse}
	x.proxy.exchanges.Put(x)
}

// rewrite adds the X-Forwarded headers; the client's own were removed before. The Host header is the client's.
func rewrite(r *httputil.ProxyRequest) {
	r.SetXForwarded()
	r.Out.URL.Scheme = "http"
}

// RoundTrip offers the request to instances until one answers. It is repeated only when nothing can have happened: when
// the connection could not be made and none of the body was read, or, for idempotent methods, when no byte of a response came.
func (x *exchange) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := newReplay(r)
	if err != nil {
		return nil, err
	}
	last := error(errNoInstance{x.service.name})
	for {
		m := x.proxy.acquire(x.service, &x.attempts)
		if m == nil {
			return nil, last
		}
		x.last = m.id
		resp, err := m.transport(r).RoundTrip(body.address(r, m.address, x.attempts.count))
		if err == nil {
			x.serving = m.backend
			return resp, nil
		}
		m.release()
		x.attempts.add(m.backend)
		last = err
		if r.Context().Err() != nil || x.attempts.count == maxAttempts || !body.repeatable(r, err) {
			return nil, last
		}
	}
}

// transport returns what speaks to the instance as the client does: gRPC needs HTTP/2 all the way.
func (m *member) transport(r *http.Request) *http.Transport {
	if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
		return &m.h2c
	}
	return &m.h1
}

// replay is a request body that may be sent more than once. nil is no body.
type replay struct {
	io.Reader
	kept []byte // all of it
	read bool   // some of it may be gone
}

func newReplay(r *http.Request) (*replay, error) {
	if r.Body == nil || r.Body == http.NoBody {
		return nil, nil
	}
	b := &replay{Reader: r.Body}
	if isIdempotent(r.Method) && r.ContentLength > 0 && r.ContentLength <= maxReplay {
		b.kept = make([]byte, r.ContentLength)
		if _, err := io.ReadFull(r.Body, b.kept); err != nil {
			return nil, fmt.Errorf("reading the request's body: %w", err)
		}
	}
	return b, nil
}

func (b *replay) Read(buf []byte) (int, error) {
	b.read = true
	return b.Reader.Read(buf)
}

// Close leaves the body open: a transport closes it when it could not connect.
func (b *replay) Close() error { return nil }

// address directs the request to an instance. A request that was handed to a transport before is copied: it may still be read there.
func (b *replay) address(r *http.Request, to string, attempt int) *http.Request {
	if attempt > 0 {
		u, again := *r.URL, *r
		again.URL = &u
		r = &again
	}
	r.URL.Host = to
	switch {
	case b == nil:
		r.Body = nil
	case b.kept != nil:
		r.Body = io.NopCloser(bytes.NewReader(b.kept))
	default:
		r.Body = b
	}
	return r
}

func (b *replay) repeatable(r *http.Request, err error) bool {
	if _, ok := errors.AsType[*dialError](err); ok && (b == nil || b.kept != nil || !b.read) {
		return true
	}
	return isIdempotent(r.Method) && (b == nil || b.kept != nil)
}

// isIdempotent follows RFC 9110, section 9.2.2.
func isIdempotent(method string) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, http.MethodPut, http.MethodDelete:
		return true
	}
	return false
}

// statusClientGone is what the access log has for a client that went away before an answer.
const statusClientGone = 499

// fail answers for an instance that did not.
func (x *exchange) fail(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		x.status = statusClientGone
		return
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		http.Error(w, "request body too large", http.StatusRequestEntityTooLarge)
		return
	}
	if _, ok := errors.AsType[errNoInstance](err); ok {
		w.Header().Set("Retry-After", "1")
		http.Error(w, "no healthy instance behind "+r.Host+", try again", http.StatusServiceUnavailable)
		return
	}
	x.proxy.log.Debug("request failed", "host", r.Host, "instance", x.last, "error", err)
	http.Error(w, "the instance behind "+r.Host+" did not answer", http.StatusBadGateway)
}

func (x *exchange) WriteHeader(status int) {
	if status >= 200 || status == http.StatusSwitchingProtocols {
		x.status = status
	}
	x.ResponseWriter.WriteHeader(status)
}

func (x *exchange) Write(b []byte) (int, error) {
	n, err := x.ResponseWriter.Write(b)
	x.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController find what the server's writer can do.
func (x *exchange) Unwrap() http.ResponseWriter { return x.ResponseWriter }

// Hijack is for upgrades: WebSocket and the like.
func (x *exchange) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return http.NewResponseController(x.ResponseWriter).Hijack()
}

// buffers lends buffers for bodies.
type buffers struct{ pool sync.Pool }

const bufferSize = 32 << 10

func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*[bufferSize]byte); ok {
		return p[:]
	}
	return make([]byte, bufferSize)
}

func (b *buffers) Put(buf []byte) { b.pool.Put((*[bufferSize]byte)(buf)) }

// limits of the servers that face clients.
const (
	maxHeaderBytes    = 64 << 10
	readHeaderTimeout = 10 * time.Second
	keepAliveTimeout  = 2 * time.Minute
)

func (p *Proxy) newServer(h http.Handler) *http.Server {
	s := &http.Server{
		Handler:           h,
		MaxHeaderBytes:    maxHeaderBytes,
		ReadHeaderTimeout: p.cfg.readHeaderTimeout(),
		IdleTimeout:       p.cfg.idleTimeout(),
		ErrorLog:          slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return context.Background() },
		Protocols:         new(http.Protocols),
	}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetHTTP2(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	return s
}
