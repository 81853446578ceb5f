package proxy

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/invarhq/invar/instance"
)

const (
	ejectFor       = time.Second // how long an instance that could not be dialled is the last choice
	idlePerBackend = 512
	idleTimeout    = 90 * time.Second
)

// backend is an instance that traffic goes to. It outlives its place in the table until the last request under way has ended.
type backend struct {
	id      instance.ID
	network string
	ns      *os.File
	sockets *sockets

	active  atomic.Int64 // requests and connections under way
	ejected atomic.Int64 // Unix nanoseconds until which others are preferred
	retired atomic.Bool  // out of the table; set before active is read

	h1  http.Transport
	h2c http.Transport // HTTP/2 without TLS, for gRPC

	closeOnce sync.Once
}

func newBackend(id instance.ID, network string, s *sockets) (*backend, error) {
	ns, err := os.Open(network)
	if err != nil {
		return nil, fmt.Errorf("opening the network of instance %s: %w", id, err)
	}
	b := &backend{id: id, network: network, ns: ns, sockets: s}
	b.configure(&b.h1)
	b.configure(&b.h2c)
	b.h2c.Protocols = new(http.Protocols)
	b.h2c.Protocols.SetUnencryptedHTTP2(true)
	return b, nil
}

func (b *backend) configure(t *http.Transport) {
	t.DialContext = b.dialContext
	t.DisableCompression = true // bytes pass as they are
	t.MaxIdleConnsPerHost = idlePerBackend
	t.IdleConnTimeout = idleTimeout
	t.ExpectContinueTimeout = time.Second
	t.MaxResponseHeaderBytes = 1 << 20
}

func (b *backend) dialContext(ctx context.Context, _, address string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, err
	}
	return b.dial(ctx, to)
}

// dial connects to the instance, and makes it the last choice for a while when that fails.
func (b *backend) dial(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
	conn, err := b.sockets.dial(ctx, b.ns, to)
	if err != nil && ctx.Err() == nil {
		b.ejected.Store(time.Now().Add(ejectFor).UnixNano())
	}
	return conn, err
}

// hold counts one more request under way. It returns false, and counts nothing, for a backend that has left the table:
// either hold sees that it has, or whoever asks afterwards sees the request counted.
func (b *backend) hold() bool {
	b.active.Add(1)
	if b.retired.Load() {
		b.release()
		return false
	}
	return true
}

// release ends what hold began.
func (b *backend) release() {
	if b.active.Add(-1) == 0 && b.retired.Load() {
		b.close()
	}
}

// retire takes the backend out of service. What is under way goes on.
func (b *backend) retire() {
	b.retired.Store(true)
	if b.active.Load() == 0 {
		b.close()
	}
}

func (b *backend) close() {
	b.closeOnce.Do(func() {
		b.h1.CloseIdleConnections()
		b.h2c.CloseIdleConnections()
		b.ns.Close()
	})
}
