package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/invarhq/invar/gateway"
	"github.com/invarhq/invar/instance"
)

const egressDialTimeout = 10 * time.Second

// egress is the forward proxy of one instance. It stands inside the instance's network and dials from the host's, so names are resolved here.
type egress struct {
	proxy   *Proxy
	who     instance.ID
	allow   atomic.Pointer[[]gateway.Allow]
	server  *http.Server
	forward httputil.ReverseProxy // absolute-form requests
}

func parseAllows(list []string) *[]gateway.Allow {
	out := make([]gateway.Allow, 0, len(list))
	for _, s := range list {
		if a, err := gateway.ParseAllow(s); err == nil { // the table was checked
			out = append(out, a)
		}
	}
	return &out
}

func (p *Proxy) newEgress(who instance.ID) *egress {
	e := &egress{proxy: p, who: who}
	e.server = p.newServer(e)
	e.forward = httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.Host = r.In.URL.Host
			r.Out.Header.Del("Proxy-Authorization")
		},
		Transport: &http.Transport{
			DialContext:           func(ctx context.Context, _, address string) (net.Conn, error) { return e.dial(ctx, address) },
			DisableCompression:    true,
			IdleConnTimeout:       idleTimeout,
			ExpectContinueTimeout: time.Second,
		},
		BufferPool:   &p.buffers,
		ErrorHandler: e.failed,
		ErrorLog:     slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
	}
	return e
}

// target returns the host and port that a request of a client to its proxy asks for.
func target(r *http.Request) (host string, port uint16, err error) {
	authority := r.Host
	if r.Method != http.MethodConnect {
		if r.URL.Scheme != "http" || r.URL.Host == "" {
			return "", 0, errors.New("this is a forward proxy: use CONNECT, or GET with an http:// URL")
		}
		authority = r.URL.Host
		if r.URL.Port() == "" {
			authority = net.JoinHostPort(r.URL.Hostname(), "80")
		}
	}
	host, number, err := net.SplitHostPort(authority)
	if err != nil {
		return "", 0, fmt.Errorf("%q is not host:port", authority)
	}
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil || n == 0 || host == "" || strings.ContainsAny(host, "%/@ ") {
		return "", 0, fmt.Errorf("%q is not host:port", authority)
	}
	return host, uint16(n), nil
}

func (e *egress) permits(host string, port uint16) bool {
	for _, a := range *e.allow.Load() {
		if a.Permits(host, port) {
			return true
		}
	}
	return false
}

func (e *egress) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	entry := egressEntry{start: time.Now(), who: e.who, method: r.Method}
	defer func() { e.proxy.access.egress(&entry) }()
	host, port, err := target(r)
	entry.target = net.JoinHostPort(host, strconv.Itoa(int(port)))
	if err != nil {
		entry.target, entry.status, entry.verdict = r.Host, http.StatusBadRequest, err.Error()
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if !e.permits(host, port) {
		entry.status, entry.verdict = http.StatusForbidden, "denied"
		http.Error(w, fmt.Sprintf("egress to %s is not allowed: add it to the component's egress list", entry.target), http.StatusForbidden)
		return
	}
	entry.verdict = "allowed"
	if r.Method == http.MethodConnect {
		e.tunnel(w, r, &entry)
		return
	}
	c := &countingWriter{ResponseWriter: w}
	e.forward.ServeHTTP(c, r)
	entry.status, entry.bytes = c.status, c.bytes
}

// tunnel answers CONNECT.
func (e *egress) tunnel(w http.ResponseWriter, r *http.Request, entry *egressEntry) {
	upstream, err := e.dial(r.Context(), entry.target)
	if err != nil {
		entry.status, entry.verdict = e.refuse(w, err)
		return
	}
	defer upstream.Close()
	client, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		entry.status, entry.verdict = http.StatusNotImplemented, "not HTTP/1.1"
		http.Error(w, "CONNECT needs HTTP/1.1", http.StatusNotImplemented)
		return
	}
	defer client.Close()
	entry.status = http.StatusOK
	if _, err := io.WriteString(client, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		return
	}
	early := make([]byte, buffered.Reader.Buffered())
	io.ReadFull(buffered, early) // what is buffered can be read
	if _, err := upstream.Write(early); err != nil {
		return
	}
	defer e.proxy.streams.enter()()
	splice(e.proxy.life, client.(*net.TCPConn), upstream)
}

func (e *egress) failed(w http.ResponseWriter, _ *http.Request, err error) { e.refuse(w, err) }

// refuse answers for a connection that could not be made.
func (e *egress) refuse(w http.ResponseWriter, err error) (status int, verdict string) {
	if f, ok := errors.AsType[*forbiddenAddress](err); ok {
		http.Error(w, f.Error(), http.StatusForbidden)
		return http.StatusForbidden, f.Error()
	}
	http.Error(w, "egress: "+err.Error(), http.StatusBadGateway)
	return http.StatusBadGateway, err.Error()
}

// forbiddenAddress is an address of the host's own that a name led to.
type forbiddenAddress struct{ addr netip.AddrPort }

func (e *forbiddenAddress) Error() string {
	return fmt.Sprintf("egress to %s is not allowed: addresses of the host itself must be listed literally", e.addr)
}

// dial resolves and connects on the host. The address is judged when it is known, so no name leads to the host's own services.
func (e *egress) dial(ctx context.Context, target string) (*net.TCPConn, error) {
	d := net.Dialer{Timeout: egressDialTimeout, Control: func(_, address string, _ syscall.RawConn) error { return e.judge(address) }}
	conn, err := d.DialContext(ctx, "tcp", target)
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// judge refuses an address of the host's own, or of a metadata service, that is not listed literally.
func (e *egress) judge(address string) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	addr := to.Addr().Unmap().WithZone("")
	if isOwn(addr) && !e.permits(addr.String(), to.Port()) {
		return &forbiddenAddress{to}
	}
	return nil
}

// Metadata services that are not link-local: Amazon's on IPv6, Alibaba's, Oracle's.
var metadata = []netip.Addr{
	netip.MustParseAddr("fd00:ec2::254"), netip.MustParseAddr("100.100.100.200"), netip.MustParseAddr("192.0.0.192"),
}

// isOwn tells whether an address is the host's own or one of a cloud's metadata services.
func isOwn(a netip.Addr) bool {
	if slices.Contains(metadata, a) || a.IsLoopback() || a.IsUnspecified() || a.IsLinkLocalUnicast() || a.IsMulticast() {
		return true
	}
	own, err := net.InterfaceAddrs()
	return err != nil || slices.ContainsFunc(own, func(o net.Addr) bool {
		prefix, err := netip.ParsePrefix(o.String())
		return err == nil && prefix.Addr() == a
	})
}

// countingWriter counts a response.
type countingWriter struct {
	http.ResponseWriter
	status int
	bytes  int64
}

func (c *countingWriter) WriteHeader(status int) {
	c.status = status
	c.ResponseWriter.WriteHeader(status)
}

func (c *countingWriter) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b)
	c.bytes += int64(n)
	return n, err
}

func (c *countingWriter) Unwrap() http.ResponseWriter { return c.ResponseWriter }
