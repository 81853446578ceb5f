package handler

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/control"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/identity"
	"github.com/invarhq/invar/identity/challenge"
	"github.com/invarhq/invar/state"
)

// sessionLifetime is how long a login with an SSH key counts.
const sessionLifetime = 12 * time.Hour

// sessionName is the name of the token that a session is.
const sessionName = "login"

func (h *Handler) registerLogin() {
	everybody := []map[string][]string{{}}
	register(h, huma.Operation{
		OperationID: "get-login", Method: http.MethodGet, Path: api.PathLogin, Tags: []string{tagLogin}, Security: everybody,
		Summary: "Tell how one may log in", Description: "Needs no token.",
	}, func(context.Context, *struct{}) (*body[api.LoginWays], error) { return answerWith(h.loginWays(), nil) })
	register(h, huma.Operation{
		OperationID: "ask-challenge", Method: http.MethodPost, Path: api.PathLoginSSH, Tags: []string{tagLogin}, Security: everybody,
		Summary: "Ask for a challenge to sign", Description: "Needs no token. The challenge names this server as the client reached it, is taken back for two minutes, and counts once.",
	}, func(ctx context.Context, in *reached) (*body[api.LoginChallenge], error) {
		return answerWith(h.ask(ctx, in))
	})
	register(h, huma.Operation{
		OperationID: "log-in", Method: http.MethodPost, Path: api.PathLoginSession, Tags: []string{tagLogin}, Security: everybody, DefaultStatus: http.StatusCreated,
		Summary: "Log in with a signed challenge", Description: "Needs no token. The session ends after 12 hours, or when its token is revoked.",
	}, func(ctx context.Context, in *struct {
		reached
		Body api.LoginRequest
	}) (*body[api.Session], error) {
		return answerWith(h.logIn(ctx, &in.reached, in.Body))
	})
}

// loginWays is what the platform's definition says.
func (h *Handler) loginWays() api.LoginWays {
	rules, ok := h.config.Control.State().Platform()
	out := api.LoginWays{SSH: ok, Issuers: []api.LoginIssuer{}}
	for _, i := range rules.Issuers {
		if i.ClientID != "" && h.config.OIDC != nil {
			out.Issuers = append(out.Issuers, api.LoginIssuer{Name: i.Name, URL: i.URL, ClientID: i.ClientID, Scopes: append([]string{}, i.Scopes...)})
		}
	}
	return out
}

// reached is how a request reached us.
type reached struct {
	host, source string
	local        net.Addr
}

// Resolve implements huma.Resolver.
func (r *reached) Resolve(ctx huma.Context) []error {
	r.host, r.source = strings.ToLower(ctx.Host()), sourceOf(ctx.RemoteAddr())
	r.local, _ = ctx.Context().Value(http.LocalAddrContextKey).(net.Addr)
	return nil
}

// name returns the server's name for challenges. Names that anybody could give to a server of his own (addresses,
// localhost) are ours only when the connection ends at that very address.
func (r *reached) name(names []string) (string, error) {
	tcp, ok := r.local.(*net.TCPAddr)
	if !ok {
		return "", fault.WithHint(fault.Errorf(fault.Invalid, "logging in over the unix socket: there the kernel says who you are"), "use the socket without logging in")
	}
	host, port := r.host, ""
	if h, p, err := net.SplitHostPort(r.host); err == nil {
		host, port = h, p
	}
	if slices.Contains(names, strings.TrimSuffix(host, ".")) {
		return r.host, nil
	}
	at := tcp.AddrPort()
	if samePort(port, at.Port()) && sameHost(strings.Trim(host, "[]"), at.Addr().Unmap()) {
		return r.host, nil
	}
	return "", fault.WithHint(fault.Errorf(fault.Denied, "logging in to %q: this server is reached at %s, and takes no login under another address", r.host, at),
		"use the server's own address; a tunnel must end at the same address and port on this machine")
}

func samePort(text string, port uint16) bool {
	if text == "" {
		return port == 80 || port == 443
	}
	return text == strconv.Itoa(int(port))
}

func sameHost(host string, at netip.Addr) bool {
	if host == "localhost" {
		return at.IsLoopback()
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap() == at
}

// ask gives a challenge out.
func (h *Handler) ask(_ context.Context, from *reached) (api.LoginChallenge, error) {
	name, err := from.name(h.config.Names)
	if err != nil {
		return api.LoginChallenge{}, err
	}
	c, err := h.desk.Issue(rand.Reader, name, time.Now())
	return api.LoginChallenge{Challenge: c.String(), Namespace: challenge.Namespace, ExpiresAt: c.ExpiresAt}, err
}

// logIn makes a session for whoever signed a challenge, and has the ledger know of whoever did so in vain.
func (h *Handler) logIn(ctx context.Context, from *reached, in api.LoginRequest) (api.Session, error) {
	name, err := from.name(h.config.Names)
	if err != nil {
		return api.Session{}, err
	}
	var who control.Caller
	_, err = h.desk.Redeem(in.Challenge, in.Signature, name, time.Now(), func(id identity.Identity) error {
		who, err = h.config.Control.Identify(id)
		return err
	})
	if fault.KindOf(err) == fault.Denied {
		by := who.Actor
		if by.Name == "" {
			by = state.Actor{Kind: state.ActorUnknown, Name: from.source}
		}
		h.config.Control.Refused(ctx, by, "", state.AccessDenied{Operation: "log-in", Source: from.source, Cause: err.Error()})
	}
	if err != nil {
		return api.Session{}, fmt.Errorf("logging in: %w", err)
	}
	t, secret, err := h.config.Control.CreateToken(ctx, who, sessionName, control.Scope{Lifetime: sessionLifetime, Session: true})
	if err != nil {
		return api.Session{}, err
	}
	return api.Session{ID: string(t.ID), Principal: string(t.Principal), Token: secret, ExpiresAt: t.ExpiresAt}, nil
}
