package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
	"github.com/miekg/dns"
)

// pebble is Let's Encrypt's test server, in this process: it validates over real connections.
type pebble struct {
	directory string
	roots     string // PEM file, of its own HTTPS
	issued    *x509.CertPool
}

func newPebble(t *testing.T, httpPort, tlsPort int) pebble {
	t.Helper()
	t.Setenv("PEBBLE_VA_NOSLEEP", "1")
	logger := log.New(t.Output(), "pebble ", 0)
	store := db.NewMemoryStore()
	authority := ca.New(logger, store, "", "ecdsa", 0, 1, map[string]ca.Profile{"default": {}})
	validator := va.New(logger, httpPort, tlsPort, false, resolver(t), store)
	front := wfe.New(logger, store, validator, authority, []string{"pebble.example.com"}, false, false, 1, 1)
	server := httptest.NewTLSServer(front.Handler())
	t.Cleanup(server.Close)
	p := pebble{directory: server.URL + wfe.DirectoryPath, roots: filepath.Join(t.TempDir(), "roots.pem"), issued: x509.NewCertPool()}
	own := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(p.roots, own, 0o600); err != nil {
		t.Fatal(err)
	}
	p.issued.AppendCertsFromPEM(authority.GetRootCert(0).PEM())
	return p
}

// resolver is a DNS server, over TCP as pebble asks, to which every name is 127.0.0.1.
func resolver(t *testing.T) string {
	t.Helper()
	socket, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &dns.Server{Listener: socket, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		a := new(dns.Msg)
		a.SetReply(q)
		if q.Question[0].Qtype == dns.TypeA {
			a.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1}, A: net.IPv4(127, 0, 0, 1)}}
		}
		w.WriteMsg(a)
	})}
	go s.ActivateAndServe()
	t.Cleanup(func() { s.Shutdown() })
	return socket.Addr().String()
}

func TestCertificatesOverACME(t *testing.T) {
	for _, challenge := range []string{"http-01", "tls-alpn-01"} {
		t.Run(challenge, func(t *testing.T) {
			plain, secure := freeAddress(t), freeAddress(t)
			_, httpPort, _ := hostPort(plain)
			_, tlsPort, _ := hostPort(secure)
			p := newPebble(t, httpPort, tlsPort)
			g := run(t, Config{HTTP: plain, HTTPS: secure, ACME: ACME{Directory: p.directory, Roots: p.roots, Email: "ops@example.com", Challenge: challenge}})
			web := newBox(t, "web-a")
			web.serveName()
			table := webTable(web)
			table.HTTP[0].Host, table.HTTP[0].TLS = "shop.example.com", "acme"
			g.apply(table)

			conn, err := tls.Dial("tcp", secure, &tls.Config{RootCAs: p.issued, ServerName: "shop.example.com"})
			if err != nil {
				t.Fatal(err)
			}
			conn.Close()
			if issuer := conn.ConnectionState().PeerCertificates[0].Issuer.CommonName; !strings.Contains(issuer, "Pebble") {
				t.Errorf("the certificate is by %q, want Pebble", issuer)
			}
			if conn, err := tls.Dial("tcp", secure, &tls.Config{RootCAs: p.issued, ServerName: "other.example.com"}); err == nil {
				conn.Close()
				t.Error("got a certificate for a name that no route has")
			}
			// A challenge that is not ours is none of an instance's business either.
			req, _ := http.NewRequest(http.MethodGet, "http://"+plain+"/.well-known/acme-challenge/unknown", nil)
			req.Host = "shop.example.com"
			resp, err := http.DefaultTransport.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				t.Error("an unknown challenge was answered")
			}
		})
	}
}
