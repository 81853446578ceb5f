package server

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/invarhq/invar/identity"
	"github.com/invarhq/invar/identity/oidc"
)

// identify verifies a token of an OpenID provider that the platform's definition in force lists.
func (s *Server) identify(ctx context.Context, token string) (identity.Identity, error) {
	rules, _ := s.control.State().Platform()
	var issuers []oidc.Issuer
	for _, i := range rules.Issuers {
		audience := slices.Clone(i.Audience)
		if i.ClientID != "" {
			audience = append(audience, i.ClientID)
		}
		issuers = append(issuers, oidc.Issuer{URL: i.URL, Audience: audience})
	}
	return s.oidc.Verify(ctx, issuers, token, time.Now())
}

// names are the server's DNS names in the spelling that requests are compared in.
func (s *Server) names() []string {
	var out []string
	for _, n := range s.config.Names {
		out = append(out, strings.ToLower(strings.TrimSuffix(n, ".")))
	}
	return out
}
