package oidc_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/identity"
	"github.com/invarhq/invar/identity/oidc"
	"github.com/invarhq/invar/identity/oidc/oidctest"
)

const audience = "https://invar.bank.example"

func start(t testing.TB) *oidctest.Provider {
	t.Helper()
	p, err := oidctest.Start()
	must(t, err)
	t.Cleanup(p.Close)
	return p
}

func issuers(p *oidctest.Provider) []oidc.Issuer {
	return []oidc.Issuer{{URL: p.URL, Audience: []string{oidctest.ClientID, audience}}}
}

func TestAWorkloadTokenTellsItsClaimsAndItsEvidence(t *testing.T) {
	p := start(t)
	raw, err := p.Workload(t.Context(), audience, map[string]any{"repository": "bank/shop", "environment": "prod", "run": 12})
	must(t, err)
	now := time.Now()
	got, err := oidc.NewVerifier(nil).Verify(t.Context(), issuers(p), raw, now)
	must(t, err)
	if got.Method != identity.OIDC || got.Issuer != p.URL || got.Name != oidctest.CI {
		t.Errorf("got %s %s %s", got.Method, got.Issuer, got.Name)
	}
	rule := map[string][]string{"repository": {"bank/*"}, "environment": {"prod"}, "run": {"12"}}
	if !identity.MatchClaims(rule, got.Claims) {
		t.Errorf("claims %v do not match %v", got.Claims, rule)
	}
	if left := got.ExpiresAt.Sub(now); left <= 0 || left > 6*time.Minute {
		t.Errorf("it expires in %s, want the provider's five minutes", left)
	}
	proof := got.Proof
	if proof.Algorithm != "RS256" || proof.KeyID == "" || len(proof.KeyPrint) != 43 || proof.Token != digest.Of([]byte(raw)) || proof.IssuedAt.IsZero() {
		t.Errorf("evidence: %+v", proof)
	}
}

// Most of these no good provider would give; they are signed with its key all the same.
func TestWhatDoesNotCountIsDeniedWithItsReason(t *testing.T) {
	p := start(t)
	now := time.Now()
	good := map[string]any{"iss": p.URL, "sub": "alice", "aud": audience, "iat": now.Unix(), "exp": now.Add(time.Hour).Unix()}
	with := func(change map[string]any) map[string]any {
		c := maps.Clone(good)
		maps.Copy(c, change)
		maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
		return c
	}
	signed := func(header, claims map[string]any) string {
		raw, err := p.Sign(header, claims)
		must(t, err)
		return raw
	}
	v := oidc.NewVerifier(nil)
	for name, raw := range map[string]string{
		"plain":                    signed(nil, good),
		"expired in the leeway":    signed(nil, with(map[string]any{"exp": now.Add(-30 * time.Second).Unix()})),
		"early in the leeway":      signed(nil, with(map[string]any{"nbf": now.Add(30 * time.Second).Unix()})),
		"for several":              signed(nil, with(map[string]any{"aud": []string{"other", audience}})),
		"for several, given to us": signed(nil, with(map[string]any{"aud": []string{"other", audience}, "azp": oidctest.ClientID})),
		"access token":             signed(map[string]any{"typ": "at+jwt"}, good),
	} {
		if _, err := v.Verify(t.Context(), issuers(p), raw, now); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	parts := strings.Split(signed(nil, good), ".")
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`))
	for name, c := range map[string]struct{ raw, reason string }{
		"expired":                   {signed(nil, with(map[string]any{"exp": now.Add(-2 * time.Minute).Unix()})), "it expired at"},
		"without end":               {signed(nil, with(map[string]any{"exp": nil})), "it never expires"},
		"not yet valid":             {signed(nil, with(map[string]any{"nbf": now.Add(2 * time.Minute).Unix()})), "it is not valid before"},
		"from the future":           {signed(nil, with(map[string]any{"iat": now.Add(2 * time.Minute).Unix()})), "in the future"},
		"for another":               {signed(nil, with(map[string]any{"aud": "someone"})), `it is for ["someone"], not for`},
		"for nobody":                {signed(nil, with(map[string]any{"aud": nil})), "it is for []"},
		"given to another":          {signed(nil, with(map[string]any{"aud": []string{"other", audience}, "azp": "other"})), `given to "other"`},
		"of another issuer":         {signed(nil, with(map[string]any{"iss": "https://evil.example.com"})), "is not known"},
		"of a similar issuer":       {signed(nil, with(map[string]any{"iss": p.URL + "/"})), "is not known"},
		"about nobody":              {signed(nil, with(map[string]any{"sub": nil})), "whom it is about"},
		"bound to a key":            {signed(nil, with(map[string]any{"cnf": map[string]any{"jkt": "x"}})), "bound to a key"},
		"logout token":              {signed(map[string]any{"typ": "logout+jwt"}, good), "for something else"},
		"time as text":              {signed(nil, with(map[string]any{"iat": "yesterday"})), "claims"},
		"none":                      {none + "." + parts[1] + ".", `algorithm "none"`},
		"none with signature":       {none + "." + parts[1] + "." + parts[2], `algorithm "none"`},
		"shared secret":             {hmac(t, p, good), `algorithm "HS256"`},
		"altered":                   {parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"iss":"`+p.URL+`","sub":"root"}`)) + "." + parts[2], "no key of"},
		"another's key":             {foreign(t, "", good), "no key of"},
		"another's key with a name": {foreign(t, "k1", good), "no key of"},
		"no token":                  {"invar_abc", "not a signed JWT"},
		"too large":                 {strings.Repeat("a", 17<<10), "larger than"},
	} {
		_, err := v.Verify(t.Context(), issuers(p), c.raw, now)
		if fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), c.reason) {
			t.Errorf("%s: got %v, want a denial that says %q", name, err, c.reason)
		}
	}
}

