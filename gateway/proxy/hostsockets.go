package proxy

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/fault"
)

// hostSocket is one of the sockets for HTTP: a listener, or for QUIC a packet socket.
type hostSocket struct {
	listener *net.TCPListener
	packets  *net.UDPConn
}

func (s hostSocket) address() string {
	if s.listener == nil {
		return ""
	}
	return s.listener.Addr().String()
}

// hostSockets returns the addresses that the configuration asks for, by the keys of their sockets. A key holds
// the address as configured, so that a process with another configuration does not take the socket over.
func (c Config) hostSockets() map[string]string {
	out := map[string]string{}
	if c.HTTP != "" {
		out[keyHTTP] = c.HTTP
	}
	if c.HTTPS != "" {
		out[keyHTTPS], out[keyQUIC] = c.HTTPS, c.HTTPS
	}
	return out
}

// passedKey is a host socket's name when it is passed on.
func passedKey(key, address string) string { return key + "=" + address }

func isHostKey(name string) bool {
	return strings.HasPrefix(name, keyHTTP+"=") || strings.HasPrefix(name, keyHTTPS+"=") || strings.HasPrefix(name, keyQUIC+"=")
}

// openHostSocket takes a socket over or opens it. A taken address is fault.Conflict.
func openHostSocket(key, address string, inherited map[string]any) (hostSocket, error) {
	name := passedKey(key, address)
	switch s := inherited[name].(type) {
	case *net.TCPListener:
		delete(inherited, name)
		return hostSocket{listener: s}, nil
	case *net.UDPConn:
		delete(inherited, name)
		return hostSocket{packets: s}, nil
	}
	s, err := listenHost(key, address)
	if errors.Is(err, unix.EADDRINUSE) {
		err = fault.WithHint(fault.As(fault.Conflict, err), "another program listens on %s: stop it, or give the gateway another address", address)
	}
	return s, err
}

func listenHost(key, address string) (hostSocket, error) {
	if key == keyQUIC {
		c, err := net.ListenPacket("udp", address)
		if err != nil {
			return hostSocket{}, fmt.Errorf("listening for HTTP/3: %w", err)
		}
		return hostSocket{packets: c.(*net.UDPConn)}, nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return hostSocket{}, fmt.Errorf("listening for %s: %w", strings.ToUpper(key), err)
	}
	return hostSocket{listener: l.(*net.TCPListener)}, nil
}

func (s hostSocket) close() {
	if s.listener != nil {
		s.listener.Close()
	}
	if s.packets != nil {
		s.packets.Close()
	}
}

// file returns a duplicate of the socket.
func (s hostSocket) file() (*os.File, error) {
	if s.packets != nil {
		return s.packets.File()
	}
	return s.listener.File()
}

// files returns duplicates of the listening sockets but those held, and the names of all.
func (p *Proxy) files(held []string) (fresh map[string]*os.File, all []string, err error) {
	has := make(map[string]bool, len(held))
	for _, name := range held {
		has[name] = true
	}
	fresh = map[string]*os.File{}
	add := func(name string, dup func() (*os.File, error)) {
		all = append(all, name)
		if has[name] || err != nil {
			return
		}
		if fresh[name], err = dup(); err != nil {
			err = fmt.Errorf("duplicating %s: %w", name, err)
			delete(fresh, name)
		}
	}
	addresses := p.cfg.hostSockets()
	for key, s := range p.host {
		add(passedKey(key, addresses[key]), s.file)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, l := range p.listeners {
		add(key, l.File)
	}
	if err != nil {
		closeAll(fresh)
		return nil, nil, err
	}
	return fresh, all, nil
}

func closeAll[C io.Closer](m map[string]C) {
	for c := range maps.Values(m) {
		c.Close()
	}
}

// closeUnclaimed closes what was inherited and nothing asked for.
func (p *Proxy) closeUnclaimed() {
	for name, s := range p.cfg.Inherited {
		p.log.Warn("an inherited socket has no use", "socket", name)
		s.(io.Closer).Close()
		delete(p.cfg.Inherited, name)
	}
}
