package proxy

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3/acme"
	"go.uber.org/zap"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/gateway"
)

const (
	rootLifetime = 10 * 365 * 24 * time.Hour
	leafLifetime = 7 * 24 * time.Hour
	clockSkew    = time.Hour // certificates are valid from this long before now
)

// authority has the certificates: those of the internal authority, and those that come over ACME. It gives one to
// a name only when the table in force has a route for it that asks for one.
type authority struct {
	log      *slog.Logger
	modes    atomic.Pointer[map[string]string] // host to "internal" or "acme"
	internal *certmagic.Config
	acme     *certmagic.Config
	issuer   *certmagic.ACMEIssuer
	caches   []*certmagic.Cache
	rootPath string
	port     string              // of HTTPS, for redirects and Alt-Svc
	altSvc   func(h http.Header) // announces HTTP/3; nil before it serves
}

func newAuthority(cfg Config) (*authority, error) {
	dir := filepath.Join(cfg.Dir, "tls")
	ca, err := loadRoot(filepath.Join(dir, "internal"))
	if err != nil {
		return nil, fmt.Errorf("preparing the internal authority: %w", err)
	}
	a := &authority{log: cfg.Log, rootPath: ca.certPath}
	if _, a.port, err = net.SplitHostPort(cfg.HTTPS); err != nil {
		return nil, fault.Errorf(fault.Invalid, "https address %q: %w", cfg.HTTPS, err)
	}
	a.modes.Store(&map[string]string{})
	storage := &certmagic.FileStorage{Path: dir}
	a.internal = a.newConfig(storage, "internal")
	a.internal.Issuers = []certmagic.Issuer{ca}
	a.internal.OCSP.DisableStapling = true
	a.internal.DisableARI = true
	a.acme = a.newConfig(storage, "acme")
	template, err := cfg.acmeIssuer()
	if err != nil {
		return nil, err
	}
	a.issuer = certmagic.NewACMEIssuer(a.acme, template)
	a.acme.Issuers = []certmagic.Issuer{a.issuer}
	return a, nil
}

// newConfig returns a configuration for one mode with a cache of its own, so that a host whose mode changes gets another certificate.
func (a *authority) newConfig(storage certmagic.Storage, mode string) *certmagic.Config {
	var cfg *certmagic.Config
	cache := certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) { return cfg, nil },
		Logger:           zap.NewNop(), // events tell what matters
	})
	a.caches = append(a.caches, cache)
	cfg = certmagic.New(cache, certmagic.Config{
		Storage: storage,
		Logger:  zap.NewNop(),
		OnEvent: a.event,
		OnDemand: &certmagic.OnDemandConfig{DecisionFunc: func(_ context.Context, name string) error {
			if a.mode(name) != mode {
				return fault.Errorf(fault.Denied, "no route of %q has tls = %q", name, mode)
			}
			return nil
		}},
	})
	return cfg
}

func (a *authority) event(_ context.Context, event string, data map[string]any) error {
	switch event {
	case "cert_obtained":
		a.log.Info("certificate obtained", "name", data["identifier"], "issuer", data["issuer"])
	case "cert_failed":
		a.log.Error("certificate not obtained", "name", data["identifier"], "error", data["error"])
	}
	return nil
}

// acmeIssuer says how to get certificates over ACME. The challenges are answered on the gateway's own listeners.
func (c Config) acmeIssuer() (certmagic.ACMEIssuer, error) {
	t := certmagic.ACMEIssuer{CA: c.ACME.Directory, Email: c.ACME.Email, Agreed: true, Logger: zap.NewNop()}
	var err error
	if t.ListenHost, t.AltTLSALPNPort, err = hostPort(c.HTTPS); err != nil {
		return t, err
	}
	if c.HTTP == "" {
		t.DisableHTTPChallenge = true
	} else if _, t.AltHTTPPort, err = hostPort(c.HTTP); err != nil {
		return t, err
	}
	switch c.ACME.Challenge {
	case "":
	case "http-01":
		t.DisableTLSALPNChallenge = true
	case "tls-alpn-01":
		t.DisableHTTPChallenge = true
	default:
		return t, fault.Errorf(fault.Invalid, "acme challenge %q is not known: want http-01 or tls-alpn-01", c.ACME.Challenge)
	}
	if c.ACME.Roots != "" {
		raw, err := os.ReadFile(c.ACME.Roots)
		if err != nil {
			return t, fmt.Errorf("reading the roots of the ACME directory: %w", err)
		}
		t.TrustedRoots = x509.NewCertPool()
		if !t.TrustedRoots.AppendCertsFromPEM(raw) {
			return t, fault.Errorf(fault.Invalid, "roots of the ACME directory: %s has no certificate", c.ACME.Roots)
		}
	}
	return t, nil
}

