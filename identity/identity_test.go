package identity

import (
	"regexp"
	"strings"
	"testing"

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