func TestAnIssuerMayBeHeldToAlgorithms(t *testing.T) {
	p := start(t)
	raw, err := p.Workload(t.Context(), audience, nil)
	must(t, err)
	only := issuers(p)
	only[0].Algorithms = []string{"ES256"}
	if _, err := oidc.NewVerifier(nil).Verify(t.Context(), only, raw, time.Now()); fault.KindOf(err) != fault.Denied {
		t.Errorf("got %v, want a denial", err)
	}
}

func TestANewKeyIsFoundAndAWithdrawnOneForgotten(t *testing.T) {
	p := start(t)
	v, now := oidc.NewVerifier(nil), time.Now()
	verify := func(raw string, after time.Duration) error {
		_, err := v.Verify(t.Context(), issuers(p), raw, now.Add(after))
		return err
	}
	sign := func() string {
		raw, err := p.Sign(nil, map[string]any{"iss": p.URL, "sub": "alice", "aud": audience, "exp": now.Add(24 * time.Hour).Unix()})
		must(t, err)
		return raw
	}
	old := sign()
	must(t, verify(old, 0))
	p.Rotate()
	fresh := sign()
	if err := verify(fresh, 5*time.Second); fault.KindOf(err) != fault.Denied {
		t.Errorf("asked again within ten seconds: %v", err)
	}
	must(t, verify(old, 5*time.Second))
	must(t, verify(fresh, 11*time.Second))
	if err := verify(old, 12*time.Second); fault.KindOf(err) != fault.Denied {
		t.Errorf("the withdrawn key still counts: %v", err)
	}
	p.Rotate()
	must(t, verify(fresh, 5*time.Minute))
	if err := verify(fresh, 11*time.Minute); fault.KindOf(err) != fault.Denied {
		t.Errorf("the withdrawn key counts after ten minutes: %v", err)
	}
}

func TestAnIssuerThatIsDownMakesTokensUnverifiableAndNotInvalid(t *testing.T) {
	p := start(t)
	v, now := oidc.NewVerifier(nil), time.Now()
	raw, err := p.Sign(nil, map[string]any{"iss": p.URL, "sub": "alice", "aud": audience, "exp": now.Add(24 * time.Hour).Unix()})
	must(t, err)
	verify := func(after time.Duration) error {
		_, err := v.Verify(t.Context(), issuers(p), raw, now.Add(after))
		return err
	}
	p.SetDown(true)
	if err := verify(0); fault.KindOf(err) != fault.Unavailable || !strings.Contains(err.Error(), "503") {
		t.Errorf("got %v, want it unavailable, with the cause", err)
	}
	p.SetDown(false)
	if err := verify(5 * time.Second); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("asked again within ten seconds: %v", err)
	}
	must(t, verify(11*time.Second))
	p.SetDown(true)
	must(t, verify(30*time.Minute)) // the keys are old, and the best there are
	if err := verify(2 * time.Hour); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("keys count without end: %v", err)
	}
	p.SetDown(false)
	must(t, verify(2*time.Hour+11*time.Second))
}

