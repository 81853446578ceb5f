package server

import (
	"context"
	"slices"
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
