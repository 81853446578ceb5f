package handler

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/control"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/state"
)

func (h *Handler) registerTokens() {
	register(h, huma.Operation{
		OperationID: "list-tokens", Method: http.MethodGet, Path: api.PathTokens, Tags: []string{tagTokens},
		Summary: "List the valid tokens", Description: "One's own, and with the permission token all. Without their secrets, which the server does not have.",
	}, func(ctx context.Context, _ *struct{}) (*body[api.Tokens], error) {
		return answerWith(h.tokens(ctx), nil)
	})
	register(h, huma.Operation{
		OperationID: "create-token", Method: http.MethodPost, Path: api.PathTokens, Tags: []string{tagTokens}, DefaultStatus: http.StatusCreated,
		Summary: "Make a token", Description: "Its secret is told this once.",
	}, func(ctx context.Context, in *struct{ Body api.TokenRequest }) (*body[api.NewToken], error) {
		t, secret, err := h.config.Control.CreateToken(ctx, callerFrom(ctx).Caller, in.Body.Name, scopeOf(in.Body))
		return answerWith(api.NewToken{Token: tokenOf(t), Secret: secret}, err)
	})
	register(h, huma.Operation{
		OperationID: "delete-token", Method: http.MethodDelete, Path: api.PathToken, Tags: []string{tagTokens}, DefaultStatus: http.StatusNoContent,
		Summary: "Revoke a token", Description: "It is invalid from then on, for good.", Errors: []int{http.StatusNotFound, http.StatusConflict},
	}, func(ctx context.Context, in *struct {
		ID string `path:"id" maxLength:"63" doc:"Name of the token; not its secret."`
	}) (*struct{}, error) {
		if err := h.mayRevoke(ctx, state.TokenID(in.ID)); err != nil {
			return nil, err
		}
		return nil, h.config.Control.RevokeToken(ctx, actorFrom(ctx), state.TokenID(in.ID))
	})
}

func scopeOf(in api.TokenRequest) control.Scope {
	out := control.Scope{Lifetime: time.Duration(in.LifetimeMS) * time.Millisecond}
	for _, p := range in.Permissions {
		out.Permissions = append(out.Permissions, platform.Permission(p))
	}
	for _, e := range in.Environments {
		out.Environments = append(out.Environments, platform.Pattern(e))
	}
	return out
}

// mayRevoke refuses whoever may not revoke the token: anybody may his own, but a limited token only itself.
func (h *Handler) mayRevoke(ctx context.Context, id state.TokenID) error {
	c := callerFrom(ctx)
	t, err := h.config.Control.State().Token(id)
	if err == nil && t.Principal == c.Actor.Principal && (!c.Limited() || c.Token() == id) {
		return nil
	}
	return h.authorize(ctx, "delete-token", platform.Tokens, "")
}

func (h *Handler) tokens(ctx context.Context) api.Tokens {
	out := api.Tokens{Tokens: []api.Token{}}
	all := h.config.Control.Allows(callerFrom(ctx).Caller, platform.Tokens, "")
	for t := range h.config.Control.State().Tokens() {
		if t.Valid(time.Now()) && (all || t.Principal == actorFrom(ctx).Principal) {
			out.Tokens = append(out.Tokens, tokenOf(t))
		}
	}
	slices.SortFunc(out.Tokens, func(a, b api.Token) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	return out
}

func tokenOf(t state.Token) api.Token {
	out := api.Token{ID: string(t.ID), Name: t.Name, By: t.Actor.Who(), Principal: string(t.Principal), CreatedAt: t.CreatedAt, ExpiresAt: when(t.ExpiresAt), Session: t.Session}
	for _, p := range t.Permissions {
		out.Permissions = append(out.Permissions, string(p))
	}
	for _, e := range t.Environments {
		out.Environments = append(out.Environments, string(e))
	}
	return out
}
