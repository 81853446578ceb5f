// Package proxy is the gateway's process: it carries the traffic that a gateway.Table describes.
//
// It serves HTTP (1.1, 2, 3) and TCP on the host, and, inside the loopback-only networks of instances, the ports that they
// use and their forward proxy. It is a process of its own, so that the data path does not depend on the control path:
//
//	server ──Supervisor── starts, restarts, upgrades; holds duplicates of every listening socket
//	   │
//	   └──Client──▶ control socket: PUT /v1/table, GET /v1/status, POST /v1/drain, POST /v1/listeners …
//	                     │
//	                   Proxy ──▶ instances
//
// Control socket. HTTP over a unix socket; the peer must have the same user id, or root's. Each process listens on a path of its
// own, Control with its process id, and Control is a symbolic link to the newest. Bodies are JSON; an error is text, with the
// status that its kind has in the API. /v1/listeners passes descriptors with SCM_RIGHTS (passing.go).
//
// Files, in Dir: table.json (the last table: a new process starts with it), tls (certificates and the internal authority),
// log (access.log, egress.log, gateway.log).
package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/gateway"
	"github.com/invarhq/invar/instance"
)

// Config says how the gateway serves. A Supervisor passes it on to the process that it starts.
type Config struct {
	Dir         string        `json:"dir"`                     // state; must exist and be on a local file system
	HTTP        string        `json:"http,omitempty"`          // address for plain HTTP; "": none
	HTTPS       string        `json:"https,omitempty"`         // address for HTTPS and HTTP/3; "": none
	Control     string        `json:"control,omitempty"`       // path of the control socket; Dir/gateway.sock unless said
	Version     string        `json:"version,omitempty"`       // of the program, told in the status
	ACME        ACME          `json:"acme"`                    // for routes with tls = "acme"
	NoAccessLog bool          `json:"no_access_log,omitempty"` // do not write access.log; egress.log is always written
	Hold        time.Duration `json:"hold,omitempty"`          // how long a TCP connection waits for an instance; 5 s unless said
	ReadHeader  time.Duration `json:"read_header,omitempty"`   // from connection to the end of a request's header; 10 s unless said
	Idle        time.Duration `json:"idle,omitempty"`          // of a kept-alive client connection; 2 min unless said
	Drain       time.Duration `json:"drain,omitempty"`         // how long connections live on after a handover; 1 h unless said

	Log       *slog.Logger   `json:"-"`
	Inherited map[string]any `json:"-"` // listening sockets of an earlier process; see Inherited
	Ready     io.WriteCloser `json:"-"` // gets one line when the gateway serves, then is closed; nil: nobody asks
}

// ACME says where certificates for routes with tls = "acme" come from.
type ACME struct {
	Directory string `json:"directory,omitempty"` // URL; Let's Encrypt's production directory unless said
	Email     string `json:"email,omitempty"`     // for the account
	Challenge string `json:"challenge,omitempty"` // "http-01" or "tls-alpn-01"; whichever works unless said
	Roots     string `json:"roots,omitempty"`     // PEM file of the authorities that the directory's server is checked with; the system's unless said
}

// gcPercent trades some megabytes for throughput: what lives is little, what a request leaves behind is garbage at once.
const gcPercent = 400

const (
	defaultHold  = 5 * time.Second
	defaultDrain = time.Hour
	stopTimeout  = 10 * time.Second // of the requests under way when the gateway is told to end
	idleGrace    = 3 * time.Second  // for clients to use a kept connection once more before a drain closes it
)

func or(d, unless time.Duration) time.Duration {
	if d > 0 {
		return d
	}
	return unless
}

func (c Config) hold() time.Duration              { return or(c.Hold, defaultHold) }
func (c Config) drain() time.Duration             { return or(c.Drain, defaultDrain) }
func (c Config) readHeaderTimeout() time.Duration { return or(c.ReadHeader, readHeaderTimeout) }
func (c Config) idleTimeout() time.Duration       { return or(c.Idle, keepAliveTimeout) }
func (c Config) tablePath() string                { return filepath.Join(c.Dir, "table.json") }

func (c Config) controlPath() string {
	if c.Control != "" {
		return c.Control
	}
	return filepath.Join(c.Dir, "gateway.sock")
}

// Proxy is a running gateway.
type Proxy struct {
	cfg       Config
	log       *slog.Logger
	sockets   *sockets
	access    *accessLog
	tls       *authority // nil: no HTTPS
	view      atomic.Pointer[view]
	exchanges sync.Pool
	buffers   buffers
	draining  atomic.Bool
	life      context.Context // ends when held connections must
	end       context.CancelFunc

	servers   []*http.Server
	quic      quicServer
	host      map[string]hostSocket // the HTTP sockets, by key; set before serving
	clients   atomic.Int64          // HTTP connections
	streams   tally                 // spliced connections
	accepting tally                 // accept loops

	mu        sync.Mutex // guards a change of the table
	listeners map[string]*listener
	leaving   []*backend
	failures  map[string]string
	setBy     string // who put the table in force
}

