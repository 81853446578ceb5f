// Package oidctest runs an OpenID provider in the test's process: zitadel/oidc's, a certified implementation, with its storage in
// memory, on a port of the loopback. It knows the client "invar" (a public one, for people: code with PKCE, device flow,
// refresh tokens) and the client "ci" (client credentials, whose tokens are signed JWTs with claims about a build).
//
// Users log in with the password "correct horse".
package oidctest

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/zitadel/oidc/v3/pkg/op"
)

// ClientID is the client for people, CI the client of builds.
const (
	ClientID = "invar"
	CI       = "ci"
)

const (
	password = "correct horse"
	ciSecret = "battery staple"
	lifetime = time.Hour // of ID tokens
)

// groups are the users, and what the claim "groups" says of each.
var groups = map[string][]string{
	"alice": {"staff", "release-managers"},
	"bob":   {"staff"},
}

// Provider is one that runs. Its methods may be called concurrently.
type Provider struct {
	URL string // the issuer

	server  *httptest.Server
	store   *store
	down    atomic.Bool
	fetches atomic.Int64
}

// Start runs a provider until it is closed.
func Start() (*Provider, error) {
	p := &Provider{}
	routes := http.NewServeMux()
	p.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p.down.Load() {
			http.Error(w, "down", http.StatusServiceUnavailable)
			return
		}
		if r.URL.Path == "/keys" {
			p.fetches.Add(1)
		}
		routes.ServeHTTP(w, r)
	}))
	p.server.Start()
	p.URL = p.server.URL
	p.store = newStore()
	provider, err := op.NewProvider(&op.Config{
		CryptoKey:             sha256.Sum256([]byte(rand.Text())),
		CodeMethodS256:        true,
		AuthMethodPost:        true,
		GrantTypeRefreshToken: true,
		DeviceAuthorization: op.DeviceAuthorizationConfig{
			Lifetime: 5 * time.Minute, PollInterval: time.Second, UserFormPath: "/device", UserCode: op.UserCodeBase20,
		},
	}, p.store, op.StaticIssuer(p.URL), op.WithAllowInsecure(), op.WithLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		p.server.Close()
		return nil, err
	}
	routes.Handle("/login/", http.StripPrefix("/login", loginForm(p.store, provider)))
	routes.Handle("/", provider)
	return p, nil
}

// loginForm is the page where users enter their password.
func loginForm(s *store, p *op.Provider) http.Handler {
	callback := op.AuthCallbackURL(p)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /username", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `<form method="post" action="/login/username"><input name="id" value="%s"></form>`, r.FormValue("authRequestID"))
	})
	mux.Handle("POST /username", op.NewIssuerInterceptor(p.IssuerFromRequest).HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := s.CheckUsernamePassword(r.FormValue("username"), r.FormValue("password"), r.FormValue("id")); err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		http.Redirect(w, r, callback(r.Context(), r.FormValue("id")), http.StatusFound)
	}))
	return mux
}

// Close ends the provider.
func (p *Provider) Close() { p.server.Close() }

// SetDown has the provider answer nothing but that it is down, or again as it should.
func (p *Provider) SetDown(down bool) { p.down.Store(down) }

// Fetches counts how often the keys were asked for.
func (p *Provider) Fetches() int { return int(p.fetches.Load()) }

// Rotate makes a new signing key. The old one is not published any more.
func (p *Provider) Rotate() { p.store.rotate() }

var formID = regexp.MustCompile(`name="id" value="([^"]*)"`)

// LogIn does what a user with a browser does: follow the address to the login form, fill it in, and follow the way back.
// It returns the page that the browser ends at.
func (p *Provider) LogIn(ctx context.Context, address, user string) (string, error) {
	jar, err := cookiejar.New(nil)
	if err != nil {
		return "", err
	}
	browser := &http.Client{Jar: jar}
	form, err := get(ctx, browser, address)
	if err != nil {
		return "", err
	}
	id := formID.FindStringSubmatch(form)
	if id == nil {
		return form, errors.New("the provider shows no login form")
	}
	return post(ctx, browser, p.URL+"/login/username", url.Values{"id": {id[1]}, "username": {user}, "password": {password}})
}

// Approve does what a user does who was shown a device code; Deny what one does who wasn't.
func (p *Provider) Approve(ctx context.Context, code, user string) error {
	return p.store.CompleteDeviceAuthorization(ctx, code, user)
}

// Deny refuses a device code.
func (p *Provider) Deny(ctx context.Context, code string) error {
	return p.store.DenyDeviceAuthorization(ctx, code)
}

// Workload gets a token by client credentials, as a CI system hands one to a build. Claims are those about the build.
func (p *Provider) Workload(ctx context.Context, audience string, claims map[string]any) (string, error) {
	p.store.setWorkload(audience, claims)
	text, err := post(ctx, http.DefaultClient, p.URL+"/oauth/token", url.Values{
		"grant_type": {"client_credentials"}, "client_id": {CI}, "client_secret": {ciSecret}, "scope": {"openid"},
	})
	if err != nil {
		return "", err
	}
	var answer struct {
		Token string `json:"access_token"`
	}
	err = json.Unmarshal([]byte(text), &answer)
	return answer.Token, err
}

// Sign signs any claims with the provider's own key, for tokens that no provider would give. Header fields may be added or replaced.
func (p *Provider) Sign(header, claims map[string]any) (string, error) {
	key := p.store.current()
	options := (&jose.SignerOptions{}).WithHeader("kid", key.id)
	for name, value := range header {
		options = options.WithHeader(jose.HeaderKey(name), value)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: key.private}, options)
	if err != nil {
		return "", err
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		return "", err
	}
	return signed.CompactSerialize()
}

func get(ctx context.Context, c *http.Client, address string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return "", err
	}
	return do(c, req)
}

func post(ctx context.Context, c *http.Client, address string, form url.Values) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, strings.NewReader(form.Encode()))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return do(c, req)
}

func do(c *http.Client, req *http.Request) (string, error) {
	resp, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answers %d: %s", req.URL.Path, resp.StatusCode, body)
	}
	return string(body), err
}
