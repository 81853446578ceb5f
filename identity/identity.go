// Package identity is what authentication yields: who somebody has proven to be, and by what. It says nothing of
// what they may do; the platform's definition maps an identity to a principal.
package identity

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/invarhq/invar/digest"
)

// Method is how an identity was proven.
type Method string

// The methods.
const (
	Local Method = "local" // peer credentials of the unix socket (SO_PEERCRED, unix(7))
	SSH   Method = "ssh"   // a signature by an SSH key
	OIDC  Method = "oidc"  // a token of an OpenID provider
	Token Method = "token" // one of the server's own tokens
)

// Identity is who somebody has proven to be. Which fields are set depends on the method.
type Identity struct {
	Method    Method
	Name      string         // user name; key fingerprint "SHA256:…"; the token's subject; the token's name
	Key       string         // ssh: the public key as in authorized_keys, without comment
	Issuer    string         // oidc: the provider's URL
	Claims    map[string]any // oidc: as decoded from JSON
	ExpiresAt time.Time      // zero: it does not by itself
	Proof     Proof
}

// Proof is what can be kept of how an identity was proven: enough to ask the issuer or to look at the key again, and
// nothing that anybody could act with. Unset fields were not told, or are not of that method.
type Proof struct {
	Algorithm string // of the signature: RS256, ssh-ed25519 …

	// Of a token.
	Token    digest.Digest // of its text as it was presented
	KeyID    string        // kid in its header
	KeyPrint string        // thumbprint of the issuer's key that verified it (RFC 7638, SHA-256, base64url)
	IssuedAt time.Time     // iat
	AuthTime time.Time     // auth_time: when the issuer last saw the person
	ACR      string        // acr: how strongly
	AMR      []string      // amr: by what means

	// Of an SSH key that is in a security key.
	SecurityKey  bool
	UserPresent  bool   // somebody touched it
	UserVerified bool   // it made sure who: by PIN, fingerprint or the like
	Counter      uint32 // of its signatures, where it counts
}

// Evidence returns the facts of how an identity was proven as one line, for the ledger: NAME=VALUE, separated by spaces. What is
// unset is left out; values that somebody else chose are quoted where they could be misread, and cut off where they are long.
//
//	issuer=https://id.example.com kid=k1 alg=RS256 key=0vx7a… token=sha256:9f86… iat=2026-11-25T13:00:00Z amr=pwd,otp
func (id Identity) Evidence() string {
	var facts []string
	add := func(name, value string) {
		if value != "" {
			facts = append(facts, name+"="+plain(value))
		}
	}
	at := func(name string, t time.Time) {
		if !t.IsZero() {
			add(name, t.UTC().Format(time.RFC3339))
		}
	}
	p := id.Proof
	add("issuer", id.Issuer)
	add("kid", p.KeyID)
	add("alg", p.Algorithm)
	add("key", p.KeyPrint)
	add("token", string(p.Token))
	at("iat", p.IssuedAt)
	at("auth_time", p.AuthTime)
	add("acr", p.ACR)
	add("amr", strings.Join(p.AMR, ","))
	if p.SecurityKey {
		add("user_present", strconv.FormatBool(p.UserPresent))
		add("user_verified", strconv.FormatBool(p.UserVerified))
		add("counter", strconv.FormatUint(uint64(p.Counter), 10))
	}
	return strings.Join(facts, " ")
}

// maxFactBytes bounds a value in Evidence.
const maxFactBytes = 200

func plain(value string) string {
	cut := strings.ToValidUTF8(value[:min(len(value), maxFactBytes)], "")
	if cut != value {
		cut += "…"
	}
	if strings.ContainsFunc(cut, func(r rune) bool { return r <= ' ' || r == '"' || !strconv.IsPrint(r) }) {
		return strconv.Quote(cut)
	}
	return cut
}

// MatchClaims reports whether the claims satisfy the rule: each claim that it names must be there and have one of the
// values, in which "*" stands for any number of characters. A claim that is a list needs one element that matches. Numbers and
// booleans are compared by their JSON. A name with dots reaches into objects, unless a claim has that very name. A rule
// without claims matches nothing.
func MatchClaims(rule map[string][]string, claims map[string]any) bool {
	if len(rule) == 0 {
		return false
	}
	for name, values := range rule {
		claim, ok := lookup(claims, name)
		if !ok || !matchClaim(values, claim) {
			return false
		}
	}
	return true
}

func lookup(claims map[string]any, name string) (any, bool) {
	if v, ok := claims[name]; ok {
		return v, true
	}
	head, rest, dotted := strings.Cut(name, ".")
	inner, ok := claims[head].(map[string]any)
	if !dotted || !ok {
		return nil, false
	}
	return lookup(inner, rest)
}

func matchClaim(values []string, claim any) bool {
	if list, ok := claim.([]any); ok {
		return slices.ContainsFunc(list, func(e any) bool { return matchValue(values, e) })
	}
	return matchValue(values, claim)
}

func matchValue(values []string, claim any) bool {
	var text string
	switch v := claim.(type) {
	case string:
		text = v
	case bool, float64, json.Number, int, int64:
		b, err := json.Marshal(v)
		if err != nil {
			return false
		}
		text = string(b)
	default:
		return false
	}
	return slices.ContainsFunc(values, func(pattern string) bool { return Glob(pattern, text) })
}

// Glob reports whether the text matches the pattern, in which "*" stands for any number of characters and everything
// else for itself.
func Glob(pattern, text string) bool {
	first, rest, wild := strings.Cut(pattern, "*")
	if !wild {
		return pattern == text
	}
	text, ok := strings.CutPrefix(text, first)
	for ok {
		var part string
		part, rest, wild = strings.Cut(rest, "*")
		if !wild {
			return strings.HasSuffix(text, part)
		}
		_, text, ok = strings.Cut(text, part)
	}
	return false
}
