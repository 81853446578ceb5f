package identity

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestClaimsMatchByEveryNamedClaim(t *testing.T) {
	claims := map[string]any{
		"repository": "bank/shop", "ref": "refs/heads/main", "verified": true, "run": float64(12),
		"groups": []any{"dev", "ops"}, "org": map[string]any{"unit": "payments"}, "a.b": "dotted",
	}
	for _, c := range []struct {
		name string
		rule map[string][]string
		want bool
	}{
		{"one claim", map[string][]string{"repository": {"bank/shop"}}, true},
		{"one of several values", map[string][]string{"repository": {"bank/web", "bank/*"}}, true},
		{"all claims must match", map[string][]string{"repository": {"bank/shop"}, "ref": {"refs/tags/*"}}, false},
		{"a member of a list", map[string][]string{"groups": {"ops"}}, true},
		{"no member of a list", map[string][]string{"groups": {"admin"}}, false},
		{"a boolean", map[string][]string{"verified": {"true"}}, true},
		{"a number", map[string][]string{"run": {"12"}}, true},
		{"inside an object", map[string][]string{"org.unit": {"payments"}}, true},
		{"a name with a dot", map[string][]string{"a.b": {"dotted"}}, true},
		{"an absent claim", map[string][]string{"email": {"*"}}, false},
		{"an object has no text", map[string][]string{"org": {"*"}}, false},
		{"a claim without values", map[string][]string{"repository": {}}, false},
		{"no rule", nil, false},
	} {
		if got := MatchClaims(c.rule, claims); got != c.want {
			t.Errorf("%s: %t, want %t", c.name, got, c.want)
		}
	}
}

func TestGlobIsTheRegularExpression(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pattern := rapid.StringOfN(rapid.SampledFrom([]rune("ab*")), 0, 6, -1).Draw(t, "pattern")
		text := rapid.StringOfN(rapid.SampledFrom([]rune("ab")), 0, 8, -1).Draw(t, "text")
		re := regexp.MustCompile("^" + strings.ReplaceAll(pattern, "*", ".*") + "$")
		if got, want := Glob(pattern, text), re.MatchString(text); got != want {
			t.Fatalf("Glob(%q, %q) = %t, want %t", pattern, text, got, want)
		}
	})
}

func TestEvidenceIsOneLineThatNobodyElseCanShape(t *testing.T) {
	at := time.Date(2026, 11, 25, 13, 0, 0, 0, time.UTC)
	for want, id := range map[string]Identity{
		"": {Method: Local, Name: "alice"},
		"issuer=https://id.example.com kid=k1 alg=RS256 key=0vx7 token=sha256:00 iat=2026-11-25T13:00:00Z auth_time=2026-11-25T12:59:00Z acr=2 amr=pwd,otp": {
			Method: OIDC, Issuer: "https://id.example.com",
			Proof: Proof{KeyID: "k1", Algorithm: "RS256", KeyPrint: "0vx7", Token: "sha256:00", IssuedAt: at, AuthTime: at.Add(-time.Minute), ACR: "2", AMR: []string{"pwd", "otp"}},
		},
		"alg=sk-ssh-ed25519@openssh.com user_present=true user_verified=false counter=7": {
			Method: SSH, Proof: Proof{Algorithm: "sk-ssh-ed25519@openssh.com", SecurityKey: true, UserPresent: true, Counter: 7},
		},
		`kid="k1 alg=none" acr="a\nb"`:                   {Proof: Proof{KeyID: "k1 alg=none", ACR: "a\nb"}},
		"kid=" + strings.Repeat("k", maxFactBytes) + "…": {Proof: Proof{KeyID: strings.Repeat("k", 10000)}},
	} {
		if got := id.Evidence(); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}
