package handler

import (
	"context"
	"fmt"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/api/planview"
	"github.com/invarhq/invar/change"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
)

type refInput struct {
	Ref string `path:"ref" maxLength:"80" example:"prod@3" doc:"A release: ENV (its head), ENV@GENERATION, or a digest."`
}

type diffInput struct {
	A string `query:"a" required:"true" maxLength:"80" example:"prod@2" doc:"A release: ENV (its head), ENV@GENERATION, or a digest."`
	B string `query:"b" required:"true" maxLength:"80" example:"prod" doc:"A release: ENV (its head), ENV@GENERATION, or a digest."`
}

func (h *Handler) registerReleases() {
	register(h, huma.Operation{
		OperationID: "get-release", Method: http.MethodGet, Path: api.PathRelease, Tags: []string{tagReleases},
		Summary: "Show a release", Description: "Its components and the whole record, from which its digest follows.", Errors: []int{http.StatusNotFound},
	}, func(ctx context.Context, in *refInput) (*body[api.Release], error) {
		return answerWith(h.release(ctx, in.Ref))
	})
	register(h, huma.Operation{
		OperationID: "diff-releases", Method: http.MethodGet, Path: api.PathDiff, Tags: []string{tagReleases},
		Summary: "Compare two releases", Description: "Down to the field, and for files of configuration to the line.", Errors: []int{http.StatusNotFound},
	}, func(ctx context.Context, in *diffInput) (*body[api.Diff], error) {
		return answerWith(h.diff(ctx, in.A, in.B))
	})
}

// resolve finds the release that a reference names.
func (h *Handler) resolve(ctx context.Context, text string) (digest.Digest, release.Record, error) {
	ref, err := api.ParseRef(text)
	if err != nil {
		return "", release.Record{}, err
	}
	d := ref.Digest
	if d == "" {
		if d, err = h.config.Control.ReleaseOf(spec.EnvName(ref.Env), ref.Generation); err != nil {
			return "", release.Record{}, err
		}
	}
	rec, err := h.config.Control.Release(ctx, d)
	if err != nil {
		return "", release.Record{}, fmt.Errorf("reading release %s: %w", text, err)
	}
	return d, rec, nil
}

func (h *Handler) release(ctx context.Context, ref string) (api.Release, error) {
	d, rec, err := h.resolve(ctx, ref)
	if err != nil {
		return api.Release{}, err
	}
	raw, err := release.Encode(rec)
	if err != nil {
		return api.Release{}, err
	}
	out := api.Release{
		Digest: d, App: string(rec.App), Env: string(rec.Env), Bundle: rec.Bundle, Record: raw,
		Components: []api.ReleaseComponent{}, Heads: []api.Head{},
	}
	for _, p := range rec.Components {
		name, err := p.Component.Digest()
		if err != nil {
			return api.Release{}, err
		}
		out.Components = append(out.Components, api.ReleaseComponent{
			Name: string(p.Component.Name), Digest: name, Image: p.Component.Image, Root: p.Component.Root, Replicas: p.Replicas,
		})
	}
	st := h.config.Control.State()
	for g := range st.Heads(d) {
		e, err := st.Environment(g.Env)
		if err != nil {
			return api.Release{}, err
		}
		out.Heads = append(out.Heads, api.Head{Env: string(g.Env), Generation: g.Number, Current: e.Head.Number == g.Number})
	}
	return out, nil
}

func (h *Handler) diff(ctx context.Context, a, b string) (api.Diff, error) {
	da, ra, err := h.resolve(ctx, a)
	if err != nil {
		return api.Diff{}, err
	}
	db, rb, err := h.resolve(ctx, b)
	if err != nil {
		return api.Diff{}, err
	}
	return diffOf(da, ra, db, rb), nil
}

func diffOf(da digest.Digest, ra release.Record, db digest.Digest, rb release.Record) api.Diff {
	changes := planned(da, ra, db, rb)
	out := api.Diff{A: da, B: db, Changes: changes, Differences: []api.Difference{}}
	for _, c := range changes {
		out.Differences = append(out.Differences, c.Causes...)
	}
	return out
}

// planned is what would become of a if b came in its place.
func planned(da digest.Digest, a release.Record, db digest.Digest, b release.Record) []api.Change {
	return planview.Changes(change.MakePlan(
		change.Current{Base: change.Base{Release: da}, Record: a},
		change.Proposed{Digest: db, Record: b},
	))
}
