package oidc

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"html/template"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/invarhq/invar/fault"
)

// Client logs people in at a provider, as a public client (RFC 8252): it has no secret, and proves with PKCE that
// who asked for the code is who redeems it.
type Client struct {
	Issuer   string
	ClientID string
	Scopes   []string     // asked for beside openid
	HTTP     *http.Client // nil: one with limits of its own
}

// Tokens are what a login yields. The ID token is what is shown to invar's server; the refresh token gets the next one,
// and is for the provider alone.
type Tokens struct {
	ID        string
	Refresh   string    // "": the provider gives none, and the person has to log in again
	ExpiresAt time.Time // of ID
}

// DeviceCode is what a person does to log a machine without a browser in: open URL on any other, and enter Code; or open
// Complete, which has the code in it. Complete may be "".
type DeviceCode struct {
	URL       string
	Complete  string
	Code      string
	ExpiresAt time.Time
}

// session is a client that knows its provider.
type session struct {
	provider *oidc.Provider
	oauth    oauth2.Config
	http     *http.Client
}

// with gives ctx the HTTP client: packages oidc and oauth2 take it from there.
func (s *session) with(ctx context.Context) context.Context { return oidc.ClientContext(ctx, s.http) }

func (c Client) session(ctx context.Context) (*session, error) {
	if err := checkURL(c.Issuer); err != nil {
		return nil, err
	}
	client := c.HTTP
	if client == nil {
		client = newClient()
	}
	p, err := oidc.NewProvider(oidc.ClientContext(ctx, client), c.Issuer)
	if err != nil {
		return nil, fault.As(fault.Unavailable, fmt.Errorf("asking %s how to log in: %w", c.Issuer, err))
	}
	var meta struct {
		Scopes     []string `json:"scopes_supported"`
		Challenges []string `json:"code_challenge_methods_supported"`
	}
	if err := p.Claims(&meta); err != nil {
		return nil, fault.As(fault.Unavailable, fmt.Errorf("asking %s how to log in: %w", c.Issuer, err))
	}
	if meta.Challenges != nil && !slices.Contains(meta.Challenges, "S256") {
		return nil, fault.Errorf(fault.Invalid, "logging in at %s: it can't do PKCE with S256", c.Issuer)
	}
	scopes := append([]string{oidc.ScopeOpenID}, c.Scopes...)
	if slices.Contains(meta.Scopes, oidc.ScopeOfflineAccess) {
		scopes = append(scopes, oidc.ScopeOfflineAccess) // a refresh token
	}
	slices.Sort(scopes)
	endpoint := p.Endpoint()
	endpoint.AuthStyle = oauth2.AuthStyleInParams // there is no secret to authenticate with
	return &session{p, oauth2.Config{ClientID: c.ClientID, Endpoint: endpoint, Scopes: slices.Compact(scopes)}, client}, nil
}

// Browser logs a person in with a browser on this machine: authorization code with PKCE, and a listener on the loopback
// that the provider sends the browser back to. open shows the address to the person or to a browser. It waits as long as ctx does.
func (c Client) Browser(ctx context.Context, open func(address string) error) (Tokens, error) {
	s, err := c.session(ctx)
	if err != nil {
		return Tokens{}, err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return Tokens{}, fault.As(fault.Unavailable, fmt.Errorf("listening for the browser to come back: %w", err))
	}
	s.oauth.RedirectURL = "http://" + l.Addr().String() + callbackPath
	verifier, state, nonce := oauth2.GenerateVerifier(), rand.Text(), rand.Text()
	cb := &callback{state: state, issuer: c.Issuer, result: make(chan result, 1)}
	stop := cb.serve(l)
	defer stop()
	if err := open(s.oauth.AuthCodeURL(state, oauth2.S256ChallengeOption(verifier), oidc.Nonce(nonce))); err != nil {
		return Tokens{}, fmt.Errorf("opening the browser: %w", err)
	}
	select {
	case r := <-cb.result:
		if r.err != nil {
			return Tokens{}, r.err
		}
		t, err := s.oauth.Exchange(s.with(ctx), r.code, oauth2.VerifierOption(verifier))
		return s.tokens(ctx, t, nonce, err)
	case <-ctx.Done():
		return Tokens{}, fault.As(fault.Unavailable, fmt.Errorf("waiting for the browser to come back: %w", ctx.Err()))
	}
}

// Device logs a person in who has a browser on another machine (RFC 8628). It waits as long as ctx and the code do.
func (c Client) Device(ctx context.Context, show func(DeviceCode) error) (Tokens, error) {
	s, err := c.session(ctx)
	if err != nil {
		return Tokens{}, err
	}
	if s.oauth.Endpoint.DeviceAuthURL == "" {
		return Tokens{}, fault.WithHint(fault.Errorf(fault.Invalid, "logging in at %s: it has no device flow", c.Issuer), "log in on a machine with a browser: invar login --oidc")
	}
	d, err := s.oauth.DeviceAuth(s.with(ctx))
	if err != nil {
		return Tokens{}, refused("asking for a device code", err)
	}
	if err := show(DeviceCode{d.VerificationURI, d.VerificationURIComplete, d.UserCode, d.Expiry}); err != nil {
		return Tokens{}, err
	}
	t, err := s.oauth.DeviceAccessToken(s.with(ctx), d)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return Tokens{}, fault.WithHint(fault.Errorf(fault.Denied, "the code %s has expired", d.UserCode), "invar login")
	}
	return s.tokens(ctx, t, "", err)
}

