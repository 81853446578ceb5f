package handler

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/control"
	"github.com/invarhq/invar/state"
)

func (h *Handler) registerAttest() {
	register(h, huma.Operation{
		OperationID: "attest-release", Method: http.MethodPost, Path: api.PathAttest, Tags: []string{tagReleases},
		DefaultStatus: http.StatusCreated, Errors: []int{http.StatusNotFound},
		Summary: "Record that a release was made again",
		Description: "The server checks that what is said to be recorded is so, signs who said what in an in-toto statement, and records it. " +
			"That the release was made again, and what came of it, remains the caller's word.",
	}, func(ctx context.Context, in *struct {
		Ref  string `path:"ref" maxLength:"80" example:"prod@3" doc:"A release: ENV (its head), ENV@GENERATION, or a digest."`
		Body api.Reproduction
	}) (*body[api.Attested], error) {
		return answerWith(h.attest(ctx, in.Ref, in.Body))
	})
}

func (h *Handler) attest(ctx context.Context, ref string, in api.Reproduction) (api.Attested, error) {
	d, _, err := h.resolve(ctx, ref)
	if err != nil {
		return api.Attested{}, err
	}
	r := control.Reproduction{Differences: in.Differences, Builder: state.Builder(in.Builder)}
	for _, p := range in.Parts {
		r.Parts = append(r.Parts, control.ReproducedPart{Name: p.Name, Recorded: p.Recorded, Made: p.Made})
	}
	index, statement, err := h.config.Control.Attest(ctx, actorFrom(ctx), d, r)
	return api.Attested{Entry: uint64(index), Statement: statement, Result: r.Result()}, err
}