func TestNobodyCanMakeUsFloodAnIssuer(t *testing.T) {
	p := start(t)
	v, now := oidc.NewVerifier(nil), time.Now()
	raw, err := p.Workload(t.Context(), audience, nil)
	must(t, err)
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			bad := foreign(t, fmt.Sprint("made-up-", i), map[string]any{"iss": p.URL})
			if _, err := v.Verify(t.Context(), issuers(p), bad, now); fault.KindOf(err) != fault.Denied {
				t.Errorf("got %v, want a denial", err)
			}
			if _, err := v.Verify(t.Context(), issuers(p), raw, now); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if got := p.Fetches(); got != 1 {
		t.Errorf("100 tokens at once asked for the keys %d times, want once", got)
	}
}

func TestPlainHTTPIsForTheLoopbackOnly(t *testing.T) {
	for _, url := range []string{"http://id.example.com", "ftp://id.example.com", "https://u:p@id.example.com", "nonsense", ""} {
		raw := foreign(t, "", map[string]any{"iss": url})
		_, err := oidc.NewVerifier(nil).Verify(t.Context(), []oidc.Issuer{{URL: url, Audience: []string{audience}}}, raw, time.Now())
		if fault.KindOf(err) != fault.Invalid {
			t.Errorf("%q: got %v, want it refused", url, err)
		}
		if _, err := (oidc.Client{Issuer: url}).Refresh(t.Context(), "x"); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%q: got %v, want it refused", url, err)
		}
	}
}

func TestTokensAreToldFromSecrets(t *testing.T) {
	for secret, want := range map[string]bool{"eyJh.eyJp.c2ln": true, "invar_abcdef": false, "a.b.c": false, "eyJh": false, "": false} {
		if got := oidc.IsToken(secret); got != want {
			t.Errorf("%q: got %t, want %t", secret, got, want)
		}
	}
}

func TestABrowserLogsIn(t *testing.T) {
	p := start(t)
	c := oidc.Client{Issuer: p.URL, ClientID: oidctest.ClientID, Scopes: []string{"email"}}
	page := make(chan string, 1)
	tokens, err := c.Browser(t.Context(), func(address string) error {
		for _, want := range []string{"code_challenge_method=S256", "state=", "nonce=", "redirect_uri=http%3A%2F%2F127.0.0.1%3A"} {
			if !strings.Contains(address, want) {
				t.Errorf("%s lacks %s", address, want)
			}
		}
		go func() { // the person's browser; it ends when the page is there
			text, err := p.LogIn(context.WithoutCancel(t.Context()), address, "alice")
			if err != nil {
				text = err.Error()
			}
			page <- text
		}()
		return nil
	})
	must(t, err)
	if got := <-page; !strings.Contains(got, "go back to the terminal") {
		t.Errorf("the browser shows %s", got)
	}
	checkPerson(t, p, tokens, "alice")

	again, err := c.Refresh(t.Context(), tokens.Refresh)
	must(t, err)
	checkPerson(t, p, again, "alice")
	if _, err := c.Refresh(t.Context(), tokens.Refresh); fault.KindOf(err) != fault.Denied || !strings.Contains(fault.Hint(err), "invar login") {
		t.Errorf("a refresh token works twice: %v", err)
	}
	must(t, c.Revoke(t.Context(), again.Refresh))
	if _, err := c.Refresh(t.Context(), again.Refresh); fault.KindOf(err) != fault.Denied {
		t.Errorf("a revoked refresh token works: %v", err)
	}
}

func checkPerson(t *testing.T, p *oidctest.Provider, tokens oidc.Tokens, name string) {
	t.Helper()
	id, err := oidc.NewVerifier(nil).Verify(t.Context(), issuers(p), tokens.ID, time.Now())
	must(t, err)
	rule := map[string][]string{"email": {name + "@bank.example"}, "email_verified": {"true"}, "groups": {"release-managers"}}
	if id.Name != name || !identity.MatchClaims(rule, id.Claims) || tokens.Refresh == "" || !tokens.ExpiresAt.Equal(id.ExpiresAt) {
		t.Errorf("got %s with %v, want %s with %v, and a refresh token", id.Name, id.Claims, name, rule)
	}
	if id.Proof.AuthTime.IsZero() || len(id.Proof.AMR) == 0 {
		t.Errorf("evidence lacks when and how: %+v", id.Proof)
	}
}

