package proxy

import (
	"context"
	"net/http"
	"strconv"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// serveQUIC serves HTTP/3 beside an HTTPS server and announces it there. A QUIC connection can't be handed to another process:
// at a handover its requests are answered and the client told to connect again.
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
	p.closers = append(p.closers, func(ctx context.Context) error {
		err := s.Shutdown(ctx)
		socket.Close()
		return err
	})
	p.accepting.Go(func() { p.stopped(keyQUIC, s.Serve(socket)) })
}
