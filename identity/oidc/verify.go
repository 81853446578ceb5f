// Package oidc takes tokens of OpenID providers: the server verifies them, and the command line gets them.
//
// What is verified is a signed JWT (RFC 7519): the ID token of a person who logged in, or the token that a CI system or an
// orchestrator gives to a workload. The provider's keys are found by discovery (OpenID Connect Discovery 1.0) when the first token
// comes, kept for ten minutes, and asked for again when a token names a key that is not there, at most every ten seconds:
// so a key that the provider withdraws is not taken for long, and nobody can make us flood a provider. While the provider does not
// answer, keys up to an hour old are still good.
//
// A token counts from its nbf and iat on and until its exp, each with a minute of leeway for clocks that differ. It must be
// meant for us (aud) and signed with an asymmetric algorithm; "none" and shared secrets never are.
package oidc

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/identity"
)

// Limits of a token.
const (
	maxTokenBytes = 16 << 10
	leeway        = time.Minute
)

// algorithms are those that a token may be signed with.
var algorithms = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}

// types are what a token's header may call it. It keeps out what is signed with the same keys for another purpose,
// such as logout tokens (RFC 8725, section 3.11).
var types = []string{"", "jwt", "at+jwt", "application/at+jwt"}

// Issuer is an OpenID provider whose tokens are taken.
type Issuer struct {
	URL        string   // exactly as in the token's iss
	Audience   []string // a token must be for one of these
	Algorithms []string // nil: every asymmetric one
}

// Verifier verifies tokens, and remembers the keys of their issuers. Its methods may be called concurrently.
type Verifier struct {
	http *http.Client

	mu   sync.Mutex
	sets map[string]*keySet // by issuer
}

// NewVerifier returns a Verifier. A nil client is one with limits of its own.
func NewVerifier(client *http.Client) *Verifier {
	if client == nil {
		client = newClient()
	}
	return &Verifier{http: client, sets: map[string]*keySet{}}
}

// IsToken reports whether a bearer's secret looks like a token of a provider: three parts with dots between.
func IsToken(secret string) bool {
	return strings.HasPrefix(secret, "ey") && strings.Count(secret, ".") == 2
}

// Verify returns whom the token is about. It fails with fault.Denied and the reason when the token does not count, and with
// fault.Unavailable when its issuer can't be asked for its keys.
func (v *Verifier) Verify(ctx context.Context, issuers []Issuer, raw string, now time.Time) (identity.Identity, error) {
	head, err := readHead(raw)
	if err != nil {
		return identity.Identity{}, err
	}
	i := slices.IndexFunc(issuers, func(i Issuer) bool { return i.URL == head.Issuer })
	if i < 0 {
		return identity.Identity{}, fault.WithHint(denied("the issuer %.200q is not known", head.Issuer),
			"the platform's definition lists the issuers whose tokens are taken")
	}
	issuer := issuers[i]
	if err := issuer.checkHead(head); err != nil {
		return identity.Identity{}, err
	}
	set, err := v.set(issuer.URL)
	if err != nil {
		return identity.Identity{}, err
	}
	a := &attempt{set: set, head: head, now: now}
	config := &oidc.Config{SkipClientIDCheck: true, SkipExpiryCheck: true, SupportedSigningAlgs: []string{head.Algorithm}}
	token, err := oidc.NewVerifier(issuer.URL, a, config).Verify(ctx, raw)
	switch {
	case a.err != nil:
		return identity.Identity{}, a.err
	case err != nil:
		return identity.Identity{}, denied("%w", err)
	}
	return issuer.identity(token, a, raw, now)
}

func denied(format string, args ...any) error {
	return fault.Errorf(fault.Denied, "token: "+format, args...)
}

// set returns the keys of an issuer, which may have to be fetched yet.
func (v *Verifier) set(issuer string) (*keySet, error) {
	if err := checkURL(issuer); err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.sets[issuer]
	if s == nil {
		s = &keySet{http: v.http, issuer: issuer}
		v.sets[issuer] = s
	}
	return s, nil
}

// head is what a token says before anything of it is believed.
type head struct {
	Algorithm string
	KeyID     string
	Type      string
	Issuer    string
}

func readHead(raw string) (head, error) {
	if len(raw) > maxTokenBytes {
		return head{}, denied("larger than %d bytes", maxTokenBytes)
	}
	parts := strings.Split(raw, ".")
	if len(parts) != 3 {
		return head{}, denied("not a signed JWT: %d parts, want 3", len(parts))
	}
	var h struct {
		Algorithm string `json:"alg"`
		KeyID     string `json:"kid"`
		Type      string `json:"typ"`
	}
	var c struct {
		Issuer string `json:"iss"`
	}
	if err := decodePart(parts[0], &h); err != nil {
		return head{}, denied("its header: %w", err)
	}
	if err := decodePart(parts[1], &c); err != nil {
		return head{}, denied("its claims: %w", err)
	}
	return head{h.Algorithm, h.KeyID, h.Type, c.Issuer}, nil
}