// handOver tells a gateway whose control socket somebody has taken that another process has its listeners.
const handOver = unix.SIGUSR1

// Run serves until ctx ends, or until it has handed over to another process and drained.
func Run(ctx context.Context, cfg Config) error {
	if cfg.Dir == "" {
		return fault.Errorf(fault.Invalid, "the gateway has no directory")
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	p, err := newProxy(cfg)
	if err != nil {
		return err
	}
	defer p.close()
	if err := p.openHost(); err != nil {
		return err
	}
	if err := p.restore(); err != nil {
		return err
	}
	c, err := p.listenControl()
	if err != nil {
		return err
	}
	defer c.close()
	p.serveHost()
	if err := c.publish(); err != nil {
		return err
	}
	p.closeUnclaimed()
	told := make(chan os.Signal, 1)
	signal.Notify(told, handOver)
	defer signal.Stop(told)
	p.announce()
	select {
	case <-told:
		p.drain(ctx)
	case <-ctx.Done():
		p.stop()
	case <-c.handedOver:
		p.drain(ctx)
	}
	return nil
}

func newProxy(cfg Config) (*Proxy, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s, err := newSockets()
	if err != nil {
		return nil, err
	}
	p := &Proxy{cfg: cfg, log: cfg.Log, sockets: s, listeners: map[string]*listener{}, host: map[string]hostSocket{}}
	p.life, p.end = context.WithCancel(context.Background())
	p.exchanges.New = p.newExchange
	p.view.Store(&view{replaced: make(chan struct{})})
	if p.access, err = newAccessLog(filepath.Join(cfg.Dir, "log"), !cfg.NoAccessLog, cfg.Log); err != nil {
		return nil, fmt.Errorf("opening the access log: %w", err)
	}
	return p, nil
}

// restore puts the last table in force again. One that can't be read is left aside: serving nothing until the
// next table comes is better than not serving at all.
func (p *Proxy) restore() error {
	raw, err := os.ReadFile(p.cfg.tablePath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading the last table: %w", err)
	}
	t, err := gateway.Decode(raw)
	if err != nil {
		p.log.Error("the last table is not readable", "error", err)
		return nil
	}
	p.apply(gateway.Sealed{Table: t, Bytes: raw, Digest: digest.Of(raw)}, "")
	return nil
}

// apply puts a checked table in force. When it returns, new requests follow it. by says who asked.
func (p *Proxy) apply(t gateway.Sealed, by string) {
	failures := map[string]string{}
	gone := p.openListeners(t.Table, failures)
	old := p.view.Load()
	v := newView(t, old, p.sockets, failures)
	if err := p.persist(t); err != nil {
		failures["table.json"] = err.Error()
	}
	p.view.Store(v)
	if old.replaced != nil {
		close(old.replaced)
	}
	p.retire(old, v)
	for _, l := range gone {
		l.stop()
	}
	if p.tls != nil {
		p.tls.manage(t.HTTP)
	}
	for _, r := range t.HTTP {
		if r.TLS != "" && p.tls == nil {
			failures["route "+string(r.Name)+" of "+string(r.Env)] = noHTTPS
		}
	}
	p.failures, p.setBy = failures, by
	for what, cause := range failures {
		p.log.Error("part of a table could not be done", "part", what, "error", cause)
	}
}

// persist keeps the table for the next process. It is not synced: after a crash of the machine the networks that it names are gone too.
func (p *Proxy) persist(t gateway.Sealed) error {
	next := fmt.Sprintf("%s.%d", p.cfg.tablePath(), os.Getpid())
	if err := os.WriteFile(next, t.Bytes, 0o600); err != nil {
		return err
	}
	return os.Rename(next, p.cfg.tablePath())
}

// retire takes the backends out of service that the new view does not have.
func (p *Proxy) retire(old, now *view) {
	still := p.leaving[:0]
	for _, b := range p.leaving {
		if b.active.Load() > 0 {
			still = append(still, b)
		}
	}
	p.leaving = still
	for id, b := range old.backends {
		if now.backends[id] != b {
			b.retire()
			p.leaving = append(p.leaving, b)
		}
	}
}

// status tells what the proxy does.
func (p *Proxy) status() gateway.Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	v := p.view.Load()
	s := gateway.Status{
		PID: os.Getpid(), Version: p.cfg.Version, Serial: v.table.Serial, Digest: v.table.Digest, SetBy: p.setBy, Draining: p.draining.Load(),
		HTTP: p.host[keyHTTP].address(), HTTPS: p.host[keyHTTPS].address(),
		Active: map[instance.ID]int64{}, Failures: p.failures,
	}
	if p.tls != nil {
		s.Root = p.tls.rootPath
	}
	for id, b := range v.backends {
		s.Active[id] = b.active.Load()
	}
	for _, b := range p.leaving {
		if n := b.active.Load(); n > 0 {
			s.Active[b.id] += n
		}
	}
	return s
}

