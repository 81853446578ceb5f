package handler

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/control"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/identity"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
)

// public paths need no token: they tell nothing of what runs, or are how one gets a token.
func public(path string) bool {
	switch path {
	case api.PathHealth, api.PathOpenAPI, api.PathDocs, api.PathLogin, api.PathLoginSSH, api.PathLoginSession:
		return true
	}
	return false
}

// door tells who somebody is. Its errors are of kind fault.Denied when that is nobody.
type door interface {
	Identify(id identity.Identity) (control.Caller, error)
	IdentifyToken(secret string) (control.Caller, error)
	Refused(ctx context.Context, by state.Actor, env spec.EnvName, d state.AccessDenied)
}

// guard is what every request passes first: is it for us, who asks, in which version?
type guard struct {
	version string
	names   []string // by which we are reached over TCP, beside addresses and localhost
	door    door
	oidc    func(ctx context.Context, token string) (identity.Identity, error) // nil: tokens of OpenID providers are not taken
	next    http.Handler
	cross   *http.CrossOriginProtection
}

func (g *guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set(api.HeaderVersion, g.version)
	h.Set(api.HeaderLevel, strconv.Itoa(api.Level))
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")

	peer, local := peerFrom(r.Context())
	if !local {
		if p := g.checkOrigin(r); p != nil {
			writeProblem(w, p)
			return
		}
	}
	if !public(r.URL.Path) {
		who, p := g.authenticate(r, peer, local)
		if p != nil {
			if p.Status == http.StatusUnauthorized {
				h.Set("WWW-Authenticate", authenticateBy(r.URL.Path))
			}
			writeProblem(w, p)
			return
		}
		r = r.WithContext(context.WithValue(r.Context(), callerKey{}, who))
	}
	if err := g.checkLevel(r); err != nil {
		writeProblem(w, new(api.ProblemOf(err)))
		return
	}
	g.next.ServeHTTP(w, r)
}

// checkOrigin refuses what a web page elsewhere makes a browser send: under a host name of its own that it
// lets resolve to us (DNS rebinding), or across origins.
func (g *guard) checkOrigin(r *http.Request) *api.Problem {
	if !g.ours(r.Host) {
		return new(api.ProblemOf(fault.WithHint(
			fault.Errorf(fault.Denied, "this server does not answer to the name %q", r.Host),
			"use its address, or localhost")))
	}
	if err := g.cross.Check(r); err != nil {
		return new(api.ProblemOf(fault.As(fault.Denied, err)))
	}
	return nil
}

// ours reports whether the Host header is one by which we are meant to be reached. An address can't be
// made to resolve elsewhere, so every address is.
func (g *guard) ours(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return true
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	return host == "localhost" || slices.Contains(g.names, host)
}

// authenticate returns who asks.
func (g *guard) authenticate(r *http.Request, peer Peer, local bool) (caller, *api.Problem) {
	if local {
		c, err := g.door.Identify(peer.identity())
		if err != nil {
			g.refused(r, c.Actor, "local", err)
			return caller{}, new(api.ProblemOf(err))
		}
		return caller{c, "local"}, nil
	}
	source := sourceOf(r.RemoteAddr)
	secret, ok := secretOf(r)
	if !ok {
		return caller{}, unauthorized("the request carries no token")
	}
	c, err := g.identify(r.Context(), secret)
	switch {
	case fault.KindOf(err) == fault.Denied:
		g.refused(r, c.Actor, source, err)
		return caller{}, unauthorized(err.Error())
	case err != nil:
		return caller{}, new(api.ProblemOf(err))
	}
	return caller{c, source}, nil
}

// sourceOf returns the address that a request came from, without its port.
func sourceOf(remote string) string {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		return remote
	}
	return host
}

// identify returns who the bearer of a token is: one of ours, or one of an OpenID provider's.
func (g *guard) identify(ctx context.Context, secret string) (control.Caller, error) {
	if g.oidc == nil || !looksLikeJWT(secret) {
		return g.door.IdentifyToken(secret)
	}
	id, err := g.oidc(ctx, secret)
	if err != nil {
		return control.Caller{}, err
	}
	return g.door.Identify(id)
}

// refused has the ledger know of a credential that let nobody in. A request without any is no attempt: registry clients
// begin with one.
func (g *guard) refused(r *http.Request, by state.Actor, source string, err error) {
	if by.Name == "" {
		by = state.Actor{Kind: state.ActorUnknown, Name: source}
	}
	g.door.Refused(r.Context(), by, "", state.AccessDenied{Operation: "authenticate", Source: source, Cause: err.Error()})
}

func unauthorized(detail string) *api.Problem {
	return new(api.ProblemOfStatus(http.StatusUnauthorized, "Unauthorized", detail,
		"log in: invar login; programs show a token: INVAR_TOKEN, INVAR_ID_TOKEN or --token-file"))
}

// secretOf finds the token: a bearer token (RFC 6750), or the password of basic authentication, which is
// what registry clients know.
func secretOf(r *http.Request) (string, bool) {
	scheme, value, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if strings.EqualFold(scheme, "Bearer") && value != "" {
		return value, true
	}
	_, password, ok := r.BasicAuth()
	return password, ok && password != ""
}

// authenticateBy says how to authenticate. A registry client takes "Bearer" for a token service that we don't have.
func authenticateBy(path string) string {
	if strings.HasPrefix(path, api.PathRegistry) {
		return `Basic realm="invar", charset="UTF-8"`
	}
	return `Bearer realm="invar"`
}

// checkLevel refuses a client of the API that is too old or too new, before anything is decoded. Who doesn't
// tell a level, such as curl, is taken to speak ours.
func (g *guard) checkLevel(r *http.Request) error {
	header := r.Header.Get(api.HeaderLevel)
	if header == "" || !strings.HasPrefix(r.URL.Path, "/v1/") {
		return nil
	}
	level, err := api.ParseLevel(header)
	if err != nil {
		return err
	}
	client := r.Header.Get(api.HeaderVersion)
	if client == "" {
		client = "of an unknown version"
	}
	return api.Levels{Min: api.MinLevel, Max: api.Level}.Check(level, client, g.version)
}

// writeProblem answers with a problem document.
func writeProblem(w http.ResponseWriter, p *api.Problem) {
	w.Header().Set("Content-Type", api.TypeProblem)
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // the client has gone when this fails
}

// unmatched answers requests that no pattern of the mux takes, as a problem: 404 or 405.
func unmatched(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h, pattern := mux.Handler(r)
		if pattern != "" {
			mux.ServeHTTP(w, r)
			return
		}
		probe := &statusProbe{header: make(http.Header)}
		h.ServeHTTP(probe, r)
		if allow := probe.header.Get("Allow"); allow != "" {
			w.Header().Set("Allow", allow)
			writeProblem(w, new(api.ProblemOfStatus(http.StatusMethodNotAllowed, "Method not allowed",
				r.Method+" is not an operation of "+r.URL.Path, "allowed are "+allow)))
			return
		}
		writeProblem(w, new(api.ProblemOf(fault.WithHint(
			fault.Errorf(fault.NotFound, "there is nothing at %s", r.URL.Path), "the operations are listed at "+api.PathDocs))))
	})
}

// statusProbe takes an answer and keeps its header alone.
type statusProbe struct{ header http.Header }

func (p *statusProbe) Header() http.Header         { return p.header }
func (p *statusProbe) WriteHeader(int)             {}
func (p *statusProbe) Write(b []byte) (int, error) { return len(b), nil }
