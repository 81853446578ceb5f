package oidc

import (
	"context"
	"crypto"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"

	"github.com/invarhq/invar/fault"
)

// How long keys of an issuer count, and how often it is asked.
const (
	keysFresh    = 10 * time.Minute // asked for again after this
	keysStale    = time.Hour        // not used any more after this, when the issuer does not answer
	askAgain     = 10 * time.Second // between two attempts
	fetchTimeout = 10 * time.Second

	maxAnswerBytes = 1 << 20
	maxKeys        = 100
	minRSABits     = 2048
)

// keySet is the keys of one issuer. One caller fetches; others wait for it, unless keys that still count are there.
type keySet struct {
	http   *http.Client
	issuer string

	mu      sync.Mutex
	keys    []jose.JSONWebKey // never changed, only replaced; nil: none yet
	fetched time.Time         // when keys were
	tried   time.Time         // last attempt
	failure error             // of the last attempt
	busy    chan struct{}     // closed when the attempt under way is over; nil: none is
}

// verify returns the payload, and the thumbprint of the key that it is signed with.
func (s *keySet) verify(ctx context.Context, jws *jose.JSONWebSignature, now time.Time) (payload []byte, print string, err error) {
	for _, force := range []bool{false, true} { // an unknown key may be a new one
		keys, err := s.get(ctx, now, force)
		if err != nil {
			return nil, "", err
		}
		if payload, print, ok := verifyWith(keys, jws); ok {
			return payload, print, nil
		}
	}
	return nil, "", denied("no key of %s verifies its signature (kid %.80q)", s.issuer, jws.Signatures[0].Header.KeyID)
}

func verifyWith(keys []jose.JSONWebKey, jws *jose.JSONWebSignature) (payload []byte, print string, ok bool) {
	h := jws.Signatures[0].Header
	for _, k := range keys {
		if h.KeyID != "" && h.KeyID != k.KeyID || k.Algorithm != "" && k.Algorithm != h.Algorithm {
			continue
		}
		payload, err := jws.Verify(&k)
		if err != nil {
			continue
		}
		sum, err := k.Thumbprint(crypto.SHA256)
		if err != nil {
			continue // of a kind that has none, so not verified with it either
		}
		return payload, base64.RawURLEncoding.EncodeToString(sum), true
	}
	return nil, "", false
}

// get returns the keys. With force it asks the issuer, unless it did so a moment ago.
func (s *keySet) get(ctx context.Context, now time.Time, force bool) ([]jose.JSONWebKey, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		age := now.Sub(s.fetched)
		usable := s.keys != nil && age < keysStale
		switch {
		case usable && age < keysFresh && !force, usable && s.busy != nil && !force:
			return s.keys, nil
		case s.busy != nil:
			if err := s.wait(ctx); err != nil {
				return nil, err
			}
		case now.Sub(s.tried) < askAgain:
			if usable && (!force || s.failure == nil) {
				return s.keys, nil
			}
			return nil, s.unavailable()
		default:
			s.fetch(ctx, now)
		}
	}
}

// wait waits for the attempt under way. The lock is held before and after, and not meanwhile.
func (s *keySet) wait(ctx context.Context) error {
	busy := s.busy
	s.mu.Unlock()
	defer s.mu.Lock()
	select {
	case <-busy:
		return nil
	case <-ctx.Done():
		return fault.As(fault.Unavailable, fmt.Errorf("waiting for the keys of %s: %w", s.issuer, ctx.Err()))
	}
}

// fetch asks the issuer. The lock is held before and after, and not meanwhile. It goes on when its caller has gone:
// others may wait for it.
func (s *keySet) fetch(ctx context.Context, now time.Time) {
	s.busy = make(chan struct{})
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), fetchTimeout)
	keys, err := fetchKeys(ctx, s.http, s.issuer)
	cancel()
	s.mu.Lock()
	s.tried, s.failure = now, err
	if err == nil {
		s.keys, s.fetched = keys, now
	}
	close(s.busy)
	s.busy = nil
}

func (s *keySet) unavailable() error {
	return fault.WithHint(fault.Errorf(fault.Unavailable, "asking %s for its keys: %w", s.issuer, s.failure),
		"tokens of %s count again when the server can reach it", s.issuer)
}

// fetchKeys finds an issuer's keys by discovery.
func fetchKeys(ctx context.Context, client *http.Client, issuer string) ([]jose.JSONWebKey, error) {
	p, err := oidc.NewProvider(oidc.ClientContext(ctx, client), issuer)
	if err != nil {
		return nil, err
	}
	var meta struct {
		Keys string `json:"jwks_uri"`
	}
	if err := p.Claims(&meta); err != nil {
		return nil, err
	}
	if err := checkURL(meta.Keys); err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, meta.Keys, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers with status %d", meta.Keys, resp.StatusCode)
	}
	return parseKeys(body)
}

// parseKeys reads a JWK set (RFC 7517), and leaves out what can't verify signatures here: other uses, weak and secret keys, kinds
// that are not known.
func parseKeys(body []byte) ([]jose.JSONWebKey, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(body, &set); err != nil {
		return nil, fmt.Errorf("its keys: %w", err)
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("it has %d keys; at most %d are read", len(set.Keys), maxKeys)
	}
	keys := []jose.JSONWebKey{}
	for _, raw := range set.Keys {
		var k jose.JSONWebKey
		if json.Unmarshal(raw, &k) == nil && signs(k) {
			keys = append(keys, k)
		}
	}
	return keys, nil
}

func signs(k jose.JSONWebKey) bool {
	if r, ok := k.Key.(*rsa.PublicKey); ok && r.N.BitLen() < minRSABits {
		return false
	}
	return k.IsPublic() && k.Valid() && (k.Use == "" || k.Use == "sig") && (k.Algorithm == "" || slices.Contains(algorithms, k.Algorithm))
}

// checkURL refuses what could be read or altered on the way.
func checkURL(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil || u.Fragment != "" {
		return fault.Errorf(fault.Invalid, "OpenID provider: %.200q is not a URL", text)
	}
	if u.Scheme == "https" || u.Scheme == "http" && loopback(u.Hostname()) {
		return nil
	}
	return fault.Errorf(fault.Invalid, "OpenID provider: %.200q has to be https", text)
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// newClient returns a client for providers: it follows no redirects, and reads answers of a bounded size.
func newClient() *http.Client {
	return &http.Client{
		Timeout:   fetchTimeout,
		Transport: bounded{http.DefaultTransport},
		CheckRedirect: func(r *http.Request, _ []*http.Request) error {
			return fmt.Errorf("it redirects to %s, which is not followed", r.URL.Redacted())
		},
	}
}

// bounded cuts answers off at maxAnswerBytes.
type bounded struct{ next http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.next.RoundTrip(r)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxAnswerBytes), resp.Body}
	}
	return resp, err
}

func decodePart(text string, into any) error {
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, into)
}
