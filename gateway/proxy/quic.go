package proxy

import (
	"context"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// quicGrace bounds how long HTTP/3 requests under way may take at a handover.
const quicGrace = time.Second

// serveQUIC serves HTTP/3 beside an HTTPS server and announces it there. A QUIC connection can't be handed to another process, and two
// processes can't read from one socket: so before a handover releaseQUIC answers the requests under way and closes the connections,
// and the packets of those who connect again wait in the socket for the next process.
func (p *Proxy) serveQUIC(tcp *http.Server) {
	s := &http3.Server{
		Handler:        p,
		TLSConfig:      http3.ConfigureTLSConfig(p.tls.config()),
		QUICConfig:     &quic.Config{MaxIdleTimeout: p.cfg.idleTimeout()},
		MaxHeaderBytes: maxHeaderBytes,
		IdleTimeout:    p.cfg.idleTimeout(),
		Logger:         p.log,
	}
	socket := p.host[keyQUIC].packets
	if _, port, err := hostPort(socket.LocalAddr().String()); err == nil {
		s.Port = port
		announcement := `h3=":` + strconv.Itoa(port) + `"; ma=3600`
		p.tls.altSvc = func(h http.Header) { h.Set("Alt-Svc", announcement) }
	}
	p.quic.stop = func(ctx context.Context) {
		s.Shutdown(ctx)
		s.Close()
		socket.Close()
	}
	p.accepting.Go(func() { p.stopped(keyQUIC, s.Serve(socket)) })
}

// quicServer is the HTTP/3 part; stop is nil when there is none.
type quicServer struct {
	once sync.Once
	stop func(ctx context.Context)
}

// releaseQUIC ends HTTP/3 in this process.
func (p *Proxy) releaseQUIC(ctx context.Context) {
	p.quic.once.Do(func() {
		if p.quic.stop == nil {
			return
		}
		ctx, cancel := context.WithTimeout(ctx, quicGrace)
		defer cancel()
		p.quic.stop(ctx)
	})
}