func hostPort(address string) (host string, port int, err error) {
	host, number, err := net.SplitHostPort(address)
	if err == nil {
		port, err = strconv.Atoi(number)
	}
	return host, port, fault.As(fault.Invalid, err)
}

func (a *authority) mode(host string) string { return (*a.modes.Load())[host] }

// manage follows the routes of a new table.
func (a *authority) manage(routes []gateway.Route) {
	modes := make(map[string]string)
	for _, r := range routes {
		if r.TLS != "" {
			modes[r.Host] = r.TLS
		}
	}
	a.modes.Store(&modes)
}

// config returns the configuration for a listener.
func (a *authority) config() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"h2", "http/1.1", acmeALPN},
		GetCertificate: a.certificate,
	}
}

// acmeALPN is the protocol of the TLS-ALPN-01 challenge, RFC 8737.
const acmeALPN = "acme-tls/1"

func (a *authority) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	switch {
	case slices.Contains(hello.SupportedProtos, acmeALPN), a.mode(gateway.CleanHost(hello.ServerName)) == "acme":
		return a.acme.GetCertificate(hello)
	case a.mode(gateway.CleanHost(hello.ServerName)) == "internal":
		return a.internal.GetCertificate(hello)
	}
	return nil, fmt.Errorf("no route with TLS for host %q", hello.ServerName)
}

// intercept answers what never reaches an instance: challenges, and plain requests to a route with TLS.
func (a *authority) intercept(w http.ResponseWriter, r *http.Request, v *view, route int) bool {
	if r.TLS != nil {
		if a.altSvc != nil && r.ProtoMajor < 3 {
			a.altSvc(w.Header())
		}
		return false
	}
	if strings.HasPrefix(r.URL.Path, "/.well-known/acme-challenge/") && a.issuer.HandleHTTPChallenge(w, r) {
		return true
	}
	if route < 0 || v.table.HTTP[route].TLS == "" {
		return false
	}
	to := *r.URL
	to.Scheme, to.Host = "https", v.table.HTTP[route].Host
	if a.port != "443" {
		to.Host = net.JoinHostPort(to.Host, a.port)
	}
	http.Redirect(w, r, to.String(), http.StatusPermanentRedirect)
	return true
}

func (a *authority) close() {
	for _, c := range a.caches {
		c.Stop()
	}
}

// root is the internal authority: a certmagic.Issuer whose key never leaves this machine.
type root struct {
	cert     *x509.Certificate
	key      crypto.Signer
	certPath string
}

// loadRoot reads the authority from dir, or makes it when there is none.
func loadRoot(dir string) (*root, error) {
	r := &root{certPath: filepath.Join(dir, "root.pem")}
	keyPath := filepath.Join(dir, "root.key")
	certPEM, err := os.ReadFile(r.certPath)
	if errors.Is(err, fs.ErrNotExist) {
		return r, r.create(dir, keyPath)
	}
	if err != nil {
		return nil, err
	}
	keyPEM, err := os.ReadFile(keyPath)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fault.As(fault.Corrupt, fmt.Errorf("reading %s: %w", dir, err))
	}
	r.cert, r.key = pair.Leaf, pair.PrivateKey.(crypto.Signer)
	return r, nil
}

// create makes the authority. The certificate is written last: where it is, the key is.
func (r *root) create(dir, keyPath string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "invar internal authority"},
		NotBefore: now.Add(-clockSkew), NotAfter: now.Add(rootLifetime),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	if r.cert, err = x509.ParseCertificate(der); err != nil {
		return err
	}
	r.key = key
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	if err := os.WriteFile(keyPath, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600); err != nil {
		return err
	}
	return os.WriteFile(r.certPath, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
}

// Issue signs a certificate for the names of the request.
func (r *root) Issue(_ context.Context, csr *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "invar"},
		DNSNames: csr.DNSNames, IPAddresses: csr.IPAddresses,
		NotBefore: now.Add(-clockSkew), NotAfter: now.Add(leafLifetime),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, r.cert, csr.PublicKey, r.key)
	if err != nil {
		return nil, fmt.Errorf("signing a certificate for %v: %w", csr.DNSNames, err)
	}
	return &certmagic.IssuedCertificate{Certificate: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), Metadata: acme.Certificate{}}, nil
}

// IssuerKey names the authority in the store of certificates: a new root gets certificates of its own.
func (r *root) IssuerKey() string { return fmt.Sprintf("internal-%x", r.cert.SerialNumber) }

func serial() *big.Int {
	var b [16]byte
	rand.Read(b[:])
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b[:])
}