// openHost opens or takes over the sockets for HTTP.
func (p *Proxy) openHost() error {
	if p.cfg.HTTPS != "" {
		a, err := newAuthority(p.cfg)
		if err != nil {
			return err
		}
		p.tls = a
	}
	for key, address := range p.cfg.hostSockets() {
		s, err := openHostSocket(key, address, p.cfg.Inherited)
		if err != nil {
			return err
		}
		p.host[key] = s
	}
	return nil
}

// serveHost begins to accept.
func (p *Proxy) serveHost() {
	if s, ok := p.host[keyHTTP]; ok {
		server := p.newHTTPServer()
		p.accepting.Go(func() { p.stopped(keyHTTP, server.Serve(s.listener)) })
	}
	if s, ok := p.host[keyHTTPS]; ok {
		server := p.newHTTPServer()
		server.TLSConfig = p.tls.config()
		p.serveQUIC(server)
		p.accepting.Go(func() { p.stopped(keyHTTPS, server.ServeTLS(s.listener, "", "")) })
	}
}

func (p *Proxy) newHTTPServer() *http.Server {
	server := p.newServer(p)
	server.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			p.clients.Add(1)
		case http.StateClosed, http.StateHijacked:
			p.clients.Add(-1)
		}
	}
	p.servers = append(p.servers, server)
	return server
}

func (p *Proxy) stopped(key string, err error) {
	if !p.draining.Load() && !errors.Is(err, http.ErrServerClosed) {
		p.log.Error("a listener ended", "listener", key, "error", err)
	}
}

// announce tells whoever started this process that it serves.
func (p *Proxy) announce() {
	if p.cfg.Ready != nil {
		io.WriteString(p.cfg.Ready, readyLine) // nobody may be listening any more
		p.cfg.Ready.Close()
	}
}

// stop ends the gateway: it accepts nothing more and answers the requests under way.
func (p *Proxy) stop() {
	p.draining.Store(true)
	p.closeListeners()
	over, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	p.shutdown(over)
}

// drain ends this process's part after a handover: it accepts nothing more, and stays until its connections have ended or its time is up.
// Nothing is lost with the listeners: the sockets live on in the process that took over, with the connections that they queue.
func (p *Proxy) drain(ctx context.Context) {
	p.draining.Store(true)
	p.closeListeners()
	over, cancel := context.WithTimeout(ctx, p.cfg.drain())
	defer cancel()
	until(over, idleGrace, func() bool { return p.clients.Load() == 0 })
	p.shutdown(over)
	until(over, p.cfg.drain(), func() bool { return p.streams.count() == 0 && p.underway() == 0 })
}

// shutdown closes idle client connections, and the others when their requests are answered.
func (p *Proxy) shutdown(over context.Context) {
	var all sync.WaitGroup
	for _, s := range p.servers {
		all.Go(func() {
			s.Shutdown(over)
			s.Close()
		})
	}
	all.Go(func() { p.releaseQUIC(over) })
	all.Wait()
}

// until polls a condition that connections, which nothing else waits for, will bring about.
func until(ctx context.Context, limit time.Duration, done func() bool) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// underway counts requests and connections to instances.
func (p *Proxy) underway() (n int64) {
	for _, active := range p.status().Active {
		n += active
	}
	return n
}

func (p *Proxy) closeListeners() {
	for _, s := range p.host {
		if s.listener != nil {
			s.listener.Close()
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.listeners {
		l.Close()
	}
}

func (p *Proxy) close() {
	p.end()
	p.closeListeners()
	for _, s := range p.host {
		s.close()
	}
	p.access.close()
	if p.tls != nil {
		p.tls.close()
	}
	p.sockets.home.Close()
}

// tally counts goroutines that come and go at any time, and so can't be in a sync.WaitGroup.
type tally struct{ n atomic.Int64 }

func (t *tally) Go(f func()) {
	leave := t.enter()
	go func() {
		defer leave()
		f()
	}()
}

func (t *tally) enter() (leave func()) {
	t.n.Add(1)
	return func() { t.n.Add(-1) }
}

func (t *tally) count() int64 { return t.n.Load() }