func TestTheCallbackTakesOnlyTheAnswerToItsQuestion(t *testing.T) {
	p := start(t)
	c := oidc.Client{Issuer: p.URL, ClientID: oidctest.ClientID}
	for name, query := range map[string]string{
		"provider says no":     "error=access_denied&error_description=no+way&state=STATE",
		"no code":              "state=STATE",
		"of another provider":  "code=x&state=STATE&iss=https://evil.example.com",
		"code that is made up": "code=x&state=STATE",
	} {
		_, err := c.Browser(t.Context(), func(address string) error {
			redirect, state := parameter(t, address, "redirect_uri"), parameter(t, address, "state")
			if got := status(t, redirect+"?code=x&state=guessed"); got != http.StatusBadRequest {
				t.Errorf("%s: an answer with another state gets %d", name, got)
			}
			status(t, redirect+"?"+strings.Replace(query, "STATE", state, 1))
			return nil
		})
		if fault.KindOf(err) != fault.Denied {
			t.Errorf("%s: got %v, want a denial", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := c.Browser(ctx, func(string) error { cancel(); return nil }); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("nobody comes back: got %v", err)
	}
}

func TestADeviceLogsIn(t *testing.T) {
	p := start(t)
	c := oidc.Client{Issuer: p.URL, ClientID: oidctest.ClientID, Scopes: []string{"email"}}
	tokens, err := c.Device(t.Context(), func(d oidc.DeviceCode) error {
		if !strings.HasPrefix(d.URL, p.URL) || !strings.Contains(d.Complete, d.Code) || d.ExpiresAt.Before(time.Now()) {
			t.Errorf("shown is %+v", d)
		}
		return p.Approve(t.Context(), d.Code, "alice")
	})
	must(t, err)
	id, err := oidc.NewVerifier(nil).Verify(t.Context(), issuers(p), tokens.ID, time.Now())
	must(t, err)
	if id.Name != "alice" {
		t.Errorf("got %s, want alice", id.Name)
	}
	_, err = c.Device(t.Context(), func(d oidc.DeviceCode) error { return p.Deny(t.Context(), d.Code) })
	if fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), "access_denied") {
		t.Errorf("a code that was refused: got %v", err)
	}
}

func TestAProviderThatIsDownIsUnavailable(t *testing.T) {
	p := start(t)
	p.SetDown(true)
	c := oidc.Client{Issuer: p.URL, ClientID: oidctest.ClientID}
	for name, login := range map[string]func() (oidc.Tokens, error){
		"browser": func() (oidc.Tokens, error) { return c.Browser(t.Context(), func(string) error { return nil }) },
		"device":  func() (oidc.Tokens, error) { return c.Device(t.Context(), func(oidc.DeviceCode) error { return nil }) },
		"refresh": func() (oidc.Tokens, error) { return c.Refresh(t.Context(), "x") },
	} {
		if _, err := login(); fault.KindOf(err) != fault.Unavailable || !strings.Contains(err.Error(), p.URL) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func FuzzVerifyNeverPanics(f *testing.F) {
	p := start(f)
	raw, err := p.Sign(nil, map[string]any{"iss": p.URL, "sub": "alice", "aud": audience, "exp": 1 << 33})
	must(f, err)
	f.Add(raw)
	f.Add(strings.Replace(raw, "ey", "eY", 1))
	f.Add("e30.e30.e30")
	v, now := oidc.NewVerifier(nil), time.Now()
	f.Fuzz(func(t *testing.T, token string) {
		if _, err := v.Verify(t.Context(), issuers(p), token, now); err == nil && token != raw {
			t.Errorf("%q counts, and is not what was signed", token)
		}
	})
}

// foreign signs with a key that the provider does not have.
func foreign(t *testing.T, kid string, claims map[string]any) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return sign(t, jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: kid}}, claims)
}

// hmac signs with a shared secret: the oldest way to confuse a verifier is the provider's public key as the secret.
func hmac(t *testing.T, p *oidctest.Provider, claims map[string]any) string {
	t.Helper()
	return sign(t, jose.SigningKey{Algorithm: jose.HS256, Key: []byte(p.URL + p.URL)}, claims)
}

func sign(t *testing.T, key jose.SigningKey, claims map[string]any) string {
	t.Helper()
	s, err := jose.NewSigner(key, nil)
	must(t, err)
	payload := marshal(t, claims)
	signed, err := s.Sign(payload)
	must(t, err)
	raw, err := signed.CompactSerialize()
	must(t, err)
	return raw
}