// Refresh gets the next ID token. It fails with fault.Denied when the person has to log in again.
func (c Client) Refresh(ctx context.Context, refresh string) (Tokens, error) {
	s, err := c.session(ctx)
	if err != nil {
		return Tokens{}, err
	}
	t, err := s.oauth.TokenSource(s.with(ctx), &oauth2.Token{RefreshToken: refresh}).Token()
	return s.tokens(ctx, t, "", err)
}

// Revoke has the provider forget a refresh token (RFC 7009), where it can.
func (c Client) Revoke(ctx context.Context, refresh string) error {
	s, err := c.session(ctx)
	if err != nil {
		return err
	}
	var meta struct {
		Revocation string `json:"revocation_endpoint"`
	}
	if err := s.provider.Claims(&meta); err != nil || meta.Revocation == "" {
		return err
	}
	form := url.Values{"token": {refresh}, "token_type_hint": {"refresh_token"}, "client_id": {c.ClientID}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, meta.Revocation, strings.NewReader(form.Encode()))
	if err != nil {
		return fault.As(fault.Invalid, err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := s.http.Do(req)
	if err != nil {
		return fault.As(fault.Unavailable, fmt.Errorf("revoking the refresh token: %w", err))
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fault.Errorf(fault.Unavailable, "revoking the refresh token: %s answers with status %d", meta.Revocation, resp.StatusCode)
	}
	return nil
}

// tokens takes what the provider's token endpoint gave, and checks the ID token. nonce "" is none: the flow has no place for one.
func (s *session) tokens(ctx context.Context, t *oauth2.Token, nonce string, err error) (Tokens, error) {
	if err != nil {
		return Tokens{}, refused("getting a token", err)
	}
	raw, _ := t.Extra("id_token").(string)
	if raw == "" {
		return Tokens{}, fault.WithHint(fault.Errorf(fault.Denied, "the provider gave no ID token"), "log in again: invar login")
	}
	id, err := s.provider.Verifier(&oidc.Config{ClientID: s.oauth.ClientID, SupportedSigningAlgs: algorithms}).Verify(s.with(ctx), raw)
	if err != nil {
		return Tokens{}, fault.As(fault.Denied, fmt.Errorf("the provider's ID token: %w", err))
	}
	if nonce != "" && subtle.ConstantTimeCompare([]byte(id.Nonce), []byte(nonce)) == 0 {
		return Tokens{}, fault.Errorf(fault.Denied, "the provider's ID token is an answer to another login (nonce)")
	}
	return Tokens{ID: raw, Refresh: t.RefreshToken, ExpiresAt: id.Expiry}, nil
}

// refused gives what the provider says, or the network, its kind.
func refused(doing string, err error) error {
	kind := fault.Unavailable
	if e, ok := errors.AsType[*oauth2.RetrieveError](err); ok && e.Response != nil && e.Response.StatusCode < 500 {
		kind = fault.Denied
		if e.ErrorCode != "" {
			err = fmt.Errorf("the provider says %s %s", e.ErrorCode, e.ErrorDescription)
		}
	}
	return fault.WithHint(fault.As(kind, fmt.Errorf("%s: %w", doing, err)), "invar login")
}

const callbackPath = "/callback"

// callback is where the provider sends the browser back to.
type callback struct {
	state, issuer string
	result        chan result // takes the first answer to our question
}

type result struct {
	code string
	err  error
}

// serve answers the browser until stop is called.
func (c *callback) serve(l net.Listener) (stop func()) {
	mux := http.NewServeMux()
	mux.Handle("GET "+callbackPath, c)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l) // ends with Shutdown
	}()
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second) // the browser's page is on its way
		defer cancel()
		if srv.Shutdown(ctx) != nil {
			srv.Close()
		}
		<-done
	}
}

func (c *callback) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
	w.Header().Set("Referrer-Policy", "no-referrer")
	w.Header().Set("Cache-Control", "no-store")
	if subtle.ConstantTimeCompare([]byte(q.Get("state")), []byte(c.state)) == 0 {
		page(w, http.StatusBadRequest, "This is no answer to a login that invar waits for.") // and invar waits on
		return
	}
	got := c.read(q)
	select {
	case c.result <- got:
	default: // it had its answer
	}
	if got.err != nil {
		page(w, http.StatusForbidden, got.err.Error())
		return
	}
	page(w, http.StatusOK, "You can close this page and go back to the terminal.")
}

func (c *callback) read(q url.Values) result {
	switch {
	case q.Get("iss") != "" && q.Get("iss") != c.issuer: // RFC 9207
		return result{err: fault.Errorf(fault.Denied, "the answer comes from %.200q, not from %s", q.Get("iss"), c.issuer)}
	case q.Get("error") != "":
		return result{err: fault.Errorf(fault.Denied, "the provider says %.100s %.300s", q.Get("error"), q.Get("error_description"))}
	case q.Get("code") == "":
		return result{err: fault.Errorf(fault.Denied, "the provider's answer has no code")}
	}
	return result{code: q.Get("code")}
}

var pageTemplate = template.Must(template.New("").Parse(`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>invar</title><style>body{font:1.1rem system-ui;margin:4rem auto;max-width:36rem}</style></head>
<body><h1>invar</h1><p>{{.}}</p></body></html>
`))

func page(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_ = pageTemplate.Execute(w, text) // the browser has gone when this fails
}
