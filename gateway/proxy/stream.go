package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/invarhq/invar/gateway"
)

// redialEvery is the pause between attempts while a connection is held.
const redialEvery = 20 * time.Millisecond

// serveStream accepts connections and splices each to an instance of the service, until the listener is closed.
func (p *Proxy) serveStream(l *listener) {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			p.log.Warn("accepting a connection", "listener", l.key, "error", err)
			time.Sleep(redialEvery) // out of descriptors: leave the queue alone for a moment
			continue
		}
		p.streams.Go(func() { p.forward(conn.(*net.TCPConn), *l.service.Load()) })
	}
}

// forward connects a client to an instance. While there is none it holds the client's connection: one that is replaced
// stop-then-start comes back soon.
func (p *Proxy) forward(client *net.TCPConn, name gateway.ServiceName) {
	defer client.Close()
	ctx, cancel := context.WithTimeout(p.life, p.cfg.hold())
	defer cancel()
	target, m := p.reach(ctx, name)
	if target == nil {
		p.log.Warn("no instance for a connection", "service", name, "client", client.RemoteAddr().String())
		client.SetLinger(0) // a reset says that this was no orderly end
		return
	}
	defer m.release()
	defer target.Close()
	splice(p.life, client, target)
}

// reach dials instances of the service until one accepts or ctx ends. The instance is held for the caller.
func (p *Proxy) reach(ctx context.Context, name gateway.ServiceName) (*net.TCPConn, *member) {
	var tried attempts
	for {
		v := p.view.Load()
		if s := v.services[name]; s != nil {
			if m := p.acquire(s, &tried); m != nil {
				if conn, err := m.dial(ctx, m.to); err == nil {
					return conn, m
				}
				m.release()
				tried.add(m.backend)
				continue
			}
		}
		tried = attempts{}
		select {
		case <-v.replaced:
		case <-time.After(redialEvery):
		case <-ctx.Done():
			return nil, nil
		}
	}
}

// splice copies both ways until both are at their end, or life ends. The end of one way is passed on alone; a broken way ends both.
func splice(life context.Context, a, b *net.TCPConn) {
	defer context.AfterFunc(life, func() {
		a.Close()
		b.Close()
	})()
	var both sync.WaitGroup
	both.Go(func() { pass(a, b) })
	pass(b, a)
	both.Wait()
}

func pass(to, from *net.TCPConn) {
	if _, err := io.Copy(to, from); err != nil { // splice(2): bytes stay in the kernel
		to.Close()
		from.Close()
		return
	}
	to.CloseWrite()
}
