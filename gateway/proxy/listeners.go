package proxy

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/invarhq/invar/gateway"
	"github.com/invarhq/invar/instance"
)

// Listening sockets are named by what they are for, so that they find their place again in another process.
const (
	keyHTTP  = "http"
	keyHTTPS = "https"
	keyQUIC  = "quic"
)

func keyTCP(address string) string { return "tcp/" + address }

func keyInside(id instance.ID, address string) string { return "in/" + string(id) + "/" + address }

// listener is a listening socket of the table's: on the host, or inside an instance.
type listener struct {
	*net.TCPListener
	key     string
	service atomic.Pointer[gateway.ServiceName] // of a stream
	egress  *egress                             // of a forward proxy; nil for a stream
}

// wanted is a listener that a table asks for.
type wanted struct {
	key     string
	who     instance.ID // "": the host
	network string
	address string
	service gateway.ServiceName
	egress  *gateway.Egress
}

// listeners returns what a table asks for, and nothing else listens.
func wantedListeners(t gateway.Table) []wanted {
	var out []wanted
	for _, l := range t.TCP {
		out = append(out, wanted{key: keyTCP(l.Address), address: l.Address, service: l.Service})
	}
	for _, in := range t.Inside {
		for _, l := range in.Uses {
			out = append(out, wanted{key: keyInside(in.Instance, l.Address), who: in.Instance, network: in.Network, address: l.Address, service: l.Service})
		}
		if e := in.Egress; e != nil {
			out = append(out, wanted{key: keyInside(in.Instance, e.Address), who: in.Instance, network: in.Network, address: e.Address, egress: e})
		}
	}
	return out
}

// openListeners brings the listeners to what the table asks for, before the table is in force. It reuses what is open or inherited. What can't be
// opened is told in failures and tried again with the next table. It returns those that the table no longer asks for.
func (p *Proxy) openListeners(t gateway.Table, failures map[string]string) (gone []*listener) {
	keep := map[string]bool{}
	for _, w := range wantedListeners(t) {
		l := p.listeners[w.key]
		if l == nil || (l.egress == nil) != (w.egress == nil) {
			opened, err := p.open(w)
			if err != nil {
				failures[w.key] = err.Error()
				continue
			}
			l = &listener{TCPListener: opened, key: w.key}
			p.start(l, w)
		}
		keep[w.key] = true
		if w.egress != nil {
			l.egress.allow.Store(parseAllows(w.egress.Allow))
		} else {
			l.service.Store(&w.service)
		}
	}
	for key, l := range p.listeners {
		if !keep[key] {
			gone = append(gone, l)
			delete(p.listeners, key)
		}
	}
	return gone
}

// start serves a listener that is new to this process.
func (p *Proxy) start(l *listener, w wanted) {
	p.listeners[w.key] = l
	if w.egress != nil {
		l.egress = p.newEgress(w.who)
		l.egress.allow.Store(parseAllows(w.egress.Allow))
		p.accepting.Go(func() { l.egress.server.Serve(l) })
		return
	}
	l.service.Store(&w.service)
	p.accepting.Go(func() { p.serveStream(l) })
}

// stop ends a listener; what it accepted goes on.
func (l *listener) stop() {
	l.Close()
	if l.egress != nil {
		l.egress.server.Close() // an instance that left the table makes no more requests
	}
}

func (p *Proxy) open(w wanted) (*net.TCPListener, error) {
	if l, ok := p.cfg.Inherited[w.key].(*net.TCPListener); ok {
		delete(p.cfg.Inherited, w.key)
		return l, nil
	}
	if w.who == "" {
		l, err := net.Listen("tcp", w.address)
		if err != nil {
			return nil, fmt.Errorf("listening for a TCP route: %w", err)
		}
		return l.(*net.TCPListener), nil
	}
	on, err := netip.ParseAddrPort(w.address)
	if err != nil {
		return nil, err
	}
	ns, err := os.Open(w.network)
	if err != nil {
		return nil, fmt.Errorf("opening an instance's network: %w", err)
	}
	defer ns.Close()
	l, err := p.sockets.listen(ns, on)
	if err != nil {
		return nil, fmt.Errorf("listening on %s inside an instance: %w", w.address, err)
	}
	return l, nil
}

// inheritedSockets makes listeners of descriptors that another process passed on. A name that is not of a packet socket is a listener's.
func inheritedSockets(files map[string]*os.File) (map[string]any, error) {
	out := make(map[string]any, len(files))
	for key, f := range files {
		var err error
		if strings.HasPrefix(key, keyQUIC) {
			out[key], err = net.FilePacketConn(f)
		} else {
			out[key], err = net.FileListener(f)
		}
		if err != nil {
			return nil, fmt.Errorf("taking over listener %q: %w", key, err)
		}
		f.Close()
	}
	return out, nil
}

// sortedKeys returns the names of sockets in order.
func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