func (i Issuer) checkHead(h head) error {
	allowed := algorithms
	if i.Algorithms != nil {
		allowed = i.Algorithms
	}
	if !slices.Contains(algorithms, h.Algorithm) || !slices.Contains(allowed, h.Algorithm) {
		return denied("signed with algorithm %.40q, which is not taken", h.Algorithm)
	}
	if !slices.Contains(types, strings.ToLower(h.Type)) {
		return denied("it is of type %.40q, which is for something else", h.Type)
	}
	return nil
}

// claims are those that have a meaning here.
type claims struct {
	Expiry          seconds         `json:"exp"`
	NotBefore       seconds         `json:"nbf"`
	IssuedAt        seconds         `json:"iat"`
	AuthTime        seconds         `json:"auth_time"`
	AuthorizedParty string          `json:"azp"`
	ACR             string          `json:"acr"`
	AMR             []string        `json:"amr"`
	Confirmation    json.RawMessage `json:"cnf"`
}

// seconds is a NumericDate (RFC 7519, section 2); zero when it is not there.
type seconds struct{ time.Time }

func (s *seconds) UnmarshalJSON(b []byte) error {
	var f float64
	if err := json.Unmarshal(b, &f); err != nil {
		return err
	}
	if f <= 0 || f > 1<<36 {
		return fmt.Errorf("%s is not a time", b)
	}
	s.Time = time.Unix(int64(f), 0).UTC()
	return nil
}

// identity checks the claims of a token whose signature is good.
func (i Issuer) identity(token *oidc.IDToken, a *attempt, raw string, now time.Time) (identity.Identity, error) {
	var c claims
	if err := token.Claims(&c); err != nil {
		return identity.Identity{}, denied("its claims: %w", err)
	}
	if err := c.checkTimes(now); err != nil {
		return identity.Identity{}, err
	}
	ours := slices.ContainsFunc(token.Audience, func(aud string) bool { return slices.Contains(i.Audience, aud) })
	switch {
	case !ours:
		return identity.Identity{}, denied("it is for %.200q, not for %q", token.Audience, i.Audience)
	case len(token.Audience) > 1 && c.AuthorizedParty != "" && !slices.Contains(i.Audience, c.AuthorizedParty):
		return identity.Identity{}, denied("it is for several, and was given to %.200q, not to %q", c.AuthorizedParty, i.Audience)
	case token.Subject == "":
		return identity.Identity{}, denied("it does not say whom it is about (sub)")
	case len(c.Confirmation) > 0:
		return identity.Identity{}, denied("it is bound to a key (cnf), and can't be used as a bearer token")
	}
	all, err := allClaims(a.payload)
	if err != nil {
		return identity.Identity{}, denied("its claims: %w", err)
	}
	return identity.Identity{
		Method: identity.OIDC, Name: token.Subject, Issuer: i.URL, Claims: all, ExpiresAt: c.Expiry.Time,
		Proof: identity.Proof{
			Algorithm: a.head.Algorithm, Token: digest.Of([]byte(raw)), KeyID: a.head.KeyID, KeyPrint: a.print,
			IssuedAt: c.IssuedAt.Time, AuthTime: c.AuthTime.Time, ACR: c.ACR, AMR: c.AMR,
		},
	}, nil
}

func (c claims) checkTimes(now time.Time) error {
	switch {
	case c.Expiry.IsZero():
		return denied("it never expires (exp)")
	case !now.Before(c.Expiry.Add(leeway)):
		return fault.WithHint(denied("it expired at %s", c.Expiry.Format(time.RFC3339)), "get a new one: invar login")
	case now.Add(leeway).Before(c.NotBefore.Time):
		return denied("it is not valid before %s (nbf)", c.NotBefore.Format(time.RFC3339))
	case now.Add(leeway).Before(c.IssuedAt.Time):
		return denied("it was issued at %s, which is in the future (iat)", c.IssuedAt.Format(time.RFC3339))
	}
	return nil
}

// allClaims keeps numbers as they are written.
func allClaims(payload []byte) (map[string]any, error) {
	d := json.NewDecoder(bytes.NewReader(payload))
	d.UseNumber()
	var all map[string]any
	err := d.Decode(&all)
	return all, err
}

// attempt verifies the signature of one token, and remembers by which key or why not: package oidc passes on neither.
type attempt struct {
	set  *keySet
	head head
	now  time.Time

	payload []byte
	print   string
	err     error
}

// VerifySignature implements oidc.KeySet.
func (a *attempt) VerifySignature(ctx context.Context, raw string) ([]byte, error) {
	jws, err := jose.ParseSignedCompact(raw, []jose.SignatureAlgorithm{jose.SignatureAlgorithm(a.head.Algorithm)})
	if err != nil {
		return nil, err
	}
	a.payload, a.print, a.err = a.set.verify(ctx, jws, a.now)
	return a.payload, a.err
}
