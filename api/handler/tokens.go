package handler

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/state"
)

func (h *Handler) registerTokens() {
	register(h, huma.Operation{
		OperationID: "list-tokens", Method: http.MethodGet, Path: api.PathTokens, Tags: []string{tagTokens},
		Summary: "List the valid tokens", Description: "Without their secrets, which the server does not have.",
	}, func(_ context.Context, _ *struct{}) (*body[api.Tokens], error) { return answerWith(h.tokens(), nil) })
	register(h, huma.Operation{
		OperationID: "create-token", Method: http.MethodPost, Path: api.PathTokens, Tags: []string{tagTokens}, DefaultStatus: http.StatusCreated,
		Summary: "Make a token", Description: "Its secret is told this once.",
	}, func(ctx context.Context, in *struct{ Body api.TokenRequest }) (*body[api.NewToken], error) {
		t, secret, err := h.config.Control.CreateToken(ctx, actorFrom(ctx), in.Body.Name)
		return answerWith(api.NewToken{Token: tokenOf(t), Secret: secret}, err)
	})
	register(h, huma.Operation{
		OperationID: "delete-token", Method: http.MethodDelete, Path: api.PathToken, Tags: []string{tagTokens}, DefaultStatus: http.StatusNoContent,
		Summary: "Revoke a token", Description: "It is invalid from then on, for good.", Errors: []int{http.StatusNotFound, http.StatusConflict},
	}, func(ctx context.Context, in *struct {
		ID string `path:"id" maxLength:"63" doc:"Name of the token; not its secret."`
	}) (*struct{}, error) {
		return nil, h.config.Control.RevokeToken(ctx, actorFrom(ctx), state.TokenID(in.ID))
	})
}

func (h *Handler) tokens() api.Tokens {
	out := api.Tokens{Tokens: []api.Token{}}
	for t := range h.config.Control.State().Tokens() {
		if t.Valid(time.Now()) {
			out.Tokens = append(out.Tokens, tokenOf(t))
		}
	}
	slices.SortFunc(out.Tokens, func(a, b api.Token) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	return out
}

func tokenOf(t state.Token) api.Token {
	return api.Token{ID: string(t.ID), Name: t.Name, By: t.Actor.String(), CreatedAt: t.CreatedAt}
}
